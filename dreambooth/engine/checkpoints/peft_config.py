"""What peft's configuration says of the alphas of a LoRA file that does not hold them."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreambooth.core.errors import UserError
from dreambooth.core.models.model_file import Header


@dataclass(frozen=True)
class Alphas:
    """Those of a part of the model: of all layers, and of some by the ends of their paths; None where none is said."""

    of_all: float | None = None
    of_some: Mapping[str, float] = field(default_factory=dict)
    by_root: bool = False  # rsLoRA: alpha counts by the root of the rank (arXiv 2312.03732)

    def of(self, path: str, rank: int) -> float:
        """That of a layer, to be divided by the rank."""
        own = (alpha for end, alpha in self.of_some.items() if _is_meant(path, end))
        alpha = next(own, self.of_all)
        if alpha is None:
            return float(rank)
        return alpha * math.sqrt(rank) if self.by_root else alpha


def read(header: Header) -> dict[str, Alphas]:
    """By the part that keys begin with, or under no name for all; empty without a configuration. diffusers has it in
    the file's metadata, peft beside the file. Raises UserError for one that cannot be read whole."""
    parts: dict[str, dict[str, Any]] = {}
    said = header.metadata.get("lora_adapter_metadata", "")
    entries = _object(header.path, said) if said else {}
    for name, value in entries.items():
        part, _, key = name.partition(".")
        parts.setdefault(part, {})[key] = value
    beside = header.path.with_name("adapter_config.json")
    if not entries and header.path.stem == "adapter_model" and beside.is_file():
        try:
            parts[""] = _object(beside, beside.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise UserError(f"{beside}: the file cannot be read ({error.strerror}).") from None
        except UnicodeDecodeError:
            raise _damaged(beside) from None
    return {part: _alphas(header, config) for part, config in parts.items()}


def alpha(parts: Mapping[str, Alphas], key: str, rank: int) -> float:
    """That of the layer that a file spells so, to be divided by its rank."""
    part, _, path = key.partition(".")
    if part in parts:
        return parts[part].of(path, rank)
    return parts.get("", Alphas()).of(key.removeprefix("base_model.model."), rank)


def _alphas(header: Header, config: Mapping[str, Any]) -> Alphas:
    some = config.get("alpha_pattern") or {}
    if not isinstance(some, dict) or not all(
        re.fullmatch(r"\^?(\w|\\?\.)+\$?", end) and _is_number(alpha) for end, alpha in some.items()
    ):
        raise UserError(
            f"{header.path}: its configuration gives layers an alpha of their own (alpha_pattern) in a way that is not "
            "known here, and without it the file would do something else than it was made for; take another file."
        )
    of_all = config.get("lora_alpha")
    if of_all is not None and not _is_number(of_all):
        raise _damaged(header.path)
    return Alphas(
        None if of_all is None else float(of_all),
        {end.replace("\\", "").removesuffix("$"): float(alpha) for end, alpha in some.items()},
        config.get("use_rslora") is True,
    )


def _is_meant(path: str, end: str) -> bool:
    """peft looks for these as patterns behind a dot or at the beginning."""
    return path == end.removeprefix("^") or path.endswith(f".{end}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _object(path: Path, text: str) -> dict[str, Any]:
    """The configuration in a text of a file. Raises UserError if that is damaged."""
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(found := json.loads(text), dict):
            return found
    raise _damaged(path)


def _damaged(path: Path) -> UserError:
    return UserError(
        f"{path}: what it says of how strongly the LoRA's layers count is damaged; download or copy it again."
    )
