"""Saving and loading everything that resuming needs, so that a crash at any moment leaves a whole state.

A state is written under a temporary name; its manifest, with the size and hash of each file, is written last;
then the folder is renamed. Older states go only after the new one has been read back.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreambooth.core import atomic
from dreambooth.core.errors import UserError

_MANIFEST = "manifest.json"


def save(folder: Path, position: int, weights: dict[str, Tensor], rest: dict[str, Any]) -> Path:
    """Writes the state at `position` and removes older ones. `rest` is anything that torch saves."""
    folder.mkdir(parents=True, exist_ok=True)
    staged, final = folder / f".saving-{os.getpid()}", folder / f"{position:09}"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    try:
        save_file({name: w.detach().cpu().contiguous() for name, w in weights.items()}, staged / "weights.safetensors")
        torch.save(rest, staged / "rest.pt")
        files = {path.name: [path.stat().st_size, _hash(path)] for path in sorted(staged.iterdir())}
        atomic.write_text(staged / _MANIFEST, json.dumps({"position": position, "files": files}))
        for path in staged.iterdir():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
        if final.exists():  # a damaged one of the same position: loading it was refused
            shutil.rmtree(final)
        staged.rename(final)
        atomic.sync_folder(folder)
    except OSError as error:
        shutil.rmtree(staged, ignore_errors=True)
        raise UserError(f"{final}: the state cannot be saved ({error.strerror}); the one before it is kept.") from None
    for older in _states(folder):
        if older != final:
            shutil.rmtree(older)
    return final


def load_newest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[str]] | None:
    """The newest whole state as (weights, rest, warnings about damaged ones); None if there is none.

    Raises UserError if there are states but all are damaged.
    """
    warnings: list[str] = []
    for state in reversed(_states(folder)):
        problem = _damage(state)
        if not problem:
            rest = torch.load(state / "rest.pt", map_location="cpu", weights_only=True)
            return load_file(state / "weights.safetensors"), rest, warnings
        warnings.append(f"{state}: {problem}; the state before it is taken.")
    if warnings:
        raise UserError(f"{folder}: every saved state is damaged; start a new run.")
    return None


def _states(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.name.isdigit()) if folder.is_dir() else []


def _damage(state: Path) -> str:
    try:
        manifest = json.loads((state / _MANIFEST).read_text(encoding="utf-8"))
        for name, (size, digest) in manifest["files"].items():
            path = state / name
            if path.stat().st_size != size or _hash(path) != digest:
                return f"{name} has been altered or cut short"
    except (OSError, ValueError, KeyError, TypeError):
        return "it is incomplete"
    return ""


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
