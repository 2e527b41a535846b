"""Encoded pictures kept on disk, so that a run on an unchanged set starts without the VAE.

An entry is named after everything that it depends on: the picture's bytes, how it is cut and varied, what of it is
hidden from an inpainting model, and the weights of the encoder. A changed picture or VAE is thereby another entry, and
the old one is removed in time.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dreambooth.core.files import atomic
from dreambooth.engine.data import decoding
from dreambooth.engine.data.pictures import Example
from dreambooth.engine.families.model import Model

VERSION = 3  # of what is kept; another one reads nothing of the old
KEPT_DAYS = 14  # without being used
MOST_BYTES = 4_000_000_000
_MOST_WAITING = 16  # entries that are to be written


class Store:
    """The entries in one folder, for one encoder. What cannot be written is left out: it is only encoded again."""

    def __init__(self, folder: Path, model: Model) -> None:
        self.folder = folder
        self.encoder = encoder_fingerprint(model)
        self.used: set[str] = set()
        self.problem = ""  # why entries could not be written
        self._beside: ThreadPoolExecutor | None = None
        self._waiting = deque["Future[None]"]()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self.problem = str(error)

    @contextlib.contextmanager
    def writing_beside(self) -> Iterator[None]:
        """Within it a thread writes: until an entry is on the disk may take as long as encoding a picture. After it all
        are there."""
        with ThreadPoolExecutor(1, "latents") as self._beside:
            try:
                yield
            finally:
                self._beside = None
                self._wait_for(0)

    def read(self, example: Example) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation of an example's latents (4, h, w), if they are there and whole."""
        entry = _read(self._path(example))
        return (entry["mean"], entry["std"]) if entry.keys() >= {"mean", "std"} else None

    def write(self, example: Example, mean: Tensor, std: Tensor) -> None:
        self._write(self._path(example), {"mean": mean, "std": std})

    def read_masked(self, example: Example, mask: np.ndarray) -> Tensor | None:
        """The latents of what a mask leaves of an example, (4, h, w), if they are there and whole."""
        return _read(self._path(example, _of_mask(mask))).get("masked")

    def write_masked(self, example: Example, mask: np.ndarray, latents: Tensor) -> None:
        self._write(self._path(example, _of_mask(mask)), {"masked": latents})

    def _write(self, path: Path, entry: dict[str, Tensor]) -> None:
        here = {name: tensor.cpu().contiguous() for name, tensor in entry.items()}
        if self._beside is None:
            self._save(path, here)
            return
        self._waiting.append(self._beside.submit(self._save, path, here))
        self._wait_for(_MOST_WAITING)

    def _wait_for(self, left: int) -> None:
        """Until no more than so many entries are to be written."""
        while len(self._waiting) > left:
            self._waiting.popleft().result()

    def _save(self, path: Path, entry: dict[str, Tensor]) -> None:
        try:
            with atomic.staged(path) as staged:
                save_file(entry, staged)
        except (OSError, SafetensorError) as error:
            self.problem = str(error)

    def prune(self) -> None:
        """Removes what nobody has used for some time, and beyond that the oldest of what is too much, as far as it can
        be removed; folders that others have put there stay."""
        if self.problem:
            return
        with contextlib.suppress(OSError):
            entries = [(path.stat().st_mtime, path.stat().st_size, path) for path in self.folder.iterdir()]
            total, oldest = sum(size for _, size, _ in entries), time.time() - KEPT_DAYS * 86400
            for changed, size, path in sorted(entries):
                is_old = changed < oldest or total > MOST_BYTES or path.suffix == ".tmp"
                if is_old and path.stem not in self.used and not path.is_dir():
                    with contextlib.suppress(OSError):  # it is in use
                        path.unlink(missing_ok=True)
                        total -= size

    def _path(self, example: Example, *more: str) -> Path:
        parts = [VERSION, self.encoder, _digest(example.picture.path), asdict(example.cut), *more]
        name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
        self.used.add(name)
        return self.folder / f"{name}.safetensors"


def _read(path: Path) -> dict[str, Tensor]:
    try:
        entry = load_file(path)
        os.utime(path)
        return entry
    except (OSError, SafetensorError):
        return {}


def _of_mask(mask: np.ndarray) -> str:
    return hashlib.sha256(np.packbits(mask > 0).tobytes()).hexdigest()


def encoder_fingerprint(model: Model) -> str:
    """Tells one encoder from another: its weights as they are loaded, and the scale of the latents."""
    digest = hashlib.blake2b(str(model.latent_scale).encode(), digest_size=16)
    parts: dict[str, nn.Module] = {"encoder": model.vae.encoder, "quant_conv": model.vae.quant_conv}
    for part, module in parts.items():
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{part}.{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


@functools.lru_cache(maxsize=64)
def _of_content(path: Path, changed: int, size: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest(path: Path) -> str:
    """Of a picture's bytes; a picture's variants follow each other, so it is read once for all of them, and for what is
    written of them soon after. Raises UserError for a file that cannot be read."""
    try:
        about = path.stat()
        return _of_content(path, about.st_mtime_ns, about.st_size)
    except OSError as error:
        raise decoding.unreadable(path, error) from None
