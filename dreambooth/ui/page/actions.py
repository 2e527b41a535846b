"""What the page's buttons do: a few lines over the service each. All raise UserError for what a person can mend."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreambooth.core import captions, checkpoint, presets, project, run, settings
from dreambooth.core.checkpoint import FAMILIES
from dreambooth.core.errors import UserError
from dreambooth.core.migrate.report import Line
from dreambooth.core.project import Folders, Project
from dreambooth.core.run import Job, Request
from dreambooth.core.schema import to_flat
from dreambooth.host.base import Host
from dreambooth.service import environment, foreign, launcher
from dreambooth.ui.page import views

Values = dict[str, Any]

_CONCEPT = "concepts."


def model_to_show(folders: Folders) -> str:
    """The model that a fresh page opens on: the one in training, or else the one that was changed last."""
    running = [job for job in run.all_runs(folders) if job.is_alive()]
    if running:
        return running[-1].name.rpartition("/")[0]
    names = project.names(folders)
    return max(names, key=lambda name: (folders.projects / name / "settings.json").stat().st_mtime, default="")


def about(opened: Project) -> str:
    """A model in one line."""
    told = opened.about
    runs = len(run.runs(opened))
    family = FAMILIES.get(told["family"], "unknown kind")
    parts = [family, told["prediction_type"], f"{opened.resolution} px", f"from {opened.source.name}"]
    return " · ".join([*parts, f"{runs} run{'' if runs == 1 else 's'}"])


def source_of(host: Host, chosen: str) -> Path:
    """The checkpoint that a person chose from the list or named by its path."""
    if not chosen.strip():
        raise UserError("Source Checkpoint: it is empty; choose one, or give the path of a file or Diffusers folder.")
    return dict(host.checkpoints()).get(chosen, Path(chosen.strip().strip('"')))


def create(host: Host, name: str, chosen: str, origin: Values) -> Project:
    if not name.strip():
        raise UserError("Name: it is empty; give the new model a name.")
    return project.create(host.folders(), name.strip(), source_of(host, chosen), {}, origin)


def save(opened: Project, shown: Mapping[str, Any]) -> Values:
    """Makes what the page shows the model's own settings; concepts that it does not show stay. Returns all of them."""
    merged = {**opened.settings(), **shown}
    project.write_settings(opened, merged)
    return opened.settings()


def concept_names(flat: Mapping[str, Any]) -> list[str]:
    """What the page calls each concept."""
    rows = sorted({int(key.split(".")[1]) for key in flat if key.startswith(_CONCEPT)})
    return [f"Concept {row + 1}" for row in rows]


def add_concept(opened: Project) -> int:
    """Adds a concept with its defaults. Returns its row."""
    parsed = settings.parse(opened.settings())
    parsed.concepts.append(settings.Concept())
    _write(opened, parsed)
    return len(parsed.concepts) - 1


def remove_concept(opened: Project, row: int) -> int:
    """Takes a concept away; its pictures stay where they are. Returns the row to show then."""
    parsed = settings.parse(opened.settings())
    if len(parsed.concepts) == 1:
        raise UserError("The last concept cannot be removed; change it instead.")
    del parsed.concepts[row]
    _write(opened, parsed)
    return min(row, len(parsed.concepts) - 1)


def _write(opened: Project, changed: settings.Settings) -> None:
    project.write_settings(opened, to_flat(changed))


def apply_preset(opened: Project, shown: Mapping[str, Any], name: str) -> str:
    """Puts a preset over what the page shows. Returns what changed, for people."""
    before = {**opened.settings(), **shown}
    after = presets.apply(presets.find(name), before)
    project.write_settings(opened, after)
    changed = sum(before.get(key) != value for key, value in after.items())
    return f"{presets.find(name).label}: {changed} setting{'' if changed == 1 else 's'} changed."


def take_pictures(opened: Project, row: int, files: list[str]) -> str:
    """Copies dropped pictures and captions beside the model, never over another file. Returns their folder."""
    folder = opened.folder / "pictures" / f"{row + 1}"
    folder.mkdir(parents=True, exist_ok=True)
    accepted = (*captions.PICTURES, *captions.BESIDE)
    strange = [Path(file).name for file in files if Path(file).suffix.lower() not in accepted]
    if strange:
        raise UserError(f"{', '.join(strange)}: these are no pictures or captions ({', '.join(accepted)}).")
    for file in map(Path, files):
        target, number = folder / file.name, 2
        while target.exists() and target.read_bytes() != file.read_bytes():
            target, number = folder / f"{file.stem}-{number}{file.suffix}", number + 1
        shutil.copyfile(file, target)
    return str(folder)


def import_settings(opened: Project, file: str) -> tuple[str, list[Line]]:
    """Another trainer's settings over the model's own; its concepts take the place of the model's."""
    if not file.strip():
        raise UserError("File or Folder: it is empty; name what is to be read.")
    kind, migration = foreign.read(Path(file.strip()).expanduser().resolve(), _engine())
    own = opened.settings()
    if any(key.startswith(_CONCEPT) for key in migration.settings):
        own = {key: value for key, value in own.items() if not key.startswith(_CONCEPT)}
    project.write_settings(opened, {**own, **migration.settings})
    return kind, list(migration.lines)


def check(host: Host, opened: Project) -> Values:
    """The plan of a run with the model's settings; waits for it. Its problems are in the answer."""
    sheet = opened.folder / "check.html"
    job = start_errand(host, opened, "check", opened.settings(), sheet=str(sheet))
    process = launcher.start(job, _engine())
    launcher.follow(job, process, lambda event: None)
    return launcher.result(job)


def train(host: Host, opened: Project) -> Job:
    """Checks, then starts a run with exactly the model's settings. Raises UserError with all that stands in the way."""
    for job in run.all_runs(host.folders()):
        if job.is_alive():
            raise UserError(f"The run {job.name} is still training; wait for it, pause it or stop it.")
    if problems := check(host, opened)["problems"]:
        raise UserError(problems)
    job = launcher.new_run(host.folders(), opened, settings.parse(opened.settings()))
    launcher.start(job, _engine())
    return job


def resume(host: Host, name: str) -> Job:
    job = run.find(host.folders(), name)
    if job.status() in ("done", "stopped", "running"):
        raise UserError(f"The run {job.name} cannot be resumed: it is {job.status()}.")
    launcher.start(job, _engine())
    return job


def ask(host: Host, name: str, what: Request) -> Job:
    """Asks the newest run of a model for something."""
    job = run.find(host.folders(), name)
    if job.status() != "running":
        raise UserError(f"The run {job.name} is not running: it is {job.status()}.")
    job.request(what)
    return job


def start_errand(host: Host, opened: Project, kind: str, flat: Values, **fields: Any) -> Job:
    """A new short job that takes the place of the last of its kind, which must have ended."""
    before = views.newest_errand(opened, kind)
    if before and before.is_alive():
        raise UserError("One is being made already; wait for it.")
    if before:
        shutil.rmtree(before.folder, ignore_errors=True)
    return launcher.new_errand(host.folders(), opened, kind, settings.parse(flat), **fields)


def make_class_pictures(host: Host, opened: Project) -> None:
    launcher.start(start_errand(host, opened, "class-images", opened.settings()), _engine())


def generate(host: Host, opened: Project, wanted: Values) -> None:
    """Draws pictures with a result of the model, or without one."""
    weights = wanted.pop("weights")
    made_with = _run_of(opened, weights)
    flat = made_with.settings() if made_with else opened.settings()
    out = str(opened.folder / "generated")
    launcher.start(start_errand(host, opened, "generate", flat, **wanted, weights=weights, out=out), _engine())


def export(host: Host, opened: Project, weights: str, to: str, merge: float | None, half: bool) -> None:
    if not to.strip():
        raise UserError("Export to: it is empty; name a .safetensors or .ckpt file, or a new folder.")
    target = Path(to.strip()).expanduser().resolve()
    if target.exists():
        raise UserError(f"{target}: it exists already; name another file or folder.")
    fields = {"weights": weights, "to": str(target), "merge": merge, "half": half}
    launcher.start(start_errand(host, opened, "export", {}, **fields), _engine())


def results(opened: Project) -> list[tuple[str, str]]:
    """The files that runs of this model wrote and that are still there, the newest first: (name, path)."""
    found = []
    for job in reversed(run.runs(opened)):
        for event in reversed(job.events()[0]):
            if event["event"] == "saved" and Path(event["path"]).exists():
                found.append((f"{Path(event['path']).name} (run {int(job.folder.name)})", event["path"]))
    return found


def is_lora(path: str) -> bool:
    return bool(path) and checkpoint.describe(checkpoint.read_header(Path(path))).kind == "lora"


def _run_of(opened: Project, weights: str) -> Job | None:
    for job in run.runs(opened):
        if any(event["event"] == "saved" and event["path"] == weights for event in job.events()[0]):
            return job
    return None


def _engine() -> Path:
    if not environment.is_current():
        raise UserError("The engine is not set up yet; press Set Up beside the run.")
    return environment.python()
