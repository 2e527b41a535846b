"""Key names of checkpoints: Stability's original layout and diffusers' layout, one table for both directions.

Each table lists pairs of module prefixes (diffusers, original). A key is translated by its longest prefix
and then, inside a residual block or the VAE's attention, by the names of the parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Pairs = list[tuple[str, str]]

_UNET_RESNET = (
    ("norm1.", "in_layers.0."),
    ("conv1.", "in_layers.2."),
    ("time_emb_proj.", "emb_layers.1."),
    ("norm2.", "out_layers.0."),
    ("conv2.", "out_layers.3."),
    ("conv_shortcut.", "skip_connection."),
)
_VAE_PARTS = (
    ("conv_shortcut.", "nin_shortcut."),
    ("group_norm.", "norm."),
    ("to_q.", "q."),
    ("to_k.", "k."),
    ("to_v.", "v."),
    ("to_out.0.", "proj_out."),
)

# The VAE's attention is four linear layers in diffusers and four 1x1 convolutions in the original layout.
VAE_CONVOLUTIONS = ("attn_1.q.weight", "attn_1.k.weight", "attn_1.v.weight", "attn_1.proj_out.weight")


def unet_keys(keys: Iterable[str], *, levels: int, layers: int) -> dict[str, str]:
    """{diffusers key: original key} of a UNet with `levels` resolutions and `layers` residual blocks in each."""
    keys = list(keys)
    attentive = {tuple(key.split(".")[:2]) for key in keys if ".attentions." in key}
    pairs = list(_unet_pairs(levels, layers, attentive))
    return {key: "model.diffusion_model." + _translate(key, pairs, ".resnets.", _UNET_RESNET) for key in keys}


def vae_keys(keys: Iterable[str], *, levels: int, layers: int) -> dict[str, str]:
    """{diffusers key: original key} of a VAE."""
    pairs = list(_vae_pairs(levels, layers))
    return {key: "first_stage_model." + _translate(key, pairs, "", _VAE_PARTS) for key in keys}


def clip_keys(keys: Iterable[str]) -> dict[str, str]:
    """{transformers key: original key} of SD 1's text encoder, in either of transformers' layouts."""
    return {key: "cond_stage_model.transformer.text_model." + key.removeprefix("text_model.") for key in keys}


def clip_alias(original: str) -> str:
    """The spelling of a text encoder's key in merges that lost a level of the name."""
    return original.replace("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer.")


def _unet_pairs(levels: int, layers: int, attentive: set[tuple[str, ...]]) -> Iterator[tuple[str, str]]:
    yield "time_embedding.linear_1.", "time_embed.0."
    yield "time_embedding.linear_2.", "time_embed.2."
    yield "conv_in.", "input_blocks.0.0."
    yield "conv_norm_out.", "out.0."
    yield "conv_out.", "out.2."
    for part, name in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        yield f"mid_block.{name}.", f"middle_block.{part}."
    for level in range(levels):
        for layer in range(layers):
            number = 1 + level * (layers + 1) + layer
            yield f"down_blocks.{level}.resnets.{layer}.", f"input_blocks.{number}.0."
            yield f"down_blocks.{level}.attentions.{layer}.", f"input_blocks.{number}.1."
        yield f"down_blocks.{level}.downsamplers.0.conv.", f"input_blocks.{(level + 1) * (layers + 1)}.0.op."
        for layer in range(layers + 1):
            number = level * (layers + 1) + layer
            yield f"up_blocks.{level}.resnets.{layer}.", f"output_blocks.{number}.0."
            yield f"up_blocks.{level}.attentions.{layer}.", f"output_blocks.{number}.1."
        place = 2 if ("up_blocks", str(level)) in attentive else 1
        yield f"up_blocks.{level}.upsamplers.0.conv.", f"output_blocks.{level * (layers + 1) + layers}.{place}.conv."


def _vae_pairs(levels: int, layers: int) -> Iterator[tuple[str, str]]:
    for side in ("encoder", "decoder"):
        yield f"{side}.conv_norm_out.", f"{side}.norm_out."
        yield f"{side}.mid_block.resnets.0.", f"{side}.mid.block_1."
        yield f"{side}.mid_block.attentions.0.", f"{side}.mid.attn_1."
        yield f"{side}.mid_block.resnets.1.", f"{side}.mid.block_2."
    for level in range(levels):
        yield f"encoder.down_blocks.{level}.downsamplers.0.conv.", f"encoder.down.{level}.downsample.conv."
        for layer in range(layers):
            yield f"encoder.down_blocks.{level}.resnets.{layer}.", f"encoder.down.{level}.block.{layer}."
        original = levels - 1 - level  # the original decoder counts from the outside in
        yield f"decoder.up_blocks.{level}.upsamplers.0.conv.", f"decoder.up.{original}.upsample.conv."
        for layer in range(layers + 1):
            yield f"decoder.up_blocks.{level}.resnets.{layer}.", f"decoder.up.{original}.block.{layer}."


def _translate(key: str, pairs: Pairs, where: str, parts: Iterable[tuple[str, str]]) -> str:
    for ours, theirs in pairs:
        if key.startswith(ours):
            rest = key[len(ours) :]
            if where in ours:
                for our_part, their_part in parts:
                    if rest.startswith(our_part):
                        rest = their_part + rest[len(our_part) :]
                        break
            return theirs + rest
    return key
