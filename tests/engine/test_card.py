"""The one command for a card: its pieces run, end in time, go on where they were, and are told with their goals."""

from __future__ import annotations

import filecmp
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dreambooth.core import job_list
from dreambooth.core.job_folder import Job
from dreambooth.core.memory import headroom
from dreambooth.engine.bench import (
    card,
    card_peaks,
    card_pieces,
    card_proofs,
    convolutions,
    measuring,
    peer_diffusers,
    peer_sd_scripts,
    plans,
)
from dreambooth.engine.bench.card import Results
from dreambooth.engine.bench.card_idle_time import PROFILED, TIMED, Waiting
from dreambooth.engine.bench.card_pieces import About
from dreambooth.engine.run import setup
from dreambooth.engine.training import precision
from dreambooth.ui import benches
from dreambooth.ui.describe import of_benches

FOUND = {
    "step_seconds": 0.05,
    "first_step_seconds": 3.0,
    "device_peak_bytes": 2 * 10**9,
    "peak_bytes": 10**9,
    "flops": 10**12,
    "after_first_seconds": 2.0,
    "replays": 30,
    "programs": 3,
    "warnings": [],
}


def job(folder: Path, **asked: Any) -> Job:
    some = {"out": str(folder / "out"), "work": str(folder / "work"), **asked}
    return job_list.create(folder / "jobs", {"kind": "bench-card", **some}, "{}")


def about(folder: Path, piece: str, *, large: bool = False, peer: Sequence[str] = (), peer_python: str = "") -> About:
    (folder / "work").mkdir(parents=True, exist_ok=True)
    told = {"out": str(folder / "out"), "work": str(folder / "work"), "until": time.time() + 60}
    return About(piece, {**told, "large": large, "peer": list(peer), "peer_python": peer_python})


def values(folder: Path) -> dict[str, Any]:
    return {row["what"]: row["value"] for row in Results(folder / "out").rows()}


def test_a_piece_is_measured_once_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole piece in its process; what is found is in the file, and is not looked for again."""
    made = card.measure(job(tmp_path, only=["ceilings"]))
    assert {row["what"] for row in made["rows"]} > {"card", "versions", "product of matrices in bf16"}
    assert made["left"] == []
    assert (tmp_path / "out" / "card.log").read_text().startswith("== ceilings")
    monkeypatch.setattr(card, "run_piece", None)
    assert card.measure(job(tmp_path, only=["ceilings"]))["rows"] == made["rows"]
    said = of_benches.bench({"part": "card", **made})
    assert "torch 2." in said
    assert "TFLOP/s" in said
    late = card.measure(job(tmp_path, minutes=0.01))
    assert late["left"] == [piece for piece in card.PIECES if piece != "ceilings"]
    assert "Not ended: steps, full" in of_benches.bench({"part": "card", **late})


def test_a_piece_ends_in_time_and_says_what_went_wrong(tmp_path: Path) -> None:
    told = about(tmp_path, "none").told
    Path(told["out"]).mkdir(exist_ok=True)
    assert card.run_piece("none", told, 60, lambda: False) == "KeyError: 'none'"
    assert card.run_piece("ceilings", told, 0.2, lambda: False) == "out of time"
    assert card.run_piece("ceilings", told, 60, lambda: True) == "out of time"


def test_what_a_piece_has_started_ends_with_it(tmp_path: Path) -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    process = subprocess.Popen([sys.executable, "-c", child], start_new_session=True, stdout=subprocess.PIPE)
    time.sleep(0.5)
    card._end(process)
    assert process.stdout
    assert process.stdout.read() == b"", "whoever held the other end of it is gone"


def test_the_command_and_the_pieces_know_each_other() -> None:
    assert tuple(card.PIECES) == benches.PIECES == tuple(card_pieces.WORK)


@pytest.mark.parametrize("peer", [False, True])
def test_steps_and_images_are_told_with_their_goals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, peer: bool
) -> None:
    """As on a card, whose figures are made up here; peers take four times as long as we do."""
    seen: list[tuple[str, Any]] = []
    lasts: list[bool] = []  # whether cuDNN's attention was put last, of the runs for the first step
    checkouts = {"diffusers": peer_diffusers.FILES, "sd-scripts": peer_sd_scripts.FILES}
    monkeypatch.setattr(peer_sd_scripts, "NEEDED", ("torch",))
    for folder, files in checkouts.items():
        (tmp_path / folder).mkdir()
        for name in files:
            (tmp_path / folder / name).touch()

    def measured(self: Any, module: str, case: Any, **_: Any) -> dict[str, Any]:
        seen.append((module, case))
        if case.steps == 12 and module == "own_run":
            lasts.append("TORCH_CUDNN_SDPA_DEPRIORITIZED" in self.environment)
        return {**FOUND, "step_seconds": 0.2, "first_step_seconds": 12.0} if module == "peer_run" else FOUND

    monkeypatch.setattr(measuring.Bench, "measured", measured)
    monkeypatch.setattr(plans.Full, "source", lambda self, family, work: plans.MINIATURES[family])
    monkeypatch.setattr(card_pieces.Bench, "peer_model", lambda self, family: tmp_path)
    told: dict[str, Any] = {"large": True}
    if peer:
        told |= {"peer": [str(tmp_path / folder) for folder in checkouts], "peer_python": sys.executable}
    Results(tmp_path / "out").add("ceilings", "product of matrices in bf16", 800.0, "TFLOP/s")
    for piece, do in (("steps", card_pieces.steps), ("full", card_pieces.full), ("first", card_pieces.first)):
        do(about(tmp_path, piece, **told))
    found = values(tmp_path)
    assert found["sd1 lora batch 1 at 512, ours: a step"] == 0.05
    assert found["first step of 20 pictures, cuDNN's attention last"] == 3
    assert found["the 11 steps after it, cuDNN's attention last"] == found["the 11 steps after it"] == 2
    assert lasts == [False, False, False, True, True] if not peer else any(lasts)
    assert found["sdxl lora batch 1 at 1024, ours: of the measured product of matrices"] == 0.025
    assert found["sd1 full batch 4 at 512, ours: images"] == 80
    assert {(module, case.rank) for module, case in seen if case.method == "lora" and module == "own_run"} == {
        ("own_run", 16)
    }
    said = of_benches.bench({"part": "card", "rows": Results(tmp_path / "out").rows(), **TELLS})
    assert line(said, "sd1 lora batch 1 at 512, ours: a step").endswith("0.05 s       at most 0.045 s  NOT REACHED")
    assert line(said, "sdxl lora batch 1 at 1024, ours: a step").endswith("at most 0.15 s   reached")
    if peer:
        for who, goal in (("diffusers' script", 3), ("sd-scripts", 1)):
            times = f"sd1 full batch 1 at 512: our images a second, times those of {who}"
            assert found[times] == pytest.approx(4)
            assert line(said, times).split()[-4:] == ["at", "least", str(goal), "reached"]
            assert found[f"first step, to that of {who}"] == 0.25
            assert line(said, f"first step, to that of {who}").endswith("reached")
        assert found["sdxl lora batch 1 at 1024, ours, in the layers of sd-scripts: a step"] == 0.05
        layers = {case.layers for module, case in seen if module == "peer_run" and case.method == "lora"}
        assert layers == {"attention", "transformer"}
    else:
        assert {module for module, _ in seen} == {"own_run"}


def test_a_traced_step_is_not_told_as_a_cuda_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose steps cannot be captured goes on without, and why is said before its folder is gone."""

    def measured(self: Any, module: str, case: Any, **told: Any) -> dict[str, Any]:
        Job(Path(told["job"])).warn("The steps cannot be captured (operation not permitted).")
        return {**FOUND, "replays": 0, "programs": 37}

    monkeypatch.setattr(measuring.Bench, "measured", measured)
    monkeypatch.setattr(plans.Full, "source", lambda self, family, work: plans.MINIATURES[family])
    its = about(tmp_path, "steps", large=True)
    card_pieces.steps(its)
    assert not [what for what in values(tmp_path) if "as a CUDA graph" in what]
    assert len(its.failures) == 2
    assert "not captured as a CUDA graph (The steps cannot be captured (operation not permitted).)" in its.failures[0]
    said = of_benches.bench({"part": "card", "rows": Results(tmp_path / "out").rows(), **TELLS})
    assert "untraced: a step: The steps cannot be captured" in said


def test_a_default_step_that_was_not_traced_is_not_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that fell back after its trial was done again once."""
    monkeypatch.setattr(measuring.Bench, "measured", lambda *_, **__: {**FOUND, "replays": 0, "programs": 1})
    monkeypatch.setattr(plans.Full, "source", lambda self, family, work: plans.MINIATURES[family])
    its = about(tmp_path, "steps", large=True)
    with its.going_on():
        card_pieces._case(its, card_pieces.Bench(its), card_pieces._lora(its, "sd1"))
    assert its.failures == ["sd1 lora batch 1 at 512: its steps were not done again from their record"]


def test_what_fails_says_why_and_the_rest_is_done(tmp_path: Path) -> None:
    """A case that the engine refuses, in its process."""
    told = about(tmp_path, "steps")
    bench, case = card_pieces.Bench(told, **{"memory.attention": "xformers"}), card_pieces._lora(told, "sd1")
    with told.going_on():
        card_pieces._case(told, bench, case)
    (said,) = told.failures
    assert "memory.attention: xformers does not work here" in said
    with told.going_on():
        bench.measured("nothing", case)
    assert "No module named" in told.failures[-1], "of a process that tells nothing, the last line"


def test_what_a_piece_has_made_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = about(tmp_path, "full")
    (told.work / "full-1").mkdir()
    (told.work / "sd1.safetensors").touch()
    (told.work / "about.json").write_text(json.dumps(told.told))

    def fails(about: About) -> None:
        assert not (about.work / "full-1").exists(), "what was left by one that was cut off"
        card_pieces.Bench(about)
        raise ValueError

    monkeypatch.setitem(card_pieces.WORK, "full", fails)
    with pytest.raises(ValueError):
        card_pieces.main("full", told.work / "about.json")
    assert {path.name for path in told.work.iterdir()} == {"sd1.safetensors", "about.json"}


TELLS = {"large": True, "left": [], "path": "x", "plans": []}


def line(said: str, what: str) -> str:
    return next(one.rstrip() for one in said.splitlines() if what in one)


def test_memory_is_that_of_the_plan_for_the_goal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[Any] = []

    def row(self: Any, one: Any, until: float) -> dict[str, Any]:
        assert self.work == tmp_path / "work", "where the models are"
        wanted.append(one)
        ended = {"ended": "held", "peak_bytes": 4.4e9, "step_seconds": 2.0, "reserved_bytes": 0, "context_bytes": 0}
        planned = {"total": 4.5e9}
        ended["workspace_bytes"] = 2**25
        held = ended if one.family == "sd1" or one.method == "lora" else {"ended": "out of time"}
        return {**one.key, "changes": {"a.b": 1}, "planned": planned, **held}

    monkeypatch.setattr(plans.Bench, "row", row)
    card_pieces.memory(about(tmp_path, "memory", large=True))
    found = values(tmp_path)
    assert found["sd1 full within 4.5 GB: most memory"] == 4.4
    assert found["sdxl full within 5.0 GB: most memory"] is None
    assert found["sd1 full within 4.5 GB: of it cuBLAS's workspaces"] == 2**25 / 1e9
    said = of_benches.bench({"part": "card", "rows": Results(tmp_path / "out").rows(), **TELLS})
    assert line(said, "sdxl full within 8.0 GB").endswith("out of time")
    assert line(said, "sdxl lora within 4.3 GB: a step").endswith("NOT REACHED")
    assert [one.card_bytes for one in wanted][:2] == [headroom.card_with(4.5e9), headroom.card_with(2**32)]
    wanted.clear()
    card_pieces.memory(about(tmp_path, "memory", large=True))
    assert [one.method for one in wanted] == ["full", "full"], "those that the time did not suffice for"


def test_the_proofs_are_counted_also_where_they_were_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real processes: the first ends as one does that meets an error in native code; the time of the second is over as
    soon as its test hangs."""

    class Hanging(subprocess.Popen[bytes]):
        def wait(self, timeout: float | None = None) -> int:
            while timeout and self.poll() is None:
                if "test_graph_hangs" in (tmp_path / "out" / "proofs.txt").read_text():
                    raise subprocess.TimeoutExpired(self.args, timeout)
                time.sleep(0.1)
            return super().wait()

    tests = tmp_path / "tests" / "gpu"
    tests.mkdir(parents=True)
    (tests / "test_it.py").write_text(
        "import os, pytest, time\n"
        "@pytest.mark.parametrize('way', ['full, streamed', 'lora'])\ndef test_well(way): print('PASSED')\n"
        "def test_wrong(): assert False\n"
        "def test_left_out(): pytest.skip('no card')\n"
        "def test_ends_it(): os._exit(134)\n"
        "def test_graph(): pass\n"
        "def test_graph_hangs(): time.sleep(100)\n"
    )
    monkeypatch.setattr(card_proofs, "PROJECT", tmp_path)
    monkeypatch.setattr(card_proofs, "ON_CARD", (["-k", "not graph"], ["-k", "graph"]))
    monkeypatch.setattr(card_proofs, "TO_COUNT_SECONDS", 0)
    monkeypatch.setattr(card_proofs.subprocess, "Popen", Hanging)
    its = about(tmp_path, "proofs", large=True)
    with pytest.raises(SystemExit, match="ended with code 134; the tests did not end in the time"):
        card_pieces.proofs(its)
    rows = {row["what"]: row for row in Results(tmp_path / "out").rows()}
    assert rows["tests that passed"]["value"] == 3
    assert (rows["tests that failed"]["value"], rows["tests that failed"]["goal"]) == (3, 0)
    assert [name.partition("::")[2] for name in rows["tests that failed"]["which"]] == [
        "test_wrong",
        "test_ends_it",
        "test_graph_hangs",
    ]


def test_drawing_and_plans_are_those_of_their_own_benchmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"who": "ours", "steps": 20, "batch": 4, "pictures_per_second": 2.5}
    asked: list[Any] = []
    monkeypatch.setattr(card_pieces.drawing, "measure", lambda job: asked.append(job.read()) or {"rows": [row]})
    monkeypatch.setattr(plans.Full, "source", lambda self, family, work: plans.MINIATURES[family])
    card_pieces.draw(about(tmp_path, "drawing", large=True))
    assert values(tmp_path)["class pictures: ours, as by default"] == 2.5
    assert asked[0]["large"]
    assert filecmp.cmp(Path(asked[0]["out"]) / "sd1.safetensors", plans.MINIATURES["sd1"], shallow=False)
    some = [{"ended": "held"}, {"ended": "out of memory"}, {"ended": "not planned"}]
    monkeypatch.setattr(plans, "run", lambda job, models: asked.append(job.read()) or {"rows": some, "left": 3})
    with pytest.raises(SystemExit, match="3 plans were not reached"):
        card_pieces.all_plans(about(tmp_path, "plans", large=True))
    rows = {row["what"]: row for row in Results(tmp_path / "out").rows()}
    held = rows["plans that held in their card"]
    assert (held["value"], held["at_least"]) == (1, 2)
    assert 0.5 < asked[1]["minutes"] <= 1


def test_where_the_time_of_a_step_goes() -> None:
    waiting, matrix = Waiting(), torch.randn(400, 400)
    for _ in range(PROFILED.stop):
        matrix @ matrix
        waiting.step_ended()
    found = waiting.found()
    assert found["longest"][0][0] in ("aten::mm", "aten::addmm")
    assert 1 <= found["pieces_of_work"] < 10
    assert len(TIMED) > 5
    # By a clock that nothing else on this machine can stretch: half of each step is waiting.
    waiting.wall = 2 * found["worked_seconds"]
    assert waiting.found()["busy"] == pytest.approx(0.5)


def test_what_pieces_start_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a module of that name, told what it is to do."""
    started: list[tuple[str, Any]] = []
    seen = {"wall_seconds": 0.1, "worked_seconds": 0.05, "busy": 0.5}

    def measured(self: Any, module: str, case: Any, **told: Any) -> dict[str, Any]:
        started.append((module, told.get("convolutions")))
        return {**FOUND, **seen, "step_seconds": 0.02 if told.get("convolutions") else 0.05}

    monkeypatch.setattr(measuring.Bench, "measured", measured)
    for piece in ("waiting", "convolutions", "full"):
        card_pieces.WORK[piece](about(tmp_path, piece))
    modules = {module for module, _ in started}
    assert modules == {"card_idle_time", "own_run"}
    assert all(importlib.util.find_spec(f"dreambooth.engine.bench.{module}") for module in modules)
    assert {told for _, told in started} == {None, *convolutions.WAYS.values()}
    found = values(tmp_path)
    for method in ("lora", "full"):
        times = found[f"sd1 {method} batch 1 at 64, cudnn.benchmark on: a step, times the default's"]
        assert times == pytest.approx(0.4)


@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.thorough)])
def test_convolutions_are_done_in_the_other_way_to_the_end(method: str, tmp_path: Path) -> None:
    """A run in its process, whose weights are read as they lie and written as files have them."""
    its = about(tmp_path, "convolutions")
    bench, case = card_pieces.Bench(its), replace(card_pieces._lora(its, "sd1"), method=method)
    plain = bench.ours(case)
    bench.more = {"convolutions": convolutions.WAYS["cudnn.benchmark on, convolutions channels_last"]}
    found = bench.ours(case)
    assert found["losses"] == pytest.approx(plain["losses"], rel=0.02)
    assert not found["warnings"]


def test_convolutions_are_done_in_the_way_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    unet, chosen = torch.nn.Conv2d(4, 8, 3), list[bool]()
    session = SimpleNamespace(model=SimpleNamespace(unet=unet))
    monkeypatch.setattr(setup, "prepare_session", lambda work, source: (session, None))
    monkeypatch.setattr(precision, "set_deterministic", lambda on: chosen.append(on))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    convolutions.install([])
    precision.set_deterministic(False)
    assert not torch.backends.cudnn.benchmark
    convolutions.install(convolutions.WAYS["cudnn.benchmark on"])
    precision.set_deterministic(False)
    setup.prepare_session(None, None)  # type: ignore[arg-type]
    assert torch.backends.cudnn.benchmark
    assert unet.weight.is_contiguous()
    convolutions.install(convolutions.WAYS["convolutions channels_last"])
    assert setup.prepare_session(None, None) == (session, None)  # type: ignore[arg-type]
    assert unet.weight.is_contiguous(memory_format=torch.channels_last)
    assert chosen == [False, False]


def test_ceilings_are_measured_in_turns() -> None:
    times = iter([0.0, 0.0, 0.0, *([0.01] * 5), *([0.03] * 5)])
    assert card_peaks.seconds(lambda: time.sleep(next(times))) == pytest.approx(0.02, abs=0.01)
    assert json.dumps(card_peaks.card(torch.device("cpu")))
