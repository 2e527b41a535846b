"""A Diffusers folder: a folder a part, each with its configuration and its weights in one file or several."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreambooth.core.errors import UserError
from dreambooth.core.models.model_file import Header, Tensor, read_safetensors
from dreambooth.core.models.pickle_file import read_pickle

INDEX = "model_index.json"
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
VARIANTS = ("", ".fp16", ".bf16", ".fp32")


def read_folder(path: Path) -> Header:
    """The contents of all parts, as `part/key`. Raises UserError if it is no Diffusers folder, or lacks files."""
    if not (path / INDEX).exists():
        raise UserError(f"{path}: this folder holds no model in the Diffusers layout ({INDEX} is missing).")
    configs = {"index": _json(path / INDEX), "scheduler": _json(path / "scheduler" / "scheduler_config.json")}
    tensors: dict[str, Tensor] = {}
    for part in PARTS:
        if (path / part).is_dir():
            configs[part] = _json(path / part / "config.json")
            tensors.update({f"{part}/{key}": tensor for key, tensor in read_part(path / part).items()})
    return Header(path, tensors, {}, configs)


def read_part(folder: Path) -> dict[str, Tensor]:
    """The tensors of one part. Raises UserError if its files are missing."""
    for variant in VARIANTS:
        for stem in STEMS:
            whole = folder / f"{stem}{variant}.safetensors"
            if whole.exists():
                return read_safetensors(whole).tensors
            index = folder / f"{stem}.safetensors.index{variant}.json"
            if index.exists():
                return _read_shards(index, read_safetensors)
    for variant in VARIANTS:
        for stem in STEMS:
            if (folder / f"{stem}{variant}.bin").exists():
                return read_pickle(folder / f"{stem}{variant}.bin").tensors
            index = folder / f"{stem}.bin.index{variant}.json"
            if index.exists():
                return _read_shards(index, read_pickle)
    raise UserError(f"{folder}: there are no weights in this part of the model (a .safetensors file is expected).")


def _read_shards(index: Path, read: Callable[[Path], Header]) -> dict[str, Tensor]:
    files = _json(index).get("weight_map")
    if not isinstance(files, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in files.values()
    ):
        raise UserError(f"{index}: this file is damaged; copy or download the folder again.")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(files.values())):
        shard = index.with_name(name)
        if not shard.exists():
            raise UserError(f"{shard}: this part of the model is missing; copy or download the folder again.")
        tensors.update(read(shard).tensors)
    return tensors


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{path}: this file is damaged or cannot be read.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: this file is damaged; it should hold one JSON object.")
    return content
