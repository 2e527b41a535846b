"""The planner's plans run for real, on a card that is simulated on the CPU."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth.core import job_list
from dreambooth.core.errors import UserError
from dreambooth.core.job_folder import Job
from dreambooth.core.memory import headroom, planner
from dreambooth.core.memory.footprint import DRIVER_BYTES
from dreambooth.core.settings import parse
from dreambooth.engine.bench import plans
from dreambooth.engine.bench.card_memory import Cuda, Moments
from dreambooth.engine.bench.plans import Bench, Full, Rows, Small, Wanted
from dreambooth.engine.training.traced_step import EAGER_BATCHES, MIN_REMAINING_BATCHES
from dreambooth.ui.describe import of_benches
from tests.engine import tiny

CARD = Small.cards[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_original(tmp_path_factory.mktemp("plans") / "tiny.safetensors", "sd1")


@pytest.fixture(autouse=True)
def _models(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plans.MINIATURES, "sd1", model)


def job(folder: Path, **asked: Any) -> Job:
    some = {"out": str(folder / "out"), "work": str(folder / "work"), "family": "sd1", **asked}
    return job_list.create(folder / "jobs", {"kind": "bench-plans", **some}, "{}")


@pytest.mark.thorough
def test_a_plan_holds_in_its_card_or_it_is_said_that_it_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole runs, in processes of their own; the card is made so small that one of two plans is wrong."""
    monkeypatch.setattr(plans, "OTHERS", (CARD - DRIVER_BYTES - 30 * 2**20) / (CARD - headroom.usable(CARD)))
    made = plans.run(job(tmp_path, card_bytes=CARD), Small())
    lora, full = made["rows"]
    assert (lora["method"], lora["ended"], lora["steps"]) == ("lora", "held", plans.STEPS)
    assert (full["method"], full["ended"]) == ("full", "out of memory")
    whole = full["without_limit"]
    assert whole["ended"] == "held"
    assert whole["allocated_bytes"] > full["cap_bytes"] >= lora["reserved_bytes"]
    # Weights, their gradients and what the optimizer keeps of them are there at once in a step, and counted as such.
    planned = full["planned"]
    assert whole["moments"]["steps"] > planned["weights"] + planned["gradients"] + planned["optimizer"]
    assert {"steps", "previews", "saving", "encoding pictures"} <= whole["moments"].keys()
    assert all(loss > 0 for loss in whole["losses"])
    assert 0 < whole["step_seconds"] < whole["seconds"]
    assert not list((tmp_path / "work" / plans.WORK / "models").glob("**/*.safetensors")), "what the runs wrote is gone"
    said = of_benches.bench({"part": "plans", **made})
    assert "out of memory (measured without a limit)" in said
    assert "1 of 2 plans held in their card" in said

    # The same settings need not be tried in a larger card, and what is known is not measured again.
    monkeypatch.setattr(Bench, "tried", None)
    monkeypatch.setattr(Small, "cards", (CARD, 2 * CARD))
    again = plans.run(job(tmp_path, method="lora"), Small())
    assert [row.get("as_on") for row in again["rows"]] == [None, CARD]
    assert (again["rows"][0], again["left"]) == (lora, 0)
    assert len(Path(made["path"]).read_text().splitlines()) == 3


def test_what_was_cut_off_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what a person has in the folder for the models stays."""
    left, others = tmp_path / "work" / plans.WORK / "models", tmp_path / "work" / "models"
    for folder in (left, others):
        folder.mkdir(parents=True)
    monkeypatch.setattr(Bench, "tried", lambda *_, **__: {"ended": "held"})
    plans.run(job(tmp_path, card_bytes=CARD, method="lora"), Small())
    assert (left.exists(), others.exists()) == (False, True)
    with plans.working_folder({"work": str(left.parent)}) as same:
        assert same == left.parent


def test_a_plan_that_the_planner_does_not_find_is_not_tried(tmp_path: Path) -> None:
    made = plans.run(job(tmp_path, card_bytes=500 * 2**20, method="full"), Small())
    assert made["rows"][0]["ended"] == "not planned"
    assert "0 of 0 plans held" in of_benches.bench({"part": "plans", **made})


def test_what_the_time_did_not_suffice_for_is_done_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(plans, "MOST_SECONDS", 0.2)
        cut = plans.run(job(tmp_path, card_bytes=CARD, method="lora"), Small())
    assert (cut["rows"], cut["left"]) == ([], 1)
    assert json.loads(Path(cut["path"]).read_text())["ended"] == "out of time"
    tried = []
    monkeypatch.setattr(Bench, "row", lambda self, one, until: tried.append(one) or {**one.key, "ended": "held"})
    late = plans.run(job(tmp_path, card_bytes=CARD, minutes=0.1), Small())
    assert (tried, late["left"]) == ([], 2)
    assert plans.run(job(tmp_path, card_bytes=CARD, minutes=1), Small())["left"] == 0
    assert [one.method for one in tried] == ["lora", "full"]


@pytest.mark.parametrize(("outside", "ended"), [(DRIVER_BYTES, "held"), (2 * DRIVER_BYTES, "out of memory")])
def test_what_is_outside_the_allocator_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outside: int, ended: str
) -> None:
    """The allocator refuses what goes beyond its limit, but not what the driver takes for itself."""
    card, others = 2**30, 100
    reserved = int(card - plans.OTHERS * (card - headroom.usable(card))) - DRIVER_BYTES

    def runs(command: list[str], **_: Any) -> None:
        about = json.loads(Path(command[-1]).read_text())
        assert about["cap_bytes"] == reserved
        found = {"allocated_bytes": reserved - 7, "reserved_bytes": reserved, "outside_bytes": outside + others}
        Path(about["out"]).write_text(json.dumps({**found, "steps": 0}))
        Job(Path(about["job"])).report("done")

    monkeypatch.setattr(plans, "taken_by_others", lambda: others)
    monkeypatch.setattr(Small, "simulated", False)
    monkeypatch.setattr(Small, "source", lambda *_: plans.MINIATURES["sd1"])
    monkeypatch.setattr(subprocess, "run", runs)
    bench = Bench(tmp_path / "work", Small(), Rows(tmp_path))
    found = bench.tried(Wanted("sd1", "lora", card), parse({"general.method": "lora"}), 1e9, capped=True)
    assert (found["ended"], found["context_bytes"]) == (ended, outside)
    assert found["peak_bytes"] == reserved - 7 + outside


def test_a_run_that_breaks_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(command: list[str], *, stdout: Any, **_: Any) -> None:
        print("Segmentation fault", file=stdout)

    monkeypatch.setattr(subprocess, "run", breaks)
    bench = Bench(tmp_path / "work", Small(), Rows(tmp_path))
    settings = parse({"general.method": "lora"})
    assert bench.tried(Wanted("sd1", "lora", CARD), settings, 1e9, capped=True)["ended"] == "Segmentation fault"


def test_models_of_full_size_are_what_performance_tells_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = parse({**plans._OWN, "general.method": "full", "general.resolution": Full().side("sdxl")})
    assert Full().plan(settings, "sdxl", 6 * 2**30) == planner.for_family(settings, "sdxl", 6 * 2**30)
    assert planner.for_family(settings, "sdxl", 6 * 2**30).needs == (
        planner.for_family(parse({"general.method": "full"}), "sdxl", 6 * 2**30).needs
    ), "what is run is what the documented table is of"
    assert Full().cards == planner.CARDS


def test_steps_are_enough_to_be_traced() -> None:
    assert Full().steps == plans.TRACED_STEPS > MIN_REMAINING_BATCHES + EAGER_BATCHES


def test_without_a_card_it_says_so(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    with pytest.raises(UserError, match="it needs an NVIDIA card"):
        plans.measure(job(tmp_path))


def test_what_a_card_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions of torch.cuda, none of which there is here."""
    given: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", given.append)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (60, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 30)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 20)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 35)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: given.append(0))
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda: {"num_alloc_retries": 3})
    allocated = [70]
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: allocated[-1])
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: allocated.append(38), raising=False)
    card = Cuda()
    assert card.workspaces() == 32
    card.limit(25)
    card.limit(250)
    assert given == [0.25, 1.0]
    assert (card.peaks(), card.outside(), card.retries()) == ((20, 35), 10, 3)
    assert given[2:] == [0], "the next look begins anew"


def test_each_moment_has_its_own_peak() -> None:
    class Simulated:
        peak = 0

        def peaks(self) -> tuple[int, int]:
            found, self.peak = self.peak, 0
            return found, 2 * found

    card = Simulated()
    moments = Moments(card)  # type: ignore[arg-type]
    for peak, event in ((5, "stage"), (7, "preview"), (3, "step"), (4, "step"), (2, "saved"), (1, "end")):
        card.peak = peak
        moments.look(event, {"name": "loading the model", "loss": 0.5})
    assert moments.allocated == {"start": 5, "previews": 7, "steps": 4, "saving": 2, "loading the model": 1}
    assert (moments.reserved, len(moments.steps), moments.losses) == (14, 2, [0.5, 0.5])
