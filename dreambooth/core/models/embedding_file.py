"""Textual-inversion embeddings, told from the names and shapes of a file's tensors.

Four layouts are about: `emb_params` (n, width), as kohya's and our own .safetensors have it; `*` (n, width) within
`string_to_param` of A1111's .pt; of SDXL `clip_l` and `clip_g`; and diffusers', one tensor (width,) or (n, width) that
is called as its token.
"""

from __future__ import annotations

from collections.abc import Mapping

from dreambooth.core.models.model_file import Tensor

OF_ONE = ("emb_params", "*")
OF_SDXL = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
_WIDTHS = {768: "sd1", 1024: "sd2"}


def parts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The vectors by the text encoder that reads them, (n, width) or (width,); none where a file is no embedding."""
    if OF_SDXL.keys() <= tensors.keys():
        found = {part: tensors[name] for name, part in OF_SDXL.items()}
    elif known := [tensors[name] for name in OF_ONE if name in tensors]:
        found = {"text_encoder": known[0]}
    else:
        tokens = [one for name, one in tensors.items() if len(tensors) == 1 and _is_token(name, one)]
        found = {"text_encoder": tokens[0]} if tokens else {}
    return found if all(len(one.shape) in (1, 2) and one.values for one in found.values()) else {}


def family(found: Mapping[str, Tensor]) -> str:
    """The family that vectors, as `parts` has them, belong to."""
    widths = [one.shape[-1] for one in found.values()]
    return "sdxl" if widths == [768, 1280] else _WIDTHS.get(widths[0], "unknown") if len(widths) == 1 else "unknown"


def _is_token(name: str, one: Tensor) -> bool:
    """Whether a file's only tensor is what diffusers writes: nothing but its width or its <token> tells that."""
    is_wide = bool(one.shape) and one.shape[-1] in _WIDTHS
    return len(one.shape) in (1, 2) and (is_wide or (name.startswith("<") and name.endswith(">")))
