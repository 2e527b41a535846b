"""Which layers of a UNet a LoRA is put into, by each choice of lora.layers: patterns of the end of a layer's path, in
the original layout or in diffusers'."""

from __future__ import annotations

_ATTENTION = r"attn[12]\.(to_q|to_k|to_v|to_out\.0)"
# What kohya's LoRA covers: attention, feed-forward and the projections around each transformer.
_TRANSFORMER = rf"{_ATTENTION}|ff\.net\.(0\.proj|2)|\.proj_in|\.proj_out"
# And what LoCon adds: everything else inside the residual blocks and between them.
_CONVOLUTIONS = (
    r"in_layers\.2|out_layers\.3|emb_layers\.1|skip_connection|\.op|\d\.conv"  # original names
    r"|conv1|conv2|conv_shortcut|time_emb_proj|samplers\.0\.conv"  # diffusers' names
)
LORA_LAYERS = {
    "attention": _ATTENTION,
    "transformer": _TRANSFORMER,
    "convolutions": f"{_TRANSFORMER}|{_CONVOLUTIONS}",
}
