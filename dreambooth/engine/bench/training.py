"""Speed and memory of training, each measurement a process of its own, and beside ours the trainers of others on the
same pictures for as many steps.

Without a GPU the models are the bundled miniatures; with `large`, full-size models of random weights. Who is
compared takes turns; the figures are medians over the turns.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dreambooth.core.errors import UserError
from dreambooth.core.job_folder import Job
from dreambooth.engine.bench import cases, peers
from dreambooth.engine.bench.cases import Case
from dreambooth.engine.bench.measuring import Bench
from dreambooth.engine.bench.peers import Peer
from dreambooth.engine.bench.versions import versions
from dreambooth.engine.process.listener import asked_to_end

OURS = "ours"
PEAK_TFLOPS = {  # dense bf16 of the cards, without sparsity, as their makers say
    "H200": 989,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "4090": 165,
    "3090": 71,
    "A10": 125,
    "T4": 65,
}


def measure(job: Job) -> dict[str, Any]:
    """Measures in the folder that job.json names, and removes it. Returns a row for each case and who did it, what we
    are to each peer, and who failed at what.

    Raises UserError, before anything is measured, for a peer that cannot be run or can do none of the cases; and where
    all have failed.
    """
    asked = job.read()
    folder, others = Path(asked["out"]), peers.given(asked)
    found = _cases(asked, others)
    try:
        races = _raced(job, folder, found, others, asked)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    failed = [f"{one.who}: {one.problem}" for race in races for one in race if one.problem]
    rows = [[one.row() for one in race if one.taken] for race in races]
    if not any(rows):
        raise UserError(failed)
    return {
        "rows": [row for race in rows for row in race],
        "ratios": [ratio for race in rows for ratio in ratios(race)],
        "failed": failed,
        "versions": versions(),
    }


def _cases(asked: dict[str, Any], others: Sequence[Peer]) -> list[Case]:
    """Those that are asked for; beside peers, those that one of them can do."""
    found, large = cases.asked_for(asked), bool(asked.get("large"))
    for peer in others:
        peers.check(peer, found, large=large)
    return [case for case in found if not others or any(peer.trains(case, large=large) for peer in others)]


@dataclass
class Contestant:
    """Who does a case, and what came of it each time; with a `problem` it takes no further turns."""

    case: Case
    peer: Peer | None  # None: we
    taken: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""

    @property
    def who(self) -> str:
        return self.peer.name if self.peer else OURS

    def take_turn(self, bench: Bench) -> None:
        try:
            self.taken.append(bench.peer(self.case, self.peer) if self.peer else bench.ours(self.case))
        except UserError as error:
            self.problem = error.problems[0]

    def row(self) -> dict[str, Any]:
        """The medians of its turns, with the case."""
        return _row(self.case, self.who, self.taken)


def _raced(job: Job, folder: Path, some: list[Case], others: Sequence[Peer], asked: Any) -> list[list[Contestant]]:
    """Those of each case, when all have had their turns."""
    bench, turns = Bench(job, folder, asked), int(asked.get("repeats") or (3 if others else 1))
    races = [[Contestant(*one) for one in peers.at_work(case, others, large=bench.large)] for case in some]
    done, total = 0, turns * sum(map(len, races))
    for race in races:
        for one in race * turns:
            if asked_to_end(job):
                raise UserError("Stopped as asked; nothing was measured to the end.")
            job.report("stage", name=f"{one.who}: {one.case.title}", done=done, total=total)
            if not one.problem:
                one.take_turn(bench)
            done += 1
    return races


def ratios(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What we are to each peer that did the same work: how many times its steps a second, and which share of its time
    to the first step and of its memory; of the clock, and of the CPU, which other programs disturb less."""
    for theirs in rows:
        ours = next((one for one in rows if one["who"] == OURS and one["layers"] == theirs["layers"]), None)
        if theirs["who"] == OURS or ours is None:
            continue
        peak = "device_peak_bytes" if theirs["device_peak_bytes"] and ours["device_peak_bytes"] else "peak_bytes"
        yield {
            **{key: theirs[key] for key in ("family", "method", "batch", "resolution", "who")},
            "steps": theirs["step_seconds"] / ours["step_seconds"],
            "steps_of_cpu": theirs["step_cpu_seconds"] / ours["step_cpu_seconds"],
            "start": ours["first_step_seconds"] / theirs["first_step_seconds"],
            "start_of_cpu": ours["first_step_cpu_seconds"] / theirs["first_step_cpu_seconds"],
            "memory": ours[peak] / theirs[peak],
        }


def _row(case: Case, who: str, taken: list[dict[str, Any]]) -> dict[str, Any]:
    def middle(key: str) -> float:
        return statistics.median(one[key] for one in taken)

    step = middle("step_seconds")
    row = {
        **asdict(case),
        "who": who,
        "step_seconds": step,
        "images_per_second": case.batch / step,
        "first_step_seconds": middle("first_step_seconds"),
        "step_cpu_seconds": middle("step_cpu_seconds"),
        "first_step_cpu_seconds": middle("first_step_cpu_seconds"),
        "overhead_seconds": statistics.median(one["mean_step_seconds"] - one["model_seconds"] for one in taken),
        "peak_bytes": int(middle("peak_bytes")),
        "device_peak_bytes": int(middle("device_peak_bytes")),
        "flops": taken[0]["flops"],
        "losses": taken[0]["losses"],
        "trained": taken[0]["trained"],
        "versions": taken[0].get("versions", {}),
        "warnings": taken[0].get("warnings", []),
        "share_of_peak": None,
    }
    if peak := _peak_flops():
        row["share_of_peak"] = taken[0]["flops"] / step / peak
    return row


def _peak_flops() -> float:
    """What the card could do each second in bf16; 0 where it is not known."""
    import torch

    if not torch.cuda.is_available():
        return 0.0
    name = torch.cuda.get_device_name()
    return next((1e12 * peak for card, peak in PEAK_TFLOPS.items() if card in name), 0.0)
