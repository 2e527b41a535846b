"""What a model is made of, as far as memory and disk depend on it: told from its file's table of contents."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from dreambooth.core.models import unet_blocks
from dreambooth.core.models.checkpoint import EMA, UNET, VAE
from dreambooth.core.models.lora_layers import LORA_LAYERS
from dreambooth.core.models.model_file import Header, Tensor
from dreambooth.core.settings import Settings
from dreambooth.core.settings.method import UNET_LAYERS, Lora

_UNET_PREFIXES, _VAE_PREFIXES = (UNET, "unet/"), (VAE, "vae/")
_TEXT_PREFIXES = {
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0.", "text_encoder/"),
    "text_encoder_2": ("conditioner.embedders.1.", "text_encoder_2/"),
}
_TEXT_LAYERS = r"(q_proj|k_proj|v_proj|out_proj|fc1|fc2|c_fc|c_proj|in_proj_weight)(\.weight)?$"
_WORDS = "token_embedding.weight"  # in each text encoder, (tokens, width)
_TEXT = "text"  # the key of the text encoders' layers, by the encoder

Layer = tuple[int, int, int, int]  # rows, columns, pixels of the kernel, how many such
Layers = Mapping[str, list[Layer]]  # by the block of the UNet, or by the text encoder


@dataclass(frozen=True)
class Anatomy:
    """How many values each part has, each text encoder by itself, and a vector of a word in all text encoders together;
    the UNet's layers that can be trained alone, its transformer and residual blocks and the largest of these; what its
    layers put out for each latent pixel, in all and in each block that has a name; the layers that a LoRA is put into,
    of each of its choices of layers."""

    unet: int
    texts: Mapping[str, int]
    vae: int
    word: int
    outputs: float
    block_outputs: Mapping[str, float]
    alone: Mapping[str, int]
    blocks: int
    largest_block: int
    layers: Mapping[str, Layers]

    def read_anew(self, settings: Settings) -> int:
        """How many values the text encoders have that read prompts at each step."""
        return sum(many for part, many in self.texts.items() if settings.reads_anew(part))

    def read_share(self, settings: Settings) -> float:
        """How much of what the layers of all text encoders put out is put out at each step."""
        put_out = {part: sum(out * many for out, _, _, many in layers) for part, layers in self.layers[_TEXT].items()}
        read = sum(many for part, many in put_out.items() if settings.reads_anew(part))
        return read / max(1, sum(put_out.values()))

    def trained(self, settings: Settings) -> int:
        """How many values are trained."""
        unet, learning = settings.trains_unet, [part for part in settings.text_parts if part in self.texts]
        if settings.is_full:
            return self.alone.get(settings.tuning.unet_layers, self.unet) * unet + sum(
                self.texts[part] for part in learning
            )
        words = len(settings.words) * settings.embedding.vectors * self.word
        if settings.is_embedding:
            return words
        lora, trained = settings.lora, list[list[Layer]]()
        if unet:
            trained += [self.layers[lora.layers][block] for block in self.lora_blocks(lora)]
        trained += [self.layers[_TEXT][part] for part in learning]
        return words + sum(_lora_values(layer, lora) for some in trained for layer in some)

    def lora_blocks(self, lora: Lora) -> list[str]:
        """The blocks of the UNet that a LoRA with these settings has layers in, in the order of their turns."""
        return sorted(unet_blocks.chosen(lora.blocks, self.layers[lora.layers]), key=unet_blocks.place)

    def lora_rank(self, lora: Lora) -> float:
        """The mean rank of the UNet's layers that have a LoRA."""
        layers = [layer for block in self.lora_blocks(lora) for layer in self.layers[lora.layers][block]]
        count = sum(many for *_, many in layers)
        return sum(lora.size(pixels)[0] * many for _, _, pixels, many in layers) / count if count else lora.rank

    def kept_share(self, settings: Settings) -> float:
        """How much of what is kept for the backward pass of a LoRA in all blocks is kept for one in the chosen ones:
        the share of what the layers put out that comes from its first block on."""
        if not settings.is_lora or settings.text_learns or not (trained := self.lora_blocks(settings.lora)):
            return 1.0
        first_of_all = min(map(unet_blocks.place, self.layers[settings.lora.layers]))
        return self._put_out_from(unet_blocks.place(trained[0])) / self._put_out_from(first_of_all)

    def _put_out_from(self, first: unet_blocks.Place) -> float:
        before = (many for block, many in self.block_outputs.items() if unet_blocks.place(block) < first)
        return self.outputs - sum(before)


def blocks_problem(settings: Settings, header: Header) -> str:
    """Why a model has no LoRA in the blocks that are chosen, and which it could have; empty where it has."""
    lora = settings.lora
    if not settings.is_lora or not lora.blocks.strip() or not settings.tuning.train_unet:
        return ""
    there = sorted(of(header).layers[lora.layers], key=unet_blocks.place)
    missing = unet_blocks.missing(lora.blocks, there)
    if not missing or not there:
        return ""
    return (
        f"lora.blocks: {' and '.join(missing)} {'have' if len(missing) > 1 else 'has'} no layer that lora.layers "
        f"{lora.layers} gives a LoRA in this model; choose among {', '.join(there)}."
    )


@lru_cache(maxsize=4)
def of(header: Header) -> Anatomy:
    """The anatomy of a checkpoint or Diffusers folder; worked out once, as a run asks for it several times."""
    unet = _part(header, _UNET_PREFIXES)
    parts = {name: _part(header, prefixes) for name, prefixes in _TEXT_PREFIXES.items()}
    texts = {name: part for name, part in parts.items() if part}
    layers = {name: _lora_layers(unet, pattern) for name, pattern in LORA_LAYERS.items()}
    layers[_TEXT] = {
        part: _grouped([shape for name, t in text.items() for shape in _text_layers(name, t)])
        for part, text in texts.items()
    }
    vae = _part(header, _VAE_PREFIXES)
    alone = {
        name: sum(t.values for key, t in unet.items() if re.search(pattern, key))
        for name, pattern in UNET_LAYERS.items()
        if pattern
    }
    blocks = _blocks(unet)
    return Anatomy(
        _values(unet),
        {name: _values(text) for name, text in texts.items()},
        _values(vae),
        sum(
            t.shape[1]
            for text in texts.values()
            for name, t in text.items()
            if name.endswith(_WORDS) and len(t.shape) == 2
        ),
        outputs(header),
        _block_outputs(header),
        alone,
        sum(blocks),
        max(blocks, default=0),
        layers,
    )


def of_shapes(shapes: Mapping[str, Mapping[str, tuple[int, ...]]]) -> Anatomy:
    """The anatomy of a model that lies in no file: {part: {diffusers' name: shape}}."""
    tensors = {
        f"{part}/{name}": Tensor("F32", tuple(shape), Path(), 0, 0)
        for part, named in shapes.items()
        for name, shape in named.items()
    }
    return of(Header(Path(), tensors))


def as_json(anatomy: Anatomy) -> dict[str, Any]:
    return {
        "values": {"unet": anatomy.unet, "vae": anatomy.vae, "word": anatomy.word},
        "texts": anatomy.texts,
        "outputs": anatomy.outputs,
        "block_outputs": anatomy.block_outputs,
        "alone": anatomy.alone,
        "blocks": [anatomy.blocks, anatomy.largest_block],
        "layers": anatomy.layers,
    }


def from_json(kept: Mapping[str, Any]) -> Anatomy:
    values = kept["values"]
    blocks, largest = kept["blocks"]
    return Anatomy(
        values["unet"],
        kept["texts"],
        values["vae"],
        values["word"],
        kept["outputs"],
        kept["block_outputs"],
        kept["alone"],
        blocks,
        largest,
        kept["layers"],
    )


def outputs(header: Header) -> float:
    """How many values all layers of the UNet put out for each latent pixel."""
    return sum(_layer_outputs(header).values())


def _block_outputs(header: Header) -> dict[str, float]:
    """The same by block; the layers around the blocks are left out."""
    layers = _layer_outputs(header)
    found: dict[str, float] = {}
    for name, block in unet_blocks.by_name(layers).items():
        found[block] = found.get(block, 0.0) + layers[name]
    return found


def _layer_outputs(header: Header) -> dict[str, float]:
    unet = {name: t for name, t in _part(header, _UNET_PREFIXES).items() if _is_layer(name, t)}
    halved = _halvings(unet)
    return {name: t.shape[0] * 0.25 ** _level(name, *halved) for name, t in unet.items()}


def untrained(header: Header, settings: Settings) -> list[Tensor]:
    """The tensors that full fine-tuning leaves as they are in the file."""
    trained: tuple[str, ...] = _UNET_PREFIXES if settings.tuning.train_unet else ()
    for part in settings.text_parts:
        trained += _TEXT_PREFIXES[part]
    return [tensor for name, tensor in written(header).items() if not name.startswith(trained)]


def written(header: Header) -> dict[str, Tensor]:
    """The tensors that a fine-tuned checkpoint has, too: the averaged weights of its source are left out."""
    return {name: tensor for name, tensor in header.tensors.items() if not name.startswith(EMA)}


def _lora_layers(unet: dict[str, Tensor], pattern: str) -> dict[str, list[Layer]]:
    found: dict[str, list[tuple[int, ...]]] = {}
    for name, block in unet_blocks.by_name(unet).items():
        if re.search(rf"({pattern})\.weight$", name) and len(unet[name].shape) > 1:
            found.setdefault(block, []).append(unet[name].shape)
    return {block: _grouped(shapes) for block, shapes in found.items()}


def _values(part: dict[str, Tensor]) -> int:
    return sum(tensor.values for tensor in part.values())


def _blocks(unet: dict[str, Tensor]) -> list[int]:
    """The values of the large weights of each transformer block and each residual block."""
    counted: Counter[str] = Counter()
    for name, tensor in unet.items():
        found = re.match(r"(.*\.(?:transformer_blocks|resnets)\.\d+\.)", name) or re.match(
            r"(.*\.)(?:in_layers|out_layers|emb_layers|skip_connection)\.", name
        )
        if found and len(tensor.shape) > 1:
            counted[found[1]] += tensor.values
    return list(counted.values())


def _text_layers(name: str, tensor: Tensor) -> list[tuple[int, ...]]:
    """The shapes of the layers that a weight of a text encoder is: OpenCLIP keeps three of attention's as one."""
    if not re.search(_TEXT_LAYERS, name):
        return []
    return [(tensor.shape[0] // 3, *tensor.shape[1:])] * 3 if "in_proj_weight" in name else [tensor.shape]


def _grouped(shapes: list[tuple[int, ...]]) -> list[Layer]:
    counted = Counter((shape[0], shape[1], prod(shape[2:])) for shape in shapes if len(shape) > 1)
    return [(*shape, count) for shape, count in sorted(counted.items())]


def _lora_values(layer: Layer, lora: Lora) -> int:
    """How many values a LoRA of some kind has for layers of a shape."""
    out, columns, pixels, count = layer
    rank, _ = lora.size(pixels)
    plain = rank * (out + columns * pixels)
    if lora.kind == "oft":
        return count * out * oft_side(out, rank)
    if lora.kind == "lokr":
        (a, b), (c, d) = _split(out, lora.lokr_factor), _split(columns, lora.lokr_factor)
        second = b * d * pixels if rank >= max(b, d) / 2 else rank * (b + d * pixels)
        return count * (a * c + second)
    return count * {"lora": plain, "dora": plain + columns, "loha": 2 * plain}[lora.kind]


def oft_side(outputs: int, rank: int) -> int:
    """The side of an OFT's blocks: the largest that divides a layer's outputs and is at most the rank."""
    return max(side for side in range(1, min(rank, outputs) + 1) if outputs % side == 0)


def _split(side: int, factor: int) -> tuple[int, int]:
    """A side as the product that a LoKr splits it into."""
    if factor and side % factor == 0:
        return factor, side // factor
    below = [n for n in range(1, int(side**0.5) + 1) if side % n == 0 and (not factor or n <= factor)]
    return below[-1], side // below[-1]


def _is_layer(name: str, tensor: Tensor) -> bool:
    """Whether a weight works on every pixel: not on the words, the timestep or the size."""
    words_or_time = r"attn2\.to_[kv]|emb_layers|time_emb|time_embed|label_emb|add_embedding|norm"
    return name.endswith(".weight") and len(tensor.shape) > 1 and not re.search(words_or_time, name)


def _halvings(unet: dict[str, Tensor]) -> tuple[set[int], set[int], int]:
    """The blocks that halve and that double, by the original names; how many blocks go down, by diffusers' names."""
    down = {int(m[1]) for n in unet if (m := re.match(r"input_blocks\.(\d+)\.0\.op\.", n))}
    up = {int(m[1]) for n in unet if (m := re.match(r"output_blocks\.(\d+)\.\d\.conv\.", n))}
    return down, up, len({n.split(".")[1] for n in unet if n.startswith("down_blocks.")})


def _level(name: str, down: set[int], up: set[int], blocks: int) -> int:
    """How often the picture has been halved where a layer of the UNet puts out."""
    if found := re.match(r"input_blocks\.(\d+)\.", name):
        return sum(at <= int(found[1]) for at in down)
    if found := re.match(r"output_blocks\.(\d+)\.(\d\.conv\.)?", name):
        return len(down) - sum(at < int(found[1]) or (at == int(found[1]) and bool(found[2])) for at in up)
    if found := re.match(r"down_blocks\.(\d+)\.(downsamplers)?", name):
        return int(found[1]) + bool(found[2])
    if found := re.match(r"up_blocks\.(\d+)\.(upsamplers)?", name):
        return blocks - 1 - int(found[1]) - bool(found[2])
    return max(len(down), blocks - 1) if name.startswith(("middle_block.", "mid_block.")) else 0


def _part(header: Header, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """One part's tensors, their names without the part's prefix."""
    return {
        name[len(prefix) :]: tensor
        for prefix in prefixes
        for name, tensor in header.tensors.items()
        if name.startswith(prefix)
    }
