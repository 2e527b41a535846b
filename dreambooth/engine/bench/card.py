"""Everything worth measuring on a card, the most important first: `python -m dreambooth bench card --out DIR`.

Each piece is a process with a time limit of its own, which appends what it finds to DIR/card.jsonl as it comes; what
is complete there is not measured again. Without a card the same is done with the miniatures, which proves nothing but
that it works.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreambooth.core.install_paths import PROJECT
from dreambooth.core.job_folder import Job
from dreambooth.engine.bench import cases, peers, plans
from dreambooth.engine.process.listener import asked_to_end

# In the order of importance, each with the most seconds that it may take; as many again for each peer beside us.
PIECES = {
    "ceilings": 90,
    "steps": 330,
    "full": 150,
    "memory": 300,
    "waiting": 150,
    "convolutions": 240,
    "proofs": 400,
    "first": 240,
    "drawing": 180,
    "plans": 3600,
}
POLL_SECONDS = 0.1
LEAST_SECONDS = 15.0  # that are left, for another piece to be begun

Row = dict[str, Any]


class Results:
    """What has been found, in a file that grows by a line for each."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "card.jsonl"

    def add(self, piece: str, what: str, value: Any, unit: str = "", **more: Any) -> None:
        """One figure. With `goal` it is to be at most that, with `at_least` at least that; on a card."""
        row = {"piece": piece, "what": what, "value": value, "unit": unit, **more}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[Row]:
        """The newest of each figure, in the order of the pieces."""
        if not self.path.exists():
            return []
        found = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        newest = {(row["piece"], row["what"]): row for row in found}
        return sorted(newest.values(), key=lambda row: list(PIECES).index(row["piece"]))

    def has_ended(self, piece: str) -> bool:
        return any(row["piece"] == piece and row["what"] == "ended" and row["value"] == "whole" for row in self.rows())


def measure(job: Job) -> dict[str, Any]:
    """The pieces that job.json asks for, or all."""
    import torch

    asked = job.read()
    out, large = Path(asked["out"]), torch.cuda.is_available()
    told = {"peer": asked.get("peer", []), "peer_python": asked.get("peer_python", "")}
    others = peers.given(told)
    for peer in others:
        peers.check(peer, cases.LARGE if large else cases.SMALL, large=large)
    results = Results(out)
    until = time.monotonic() + 60 * asked["minutes"] if asked.get("minutes") else float("inf")
    wanted = [piece for piece in PIECES if piece in (asked.get("only") or PIECES)]
    with plans.working_folder(asked) as work:
        for done, piece in enumerate(wanted):
            if results.has_ended(piece):
                continue
            left = until - time.monotonic()
            if asked_to_end(job) or left < LEAST_SECONDS:
                break
            job.report("stage", name=f"measuring: {piece}", done=done, total=len(wanted))
            seconds = min(left, PIECES[piece] * (1 + len(others)))
            about = {"out": str(out), "work": str(work), "large": large, **told}
            ended = run_piece(
                piece, {**about, "until": time.time() + seconds}, seconds, lambda: bool(asked_to_end(job))
            )
            results.add(piece, "ended", ended)
    left_out = [piece for piece in wanted if not results.has_ended(piece)]
    rows = [row for row in results.rows() if row["what"] != "ended"]
    return {
        "rows": rows,
        "left": left_out,
        "large": large,
        "path": str(results.path),
        "plans": plans.Rows(out).newest(),
    }


def run_piece(piece: str, about: dict[str, Any], seconds: float, is_over: Callable[[], bool]) -> str:
    """A piece with all that it starts, for so long at most. Returns how it ended: whole, out of time, or what it said
    last."""
    out = Path(about["out"])
    told, log = (Path(about["work"]) / f"{piece}.{end}" for end in ("json", "log"))
    told.write_text(json.dumps(about), encoding="utf-8")
    command = [sys.executable, "-m", "dreambooth.engine.bench.card_pieces", piece, str(told)]
    until = time.monotonic() + seconds
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(command, cwd=PROJECT, stdout=file, stderr=file, start_new_session=True)
        try:
            while process.poll() is None and time.monotonic() < until and not is_over():
                time.sleep(POLL_SECONDS)
            in_time = process.poll() is not None
        finally:
            _end(process)
    said = log.read_text(encoding="utf-8", errors="replace").strip()
    with open(out / "card.log", "a", encoding="utf-8") as file:
        file.write(f"== {piece}\n{said}\n")
    if not in_time:
        return "out of time"
    lines = said.splitlines()
    return "whole" if process.returncode == 0 else (lines or [f"code {process.returncode}"])[-1]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process with those that it has started; on Windows these end when their own work does."""
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
