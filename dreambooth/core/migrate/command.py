"""A command that starts a training script, as guides print it, or in a .sh, .bat or .ps1 file.

Variables that the file sets plainly are put in their places; a shell is not run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dreambooth.core.migrate.report import Migration

_STARTED = re.compile(r"(?<![\w-])(\w+)\.py(?=[\"'\s]|$)[\"']?")
_CONTINUES = ("\\", "^", "`")  # at the end of a line: of sh, of a .bat, of PowerShell
_COMMENT = re.compile(r"(#|::|rem\b)", re.IGNORECASE)
_SET = re.compile(r"(?:export\s+|set\s+\"?|\$)?([A-Za-z_]\w*)\s*=\s*(.*)", re.IGNORECASE)
_USED = re.compile(r"\$\{?(\w+)\}?|%(\w+)%")
_ARRAY = re.compile(r"\$\{\w+\[[@*]\]\}|[@$]\w*args\w*", re.IGNORECASE)  # arguments that the script has put together
_COMPUTED = re.compile(r"[$%`(@]")  # in what a variable is set to
_MOST_CHARACTERS = 100_000  # of a command
_ENDS = frozenset(("&&", "||", "|", "&", ";", ">", ">>", "2>&1"))


@dataclass(frozen=True)
class Command:
    """The script's name, the arguments by theirs, and those that cannot be known without running the file."""

    script: str
    arguments: dict[str, Any]
    unread: list[str]

    def report_unread(self, into: Migration) -> None:
        for words in self.unread:
            into.leave(words, None, "only running the file would tell what it stands for")


def read(text: str, scripts: Container[str]) -> Command | None:
    """The first command of a text that starts one of these scripts; None where it holds none.

    Raises ValueError for quotes that are never closed.
    """
    variables: dict[str, str] = {}
    for line in _lines(text):
        if started := next((one for one in _STARTED.finditer(line) if one[1] in scripts), None):
            rest = line[started.end() :]
            if len(rest) > _MOST_CHARACTERS:
                raise ValueError("it is longer than any command")
            arguments, unread = _arguments(_words(_with_variables(rest, variables)))
            return Command(started[1], arguments, unread)
        if is_set := _SET.fullmatch(line):
            variables[is_set[1]] = _unquoted(is_set[2])
    return None


def _lines(text: str) -> Iterator[str]:
    """The lines without comments; one that goes on, or before one that begins with an argument, with what follows."""
    parts, goes_on = list[str](), False
    for line in map(str.strip, text.splitlines()):
        if _COMMENT.match(line):
            continue
        if parts and not goes_on and not line.startswith("--"):
            yield " ".join(parts)
            parts = []
        goes_on = line.endswith(_CONTINUES)
        parts.append(line[:-1].rstrip() if goes_on else line)
    yield " ".join(parts)


def _unquoted(value: str) -> str:
    """What a variable is set to; what would be computed stays as it is written."""
    value = value.strip()
    if value[:1] in ("'", '"') and value[0] in value[1:]:
        return value[1 : value.index(value[0], 1)]
    return value.partition(" #")[0].strip().rstrip('"')


def _with_variables(text: str, variables: Mapping[str, str]) -> str:
    def value(used: re.Match[str]) -> str:
        known = variables.get(used[1] or used[2], used[0])
        return used[0] if _COMPUTED.search(known) else known

    return _USED.sub(value, text)


def _words(text: str) -> Iterator[str]:
    words = shlex.shlex(text, posix=True)
    words.whitespace_split, words.commenters, words.escape = True, "", ""  # a backslash parts the folders of Windows
    for word in words:
        if word in _ENDS:
            return
        yield word.rstrip(";")


def _arguments(words: Iterator[str]) -> tuple[dict[str, Any], list[str]]:
    """{name: value, several of them, or True without any}, and what is not known."""
    values, unread, name = dict[str, list[str]](), list[str](), ""
    for word in words:
        if word.startswith("--"):
            name, sign, value = word[2:].partition("=")
            name = name.replace("-", "_")
            values[name] = [value] if sign else []
        elif _ARRAY.fullmatch(word):
            unread.append(word)
        elif name:
            values[name].append(word)
    for name, several in list(values.items()):
        if any(_USED.search(value) for value in several):
            unread.append(f"--{name} {' '.join(several)}")
            del values[name]
    return {name: _value(several) for name, several in values.items()}, unread


def _value(several: list[str]) -> Any:
    if not several:
        return True
    return several[0] if len(several) == 1 else several
