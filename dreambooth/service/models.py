"""The models that are being taught: listed, made, renamed, put into the trash, and their settings."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dreambooth.core import job_list, model_record, presets, project, schema, settings
from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic, confinement, paths
from dreambooth.core.models import checkpoint, embedding_file, hub, training_metadata
from dreambooth.core.models.hub import HubModel
from dreambooth.core.project import Folders, Project
from dreambooth.service import relocation, settings_lock


def summary(opened: Project) -> dict[str, Any]:
    return {
        "name": opened.name,
        "folder": str(opened.folder),
        "source": str(opened.source),
        "problem": opened.problem,
        "about": opened.about,
        "runs": len(job_list.runs(opened)),
    }


def listing(folders: Folders) -> list[dict[str, Any]]:
    """All models; one whose file is damaged is listed with its problem."""
    found = []
    for name in project.names(folders):
        try:
            found.append(summary(project.open_project(folders, name)))
        except UserError as error:
            found.append({"name": name, "folder": str(folders.projects / name), "problem": str(error)})
    return found


def inspect(path: Path, *, label: str = "path") -> dict[str, Any]:
    """What a checkpoint, LoRA or embedding is, and what it tells of its making, from its header. Raises UserError for
    what cannot be read; `label` is what sentences call the path by."""
    path = confinement.named(str(path), label)
    header = checkpoint.read_header(path)
    return {
        "path": str(path),
        **checkpoint.describe(header).as_json(),
        "ranks": training_metadata.ranks(header.tensors),
        "trained_words": list(embedding_file.bundled(header.tensors))
        or training_metadata.trained_words(header.metadata),
        "trainer": training_metadata.trainer(header.metadata),
    }


def hub_model(
    folders: Folders, name: str, source: str, revision: str = "", *, label: str = "revision"
) -> HubModel | None:
    """The model of the hub that `source` names; None where it is a path. Raises UserError if `name` will not do, and
    for a `revision` (which sentences call by the `label`) that is none or is of no model of the hub."""
    model = None if paths.named(source, "source").exists() else hub.parse(source)
    if model is None and source.strip().lower().startswith(("http://", "https://")):
        raise UserError(
            f"{source.strip()[:200]} is no address of a model on huggingface.co; download the file, and name "
            "where it lies."
        )
    wanted = revision.strip()
    if wanted and model is None:
        raise UserError(f"{label}: {source.strip()[:200]} is no model of the hub, which alone has any; leave it empty.")
    wanted = wanted or (model.revision if model else "")
    if wanted and not hub.is_revision(wanted):
        raise UserError(f"{label}: {wanted[:80]!r} can be no branch, tag or commit; name one of the model's page.")
    if model:
        project.check_new(folders, name)
    return replace(model, revision=wanted) if model and wanted else model


def create(folders: Folders, name: str, source: Path, flat: dict[str, Any], origin: dict[str, Any]) -> dict[str, Any]:
    """A new model from a file or Diffusers folder. Raises UserError as `project.create` does."""
    return summary(project.create(folders, name, source, flat, origin))


def rename(folders: Folders, name: str, new_name: str) -> dict[str, Any]:
    """Renames a model, also in its own files. Raises UserError for a taken name, while an engine is at work, or where
    they cannot be written, and then it is called as before."""
    opened = project.open_project(folders, name)
    _check_idle(opened)
    target = project.check_new(folders, new_name)
    try:
        atomic.move(opened.folder, target)
    except OSError as error:
        raise UserError(f"{opened.folder}: it cannot be renamed ({error.strerror}).") from None
    try:
        renamed = project.open_project(folders, new_name)
        relocation.rewrite_after_rename(renamed, opened.folder)
    except (UserError, OSError) as error:
        with contextlib.suppress(UserError, OSError):
            atomic.move(target, opened.folder)
            relocation.rewrite_after_rename(opened, target)
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{opened.folder}: it cannot be renamed ({reason}).") from None
    return summary(renamed)


def duplicate(folders: Folders, name: str, new_name: str) -> dict[str, Any]:
    """A new model with the settings, the pictures and the class pictures of another, and no runs.

    Raises UserError for a taken name, or where it cannot be written.
    """
    opened = project.open_project(folders, name)
    target = project.check_new(folders, new_name)
    left_out = (opened.runs, opened.errands, opened.latents, opened.folder / settings_lock.FILE)

    def own(folder: str, found: list[str]) -> list[str]:
        return [one for one in found if Path(folder) / one in left_out]

    try:
        with atomic.staged_folder(target, project.COPYING) as staged:
            # Links stay links: one that leads above itself would be followed without end, and others out of the folder.
            shutil.copytree(opened.folder, staged, symlinks=True, ignore=own, dirs_exist_ok=True)
            flat = {key: _moved(value, opened.folder, target) for key, value in opened.settings().items()}
            settings.write_json(staged / "settings.json", settings.to_json(settings.parse(flat)))
            model_record.note_place(staged, target, is_copy=True)
    except OSError as error:
        raise UserError(f"{target}: the model cannot be copied ({_first_reason(error)}).") from None
    return summary(project.open_project(folders, new_name))


def _first_reason(error: OSError) -> str:
    """What went wrong; where several files could not be copied, with the first of them."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        source, _, reason = error.args[0][0]
        return f"{source}: {reason}"
    return error.strerror or str(error)


def _moved(value: Any, before: Path, after: Path) -> Any:
    """A path in one folder as the same in another; anything else as it is."""
    if isinstance(value, str) and value and Path(value).is_relative_to(before):
        return str(after / Path(value).relative_to(before))
    return value


def bytes_of(folder: Path) -> int:
    """What a folder takes on the disk."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += (Path(place) / name).lstat().st_size
    return total


def delete(folders: Folders, name: str) -> dict[str, Any]:
    """Moves a model's folder to the trash beside the models; its checkpoints and LoRAs stay where they are. The answer
    says how many bytes emptying the trash of it would free.

    Raises UserError while an engine is at work on it.
    """
    opened = project.open_project(folders, name)
    _check_idle(opened)
    stamp = time.strftime("%Y-%m-%d %H.%M.%S")
    target, number = folders.trash / f"{name} {stamp}", 2
    while target.exists():
        target, number = folders.trash / f"{name} {stamp} {number}", number + 1
    try:
        folders.trash.mkdir(exist_ok=True)
        atomic.move(opened.folder, target)
    except OSError as error:
        raise UserError(f"{opened.folder}: it cannot be moved to the trash ({error.strerror}).") from None
    return {"name": name, "trash": str(target), "bytes": bytes_of(target)}


def write_settings(opened: Project, flat: Mapping[str, Any]) -> dict[str, Any]:
    """Makes these the model's own settings and returns them in full. Raises UserError, and writes nothing then."""
    project.write_settings(opened, dict(flat))
    return opened.settings()


def changed(own: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with changes over them; the changes may be nested or dotted. `concepts` as a list replaces them all."""
    given = schema.flatten(changes) if changes else {}
    if isinstance(changes.get("concepts"), list):
        own = without_concepts(own)
    return {**own, **given}


def without_concepts(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Settings for others to bring their own concepts."""
    return {key: value for key, value in flat.items() if not key.startswith("concepts.")}


def with_preset(name: str, own: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with a preset's over them, and `over` above both. Raises UserError if there is no such preset."""
    return {**presets.apply(presets.find(name), own, over), **over}


def problems(flat: Mapping[str, Any]) -> list[str]:
    """Every reason why these settings will not do; empty if they will."""
    try:
        settings.parse(dict(flat))
    except UserError as error:
        return error.problems
    return []


def preset_list() -> list[dict[str, Any]]:
    return [
        {
            "name": preset.name,
            "label": preset.label,
            "meaning": preset.meaning,
            "settings": [
                {"setting": key, "value": one.value, "reason": one.why, "from_pictures": one.from_pictures}
                for key, one in preset.settings.items()
            ],
        }
        for preset in presets.PRESETS.values()
    ]


def _check_idle(opened: Project) -> None:
    for job in job_list.jobs(opened):
        if (status := job.status()) in ("running", "queued"):
            raise UserError(f"The model {opened.name!r} is at work ({job.title} is {status}); stop or pause it first.")
