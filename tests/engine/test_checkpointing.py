"""Checkpointing of some blocks: the cheapest are worked out again, and what is learned is the same."""

from __future__ import annotations

import collections
from typing import Any

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D

from dreambooth.core.errors import UserError
from dreambooth.core.project import Project
from dreambooth.core.settings import parse
from dreambooth.engine.bench import footprint as counting
from dreambooth.engine.bench import random_model
from dreambooth.engine.bench.footprint import Point, Step
from dreambooth.engine.training import checkpointing
from tests.engine.runs import LORA, output, same, tiny_project, train
from tests.footprints import family_needs

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


def test_random_numbers_are_put_back_only_where_some_are_drawn(made: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """And with a dropout what is worked out again is what was there before."""
    read: list[Any] = []
    state, plain = torch.get_rng_state, checkpointing.checkpoint

    def counted(*given: Any, **more: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(torch, "get_rng_state", lambda: read.append(None) or state())
            return plain(*given, **more)

    monkeypatch.setattr(checkpointing, "checkpoint", counted)
    steps = {"intervals.max_train_steps": 2, "tuning.trace_steps": False}
    plain_steps = {**steps, "batching.gradient_checkpointing": False}
    assert same(output(train(made, **{**ON, **steps})), output(train(made, **{**ON, **plain_steps})))
    assert not read
    dropout = {"lora.dropout": 0.5}
    wanted = output(train(made, **{**ON, **plain_steps, **dropout}))
    assert same(wanted, output(train(made, **{**ON, **steps, **dropout})))
    assert read
    monkeypatch.setattr(checkpointing, "draws_random_numbers", lambda block: False)
    assert not same(wanted, output(train(made, **{**ON, **steps, **dropout})))


def test_transformers_come_first_and_of_each_kind_the_narrowest() -> None:
    for family in ("sd1", "sdxl"):
        unet = random_model.modules(family)["unet"]
        everything = checkpointing.cheapest_blocks(unet, 1)
        assert len(everything) == sum(isinstance(one, BLOCKS) for one in unet.modules()) - 1, "the middle's first"
        kinds = [isinstance(block, ResnetBlock2D) for block in everything]
        assert kinds == sorted(kinds)
        for share in (0.25, 0.5, 0.75):
            some = checkpointing.cheapest_blocks(unet, share)
            assert some == everything[: len(some)]
            assert 0 < len(some) < len(everything)
    sd1 = checkpointing.cheapest_blocks(random_model.modules("sd1")["unet"], 0.45)
    assert [block.norm1.normalized_shape for block in sd1] == [(320,)] * 5


@pytest.mark.large
@pytest.mark.parametrize(("family", "side"), [("sd1", 64), ("sdxl", 128)])
def test_what_is_held_falls_with_the_share(family: str, side: int) -> None:
    """Full size, counted: about as much less as the share says, which is what the planner takes for it."""

    def most(checkpointed: bool, share: float = 1.0) -> int:
        step = Step(family, "full", "all", "bf16", checkpointed)
        return max(counting.count(step, Point(1, side), share=share).moments)

    nothing, everything = most(False), most(True)
    for share in (0.25, 0.5, 0.75):
        kept = (most(True, share) - everything) / (nothing - everything)
        assert kept == pytest.approx(1 - share, abs=0.07)


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
        family_needs(parse({**ON, "memory.checkpointed_share": share, "previews.count": 0}), "sdxl").total
        for share in (0.25, 0.5, 1.0)
    ]
    assert held[0] > held[1] > held[2]
    assert torch.tensor(held[1] - held[2]) / (held[0] - held[2]) == pytest.approx(2 / 3, abs=0.05)
