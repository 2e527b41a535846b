"""A further process of a data-parallel run: it prepares the same session as the first process, from the same folder,
and takes its part in each step. It reports nothing and writes nothing."""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dreambooth.core.errors import UserError
from dreambooth.core.job_folder import Job
from dreambooth.engine import out_of_memory, worker
from dreambooth.engine.process import lazy_imports
from dreambooth.engine.run.rank_launcher import FAILED, READY
from dreambooth.engine.training.data_parallel import DataParallel, joined_processes


@dataclass(frozen=True)
class _SilentJob(Job):
    """The job without requests and reports, which are for the first process alone."""

    def report(self, event: str, **fields: Any) -> None:
        pass

    def change(self, flat: dict[str, Any]) -> None:
        pass

    def requests(self) -> set[str]:
        return set()

    def clear_request(self, what: str) -> None:
        pass


def run(folder: Path, rank: int, size: int, store_path: str, precision: str) -> int:
    """Returns the process's exit code. It computes in the first one's precision, whatever its own device is good at."""
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    lazy_imports.settle()
    store = dist.FileStore(store_path, size)

    def joined(device: torch.device) -> AbstractContextManager[DataParallel]:
        store.set(f"{READY}{rank}", "")
        return joined_processes(store, rank, size, device)

    try:
        worker.follow(_SilentJob(folder), precision, joined)
    except Exception as error:  # noqa: BLE001  (the first process gets and reports it)
        traceback.print_exc()
        failure = {
            "message": str(error),
            "out_of_memory": out_of_memory.is_out_of_memory(error),
            "problems": [one.as_json() for one in error.errors] if isinstance(error, UserError) else [],
        }
        store.set(f"{FAILED}{rank}", json.dumps(failure))
        return 1
    return 0


def _end_with_the_first() -> None:
    """The pipe ends when the first process lets go of it, or is no more."""
    sys.stdin.buffer.read()
    os._exit(0)
