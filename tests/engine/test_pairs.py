"""Every two values of two settings meet in a real run: `python -m tests -m pairs`; the first row with -m thorough.

A row that goes wrong is done again alone with -m pairs -k "row12-", as its test is called.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest

from dreambooth.core.errors import Problem, UserError
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders
from dreambooth.core.schema import general
from dreambooth.core.settings import on_resume, parse
from dreambooth.service import launcher, resume_run
from tests.engine.pairs import refusals, running
from tests.engine.pairs.covering import Covering
from tests.engine.pairs.running import LOADING, Done
from tests.engine.pairs.running import quick as quick
from tests.engine.pairs.values import FAMILY, SECOND, Row, table
from tests.engine.pairs.world import World
from tests.engine.runs import same, saved, told
from tests.engine.simulated_card import SimulatedCard, simulated_card

SEED = 9
FIRST = 1  # row that is done without them all
ON_CARD = 20  # rows that are done on a simulated card, where each takes a minute
TRACE = "tuning.trace_steps"
CHANGES = 2  # settings that a row goes on with other values of, one at a time


@functools.cache
def covering(most: int | None, *, on_card: bool = False) -> tuple[list[Row], Covering]:
    made = Covering(table(on_card=on_card), refusals.is_sound, refusals.mended, SEED)
    return list(itertools.islice(made.rows(), most)), made


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each row. As it takes half a minute to find them all, they are found only where they are wanted."""
    if "row" not in metafunc.fixturenames:
        return
    every, on_card = "pairs" in _marks(metafunc), "card" in metafunc.fixturenames
    most = (ON_CARD if on_card else None) if every else (0 if on_card else FIRST)
    rows, _ = covering(most, on_card=on_card)
    marks = [pytest.mark.pairs] if every else []
    named = [pytest.param(n, row, id=f"row{n}-{row[FAMILY]}", marks=marks) for n, row in enumerate(rows)]
    metafunc.parametrize(("number", "row"), named or [pytest.param(0, {}, marks=pytest.mark.pairs)])


def _marks(metafunc: pytest.Metafunc) -> str:
    """The marks that are asked for, without those that are left out."""
    return str(metafunc.config.getoption("markexpr")).replace("not pairs", "")


def test_what_a_refusal_advises_is_a_mend() -> None:
    """Of rows that are thrown together: every sentence names its setting and says what to do, and doing so helps."""
    chance, advised = random.Random(SEED), set()
    for _ in range(200):
        row = {key: chance.choice(values) for key, values in refusals.KEYS.items()}
        found = refusals.problems(row)
        check_sentences(found)
        for problem in found:
            for key, value in refusals.advice(problem):
                advised.add(key)
                assert problem.what not in {one.what for one in refusals.problems({**row, key: value})}, problem
    assert len(advised) > 20


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("pairs"))


@pytest.mark.pairs
def test_every_two_values_meet() -> None:
    rows, found = covering(None)
    print(f"{len(rows)} rows: {found.met} pairs meet, {len(found.refused)} are refused; seed {SEED}")
    assert not found.missing.any()


@pytest.mark.thorough
def test_a_row(number: int, row: Row, world: World, quick: None) -> None:
    """It learns; the same to the bit without tracing, and when it was paused; and goes on with another value, or says
    why not."""
    row, others = check_row(row, world)
    for other, (key, value) in zip(others, changes(number, world, row)):
        go_on(other, key, value)


def test_a_row_on_a_card(number: int, row: Row, world: World, quick: None, card: SimulatedCard) -> None:
    """The same where the card is simulated, with what only a card has."""
    check_row(row, world)
    assert card.operations > 1000


@pytest.fixture
def card(world: World, row: Row) -> Iterator[SimulatedCard]:
    world.settings(row)  # whose files are made without it
    with simulated_card() as made:
        yield made


def check_row(row: Row, world: World) -> tuple[Row, list[Job]]:
    """Holds that a row learns, and does so in each way. Returns what is left of it when it is mended, and copies of the
    run at its pause."""
    print(shown(row))
    row, whole = first_run(world, row)
    # SDXL's text encoders are not asked without words; with a scaler the first steps are too large and left out.
    may_rest = row["captions.dropout"] == 1 or row["tuning.mixed_precision"] == "fp16"
    # Where there is no signal at all, min_snr gives what is predicted of it no weight.
    no_weight = row["objective.timestep_min"] == 999 and row["objective.weighting"] == "min_snr"
    may_rest |= no_weight and row[FAMILY] == "sdxl-v"
    assert not whole.resting or may_rest, "these parts were to learn"
    written = running.check_sound(whole)
    plain = running.run(new_run(world, row, **{TRACE: False, "tuning.cuda_graphs": False}))
    assert differing(whole, plain) == [], "without tracing"
    job = new_run(world, row)
    assert running.run(job, pause_at=whole.steps // 2).ending == "paused"
    others = [running.copy(job) for _ in range(CHANGES)]
    paused = running.run(job)
    assert differing(whole, paused) == [], "after a pause"
    for one in (plain, paused):
        assert same(written, running.check_sound(one))
        assert len(saved(one.job)) == len(saved(whole.job))
    return row, others


def new_run(world: World, row: Row, **more: Any) -> Job:
    made = world.project(row)
    return launcher.new_run(Folders(made.folder.parents[1]), made, parse({**world.settings(row), **more}))


def first_run(world: World, row: Row) -> tuple[Row, Done]:
    """The first run that is not refused: of the row, or of what is left of it when it is mended."""
    while True:
        job = new_run(world, row)
        try:
            return row, running.run(job)
        except UserError as error:
            check_refusal(error, job)
            print("refused:", error)
            mended = ({**row, key: value} for key, value in refusals.mends(error.errors[0], row))
            row = next(tried for tried in mended if tried != row and refusals.is_sound(tried))


def check_refusal(error: UserError, job: Job, loads: int = 0) -> None:
    """It names a setting, says what to do, and came before a model was loaded, which had been done so often before."""
    check_sentences(error.errors)
    assert loaded(job) == loads, error


def loaded(job: Job) -> int:
    return sum(event["name"] == LOADING for event in told(job, "stage"))


def check_sentences(problems: list[Problem]) -> None:
    for problem in problems:
        assert general(problem.where) in {general(key) for key in refusals.KEYS}, problem
        assert problem.do, problem
        assert "\n" not in problem.sentence


def differing(one: Done, other: Done) -> list[str]:
    """The weights that two runs ended with other values of."""
    assert one.weights.keys() == other.weights.keys()
    return [name for name in one.weights if not one.weights[name].equal(other.weights[name])]


def shown(row: Row) -> dict[str, Any]:
    """What of a row is not the base's."""
    return {key: value for key, value in row.items() if value != refusals.KEYS[key][0]}


# ---- going on with another value


@functools.cache
def all_changes() -> list[tuple[str, Any]]:
    found = [(key, value) for key, values in table().items() for value in values if key not in (FAMILY, SECOND)]
    random.Random(SEED).shuffle(found)
    return found


def changes(number: int, world: World, row: Row) -> Iterator[tuple[str, Any]]:
    """Some values that the row does not have; over all rows each value's turn comes."""
    for n in range(number * CHANGES, (number + 1) * CHANGES):
        key, value = all_changes()[n % len(all_changes())]
        value = next(one for one in (value, *table()[key]) if one != row[key])
        yield key, world.settings({**row, key: value})[key] if isinstance(value, str) else value


def go_on(job: Job, key: str, value: Any) -> None:
    """The run goes on with the value, or it is refused."""
    print("goes on with", key, value)
    try:
        resume_run.prepare(Folders(job.folder.parents[3]), job, {key: value})
    except UserError as error:
        print("refused:", error)
        check_sentences(error.errors)
        if why_not := on_resume.why_not(key):
            assert why_not in str(error)
        return
    loads = loaded(job)
    try:
        done = running.run(job)
    except UserError as error:
        check_refusal(error, job, loads + key.startswith("intervals."))  # what was done already, the state says
        print("refused:", error)
        return
    running.check_sound(done)
