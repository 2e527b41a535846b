"""What is minimised: each option turned and measured on a batch of each family, against the paper's equation.

The references are written out here from the papers, in their own symbols, and not shared with the code under test.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers.training_utils import compute_snr
from torch import Tensor

from dreambooth.core import settings
from dreambooth.core.errors import UserError
from dreambooth.core.settings.objective import Objective
from dreambooth.engine import compatibility, families
from dreambooth.engine.drawing.sampling import make_scheduler
from dreambooth.engine.families.model import Model
from dreambooth.engine.training import noise, objective
from tests.engine import tiny
from tests.engine.batches import Seen, alpha_bar, clean, losses, session, watched

PRIOR = 0.75  # the default weight of the class


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return families.load_file(tiny.write_original(tmp_path_factory.mktemp("tiny") / "m.safetensors", request.param))


@pytest.fixture(scope="module", params=["sd1", "sd2-v", "sdxl-v"])
def one_of_each(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """An epsilon model, a v model, and one of zero terminal SNR."""
    return families.load_file(tiny.write_original(tmp_path_factory.mktemp("tiny") / "m.safetensors", request.param))


def errors(model: Model, x_0: Tensor, seen: Seen) -> Tensor:
    """The difference of each latent between what the UNet said and what the noise in x_t implies."""
    a = alpha_bar(model)[seen.t].view(-1, 1, 1, 1)
    eps = (seen.x_t - a.sqrt() * x_0) / (1 - a).sqrt()
    if model.prediction_type == "epsilon":
        return seen.predicted - eps
    return seen.predicted - (a.sqrt() * eps - (1 - a).sqrt() * x_0)


def snr(model: Model, t: Tensor) -> Tensor:
    a = alpha_bar(model)[t]
    return a / (1 - a)


def plain_weight(model: Model, name: str, t: Tensor, gamma: float) -> list[float]:
    """The papers' weights, picture by picture, in Python's own numbers."""
    is_v, weights = model.prediction_type == "v_prediction", []
    for ratio in snr(model, t).tolist():
        if name == "min_snr":
            weights.append(min(ratio, gamma) / (ratio + 1 if is_v else ratio))
        else:
            weights.append(1 / (ratio + 1) if is_v else 1 / math.sqrt(ratio))
    return weights


def test_the_plain_loss_is_dreambooths_with_the_class_added(model: Model) -> None:
    """The predecessor logged the class's loss for SD 1 and 2 and never added it; for SDXL it cut along channels."""
    chosen = session(model)
    (total, subject, prior), seen = watched(chosen)
    x_0, own = clean(chosen)
    each = [e.square().mean().item() for e in errors(model, x_0, seen)]
    assert own == 3 and len(each) == 6
    assert subject == pytest.approx(sum(each[:3]) / 3, abs=1e-5)
    assert prior == pytest.approx(sum(each[3:]) / 3, abs=1e-5)
    assert total == pytest.approx(subject + PRIOR * prior, abs=1e-5)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["min_snr", "debiased"])
def test_timestep_weights_are_each_pictures_own_with_class_pictures_too(model: Model, name: str, batch: int) -> None:
    """diffusers weighs B rows by 2B timesteps: a crash for B > 1, a wrong broadcast for B = 1, the class unweighed."""
    chosen = session(model, batch=batch, **{"objective.weighting": name, "objective.timestep_max": 998})
    (total, subject, prior), seen = watched(chosen)
    x_0, own = clean(chosen)
    weights = plain_weight(model, name, seen.t, 5.0)
    each = [w * e.square().mean().item() for w, e in zip(weights, errors(model, x_0, seen), strict=True)]
    assert own == batch
    assert subject == pytest.approx(sum(each[:batch]) / batch, rel=1e-4, abs=1e-5)
    assert prior == pytest.approx(sum(each[batch:]) / batch, rel=1e-4, abs=1e-5)
    assert total == pytest.approx(subject + PRIOR * prior, abs=1e-5)


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr_for_v_is_over_snr_plus_one_and_not_plus_one_after(model: Model, gamma: float) -> None:
    """Whatever is predicted, the error of x_0 counts min(SNR, gamma); diffusers' v weight was min(SNR, g) / SNR + 1."""
    a = alpha_bar(model)[torch.arange(0, 999, 111)]
    torch.manual_seed(0)
    x_0, eps = torch.randn(2, 9, 4, 8, 8, dtype=torch.float64)
    wrong = x_0 + 0.1 * torch.randn_like(x_0)  # a guess at x_0, and what it means for the prediction at the same x_t
    b = a.double().view(-1, 1, 1, 1)
    x_t = b.sqrt() * x_0 + (1 - b).sqrt() * eps
    guessed = (x_t - b.sqrt() * wrong) / (1 - b).sqrt()
    kind = model.prediction_type
    difference = objective.target(kind, wrong, guessed, b.flatten()) - objective.target(kind, x_0, eps, b.flatten())
    weight = objective.timestep_weight(kind, Objective(weighting="min_snr", min_snr_gamma=gamma), a).double()
    ratio = b.flatten() / (1 - b.flatten())
    expected = ratio.clamp(max=gamma) * (wrong - x_0).square().mean((1, 2, 3))
    assert torch.allclose(weight * difference.square().mean((1, 2, 3)), expected, rtol=1e-4)


def test_the_weight_of_noise_makes_an_error_of_v_that_of_the_noise_it_implies(model: Model) -> None:
    a = alpha_bar(model)[torch.arange(0, 999, 111)]
    torch.manual_seed(0)
    x_0, eps = torch.randn(2, 9, 4, 8, 8)
    wrong, b = eps + 0.1 * torch.randn_like(eps), a.view(-1, 1, 1, 1)
    x_t = b.sqrt() * x_0 + (1 - b).sqrt() * eps
    kind, guessed = model.prediction_type, (x_t - (1 - b).sqrt() * wrong) / b.sqrt()
    difference = objective.target(kind, guessed, wrong, a) - objective.target(kind, x_0, eps, a)
    weighed = objective.timestep_weight(kind, Objective(weighting="noise"), a) * difference.square().mean((1, 2, 3))
    assert torch.allclose(weighed, (wrong - eps).square().mean((1, 2, 3)), rtol=1e-3)


@pytest.mark.parametrize("name", ["min_snr", "debiased", "noise"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_weights_are_finite_without_any_signal(name: str, kind: str) -> None:
    weight = objective.timestep_weight(kind, Objective(weighting=name), torch.tensor([0.0, 1e-9, 0.5, 0.9999]))  # type: ignore[arg-type]
    assert torch.isfinite(weight).all()
    assert (weight >= 0).all()


def test_a_model_of_zero_terminal_snr_has_a_finite_loss_at_its_last_step(one_of_each: Model) -> None:
    last = {"objective.timestep_min": 999, "objective.timestep_max": 999}
    for change in (
        {},
        {"objective.weighting": "min_snr"},
        {"objective.weighting": "debiased"},
        {"objective.loss": "huber"},
    ):
        (total, _, _), seen = watched(session(one_of_each, **last, **change))
        assert set(seen.t.tolist()) == {999}
        assert math.isfinite(total)


def test_min_snr_is_diffusers_own_without_class_pictures(one_of_each: Model) -> None:
    """Against diffusers' compute_snr and the formula of its scripts where that is right: no class pictures, B = 3."""
    chosen = session(one_of_each, priors=False, **{"objective.weighting": "min_snr", "objective.timestep_max": 998})
    (total, _, _), seen = watched(chosen)
    theirs = compute_snr(make_scheduler("ddim", one_of_each), seen.t)
    weights = torch.stack([theirs, 5.0 * torch.ones_like(theirs)], dim=1).min(dim=1)[0]
    weights = weights / (theirs if one_of_each.prediction_type == "epsilon" else theirs + 1)
    each = errors(one_of_each, clean(chosen)[0], seen).square().mean((1, 2, 3))
    assert total == pytest.approx((weights * each).mean().item(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("schedule", ["constant", "exponential", "snr"])
def test_huber(one_of_each: Model, schedule: str) -> None:
    delta = 0.2
    changes = {"objective.loss": "huber", "objective.huber_delta": delta, "objective.huber_schedule": schedule}
    chosen = session(one_of_each, **changes, **{"objective.timestep_max": 998})
    (total, subject, _), seen = watched(chosen)
    each = []
    for e, t, ratio in zip(
        errors(one_of_each, clean(chosen)[0], seen), seen.t.tolist(), snr(one_of_each, seen.t).tolist()
    ):
        d = {
            "constant": delta,
            "exponential": math.exp(math.log(delta) * t / 1000),
            "snr": (1 - delta) / (1 + math.sqrt(1 / ratio)) ** 2 + delta,
        }[schedule]
        each.append((2 * (d**2) * (torch.sqrt(1 + (e / d) ** 2) - 1)).mean().item())
    assert subject == pytest.approx(sum(each[:3]) / 3, abs=1e-5)
    assert total == pytest.approx(sum(each[:3]) / 3 + PRIOR * sum(each[3:]) / 3, abs=1e-5)


def test_huber_forgives_outliers_and_is_the_square_for_small_errors() -> None:
    delta = torch.tensor(0.1)
    assert objective.pseudo_huber(torch.tensor(1e-3), delta).item() == pytest.approx(1e-6, rel=1e-2)
    assert objective.pseudo_huber(torch.tensor(100.0), delta).item() == pytest.approx(2 * 0.1 * 100, rel=1e-2)
    d = torch.randn(100)
    assert torch.allclose(objective.pseudo_huber(d, torch.tensor(100.0)), d.square(), atol=1e-2)


def test_the_weight_of_the_class_falls_over_the_epochs(one_of_each: Model) -> None:
    changes = {"objective.prior_loss_scale": True, "objective.prior_loss_target": 10, "tuning.prior_loss_weight": 0.9}
    chosen = session(one_of_each, **changes, **{"objective.prior_loss_weight_min": 0.2})
    for epoch, weight in ((0, 0.9), (5, 0.55), (10, 0.2), (50, 0.2)):
        total, subject, prior = (part.item() for part in losses(chosen, position=epoch * 6))
        assert total == pytest.approx(subject + weight * prior, abs=1e-5)
    still = session(one_of_each, **{"tuning.prior_loss_weight": 0.9})
    total, subject, prior = (part.item() for part in losses(still, position=300))
    assert total == pytest.approx(subject + 0.9 * prior, abs=1e-5)


@pytest.mark.parametrize(("key", "value"), [("multires_noise_levels", 1), ("multires_noise_discount", 0.9)])
def test_the_settings_of_multi_resolution_noise_reach_what_the_unet_sees(
    one_of_each: Model, key: str, value: float
) -> None:
    plain = {"objective.multires_noise_levels": 4}
    seen = [watched(session(one_of_each, **plain, **more))[1].x_t for more in ({}, {})]
    other = watched(session(one_of_each, **{**plain, f"objective.{key}": value}))[1].x_t
    assert torch.equal(*seen)
    assert not torch.allclose(seen[0], other, atol=1e-3)


@pytest.mark.parametrize("weights", [(1.0, 3.0), (2.0, 2.0)])
def test_a_concept_counts_by_its_weight(one_of_each: Model, weights: tuple[float, float]) -> None:
    chosen = {f"concepts.{n}.loss_weight": weight for n, weight in enumerate(weights)}
    weighed, plain = session(one_of_each, concepts=2, **chosen), session(one_of_each, concepts=2)
    concept = weighed.instances.concept[weighed.order.batch(0, 3)[0]].tolist()
    assert set(concept) == {0, 1}
    (_, subject, prior), seen = watched(weighed)
    each = errors(one_of_each, clean(weighed)[0], seen).square().mean((1, 2, 3)).tolist()
    expected = sum(e * weights[c] for e, c in zip(each[:3], concept, strict=True)) / 3
    assert subject == pytest.approx(expected, abs=1e-5)
    assert prior == pytest.approx(watched(plain)[0][2], abs=1e-6)


# ---- noise


def residual(chosen: Any, seen: Seen) -> Tensor:
    """The noise that is in x_t."""
    a = alpha_bar(chosen.model)[seen.t].view(-1, 1, 1, 1)
    return (seen.x_t - a.sqrt() * clean(chosen)[0]) / (1 - a).sqrt()


@pytest.mark.parametrize("strength", [0.3, -0.3])
def test_offset_noise_shifts_whole_channels_and_is_predicted(one_of_each: Model, strength: float) -> None:
    """The predecessor's slider went below 0 and was ignored there."""
    plain, shifted = session(one_of_each), session(one_of_each, **{"objective.offset_noise": strength})
    (_, _, _), without = watched(plain)
    (total, _, _), seen = watched(shifted)
    difference = residual(shifted, seen) - residual(plain, without)
    assert torch.allclose(difference, difference.mean((2, 3), keepdim=True).expand_as(difference), atol=1e-3)
    assert difference.abs().mean() > 0.1
    each = errors(one_of_each, clean(shifted)[0], seen).square().mean((1, 2, 3))
    assert total == pytest.approx((each[:3].mean() + PRIOR * each[3:].mean()).item(), rel=1e-3)


def test_offset_noise_has_the_variance_of_its_equation() -> None:
    torch.manual_seed(0)
    eps = noise.offset(torch.randn(2000, 4, 4, 4), 0.5)
    assert eps.mean((2, 3)).var().item() == pytest.approx(0.25 + 1 / 16, rel=0.05)
    torch.manual_seed(0)
    mirrored = noise.offset(torch.randn(2000, 4, 4, 4), -0.5)
    assert mirrored.mean((2, 3)).var().item() == pytest.approx(eps.mean((2, 3)).var().item(), rel=0.05)
    assert not torch.equal(eps, mirrored)


def test_multi_resolution_noise_is_coarser_and_of_unit_variance() -> None:
    torch.manual_seed(0)
    white = torch.randn(200, 4, 32, 32)
    means = {}
    for discount in (0.01, 0.3, 0.9):
        made = noise.multi_resolution(white, 6, discount)
        assert torch.allclose(made.std((1, 2, 3)), torch.ones(200), atol=1e-4)
        means[discount] = made.mean((2, 3)).std().item()  # white noise: 1/32
    assert means[0.01] == pytest.approx(1 / 32, rel=0.1)
    assert means[0.01] < 2 * means[0.3] < means[0.9]
    one, six = (noise.multi_resolution(white, levels, 0.9).mean((2, 3)).std() for levels in (1, 6))
    assert one < six


def test_multi_resolution_noise_ends_where_one_side_is_a_single_value() -> None:
    """As published: of a wide picture nothing is drawn that differs from left to right alone, level after level."""
    white = torch.randn(2, 4, 4, 64)
    made = []
    for levels in (2, 9):
        torch.manual_seed(3)
        made.append(noise.multi_resolution(white, levels, 0.9))
    assert torch.equal(*made)


def test_multi_resolution_noise_follows_its_equation_level_by_level() -> None:
    torch.manual_seed(5)
    white = torch.randn(2, 4, 64, 96)  # a third level would have more than one value
    torch.manual_seed(9)
    made = noise.multi_resolution(white, 2, 0.5)
    torch.manual_seed(9)
    expected, scale = white + torch.randn_like(white), 1.0
    for level in (1, 2):
        scale *= 2 + 2 * torch.rand(()).item()
        coarse = torch.randn(2, 4, int(64 / scale), int(96 / scale))
        expected = expected + 0.5**level * torch.nn.functional.interpolate(coarse, (64, 96), mode="bilinear")
    assert torch.allclose(made, expected / expected.std((1, 2, 3), keepdim=True), atol=1e-6)


def test_multi_resolution_noise_is_what_the_unet_is_to_predict(one_of_each: Model) -> None:
    changes = {"objective.multires_noise_levels": 4, "objective.multires_noise_discount": 0.9}
    chosen = session(one_of_each, **changes)
    (total, _, _), seen = watched(chosen)
    assert torch.allclose(residual(chosen, seen).std((1, 2, 3)), torch.ones(6), atol=0.05)
    assert not torch.allclose(residual(chosen, seen), residual(chosen, watched(session(one_of_each))[1]), atol=1e-2)
    each = errors(one_of_each, clean(chosen)[0], seen).square().mean((1, 2, 3))
    assert total == pytest.approx((each[:3].mean() + PRIOR * each[3:].mean()).item(), rel=1e-3)


def test_input_perturbation_is_seen_by_the_unet_and_not_predicted(one_of_each: Model) -> None:
    plain, changed = session(one_of_each), session(one_of_each, **{"objective.input_perturbation": 0.5})
    (_, _, _), without = watched(plain)
    (total, _, _), seen = watched(changed)
    eps = residual(plain, without)
    added = residual(changed, seen) - eps
    assert torch.equal(seen.t, without.t)
    assert added.std().item() == pytest.approx(0.5, rel=0.05)
    a = alpha_bar(one_of_each)[seen.t].view(-1, 1, 1, 1)
    x_0 = clean(changed)[0]
    wanted = eps if one_of_each.prediction_type == "epsilon" else a.sqrt() * eps - (1 - a).sqrt() * x_0
    each = (seen.predicted - wanted).square().mean((1, 2, 3))
    assert total == pytest.approx((each[:3].mean() + PRIOR * each[3:].mean()).item(), rel=1e-4)


# ---- timesteps


def drawn(**changes: Any) -> Tensor:
    torch.manual_seed(0)
    return noise.timesteps(50_000, Objective(**changes), torch.device("cpu"))


def test_uniform_timesteps_are_the_whole_range_alike() -> None:
    t = drawn()
    assert (t.min().item(), t.max().item()) == (0, 999)
    counts = torch.bincount(t // 100, minlength=10) / 50_000
    assert counts.tolist() == pytest.approx([0.1] * 10, abs=0.01)
    torch.manual_seed(0)
    assert torch.equal(t, torch.randint(1000, (50_000,)))


@pytest.mark.parametrize("name", ["uniform", "logit_normal", "cubic"])
def test_timesteps_stay_within_their_range(name: str) -> None:
    t = drawn(timesteps=name, timestep_min=200, timestep_max=299)
    assert 200 <= t.min() <= 201 < 298 <= t.max() <= 299


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.0, 0.5)])
def test_logit_normal_timesteps(mean: float, std: float) -> None:
    """The share below t is the normal distribution's at logit(t / T) (arXiv 2403.03206, equation 19)."""
    t = drawn(timesteps="logit_normal", logit_mean=mean, logit_std=std)
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        z = (math.log(share / (1 - share)) - mean) / std
        assert (t < 1000 * share).float().mean().item() == pytest.approx((1 + math.erf(z / math.sqrt(2))) / 2, abs=0.01)


def test_cubic_timesteps() -> None:
    """t = (1 - u^3) T: the share below t is 1 - (1 - t / T)^(1/3)."""
    t = drawn(timesteps="cubic")
    for share in (0.1, 0.5, 0.9):
        assert (t < 1000 * share).float().mean().item() == pytest.approx(1 - (1 - share) ** (1 / 3), abs=0.01)


def test_the_choice_of_timesteps_does_not_weigh_the_loss(one_of_each: Model) -> None:
    chosen = session(one_of_each, **{"objective.timesteps": "cubic", "objective.timestep_min": 100})
    (_, subject, _), seen = watched(chosen)
    assert seen.t.min() >= 100
    each = errors(one_of_each, clean(chosen)[0], seen).square().mean((1, 2, 3))
    assert subject == pytest.approx(each[:3].mean().item(), rel=1e-4)


# ---- all together


def test_every_option_draws_the_same_again_from_the_same_seed(one_of_each: Model) -> None:
    everything = {
        "objective.loss": "huber",
        "objective.weighting": "min_snr",
        "objective.offset_noise": 0.1,
        "objective.multires_noise_levels": 3,
        "objective.input_perturbation": 0.1,
        "objective.timesteps": "logit_normal",
    }
    first, again, other = (watched(session(one_of_each, **everything), seed=seed) for seed in (7, 7, 8))
    assert first[0] == again[0]
    assert torch.equal(first[1].x_t, again[1].x_t)
    assert first[0] != other[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective.timestep_min": 500, "objective.timestep_max": 400}, "no step is left to train"),
        ({"objective.prior_loss_scale": True, "objective.prior_loss_weight_min": 2}, "prior_loss_weight_min"),
        ({"tuning.train_unet": False}, "text_encoder_ratio to 1"),
        ({"lora.kind": "loha", "lora.dropout": 0.1}, "lora.dropout"),
        ({"lora.kind": "oft", "lora.rank": 1}, "lora.rank: 1 leaves oft nothing"),
        ({"tuning.unet_layers": "attention"}, "tuning.unet_layers: it is attention, but lora.layers says"),
        (
            {"tuning.train_unet": False, "tuning.text_encoder_ratio": 1.0, "tuning.text_encoder_steps": 9},
            "tuning.text_encoder_steps: without the UNet",
        ),
        ({"imagic.enabled": True, "tuning.text_encoder_steps": 9}, "tuning.text_encoder_steps: with imagic.enabled"),
    ],
)
def test_what_cannot_work_is_refused_with_the_mend(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        settings.parse(changes)


def test_masks_are_not_made_for_pictures_of_the_class(one_of_each: Model) -> None:
    chosen = session(one_of_each, **{"objective.masked": True, "objective.unmasked_weight": 0.25})
    mask = torch.zeros(6, 1, 8, 8)
    mask[:, :, 2:5, 1:6] = 1
    mask[:, :, 5, 3] = 0.5
    chosen.instances.mask = [mask]
    (_, subject, prior), seen = watched(chosen)
    squares = errors(one_of_each, clean(chosen)[0], seen).square()
    weight = mask[0, 0] + 0.25 * (1 - mask[0, 0])
    each = [(e.mean(0) * weight).sum().item() / weight.sum().item() for e in squares[:3]]
    assert subject == pytest.approx(sum(each) / 3, abs=1e-5)
    assert prior == pytest.approx(squares[3:].mean().item(), abs=1e-5)


def test_a_model_of_the_noise_needs_no_weight_of_the_noise() -> None:
    chosen = settings.parse({"objective.weighting": "noise"})
    about = {"family": "sd1", "zero_terminal_snr": False}
    (said,) = compatibility.problems(chosen, {**about, "prediction_type": "epsilon"})
    assert said == "objective.weighting: this model predicts the noise as it is; set it to none."
    assert not compatibility.problems(chosen, {**about, "prediction_type": "v_prediction"})
