"""The planner: what fits a card, what it changes for it, and that it is quick enough to be asked at every move."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dreambooth.core import engine_capabilities
from dreambooth.core.errors import UserError
from dreambooth.core.memory import footprint, footprint_table, headroom, planner, savings
from dreambooth.core.models.families import FAMILIES
from dreambooth.core.schema import to_flat
from dreambooth.core.settings import Settings, conflicts, parse, to_json
from dreambooth.core.settings.conflicts import found
from tests.footprints import family_needs

GB = 2**30


def settings(method: str = "lora", **flat: Any) -> Settings:
    return parse({"general.method": method, **flat})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_every_plan_keeps_its_word(family: str, method: str) -> None:
    for card in planner.CARDS:
        start = settings(method, **{"batching.train_batch_size": 2})
        made = planner.for_family(start, family, card)
        then = planner.with_changes(start, made.changes)
        assert not conflicts.found(then)
        assert family_needs(then, family) == made.needs
        assert made.fits == (made.needs.total <= made.usable <= card)
        assert all(
            value != getattr(getattr(start, key.split(".")[0]), key.split(".")[1])
            for key, value in made.changes.items()
        )
        batching = then.batching
        assert batching.train_batch_size * batching.gradient_accumulation_steps == 2, "the same step"


@pytest.mark.parametrize("family", FAMILIES)
def test_an_embedding_alone_takes_less_than_a_lora_and_wants_no_other_optimizer(family: str) -> None:
    alone = settings("embedding", **{"concepts.0.instance_token": "sks", "concepts.0.instance_prompt": "sks"})
    for checkpointing in (True, False):
        some, lora = (
            planner.with_changes(one, {"batching.gradient_checkpointing": checkpointing})
            for one in (alone, settings(**{"tuning.text_encoder_ratio": 1.0}))
        )
        assert family_needs(some, family).total < family_needs(lora, family).total
    for card in planner.CARDS:
        made = planner.for_family(alone, family, card)
        assert "optimizer.name" not in made.changes
        assert "LoRA" not in made.why
        assert made.fits or (family, card) == ("sdxl", 4 * GB), "beside what others hold of that there is no room"


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
    for family in FAMILIES:
        for card in planner.CARDS:
            start = settings("full")
            made = planner.for_family(start, family, card)
            if not made.fits or not made.changes.get("batching.gradient_checkpointing"):
                continue
            if made.changes.get("memory.unet_weights") == "streamed":
                continue  # which needs it
            fewer = {key: value for key, value in made.changes.items() if key != "batching.gradient_checkpointing"}
            assert family_needs(planner.with_changes(start, fewer), family).total > made.usable


def test_a_small_card_trains_a_large_model_from_the_computers_memory() -> None:
    made = planner.for_family(settings("full"), "sdxl", 4 * GB)
    then = planner.with_changes(settings("full"), made.changes)
    assert made.fits
    assert then.memory.unet_weights == "streamed"
    assert then.memory.bf16_weights, "half of what is carried to the card and back"
    told = footprint.computer_bytes(then, footprint_table.full_size("sdxl"))
    assert 2 * footprint_table.full_size("sdxl").blocks < told < 12e9
    assert "the computer's own memory" in made.why
    on_eight = planner.for_family(settings("full"), "sdxl", 8 * GB)
    assert on_eight.fits
    assert "memory.unet_weights" not in on_eight.changes, "a card that has the room is quicker without"


def test_what_streams_is_not_on_the_card() -> None:
    flat = {"batching.gradient_checkpointing": True, "memory.step_in_backward": True, "previews.count": 0}
    for more in ({}, {"memory.bf16_weights": True, "optimizer.name": "adafactor"}, {"tuning.use_ema": True}):
        whole, streamed = (
            family_needs(settings("full", **flat, **more, **{"memory.unet_weights": lying}), "sdxl")
            for lying in ("whole", "streamed")
        )
        assert streamed.weights < 0.05 * whole.weights
        assert streamed.averages <= 0.05 * whole.averages
        assert streamed.total < 0.55 * whole.total


def test_an_optimizer_that_does_not_work_here_is_not_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    card = 12 * GB
    assert planner.for_family(settings("full"), "sd1", card).changes["optimizer.name"] == "adamw_8bit"
    monkeypatch.setattr(engine_capabilities, "fault", lambda key, choice, *_: "no bitsandbytes")
    assert planner.for_family(settings("full"), "sd1", card).changes.get("optimizer.name") != "adamw_8bit"


def test_weights_in_bf16_are_not_proposed_to_a_card_that_only_emulates_it(monkeypatch: pytest.MonkeyPatch) -> None:
    proposed = planner.for_family(settings("full"), "sdxl", 16 * GB)
    assert proposed.fits and proposed.changes["memory.bf16_weights"]
    monkeypatch.setattr(engine_capabilities, "fault", lambda key, choice, *_: key == "memory.bf16_weights")
    assert "memory.bf16_weights" not in planner.for_family(settings("full"), "sdxl", 16 * GB).changes


def test_settings_of_ones_own_stay() -> None:
    start = settings("full", **{"optimizer.name": "lion", "lora.rank": 4})
    made = planner.for_family(start, "sd1", 6 * GB)
    assert {key.split(".")[0] for key in made.changes} <= {"batching", "memory", "optimizer"}
    assert to_json(start) == to_json(settings("full", **{"optimizer.name": "lion", "lora.rank": 4}))


EMBEDDING = {"concepts.0.instance_token": "sks", "concepts.0.instance_prompt": "sks"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["lora", "full", "embedding"])
def test_performance_asked_again_goes_back_to_what_is_quick(family: str, method: str) -> None:
    """With smaller pictures and a larger card, and what it changes is always taken."""
    own = EMBEDDING if method == "embedding" else {}
    for card in planner.CARDS:
        start = settings(method, **own)
        small = planner.with_changes(start, planner.for_family(start, family, card).changes)
        then = planner.with_changes(small, {"general.resolution": 512})
        made = planner.for_family(then, family, 24 * GB)
        again = planner.with_changes(then, made.changes)
        assert parse(to_flat(again)) == again
        assert (again.batching.gradient_checkpointing, again.memory.unet_weights) == (False, "whole")
        assert not again.memory.step_in_backward
        if small.memory.unet_weights != "whole":
            assert "weights whole on the card" in made.why


def test_what_others_hold_is_spared_on_a_card_of_any_size() -> None:
    for card in planner.CARDS:
        assert card - headroom.usable(card) >= max(0.06 * card - 1, 1e9)
    assert headroom.usable(2 * GB) == 1.5 * GB
    for usable in (1e9, 3.2e9, 12e9, 40e9):
        assert headroom.usable(headroom.card_with(usable)) == pytest.approx(usable, abs=2)


def test_without_bf16_a_small_card_is_told_to_train_a_lora(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp16 scales its losses, and takes no step in the backward pass."""
    monkeypatch.setattr(engine_capabilities, "fault", lambda key, choice, *_: key == "memory.bf16_weights")
    monkeypatch.setattr(engine_capabilities, "takes_fp16", lambda: True)
    made = planner.for_family(settings("full"), "sdxl", 11 * GB)
    assert not made.fits
    assert made.changes.keys().isdisjoint({"memory.step_in_backward", "memory.unet_weights"})
    assert "a LoRA, or a smaller general.resolution" in made.why
    exact = planner.for_family(settings("full", **{"tuning.mixed_precision": "no"}), "sdxl", 11 * GB)
    assert exact.changes["memory.step_in_backward"]


def test_auto_is_counted_in_full_where_no_half_precision_is_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the environment's check has found of a GTX 16xx; a card that takes fp16 scales its losses."""
    stamp, before = tmp_path / "stamp", engine_capabilities.fault
    faults = {"memory.bf16_weights": {"on": "emulated"}, "tuning.mixed_precision": {"fp16": "NaN"}}

    def check_found(**found: dict[str, str]) -> None:
        stamp.write_text(json.dumps({"report": {"device": "cuda", engine_capabilities.FAULTS: found}}))

    monkeypatch.setattr(engine_capabilities, "fault", lambda key, choice, _=stamp: before(key, choice, stamp))
    for name in ("takes_fp16", "takes_full_precision"):
        monkeypatch.setattr(engine_capabilities, name, partial(getattr(engine_capabilities, name), stamp))
    for method in ("lora", "full"):
        auto, none = settings(method), settings(method, **{"tuning.mixed_precision": "no"})
        check_found(**{"memory.bf16_weights": faults["memory.bf16_weights"]})
        assert engine_capabilities.takes_fp16()
        assert savings.scales_losses(auto)
        assert family_needs(auto, "sd1") != family_needs(none, "sd1")
        check_found(**faults)
        assert not engine_capabilities.takes_fp16()
        assert not savings.scales_losses(auto)
        assert family_needs(auto, "sd1") == family_needs(none, "sd1")


def test_of_a_heavy_optimizer_another_is_named() -> None:
    factor = {"learning.learning_rate": 1.0, "learning.text_encoder_learning_rate": 1.0}
    start = settings("full", **{"optimizer.name": "prodigy", "tuning.mixed_precision": "no", **factor})
    made = planner.for_family(start, "sd1", 12 * GB)
    assert not made.fits
    assert "adamw_8bit, which keeps 2 bytes of each value where prodigy keeps 16" in made.why


def test_adafactor_with_a_mean_of_its_steps_keeps_that() -> None:
    plain, smooth = (settings("full", **{"optimizer.name": "adafactor", "optimizer.beta1": b}) for b in (0, 0.9))
    more = footprint.optimizer_bytes(smooth) - footprint.optimizer_bytes(plain)
    assert more == 4
    start = settings("full", **{"optimizer.beta1": 0.9, "memory.bf16_weights": True})
    made = planner.for_family(start, "sdxl", 8 * GB)
    assert made.changes.get("optimizer.name") != "adafactor" or made.changes["optimizer.beta1"] == 0


def test_on_a_small_card_large_previews_are_decoded_in_tiles() -> None:
    large = settings(**{"previews.width": 1024, "previews.height": 1024})
    on_eight, on_twelve = (planner.for_family(large, "sd1", card * GB) for card in (8, 12))
    assert on_eight.changes["memory.vae_decoding"] == "tiled"
    assert "decoded in tiles" in on_eight.why
    assert "memory.vae_decoding" not in on_twelve.changes


def needed(**flat: Any) -> int:
    return family_needs(settings(flat.pop("method", "full"), **flat), "sd1").total


def test_what_is_held_beside_the_step_counts() -> None:
    values = footprint_table.full_size("sd1").unet
    quiet = {"previews.count": 0, "batching.gradient_checkpointing": True}
    adds_up = {**quiet, "batching.gradient_accumulation_steps": 2}
    traced, plain = (needed(**adds_up, **{"tuning.trace_steps": traces}) for traces in (True, False))
    assert traced - plain > 1.5 * values, "gradients come beside those that are there"
    graphs, without = (needed(**quiet, **{"tuning.cuda_graphs": on}) for on in (True, False))
    assert graphs - without > 4 * values, "a graph's room is its own"
    free = {**quiet, "optimizer.name": "adamw_schedule_free", "learning.scheduler": "constant"}
    assert needed(**free) - needed(**quiet) > 2 * values, "it works on all weights at once"
    sliced, sdpa = (
        needed(method="lora", **{"previews.count": 0, "memory.attention": kind}) for kind in ("sliced", "sdpa")
    )
    assert sliced - sdpa > 0.7e9


def test_a_preview_with_one_side_of_its_own_counts_as_large_as_it_is() -> None:
    both, one, none = (
        footprint.preview_area(settings(**flat), 512**2)
        for flat in (
            {"previews.width": 1024, "previews.height": 1024},
            {"previews.height": 1024},
            {"previews.count": 0},
        )
    )
    assert (both, one, none) == (1024**2, 1024 * 512, 0)


def test_many_texts_and_latents_count_until_they_stay_in_the_computers_memory() -> None:
    some, model = settings(), footprint_table.full_size("sdxl")
    assert footprint.cached_bytes(some, model, 100, 10**8) == 4 * 100 * 77 * 2048 + 10**8
    assert footprint.cached_bytes(some, model, 1000, 2**31) == 0
    long = settings(**{"tuning.max_token_length": 225})
    assert footprint.cached_bytes(long, model, 100, 0) == 3 * footprint.cached_bytes(some, model, 100, 0)
    before, after = (footprint.needs(some, model, "sdxl", 1024**2, cached=known).total for known in (0, 10**8))
    assert after - before == 10**8


def test_what_a_run_can_go_on_with_changes_nothing_of_what_is_learned() -> None:
    some, names, model = settings(**{"batching.train_batch_size": 6}), list[str](), footprint_table.full_size("sd1")

    def takes(some: Settings) -> int:
        return footprint.training_bytes(some, model, "sd1", 512**2)

    while step := planner.next_saving(some, takes):
        then = planner.with_changes(some, step[0])
        assert takes(then) < takes(some)
        some = then
        names.append(step[1])
    assert names[:2] == ["gradient checkpointing", "the resting model in the computer's memory"]
    assert some.batching.train_batch_size * some.batching.gradient_accumulation_steps == 6
    assert some.optimizer == settings().optimizer
    assert not found(some)


def test_it_is_quick_enough_for_every_move_of_a_control() -> None:
    some = settings()
    family_needs(some, "sdxl")  # reads the table
    began = time.process_time()
    for _ in range(20):
        family_needs(some, "sdxl")
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
    chosen, model = parse({**own, "batching.gradient_checkpointing": True}), footprint_table.full_size("sd1")
    needed, after = (footprint.needs(chosen, model, "sd1", 512**2, to_draw=drawn).total for drawn in (True, False))
    assert needed > after + 1e9
