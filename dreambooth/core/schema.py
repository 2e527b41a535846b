"""One declaration per setting: from a dataclass field come the default, the checks, the command-line
flag, and what reference.py makes of it: the API schema and the documentation.

Settings are nested dataclasses. A leaf's key is its dotted path (`lora.rank`, `concepts.0.class_prompt`),
the same in Python, JSON, the command line and the documentation.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args, get_origin

from dreambooth.core.errors import UserError
from dreambooth.core.files import paths
from dreambooth.core.values import plain, typed

T = TypeVar("T")

_ROW = re.compile(r"0|[1-9][0-9]{0,5}")
_DEEPEST = 10  # dots in a key


@dataclass(frozen=True)
class Spec:
    """What a setting says about itself besides its type and default."""

    label: str
    help: str
    min: float | None = None
    max: float | None = None
    advanced: bool = False
    path: bool = False  # a file or folder of this machine
    secret: bool = False  # shown to nobody and written into no output


@dataclass(frozen=True)
class Leaf:
    """One setting, found in a settings class."""

    key: str
    type: Any
    default: Any
    spec: Spec

    @property
    def choices(self) -> tuple[Any, ...]:
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    @property
    def kind(self) -> type:
        return type(self.choices[0]) if self.choices else self.type


def setting(
    default: Any,
    label: str,
    help: str,
    *,
    min: float | None = None,
    max: float | None = None,
    advanced: bool = False,
    path: bool = False,
    secret: bool = False,
) -> Any:
    """A setting: its default, the label people read and one line of plain meaning."""
    return field(default=default, metadata={"spec": Spec(label, help, min, max, advanced, path, secret)})


def group(cls: type) -> Any:
    """A named group of settings inside another."""
    return field(default_factory=cls)


def table(cls: type) -> Any:
    """A list of groups, such as the concepts; its keys carry the row number."""
    return field(default_factory=lambda: [cls()], metadata={"row": cls})


def leaves(cls: type, prefix: str = "", *, row: str = "N") -> Iterator[Leaf]:
    """All settings of a class in the order of their declaration; `row` stands for a table's row number."""
    hints = _hints(cls)
    for f in dataclasses.fields(cls):
        key = f"{prefix}{f.name}"
        if "spec" in f.metadata:
            yield Leaf(key, hints[f.name], f.default, f.metadata["spec"])
        elif "row" in f.metadata:
            yield from leaves(f.metadata["row"], f"{key}.{row}.", row=row)
        else:
            yield from leaves(hints[f.name], f"{key}.", row=row)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def to_flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Settings -> {dotted key: value}."""
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        if "spec" in f.metadata:
            flat[f"{prefix}{f.name}"] = value
        elif "row" in f.metadata:
            for number, item in enumerate(value):
                flat.update(to_flat(item, f"{prefix}{f.name}.{number}."))
        else:
            flat.update(to_flat(value, f"{prefix}{f.name}."))
    return flat


def from_flat(cls: type[T], flat: Mapping[str, Any]) -> T:
    """{dotted key: value} -> settings. Values may be text, as the command line gives them.

    Raises UserError with every problem at once: unknown keys, wrong types, values out of bounds.
    """
    problems: list[str] = []
    known = {leaf.key: leaf for leaf in leaves(cls)}
    given: dict[str, Any] = {}
    for key, raw in flat.items():
        leaf = known.get(general(key))
        if leaf is None or "N" in key.split("."):  # which stands for a row's number in the reference, and is none
            problems.append(_unknown(key, known))
            continue
        try:
            given[key] = _convert(raw, leaf)
        except ValueError as error:
            problems.append(f"{key}: {error}")
        except RecursionError:
            problems.append(f"{key}: it is nested too deeply; give one value.")
    settings: T = _build(cls, given, "", problems)
    if problems:
        raise UserError(problems)
    return settings


class Object(dict[str, Any]):
    """A JSON object that remembers its pairs, as one key may be there several times."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


def flatten(nested: Any, prefix: str = "") -> dict[str, Any]:
    """Nested JSON objects and lists -> dotted keys; keys that are dotted already stay as they are.

    Raises UserError for a key that is there twice, and for what is nested deeper than any setting.
    """
    if prefix.count(".") > _DEEPEST:
        raise UserError(f"{prefix[:-1]}: it is nested too deeply; no setting is.")
    if isinstance(nested, Mapping) and (nested or not prefix):
        parts: Any = nested.pairs if isinstance(nested, Object) else nested.items()
    elif isinstance(nested, list) and nested and all(isinstance(item, Mapping) for item in nested):
        parts = enumerate(nested)
    else:
        return {prefix[:-1]: nested}
    flat: dict[str, Any] = {}
    for key, value in parts:
        for inner, one in flatten(value, f"{prefix}{key}.").items():
            if inner in flat:
                raise UserError(f"{inner}: it is there twice; give it once.")
            flat[inner] = one
    return flat


def shareable(cls: type, flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys without the secrets and without the files and folders of this machine."""
    private = {leaf.key for leaf in leaves(cls) if leaf.spec.path or leaf.spec.secret}
    return {key: value for key, value in flat.items() if general(key) not in private}


def is_path(cls: type, key: str) -> bool:
    """Whether a setting, by its dotted key, is a file or a folder."""
    return any(leaf.key == general(key) for leaf in leaves(cls) if leaf.spec.path)


HIDDEN = "(hidden)"  # what is shown of a secret; given back, it stands for the secret that is there


def without_secrets(cls: type, flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys with the secrets hidden."""
    secret = {leaf.key for leaf in leaves(cls) if leaf.spec.secret}
    return {key: HIDDEN if value and general(key) in secret else value for key, value in flat.items()}


def with_secrets(cls: type, flat: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys in which a secret that was hidden is again what it is in `own`."""
    secret = {leaf.key for leaf in leaves(cls) if leaf.spec.secret}
    return {
        key: own.get(key, "") if value == HIDDEN and general(key) in secret else value for key, value in flat.items()
    }


def general(key: str) -> str:
    """A setting's key with N for row numbers, as `leaves` has it."""
    return ".".join("N" if is_row(part) else part for part in key.split("."))


def is_row(part: str) -> bool:
    """Whether a part of a key is a row's number, written as we write one."""
    return _ROW.fullmatch(part) is not None


def _unknown(key: str, known: Mapping[str, Leaf]) -> str:
    pattern = general(key)
    by_name = [k for k in known if k.split(".")[-1] == pattern.split(".")[-1]]
    close = by_name[:1] or difflib.get_close_matches(pattern, known, n=1, cutoff=0.6)
    hint = f" Did you mean {close[0].replace('.N.', '.0.')}?" if close else " See docs/settings.md for all settings."
    return f"{key}: there is no such setting.{hint}"


def _convert(raw: Any, leaf: Leaf) -> Any:
    value = typed(raw, leaf.kind)
    if leaf.spec.path:
        value = paths.meant(value)
        if reason := paths.problem(value):
            raise ValueError(reason)
    if leaf.choices and value not in leaf.choices:
        raise ValueError(f"{str(value)[:40]!r} is not one of {', '.join(map(str, leaf.choices))}.")
    if leaf.spec.min is not None and value < leaf.spec.min:
        raise ValueError(f"{plain(value)} is below the minimum, {plain(leaf.spec.min)}.")
    if leaf.spec.max is not None and value > leaf.spec.max:
        raise ValueError(f"{plain(value)} is above the maximum, {plain(leaf.spec.max)}.")
    return value


def _build(cls: type, given: Mapping[str, Any], prefix: str, problems: list[str]) -> Any:
    hints = _hints(cls)
    values: dict[str, Any] = {}
    for f in dataclasses.fields(cls):
        key = f"{prefix}{f.name}"
        if "spec" in f.metadata:
            if key in given:
                values[f.name] = given[key]
        elif "row" in f.metadata:
            values[f.name] = _build_rows(f.metadata["row"], given, key, problems)
        else:
            values[f.name] = _build(hints[f.name], given, f"{key}.", problems)
    return cls(**values)


def _build_rows(row: type, given: Mapping[str, Any], key: str, problems: list[str]) -> list[Any]:
    numbers = {int(k[len(key) + 1 :].split(".")[0]) for k in given if k.startswith(f"{key}.")}
    if numbers and numbers != set(range(len(numbers))):
        problems.append(f"{key}: the rows must be numbered from 0 without gaps (they are {sorted(numbers)}).")
        return []
    return [_build(row, given, f"{key}.{number}.", problems) for number in range(max(1, len(numbers)))]
