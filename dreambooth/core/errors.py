"""Errors that a person can cause, and mend."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(Exception):
    """One sentence for the person: what is wrong, with which setting or file, and what to do.

    `problems` holds several sentences when several things are wrong; all are reported at once.
    """

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))
