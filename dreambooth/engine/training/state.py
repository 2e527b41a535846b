"""Saving and loading training states, so that a crash at any moment leaves a complete one.

A state is a folder named after its step. It is written under a temporary name, read back from the disk, and renamed;
its manifest, with size and hash, is written last. Only then are older states removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic

VERSION = 2
_MANIFEST, _CONTENT, _STAGED, _REMOVED = "manifest.json", "state.pt", ".saving", ".removed"
_BLOCK = 1 << 20

Content = dict[str, Any]  # {"weights": {name: tensor}, "rest": whatever torch.save takes}
Kept = Callable[[list[int]], set[int]]  # the steps of all states, in order -> the steps of those to keep


@dataclass
class Loaded:
    """A complete state, and warnings about damaged ones that were skipped."""

    content: Content
    warnings: list[str] = field(default_factory=list)


class NotSaved(UserError):
    """A state could not be written; those before it are as they were."""


def save(folder: Path, step: int, content: Content, kept: Kept = lambda steps: set(steps[-1:])) -> Path:
    """Writes the state of a step, reads it back, and removes the states that `kept` does not keep. Returns its folder.

    Raises NotSaved if it cannot be written or read back.
    """
    staged, final = folder / _STAGED, folder / f"{step:09}"
    if final.exists() and not _damage(final):  # a pause where a state has just been saved
        return final
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        _check_room(folder, content)
        staged.mkdir()
        size, digest = _write(staged / _CONTENT, content)
        if (size, digest) != _read_back(staged / _CONTENT):
            raise OSError(None, "what was written could not be read back")
        manifest = {"version": VERSION, "step": step, "bytes": size, "sha256": digest}
        atomic.write_text(staged / _MANIFEST, json.dumps(manifest))
        atomic.sync_folder(staged)
        if final.exists():  # damaged: loading it was refused
            _remove(final)
        atomic.move(staged, final)
        atomic.sync_folder(folder)
    except OSError as error:
        shutil.rmtree(staged, ignore_errors=True)
        raise NotSaved(
            f"{final}: the state cannot be saved ({error.strerror}); what was saved before is kept."
        ) from None
    _prune(folder, step, kept)
    return final


def load_newest(folder: Path) -> Loaded | None:
    """The newest complete state; None if there is none. Raises UserError if there are states but all are damaged."""
    warnings: list[str] = []
    for state in reversed(_states(folder)):
        content, problem = _read(state)
        if content:
            return Loaded(content, warnings)
        warnings.append(f"{state}: {problem}; the state before it is taken.")
    if warnings:
        raise UserError(f"{folder}: every saved state is damaged; start a new run.")
    return None


def load(folder: Path, step: int) -> Content:
    """The content of the state of a step. Raises UserError if it is missing or damaged."""
    state = folder / f"{step:09}"
    content, problem = _read(state) if state.is_dir() else ({}, "it is not there any more")
    if problem:
        raise UserError(f"{state}: {problem}; take another state.")
    return content


def _read(state: Path) -> tuple[Content, str]:
    """The content of a state, or why it cannot be used."""
    if problem := _damage(state):
        return {}, problem
    try:
        content = torch.load(state / _CONTENT, map_location="cpu", weights_only=True)
        return {"weights": content["weights"], "rest": content["rest"]}, ""
    except (OSError, RuntimeError, pickle.UnpicklingError, KeyError, TypeError):
        return {}, "it cannot be read"


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested dictionaries and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from tensors(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors(one)


def content_bytes(content: Content) -> int:
    """The bytes of all tensors of a state."""
    return sum(tensor.nbytes for tensor in tensors(content))


def _states(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.name.isdecimal()) if folder.is_dir() else []


def _check_room(folder: Path, content: Content) -> None:
    needed, free = content_bytes(content), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(None, f"it takes {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB of disk are free")


class _HashingFile:
    """A file that is hashed while it is written. Its first error is kept, as torch's writer does not pass errors on."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self.size = file, hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data)
        if self.error is None:
            try:
                self.file.write(view)
                self.digest.update(view)
                self.size += view.nbytes
            except OSError as error:
                self.error = error
        return view.nbytes

    def flush(self) -> None:
        pass  # at the end


def _write(path: Path, content: Content) -> tuple[int, str]:
    """Writes a state's content. Returns its size in bytes and its SHA-256."""
    with open(path, "wb", buffering=0) as file:
        hashing = _HashingFile(file)
        torch.save(content, hashing)
        if hashing.error:
            raise hashing.error
        os.fsync(file.fileno())
    return hashing.size, hashing.digest.hexdigest()


def _read_back(path: Path) -> tuple[int, str]:
    """The size and SHA-256 of a file, read from the disk and not from the page cache, where the system allows it."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def _damage(state: Path) -> str:
    """What is wrong with a state; empty if it is complete."""
    try:
        manifest = json.loads((state / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["version"] != VERSION:
            return "it is of another version"
        if (state / _CONTENT).stat().st_size != manifest["bytes"]:
            return "it has been altered or cut short"
        if _read_back(state / _CONTENT)[1] != manifest["sha256"]:
            return "it has been altered or cut short"
    except (OSError, ValueError, KeyError, TypeError):
        return "it is incomplete"
    return ""


def _prune(folder: Path, step: int, kept: Kept) -> None:
    """Removes the states that are not to be kept, and those after this step, from before which the run was resumed."""
    states = {int(path.name): path for path in _states(folder)}
    kept_steps = kept([one for one in states if one <= step]) | {step}
    for one, path in states.items():
        if one not in kept_steps:
            _remove(path)


def _remove(state: Path) -> None:
    """Renames a state before its files are removed, so that no partial state is left; `_sweep` tries again later."""
    renamed = state.with_name(f"{_REMOVED}-{state.name}")
    try:
        shutil.rmtree(renamed, ignore_errors=True)
        state.rename(renamed)
    except OSError:
        return
    shutil.rmtree(renamed, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Removes what a killed process left unfinished."""
    for path in [*folder.glob(f"{_STAGED}*"), *folder.glob(f"{_REMOVED}-*")]:
        shutil.rmtree(path, ignore_errors=True)
