"""The device that training and drawing need to themselves: one engine at a time for all of a models folder.

The engine locks a file for as long as it lives, so that two programs which look after one folder never start two, and a
dead engine is off the device whatever became of it.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import IO

from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic, lock
from dreambooth.core.files.json_file import read_object
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders

GPU_VARIABLE = "DREAMBOOTH_GPU"  # the number of the GPU that a WebUI was told to use, for the engines that it starts


def hold(job: Job) -> IO[bytes] | None:
    """The device for the calling process, as long as the returned file is open; None if another engine has it."""
    projects = job.folder.parents[2]  # where it lies by now, whatever it says
    held = lock.acquire(projects / ".device", seconds=1)
    if held:
        with contextlib.suppress(OSError):  # on a full disk nobody can see who has the device, but one has it
            atomic.write_text(projects / ".device.json", json.dumps({"folder": str(job.folder)}))
    return held


def is_busy(folders: Folders) -> bool:
    return lock.is_held(folders.projects / ".device")


def holder(folders: Folders) -> Job | None:
    """The job whose engine is on the device; None if it is free, or has just been taken and not signed yet."""
    if not is_busy(folders):
        return None
    try:
        return Job(Path(str(read_object(folders.projects / ".device.json")["folder"])))
    except (UserError, KeyError):
        return None
