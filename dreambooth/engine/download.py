"""Downloading a model from the Hugging Face hub, when a person has named one. What was there before goes on from where
it stopped. A token for models behind a login is taken from HF_TOKEN or the hub's own login, and written nowhere."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path
from typing import Any

from dreambooth.core.errors import UserError
from dreambooth.core.files import paths
from dreambooth.core.job_folder import Job
from dreambooth.core.models import hub
from dreambooth.core.models.hub import HubModel

POLL_SECONDS = 0.3
_DISK_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


def run(job: Job) -> dict[str, Any]:
    """Downloads what job.json names into its folder `out`. Returns the path of the file or folder."""
    request = job.read()
    model = HubModel(request["repository"], request["file"], request["revision"])
    return {"path": str(fetch(job, model, Path(request["out"])))}


def fetch(job: Job, model: HubModel, out: Path) -> Path:
    """Downloads a model into a folder and reports that as the job's. Returns the path of the file, or of the folder
    where they are several. Raises UserError where it cannot be fetched.

    To be called before anything imports the hub's library, which would know only what is here already.
    """
    os.environ.pop("HF_HUB_OFFLINE", None)  # the one place that speaks to the hub
    os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
    job.report("stage", name=f"asking the hub for {model.repository}", done=0, total=1)
    sizes = _sizes(model)
    chosen = hub.needed_files(model, sizes)
    total = sum(sizes[name] for name in chosen)
    _check_disk(out, total)
    work = _Work(model, chosen, out)
    work.start()
    while work.is_alive():
        job.report("stage", name="downloading", done=min(_downloaded(out), total), total=total, unit="bytes")
        work.join(POLL_SECONDS)
    if work.error is not None:
        raise UserError(_explain(model, work.error))
    return out / chosen[0] if len(chosen) == 1 else out


class _Work(threading.Thread):
    """The download itself; as a daemon it ends with the process."""

    def __init__(self, model: HubModel, files: list[str], out: Path) -> None:
        super().__init__(daemon=True)
        self.model, self.files, self.out = model, files, out
        self.error: Exception | None = None

    def run(self) -> None:
        from huggingface_hub import hf_hub_download

        try:
            for name in self.files:
                hf_hub_download(self.model.repository, name, revision=self.model.revision or None, local_dir=self.out)
        except Exception as error:  # noqa: BLE001  (told by the thread that waits)
            self.error = error


def _sizes(model: HubModel) -> dict[str, int]:
    """{file: bytes} of a repository."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(model.repository, revision=model.revision or None, files_metadata=True, timeout=20)
    except Exception as error:  # noqa: BLE001  (the library's many kinds, each told in a sentence)
        raise UserError(_explain(model, error)) from None
    return {one.rfilename: one.size or 0 for one in info.siblings or []}


def _explain(model: HubModel, error: Exception) -> str:
    """One sentence for what the hub or the network said, with what to do."""
    kind, name = type(error).__name__, model.repository
    if kind == "GatedRepoError":
        return f"{name}: this model is behind a licence; accept it on its page and set HF_TOKEN to your token."
    if kind == "RevisionNotFoundError":
        return f"{name}: it has no revision {model.revision}; name another, or none for the newest."
    if kind == "RepositoryNotFoundError":
        where = "there is no such file or folder here, and no such model on the Hugging Face hub"
        return f"{name}: {where} (for a private one set HF_TOKEN to your token)."
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return f"{name}: the disk is full; make room and start the same command again, it goes on from here."
    if isinstance(error, OSError) and error.strerror and error.filename:  # those of the network name no file
        return (
            f"{error.filename}: the download cannot be written ({error.strerror}); mend that and start the same "
            "command again, it goes on from here."
        )
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else kind
    return f"{name}: there is no such file or folder here, and the Hugging Face hub cannot be reached ({reason})."


def _check_disk(out: Path, total: int) -> None:
    paths.make_folder(out)
    needed, free = total - _downloaded(out), shutil.disk_usage(out).free
    if needed > free:
        raise UserError(
            f"{out}: the download needs {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free; make room."
        )


def _downloaded(out: Path) -> int:
    count = 0
    for path in out.rglob("*"):
        try:
            count += path.stat().st_size if path.is_file() and path.suffix not in (".lock", ".metadata") else 0
        except FileNotFoundError:  # moved into place meanwhile
            continue
    return count
