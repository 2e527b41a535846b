"""What going on with a run comes to: where the page's settings have moved away from the run's since it began."""

from __future__ import annotations

from html import escape
from typing import Any

from dreambooth.core.errors import UserError
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Project
from dreambooth.service import resume_run
from dreambooth.ui.page.fragments import label_of, sentence_list, value_text

_NEVERTHELESS = '<p class="db-quiet"><b>Resume</b> goes on nevertheless, without Patience.</p>'

Difference = dict[str, Any]


def resume_view(job: Job, opened: Project) -> str:
    """Which settings differ, before anything starts; empty where none does. style.css offers to resume with the page's
    where there is a list of those that may change and nothing stands in the way (db-takes)."""
    try:
        prospect = resume_run.prospect(job, opened)
    except UserError as error:  # settings that an older version wrote, and that do not go together any more
        return sentence_list(error.problems)
    found: list[Difference] = prospect["differences"]
    nevertheless = _NEVERTHELESS if job.status() == "done" else ""
    if not found:
        return nevertheless
    taken, kept = ([one for one in found if bool(one["why_not"]) is stays] for stays in (False, True))
    parts = ["<p>The page shows other settings than this run has. <b>Resume</b> goes on with the run's own.</p>"]
    if taken and not prospect["problems"]:
        rows = "".join(
            f"<li><b>{escape(label_of(one['key']))}</b> {escape(value_text(one['now']))} → "
            f"{escape(value_text(one['given']))}</li>"
            for one in taken
        )
        parts.append(f'<p><b>Resume with the page\'s settings</b> changes:</p><ul class="db-takes">{rows}</ul>')
    elif taken:
        parts.append(f"<p>The page's own cannot be taken over now:</p>{sentence_list(prospect['problems'])}")
    if kept:
        parts.append(f"<p>These stay as the run has them, or are for a new run:</p><ul>{_kept(kept)}</ul>")
    return f'{nevertheless}<div class="db-plan-made db-differs">{"".join(parts)}</div>'


def _kept(kept: list[Difference]) -> str:
    """Settings that stay, a line for each reason."""
    labels: dict[str, dict[str, None]] = {}
    for one in kept:
        labels.setdefault(one["why_not"], {})[_kept_one(one)] = None
    return "".join(f"<li>{', '.join(some)}: <span>{escape(reason)}</span>.</li>" for reason, some in labels.items())


def _kept_one(one: Difference) -> str:
    if one["now"] is None or one["given"] is None:
        where = "<span>(only on the page)</span>" if one["now"] is None else "<span>(only in the run)</span>"
        return f"<b>Concept {int(one['key'].split('.')[1]) + 1}</b> {where}"
    there = (
        f"<span>({escape(value_text(one['now']))} in the run, {escape(value_text(one['given']))} on the page)</span>"
    )
    return f"<b>{escape(label_of(one['key']))}</b> {there}"
