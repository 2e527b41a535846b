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
_CONTINUED = re.compile(r"[ \t]*[\\^`][ \t]*\n[ \t]*|\n[ \t]*(?=--\w)")  # a line goes on, or the next one has arguments
_COMMENT = re.compile(r"^[ \t]*(#|::|rem\b).*$", re.MULTILINE | re.IGNORECASE)
_SET = re.compile(
    r"^[ \t]*(?:export[ \t]+|set[ \t]+\"?|\$)?([A-Za-z_]\w*)[ \t]*=[ \t]*(.*)$", re.MULTILINE | re.IGNORECASE
)
_USED = re.compile(r"\$\{?(\w+)\}?|%(\w+)%")
_ARRAY = re.compile(r"\$\{\w+\[[@*]\]\}|[@$]\w*args\w*", re.IGNORECASE)  # arguments that the script has put together
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
    text = _CONTINUED.sub(" ", _COMMENT.sub("", text.replace("\r\n", "\n")))
    started = next((one for one in _STARTED.finditer(text) if one[1] in scripts), None)
    if started is None:
        return None
    rest = text[started.end() :].partition("\n")[0]
    arguments, unread = _arguments(_words(_with_variables(rest, _variables(text[: started.start()]))))
    return Command(started[1], arguments, unread)


def _variables(text: str) -> dict[str, str]:
    """What the lines before a command set, the last of each; what is computed there stays unknown."""
    found = {}
    for name, value in _SET.findall(text):
        value = value.strip()
        if value[:1] in ("'", '"') and value[:1] in value[1:]:
            value = value[1 : value.index(value[0], 1)]
        else:
            value = value.partition(" #")[0].strip().rstrip('"')
        found[name] = value
    return {name: value for name, value in found.items() if not re.search(r"[$%`(@]", value)}


def _with_variables(text: str, variables: Mapping[str, str]) -> str:
    return _USED.sub(lambda used: variables.get(used[1] or used[2], used[0]), text)


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
