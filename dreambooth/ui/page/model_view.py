"""What the page shows of a model: what it was made from, its runs with the points they can go on from, and what they
wrote, each result with a picture that was drawn at that moment.
"""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dreambooth.core import job_list
from dreambooth.core.formatting import size
from dreambooth.core.job_folder import Job
from dreambooth.core.job_history import JobHistory
from dreambooth.core.models.checkpoint import family_name
from dreambooth.core.project import Folders, Project, open_project
from dreambooth.service import resume_run, runs
from dreambooth.ui.page.fragments import delete_button, image, labelled, root, to_txt2img, undoable, value_text
from dreambooth.ui.page.run_view import BEST, WORDS
from dreambooth.ui.page.short_job_view import errand_sections, newest_errand

MOST_RESULTS = 24


def model_view(folders: Folders, model: str) -> str:
    project = open_project(folders, model)
    jobs = list(reversed(job_list.runs(project)))
    sections = [
        ("facts", _facts(project)),
        ("results", _results(folders, project, jobs)),
        ("runs", _run_table(jobs)),
        *_export(folders, project),
    ]
    exporting = newest_errand(project, "export")
    return root("running" if exporting and exporting.status() in ("new", "queued", "running") else "some", sections)


def _facts(project: Project) -> str:
    about = project.about
    facts = [
        ("From", str(project.source)),
        ("Is", f"{family_name(about)}, {about['prediction_type']}, {project.resolution} px"),
        ("Folder", str(project.folder)),
    ]
    rows = "".join(f"<dt>{what}</dt><dd>{escape(value)}</dd>" for what, value in facts)
    return f"<dl>{rows}</dl>"


def _results(folders: Folders, project: Project, jobs: list[Job]) -> str:
    """The newest files that are still there."""
    tiles: list[str] = []
    for job in jobs:
        story = job.story()
        for event in runs.written(story):
            path = Path(event["path"])
            if len(tiles) < MOST_RESULTS and path.exists():
                tiles.append(_result(folders, project, job, story, event))
    return f'<h4>Results</h4><div class="db-tiles">{"".join(tiles)}</div>' if tiles else ""


def _result(folders: Folders, project: Project, job: Job, story: JobHistory, event: dict[str, Any]) -> str:
    path, images, of_run = Path(event["path"]), event["images"], f"run {int(job.folder.name)}"
    if "step" in event:
        of_run += f", step {event['step']:,}"
    shown = image(project, _preview(story, images), f"{path.name}, after {images:,} pictures seen")
    best = f" · {BEST}" if runs.is_best(story, event) else ""
    shown = shown or '<span class="db-empty">No preview was drawn at this moment.</span>'
    buttons = to_txt2img(folders, job, path) + delete_button(folders, project, event)
    return (
        f'<figure class="db-tile" title="{escape(str(path))}">{shown}<figcaption><b>{escape(path.stem)}</b> '
        f"{of_run} · {size(event['bytes'])}{best}{buttons}</figcaption></figure>"
    )


def _preview(story: JobHistory, images: int) -> Path | None:
    """The first preview that was drawn when so many images had been seen."""
    for path in story.previews.get(images, []):
        if re.fullmatch(rf"0*{images}-0+-\d+\.png", Path(path).name):
            return Path(path)
    return None


def _run_table(jobs: list[Job]) -> str:
    rows, any_points = [], False
    for job in jobs:
        story, status = job.story(), job.status()
        last, written = story.step, [Path(event["path"]).name for event in story.saved]
        steps = f"{story.reached:,} of {last['steps']:,}" if last else ""
        cells = [str(int(job.folder.name)), WORDS[status], steps, written[-1] if written else ""]
        shown = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        points = _points(job, status)
        any_points = any_points or bool(points)
        rows.append(f"<tr>{shown}<td>{points}</td></tr>")
    going_back = "<th>Resume from step, or export it</th>" if any_points else "<td></td>"
    head = f"<tr><th>Run</th><th>Status</th><th>Steps</th><th>Written</th>{going_back}</tr>"
    return f'<table class="db-runs">{head}{"".join(rows)}</table>' if rows else ""


def _points(job: Job, status: str) -> str:
    """A button for each state; going back to an earlier one takes a second press, as it sets the later ones aside."""
    if not resume_run.rests(job, status):
        return ""
    model, _, number = job.name.rpartition("/")
    address, steps = f"dreambooth/models/{quote(model)}", job.states()
    return " ".join(
        '<span class="db-points">'
        f'<button type="button" class="db-point" data-db-send="{escape(address)}/runs/{number}/resume" '
        f'data-db-body="{_json(from_step=step)}"{_going_back(step, steps)}>{step:,}</button>'
        f'<button type="button" class="db-point" data-db-send="{escape(address)}/errands" '
        f'data-db-body="{_json(kind="export", run=int(number), from_step=step)}" '
        f'title="Write what it had learned after step {step:,} where it writes its results" '
        f'aria-label="Export the state after step {step:,}">export</button></span>'
        for step in steps
    )


def _going_back(step: int, steps: list[int]) -> str:
    """What the button of a state says of itself."""
    if step == steps[-1]:
        words, twice = f"Resume from step {step:,}", ""
    else:
        words, twice = f"Resume from step {step:,}; later states go to the trash", " data-db-twice"
    return f' title="{words}" aria-label="{words}"{twice}'


def _json(**fields: Any) -> str:
    return escape(json.dumps(fields))


def _export(folders: Folders, project: Project) -> list[tuple[str, str]]:
    """What becomes of the state that is being exported, or was exported last."""
    job = newest_errand(project, "export")
    return errand_sections(folders, project, job) if job and job.read().get("from_step") is not None else []


def import_report(kind: str, report: list[dict[str, Any]]) -> str:
    """What became of each setting of another trainer."""
    lines = (
        (line["fate"], line["theirs"], labelled(line["ours"] or ""), _short(line["value"]), labelled(line["why"]))
        for line in report
    )
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    head = "<tr><th>Fate</th><th>There</th><th>Here</th><th>Value</th><th>Why</th></tr>"
    return f'{undoable(f"Read as {kind}.")}<table class="db-runs db-fates">{head}{rows}</table>'


def _short(value: Any) -> str:
    return "" if value is None else value_text(value)[:60]
