"""What the page shows of a model: what it was made from, and its runs."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from dreambooth.core import run
from dreambooth.core.checkpoint import FAMILIES
from dreambooth.core.project import Project
from dreambooth.ui.page.fragments import good
from dreambooth.ui.page.run_view import WORDS


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
        story = job.story()
        last, written = story.step, [Path(event["path"]).name for event in story.saved]
        steps = f"{last['step']:,} of {last['steps']:,}" if last else ""
        status = job.status()
        cells = [str(int(job.folder.name)), WORDS[status], steps, written[-1] if written else ""]
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
