"""What the page's buttons do: a few lines over the service each. All raise UserError for what a person can mend."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreambooth.core import captions, job_list, project, settings
from dreambooth.core.errors import UserError
from dreambooth.core.files import paths
from dreambooth.core.formatting import size
from dreambooth.core.memory.planner import Plan
from dreambooth.core.models import hub
from dreambooth.core.models.families import FAMILIES
from dreambooth.core.models.hub import HubModel
from dreambooth.core.project import Folders, Project
from dreambooth.core.schema import to_flat
from dreambooth.core.settings.dataset import Concept
from dreambooth.host.base import Host
from dreambooth.service import downloads, models, settings_lock, settings_undo
from dreambooth.service import performance as fitting
from dreambooth.service.import_settings import take_over
from dreambooth.ui.page import jobs
from dreambooth.ui.page.file_view import SOURCE, source_view
from dreambooth.ui.page.fragments import key_of

Values = dict[str, Any]

_CONCEPT = "concepts."
_LONGEST_NAME = 28  # letters of what a concept is called beside its number


def models_to_show(folders: Folders) -> list[str]:
    """The models that a fresh page opens on, the first that it can show: the one in training, then the one that was
    changed last, and so on."""
    running = [job.name.rpartition("/")[0] for job in job_list.all_runs(folders) if job.is_alive()]
    by_change = sorted(project.names(folders), key=lambda name: _changed(folders.projects / name), reverse=True)
    return list(dict.fromkeys([*reversed(running), *by_change]))


def _changed(folder: Path) -> float:
    try:
        return (folder / "settings.json").stat().st_mtime
    except OSError:
        return 0.0


def about(opened: Project) -> str:
    """A model in one line."""
    details = opened.about
    runs = len(job_list.runs(opened))
    family = FAMILIES.get(details["family"], "unknown kind")
    parts = [family, details["prediction_type"], f"{opened.resolution} px", f"from {opened.source.name}"]
    return " · ".join([*parts, f"{runs} run{'' if runs == 1 else 's'}"])


def source_of(host: Host, name: str, chosen: str, revision: str) -> Path | None:
    """The checkpoint that a person chose from the list, named by its path or by its id on the hub, of which there may
    be a `revision`; None for a model of the hub that is being fetched."""
    wanted = paths.meant(chosen)
    if not wanted:
        raise UserError(f"{SOURCE}: it is empty; choose one, or give the path of a file or Diffusers folder.")
    found = dict(host.checkpoints()).get(chosen)
    hub_model = models.hub_model(host.folders(), name, str(found or wanted), revision, label="Revision")
    if found:
        return found
    return _downloaded(host.folders(), hub_model) if hub_model else Path(wanted)


def source_about(host: Host, chosen: str) -> str:
    """What the source is that a person chose or named; nothing where none is."""
    if found := dict(host.checkpoints()).get(chosen):
        return source_view(found)
    wanted = paths.meant(chosen)
    if wanted and hub.parse(wanted) and not paths.named(wanted, SOURCE).exists():
        return '<p class="db-quiet">A model of the Hugging Face hub, which is fetched when you press Create.</p>'
    return source_view(Path(wanted)) if wanted else ""


def _downloaded(folders: Folders, wanted: HubModel) -> Path | None:
    """A model of the hub where it was fetched to; None where the fetching goes on, or begins now."""
    if path := downloads.finished(folders, wanted):
        return path
    downloads.begin(folders, wanted)
    return None


def create(host: Host, name: str, chosen: str, origin: Values, revision: str = "") -> Project | None:
    """A new model; None while its source is being fetched from the hub."""
    if not name.strip():
        raise UserError("Name: it is empty; give the new model a name.")
    source = source_of(host, name.strip(), chosen, revision)
    return project.create(host.folders(), name.strip(), source, {}, origin) if source else None


def save(opened: Project, shown: Mapping[str, Any]) -> Values:
    """Makes what the page shows the model's own settings; concepts that it does not show stay. Returns all of them."""
    with settings_lock.changing(opened):
        return models.write_settings(opened, {**opened.settings(), **shown})


def save_draft(opened: Project, shown: Mapping[str, Any]) -> Values:
    """Saves what is right of what the page shows; a value that is wrong by itself stays on the page alone.

    Raises UserError with every problem, after the rest was saved.
    """
    try:
        return save(opened, shown)
    except UserError as error:
        wrong = {key for one in error.problems if (key := key_of(one))}
        with contextlib.suppress(UserError):  # settings that do not go together: none is saved until they do
            save(opened, {key: value for key, value in shown.items() if key not in wrong})
        raise


def concept_names(flat: Mapping[str, Any]) -> list[str]:
    """What the page calls each concept: its number, and what it is."""
    rows = sorted({int(key.split(".")[1]) for key in flat if key.startswith(_CONCEPT)})
    return [" · ".join([f"Concept {row + 1}", *_what(flat, row)]) for row in rows]


def row_of(name: str) -> int:
    """The row of a concept by its name, which may be one from before its words were changed."""
    return int(name.split()[1]) - 1


def _what(flat: Mapping[str, Any], row: int) -> list[str]:
    """A concept's own words, or its folder's name where those are of each picture; nothing where it has neither."""
    words, folder = (str(flat[f"{_CONCEPT}{row}.{key}"]).strip() for key in ("instance_prompt", "instance_data_dir"))
    named = "" if Path(folder).name.isdigit() else Path(folder).name  # dropped pictures lie in numbered ones
    text = " ".join((named or words if captions.FILEWORDS in words else words or named).split())
    return [text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 1]}…"] if text else []


def add_concept(opened: Project) -> int:
    """Adds a concept with its defaults. Returns its row."""
    with settings_lock.changing(opened):
        parsed = settings.parse(opened.settings())
        parsed.concepts.append(Concept())
        models.write_settings(opened, to_flat(parsed))
        return len(parsed.concepts) - 1


def remove_concept(opened: Project, row: int) -> int:
    """Takes a concept away; its pictures stay where they are. Returns the row to show then."""
    with settings_lock.changing(opened):
        parsed = settings.parse(opened.settings())
        if len(parsed.concepts) == 1:
            raise UserError("The last concept cannot be removed; change it instead.")
        del parsed.concepts[row]
        settings_undo.change(opened, to_flat(parsed))
        return min(row, len(parsed.concepts) - 1)


def apply_preset(opened: Project, shown: Mapping[str, Any], name: str) -> tuple[Values, Values, list[str]]:
    """Puts a preset over what the page shows. Returns all settings with it, those that changed as they were, and what
    the preset still wants, such as the words of class pictures: a concept that lacks them is saved without such
    pictures.

    Raises UserError for what is wrong besides.
    """
    with settings_lock.changing(opened):
        before = {**opened.settings(), **shown}
        after = models.with_preset(name, before, {})
        missing = {
            f"{concept}.num_class_images_per": before.get(f"{concept}.num_class_images_per", 0)
            for key in after
            if key.endswith(".class_prompt") and not str(after[key]).strip()
            for concept in (key.rpartition(".")[0],)
        }
        wanted = models.problems(after)
        models.write_settings(opened, {**after, **missing} if wanted else after)
    return after, {key: before.get(key) for key, value in after.items() if before.get(key) != value}, wanted


def performance(opened: Project, shown: Mapping[str, Any], card_bytes: int) -> Plan:
    """Puts what fits this machine's card over what the page shows."""
    if not card_bytes:
        raise UserError("Performance: no card is known here, so nothing was changed; there is nothing to fit.")
    return fitting.for_model(opened, lambda own: {**own, **shown}, card_bytes, label="Performance", to_apply=True)


def rename(host: Host, opened: Project, new_name: str) -> str:
    return str(models.rename(host.folders(), opened.name, _new_name(new_name))["name"])


def duplicate(host: Host, opened: Project, new_name: str) -> str:
    return str(models.duplicate(host.folders(), opened.name, _new_name(new_name))["name"])


def _new_name(text: str) -> str:
    if not text.strip():
        raise UserError("New Name: it is empty.")
    return text.strip()


def delete(host: Host, opened: Project) -> str:
    """Moves the model to the trash. Returns what became of it, for people."""
    deleted = models.delete(host.folders(), opened.name)
    return (
        f"{opened.name} is in the trash; delete {deleted['trash']} to free its {size(deleted['bytes'])}. "
        "Its checkpoints and LoRAs stay where they are."
    )


def import_settings(opened: Project, file: str) -> tuple[str, list[dict[str, Any]]]:
    """Another trainer's settings over the model's own. Returns what the file is, and the fate of every key."""
    if not file.strip():
        raise UserError("File or Folder: it is empty; name what is to be read.")
    kind, _, report = take_over(opened, Path(file.strip()), jobs.engine)
    return kind, report
