"""Which rows are refused before anything is loaded, and how they are mended: as the refusals themselves advise."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

from dreambooth.core.buckets import grid
from dreambooth.core.errors import Problem, UserError
from dreambooth.core.settings import Settings, parse
from dreambooth.engine import compatibility
from dreambooth.engine.checkpoints import lora_start
from dreambooth.engine.checkpoints.lora_header import Outline
from dreambooth.engine.data.pictures import imagic_problem
from tests.engine.pairs.values import BASE, FAMILY, ONE, SECOND, START, START_WITH_TEXT, Row, settings_of, table

SIZE = 64  # the very small models' own
PICTURES = {ONE: 1}  # in each folder; else:
MANY = 4
MOST_MENDS = 60
_SET = re.compile(r"\bset ([\w.]+) to (\S+?)(?= |[.,]$|[.,] |$)", re.IGNORECASE)
_TURN = re.compile(r"\b(?:turn|switch) ([\w.]+) (on|off)\b", re.IGNORECASE)

KEYS = table(on_card=True)
BESIDES = {"imagic.enabled": [("concepts.0.instance_data_dir", ONE)]}  # what the words say without the key


def problems(row: Row) -> list[Problem]:
    """Everything that the row is refused for, by its settings and by what is known before a model is loaded."""
    try:
        settings = parse(settings_of(row))
        grid(settings.pictures, settings.general.resolution or SIZE)
    except UserError as error:
        return error.errors
    return [Problem.of(said) for said in _of_the_engine(row, settings) if said]


def _of_the_engine(row: Row, settings: Settings) -> Iterator[str]:
    family, _, kind = row[FAMILY].partition("-")
    predicted = "v_prediction" if kind == "v" else "epsilon"
    about = {"family": family, "prediction_type": predicted, "zero_terminal_snr": row[FAMILY] == "sdxl-v"}
    yield from compatibility.problems(settings, about)
    yield imagic_problem(settings, PICTURES.get(row["concepts.0.instance_data_dir"], MANY) + row[SECOND])
    held_out, count = row["concepts.0.held_out"], PICTURES.get(row["concepts.0.instance_data_dir"], MANY)
    if held_out >= count:
        yield f"concepts.0.held_out: of {count} pictures none would be left to learn from; set it to 0."
    texts = ("text_encoder/", "text_encoder_2/") if family == "sdxl" else ("text_encoder/",)
    start = {START: {"unet/": "lora"}, START_WITH_TEXT: dict.fromkeys(("unet/", *texts), "loha")}
    parts: Any = start.get(row["lora.start_file"], {})
    if parts and settings.is_lora:
        layers = {part: Outline(kind) for part, kind in parts.items()}
        if reason := lora_start.objection(layers, settings):
            yield f"lora.start_file: {reason}"


def is_sound(row: Row) -> bool:
    return not problems(row)


def mended(row: Row, keeping: Collection[str] = ()) -> Row | None:
    """The row with what it is refused for put right, the values of `keeping` untouched; None where that cannot be."""
    row = dict(row)
    for _ in range(MOST_MENDS):
        found = problems(row)
        if not found:
            return row
        for key, value in mends(found[0], row):
            tried = {**row, key: value}
            if key not in keeping and value != row[key] and found[0] not in problems(tried):
                row = tried
                break
        else:
            return None
    return None


def mends(problem: Problem, row: Row) -> Iterator[tuple[str, Any]]:
    """What may help, the problem's own advice first."""
    yield from advice(problem)
    yield from BESIDES.get(problem.where, ())
    named = [key for key in row if key in problem.what or re.search(rf"\b{key.split('.')[-1]}\b", problem.what)]
    chosen = [key for key, value in row.items() if isinstance(value, str) and value and value in problem.what]
    for key in dict.fromkeys([problem.where, *named, *chosen]):
        if key in row:
            yield key, BASE.get(key, KEYS[key][0])
            yield from ((key, value) for value in KEYS[key][1:])


def advice(problem: Problem) -> Iterator[tuple[str, Any]]:
    """The settings that a problem says to set, with the values."""
    told = [*_SET.findall(problem.do), *((key, word == "on") for key, word in _TURN.findall(problem.do))]
    for name, value in told:
        key = problem.where if name == "it" else name if "." in name else f"{problem.where.rpartition('.')[0]}.{name}"
        if key in KEYS:
            yield key, _as(KEYS[key][0], value)


def _as(like: Any, value: Any) -> Any:
    """A word of a sentence as a value of the kind that a setting has."""
    if isinstance(like, bool):
        return value if isinstance(value, bool) else value == "true"
    try:
        return type(like)(value)
    except ValueError:
        return like
