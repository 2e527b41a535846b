"""Faults that other trainers have or had, none of which this one may have.

HELD names those that a test elsewhere holds; each of the others is the test below that bears its name. "Predecessor" is
sd_dreambooth_extension, "kohya" is sd-scripts. Each test of this file was seen to fail with its fault put into our code;
for those elsewhere that HELD names this was not tried.
"""

# ruff: noqa: E501
from __future__ import annotations

import ast
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth.core import schema
from dreambooth.core.buckets import Bucket
from dreambooth.core.errors import UserError
from dreambooth.core.project import Project
from dreambooth.core.settings import Settings
from dreambooth.core.settings.dataset import Pictures
from dreambooth.engine import families, worker
from dreambooth.engine.data import cropping
from dreambooth.engine.families.model import Model, whole_picture
from dreambooth.engine.run import outputs
from dreambooth.engine.training import gradient_clipping, loop, loss, step_metrics
from dreambooth.engine.training.ema import Ema
from dreambooth.engine.training.session import Session
from tests.conftest import ROOT
from tests.engine import tiny
from tests.engine.batches import alpha_bar, losses, session, watched
from tests.engine.runs import LORA, new_run, output, same, saved, tiny_project, told, train

HELD = {
    # The loss
    "predecessor: the class's loss was logged for SD 1 and 2 and never added, and cut along channels for SDXL": "engine/test_objective.py::test_the_plain_loss_is_dreambooths_with_the_class_added",
    "predecessor: a negative offset noise was ignored": "engine/test_objective.py::test_offset_noise_shifts_whole_channels_and_is_predicted",
    "predecessor: the slider of min-SNR's gamma did nothing": "engine/test_objective.py::test_timestep_weights_are_each_pictures_own_with_class_pictures_too",
    "diffusers: with zero terminal SNR a weight divides by zero": "engine/test_objective.py::test_weights_are_finite_without_any_signal",
    "predecessor: a loss that was no number went on to be saved": "engine/test_options.py::test_a_loss_that_is_no_number_ends_the_run_and_saves_nothing",
    # What is trained
    "predecessor: freezing CLIP's normalization froze nothing": "engine/test_adapters.py::test_freezing_clip_normalization_freezes_those_layers_and_no_others",
    "predecessor: SDXL's text encoders got no gradient, as their embeddings were cached": "engine/test_families_training.py::test_full_fine_tuning_changes_unet_and_text_and_nothing_else",
    "predecessor: a LoRA was trained at strength 1 and drawn at alpha / rank": "engine/test_adapters.py::test_a_webui_makes_of_the_file_what_the_layer_computed",
    "predecessor: a clip skip that the model cannot have was passed over": "engine/test_long_prompts.py::test_a_clip_skip_that_cannot_be_is_refused",
    "predecessor: longer prompts were cut at 75 tokens whatever the setting": "engine/test_long_prompts.py::test_what_comes_late_in_a_prompt_counts_only_where_it_is_read",
    "kohya, OneTrainer: one draw, or the mean, of a picture's latents for the whole run": "engine/test_cache.py::test_draws_are_of_the_distribution_of_encoding_afresh",
    # Optimizers and schedules
    "predecessor: the text encoder's weight decay was set on a group that never existed": "engine/test_optimizers.py::test_the_text_encoder_has_its_own_weight_decay",
    "predecessor: the text encoder's gradient norm was read by nobody, and a LoRA was not clipped": "engine/test_memory_options.py::test_each_part_is_clipped_to_its_own_norm",
    "predecessor: an optimizer that could not be made was AdamW without a word": "engine/test_optimizers.py::test_an_optimizer_that_fails_is_refused_and_not_replaced",
    "predecessor: a paged optimizer was always an ordinary one": "engine/test_optimizers.py::test_a_paged_optimizer_is_not_quietly_an_ordinary_one",
    "predecessor: with class pictures a falling rate reached its end half-way": "engine/test_schedules.py::test_batch_accumulation_and_class_pictures_do_not_move_a_curve",
    # Memory and precision
    "predecessor: the choice of attention never reached the trainer": "engine/test_memory_options.py::test_sliced_attention_is_the_same_with_smaller_pieces",
    "predecessor: full precision crashed for SD 1 and 2": "engine/test_memory_options.py::test_a_precision_is_what_the_layers_compute_in",
    "predecessor: the VAE computed in half precision": "engine/test_memory_options.py::test_the_vae_is_in_full_precision_when_a_lora_previews_in_bf16",
    "diffusers, kohya, OneTrainer, SimpleTuner, ai-toolkit: every step waits for the loss to be read": "engine/test_memory_options.py::test_nothing_waits_for_the_device_between_reports",
    # Order
    "predecessor: an epoch did not see each picture once": "engine/test_batch_order.py::test_every_picture_is_seen_exactly_once_in_each_epoch",
    "predecessor: latents were kept by path alone, whatever had become of the file": "engine/test_cache.py::test_only_what_has_changed_is_encoded_anew",
    # Resuming
    "kohya: a second resume counted from the first, and full fine-tuning from 0": "engine/test_optimizers.py::test_a_pause_changes_no_bit",
    "diffusers: the order of the data began anew after a resume": "engine/test_batch_order.py::test_the_position_alone_says_what_comes",
    "predecessor: a resumed run left out its first epoch": "engine/test_resume.py::test_pausing_at_any_step_changes_no_bit",
    "diffusers: the older state was deleted before the newer was written": "engine/test_state.py::test_a_file_that_cannot_grow_any_further_keeps_the_state_before",
    "OneTrainer, ai-toolkit: a state in pieces was gone on from at 0, or with fresh moments": "engine/test_state.py::test_a_state_that_is_cut_anywhere_is_never_loaded",
    "predecessor: cancelling could not discard": "engine/test_resume.py::test_discarding_keeps_nothing",
}  # fmt: skip


@pytest.mark.parametrize("file", sorted({test.split("::")[0] for test in HELD.values()}))
def test_the_tests_that_hold_a_fault_exist(file: str) -> None:
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert {test.split("::")[1] for test in HELD.values() if test.startswith(f"{file}::")} <= there


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return tiny_project(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module", params=["sd1", "sd2-v", "sdxl"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model that predicts the noise, one that predicts v, and one with two text encoders."""
    return families.load_file(tiny.write_original(tmp_path_factory.mktemp("tiny") / "m.safetensors", request.param))


# ---- the loss


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return families.load_file(tiny.write_original(tmp_path_factory.mktemp("plain") / "m.safetensors", "sd1"))


@pytest.fixture(scope="module")
def min_snr(model: Model) -> tuple[list[float], torch.Tensor]:
    """How much less each part of a batch of one picture and one of the class counts with min-SNR, and their SNRs."""
    (_, *without), seen = watched(session(model, batch=1))
    (_, *weighed), _ = watched(session(model, batch=1, **{"objective.weighting": "min_snr"}))
    a = alpha_bar(model)[seen.t]
    return [one / other for one, other in zip(weighed, without, strict=True)], a / (1 - a)


def test_diffusers_weighed_pictures_by_the_timesteps_of_others_and_the_class_not_at_all(
    model: Model, min_snr: tuple[list[float], torch.Tensor]
) -> None:
    """2B weights over B losses; the prior loss without any."""
    shares, snr = min_snr
    v = model.prediction_type == "v_prediction"
    expected = [min(ratio, 5.0) / (ratio + 1 if v else ratio) for ratio in snr.tolist()]
    assert snr[0] != snr[1]
    assert shares == pytest.approx(expected, rel=1e-4)


def test_diffusers_added_one_to_the_weight_of_v_in_place_of_dividing_by_it(
    min_snr: tuple[list[float], torch.Tensor],
) -> None:
    """Its weight min(SNR, gamma) / SNR + 1 is above 1 everywhere, what it should be is below 1 everywhere."""
    assert all(share <= 1 + 1e-6 for share in min_snr[0])


def test_the_predecessor_logged_the_class_and_never_learned_from_it(plain: Model) -> None:
    """The prior loss was shown and not added, so its weight changed no gradient."""

    def gradient(weight: float) -> torch.Tensor:
        chosen = session(plain, batch=1, **{"tuning.prior_loss_weight": weight})
        losses(chosen)[0].backward()
        return torch.cat([p.grad.flatten() for p in chosen.trained.named().values() if p.grad is not None])

    none, half, whole = (gradient(weight) for weight in (0.0, 0.5, 1.0))
    assert (whole - none).norm() > 0.1 * none.norm()
    assert torch.allclose(half, (none + whole) / 2, atol=1e-4 * whole.abs().max().item())


def test_the_predecessor_showed_an_epochs_loss_divided_by_twice_the_batch(
    star: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its `epoch_loss` was divided by the length of the sampler, which is twice the batch size."""
    seen: list[float] = []
    losses = loss.compute_losses

    def kept(*arguments: Any, **more: Any) -> Any:
        found = losses(*arguments, **more)
        seen.append(found[0].item())
        return found

    monkeypatch.setattr(loss, "compute_losses", kept)
    monkeypatch.setattr(step_metrics, "REPORT_SECONDS", 1e9)  # only at the end
    changes = {"batching.train_batch_size": 2, "batching.gradient_accumulation_steps": 2}
    job = train(star, **changes, **{"intervals.max_train_steps": 3})
    assert len(seen) == 6
    assert told(job, "step")[-1]["loss"] == pytest.approx(sum(seen) / 6, abs=1e-5)


# ---- what is trained on


def test_the_predecessor_told_sdxl_the_width_for_the_height() -> None:
    """Its time_ids were (w, h, 0, 0, w, h)."""
    assert whole_picture(96, 64) == [64, 96, 0, 0, 64, 96]
    assert cropping.centred((192, 128), Bucket(96, 64)).conditions == [128, 192, 0, 0, 64, 96]


def test_the_predecessor_scaled_sdxls_latents_like_those_of_sd1(model: Model) -> None:
    """It took 0.18215 for every model."""
    scale = 0.13025 if model.family == "sdxl" else 0.18215
    with torch.no_grad():
        pixels = torch.rand(1, 3, 64, 64) * 2 - 1
        mean, std = model.encode_pictures(pixels)
        plain = model.vae.encode(pixels).latent_dist
    assert torch.allclose(mean, plain.mean * scale)
    assert torch.allclose(std, plain.std * scale)


def test_the_predecessor_tossed_for_a_flip_once_and_kept_to_it() -> None:
    """With cached latents a picture was seen on one side only. Here it has both in turn."""
    picture = Image.fromarray(np.zeros((64, 64, 3), np.uint8))
    found = cropping.cuts("a.png", (64, 64), Bucket(64, 64), Pictures(hflip=True), 0, lambda: picture)
    assert {cut.mirrored for cut in found} == {False, True}


# ---- what is learned


def test_the_predecessors_average_was_still_where_it_began() -> None:
    """A decay of 0.9999 from the first step leaves 86 % of the beginning after 1500 steps."""
    weights = {"w": torch.zeros(1)}
    average = Ema(weights, Settings().tuning.ema_decay)
    weights["w"].fill_(1.0)
    for _ in range(60):  # the shortest run that anybody makes
        average.update(weights)
    assert average.average["w"].item() > 0.999


def test_the_predecessors_nested_accumulation_stepped_too_often(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each model that accumulated. And several batches are to be as good as one."""
    taken: list[torch.Tensor] = []
    clip = gradient_clipping.clip

    def kept(session: Session) -> Any:
        norms = clip(session)
        taken.append(norms)
        return norms

    monkeypatch.setattr(loop.gradient_clipping, "clip", kept)
    both = {"tuning.text_encoder_ratio": 1.0, "intervals.num_train_epochs": 4}
    train(star, **both, **{"batching.train_batch_size": 2, "batching.gradient_accumulation_steps": 5})
    assert len(taken) == 2  # 20 pictures, 10 in each step


def test_several_batches_are_as_good_as_one_large_one(plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of three batches added up is that of one of three; noise and timesteps as in the large one."""
    whole = session(plain, batch=3, priors=False)
    _, seen = watched(whole)
    a = alpha_bar(plain)[seen.t].view(-1, 1, 1, 1)
    x_0 = whole.instances.mean[0][whole.order.batch(0, 3)[0]]
    eps = (seen.x_t - a.sqrt() * x_0) / (1 - a).sqrt()

    def gradient(chosen: Session, batch: int) -> torch.Tensor:
        for start in range(0, 3, batch):
            rows = slice(start, start + batch)
            monkeypatch.setattr(loss.noise, "timesteps", lambda *_, at=rows: seen.t[at])
            monkeypatch.setattr(loss.noise, "shaped", lambda *_, at=rows: eps[at])
            (losses(chosen, start)[0] * batch / 3).backward()
        return torch.cat([p.grad.flatten() for p in chosen.trained.named().values() if p.grad is not None])

    one, many = gradient(whole, 3), gradient(session(plain, batch=1, priors=False), 1)
    assert torch.allclose(one, many, atol=2e-2 * one.abs().max().item())  # eps is taken out of x_t again


def test_the_predecessors_previews_left_the_optimizer_and_half_of_the_model_elsewhere(star: Project) -> None:
    """Afterwards only the UNet was moved back. Nothing of training may know that they were made."""
    longer = {**LORA, "lora.dropout": 0.3, "tuning.text_encoder_ratio": 0.5, "intervals.num_train_epochs": 4}
    often = {"intervals.save_preview_every": 1, "previews.count": 1, "previews.steps": 1, "previews.prompts": "a"}
    seen = train(star, **longer, **often, **{"intervals.save_model_every": 1, "intervals.save_state_every": 1})
    assert same(output(seen), output(train(star, **longer)))
    assert len(told(seen, "preview")) == 5


# ---- what is kept


def test_onetrainer_forgot_the_scale_of_the_gradients(plain: Model) -> None:
    """The GradScaler was in no backup, so that a resumed fp16 run began by overflowing."""
    before, after = session(plain), session(plain)
    for one, scale in ((before, 4.0), (after, 65536.0)):
        one.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        one.accelerator.scaler.scale(torch.ones(1))  # its scale is a tensor from now on
    before.accelerator.scaler.update(8.0)
    after.restore(*before.state())
    assert after.accelerator.scaler.get_scale() == 8.0


def test_the_predecessor_ended_well_when_it_could_not_save(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors while saving were printed, and the training was said to be a success."""

    def full(*_: Any, **__: Any) -> None:
        raise UserError("The disk is full.")

    monkeypatch.setattr(outputs, "write", full)
    job = new_run(star)
    assert worker.run(job) == "paused"  # what was learned is in the state
    assert "The disk is full." in told(job, "warning")[-1]["text"]
    assert not saved(job)
    monkeypatch.undo()
    assert worker.run(job) == "done"
    assert saved(job)


def test_the_predecessor_put_a_smaller_model_over_an_older_one(star: Project) -> None:
    """A file that a WebUI has open was written over. Here no file is."""
    first = saved(train(star))[0]
    kept = first.read_bytes()
    second = saved(train(star, **{"general.seed": 1}))[0]
    assert first != second
    assert first.read_bytes() == kept


# ---- settings


def test_the_predecessor_had_settings_that_nobody_read() -> None:
    """Eleven had no reader, and Imagic's box wrote another name than the one that was read."""
    read: set[str] = set()
    for path in (ROOT / "dreambooth").rglob("*.py"):
        if "settings" in path.parts or "migrate" in path.parts:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        read |= {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
    names = {leaf.key.rpartition(".")[2] for leaf in schema.leaves(Settings)}
    through_properties = {name for name in names if name.endswith("learning_rate")} | {"method", "ratio"}
    assert names - read - through_properties == set()
