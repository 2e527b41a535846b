"""Names that OneTrainer's settings had in older versions, as the newest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NAMES = {
    "save_after": "save_every",
    "save_after_unit": "save_every_unit",
    "lora_layers": "layer_filter",
    "lora_layer_preset": "layer_filter_preset",
    "lora_layers_regex": "layer_filter_regex",
    "train_unet": "unet.train",
    "train_unet_epochs": "unet.stop_training_after",
    "unet_learning_rate": "unet.learning_rate",
    "unet_weight_dtype": "unet.weight_dtype",
    "train_text_encoder": "text_encoder.train",
    "train_text_encoder_epochs": "text_encoder.stop_training_after",
    "text_encoder_learning_rate": "text_encoder.learning_rate",
    "text_encoder_weight_dtype": "text_encoder.weight_dtype",
    "train_text_encoder_2": "text_encoder_2.train",
    "train_text_encoder_2_epochs": "text_encoder_2.stop_training_after",
    "text_encoder_2_learning_rate": "text_encoder_2.learning_rate",
    "text_encoder_2_weight_dtype": "text_encoder_2.weight_dtype",
    "vae_model_name": "vae.model_name",
    "vae_weight_dtype": "vae.weight_dtype",
    "token_count": "embedding.token_count",
    "initial_embedding_text": "embedding.initial_embedding_text",
    "optimizer": "optimizer.optimizer",
}


def newest(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with dotted keys; a name of today stands before an older one."""
    found = {key: value for key, value in theirs.items() if key not in _NAMES}
    for old, new in _NAMES.items():
        if old in theirs:
            found.setdefault(new, theirs[old])
            if old.endswith("_epochs"):
                found.setdefault(f"{new}_unit", "EPOCH")
    for key in [key for key in found if key.startswith("optimizer_") and key != "optimizer_defaults"]:
        found.setdefault(f"optimizer.{key.removeprefix('optimizer_')}", found.pop(key))
    return found
