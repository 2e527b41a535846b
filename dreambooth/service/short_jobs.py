"""The short jobs beside the runs: what may be asked of each, and the fields of its folder that come of it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreambooth.core import captions, settings
from dreambooth.core.errors import UserError
from dreambooth.core.files import confinement, paths
from dreambooth.core.models import checkpoint
from dreambooth.core.project import Project
from dreambooth.core.schema import leaves
from dreambooth.core.settings import Settings
from dreambooth.service import captioning, exporting, runs
from dreambooth.service.field_names import called

RANDOM = -1  # a seed that stands for any
_PREVIEWS = {leaf.key.removeprefix("previews."): leaf for leaf in leaves(Settings) if leaf.key.startswith("previews.")}


def _as_previews(name: str) -> tuple[Any, Any, Any]:
    leaf = _PREVIEWS[name]
    return leaf.default, leaf.spec.min, leaf.spec.max


# What a request may say about pictures to draw: default, lowest and highest. The command line and the page have it from
# here.
DRAWING: dict[str, tuple[Any, Any, Any]] = {
    "count": (1, 1, 1000),
    "steps": _as_previews("steps"),
    "cfg": _as_previews("guidance_scale"),
    "seed": (_PREVIEWS["seed"].default, RANDOM, 2**31),  # the first picture's; the next have the next
    "batch": (0, 0, 64),  # 0: as many as there is room for
    "lora_weight": (1.0, -4, 4),
    "width": (0, 64, 2048),
    "height": (0, 64, 2048),
}
_OF_WEIGHTS = ("weights", "base", "run", "from_step")
FIELDS: dict[str, tuple[str, ...]] = {
    "check": (),
    "class-images": (),
    "generate": (
        *DRAWING, *_OF_WEIGHTS, "prompt", "negative", "scheduler", "eta", "out", "sheet", "library", "sampler",
    ),
    "export": ("to", "merge", "onto", "rank", "half", *_OF_WEIGHTS),
    "tokens": ("prompt", "candidates"),
    "caption": ("with", "concept", "folder", "over"),
}  # fmt: skip
CANDIDATES = 24  # rare words that are tried
MOST_ON_A_SHEET = 200  # pictures
SCHEDULER = _PREVIEWS["scheduler"]


def errand(opened: Project, kind: str, wanted: Mapping[str, Any], chosen: Settings) -> tuple[Settings, dict[str, Any]]:
    """The settings and fields of a short job. `chosen` are the model's settings with what the request changes.

    Raises UserError for a kind that does not exist, or values that will not do.
    """
    if kind == "check":
        return chosen, {"sheet": ""}
    if kind == "class-images":
        return chosen, {}
    if kind == "generate":
        return (sheet if wanted.get("sheet") else drawing)(opened, wanted)
    if kind == "export":
        return settings.parse({}), exporting.fields(opened, wanted)
    if kind == "tokens":
        return chosen, words(wanted.get("prompt"), wanted.get("candidates", CANDIDATES), label="{}")
    if kind == "caption":
        return chosen, captioning.fields(chosen, wanted)
    raise UserError(f"kind: {kind!r} is none of {', '.join(FIELDS)}.")


def words(prompt: Any, candidates: Any, *, label: str) -> dict[str, Any]:
    """The fields of a job that says what words are to a model. Raises UserError for no words, or a bad number."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError("PROMPT: it is empty; give the words that you mean to use, such as 'sks dog'.")
    if isinstance(candidates, bool) or not isinstance(candidates, int) or not 0 <= candidates <= 400:
        raise UserError(f"{label.format('candidates')}: it must be from 0 to 400 (it is {candidates}).")
    return {"prompt": prompt, "candidates": candidates}


def drawing(opened: Project, wanted: Mapping[str, Any], *, label: str = "{}") -> tuple[Settings, dict[str, Any]]:
    """The settings and the job's fields for pictures to be drawn. `label` shows a person a key's name, as --{} does.

    Raises UserError with every value that will not do.
    """
    values = {key: wanted.get(key, default) for key, (default, _, _) in DRAWING.items()}
    problems = [
        f"{called(key, label)}: {problem}" for key, value in values.items() if (problem := _drawing_problem(key, value))
    ]
    texts = {
        key: wanted.get(key, default)
        for key, default in (("prompt", ""), ("negative", ""), ("scheduler", SCHEDULER.default))
    }
    texts["prompt"] = "" if texts["prompt"] is None else texts["prompt"]
    for key, value in texts.items():
        if not isinstance(value, str):
            problems.append(f"{label.format(key)}: it is not text.")
        elif captions.FILEWORDS in value:
            problems.append(f"{label.format(key)}: {captions.NO_CAPTION}")
    if isinstance(texts["scheduler"], str) and texts["scheduler"] not in SCHEDULER.choices:
        there = ", ".join(SCHEDULER.choices)
        problems.append(f"{label.format('scheduler')}: {texts['scheduler'][:40]!r} is not one of {there}.")
    if problem := _eta_problem(wanted.get("eta")):
        problems.append(f"{label.format('eta')}: {problem}")
    if problems:
        raise UserError(problems)
    chosen, what = _weights(opened, wanted, label)
    edits = bool(what["weights"]) and opened.embedding(Path(what["weights"])).exists()
    if wanted.get("prompt") is None and not edits:
        raise UserError(f"{label.format('prompt')}: it is missing; say what to draw.")
    if wanted.get("eta") is not None and not edits:
        raise UserError(f"{label.format('eta')}: only a result of Imagic (imagic.enabled) is drawn with it.")
    if values["seed"] == RANDOM:
        values["seed"] = random.randrange(2**31 - values["count"])
    return chosen, {
        "prompt": texts["prompt"],
        "negative_prompt": texts["negative"],
        "scheduler": texts["scheduler"],
        "guidance_scale": values.pop("cfg"),
        **values,
        "eta": wanted.get("eta"),
        **what,
        "out": str(_out(opened, wanted.get("out"), label)),
    }


def _out(opened: Project, named: Any, label: str) -> Path:
    """The folder that pictures are put into. Raises UserError where they cannot."""
    folder = confinement.named(str(named), label.format("out")) if named else opened.folder / "generated"
    if reason := paths.unwritable(folder):
        raise UserError(f"{label.format('out')}: nothing can be written in {folder} ({reason}); name another folder.")
    return folder


def _weights(opened: Project, wanted: Mapping[str, Any], label: str) -> tuple[Settings, dict[str, Any]]:
    """What is drawn with: a file, the model before training (no file), or what a run had learned by a state."""
    if wanted.get("from_step") is not None:
        chosen, of_state = exporting.state(opened, wanted, label=label)
        return chosen, {**of_state, "weights": ""}
    exporting.check_no_run(wanted, label)
    file = runs.weights(opened, str(wanted.get("weights") or ""), base=bool(wanted.get("base")))
    return runs.settings_of(opened, file), {"weights": str(file or "")}


def _eta_problem(eta: Any) -> str:
    if eta is None or (isinstance(eta, (int, float)) and not isinstance(eta, bool) and 0 <= eta <= 2):
        return ""
    return f"it must be a number from 0, the picture, to 2, with 1 for the prompt (it is {eta!r})."


def _drawing_problem(key: str, value: Any) -> str:
    default, low, high = DRAWING[key]
    whole = isinstance(default, int)
    if value is None:
        return f"it is empty; give a {'whole ' if whole else ''}number."
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        return f"it must be a {'whole ' if whole else ''}number (it is {value!r})."
    if key in ("width", "height"):
        if value and (value % 8 or not low <= value <= high):
            return f"it must be a multiple of 8 from {low} to {high}, or 0 (it is {value})."
    elif not low <= value <= high:
        return f"it must be from {low} to {high} (it is {value})."
    return ""


def sheet(
    opened: Project, wanted: Mapping[str, Any], *, label: str = "{}", within: str = "sheet."
) -> tuple[Settings, dict[str, Any]]:
    """The settings and the job's fields for one picture of each result at each weight. `wanted["sheet"]` has `weights`,
    the files (empty for the base model) and states ({"run", "from_step"}), and `lora_weights`; what is no LoRA
    has no weight and is drawn once. `within` stands before the names of these two in sentences.

    Raises UserError with every value that will not do.
    """
    asked = wanted["sheet"]
    if not isinstance(asked, Mapping):
        raise UserError(f"{label.format('sheet')}: it must be a JSON object with weights and lora_weights.")
    lines, columns = asked.get("weights"), asked.get("lora_weights", [1.0])
    if not isinstance(lines, list) or not lines or not all(isinstance(one, (str, Mapping)) for one in lines):
        raise UserError(f"{label.format(f'{within}weights')}: name at least one result.")
    low, high = DRAWING["lora_weight"][1:]
    if columns == []:
        raise UserError(f"{called(f'{within}lora_weights', label)}: it is empty; give numbers, such as 0.6, 0.8, 1.")
    if not isinstance(columns, list) or not all(_is_number(one, low, high) for one in columns):
        raise UserError(f"{called(f'{within}lora_weights', label)}: they must be numbers from {low} to {high}.")
    if len(lines) * len(columns) > MOST_ON_A_SHEET:
        raise UserError(f"The sheet has more than {MOST_ON_A_SHEET} pictures; leave some out.")
    own = {key: value for key, value in wanted.items() if key not in ("weights", "base", "eta", "run", "from_step")}
    rows = [_row(opened, one, label) for one in lines]
    first = lines[0] if isinstance(lines[0], Mapping) else {"weights": lines[0]} if lines[0] else {"base": True}
    chosen, fields = drawing(opened, {**own, "count": 1, **first}, label=label)
    fields = {key: value for key, value in fields.items() if key not in ("run", "from_step")}
    return chosen, {**fields, "weights": "", "rows": rows, "columns": [float(one) for one in columns]}


def _row(opened: Project, asked: str | Mapping[str, Any], label: str) -> dict[str, Any]:
    if isinstance(asked, Mapping):
        if asked.get("from_step") is None:
            raise UserError(f"{called('from_step', label)}: it is missing; a state is one of a run's steps.")
        chosen, of_state = exporting.state(opened, asked, label=label)
        kind = chosen.result_kind
        name = f"run {of_state['run']}, step {of_state['from_step']}"
        return {"kind": kind, "weights": "", "label": name, **of_state}
    file = asked
    if not file:
        return {"kind": "base", "weights": "", "label": "before"}
    path = runs.weights(opened, file, base=False)
    kind = checkpoint.describe(checkpoint.read_header(Path(file))).kind
    return {"kind": kind, "weights": str(path), "label": Path(file).stem}


def _is_number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
