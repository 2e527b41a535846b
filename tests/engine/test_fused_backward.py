"""The optimizer's step in the backward pass: the plain path's numbers, with hardly any gradients held."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dreambooth.core.errors import UserError
from dreambooth.core.project import Project
from dreambooth.core.settings import parse
from dreambooth.engine.training import fused_backward, loss
from dreambooth.engine.training.fused_backward import FusedBackward, WeightGradient
from tests.engine.runs import LORA, saved, tiny_project, told, train

ON = {"memory.step_in_backward": True}
SHORT = {"batching.train_batch_size": 1, "optimizer.max_grad_norm": 0.0, "optimizer.text_encoder_max_grad_norm": 0.0}


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return tiny_project(tmp_path_factory.mktemp("in-backward"))


@pytest.fixture(autouse=True)
def _in_small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_backward, "PORTION_BYTES", 100_000)


def weights(star: Project, **changes: Any) -> dict[str, torch.Tensor]:
    return load_file(saved(train(star, **{**SHORT, **changes}))[-1])


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "lion", "adafactor", "came"])
def test_every_optimizer_changes_the_weights_as_without_it(name: str, star: Project) -> None:
    same(star, **{"optimizer.name": name, "intervals.max_train_steps": 3})


@pytest.mark.parametrize("kind", ["lora", "dora", "lokr"])
def test_so_with_each_kind_of_lora(kind: str, star: Project) -> None:
    same(star, **LORA, **{"lora.kind": kind})


def test_so_with_checkpointing_text_and_an_average(star: Project) -> None:
    same(star, **{"batching.gradient_checkpointing": True, "tuning.text_encoder_ratio": 0.6, "tuning.use_ema": True})


def test_so_where_no_gradient_is_long_enough_to_be_clipped(star: Project) -> None:
    same(star, **{"optimizer.max_grad_norm": 1000.0})


def same(star: Project, **changes: Any) -> None:
    plain, fused = weights(star, **changes), weights(star, **changes, **ON)
    assert all(torch.equal(plain[name], fused[name]) for name in plain)


def test_so_with_weights_in_bf16(star: Project) -> None:
    """Whose chances of being rounded up are each weight's own, whenever it changes."""
    same(star, **{"memory.bf16_weights": True, "tuning.mixed_precision": "bf16"})


def test_hardly_any_gradient_is_held(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    held: dict[bool, int] = {}
    for on in (False, True):
        most, largest = [0], [0]
        hooks = watch(monkeypatch, most, largest)
        train(star, **SHORT, **{"memory.step_in_backward": on, "intervals.max_train_steps": 1})
        hooks.clear()
        held[on] = most[0]
    assert held[True] <= fused_backward.PORTION_BYTES + largest[0] < 0.2 * held[False]


def watch(monkeypatch: pytest.MonkeyPatch, most: list[int], largest: list[int]) -> list[Any]:
    """Counts the gradients that are there whenever another arrives."""
    kept: list[Any] = []
    plain = loss.compute_losses

    def watched(session: Any, *arguments: Any, **more: Any) -> Any:
        own = list(session.trained.named().values())

        def look(_: nn.Parameter) -> None:
            sizes = [weight.grad.numel() * 4 for weight in own if weight.grad is not None]
            most[0], largest[0] = max(most[0], sum(sizes)), max([largest[0], *sizes])

        # Before the hook that applies it: of a weight, hooks run in the order of their registration.
        for weight in own:
            earlier = dict(weight._post_accumulate_grad_hooks or {})
            for key in earlier:
                del weight._post_accumulate_grad_hooks[key]
            kept.append(weight.register_post_accumulate_grad_hook(look))
            weight._post_accumulate_grad_hooks.update(earlier)
        return plain(session, *arguments, **more)

    monkeypatch.setattr("dreambooth.engine.training.loss.compute_losses", watched)
    return kept


def test_each_gradient_is_clipped_by_its_own_norm(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    plain = FusedBackward._apply_portion

    def look(self: FusedBackward, number: int, some: list[WeightGradient]) -> None:
        step = self._optimizer.step
        gradients = [gradient for _, gradient in some]
        monkeypatch.setattr(self._optimizer, "step", lambda: (seen.extend(float(g.norm()) for g in gradients), step()))
        plain(self, number, some)
        monkeypatch.setattr(self._optimizer, "step", step)

    monkeypatch.setattr(FusedBackward, "_apply_portion", look)
    train(star, **SHORT | {"optimizer.max_grad_norm": 0.01, "intervals.max_train_steps": 1}, **ON)
    assert max(seen) == pytest.approx(0.01, rel=1e-3)
    assert sum(norm < 0.0099 for norm in seen) > 10, "shorter ones stay as they are"


def test_a_step_whose_loss_is_no_number_changes_nothing(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, count = loss.compute_losses, [0]

    def spoilt(*arguments: Any, **more: Any) -> Any:
        count[0] += 1
        losses = plain(*arguments, **more)
        return tuple(one * float("nan") for one in losses) if count[0] == 2 else losses

    monkeypatch.setattr("dreambooth.engine.training.loss.compute_losses", spoilt)
    found = []
    for on in (False, True):
        count[0] = 0
        job = train(star, **SHORT, **{"memory.step_in_backward": on, "intervals.max_train_steps": 3})
        assert any("step 2" in event["text"] for event in told(job, "warning"))
        found.append(load_file(saved(job)[-1]))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batching.gradient_accumulation_steps": 2}, "gradient_accumulation_steps to 1"),
        ({"optimizer.name": "prodigy", "learning.learning_rate": 1.0}, "prodigy looks at all"),
        ({"optimizer.name": "adamw_schedule_free", "learning.scheduler": "constant"}, "looks at all"),
        ({"tuning.mixed_precision": "fp16"}, "fp16 must see all"),
    ],
)
def test_what_it_cannot_do_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse({"general.method": "full", **ON, **changes})
