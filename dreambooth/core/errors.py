"""Errors that a person can cause, and mend."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

# A setting's key, a flag or a file in front of what is said of it, as every sentence about one has it.
_PLACE = re.compile(r"(--[a-z][\w-]*|[a-z_]+(?:\.\w+)+|[A-Z]:[\\/][^\n]*?|/[^\n]*?): ")
RUN_SETUP = "Run setup (on the page: Set Up), then start it again."  # where the engine's packages may be damaged


@dataclass(frozen=True)
class Problem:
    """What is wrong, in the one form that events, the API, the command line and the page share."""

    what: str  # a sentence
    where: str = ""  # the setting or file
    do: str = ""  # what to do about it
    log: str = ""  # the log's last lines, where an engine broke

    @classmethod
    def of(cls, sentence: str) -> Problem:
        """A sentence of the house: `PLACE: what is wrong; what to do.`"""
        place = _PLACE.match(sentence)
        return cls(sentence, place[1] if place else "", _advice(sentence))

    @classmethod
    def read(cls, value: Any) -> Problem:
        """As `as_json` has it, and an event or an answer brought it. Raises ValueError for anything else."""
        if not isinstance(value, dict) or not isinstance(value.get("what"), str):
            raise ValueError("no problem")
        fields = {key: value[key] for key in ("where", "do", "log") if isinstance(value.get(key), str)}
        return cls(value["what"], **fields)

    @property
    def sentence(self) -> str:
        return self.what if self.do.rstrip(".").lower() in self.what.lower() else f"{self.what} {self.do}"

    @property
    def is_of_engine(self) -> bool:
        """Whether what may mend it is to set the engine up once more."""
        return self.do == RUN_SETUP

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class UserError(Exception):
    """One sentence for the person: what is wrong, with which setting or file, and what to do.

    `problems` holds several sentences when several things are wrong; all are reported at once. `errors` are the same,
    taken apart.
    """

    def __init__(self, problems: str | Problem | Iterable[str | Problem]) -> None:
        several = [problems] if isinstance(problems, (str, Problem)) else list(problems)
        self.errors = [one if isinstance(one, Problem) else Problem.of(one) for one in several]
        self.problems = [one.sentence for one in self.errors]
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.errors,)

    def and_then(self, more: str) -> Problem:
        """The first of them as a warning, with what becomes of the job or what to do besides."""
        first = self.errors[0]
        return Problem(str(self), first.where, more, first.log)

    def as_json(self) -> dict[str, Any]:
        return {"problems": self.problems, "errors": [one.as_json() for one in self.errors]}


def _advice(sentence: str) -> str:
    """What stands behind the last semicolon, outside of brackets."""
    whole, mark, advice = sentence.rpartition("; ")
    if not mark or whole.count("(") > whole.count(")"):
        return ""
    return f"{advice[:1].upper()}{advice[1:]}"
