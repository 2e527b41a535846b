"""What the page shows of a job, as HTML made from the job's folder alone: a reload, a second browser or a restart of
the WebUI sees the same. The browser fetches it anew (routes.py); each `section` is replaced only when it changed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from dreambooth.core import run
from dreambooth.core.checkpoint import FAMILIES
from dreambooth.core.project import Folders, Project, open_project
from dreambooth.core.quantities import duration, size
from dreambooth.core.run import Job
from dreambooth.core.schema import general, leaves
from dreambooth.core.settings import Settings
from dreambooth.service import installation, runs
from dreambooth.ui.page.curves import curve

LOG_LINES = 40
MOST_COLUMNS = 6
SAVED = '<p class="db-saved" data-db-problems="[]">Saved</p>'
_KEY = re.compile(r"([a-z_]+(?:\.[a-z0-9_]+)+): ")
_LEAVES = {leaf.key: leaf for leaf in leaves(Settings)}
_PREVIEW = re.compile(r"(\d+)-(\d+)-(\d+)\.png")
_WORDS = {
    "new": "not started",
    "queued": "waiting for its turn",
    "running": "training",
    "paused": "paused",
    "stopped": "stopped",
    "done": "done",
    "failed": "failed",
    "lost": "lost its engine",
}

Event = dict[str, Any]


def live(view: str, model: str) -> str:
    """A place that the browser keeps current."""
    return f'<div class="db-live" data-db-live="{escape(view)}" data-db-model="{escape(model)}"></div>'


def picture_address(project: Project, path: Path) -> str:
    """Where the browser finds a picture of a model's folder; changes when the file does. Empty if it is elsewhere."""
    try:
        inside = path.resolve().relative_to(project.folder.resolve()).as_posix()
        changed = path.stat().st_mtime_ns
    except (ValueError, OSError):
        return ""
    return f"dreambooth/models/{quote(project.name)}/picture?{urlencode({'file': inside, 'changed': changed})}"


def newest_run(folders: Folders, model: str) -> Job | None:
    found = run.runs(open_project(folders, model)) if model else []
    return found[-1] if found else None


def run_view(folders: Folders, model: str) -> str:
    """The newest run of a model: how it is, how far, its curves, previews, files and log."""
    engine = installation.state()
    if not engine["ready"]:
        return _root("working" if engine["working"] else "unready", [("head", _engine(engine))])
    elsewhere = _elsewhere(folders, model)
    job = newest_run(folders, model)
    if job is None:
        words = "Runs are shown here as they go." if model else "Make a model first; its runs are shown here."
        return _root("none", [("head", f'{elsewhere}<p class="db-quiet">{words}</p>')])
    project, events, status = open_project(folders, model), job.events()[0], job.status()
    sections = [
        ("head", elsewhere + _head(job, events, status)),
        ("notes", _notes(job, events, status)),
        ("curves", _curves(events)),
        ("previews", _previews(project, job, events)),
        ("outputs", _outputs(events)),
        ("log", _log(job)),
    ]
    return _root(_state(job, status), sections)


def errand_view(folders: Folders, model: str, kind: str) -> str:
    """The newest short job of a kind: its progress, then its result."""
    project = open_project(folders, model)
    job = newest_errand(project, kind)
    if job is None:
        return _root("none", [("result", "")])
    events, status = job.events()[0], job.status()
    if status in ("running", "new", "queued"):
        return _root("running", [("head", _bar(_stage(events))), ("result", _pictures(project, events))])
    if status in ("failed", "lost"):
        return _root("failed", [("head", _list(runs.problems(job, status))), ("result", "")])
    done = next(event for event in reversed(events) if event["event"] in ("done", "stopped", "paused"))
    return _root("done", [("result", _RESULTS[kind](project, job, events, done))])


def newest_errand(project: Project, kind: str) -> Job | None:
    return next((job for job in reversed(run.errands(project)) if job.read()["kind"] == kind), None)


def problems_data(problems: Iterable[str]) -> str:
    """Sentences as an attribute from which the browser marks the controls that they name."""
    return escape(json.dumps(list(problems), ensure_ascii=False))


def problem_list(problems: list[str]) -> str:
    """Sentences about what a person can mend now; the browser puts those about a setting at its control too."""
    return _list(problems, f' data-db-problems="{problems_data(problems)}"')


def _list(problems: list[str], data: str = "") -> str:
    """Sentences in which a setting is called by its label."""
    items = "".join(f"<li>{escape(_by_label(one))}</li>" for one in problems)
    return f'<ul class="db-problems"{data}>{items}</ul>' if problems else ""


def good(sentence: str) -> str:
    return f'<p class="db-good" data-db-problems="[]">{escape(sentence)}</p>'


def _by_label(problem: str) -> str:
    """`Lora Rank: 0 is below the minimum.` for `lora.rank: 0 is below the minimum.`"""
    match = _KEY.match(problem)
    leaf = _LEAVES.get(general(match[1])) if match else None
    if not match or leaf is None:
        return problem
    row = next((int(part) + 1 for part in match[1].split(".") if part.isdigit()), None)
    return f"{f'Concept {row}, ' if row else ''}{leaf.spec.label}: {problem[match.end() :]}"


def model_view(project: Project) -> str:
    """What a model was made from, and its runs."""
    about = project.about
    facts = [
        ("From", str(project.source)),
        ("Is", f"{FAMILIES.get(about['family'], 'unknown kind')}, {about['prediction_type']}, {project.resolution} px"),
        ("Folder", str(project.folder)),
    ]
    rows = "".join(f"<dt>{what}</dt><dd>{escape(value)}</dd>" for what, value in facts)
    return f"<dl>{rows}</dl>{_run_table(project)}"


def _run_table(project: Project) -> str:
    rows = []
    for job in reversed(run.runs(project)):
        last, events = job.progress(), job.events()[0]
        written = [Path(event["path"]).name for event in events if event["event"] == "saved"]
        steps = f"{last['step']:,} of {last['steps']:,}" if last else ""
        status = job.status()
        cells = [str(int(job.folder.name)), _WORDS[status], steps, written[-1] if written else ""]
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    head = "<tr><th>Run</th><th></th><th>Steps</th><th>Written</th></tr>"
    return f'<table class="db-runs">{head}{"".join(rows)}</table>' if rows else ""


def import_report(kind: str, report: list[dict[str, Any]]) -> str:
    """What became of each setting of another trainer."""
    rows = "".join(
        f"<tr><td>{escape(line['fate'])}</td><td>{escape(line['theirs'])}</td><td>{escape(line['ours'] or '')}</td>"
        f"<td>{escape(str(line['value'])[:60])}</td><td>{escape(line['why'])}</td></tr>"
        for line in report
    )
    head = "<tr><th></th><th>There</th><th>Here</th><th>Value</th><th></th></tr>"
    return f'{good(f"Read as {kind}.")}<table class="db-runs">{head}{rows}</table>'


def _root(state: str, sections: list[tuple[str, str]]) -> str:
    body = "".join(f'<section data-db-part="{name}">{inner}</section>' for name, inner in sections)
    return f'<div data-db-state="{state}">{body}</div>'


def _state(job: Job, status: str) -> str:
    """What the buttons go by: an engine that broke can be resumed only from a state."""
    if status in ("failed", "lost"):
        return "resumable" if job.state.is_dir() and any(job.state.iterdir()) else "failed"
    return status


def _elsewhere(folders: Folders, model: str) -> str:
    others = [job.name for job in run.all_runs(folders) if job.is_alive() and job.name.rpartition("/")[0] != model]
    return f'<p class="db-note">{escape(", ".join(others))} is training now.</p>' if others else ""


def _head(job: Job, events: list[Event], status: str) -> str:
    last = next((e for e in reversed(events) if e["event"] == "step"), None)
    stage = _stage(events)
    words = stage["name"] if status == "running" and stage["name"] != "training" else _WORDS[status]
    head = f'<h3>Run {int(job.folder.name)} <span class="db-status db-{status}">{escape(words)}</span></h3>'
    if status == "running" and stage["name"] != "training":
        return head + _bar(stage)
    if last is None:
        return head
    share = last["step"] / last["steps"]
    left = f"{duration(last['seconds_left'])} left" if status == "running" else ""
    facts = [f"step {last['step']:,} of {last['steps']:,}", f"{last['steps_per_second']:.2f} it/s"]
    if last.get("memory_bytes"):
        facts.append(size(last["memory_bytes"]))
    return head + _bar({"share": share, "note": left}) + f'<p class="db-facts">{" · ".join(facts)}</p>'


def _stage(events: list[Event]) -> Event:
    """What is going on: the last stage that was reported, or training."""
    for event in reversed(events):
        if event["event"] == "step":
            return {"name": "training", "share": event["step"] / event["steps"], "note": ""}
        if event["event"] == "stage":
            done, total = event["done"], event["total"]
            note = f"{done:,} of {total:,}" if total > 1 else ""
            return {"name": event["name"], "share": done / total if total > 1 else None, "note": note}
        if event["event"] == "started":
            break
    return {"name": "starting", "share": None, "note": ""}


def _bar(stage: Event) -> str:
    share, name = stage["share"], stage.get("name", "")
    value = "" if share is None else f' aria-valuenow="{share * 100:.0f}"'
    width = "" if share is None else f' style="width:{share * 100:.1f}%"'
    percent = "" if share is None else f"<b>{share:.0%}</b>"
    waits = " db-waits" if share is None else ""
    said = f"<span>{escape(name)}</span>" if name and name != "training" else ""
    return (
        f'<div class="db-bar{waits}" role="progressbar" aria-valuemin="0" aria-valuemax="100"{value}>'
        f"<i{width}></i></div>"
        f'<p class="db-facts">{said}{percent}<span>{escape(stage["note"])}</span></p>'
    )


def _notes(job: Job, events: list[Event], status: str) -> str:
    warnings = "".join(f'<p class="db-note">{escape(e["text"])}</p>' for e in events if e["event"] == "warning")
    return _list(runs.problems(job, status)) + warnings


def _engine(state: Mapping[str, Any]) -> str:
    """What the engine's environment wants, before anything can run."""
    if state["working"]:
        said = f'<p class="db-note">Setting the engine up: {escape(state["said"])}</p>'
        return said + _bar({"share": None, "note": ""})
    return f'<p class="db-note">{escape(state["problem"])}</p>'


def _curves(events: list[Event]) -> str:
    steps = [event for event in events if event["event"] == "step"]
    if not steps:
        return ""
    whole = steps[-1]["steps"]
    loss = curve("Loss", [(e["step"], e["loss"]) for e in steps], whole, "loss")
    rate = curve("Learning rate", [(e["step"], e["rate"]) for e in steps], whole, "rate")
    return f'<div class="db-curves">{loss}{rate}</div>' if loss else ""


def _previews(project: Project, job: Job, events: list[Event]) -> str:
    """The previews as a sheet that grows to the right: a row for each prompt, a column for each moment."""
    cells: dict[tuple[int, int], dict[int, Path]] = {}
    for event in events:
        for path in event.get("paths", []) if event["event"] == "preview" else []:
            if match := _PREVIEW.fullmatch(Path(path).name):
                images, prompt, number = map(int, match.groups())
                cells.setdefault((prompt, number), {})[images] = Path(path)
    if not cells:
        return ""
    moments = _thinned(sorted({images for row in cells.values() for images in row}))
    head = "".join(f"<th>{f'{images:,}' if images else 'before'}</th>" for images in moments)
    rows = []
    for key in sorted(cells):
        shown = ((cells[key].get(images), images) for images in moments)
        rows.append("<tr>" + "".join(f"<td>{_image(project, path, f'{n:,} images seen')}</td>" for path, n in shown))
    return (
        '<h4>Previews <small>by pictures seen</small></h4><div class="db-sheet">'
        f"<table><tr>{head}</tr>{''.join(rows)}</table></div>"
    )


def _thinned(moments: list[int]) -> list[int]:
    """The first, the last and some between, at most so many columns."""
    if len(moments) <= MOST_COLUMNS:
        return moments
    return [moments[round(i * (len(moments) - 1) / (MOST_COLUMNS - 1))] for i in range(MOST_COLUMNS)]


def _image(project: Project, path: Path | None, words: str) -> str:
    address = picture_address(project, path) if path else ""
    if not address:
        return ""
    return (
        f'<a data-db-src="{escape(address)}" target="_blank"><img data-db-src="{escape(address)}" '
        f'alt="{escape(words)}" title="{escape(words)}"></a>'
    )


def _outputs(events: list[Event]) -> str:
    saved = [event for event in events if event["event"] == "saved"]
    rows = []
    for event in reversed(saved):
        path = Path(event["path"])
        gone = "" if path.exists() else " (gone)"
        rows.append(
            f'<li title="{escape(str(path))}"><b>{escape(path.name)}</b> {size(event["bytes"])} · '
            f"{event['images']:,} images seen{gone}</li>"
        )
    return f'<h4>Written</h4><ul class="db-files">{"".join(rows)}</ul>' if rows else ""


def _log(job: Job) -> str:
    try:
        lines = job.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
    except OSError:
        return ""
    if not any(line.strip() for line in lines):
        return ""
    text = escape("\n".join(lines))
    return f'<details><summary>Log</summary><pre title="{escape(str(job.log))}">{text}</pre></details>'


def _pictures(project: Project, events: list[Event]) -> str:
    made = [Path(event["path"]) for event in events if event["event"] == "picture"]
    shown = "".join(_image(project, path, path.stem) for path in made)
    return f'<div class="db-pictures">{shown}</div>' if shown else ""


def _generated(project: Project, job: Job, events: list[Event], done: Event) -> str:
    folder = job.read().get("out", str(project.class_pictures))
    return _pictures(project, events) + f'<p class="db-quiet">In {escape(str(folder))}</p>'


def _exported(project: Project, job: Job, events: list[Event], done: Event) -> str:
    return f'<p class="db-good">Written: {escape(done["path"])}</p>'


def _plan(project: Project, job: Job, events: list[Event], done: Event) -> str:
    """What the check found: the sentences that would stop a run, and the sheet of all pictures."""
    problems = done["problems"]
    verdict = _list(problems) or '<p class="db-good">Nothing stands in the way.</p>'
    sheet = Path(done["sheet"])
    try:
        document = sheet.read_text(encoding="utf-8")
    except OSError:
        return verdict
    return f'{verdict}<iframe class="db-plan" title="Every picture with its crop" srcdoc="{escape(document)}"></iframe>'


_RESULTS = {"check": _plan, "generate": _generated, "class-images": _generated, "export": _exported}
