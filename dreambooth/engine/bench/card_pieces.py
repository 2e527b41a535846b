"""The pieces of card.py, each in a process of its own: `python -m dreambooth.engine.bench.card_pieces NAME ABOUT`."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from dreambooth.core import job_list
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import SUBJECT_PICTURES
from dreambooth.core.job_folder import Job
from dreambooth.core.memory import headroom
from dreambooth.core.picture_opening import open_picture
from dreambooth.engine.bench import (
    card_idle_time,
    card_peaks,
    card_proofs,
    convolutions,
    drawing,
    measuring,
    peer_diffusers,
    peers,
    plans,
)
from dreambooth.engine.bench.card import Results
from dreambooth.engine.bench.cases import Case
from dreambooth.engine.bench.peer_diffusers import Diffusers
from dreambooth.engine.bench.peers import Peer

RANK = 16
STEP_GOALS = {"sd1": 0.045, "sdxl": 0.15}  # seconds, on an H100 or H200
PEER_IMAGES = {
    ("diffusers", "full"): 3.0,
    ("sd-scripts", "full"): 1.0,
    ("sd-scripts", "lora"): 1.0,
}  # times theirs a second
PEER_START = 1 / 3  # of a peer's time to the first step
# The most memory in bytes, and the most seconds a step where that is a goal too.
MEMORY_GOALS = (
    ("sd1", "full", 4.5e9, None),
    ("sdxl", "lora", 4 * 2**30, 1.0),
    ("sdxl", "full", 8e9, None),
    ("sdxl", "full", 5e9, None),
)
WAYS = {
    "as a CUDA graph": {"tuning.cuda_graphs": True},
    "untraced": {"tuning.trace_steps": False},
}  # beside the default
CUDNN_LAST = {"TORCH_CUDNN_SDPA_DEPRIORITIZED": "1"}
PICTURES = 20  # of which the start is measured


class About:
    """What a piece is told: where to write, where to work, until when, and beside whom."""

    def __init__(self, piece: str, told: dict[str, Any]) -> None:
        self.piece, self.told = piece, told
        self.out, self.work, self.large = Path(told["out"]), Path(told["work"]), bool(told["large"])
        self.models: plans.Models = plans.Full() if self.large else plans.Small()
        self.results = Results(self.out)
        self.peers = peers.given(told)
        self.failures: list[str] = []

    def say(self, what: str, value: Any, unit: str = "", **more: Any) -> None:
        """One figure. The goals are a card's."""
        kept = more if self.large else {key: one for key, one in more.items() if key not in ("goal", "at_least")}
        self.results.add(self.piece, what, value, unit, **kept)

    def tidy(self) -> None:
        """Removes what this piece has made, but for the models that others take too."""
        for folder in self.work.glob(f"{self.piece}-*"):
            shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """What fails within it is told; the rest of the piece is done all the same."""
        try:
            yield
        except UserError as error:
            self.failures.append(str(error))
            print(error, flush=True)

    @property
    def device(self) -> Any:
        import torch

        return torch.device("cuda" if self.large else "cpu")


class Bench(measuring.Bench):
    """Measured processes in a folder of the piece's own, with models that all pieces share."""

    def __init__(self, about: About, **settings: Any) -> None:
        folder = about.work / f"{about.piece}-{time.time_ns()}"
        super().__init__(Job(folder), folder, {"large": about.large, "settings": settings})
        self.about, self.module = about, ""
        self.more: dict[str, Any] = {}  # that the measured processes are told

    def source(self, family: str) -> Path:
        return self.about.models.source(family, self.about.work)

    def peer_model(self, family: str) -> Path:
        model = self.about.work / f"{family}-folder"
        if not model.exists():
            peer_diffusers.write_model(model, self.source(family))
        return model

    def measured(self, module: str, case: Case, **about: Any) -> dict[str, Any]:
        """Raises UserError with what the run itself says of its end, and shows its log."""
        try:
            return super().measured(self.module or module, case, **about, **self.more)
        except UserError as error:
            log = self.folder / f"{self.count}.log"
            print(log.read_text(encoding="utf-8", errors="replace")[-4000:] if log.exists() else "", flush=True)
            said = plans.said(Job(Path(about["job"]))) if "job" in about else []
            if said:
                raise UserError(f"{case.title}: {said[-1]}") from error
            raise


def ceilings(about: About) -> None:
    size, side = (2 * 10**9, 8192) if about.large else (10**7, 256)
    found = card_peaks.card(about.device)
    about.say("card", found["name"], **found)
    about.say("versions", ", ".join(f"{name} {one}" for name, one in card_peaks.about_software().items()))
    about.say("copying, read and written", card_peaks.copied_bytes_per_second(about.device, size) / 1e9, "GB/s")
    about.say("product of matrices in bf16", card_peaks.flops_per_second(about.device, side) / 1e12, "TFLOP/s")


def steps(about: About) -> None:
    """LoRA at a batch of one: what waits most for Python."""
    for family in ("sd1", "sdxl"):
        with about.going_on():
            _case(about, Bench(about), _lora(about, family), goal=STEP_GOALS[family])
    for way, settings in WAYS.items():
        if about.large or way != "as a CUDA graph":
            for family in ("sd1", "sdxl"):
                with about.going_on():
                    case = _lora(about, family)
                    goal, found = None, Bench(about, **settings).ours(case)
                    if way == "as a CUDA graph":
                        goal = STEP_GOALS[family]
                        if not found["replays"]:
                            raise UserError(f"{case.title}: its steps were not captured as a CUDA graph{_why(found)}")
                    _tell(about, case, f"ours, {way}", found, goal)


def full(about: About) -> None:
    """Full fine-tuning of SD 1: images a second, beside peers where they are given."""
    bench, size, count = Bench(about), *((512, 40) if about.large else (64, 10))
    for batch in (1, 4):
        with about.going_on():
            _case(about, bench, Case("sd1", "full", batch, size, count))


def convolved(about: About) -> None:
    """Whether SD 1's convolutions are quicker in another way than by default, which is not changed unmeasured."""
    for method in ("lora", "full"):
        bench, case = Bench(about), replace(_lora(about, "sd1"), method=method)
        with about.going_on():
            plain = bench.ours(case)
            _tell(about, case, "convolutions as by default", plain)
            for way, told in convolutions.WAYS.items():
                bench.more = {"convolutions": told}
                found = bench.ours(case)
                _tell(about, case, way, found)
                times = found["step_seconds"] / plain["step_seconds"]
                about.say(f"{case.title}, {way}: a step, times the default's", times)


def first(about: About) -> None:
    """From the start of the process to the first step with twenty pictures, the second time, when all is warm; and what
    it is where cuDNN's attention, which makes a plan for each shape, is what PyTorch takes last."""
    bench = Bench(about)
    there = sorted(SUBJECT_PICTURES.glob("*.png"))
    for number in range(len(there), PICTURES):
        (bench.pictures / f"more-{number}.png").write_bytes(there[number % len(there)].read_bytes())
    case = replace(_lora(about, "sd1"), steps=12)
    bench.ours(case)
    ours = bench.ours(case)["first_step_seconds"]
    about.say(f"first step of {PICTURES} pictures", ours, "s")
    _two_shapes(about, case)
    bench.environment = CUDNN_LAST
    about.say(f"first step of {PICTURES} pictures, cuDNN's attention last", bench.ours(case)["first_step_seconds"], "s")
    _two_shapes(about, case, CUDNN_LAST)
    bench.environment = {}
    for peer in about.peers:
        if peer.trains(case, large=about.large):
            same = peers.same_work(case, peer)
            bench.peer(same, peer)
            theirs = bench.peer(same, peer)["first_step_seconds"]
            own = ours if same == case else bench.ours(same)["first_step_seconds"]
            about.say(peer.title, theirs, "s")
            about.say(f"first step, to that of {peer.title}", own / theirs, goal=PEER_START)


def _two_shapes(about: About, case: Case, environment: dict[str, str] | None = None) -> None:
    """A run whose pictures are square and wide in turn."""
    bench = Bench(about, **{"pictures.buckets": True})
    bench.environment = environment or {}
    for number, path in enumerate(sorted(bench.pictures.glob("*.png"))):
        with open_picture(path) as picture:
            side = case.resolution
            picture.convert("RGB").resize((2 * side, side // 2) if number % 2 else (side, side)).save(path)
    found, which = bench.ours(case), ", cuDNN's attention last" if environment else ""
    about.say(f"first step, two shapes{which}", found["first_step_seconds"], "s")
    about.say(f"the {case.steps - 1} steps after it{which}", found["after_first_seconds"], "s")


def memory(about: About) -> None:
    """The plan for a card that has as much as the goal allows, run inside it."""
    rows = plans.Rows(about.out)
    tries = plans.Bench(about.work, about.models, rows)
    goals = MEMORY_GOALS if about.large else (("sd1", "lora", headroom.usable(plans.Small.cards[0]), None),)
    for family, method, goal, step_goal in goals:
        one = plans.Wanted(family, method, headroom.card_with(goal))
        row = rows.of(one)
        if row is None:
            rows.add(row := tries.row(one, _monotonic(about)))
        what = f"{family} {method} within {goal / 1e9:.1f} GB"
        peak = row["peak_bytes"] / 1e9 if row["ended"] == "held" else None
        about.say(f"{what}: most memory", peak, "GB", goal=goal / 1e9, ended=row["ended"], set=row["changes"])
        if workspaces := row.get("workspace_bytes"):
            about.say(f"{what}: of it cuBLAS's workspaces", workspaces / 1e9, "GB")
        if peak and row["step_seconds"]:
            about.say(f"{what}: a step", row["step_seconds"], "s", **({"goal": step_goal} if step_goal else {}))


def waiting(about: About) -> None:
    """How much of a step the card works, and with what."""
    bench = Bench(about)
    bench.module = "card_idle_time"
    for family in ("sd1", "sdxl"):
        with about.going_on():
            _wait(about, bench, replace(_lora(about, family), steps=card_idle_time.PROFILED.stop + 1))


def proofs(about: About) -> None:
    """The tests that want a card; without one, the same on the CPU."""
    if not card_proofs.are_there():
        about.say("tests that failed", None, why="pytest or the tests are not there")
        return
    passed, failed, problems = card_proofs.proved(about.out / "proofs.txt", about.told["until"], on_card=about.large)
    about.say("tests that passed", len(passed), at_least=1)
    about.say("tests that failed", len(failed), goal=0, which=failed)
    if problems:
        sys.exit("; ".join(problems))


def draw(about: About) -> None:
    """Class pictures a second."""
    folder = about.work / f"drawing-{time.time_ns()}"
    folder.mkdir()
    if about.large:  # so that it is not made once more
        _lay(about.models.source("sd1", about.work), folder / "sd1.safetensors")
    drawing_peers = [one for one in about.told["peer"] if Diffusers.at(Path(one))]
    asked = {"kind": "bench-drawing", "out": str(folder), "large": about.large, "peer": drawing_peers}
    job = job_list.create(about.work / "jobs", {**asked, "repeats": 1}, "{}")
    as_theirs = f"in {drawing.PEER_STEPS} steps, {drawing.PEER_BATCH} at once"
    ways = ("ours, as by default", f"ours, {as_theirs}", f"diffusers' script, {as_theirs}")
    for way, row in zip(ways, drawing.measure(job)["rows"]):
        about.say(f"class pictures: {way}", row["pictures_per_second"], "a second", **row)


def _lay(source: Path, place: Path) -> None:
    """A file at another place as well; copied where nobody may make links."""
    try:
        place.symlink_to(source)
    except OSError:
        shutil.copyfile(source, place)


def all_plans(about: About) -> None:
    minutes = max(0.0, about.told["until"] - time.time()) / 60
    asked = {"kind": "bench-plans", "out": str(about.out), "work": str(about.work), "minutes": minutes}
    few = {} if about.large else {"family": "sd1", "method": "lora"}
    made = plans.run(job_list.create(about.work / "jobs", {**asked, **few}, "{}"), about.models)
    rows = [one for one in made["rows"] if one["ended"] != "not planned"]
    about.say("plans that held in their card", sum(one["ended"] == "held" for one in rows), at_least=len(rows))
    if made["left"]:
        sys.exit(f"{made['left']} plans were not reached in the time")


def _case(about: About, bench: Bench, case: Case, goal: float | None = None) -> None:
    """A combination, ours and each peer's, which take turns."""
    found = bench.ours(case)
    _tell(about, case, "ours", found, goal)
    for peer in about.peers:
        if peer.trains(case, large=about.large):
            _beside(about, bench, case, peer)
    if about.large and found["programs"] + found["replays"] < case.steps / 2:
        raise UserError(f"{case.title}: its steps were not done again from their record{_why(found)}")


def _beside(about: About, bench: Bench, case: Case, peer: Peer) -> None:
    """What a peer makes of a case, and we once more, in the same layers."""
    same = peers.same_work(case, peer)
    theirs = bench.peer(same, peer)
    _tell(about, same, peer.title, theirs)
    again = bench.ours(same)
    if same != case:
        _tell(about, same, f"ours, in the layers of {peer.title}", again)
    goal = PEER_IMAGES.get((peer.name, case.method))
    what = f"{case.title}: our images a second, times those of {peer.title}"
    about.say(what, theirs["step_seconds"] / again["step_seconds"], **({"at_least": goal} if goal else {}))


def _why(found: dict[str, Any]) -> str:
    """What the run said of it."""
    return "".join(f" ({said})" for said in found["warnings"])


def _wait(about: About, bench: Bench, case: Case) -> None:
    found = bench.ours(case)
    about.say(f"{case.title}: a step", found["wall_seconds"], "s")
    worked = found["worked_seconds"] or None  # where the system lets nobody look, nothing is seen
    about.say(f"{case.title}: the device's own work", worked, "s", **found)
    if worked:
        about.say(f"{case.title}: of the step the device works", found["busy"])


def _tell(about: About, case: Case, who: str, found: dict[str, Any], goal: float | None = None) -> None:
    step, what = found["step_seconds"], f"{case.title}, {who}"
    about.say(f"{what}: a step", step, "s", **({} if goal is None else {"goal": goal}), **found)
    about.say(f"{what}: images", case.batch / step, "a second")
    about.say(f"{what}: first step", found["first_step_seconds"], "s")
    about.say(f"{what}: most memory of tensors", (found["device_peak_bytes"] or found["peak_bytes"]) / 1e9, "GB")
    if found.get("flops") and (ceiling := _ceiling(about)):
        about.say(f"{what}: of the measured product of matrices", found["flops"] / step / ceiling)


def _ceiling(about: About) -> float:
    """Operations a second that were measured on this device; 0 where they were not."""
    known = [row["value"] for row in about.results.rows() if row["what"] == "product of matrices in bf16"]
    return 1e12 * known[0] if known else 0.0


def _lora(about: About, family: str) -> Case:
    size = {"sd1": 512, "sdxl": 1024}[family]
    return Case(family, "lora", 1, size, 40, RANK) if about.large else Case(family, "lora", 1, 64, 10, RANK)


def _monotonic(about: About) -> float:
    return time.monotonic() + about.told["until"] - time.time()


WORK = {
    "ceilings": ceilings,
    "steps": steps,
    "full": full,
    "memory": memory,
    "waiting": waiting,
    "convolutions": convolved,
    "proofs": proofs,
    "first": first,
    "drawing": draw,
    "plans": all_plans,
}


def main(piece: str, about_file: Path) -> int:
    told = json.loads(about_file.read_text(encoding="utf-8"))
    about = About(piece, told)
    about.tidy()  # what was left by one that was cut off
    try:
        WORK[piece](about)
    finally:
        about.tidy()
    if about.failures:
        print(about.failures[0])
    return len(about.failures)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
