"""A model's weights under their own names (names.py), wherever they lie: an original file, a Diffusers folder,
the file's EMA weights, a VAE of another file. Nothing is read before it is asked for."""

from __future__ import annotations

import contextlib
import mmap
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dreambooth.core.errors import UserError
from dreambooth.core.models import checkpoint
from dreambooth.core.models.load_overrides import Origin
from dreambooth.core.models.model_file import Header, Tensor
from dreambooth.core.project import Project
from dreambooth.engine.checkpoints import names
from dreambooth.engine.checkpoints.names import Place
from dreambooth.engine.prompts.vocabulary import TOKENS

_TOKEN_EMBEDDING = "/embeddings.token_embedding.weight"

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass
class Source:
    """`tensors` says where each weight lies, by its own name; `places` where it lies in an original file."""

    header: Header
    about: checkpoint.About
    tensors: dict[str, Tensor]
    places: dict[str, Place]
    has_other_vae: bool = False
    files: Files = field(default_factory=lambda: Files())

    def read(self, name: str) -> torch.Tensor:
        """A weight as it is in the file, in its own precision. Shares the file's pages: never write into it."""
        return self.files.read(self.tensors[name])

    def copy(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """A weight in another precision. None of the file's pages is held for it."""
        return self.files.copy(self.tensors[name], dtype)


class Files:
    """Open model files, mapped into memory: once for weights that share a file's pages, and once for what is copied out
    of it, whose pages are let go of at once, as nobody can have changed them."""

    def __init__(self) -> None:
        self._mapped: dict[Path, torch.Tensor] = {}
        self._passing: dict[Path, tuple[mmap.mmap, torch.Tensor]] = {}
        self._known: dict[Path, os.stat_result] = {}

    def read(self, tensor: Tensor) -> torch.Tensor:
        self._open(tensor.file)
        return _values(tensor, self._mapped[tensor.file])

    def copy(self, tensor: Tensor, dtype: torch.dtype) -> torch.Tensor:
        self._open(tensor.file)
        mapped, content = self._passing[tensor.file]
        copied = _values(tensor, content).to(dtype, copy=True)
        if hasattr(mmap, "MADV_DONTNEED"):  # else they would count as ours until the system wants them
            mapped.madvise(mmap.MADV_DONTNEED)
        return copied

    def _open(self, file: Path) -> None:
        if file in self._known:
            return
        known = file.stat()
        storage = torch.UntypedStorage.from_file(str(file), shared=False, nbytes=known.st_size)
        self._mapped[file] = torch.tensor([], dtype=torch.uint8).set_(storage, 0, (known.st_size,))
        with open(file, "rb") as opened:
            # To be read only: of what could be written to, Windows sets memory for all of the file aside.
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # nor is it written to
            self._passing[file] = mapped, torch.frombuffer(mapped, dtype=torch.uint8)
        self._known[file] = known

    def are_where_they_were(self) -> bool:
        """Whether the files that are open are those that their names lead to now."""
        try:
            return all(os.path.samestat(known, path.stat()) for path, known in self._known.items())
        except OSError:
            return False

    def overwritten(self) -> Path | None:
        """A file that holds something else than when it was opened. One that is gone, or in whose place another was
        put, is still there for whoever has it open."""
        for path, known in self._known.items():
            with contextlib.suppress(OSError):
                now = path.stat()
                if os.path.samestat(known, now) and (known.st_size, known.st_mtime_ns) != (
                    now.st_size,
                    now.st_mtime_ns,
                ):
                    return path
        return None


def _values(tensor: Tensor, file: torch.Tensor) -> torch.Tensor:
    """A weight among the bytes of its file."""
    part, dtype = file[tensor.start : tensor.end], DTYPES[tensor.dtype]
    if tensor.start % dtype.itemsize:  # older files do not align their weights
        part = part.clone()
    values = part.view(dtype)
    return values.view(tensor.shape) if tensor.stride is None else values.as_strided(tensor.shape, tensor.stride)


def open_source(path: Path, origin: Origin | None = None) -> Source:
    """Vectors of tokens that someone added behind CLIP's are left out: prompts are read with CLIP's vocabulary, and a
    WebUI loads no text encoder with more.

    Raises UserError for a file that is damaged, or of another kind than it should be.
    """
    origin = origin or Origin()
    header = checkpoint.read_header(path)
    about = checkpoint.describe(header, origin)
    tensors = dict(header.tensors)
    places: dict[str, Place] = {}
    if header.configs:
        own = {names.own_name(name): tensor for name, tensor in tensors.items()}
    else:
        if origin.weights == "ema":
            tensors.update(_averaged(path, tensors))
        places = names.from_original(tensors)
        own = {name: _view(path, tensors[place.name], place) for name, place in places.items()}
    if origin.vae:
        own = {name: tensor for name, tensor in own.items() if not name.startswith("vae/")}
        own.update(_other_vae(Path(origin.vae)))
    own = {name: t.first_rows(TOKENS) if name.endswith(_TOKEN_EMBEDDING) else t for name, t in own.items()}
    return Source(header, about, own, places, has_other_vae=bool(origin.vae))


def open_model(project: Project, weights: Path | None = None) -> Source:
    """The checkpoint that a model was made from, or `weights`, a checkpoint that has been made of it."""
    if weights is not None and weights != project.source:
        return open_source(weights, project.reading)
    if problem := project.problem:
        raise UserError(problem)
    return open_source(project.source, project.origin)


def _averaged(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The UNet's tensors with their averages; a file spells those without dots."""
    averaged = {}
    for name in tensors:
        if name.startswith(checkpoint.UNET):
            spelled = checkpoint.EMA + name.removeprefix("model.").replace(".", "")
            if spelled not in tensors:
                raise UserError(f"{path}: it holds no EMA weight for {name}; create the model with --weights normal.")
            averaged[name] = tensors[spelled]
    return averaged


def _view(path: Path, tensor: Tensor, place: Place) -> Tensor:
    """The part of an original tensor that is one of ours, in our form."""
    try:
        if place.form == "third":
            return tensor.rows(place.third, 3)
        if place.form == "transposed":
            return tensor.turned()
        return tensor.flattened() if place.form == "convolution" else tensor
    except (ValueError, IndexError):
        raise UserError(f"{path}: {place.name} has an unusual shape, {tensor.shape}; this is no plain model.") from None


def _other_vae(path: Path) -> dict[str, Tensor]:
    tensors = checkpoint.read_vae(path)
    if any(name.startswith("encoder.down_blocks.") for name in tensors):
        return {f"vae/{names.canonical_key('vae', key)}": tensor for key, tensor in tensors.items()}
    return {name: _view(path, tensors[p.name], p) for name, p in names.vae_from_original(tensors).items()}
