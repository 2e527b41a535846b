"""Deleting a result for good: the files that a run's own records say it wrote, where results lie, and no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dreambooth.core import result_files
from dreambooth.core.errors import UserError
from dreambooth.core.files import confinement
from dreambooth.core.formatting import size
from dreambooth.core.project import Folders, Project
from dreambooth.service import runs


def delete(folders: Folders, opened: Project, file: str) -> dict[str, Any]:
    """Deletes a result with what was written for it. Returns its `path`, how many `bytes` that freed, and what was
    `done`, in a sentence.

    Raises UserError for a file that no run of the model has written or that is gone, that lies elsewhere, was changed
    since, or is needed; nothing is deleted then.
    """
    written, path = runs.written_to(opened, file), Path(file)
    own = [event for _, event in written if result_files.are_among_results(folders, opened, event)]
    if not own:
        raise UserError(f"{file}: it does not lie where results go; delete it there yourself.")
    confinement.check(path, "path", file)
    unchanged = [event for event in own if result_files.is_unchanged(event)]
    if not unchanged:
        raise UserError(f"{file}: it, or what goes with it, was changed since it was written; delete it yourself.")
    if reason := result_files.needed_by(folders, unchanged[0]):
        raise UserError(f"{file}: {reason}")
    try:
        freed = result_files.take_away(unchanged[0])
    except OSError as error:
        raise UserError(
            f"{file}: it cannot be deleted ({error.strerror}); close what uses it, such as the WebUI, and try again."
        ) from None
    for job in dict.fromkeys(job for job, _ in written):
        job.report("removed", path=file)
    return {"path": file, "bytes": freed, "done": f"{path.name} is deleted, which freed {size(freed)}."}
