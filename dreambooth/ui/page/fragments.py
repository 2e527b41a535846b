"""Pieces of HTML that the page's views are made of, and sentences to a person."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from dreambooth.core import result_files
from dreambooth.core.errors import Problem
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders, Project
from dreambooth.core.schema import general, leaves
from dreambooth.core.settings import Settings
from dreambooth.host.base import PAGE_TOKEN
from dreambooth.service import signed_urls, use_in_txt2img

SAVED = '<p class="db-saved" data-db-problems="[]">Saved</p>'
_KEY = re.compile(r"([a-z_]+(?:\.[a-z0-9_]+)+): ")
_NAME = re.compile(r"(?<![\w./\\'-])[a-z]+(?:[._][a-z0-9]+)+(?![\w/\\'-])")
_LEAVES = {leaf.key: leaf for leaf in leaves(Settings)}
_LABELS = {name: leaf.spec.label for leaf in _LEAVES.values() for name in (leaf.key, leaf.key.rpartition(".")[2])}

Event = dict[str, Any]


def live(view: str, model: str, **more: int) -> str:
    """A place that the browser keeps current; `more` is what the view asks for besides."""
    asked = "".join(f' data-db-{name}="{number}"' for name, number in more.items())
    return f'<div class="db-live" data-db-live="{escape(view)}" data-db-model="{escape(model)}"{asked}></div>'


def root(state: str, sections: list[tuple[str, str]], settings: str = "") -> str:
    """A view; `settings` tells the browser when the model's own have been changed by somebody else."""
    body = "".join(f'<section data-db-part="{name}">{inner}</section>' for name, inner in sections)
    return f'<div data-db-state="{state}" data-db-settings="{settings}">{body}</div>'


def source(address: str, more: str = "") -> str:
    """The attribute by which the browser gets what lies at an address of ours; `more` is put to the query."""
    return f'data-db-src="{escape(sealed(address + more))}"'


def sealed(address: str) -> str:
    """An address of ours that a browser may ask for without headers."""
    return signed_urls.sealed(PAGE_TOKEN, address)


def picture_address(project: Project, path: Path) -> str:
    """Where a picture of a model's folder is found; changes when the file does. Empty if it is elsewhere."""
    try:
        inside = path.resolve().relative_to(project.folder.resolve()).as_posix()
        changed = path.stat().st_mtime_ns
    except (ValueError, OSError):
        return ""
    return f"dreambooth/models/{quote(project.name)}/picture?{urlencode({'file': inside, 'changed': changed})}"


def image(project: Project, path: Path | None, words: str) -> str:
    address = picture_address(project, path) if path else ""
    if not address:
        return ""
    return (
        f'<a {source(address)} target="_blank">'
        f'<img loading="lazy" {source(address, "&side=512")} '
        f'alt="{escape(words)}" title="{escape(words)}"></a>'
    )


def problem_list(problems: list[str]) -> str:
    """Sentences about what a person can mend now; the browser puts those about a setting at its control too."""
    return sentence_list(problems, f' role="alert" data-db-problems="{problems_data(problems)}"')


def problems_data(problems: Iterable[str]) -> str:
    """Sentences as an attribute from which the browser marks the controls that they name."""
    sentences = [one[: len(key)] + labelled(one[len(key) :]) for one in problems for key in (key_of(one),)]
    return escape(_unicode(json.dumps(sentences, ensure_ascii=False)))


def sentence_list(problems: list[str], data: str = "", *, kind: str = "") -> str:
    """Sentences in which a setting is called by its label."""
    items = "".join(f"<li>{escape(_unicode(_by_label(one)))}</li>" for one in problems)
    return f'<ul class="{f"db-problems {kind}".strip()}"{data}>{items}</ul>' if problems else ""


def _unicode(sentence: str) -> str:
    """A sentence as gradio can send it: a file that it names may have a name that is not Unicode."""
    return sentence.encode(errors="replace").decode()


def failure_list(errors: list[Problem]) -> str:
    """Why a job failed, with the end of its log where an engine broke. Where the engine itself may be damaged, the
    button comes with it that sets up again (style.css)."""
    logs = dict.fromkeys(one.log for one in errors if one.log)
    shown = (f"<details><summary>What it said last</summary><pre>{escape(log)}</pre></details>" for log in logs)
    mended = "db-engine-damaged" if any(one.is_of_engine for one in errors) else ""
    return sentence_list([one.sentence for one in errors], kind=mended) + "".join(shown)


def warning_list(warnings: list[Problem]) -> str:
    """What a job says that goes on."""
    return "".join(f'<p class="db-note">{escape(_by_label(one.sentence))}</p>' for one in warnings)


def to_txt2img(folders: Folders, job: Job, path: Path) -> str:
    """The button that fills the WebUI's txt2img tab (javascript/hot_use.js); style.css hides it where there is none."""
    return use_button(use_in_txt2img.use(folders, job, path))


def delete_button(folders: Folders, project: Project, event: Event) -> str:
    """The button that deletes a result for good (service/deleting.py), where it lies among the model's results."""
    if not result_files.are_among_results(folders, project, event):
        return ""
    means = escape(f"Delete {Path(event['path']).name} for good")
    return (
        f' <button type="button" class="db-delete" title="{means}" aria-label="{means}" data-db-twice '
        f'data-db-body="{escape(json.dumps({"path": event["path"]}))}" '
        f'data-db-send="dreambooth/models/{escape(quote(project.name))}/outputs/delete">Delete</button>'
    )


def use_button(use: use_in_txt2img.Use | None) -> str:
    if use is None:
        return ""
    parameters = f' data-db-parameters="{escape(use.parameters)}"' if use.parameters else ""
    return (
        f' <button type="button" class="db-use" data-db-use data-db-prompt="{escape(use.prompt)}" '
        f'data-db-checkpoint="{escape(use.checkpoint)}"{parameters}>Use in txt2img</button>'
    )


def good(sentence: str) -> str:
    return f'<p class="db-good" role="status" data-db-problems="[]">{escape(sentence)}</p>'


def undoable(sentence: str) -> str:
    """What was done, with the button that takes it back (Page.undo)."""
    button = '<button type="button" class="db-more" data-db-undo>Undo</button>'
    return f'<p class="db-good" role="status" data-db-problems="[]">{escape(sentence)} {button}</p>'


def key_of(problem: str) -> str:
    """The setting that a sentence begins with; empty where it is about none."""
    match = _KEY.match(problem)
    return match[1] if match and general(match[1]) in _LEAVES else ""


def _by_label(problem: str) -> str:
    """`Lora Rank: 0 is below the minimum.` for `lora.rank: 0 is below the minimum.`"""
    key = key_of(problem)
    return f"{label_of(key) if key else ''}{labelled(problem[len(key) :])}"


def labelled(sentence: str) -> str:
    """`set Offset Noise to 0` for `set objective.offset_noise to 0`: settings that a sentence names by their keys."""
    return _NAME.sub(lambda match: _LABELS.get(general(match[0]), match[0]), sentence)


def label_of(key: str) -> str:
    """What the page calls a setting: `Concept 1, Class Prompt` for concepts.0.class_prompt."""
    row = next((int(part) + 1 for part in key.split(".") if part.isdecimal()), None)
    return f"{f'Concept {row}, ' if row else ''}{_LEAVES[general(key)].spec.label}"


def value_text(value: Any) -> str:
    """A setting's value as it is shown."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "empty" if value == "" else str(value)


def bar(stage: Event) -> str:
    share, name = stage["share"], stage.get("name", "")
    value = "" if share is None else f' aria-valuenow="{share * 100:.0f}"'
    width = "" if share is None else f' style="width:{share * 100:.1f}%"'
    percent = "" if share is None else f"<b>{share:.0%}</b>"
    waits = " db-waits" if share is None else ""
    label = f"<span>{escape(name)}</span>" if name and name != "training" else ""
    return (
        f'<div class="db-bar{waits}" role="progressbar" aria-label="{escape(name or "Progress")}" '
        f'aria-valuemin="0" aria-valuemax="100"{value}>'
        f"<i{width}></i></div>"
        f'<p class="db-facts">{label}{percent}<span>{escape(stage["note"])}</span></p>'
    )
