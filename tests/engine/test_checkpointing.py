"""Checkpointing of some blocks: the cheapest are worked out again, and what is learned is the same."""

from __future__ import annotations

import collections
from typing import Any

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D

from dreambooth.core import footprint
from dreambooth.core.errors import UserError
from dreambooth.core.project import Project
from dreambooth.core.settings import parse
from dreambooth.engine.bench import footprint as counting
from dreambooth.engine.bench import random_model
from dreambooth.engine.bench.footprint import Point, Step
from dreambooth.engine.training import checkpointing
from tests.engine.runs import LORA, output, same, tiny_project, train

ON = {**LORA, "batching.gradient_checkpointing": True, "batching.train_batch_size": 1}
BLOCKS = (BasicTransformerBlock, ResnetBlock2D)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return tiny_project(tmp_path_factory.mktemp("checkpointing"), "sdxl")


def test_only_the_chosen_blocks_are_worked_out_again(made: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    run: collections.Counter[int] = collections.Counter()
    for kind in BLOCKS:
        forward = kind.forward

        def counted(block: Any, *inputs: Any, forward: Any = forward, **more: Any) -> Any:
            run[id(block)] += torch.is_grad_enabled()  # not of the VAE
            return forward(block, *inputs, **more)

        monkeypatch.setattr(kind, "forward", counted)
    results, again = {}, {}
    for share in (0.0, 0.5, 1.0):
        run.clear()
        flat: dict[str, Any] = {"memory.checkpointed_share": share} if share else {}
        on = {**ON, "batching.gradient_checkpointing": share > 0, "intervals.max_train_steps": 2}
        results[share] = output(train(made, **on, **flat))
        again[share] = sum(times == 4 for times in run.values())
        assert set(run.values()) <= {0, 2, 4}
    assert 0 == again[0.0] < again[0.5] < again[1.0]
    assert same(results[0.0], results[0.5])
    assert same(results[0.0], results[1.0])


def test_transformers_come_first_and_of_each_kind_the_narrowest() -> None:
    for family in ("sd1", "sdxl"):
        unet = random_model.modules(family)["unet"]
        everything = checkpointing.cheapest(unet, 1)
        assert len(everything) == sum(isinstance(one, BLOCKS) for one in unet.modules()) - 1, "the middle's first"
        kinds = [isinstance(block, ResnetBlock2D) for block in everything]
        assert kinds == sorted(kinds)
        for share in (0.25, 0.5, 0.75):
            some = checkpointing.cheapest(unet, share)
            assert some == everything[: len(some)]
            assert 0 < len(some) < len(everything)
    sd1 = checkpointing.cheapest(random_model.modules("sd1")["unet"], 0.45)
    assert [block.norm1.normalized_shape for block in sd1] == [(320,)] * 5


@pytest.mark.large
@pytest.mark.parametrize(
    ("step", "point"),
    [
        (Step("sd1", "lora", "transformer", "mixed", True), Point(1, 64, 16)),
        (Step("sdxl", "full", "all", "bf16", True), Point(1, 128)),
    ],
    ids=["sd1", "sdxl"],
)
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_what_is_held_lies_between_all_and_nothing(step: Step, point: Point, share: float) -> None:
    flat: dict[str, Any] = {"general.method": "full", "memory.bf16_weights": True}
    if step.kind == "lora":
        flat = {"lora.rank": point.rank, "lora.alpha": float(point.rank)}
    settings = parse({**flat, "batching.gradient_checkpointing": True, "memory.checkpointed_share": share})
    model, family = footprint.full_size(step.family), step.family
    told = max(held for _, held in footprint._moments(settings, model, family, 1, point.side**2))
    counted = max(counting.count(step, point, share=share).moments)
    assert told == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batching.gradient_checkpointing": False}, "nothing is checkpointed"),
        ({"memory.unet_weights": "int8"}, "every block must be"),
        ({"memory.checkpointed_share": 0.0}, "memory.checkpointed_share"),
        ({"memory.checkpointed_share": 1.5}, "memory.checkpointed_share"),
    ],
)
def test_what_does_not_go_with_it(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse({**ON, "memory.checkpointed_share": 0.5, **changes})


def test_the_step_takes_as_much_less_as_is_checkpointed() -> None:
    held = [
        footprint.family_needs(parse({**ON, "memory.checkpointed_share": share, "previews.count": 0}), "sdxl").total
        for share in (0.25, 0.5, 1.0)
    ]
    assert held[0] > held[1] > held[2]
    assert torch.tensor(held[1] - held[2]) / (held[0] - held[2]) == pytest.approx(2 / 3, abs=0.05)
