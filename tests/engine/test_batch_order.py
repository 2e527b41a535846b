"""Which pictures are in which batch: every one once in each pass, of one bucket each, from the seed alone."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from dreambooth.core.buckets import Bucket
from dreambooth.engine.data.batch_order import BatchOrder, Slot

SQUARE, WIDE, HIGH = Bucket(512, 512), Bucket(640, 384), Bucket(384, 640)
SLOTS = st.lists(st.builds(Slot, st.just(0), st.sampled_from([SQUARE, WIDE, HIGH])), min_size=1, max_size=14)
SEEDS = st.integers(0, 2**31 - 1)


def batches(order: BatchOrder, size: int, count: int) -> list[tuple[list[int], list[int]]]:
    return [
        (instances.tolist(), classes.tolist())
        for instances, classes in (order.batch(number * size, size) for number in range(count))
    ]


@given(SLOTS, SEEDS)
def test_every_picture_is_seen_exactly_once_in_each_epoch(slots: list[Slot], seed: int) -> None:
    seen = [chosen[0] for chosen, _ in batches(BatchOrder(slots, [], seed), 1, 3 * len(slots))]
    for start in range(0, len(seen), len(slots)):
        assert sorted(seen[start : start + len(slots)]) == list(range(len(slots)))


@given(SLOTS, st.integers(1, 6), SEEDS)
def test_batches_are_full_and_of_one_bucket_and_no_picture_is_ahead_of_its_bucket(
    slots: list[Slot], size: int, seed: int
) -> None:
    seen: Counter[int] = Counter()
    for chosen, _ in batches(BatchOrder(slots, [], seed), size, len(slots)):
        assert len(chosen) == size
        assert len({slots[index].bucket for index in chosen}) == 1
        seen.update(chosen)
        for bucket in {slot.bucket for slot in slots}:
            counts = [seen[n] for n, slot in enumerate(slots) if slot.bucket == bucket]
            assert max(counts) - min(counts) <= 1 + (size - 1) // len(counts)
    assert set(seen.values()) == {size}  # after so many batches every picture was seen equally often


@given(SLOTS, st.lists(st.integers(1, 4), min_size=14, max_size=14), SEEDS)
def test_an_epoch_sees_a_picture_as_often_as_it_repeats(slots: list[Slot], repeats: list[int], seed: int) -> None:
    slots = [replace(slot, repeats=count) for slot, count in zip(slots, repeats)]
    seen = Counter(
        chosen[0] for chosen, _ in batches(BatchOrder(slots, [], seed), 1, sum(slot.repeats for slot in slots))
    )
    assert seen == {n: slot.repeats for n, slot in enumerate(slots)}


def test_repeats_go_through_a_pictures_variants() -> None:
    order = BatchOrder([Slot(0, SQUARE, variants=2, repeats=4), Slot(0, SQUARE, variants=1)], [], 3)
    assert Counter(chosen[0] for chosen, _ in batches(order, 1, 10)) == {0: 4, 1: 4, 2: 2}


@given(st.integers(1, 12), st.integers(0, 30), st.integers(1, 5), SEEDS)
def test_a_pass_over_one_bucket_sees_every_picture_and_pairs_every_class_picture_once(
    count: int, priors: int, size: int, seed: int
) -> None:
    order = BatchOrder([Slot(0, SQUARE)] * count, [Slot(0, SQUARE)] * priors, seed)
    both = batches(order, size, 3 * count)
    seen, paired = ([index for batch in both for index in batch[which]] for which in (0, 1))
    for start in range(0, len(seen) - count + 1, count):
        assert sorted(seen[start : start + count]) == list(range(count))
    assert len(paired) == (len(seen) if priors else 0)
    for start in range(0, len(paired) - priors + 1, priors or 1):
        assert sorted(paired[start : start + priors]) == list(range(priors))


@given(
    st.lists(st.builds(Slot, st.integers(0, 2), st.sampled_from([SQUARE, WIDE])), min_size=1, max_size=12),
    st.lists(st.integers(1, 7), min_size=6, max_size=6),
    st.integers(1, 4),
    SEEDS,
)
def test_class_pictures_of_several_concepts_are_seen_evenly(
    slots: list[Slot], counts: list[int], size: int, seed: int
) -> None:
    """Each concept's and bucket's in the same pass, however the concepts are mixed."""
    kinds = [(concept, bucket) for concept in range(3) for bucket in (SQUARE, WIDE)]
    priors = [Slot(*kind) for kind, count in zip(kinds, counts) for _ in range(count)]
    seen = Counter[int]()
    for chosen, paired in batches(BatchOrder(slots, priors, seed), size, 40):
        assert len(chosen) == len(paired)
        seen.update(paired)
        for kind in kinds:
            own = [seen[n] for n, slot in enumerate(priors) if (slot.concept, slot.bucket) == kind]
            assert max(own) - min(own) <= 1 + (size - 1) // len(own)


@given(SLOTS, st.integers(1, 5), st.integers(0, 40), SEEDS)
def test_the_position_alone_says_what_comes(slots: list[Slot], size: int, number: int, seed: int) -> None:
    whole = batches(BatchOrder(slots, slots, seed), size, number + 1)
    assert batches(BatchOrder(slots, slots, seed), size, number + 1) == whole
    instances, classes = BatchOrder(slots, slots, seed).batch(number * size, size)
    assert (instances.tolist(), classes.tolist()) == whole[number]


def test_another_seed_is_another_order() -> None:
    slots = [Slot(0, SQUARE)] * 9
    assert batches(BatchOrder(slots, [], 1), 1, 40) != batches(BatchOrder(slots, [], 2), 1, 40)


@given(SLOTS, SEEDS)
def test_buckets_are_mixed_and_in_proportion(slots: list[Slot], seed: int) -> None:
    order = BatchOrder(slots, [], seed)
    used = Counter(slots[chosen[0]].bucket for chosen, _ in batches(order, 4, len(slots)))
    assert used == Counter(slot.bucket for slot in slots)


def test_class_pictures_are_of_the_same_concept_and_bucket() -> None:
    instances = [Slot(0, SQUARE), Slot(1, SQUARE), Slot(0, WIDE), Slot(2, WIDE)]
    priors = [Slot(1, SQUARE), Slot(0, WIDE), Slot(0, SQUARE), Slot(1, WIDE)]
    for chosen, paired in batches(BatchOrder(instances, priors, 3), 1, 40):
        own = instances[chosen[0]]
        assert [(priors[n].concept, priors[n].bucket) for n in paired] == (
            [] if own.concept == 2 else [(own.concept, own.bucket)]
        )


def test_a_picture_shows_its_variants_in_turn() -> None:
    slots = [Slot(0, SQUARE, 3), Slot(0, WIDE), Slot(0, SQUARE, 3), Slot(0, WIDE, 2)]
    owner = [0, 0, 0, 1, 2, 2, 2, 3, 3]
    seen = [chosen[0] for chosen, _ in batches(BatchOrder(slots, [], 5), 1, 4 * 12)]
    assert set(seen) == set(range(9))
    for picture, variants in ((0, 3), (2, 3), (3, 2)):
        own = [example for example in seen if owner[example] == picture]
        for start in range(0, len(own) - variants + 1, variants):
            assert len(set(own[start : start + variants])) == variants


def test_many_class_pictures_take_no_more_than_their_number() -> None:
    """5,000 of them took 25 seconds before the first step, as the square of their number."""
    began = time.process_time()
    BatchOrder([Slot(0, SQUARE)], [Slot(0, SQUARE)] * 5000, 1)
    assert time.process_time() - began < 2
