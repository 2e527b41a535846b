"""What words are to a model: into which tokens it cuts each, which it knows already, and rare ones to take instead."""

from __future__ import annotations

from html import escape
from typing import Any

from dreambooth.core import settings
from dreambooth.core.errors import UserError
from dreambooth.core.job_folder import Job
from dreambooth.service import subject_words

_MOST_RARE = 6
_KNOWN = {True: "<td>means something</td>", False: "<td>means hardly anything</td>", None: "<td></td>"}

Event = dict[str, Any]


def words_view(job: Job, result: Event) -> str:
    """The words as a table, a warning for a subject's word that means something, and what to take instead."""
    rows = "".join(_row(one) for one in result["words"])
    head = "<tr><th>Word</th><th>Read as</th><th>Changes a picture by</th><th>To this model</th></tr>"
    return f'{_warning(job, result)}<table class="db-runs">{head}{rows}</table>{_too_long(result)}{_rare(result)}'


def _row(one: Event) -> str:
    count, pieces = len(one["tokens"]), escape(" ".join(one["tokens"]))
    read = f"<td>{count} tokens: {pieces}</td>" if count > 1 else "<td>one token</td>"
    changes = "" if one["strength"] is None else f"{one['strength']:.1%}"
    return f"<tr><td>{escape(one['word'])}</td>{read}<td>{changes}</td>{_KNOWN[one['known']]}</tr>"


def _warning(job: Job, result: Event) -> str:
    try:
        chosen = settings.parse(job.settings())
    except UserError:  # they are damaged, and tell of no subject
        return ""
    own = subject_words.own_words(chosen, [one["word"] for one in result["words"]])
    known = [one["word"] for one in result["words"] if one["word"] in own and one["known"]]
    instead = f", such as {result['rare'][0]['word']}" if result["rare"] else ""
    return "".join(
        f'<p class="db-note">{escape(word)} means something to this model already: what it shows now is in the way of '
        f"your subject. Take a rarer word{escape(instead)}.</p>"
        for word in dict.fromkeys(known)
    )


def _too_long(result: Event) -> str:
    if result["tokens"] <= result["read_length"]:
        return ""
    count, read = result["tokens"], result["read_length"]
    return f'<p class="db-note">Of these {count} tokens the first {read} are read: raise Max Token Length.</p>'


def _rare(result: Event) -> str:
    """Words that could be taken, the least known first."""
    found = ", ".join(f"{one['word']} {one['strength']:.1%}" for one in result["rare"][:_MOST_RARE])
    return f'<p class="db-quiet">Rare words that change its pictures least: {escape(found)}</p>' if found else ""
