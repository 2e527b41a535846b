"""Taking out of texts what a person did not mean to show: passwords of all kinds, addresses, and who they are."""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dreambooth.core import schema
from dreambooth.core.schema import HIDDEN
from dreambooth.core.settings import Settings

_SECRETIVE = re.compile(r"token|secret|passw|api_?key|auth|credential|cookie|webhook", re.IGNORECASE)
# Characters of a secret that is looked for; shorter ones, and an environment's "false", would blot out half of a text.
_LEAST, _LEAST_IN_ENVIRONMENT = 4, 8

_ADDRESS = re.compile(r"\b([a-z][a-z0-9+.-]{1,20}://)(?:[^\s/@\"'<>]*@)?([^\s/?#\"'<>]*)[^\s\"'<>]*", re.IGNORECASE)
_KNOWN_TOKENS = re.compile(r"\b(?:hf_|sk-|gh[opsu]_|github_pat_|xox[abprs]-|eyJ)[\w.-]{8,}")
_BEARER = re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{6,}", re.IGNORECASE)
_NAMED = re.compile(
    r"""([\w.-]*(?:token|secret|passw(?:or)?d|passwd|api_?key|authorization|credential|cookie|webhook)[\w-]*["']?"""
    r"""\s*[=:]\s*)(?!\d{1,6}\b)("[^"\n]*"|'[^'\n]*'|[^\s,;&"']+)""",
    re.IGNORECASE,
)
_HOMES = re.compile(r"(?i)([a-z]:\\{1,2}Users\\{1,2}|/home/|/Users/|/media/|/run/user/)[^/\\\s\"':,;]+")


def is_secret(key: str) -> bool:
    """Whether a name, such as a setting's or an environment variable's, says that its value is nobody's business."""
    known = _SETTINGS.get(schema.general(key))
    return known if known is not None else bool(_SECRETIVE.search(key))


_SETTINGS = {leaf.key: leaf.spec.secret for leaf in schema.leaves(Settings)}  # a token here is a word of a prompt


class Cleaner:
    """Cleans texts, and whatever JSON holds, of what is known to be secret here and of what looks like it."""

    def __init__(self, secrets: Iterable[str] = (), variables: Mapping[str, str] = os.environ) -> None:
        known = {one.strip() for one in secrets if len(one.strip()) >= _LEAST}
        known |= {value for name, value in variables.items() if is_secret(name) and len(value) >= _LEAST_IN_ENVIRONMENT}
        self.secrets = sorted(known, key=len, reverse=True)
        self.home, self.user = _home(), _user()

    def text(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, HIDDEN)
        text = _ADDRESS.sub(rf"\1\2/{HIDDEN}", text)
        text = _KNOWN_TOKENS.sub(HIDDEN, text)
        text = _BEARER.sub(rf"\1 {HIDDEN}", text)
        text = _NAMED.sub(_without_value, text)
        for home in self.home:
            text = text.replace(home, "~")
        text = _HOMES.sub(r"\1(user)", text)
        if self.user:
            text = re.sub(rf"(?<=[/\\]){re.escape(self.user)}(?=[/\\]|$)", "(user)", text)
        return text

    def value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {
                self.text(str(key)): HIDDEN if isinstance(one, str) and one and is_secret(str(key)) else self.value(one)
                for key, one in value.items()
            }
        return [self.value(one) for one in value] if isinstance(value, (list, tuple)) else value


def _without_value(match: re.Match[str]) -> str:
    name = re.split(r"[\s\"'=:]", match[1], maxsplit=1)[0]
    return f"{match[1]}{HIDDEN}" if is_secret(name) else match[0]


def _home() -> list[str]:
    """The home folder as paths and as JSON write it; none where it is the root of the disk."""
    try:
        home = str(Path.home())
    except RuntimeError:
        return []
    return list(dict.fromkeys([home, home.replace("\\", "\\\\")])) if len(home) > 1 else []


def _user() -> str:
    try:
        name = getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""
    return name if len(name) > 2 and name != "root" else ""
