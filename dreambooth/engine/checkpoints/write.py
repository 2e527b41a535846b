"""Writing model files one tensor at a time: peak memory is one tensor, not the model twice."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic
from dreambooth.core.models import checkpoint
from dreambooth.core.models.model_file import PICKLES
from dreambooth.engine.checkpoints import write_pickle
from dreambooth.engine.checkpoints.entry import Entry
from dreambooth.engine.checkpoints.source import DTYPES

PARTIAL = ".partial"  # in the name of a file that is being written, after the number of the process
_NOTHING = contextlib.nullcontext()
_SPELLED = {dtype: name for name, dtype in DTYPES.items()}


def write_tensors(target: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Plain tensors to a file, as they are."""
    write(target, {name: Entry.of(tensor) for name, tensor in tensors.items()}, metadata)


def write(
    target: Path,
    entries: dict[str, Entry],
    metadata: dict[str, str],
    within: write_pickle.Within | None = None,
    beside: contextlib.AbstractContextManager[None] = _NOTHING,
) -> None:
    """Writes a .safetensors, .ckpt or .pt file under a temporary name, reads its contents back and moves it into place.
    What is no .safetensors has no metadata; `within` says what its tensors lie in, where that is not a `state_dict`;
    within `beside` the file is moved.

    Raises UserError if it cannot be written, or if there is a file of this name: none is ever overwritten.
    """
    staged = target.with_name(f".{os.getpid()}.{target.stem}{PARTIAL}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(staged, "wb") as file:
            if target.suffix.lower() in PICKLES:
                write_pickle.write(file, entries, **({"within": within} if within else {}))
            else:
                _write_safetensors(file, entries, metadata)
            file.flush()
            os.fsync(file.fileno())
        if checkpoint.read_header(staged).tensors.keys() != entries.keys():
            raise UserError(f"{target}: what was written could not be read back; try again.")
        with beside:
            _move_to_free_name(staged, target)
        atomic.sync_folder(target.parent)
    except OSError as error:
        raise UserError(f"{target}: the file cannot be written ({error.strerror}).") from None
    finally:
        staged.unlink(missing_ok=True)


def free_name(
    folder: Path, stem: str, suffix: str = ".safetensors", is_taken: Callable[[str], bool] = lambda stem: False
) -> Path:
    """`stem` in `folder`, or with -2, -3, ... where that is taken there or elsewhere."""
    name, number = stem, 2
    while (folder / f"{name}{suffix}").exists() or is_taken(name):
        name, number = f"{stem}-{number}", number + 1
    return folder / f"{name}{suffix}"


def _write_safetensors(file: BinaryIO, entries: dict[str, Entry], metadata: dict[str, str]) -> None:
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, entry in entries.items():
        places = [offset, offset + entry.bytes]
        header[name] = {"dtype": _SPELLED[entry.dtype], "shape": entry.shape, "data_offsets": places}
        offset += entry.bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for entry in entries.values():
        file.write(entry.content())


def _move_to_free_name(staged: Path, target: Path) -> None:
    if target.exists():
        raise UserError(f"{target}: there is a file of this name already; it was not overwritten.")
    atomic.move(staged, target)
