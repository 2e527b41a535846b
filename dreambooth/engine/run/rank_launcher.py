"""The other processes of a run that has several: started, waited for, and ended with it. What each of them does is in
rank_worker.py."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dreambooth.core.errors import Problem, UserError
from dreambooth.core.install_paths import PROJECT
from dreambooth.core.job_folder import Job
from dreambooth.engine import hardware
from dreambooth.engine.training.data_parallel import DataParallel, PeerLost, joined_processes
from dreambooth.engine.training.session import Session
from dreambooth.engine.work import Work

KEY = "batching.num_processes"
READY, FAILED = "ready/", "failed/"  # before the process's number, in the store
_POLL_SECONDS = 0.05
_WATCH_SECONDS = 0.5
_END_SECONDS = 10.0  # for a process that is about to end


def check(count: int, device: torch.device) -> None:
    """Raises UserError where this machine has no devices for so many processes."""
    has, what = hardware.alike(device)
    if count > has:
        some = f"1 {what}" if has == 1 else f"{has} {what}s"
        raise UserError(f"{KEY}: it is {count}, but there {'is' if has == 1 else 'are'} {some} here; set it to {has}.")


@contextlib.contextmanager
def beside(work: Work, session: Session) -> Iterator[None]:
    """Within it the settings' number of processes share the session's steps.

    Raises UserError or torch.OutOfMemoryError for what ends one of them.
    """
    count, device = work.settings.batching.num_processes, session.model.device
    if count == 1:
        yield
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, _shared_threads(count):
        store = dist.FileStore(str(Path(folder) / "store"), count)
        others = _Others(work.job, store, count, device, session.accelerator.mixed_precision)
        try:
            others.wait(work)
            with joined_processes(store, 0, count, device) as ranks:
                session.ranks = ranks
                with others.watched(ranks):
                    yield
                ranks.end()
        except PeerLost as error:
            raise others.why_ended() or error from None
        finally:
            others.end()


class _Others:
    """All processes of a run but this one. They end when this one does, as they listen at a pipe of it."""

    def __init__(self, job: Job, store: dist.Store, count: int, device: torch.device, precision: str) -> None:
        """`precision` is what all compute in: gradients of fp16 are scaled, and are added to no others."""
        self.store = store
        path = str(store.path)  # type: ignore[attr-defined]
        command = [sys.executable, "-m", "dreambooth.engine", "follow", str(job.folder)]
        self.running = {
            rank: subprocess.Popen(
                [*command, str(rank), str(count), path, precision],
                stdin=subprocess.PIPE,
                cwd=PROJECT,
                env={**os.environ, **_own_device(rank, count, device)},
            )
            for rank in range(1, count)
        }

    def wait(self, work: Work) -> None:
        """Until all are ready. Raises as `beside` does."""
        ready = -1
        while ready < len(self.running):
            time.sleep(_POLL_SECONDS)
            now = sum(self.store.check([f"{READY}{rank}"]) for rank in self.running)
            if now > ready:
                ready = now
                work.stage("starting the other processes", ready, len(self.running))
            work.stop_if_asked()
            if any(process.poll() is not None for process in self.running.values()):
                raise self.why_ended() or RuntimeError("a process of the run ended")

    @contextlib.contextmanager
    def watched(self, ranks: DataParallel) -> Iterator[None]:
        """Within it `ranks` waits for none of them that has ended. Cards do not notice that by themselves."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(_WATCH_SECONDS):
                if any(process.poll() is not None for process in self.running.values()):
                    ranks.give_up()
                    return

        thread = threading.Thread(target=watch, name="other processes", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(_END_SECONDS)

    def why_ended(self) -> Exception | None:
        """What ended one of them; None if all live."""
        until = time.monotonic() + _END_SECONDS
        while time.monotonic() < until:
            for rank, process in self.running.items():
                if process.poll() is not None:
                    return self._reason(rank, process.returncode)
            time.sleep(_POLL_SECONDS)
        return None

    def _reason(self, rank: int, code: int) -> Exception:
        if not self.store.check([f"{FAILED}{rank}"]):
            message = f"Process {rank + 1} of {len(self.running) + 1} ended without a word ({code})."
            return UserError(Problem(message, KEY, "Resume the run: it goes on from its last state."))
        failure: dict[str, Any] = json.loads(self.store.get(f"{FAILED}{rank}"))
        if failure["problems"]:
            return UserError([Problem.read(one) for one in failure["problems"]])
        kind = torch.OutOfMemoryError if failure["out_of_memory"] else RuntimeError
        return kind(failure["message"])

    def end(self) -> None:
        for process in self.running.values():
            assert process.stdin
            with contextlib.suppress(OSError):
                process.stdin.close()
        for process in self.running.values():
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def _shared_threads(count: int) -> Iterator[None]:
    """Within it this process leaves their share of the CPU to the others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // count))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _own_device(rank: int, count: int, device: torch.device) -> dict[str, str]:
    """What has a process see one card alone, or take its share of the CPU; this process's is the first."""
    variables = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    if device.type == "cuda":
        names = ["CUDA_VISIBLE_DEVICES"]
        if torch.version.hip:  # it obeys both, and its own first
            names.insert(0, "HIP_VISIBLE_DEVICES")
        name = next((one for one in names if os.environ.get(one)), names[0])
        seen = os.environ[name].split(",") if os.environ.get(name) else [str(n) for n in range(count)]
        variables[name] = seen[rank]
    return variables
