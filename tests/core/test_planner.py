"""The planner: what fits a card, what it changes for it, and that it is quick enough to be asked at every move."""

from __future__ import annotations

import time
from typing import Any

import pytest

from dreambooth.core.errors import UserError
from dreambooth.core.memory import footprint, planner
from dreambooth.core.settings import Settings, conflicts, parse, to_json
from dreambooth.core.settings.conflicts import found

GB = 2**30


def settings(method: str = "lora", **flat: Any) -> Settings:
    return parse({"general.method": method, **flat})


@pytest.mark.parametrize("family", footprint.FAMILIES)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_every_plan_keeps_its_word(family: str, method: str) -> None:
    for card in planner.CARDS:
        start = settings(method, **{"batching.train_batch_size": 2})
        made = planner.for_family(start, family, card)
        then = planner.with_changes(start, made.changes)
        assert not conflicts.found(then)
        assert footprint.family_needs(then, family) == made.needs
        assert made.fits == (made.needs.total <= made.usable <= card)
        assert all(
            value != getattr(getattr(start, key.split(".")[0]), key.split(".")[1])
            for key, value in made.changes.items()
        )
        batching = then.batching
        assert batching.train_batch_size * batching.gradient_accumulation_steps == 2, "the same step"


@pytest.mark.parametrize("family", footprint.FAMILIES)
def test_an_embedding_alone_takes_less_than_a_lora_and_wants_no_other_optimizer(family: str) -> None:
    alone = settings("embedding", **{"concepts.0.instance_token": "sks", "concepts.0.instance_prompt": "sks"})
    for checkpointing in (True, False):
        some, lora = (
            planner.with_changes(one, {"batching.gradient_checkpointing": checkpointing})
            for one in (alone, settings(**{"tuning.text_encoder_ratio": 1.0}))
        )
        assert footprint.family_needs(some, family).total < footprint.family_needs(lora, family).total
    for card in planner.CARDS:
        made = planner.for_family(alone, family, card)
        assert "optimizer.name" not in made.changes
        assert "LoRA" not in made.why
        assert made.fits


@pytest.mark.parametrize(
    ("family", "method", "gigabytes"),
    [("sd1", "lora", 4), ("sd1", "full", 8), ("sd2", "lora", 4), ("sdxl", "lora", 8), ("sdxl", "full", 16)],
)
def test_cards_that_are_large_enough(family: str, method: str, gigabytes: int) -> None:
    assert planner.for_family(settings(method), family, gigabytes * GB).fits


def test_a_large_card_takes_what_is_quickest_and_a_small_one_what_is_smallest() -> None:
    start = settings(**{"batching.gradient_checkpointing": True})
    assert planner.for_family(start, "sd1", 24 * GB).changes == {"batching.gradient_checkpointing": False}
    assert planner.for_family(start, "sdxl", 8 * GB).changes.get("batching.gradient_checkpointing", True)
    hopeless = planner.for_family(settings("full"), "sdxl", 2 * GB)
    assert not hopeless.fits
    assert "larger card" in hopeless.why


def test_nothing_is_given_up_that_is_not_needed() -> None:
    for family in footprint.FAMILIES:
        for card in planner.CARDS:
            start = settings("full")
            made = planner.for_family(start, family, card)
            if not made.fits or not made.changes.get("batching.gradient_checkpointing"):
                continue
            if made.changes.get("memory.unet_weights") == "streamed":
                continue  # which needs it
            fewer = {key: value for key, value in made.changes.items() if key != "batching.gradient_checkpointing"}
            assert footprint.family_needs(planner.with_changes(start, fewer), family).total > made.usable


def test_a_small_card_trains_a_large_model_from_the_computers_memory() -> None:
    made = planner.for_family(settings("full"), "sdxl", 4 * GB)
    then = planner.with_changes(settings("full"), made.changes)
    assert made.fits
    assert then.memory.unet_weights == "streamed"
    assert then.memory.bf16_weights, "half of what is carried to the card and back"
    told = footprint.computer_bytes(then, footprint.full_size("sdxl"))
    assert 2 * footprint.full_size("sdxl").blocks < told < 12e9
    assert "the computer's own memory" in made.why
    on_eight = planner.for_family(settings("full"), "sdxl", 8 * GB)
    assert on_eight.fits
    assert "memory.unet_weights" not in on_eight.changes, "a card that has the room is quicker without"


def test_what_streams_is_not_on_the_card() -> None:
    flat = {"batching.gradient_checkpointing": True, "memory.step_in_backward": True, "previews.count": 0}
    for more in ({}, {"memory.bf16_weights": True, "optimizer.name": "adafactor"}, {"tuning.use_ema": True}):
        whole, streamed = (
            footprint.family_needs(settings("full", **flat, **more, **{"memory.unet_weights": lying}), "sdxl")
            for lying in ("whole", "streamed")
        )
        assert streamed.weights < 0.05 * whole.weights
        assert streamed.averages <= 0.05 * whole.averages
        assert streamed.total < 0.55 * whole.total


def test_an_optimizer_that_does_not_work_here_is_not_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    card = 12 * GB
    assert planner.for_family(settings("full"), "sd1", card).changes["optimizer.name"] == "adamw_8bit"
    monkeypatch.setattr("dreambooth.core.abilities.fault", lambda key, choice: "no bitsandbytes")
    assert planner.for_family(settings("full"), "sd1", card).changes.get("optimizer.name") != "adamw_8bit"


def test_weights_in_bf16_are_not_proposed_to_a_card_that_only_emulates_it(monkeypatch: pytest.MonkeyPatch) -> None:
    proposed = planner.for_family(settings("full"), "sdxl", 16 * GB)
    assert proposed.fits and proposed.changes["memory.bf16_weights"]
    monkeypatch.setattr("dreambooth.core.abilities.fault", lambda key, choice: key == "memory.bf16_weights")
    assert "memory.bf16_weights" not in planner.for_family(settings("full"), "sdxl", 16 * GB).changes


def test_settings_of_ones_own_stay() -> None:
    start = settings("full", **{"optimizer.name": "lion", "lora.rank": 4})
    made = planner.for_family(start, "sd1", 6 * GB)
    assert {key.split(".")[0] for key in made.changes} <= {"batching", "memory", "optimizer"}
    assert to_json(start) == to_json(settings("full", **{"optimizer.name": "lion", "lora.rank": 4}))


def test_what_a_run_can_go_on_with_changes_nothing_of_what_is_learned() -> None:
    some, names = settings(**{"batching.train_batch_size": 6}), []
    while step := planner.smaller(some):
        some = planner.with_changes(some, step[0])
        names.append(step[1])
    assert names[0] == "gradient checkpointing"
    assert some.batching.train_batch_size * some.batching.gradient_accumulation_steps == 6
    assert some.optimizer == settings().optimizer
    assert not found(some)


def test_it_is_quick_enough_for_every_move_of_a_control() -> None:
    some = settings()
    footprint.family_needs(some, "sdxl")  # reads the table
    began = time.process_time()
    for _ in range(20):
        footprint.family_needs(some, "sdxl")
    assert (time.process_time() - began) / 20 < 0.005


@pytest.mark.parametrize(("text", "gigabytes"), [("8GB", 8), ("8", 8), (" 12 gib ", 12), ("11.5GB", 11.5)])
def test_sizes_of_cards(text: str, gigabytes: float) -> None:
    assert planner.card_size(text) == int(gigabytes * GB)


@pytest.mark.parametrize("text", ["", "large", "0", "-8GB", "8 TB", "8e3"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UserError, match="--card"):
        planner.card_size(text)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("gigabytes", [4, 6, 8, 12, 16])
def test_a_plan_tells_only_of_what_it_sets(family: str, gigabytes: int) -> None:
    for method in ("lora", "full"):
        made = planner.for_family(parse({"general.method": method}), family, gigabytes * 2**30)
        share = made.changes.get("memory.checkpointed_share")
        assert (f"checkpointing of {share or 1:.0%}" in made.why) == (share is not None), made.why
        assert made.why.lower().count("gradient checkpointing") == bool(
            made.changes.get("batching.gradient_checkpointing")
        ), made.why


def test_class_pictures_count_only_while_they_are_to_be_drawn() -> None:
    own = {"concepts.0.class_prompt": "a", "concepts.0.num_class_images_per": 1, "batching.class_batch_size": 64}
    chosen, model = parse({**own, "batching.gradient_checkpointing": True}), footprint.full_size("sd1")
    needed, after = (footprint.needs(chosen, model, "sd1", 512**2, to_draw=drawn).total for drawn in (True, False))
    assert needed > after + 1e9
