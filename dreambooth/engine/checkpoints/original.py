"""A model's weights as the tensors of a file in the original layout, which every WebUI loads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth.core.models import checkpoint
from dreambooth.engine.checkpoints import names
from dreambooth.engine.checkpoints.entry import Entry
from dreambooth.engine.checkpoints.names import Place
from dreambooth.engine.checkpoints.source import DTYPES, Source


def own_tensors(parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """{own name: tensor} of whole modules, such as {"unet": unet, "vae": vae, "text_encoder": encoder}."""
    return {
        f"{part}/{names.canonical_key(part, key)}": tensor
        for part, module in parts.items()
        for key, tensor in module.state_dict().items()
    }


def entries(own: Mapping[str, Entry], family: str) -> dict[str, Entry]:
    """{own name: entry} of a whole model -> {original name: entry}."""
    groups = _grouped(names.to_original(own, family))
    original = {name: _joined([(place, own[key]) for key, place in group]) for name, group in groups.items()}
    if family == "sd2":
        original.update(_unused_block(original))
    return original


def own_entries(source: Source, changed: Mapping[str, Entry], *, half: bool) -> dict[str, Entry]:
    """{own name: entry} of a model with the `changed` weights in place of the source's."""
    own = {name: changed.get(name) or copied(source, tensor) for name, tensor in source.tensors.items()}
    return {name: halved(entry) for name, entry in own.items()} if half else own


def trained_entries(source: Source, changed: Mapping[str, Entry], family: str, *, half: bool) -> dict[str, Entry]:
    """A file in the original layout: the source's tensors with the `changed` ones ({own name: entry}) in their place.

    All others are taken over bit for bit, except that `half` makes the model's 32-bit ones 16-bit. What belongs to no
    part of the model is never rounded: A1111 takes its sigmas from the noise schedule that SD 1 and 2 have in the file.
    The source's EMA weights are left out, as they belong to the untrained model. The marks of SDXL say what is true of
    the source, whatever told it.
    """
    original = _in_place(source, own_entries(source, changed, half=half), family)
    return _marked(original, source.about) if family == "sdxl" else original


def copied(source: Source, tensor: Any) -> Entry:
    """A tensor as it lies in the source's files."""
    return Entry(DTYPES[tensor.dtype], tensor.shape, lambda: source.files.read(tensor))


def _in_place(source: Source, own: Mapping[str, Entry], family: str) -> dict[str, Entry]:
    if not source.places:
        return entries(own, family)
    groups = _grouped({name: place for name, place in source.places.items() if name in own})
    original: dict[str, Entry] = {}
    for name, tensor in source.header.tensors.items():
        if name.startswith(checkpoint.EMA):
            continue
        if name in groups:
            original[name] = _joined([(place, own[key]) for key, place in groups[name]])
        elif not name.startswith(checkpoint.VAE) or not source.has_other_vae:
            original[name] = copied(source, tensor)
    if source.has_other_vae:
        vae = {name: entry for name, entry in own.items() if name.startswith("vae/")}
        original.update(entries(vae, family))
    return original


def _marked(original: Mapping[str, Entry], about: checkpoint.About) -> dict[str, Entry]:
    """With the empty tensors by which alone reForge, SD.Next and ComfyUI know an SDXL that predicts v, and Forge one of
    zero terminal SNR; without those that are not true of it."""
    true = {checkpoint.V_PREDICTION: about.prediction_type == "v_prediction", checkpoint.ZTSNR: about.zero_terminal_snr}
    kept = {name: entry for name, entry in original.items() if true.get(name, True)}
    return kept | {name: Entry.of(torch.zeros(0)) for name, holds in true.items() if holds and name not in kept}


def halved(entry: Entry) -> Entry:
    """A tensor as it is written in half precision."""
    return replace(entry, dtype=torch.float16) if entry.dtype in (torch.float32, torch.float64) else entry


def _grouped(places: Mapping[str, Place]) -> dict[str, list[tuple[str, Place]]]:
    groups: dict[str, list[tuple[str, Place]]] = {}
    for key, place in places.items():
        groups.setdefault(place.name, []).append((key, place))
    return {name: sorted(group, key=lambda item: item[1].third) for name, group in groups.items()}


def _joined(group: list[tuple[Place, Entry]]) -> Entry:
    """What lies under one original name, from the tensors of ours that lie there."""
    place, entry = group[0]
    if place.form == "third":
        parts = [one for _, one in group]
        shape = (sum(one.shape[0] for one in parts), *entry.shape[1:])
        return Entry(entry.dtype, shape, lambda: torch.cat([one.get().to("cpu", entry.dtype) for one in parts]))
    if place.form == "transposed":
        return Entry(entry.dtype, entry.shape[::-1], lambda: entry.get().T)
    if place.form == "convolution":
        return Entry(entry.dtype, (*entry.shape, 1, 1), lambda: entry.get()[:, :, None, None])
    return entry


def _unused_block(original: Mapping[str, Entry]) -> dict[str, Entry]:
    """SD 2 reads its text encoder's last block but one. Diffusers leaves the last out; files hold it, and readers
    count on it: a copy of the one before takes its place."""
    pattern = re.compile(r"(cond_stage_model\.model\.transformer\.resblocks\.)(\d+)(\..+)")
    blocks = {name: match for name in original if (match := pattern.fullmatch(name))}
    last = max((int(match[2]) for match in blocks.values()), default=-1)
    return {f"{m[1]}{last + 1}{m[3]}": original[name] for name, m in blocks.items() if int(m[2]) == last}
