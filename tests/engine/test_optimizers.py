"""Each optimizer: that it is what it says, goes on bit for bit after a pause, and is refused where it does not work."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dreambooth.core import engine_capabilities, project
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import SUBJECT_PICTURES
from dreambooth.core.job_folder import Job
from dreambooth.core.memory import footprint
from dreambooth.core.project import Folders, Project
from dreambooth.core.settings import parse
from dreambooth.core.settings.optimization import Optimizer
from dreambooth.engine import worker
from dreambooth.engine.bench.live_tensors import Live
from dreambooth.engine.bench.operations import Operations
from dreambooth.engine.training import lion, optimizers, stochastic_rounding
from dreambooth.engine.training.adapters import Trained
from dreambooth.service import launcher
from tests.engine import tiny
from tests.footprints import family_needs

CPU = torch.device("cpu")
WORKING = [name for name in optimizers.RECIPES if not optimizers.fault(name, CPU)]
SHORT: dict[str, Any] = {
    "concepts.0.instance_data_dir": str(SUBJECT_PICTURES),
    "concepts.0.instance_prompt": "a photo of sks star",
    "general.method": "full",
    "intervals.num_train_epochs": 4,
    "intervals.save_preview_every": 0,
    "learning.learning_rate": 1e-3,
    "learning.text_encoder_learning_rate": 1e-3,
    "batching.train_batch_size": 5,
    "tuning.text_encoder_ratio": 0.75,
    "previews.count": 0,
    "saving.half_model": False,
}
RATES = {"prodigy": {"learning.learning_rate": 1.0, "learning.text_encoder_learning_rate": 1.0}}


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("optimizers")
    source = tiny.write_original(folder / "tiny.safetensors", "sd1")
    return project.create(Folders(folder / "models"), "star", source)


def new_run(star: Project, **changes: Any) -> Job:
    return launcher.new_run(Folders(star.folder.parents[1]), star, parse({**SHORT, **changes}))


def train(star: Project, **changes: Any) -> Job:
    job = new_run(star, **changes)
    assert worker.run(job) == "done"
    return job


def output(job: Job) -> dict[str, torch.Tensor]:
    return load_file(next(event["path"] for event in reversed(job.events()[0]) if event["event"] == "saved"))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def changes_of(name: str) -> dict[str, Any]:
    return {"optimizer.name": name, **RATES.get(name, {})}


def test_only_what_lends_a_cards_memory_does_not_work_without_one() -> None:
    """What is refused here is left out of the tests below."""
    pytest.importorskip("bitsandbytes")
    assert {name for name in optimizers.RECIPES if not name.startswith("paged")} <= set(WORKING)


@pytest.mark.parametrize("name", WORKING)
def test_a_pause_changes_no_bit(star: Project, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedule-free's two sets of weights, Prodigy's estimate and 8-bit states are all in the state."""
    whole, stopped = train(star, **changes_of(name)), new_run(star, **changes_of(name))
    for step in (1, 3):
        monkeypatch.setattr(
            worker.RunHooks, "requests", lambda hooks, at=step: {"pause"} if hooks.session.step == at else set()
        )
        assert worker.run(stopped) == "paused"
    monkeypatch.undo()
    assert worker.run(stopped) == "done"
    assert same(output(whole), output(stopped))
    assert not same(output(whole), output(train(star, **changes_of(name), **{"general.seed": 1})))


def test_bf16_weights_go_on_bit_for_bit(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rounding's chance follows from the position, and Adam's means keep their precision in the state."""
    changes = {"memory.bf16_weights": True, "tuning.use_ema": True, "saving.weights": "raw"}
    whole, stopped = train(star, **changes), new_run(star, **changes)
    monkeypatch.setattr(worker.RunHooks, "requests", lambda hooks: {"pause"} if hooks.session.step == 2 else set())
    assert worker.run(stopped) == "paused"
    monkeypatch.undo()
    assert worker.run(stopped) == "done"
    assert same(output(whole), output(stopped))


def test_a_preview_and_a_save_leave_a_schedule_free_run_as_it_was(star: Project) -> None:
    """They show its averaged weights; going there and back by its own means would change the last bits."""
    changes = changes_of("adamw_schedule_free")
    plain = output(train(star, **changes))
    seen = train(
        star,
        **changes,
        **{"intervals.save_model_every": 1, "intervals.save_preview_every": 1, "previews.count": 1},
        **{"previews.steps": 1, "previews.prompts": "a star"},
    )
    assert same(plain, output(seen))


def test_schedule_free_saves_the_averaged_weights(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    averaged = output(train(star, **changes_of("adamw_schedule_free")))
    monkeypatch.setattr(optimizers, "set_mode", lambda optimizer, training: optimizer.train())
    held = output(train(star, **changes_of("adamw_schedule_free")))
    assert not same(averaged, held)


def problem() -> tuple[nn.Parameter, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Parameter(torch.randn(64, 128)), torch.randn(64, 128)


def made(name: str, weight: nn.Parameter, **chosen: Any) -> torch.optim.Optimizer:
    rate = 1.0 if name == "prodigy" else 1e-2
    settings = parse(
        {
            "general.method": "full",
            "learning.learning_rate": rate,
            "optimizer.name": name,
            **{f"optimizer.{key}": value for key, value in chosen.items()},
        }
    )
    optimizer = optimizers.make(Trained({"unet": {"weight": weight}}), settings)
    optimizers.set_mode(optimizer, training=True)
    return optimizer


def moved(name: str, steps: int = 3, **chosen: Any) -> torch.Tensor:
    weight, target = problem()
    optimizer = made(name, weight, **chosen)
    for _ in range(steps):
        (weight - target).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return weight.detach()


def test_lion_is_the_published_algorithm() -> None:
    weight, target = problem()
    expected, mean = weight.detach().clone(), torch.zeros_like(target)
    for _ in range(3):
        gradient = 2 * (expected - target)
        direction = (0.9 * mean + 0.1 * gradient).sign()
        expected = expected - 1e-2 * (direction + 0.1 * expected)
        mean = 0.99 * mean + 0.01 * gradient
    assert torch.allclose(moved("lion", weight_decay=0.1), expected, atol=1e-5)


def test_lion_holds_the_steps_of_some_weights_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of the whole model; and so it learns the same."""
    monkeypatch.setattr(lion, "VALUES_AT_ONCE", 1000)
    weights = [nn.Parameter(torch.full((1000,), float(n))) for n in range(8)]
    optimizer = lion.Lion(weights, lr=1e-2)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    with Live() as live:
        optimizer.step()
    assert live.peak <= 4 * 1000
    assert all(torch.allclose(weight, torch.tensor(n - 0.02), atol=1e-3) for n, weight in enumerate(weights))


def test_came_is_the_published_algorithm() -> None:
    """Algorithm 2 of arXiv 2307.02047, with the products of rows and columns written out."""
    weight, target = problem()
    expected, mean = weight.detach().double(), torch.zeros(64, 128).double()
    spread, disagreement = ([torch.zeros(64).double(), torch.zeros(128).double()] for _ in range(2))

    def follow(kept: list[torch.Tensor], values: torch.Tensor, beta: float) -> torch.Tensor:
        for side, means in enumerate((values.mean(1), values.mean(0))):
            kept[side] = beta * kept[side] + (1 - beta) * means
        return torch.outer(kept[0], kept[1]) / kept[0].mean()

    for _ in range(3):
        gradient = 2 * (expected - target.double())
        step = gradient / follow(spread, gradient**2 + 1e-30, 0.999).sqrt()
        step = step / max(1.0, step.square().mean().sqrt().item())
        mean = 0.9 * mean + 0.1 * step
        instability = follow(disagreement, (step - mean) ** 2 + 1e-16, 0.9999)
        expected = expected - 1e-2 * (mean / instability.sqrt() + 0.1 * expected)
    assert torch.allclose(moved("came", weight_decay=0.1).double(), expected, atol=1e-5)


def test_came_keeps_a_mean_and_rows_and_columns() -> None:
    for shape, factors in (((64, 128), 2 * (64 + 128)), ((8, 4, 3, 3), 2 * (8 + 36)), ((16,), 16)):
        weight = nn.Parameter(torch.ones(shape))
        optimizer = made("came", weight)
        weight.grad = torch.randn(shape)
        optimizer.step()
        assert sum(value.numel() for value in optimizer.state[weight].values()) == weight.numel() + factors


@pytest.mark.parametrize("name", [name for name in WORKING if name.endswith("8bit")])
def test_an_8_bit_optimizer_keeps_bytes_and_does_nearly_the_same(name: str) -> None:
    weight, target = problem()
    optimizer = made(name, weight)
    (weight - target).square().sum().backward()
    optimizer.step()
    kept = optimizer.state[weight]
    assert kept["state1"].dtype == torch.uint8
    assert sum(value.nbytes for value in kept.values() if torch.is_tensor(value)) < 4 * weight.numel()
    start = problem()[0].detach()
    one, other = moved(name) - start, moved(name.removesuffix("_8bit")) - start
    assert torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.95


def test_adafactor_keeps_a_row_and_a_column() -> None:
    weight, target = problem()
    optimizer = made("adafactor", weight)
    (weight - target).square().sum().backward()
    optimizer.step()
    assert sum(value.numel() for value in optimizer.state[weight].values() if torch.is_tensor(value)) < 256


def test_prodigy_finds_its_rate() -> None:
    weight, target = problem()
    optimizer = made("prodigy", weight)
    estimates = []
    for _ in range(200):
        (weight - target).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        estimates.append(optimizer.param_groups[0]["d"])
    assert estimates[-1] > 100 * 1e-6  # where it begins


@pytest.mark.parametrize("name", WORKING)
def test_weight_decay_pulls_with_every_optimizer(name: str) -> None:
    assert not torch.equal(moved(name, weight_decay=0.5), moved(name, weight_decay=0.0))
    if name != "prodigy":  # whose rate is still tiny
        assert moved(name, weight_decay=1.0, steps=20).norm() < moved(name, weight_decay=0.0, steps=20).norm()


@pytest.mark.parametrize("name", WORKING)
def test_betas_and_epsilon_reach_every_optimizer_that_has_them(name: str) -> None:
    group = made(name, problem()[0], beta1=0.8).param_groups[0]
    assert group.get("beta1", group.get("betas", (0,))[0]) == 0.8
    if name != "adafactor":
        assert made(name, problem()[0], beta2=0.95).param_groups[0]["betas"][1] == 0.95
        assert not torch.equal(moved(name, beta2=0.5, steps=6), moved(name, steps=6))
    if "lion" not in name:
        eps = made(name, problem()[0], epsilon=0.5).param_groups[0]["eps"]
        assert (eps[0] if isinstance(eps, tuple) else eps) == 0.5
        assert not torch.equal(moved(name, epsilon=0.5), moved(name))


@pytest.mark.parametrize("name", WORKING)
def test_without_betas_and_epsilon_they_are_the_published_ones(name: str) -> None:
    group, is_lion = made(name, problem()[0]).param_groups[0], name.startswith("lion")
    if name != "adafactor":
        assert tuple(group["betas"])[:2] == ((0.9, 0.99) if is_lion else (0.9, 0.999))
    if not is_lion:
        assert group["eps"] == {"came": (1e-30, 1e-16), "adafactor": 1e-30}.get(name, 1e-8)


@pytest.mark.parametrize(("name", "beta1"), [*((name, 0.0) for name in WORKING), ("adafactor", 0.9)])
def test_what_an_optimizer_keeps_is_what_is_counted(name: str, beta1: float) -> None:
    weight = nn.Parameter(torch.randn(512, 1024, generator=torch.Generator().manual_seed(0)))
    optimizer = made(name, weight, beta1=beta1)
    weight.square().sum().backward()
    optimizer.step()
    kept = sum(value.nbytes for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor))
    chosen = {"general.method": "full", "optimizer.name": name, "optimizer.beta1": beta1}
    rate = {"learning.learning_rate": 1.0} if name == "prodigy" else {}
    counted = footprint.optimizer_bytes(parse({**chosen, **rate}))
    assert kept / weight.numel() == pytest.approx(counted, rel=0.03, abs=0.02)


@pytest.mark.parametrize(("name", "share"), [("adamw", 0.75), ("adafactor", 0.53)])
def test_weights_in_bf16_save_what_is_said_of_them(name: str, share: float) -> None:
    def needed(**more: bool) -> int:
        asked = {"general.method": "full", "optimizer.name": name, **more}
        return family_needs(parse(asked), "sd1").total

    assert needed(**{"memory.bf16_weights": True}) / needed() == pytest.approx(share, abs=0.03)


def test_the_text_encoder_has_its_own_weight_decay() -> None:
    """The predecessor set it on a group that never existed."""
    parts = {part: {"w": nn.Parameter(torch.ones(4))} for part in ("unet", "text_encoder", "text_encoder_2")}
    settings = parse({"optimizer.weight_decay": 0.25, "optimizer.text_encoder_weight_decay": 0.5})
    groups = optimizers.make(Trained(parts), settings).param_groups
    assert [group["weight_decay"] for group in groups] == [0.25, 0.5, 0.5]
    assert [group["lr"] for group in groups] == [1e-4, 5e-5, 5e-5]


def test_an_optimizer_that_fails_is_refused_and_not_replaced(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The predecessor fell back to AdamW without a word when one could not be made."""

    def broken(groups: Any, chosen: Optimizer) -> torch.optim.Optimizer:
        raise RuntimeError("libcuda is too old")

    monkeypatch.setitem(optimizers.RECIPES, "lion_8bit", broken)
    job = new_run(star, **changes_of("lion_8bit"))
    with pytest.raises(
        UserError, match=r"^optimizer.name: lion_8bit does not work here \(libcuda is too old\); choose"
    ):
        worker.run(job)
    assert not [event for event in job.events()[0] if event["event"] == "stage"]


def test_one_that_does_not_learn_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(optimizers.RECIPES, "lion", lambda groups, _: torch.optim.SGD(groups, lr=0.0))
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: None)
    assert optimizers.fault("lion", CPU) == "its steps do not lower the loss"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU lends its memory")
def test_a_paged_optimizer_is_not_quietly_an_ordinary_one() -> None:
    pytest.importorskip("bitsandbytes")
    assert "not supported on CPU" in optimizers.fault("paged_adamw_8bit", CPU)


def test_a_check_knows_what_the_environment_cannot_do(tmp_path: Path) -> None:
    stamp = tmp_path / "stamp.json"
    assert engine_capabilities.fault("optimizer.name", "lion", stamp) == ""
    stamp.write_text('{"report": {"faults": {"optimizer.name": {"lion": "it is tired"}}}}')
    said = ["optimizer.name: lion does not work here (it is tired); choose another."]
    assert engine_capabilities.problems(parse({"optimizer.name": "lion"}), stamp) == said
    assert engine_capabilities.problems(parse({}), stamp) == []
    assert engine_capabilities.fault("optimizer.name", "lion", stamp) == "it is tired"
    assert engine_capabilities.fault("optimizer.name", "adamw", stamp) == ""
    stamp.write_text("[]")
    assert engine_capabilities.fault("optimizer.name", "lion", stamp) == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"learning.lora_learning_rate": 1}, "learning.lora_learning_rate: it is 1, which is a factor for prodigy"),
        (
            {"general.method": "full", "learning.learning_rate": 1, "optimizer.name": "lion"},
            "learning.learning_rate: it is 1, which is a factor for prodigy; for lion take the default, 2e-06",
        ),
        ({"optimizer.name": "prodigy"}, "learning.lora_learning_rate: it is 0.0001, but prodigy finds the rate"),
        (
            {"optimizer.name": "prodigy", "learning.lora_learning_rate": 1, "tuning.text_encoder_ratio": 1},
            "learning.lora_text_encoder_learning_rate: prodigy has one factor",
        ),
        ({"optimizer.name": "adamw_schedule_free", "learning.scheduler": "cosine"}, "learning.scheduler: it is cosine"),
        ({"optimizer.name": "adamw_schedule_free", "tuning.use_ema": True}, "tuning.use_ema: "),
        ({"optimizer.name": "lion", "optimizer.epsilon": 1e-6}, "optimizer.epsilon: lion has none"),
        ({"optimizer.name": "adafactor", "optimizer.beta2": 0.9}, "optimizer.beta2: adafactor"),
        ({"optimizer.d_coef": 2}, "optimizer.d_coef: adamw has none"),
        ({"memory.bf16_weights": True}, "memory.bf16_weights: a LoRA is small"),
        (
            {"memory.bf16_weights": True, "general.method": "full", "tuning.mixed_precision": "no"},
            "tuning.mixed_precision: it is no, but",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        parse(change)
    assert [problem for problem in refused.value.problems if problem.startswith(said)]


def rounded(exact: torch.Tensor, number: int) -> torch.Tensor:
    """As the second of three that are rounded together."""
    whole, each = stochastic_rounding.in_float32([torch.ones(3, 5), exact, torch.ones(2)])
    stochastic_rounding.round_at_random(whole, each, [8, number, 9])
    return each[1]


def test_rounding_is_right_on_the_average() -> None:
    torch.manual_seed(0)
    for value in (1.001, -0.3333, 1e-3, 257.7):
        exact = torch.full((40_000,), value)
        drawn = rounded(exact, 3)
        assert torch.equal(drawn.bfloat16().float(), drawn)
        assert len(drawn.unique()) == 2  # its neighbours, nothing farther
        gap = (drawn.max() - drawn.min()).float().item()
        assert abs(drawn.double().mean().item() - exact[0].item()) < 4 * gap / 2 / 40_000**0.5
    kept = torch.tensor([0.5, -2.0, 0.0, 3.0])
    assert torch.equal(rounded(kept, 0), kept)


def test_the_chance_of_each_weight_and_step_is_its_own() -> None:
    exact, seen = torch.full((1000,), 1.001), []
    large = 2**31 * 1_000_003  # as of the largest seed that can be set; its multiples have more than 64 bits
    for seed, number in ((0, 0), (0, 1), (1, 0), (large, 0), (0, 0)):
        torch.manual_seed(seed)
        seen.append(rounded(exact, number))
        torch.rand(7)  # what else is drawn in a step does not matter
    assert torch.equal(seen[0], seen[4])
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(seen[:4], 2))


def test_a_hundred_weights_are_rounded_in_hardly_more_operations_than_it_draws() -> None:
    """Each has a chance of its own; all else is done on all of them."""
    weights = [nn.Parameter(torch.ones(3, 5, dtype=torch.bfloat16)) for _ in range(100)]
    optimizer = torch.optim.AdamW(weights, fused=True)
    for _ in range(2):
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        with Operations() as counted:
            stochastic_rounding.step(optimizer)
    assert counted.count < 100 + 12


OWN_STEPS = ("prodigy", "adamw_schedule_free", "came")  # whose size is not the rate: CAME's grow where gradients agree


@pytest.mark.parametrize("name", [name for name in WORKING if name not in OWN_STEPS])
def test_small_changes_of_bf16_weights_are_not_lost(name: str) -> None:
    """Steps of 1e-5 on weights of 1: bf16 alone cannot take even one, rounding at random goes as far as float32."""

    def distance(dtype: torch.dtype, at_random: bool) -> float:
        torch.manual_seed(1)
        weight = nn.Parameter(torch.ones(64, 128, dtype=dtype))
        optimizer = made(name, weight, weight_decay=0)
        optimizer.param_groups[0]["lr"] = 1e-5
        for step in range(60):
            torch.manual_seed(step)  # as the loop does
            weight.grad = torch.ones_like(weight)
            stochastic_rounding.step(optimizer) if at_random else optimizer.step()
        assert weight.dtype == dtype
        return 1 - weight.double().mean().item()

    exact = distance(torch.float32, False)
    assert exact == pytest.approx(6e-4, rel=0.2)
    assert distance(torch.bfloat16, True) == pytest.approx(exact, rel=0.1)
    assert distance(torch.bfloat16, False) == 0
