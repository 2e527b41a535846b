"""What the page shows of a short job: its progress, then its result."""

from __future__ import annotations

from html import escape
from pathlib import Path
from urllib.parse import quote

from dreambooth.core import job_list, settings
from dreambooth.core.errors import Problem, UserError
from dreambooth.core.formatting import size
from dreambooth.core.job_folder import DESCRIBE, TXT2IMG, Job
from dreambooth.core.job_history import JobHistory
from dreambooth.core.project import Folders, Project, open_project
from dreambooth.service import exporting, queue, runs, use_in_txt2img
from dreambooth.ui.page.fragments import (
    Event,
    bar,
    failure_list,
    image,
    picture_address,
    problem_list,
    root,
    sentence_list,
    source,
    use_button,
    warning_list,
)
from dreambooth.ui.page.run_view import pause, stage
from dreambooth.ui.page.words_view import words_view

_OUTDATED = '<p class="db-quiet">The settings or the pictures have changed since the last check.</p>'
_BY_WEBUI = {"generate": TXT2IMG, "caption": DESCRIBE}  # the same kinds, where the WebUI itself is at work
_STARTING = {"name": "starting", "share": None, "note": ""}


def errand_view(folders: Folders, model: str, kind: str) -> str:
    """The newest short job of a kind: its progress, then its result."""
    project = open_project(folders, model)
    job = newest_errand(project, kind)
    if job is None:
        return root("none", [("result", "")])
    return root(*_shown(folders, project, job))


def errand_sections(folders: Folders, project: Project, job: Job) -> list[tuple[str, str]]:
    """The same, for a view that has other sections too."""
    return [(f"{job.read()['kind']}-{name}", inner) for name, inner in _shown(folders, project, job)[1]]


def _shown(folders: Folders, project: Project, job: Job) -> tuple[str, list[tuple[str, str]]]:
    """The state and the sections. What the job's files say is looked into by nobody before: those of a folder that is
    damaged, or came from elsewhere, may hold anything."""
    try:
        return _parts(folders, project, job)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        problem = f"{job.folder}: what this job says of itself is damaged; start it again."
        return "failed", [("head", sentence_list([problem])), ("result", "")]


def _parts(folders: Folders, project: Project, job: Job) -> tuple[str, list[tuple[str, str]]]:
    """The same of a sound one. The button has a section of its own: it is not drawn anew while the progress moves."""
    story, status = job.story(), job.status()
    if status == "queued":
        return "running", [("head", _waiting(folders, job)), ("stop", _stop(job)), ("result", "")]
    if status in ("running", "new"):
        head, drawn = bar(stage(story) or _STARTING), _pictures(project, job, story)
        return "running", [("head", head), ("stop", _stop(job)), ("result", drawn)]
    if job.read()["kind"] == "check" and _is_outdated(project, job):
        return "done", [("head", _OUTDATED), ("result", "")]
    if status in ("failed", "lost"):
        return "failed", [("head", failure_list(runs.errors(job, status))), ("result", "")]
    warned = warning_list(story.warnings)
    if story.ending is None or status == "stopped":
        return "done", [("result", warned + _pictures(project, job, story))]
    return "done", [("result", warned + _RESULTS[job.read()["kind"]](project, job, story, story.ending))]


def _waiting(folders: Folders, job: Job) -> str:
    """What a job waits for that has not begun."""
    before, button = queue.waits_for(job, folders), ""
    if before is None:
        text = "Waiting for its turn."
    elif before.is_run:
        text, button = f"Waiting for run {before.name}.", pause(before)
    else:
        text = f"Waiting for another job of {before.name.rpartition('/')[0]}."
    return f'<p class="db-quiet">{escape(text)} {button}</p>'


def _is_outdated(project: Project, job: Job) -> bool:
    """Whether the settings, or what lies in the pictures' folders, have changed since a check, as far as its folder is
    not damaged."""
    now = settings.parse(project.settings())
    try:
        if now != settings.parse(job.settings()):
            return True
    except UserError:
        return True
    started = (job.folder / "job.json").stat().st_mtime
    folders = {Path(concept.instance_data_dir).expanduser() for concept in now.concepts}
    folders |= {Path(one["path"]).parent for one in (job.story().ending or {}).get("pictures", [])}
    return any(folder.is_dir() and folder.stat().st_mtime > started for folder in folders)


def _stop(job: Job) -> str:
    """A button that ends the job; what is finished stays."""
    model, _, number = job.name.rpartition("/")
    address = f"dreambooth/models/{quote(model)}/errands/{number}/stop"
    return f'<button type="button" class="db-stop" data-db-send="{escape(address)}" data-db-body="{{}}">Stop</button>'


def download_view(folders: Folders) -> str:
    """The newest download from the hub."""
    job = next(reversed(job_list.downloads(folders)), None)
    if job is None:
        return root("none", [("head", "")])
    status = job.status()
    if status in ("failed", "lost"):
        return root("failed", [("head", failure_list(runs.errors(job, status)))])
    if status not in ("new", "queued", "running"):
        return root("done", [("head", "")])
    now = dict(stage(job.story()) or _STARTING)
    now["note"] = f"{size((job.story().stage or {}).get('total', 0))} from the hub" if now["share"] else ""
    return root("running", [("head", bar(now))])


def newest_errand(project: Project, kind: str) -> Job | None:
    """The newest short job of a kind, which the engine or the WebUI itself has done."""
    kinds = (kind, _BY_WEBUI.get(kind))
    return next((job for job in reversed(job_list.errands(project)) if job.read_or_empty().get("kind") in kinds), None)


def _pictures(project: Project, job: Job, story: JobHistory) -> str:
    asked = job.read()
    if "rows" in asked:
        return _sheet(project, asked, story)
    uses = asked["kind"] in ("generate", TXT2IMG)
    shown = "".join(
        f"<figure>{image(project, path, path.stem)}{_use(project, asked, path) if uses else ''}</figure>"
        for path in map(Path, story.pictures)
    )
    return f'<div class="db-pictures">{shown}</div>' if shown else ""


def _use(project: Project, asked: Event, path: Path) -> str:
    """The button that has the WebUI draw a picture again; its seed is in its name."""
    seed = path.stem.rpartition("-")[2]
    if not seed.isdecimal() or "from_step" in asked:  # no WebUI can load a state
        return ""
    return use_button(
        use_in_txt2img.use_picture(_folders(asked), project, asked, int(seed), asked["weights"], asked["lora_weight"])
    )


def _folders(asked: Event) -> Folders:
    return Folders(Path(asked["models"]), asked.get("folders"))


def _sheet(project: Project, asked: Event, story: JobHistory) -> str:
    """Results in rows, LoRA weights in columns; what is not drawn yet is an empty cell, so that nothing jumps."""
    pictures = {Path(path).stem: Path(path) for path in story.pictures}
    head = "".join(f'<th scope="col">{weight:g}</th>' for weight in asked["columns"])
    lines = []
    for row, one in enumerate(asked["rows"]):
        label = one["label"]
        shown = [(pictures.get(f"{row:02}-{column:02}"), weight) for column, weight in enumerate(asked["columns"])]
        cells = "".join(
            f"<td>{image(project, path, f'{label} at {weight:g}')}{_use_cell(project, asked, one, weight, path)}</td>"
            for path, weight in shown
        )
        lines.append(f'<tr><th scope="row">{escape(label)}</th>{cells}</tr>')
    return (
        f'<div class="db-sheet db-grid"><table><tr><th scope="col">Lora Weight</th>{head}</tr>{"".join(lines)}'
        "</table></div>"
    )


def _use_cell(project: Project, asked: Event, row: Event, weight: float, path: Path | None) -> str:
    if path is None:
        return "<i></i>"  # the place that the picture will take
    if "from_step" in row:
        return ""
    return use_button(
        use_in_txt2img.use_picture(_folders(asked), project, asked, asked["seed"], row["weights"], weight)
    )


def _generated(project: Project, job: Job, story: JobHistory, result: Event) -> str:
    return _pictures(project, job, story) + f'<p class="db-quiet">In {escape(str(job.read()["out"]))}</p>'


def _class_pictures_made(project: Project, job: Job, story: JobHistory, result: Event) -> str:
    """How many class pictures there are now, some of them, and the sheet with all."""
    kinds = result["class_pictures"]
    there, new = (sum(one[key] for one in kinds) for key in ("pictures", "made"))
    text = f"{there:,} class pictures, {new:,} of them new" if kinds else "These settings ask for no class pictures"
    sheet = picture_address(project, Path(result["sheet"])) if result.get("sheet") else ""
    link = f'; <a {source(sheet)} target="_blank">all on one sheet</a>' if sheet else ""
    places = "".join(f'<p class="db-quiet">In {escape(folder)}</p>' for folder in {one["folder"]: 0 for one in kinds})
    return f'<p class="db-good">{text}{link}</p>{_pictures(project, job, story)}{places}'


def _exported(project: Project, job: Job, story: JobHistory, result: Event) -> str:
    text = exporting.remark(result)
    return f'<p class="db-good">Written: {escape(result["path"])}</p>' + (
        f'<p class="db-quiet">{text}</p>' if text else ""
    )


def _checked(project: Project, job: Job, story: JobHistory, result: Event) -> str:
    """What the check found: the sentences that would stop a run, and the sheet of all pictures."""
    problems = result["problems"]
    verdict = problem_list(problems) or '<p class="db-good">Nothing stands in the way.</p>'
    verdict += warning_list(list(map(Problem.of, result.get("remarks", []))))  # an older check has none
    document = _sheet_of_check(project, Path(result["sheet"]))
    if not document:
        return verdict
    frame = f'<iframe class="db-plan" title="Every picture with its crop" sandbox srcdoc="{escape(document)}"></iframe>'
    return verdict + frame


def _sheet_of_check(project: Project, sheet: Path) -> str:
    """The sheet's HTML; empty where it is a picture, is gone, or lies elsewhere than with the model: the events of a
    folder that came from elsewhere may name any file."""
    try:
        if sheet.suffix != ".html" or not sheet.resolve().is_relative_to(project.folder.resolve()):
            return ""
        return sheet.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return ""


def _words(project: Project, job: Job, story: JobHistory, result: Event) -> str:
    return words_view(job, result)


def _captioned(project: Project, job: Job, story: JobHistory, result: Event) -> str:
    written = len(result["captions"])
    return f'<p class="db-good">{written:,} of {result["asked"]:,} pictures got a caption.</p>'


_RESULTS = {
    "check": _checked,
    "generate": _generated,
    "class-images": _class_pictures_made,
    "export": _exported,
    "tokens": _words,
    "caption": _captioned,
    TXT2IMG: _generated,
    DESCRIBE: _captioned,
}
