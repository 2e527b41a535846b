"""The current run of a model, as HTML made from its folder alone: a reload, a second browser or a restart of the WebUI
sees the same. The browser fetches it anew (routes.py); each `section` is replaced only when it changed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from html import escape
from math import isfinite
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dreambooth.core import job_list, validation
from dreambooth.core.formatting import duration, memory, size
from dreambooth.core.job_folder import Job
from dreambooth.core.job_history import Course, JobHistory
from dreambooth.core.project import Folders, Project, open_project
from dreambooth.service import installation, resume_run, runs
from dreambooth.ui.page.curves import curve
from dreambooth.ui.page.fragments import (
    Event,
    bar,
    delete_button,
    failure_list,
    image,
    root,
    source,
    to_txt2img,
    warning_list,
)
from dreambooth.ui.page.quality_view import quality_view
from dreambooth.ui.page.resume_view import resume_view
from dreambooth.ui.page.schedule_view import PARTS

LOG_LINES = 40
BEST = '<b class="db-best">best</b>'
_LOG_BYTES = 20_000
_MOST_COLUMNS = 6
_MOST_WRITTEN = 12
_RESUMABLE = ("paused", "resumable", "past-best")
_PREVIEW = re.compile(r"(\d+)-(\d+)-(\d+)\.png")
WORDS = {
    "new": "not started",
    "queued": "waiting for its turn",
    "running": "training",
    "paused": "paused",
    "stopped": "stopped",
    "done": "done",
    "failed": "failed",
    "lost": "lost its engine",
}


def run_view(folders: Folders, model: str) -> str:
    """The current run of a model: how it is, how far, its curves, previews, files and log."""
    engine = installation.state()
    elsewhere = _engine(engine) + _elsewhere(folders, model)
    job = job_list.current(job_list.runs(open_project(folders, model))) if model else None
    if not engine["ready"] and (job is None or not job.is_alive()):
        return root("working" if engine["working"] else "unready", [("head", elsewhere)])
    if job is None:
        words = "Runs are shown here as they go." if model else "Make a model first; its runs are shown here."
        return root("none", [("head", f'{elsewhere}<p class="db-quiet">{words}</p>')], _settings(folders, model))
    project, story, status = open_project(folders, model), job.story(), job.status()
    sections = [
        ("head", elsewhere + _head(job, story, status)),
        ("resume", resume_view(job, project) if _state(job, status) in _RESUMABLE else ""),
        ("notes", _notes(job, story, status)),
        ("curves", _curves(story.course, story.step)),
        ("quality", quality_view(story)),
        ("previews", _previews(project, story)),
        ("outputs", _outputs(folders, project, job, story, status)),
        ("log", _log(job)),
    ]
    return root(_state(job, status), sections, _settings(folders, model))


def _settings(folders: Folders, model: str) -> str:
    """What differs when the model's settings do; empty where there are none."""
    try:
        own = (open_project(folders, model).folder / "settings.json").read_bytes() if model else b""
    except OSError:
        return ""
    return hashlib.sha256(own).hexdigest()[:16] if own else ""


def _state(job: Job, status: str) -> str:
    """What the buttons go by: an engine that broke can be resumed only from a state, and so can a run that ended by its
    patience."""
    if status in ("failed", "lost"):
        return "resumable" if job.states() else "failed"
    return "past-best" if status == "done" and resume_run.rests(job, status) else status


def _elsewhere(folders: Folders, model: str) -> str:
    others = [job for job in job_list.all_runs(folders) if job.is_alive() and job.name.rpartition("/")[0] != model]
    return "".join(f'<p class="db-note">{escape(job.name)} is training now. {pause(job)}</p>' for job in others)


def _head(job: Job, story: JobHistory, status: str) -> str:
    last, before = story.step, stage(story)
    words = before["name"] if status == "running" and before else WORDS[status]
    head = f'<h3>Run {int(job.folder.name)} <span class="db-status db-{status}">{escape(words)}</span></h3>'
    if status == "running" and before:
        return head + bar(before)
    if not last:
        return head
    step = last["step"] if status == "running" else story.reached
    share = step / last["steps"]
    remaining = f"{duration(last['seconds_left'])} left" if status == "running" else ""
    if status == "done" and share < 1:
        share, remaining = 1.0, "ended by itself, past its best"
    facts = [f"step {step:,} of {last['steps']:,}", f"{last['steps_per_second']:.2f} it/s"]
    if last.get("memory_bytes"):
        facts.append(memory(last["memory_bytes"]))
    return head + bar({"share": share, "note": remaining}) + f'<p class="db-facts">{" · ".join(facts)}</p>'


def pause(job: Job) -> str:
    """A button that has a run make room for what else wants the GPU."""
    model, _, number = job.name.rpartition("/")
    address, body = f"dreambooth/models/{quote(model)}/runs/{number}/request", escape(json.dumps({"request": "pause"}))
    means = "Saves its state and frees the GPU; Resume on its own page goes on from it."
    return (
        f'<button type="button" class="db-learn" title="{means}" aria-label="Pause {escape(job.name)}" '
        f'data-db-send="{escape(address)}" data-db-body="{body}">Pause it</button>'
    )


def stage(story: JobHistory) -> Event | None:
    """What is going on before, between or after the steps; None while it trains."""
    if story.stage is None:
        return None
    done, total = story.stage["done"], story.stage["total"]
    unit = " steps" if story.stage.get("unit") == "steps" else ""
    note = f"{done:,} of {total:,}{unit}" if total > 1 else ""
    return {"name": story.stage["name"], "share": done / total if total > 1 else None, "note": note}


def _notes(job: Job, story: JobHistory, status: str) -> str:
    return failure_list(runs.errors(job, status)) + _report(job, status) + warning_list(story.warnings)


def _report(job: Job, status: str) -> str:
    """Where a run went wrong: everything that tells of it, to download and show to somebody."""
    if status not in ("failed", "lost"):
        return ""
    model, _, number = job.name.rpartition("/")
    address = f"dreambooth/models/{quote(model)}/report?run={number}"
    return f'<p><a class="db-report" {source(address)} download>Report as a file</a></p>'


def _engine(state: Mapping[str, Any]) -> str:
    """What the engine's environment wants: what it is doing, what stands in its way, or why everything is done by the
    CPU of a machine with a card. With the last comes the button that sets up again (style.css)."""
    if state["working"]:
        note = f'<p class="db-note db-setting-up">Setting the engine up: {escape(state["said"])}</p>'
        return note + bar({"share": None, "note": ""})
    if not state["ready"]:
        return f'<p class="db-note">{escape(state["problem"])}</p>'
    return f'<p class="db-note db-unused-card">{escape(state["note"])}</p>' if state["note"] else ""


def _curves(course: Course, last: Event) -> str:
    points = [point for point in course.points if all(map(isfinite, point))]
    if len(points) < 2:
        return ""
    whole, parts = last["steps"], {}
    if any(point.prior_loss for point in points):
        parts = {
            "Subject": [(point.step, point.subject_loss) for point in points],
            "Class": [(point.step, point.prior_loss) for point in points],
        }
    loss = curve("Loss", [(point.step, point.loss) for point in points], whole, "loss", parts)
    rate = curve("Learning rate", [(point.step, point.rate) for point in points], whole, "rate")
    return f'<div class="db-curves">{loss}{rate}</div>{_rates(last)}'


def _rates(last: Event) -> str:
    """The rate of each part as it is now, where there are several: the curve is the first one's."""
    rates = last.get("rates")
    if not isinstance(rates, dict) or len(rates) < 2 or not all(isinstance(rate, float) for rate in rates.values()):
        return ""
    text = " · ".join(f"{PARTS.get(part, part)} {rate:.3g}" for part, rate in rates.items())
    return f'<p class="db-axis"><span>Learning rates: {escape(text)}</span></p>'


def _previews(project: Project, story: JobHistory) -> str:
    """The previews as a sheet that grows to the right: a row for each prompt, a column for each moment."""
    cells: dict[tuple[int, int], dict[int, Path]] = {}
    for paths in story.previews.values():
        for path in paths:
            if match := _PREVIEW.fullmatch(Path(path).name):
                images, prompt, number = map(int, match.groups())
                cells.setdefault((prompt, number), {})[images] = Path(path)
    if not cells:
        return ""
    best = story.best.images if story.best else None
    moments = validation.thinned(sorted({images for row in cells.values() for images in row}), _MOST_COLUMNS, best)
    head = "".join(f"<th>{_moment(images, is_best=images == best)}</th>" for images in moments)
    rows = []
    for key in sorted(cells):
        if key[1] == 0 and key[0] < len(story.prompts):
            words = escape(story.prompts[key[0]])
            rows.append(f'<tr class="db-words"><th colspan="{len(moments)}" scope="rowgroup">{words}</th></tr>')
        shown = ((cells[key].get(images), images) for images in moments)
        rows.append("<tr>" + "".join(f"<td>{image(project, path, f'{n:,} pictures seen')}</td>" for path, n in shown))
    return (
        '<h4>Previews <small>by pictures seen</small></h4><div class="db-sheet">'
        f"<table><tr>{head}</tr>{''.join(rows)}</table></div>"
    )


def _moment(images: int, *, is_best: bool) -> str:
    return f"{images:,}{f' {BEST}' if is_best else ''}" if images else "before"


def _outputs(folders: Folders, project: Project, job: Job, story: JobHistory, status: str) -> str:
    rows = []
    for event in runs.written(story)[:_MOST_WRITTEN]:
        path, of_state = Path(event["path"]), f" · exported from step {event['step']:,}" if "step" in event else ""
        after = " (gone)"
        if path.exists():
            buttons = to_txt2img(folders, job, path) + _learn_on(job, event, status)
            after = f' <span class="db-actions">{buttons}{delete_button(folders, project, event)}</span>'
        best = f" {BEST}" if runs.is_best(story, event) else ""
        words = "".join(
            f" · in a WebUI's prompts <code>{escape(Path(file).stem)}</code> for {escape(word)}"
            for word, file in event.get("embeddings", {}).items()
        )
        rows.append(
            f'<li title="{escape(str(path))}"><b>{escape(path.name)}</b> {size(event["bytes"])} · '
            f"{event['images']:,} pictures seen{of_state}{words}{best}{after}</li>"
        )
    return f'<h4>Written</h4><ul class="db-files">{"".join(rows)}</ul>' if rows else ""


def _learn_on(job: Job, event: Event, status: str) -> str:
    """The button that has the next run begin with a result (service/continue_from.py)."""
    if status in ("running", "queued"):
        return ""
    model, body = job.name.rpartition("/")[0], escape(json.dumps({"path": event["path"]}))
    means = "Makes a new model of it" if event["kind"] == "checkpoint" else "Has the next run begin with it"
    return (
        f' <button type="button" class="db-learn" title="{means}" data-db-body="{body}" '
        f'data-db-send="dreambooth/models/{escape(quote(model))}/learn-on">Learn on</button>'
    )


def _log(job: Job) -> str:
    lines = installation.tail(job.log, _LOG_BYTES).splitlines()[-LOG_LINES:]
    if not any(line.strip() for line in lines):
        return ""
    text = escape("\n".join(lines))
    return f'<details><summary>Log</summary><pre title="{escape(str(job.log))}">{text}</pre></details>'
