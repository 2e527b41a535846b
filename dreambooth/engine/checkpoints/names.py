"""Names of tensors: Stability's original layout and diffusers' layout, one table for both directions.

A tensor's own name here is `part/key` in diffusers' layout, such as `unet/conv_in.weight`, without the level
`text_model.` that transformers' versions disagree on. Parts: unet, vae, text_encoder, text_encoder_2.

A table lists pairs of module prefixes (diffusers, original). A key is translated by its prefix and then, inside a
residual block, an attention or a text layer, by the names of the parts. The three layers of OpenCLIP's attention are
the thirds of one original tensor; some tensors lie turned or with two dimensions more: a `Place` says which.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Pairs = list[tuple[str, str]]
Parts = tuple[tuple[str, str], ...]

_UNET_RESNET: Parts = (
    ("norm1.", "in_layers.0."),
    ("conv1.", "in_layers.2."),
    ("time_emb_proj.", "emb_layers.1."),
    ("norm2.", "out_layers.0."),
    ("conv2.", "out_layers.3."),
    ("conv_shortcut.", "skip_connection."),
)
_VAE_PARTS: Parts = (
    ("conv_shortcut.", "nin_shortcut."),
    ("group_norm.", "norm."),
    ("to_q.", "q."),
    ("to_k.", "k."),
    ("to_v.", "v."),
    ("to_out.0.", "proj_out."),
)
_VAE_OLD_PARTS: Parts = (("query.", "to_q."), ("key.", "to_k."), ("value.", "to_v."), ("proj_attn.", "to_out.0."))
_OPEN_CLIP: Parts = (
    ("embeddings.token_embedding.weight", "token_embedding.weight"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("final_layer_norm.", "ln_final."),
    ("text_projection.weight", "text_projection"),
)
_OPEN_CLIP_LAYER: Parts = (
    ("layer_norm1.", "ln_1."),
    ("layer_norm2.", "ln_2."),
    ("mlp.fc1.", "mlp.c_fc."),
    ("mlp.fc2.", "mlp.c_proj."),
    ("self_attn.out_proj.", "attn.out_proj."),
)
_THIRDS = ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj.")
_IN_PROJ = "attn.in_proj_"

# (part, original prefix, spelling of its keys) of each family.
_PREFIXES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "sd1": (("text_encoder", "cond_stage_model.transformer.", "clip"),),
    "sd2": (("text_encoder", "cond_stage_model.model.", "open_clip"),),
    "sdxl": (
        ("text_encoder", "conditioner.embedders.0.transformer.", "clip"),
        ("text_encoder_2", "conditioner.embedders.1.model.", "open_clip"),
    ),
}
_UNET, _VAE = "model.diffusion_model.", "first_stage_model."

Form = Literal["plain", "convolution", "transposed", "third"]


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in an original file: under which name, and in which form.

    convolution: (out, in) lies as (out, in, 1, 1). transposed: (a, b) lies as (b, a).
    third: rows number `third` of three equal parts, in the order query, key, value.
    """

    name: str
    form: Form = "plain"
    third: int = 0


def to_original(names: Iterable[str], family: str) -> dict[str, Place]:
    """{name: its place in an original file of the family}, for all parts of a model at once."""
    names = list(names)
    places: dict[str, Place] = {}
    unet, vae = [list(_keys(names, part)) for part in ("unet", "vae")]
    unet_pairs, vae_pairs = _unet_pairs(_unet_shape(unet)), _vae_pairs(*_vae_shape(vae))
    for key in unet:
        places[f"unet/{key}"] = Place(_UNET + _translate(key, unet_pairs, _UNET_RESNET, "resnets."))
    for key in vae:
        original = _translate(key, vae_pairs, _VAE_PARTS)
        places[f"vae/{key}"] = Place(_VAE + original, _vae_form(original))
    for part, prefix, spelling in _PREFIXES[family]:
        for key in _keys(names, part):
            places[f"{part}/{key}"] = _text_place(key, prefix, spelling)
    return places


def from_original(names: Iterable[str]) -> dict[str, Place]:
    """{name: its place} of everything in an original file that belongs to a model; the rest is left out."""
    names = list(names)
    places: dict[str, Place] = {}
    unet = [name[len(_UNET) :] for name in names if name.startswith(_UNET)]
    vae = [name[len(_VAE) :] for name in names if name.startswith(_VAE)]
    unet_pairs, vae_pairs = _turned(_unet_pairs(_unet_shape(unet))), _turned(_vae_pairs(*_vae_shape(vae)))
    for key in unet:
        places[f"unet/{_translate(key, unet_pairs, _turned(_UNET_RESNET), 'resnets.')}"] = Place(_UNET + key)
    for key in vae:
        places[f"vae/{_translate(key, vae_pairs, _turned(_VAE_PARTS))}"] = Place(_VAE + key, _vae_form(key))
    for part, prefix, spelling in _PREFIXES[family_of(names)] if family_of(names) else ():
        for name in names:
            if name.startswith(prefix):
                for key, place in _text_keys(name, name[len(prefix) :], spelling):
                    places[f"{part}/{key}"] = place
    return places


def family_of(names: Iterable[str]) -> str:
    """The family whose text encoders an original file holds; empty if it holds none that we know."""
    for name in names:
        for family in ("sdxl", "sd2", "sd1"):
            if name.startswith(tuple(prefix for _, prefix, _ in _PREFIXES[family])):
                return family
    return ""


def vae_from_original(names: Iterable[str]) -> dict[str, Place]:
    """{vae/key: its place} of a VAE's own file, whose names have no prefix."""
    names = list(names)
    pairs = _turned(_vae_pairs(*_vae_shape(names)))
    return {f"vae/{_translate(key, pairs, _turned(_VAE_PARTS))}": Place(key, _vae_form(key)) for key in names}


def canonical_key(part: str, key: str) -> str:
    """The one spelling of a diffusers or transformers key, of whichever version."""
    if part.startswith("text_encoder"):
        return key.removeprefix("text_model.")
    if part == "vae" and ".attentions." in key:
        for old, new in _VAE_OLD_PARTS:
            key = key.replace(f".{old}", f".{new}")
    return key


def own_name(name: str) -> str:
    """The same of a tensor's name in a Diffusers folder, which has its part in front."""
    part, _, key = name.partition("/")
    return f"{part}/{canonical_key(part, key)}"


def _keys(names: Iterable[str], part: str) -> Iterator[str]:
    return (name[len(part) + 1 :] for name in names if name.startswith(f"{part}/"))


@dataclass(frozen=True)
class _UNetShape:
    levels: int
    layers: int  # residual blocks a level
    down_attention: frozenset[int]  # levels, counted as diffusers counts each side
    up_attention: frozenset[int]


def _unet_shape(keys: Iterable[str]) -> _UNetShape:
    """The blocks of a UNet, from its keys in either layout."""
    there = {".".join(key.split(".")[:4]) for key in keys}
    if any(key.startswith("down_blocks.") for key in there):
        levels = 1 + max((int(key.split(".")[1]) for key in there if key.startswith("down_blocks.")), default=0)
        layers = 1 + max(int(key.split(".")[3]) for key in there if key.startswith("down_blocks.0.resnets."))
        sides = [
            frozenset(level for level in range(levels) if f"{side}.{level}.attentions.0" in there)
            for side in ("down_blocks", "up_blocks")
        ]
        return _UNetShape(levels, layers, *sides)
    ends = sorted(int(key.split(".")[1]) for key in there if re.fullmatch(r"input_blocks\.\d+\.0\.op", key))
    if not ends:
        return _UNetShape(0, 0, frozenset(), frozenset())
    levels, layers = len(ends) + 1, ends[0] - 1
    down = frozenset(n for n in range(levels) if f"input_blocks.{1 + n * (layers + 1)}.1.norm" in there)
    up = frozenset(n for n in range(levels) if f"output_blocks.{n * (layers + 1)}.1.norm" in there)
    return _UNetShape(levels, layers, down, up)


def _unet_pairs(shape: _UNetShape) -> Pairs:
    pairs = [
        ("time_embedding.linear_1.", "time_embed.0."),
        ("time_embedding.linear_2.", "time_embed.2."),
        ("add_embedding.linear_1.", "label_emb.0.0."),
        ("add_embedding.linear_2.", "label_emb.0.2."),
        ("conv_in.", "input_blocks.0.0."),
        ("conv_norm_out.", "out.0."),
        ("conv_out.", "out.2."),
        ("mid_block.resnets.0.", "middle_block.0."),
        ("mid_block.attentions.0.", "middle_block.1."),
        ("mid_block.resnets.1.", "middle_block.2."),
    ]
    step = shape.layers + 1
    for level in range(shape.levels):
        pairs.append((f"down_blocks.{level}.downsamplers.0.conv.", f"input_blocks.{(level + 1) * step}.0.op."))
        for layer in range(shape.layers):
            number = 1 + level * step + layer
            pairs.append((f"down_blocks.{level}.resnets.{layer}.", f"input_blocks.{number}.0."))
            if level in shape.down_attention:
                pairs.append((f"down_blocks.{level}.attentions.{layer}.", f"input_blocks.{number}.1."))
        for layer in range(step):
            number = level * step + layer
            pairs.append((f"up_blocks.{level}.resnets.{layer}.", f"output_blocks.{number}.0."))
            if level in shape.up_attention:
                pairs.append((f"up_blocks.{level}.attentions.{layer}.", f"output_blocks.{number}.1."))
        place = 2 if level in shape.up_attention else 1
        pairs.append(
            (f"up_blocks.{level}.upsamplers.0.conv.", f"output_blocks.{level * step + step - 1}.{place}.conv.")
        )
    return pairs


def _vae_shape(keys: Iterable[str]) -> tuple[int, int]:
    """Levels, and residual blocks a level of the encoder, from the keys in either layout."""
    blocks = [re.match(r"encoder\.down(?:_blocks)?\.(\d+)\.(?:resnets|block)\.(\d+)\.", key) for key in keys]
    found = [tuple(map(int, match.groups())) for match in blocks if match]
    return 1 + max((level for level, _ in found), default=-1), 1 + max((layer for _, layer in found), default=-1)


def _vae_pairs(levels: int, layers: int) -> Pairs:
    pairs: Pairs = []
    for side in ("encoder", "decoder"):
        pairs += [
            (f"{side}.conv_norm_out.", f"{side}.norm_out."),
            (f"{side}.mid_block.resnets.0.", f"{side}.mid.block_1."),
            (f"{side}.mid_block.attentions.0.", f"{side}.mid.attn_1."),
            (f"{side}.mid_block.resnets.1.", f"{side}.mid.block_2."),
        ]
    for level in range(levels):
        pairs.append((f"encoder.down_blocks.{level}.downsamplers.0.conv.", f"encoder.down.{level}.downsample.conv."))
        for layer in range(layers):
            pairs.append((f"encoder.down_blocks.{level}.resnets.{layer}.", f"encoder.down.{level}.block.{layer}."))
        original = levels - 1 - level  # the original decoder counts from the outside in
        pairs.append((f"decoder.up_blocks.{level}.upsamplers.0.conv.", f"decoder.up.{original}.upsample.conv."))
        for layer in range(layers + 1):
            pairs.append((f"decoder.up_blocks.{level}.resnets.{layer}.", f"decoder.up.{original}.block.{layer}."))
    return pairs


def _vae_form(original: str) -> Form:
    """The VAE's attention is four linear layers in diffusers and four 1x1 convolutions in the original layout."""
    return "convolution" if re.search(r"\.attn_1\.(q|k|v|proj_out)\.weight$", original) else "plain"


def _text_place(key: str, prefix: str, spelling: str) -> Place:
    """A text encoder's key -> its place."""
    if spelling == "clip":
        return Place(f"{prefix}text_model.{key}")
    layer = re.match(r"encoder\.layers\.(\d+)\.(.+)", key)
    if not layer:
        original = _translate_part(key, _OPEN_CLIP)
        return Place(prefix + original, "transposed" if original == "text_projection" else "plain")
    block = f"{prefix}transformer.resblocks.{layer[1]}."
    for third, name in enumerate(_THIRDS):
        if layer[2].startswith(name):
            return Place(f"{block}{_IN_PROJ}{layer[2][len(name) :]}", "third", third)
    return Place(block + _translate_part(layer[2], _OPEN_CLIP_LAYER))


def _text_keys(name: str, rest: str, spelling: str) -> Iterator[tuple[str, Place]]:
    """A text encoder's tensor in an original file -> the keys that lie in it."""
    if spelling == "clip":  # some merges have lost the level text_model
        yield rest.removeprefix("text_model."), Place(name)
        return
    block = re.match(r"transformer\.resblocks\.(\d+)\.(.+)", rest)
    if not block:
        form: Form = "transposed" if rest == "text_projection" else "plain"
        yield _translate_part(rest, _turned(_OPEN_CLIP)), Place(name, form)
        return
    layer = f"encoder.layers.{block[1]}."
    if block[2].startswith(_IN_PROJ):
        for third, part in enumerate(_THIRDS):
            yield f"{layer}{part}{block[2][len(_IN_PROJ) :]}", Place(name, "third", third)
    else:
        yield layer + _translate_part(block[2], _turned(_OPEN_CLIP_LAYER)), Place(name)


def _translate(key: str, pairs: Pairs, parts: Parts | Pairs, where: str = "") -> str:
    """Replaces the prefix, and inside it the part; `where` is what diffusers' prefix must hold for parts to count."""
    for ours, theirs in pairs:
        if key.startswith(ours):
            rest = key[len(ours) :]
            return theirs + (_translate_part(rest, parts) if where in ours + theirs else rest)
    return key


def _translate_part(key: str, parts: Parts | Pairs) -> str:
    for ours, theirs in parts:
        if key.startswith(ours):
            return theirs + key[len(ours) :]
    return key


def _turned(pairs: Pairs | Parts) -> Pairs:
    return [(theirs, ours) for ours, theirs in pairs]
