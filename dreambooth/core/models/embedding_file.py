"""Textual-inversion embeddings, told from the names and shapes of a file's tensors.

Five layouts are about: `emb_params` (n, width), as kohya's and our own .safetensors have it; `*` (n, width) within
`string_to_param` of A1111's .pt; of SDXL `clip_l` and `clip_g`; and diffusers', one tensor (width,) or (n, width) that
is called as its token. Within a LoRA's file each word has any of the first three under `bundle_emb.WORD`, where A1111,
SD.Next and OneTrainer read it.
"""

from __future__ import annotations

from collections.abc import Mapping

from dreambooth.core.models.families import TEXT_WIDTHS
from dreambooth.core.models.model_file import Tensor

OF_ONE = ("emb_params", "*")
OF_SDXL = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
BUNDLED, _A1111 = "bundle_emb.", "string_to_param."  # before a word's tensors, and before A1111's `*`


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


def bundled(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The vectors of each word that a LoRA's file holds, as `parts` has them; none for what is no word's."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(BUNDLED):
            word, _, key = name.removeprefix(BUNDLED).partition(".")
            found.setdefault(word, {})[key.removeprefix(_A1111)] = tensor
    return {word: parts(own) for word, own in found.items()}


def bundled_name(word: str, key: str) -> str:
    """What a tensor of a word is called within a LoRA's file; `key` is what an embedding's own file calls it."""
    return f"{BUNDLED}{word}.{f'{_A1111}*' if key in OF_ONE else key}"


def family(found: Mapping[str, Tensor]) -> str:
    """The family that vectors, as `parts` has them, belong to."""
    widths = tuple(vectors.shape[-1] for vectors in found.values())
    return next((name for name, own in TEXT_WIDTHS.items() if own == widths), "unknown")


def _is_token(name: str, one: Tensor) -> bool:
    """Whether a file's only tensor is what diffusers writes: nothing but its width or its <token> tells that."""
    is_wide = bool(one.shape) and (one.shape[-1],) in TEXT_WIDTHS.values()
    return len(one.shape) in (1, 2) and (is_wide or (name.startswith("<") and name.endswith(">")))
