"""OneTrainer's LoRA and words that learn, and which layers of the UNet are trained."""

from __future__ import annotations

from dreambooth.core.migrate.disk import Disk
from dreambooth.core.migrate.reading import Reading

_KINDS = {"LORA": "lora", "LOHA": "loha", "OFT_2": "oft", "LOKR": "lokr"}
_LAYERS = {"full": "convolutions", "attn-mlp": "transformer", "attn-only": "attention"}
_TRAINED = {"full": "all", "attn-only": "attention"}
_RANKS = {"oft": "oft_block_size", "lokr": "lokr_dim"}
_UNSAID_RANK = {"lora_rank": 16, "oft_block_size": 32, "lokr_dim": 16}


def take(read: Reading, disk: Disk) -> None:
    method = read.into.settings.get("general.method")
    preset = str(read.theirs.get("layer_filter_preset") or "full")
    if method == "lora":
        _lora(read, disk)
        _layers(read, preset)
    elif method == "full" and preset in _TRAINED:
        read.take("layer_filter_preset", "tuning.unet_layers", _TRAINED[preset], "")
    if method == "embedding":
        _word(read, disk)


def _lora(read: Reading, disk: Disk) -> None:
    name = str(read.theirs.get("peft_type") or "LORA")
    kind = _KINDS.get(name, "lora")
    read.take("peft_type", "lora.kind", kind, "" if name in _KINDS else f"there is no such kind here as {name}")
    if kind == "lora" and read.is_given("lora_decompose"):
        kind = "dora"
        read.take("lora_decompose", "lora.kind", kind)
    rank = _RANKS.get(kind, "lora_rank")
    read.take(rank, "lora.rank", read.number(rank) or _UNSAID_RANK[rank], "" if read.number(rank) else None)
    if kind != "oft":
        read.take("lora_alpha", "lora.alpha", read.number("lora_alpha") or 1, "" if read.number("lora_alpha") else None)
    if kind == "lokr" and "lokr_decompose_factor" in read.theirs:
        read.take("lokr_decompose_factor", "lora.lokr_factor", max(0, int(read.number("lokr_decompose_factor"))))
    if read.is_given("dropout_probability") and kind in ("lora", "dora"):
        read.take("dropout_probability", "lora.dropout", why="")
    elif read.is_given("dropout_probability"):
        read.leave("dropout_probability", f"{kind} has no input to drop; lora and dora have lora.dropout")
    read.take_file(disk, "lora_model_name", "lora.start_file")


def _layers(read: Reading, preset: str) -> None:
    if preset in _LAYERS:
        read.take("layer_filter_preset", "lora.layers", _LAYERS[preset], "" if preset == "attn-mlp" else None)


def _word(read: Reading, disk: Disk) -> None:
    word = str(read.theirs.get("embedding.placeholder") or "<embedding>")
    rows = {key.split(".")[1] for key in read.into.settings if key.startswith("concepts.")} or {"0"}
    for row in sorted(rows):
        read.take("embedding.placeholder", f"concepts.{row}.instance_token", word)
    for key, ours in (("token_count", "vectors"), ("initial_embedding_text", "initial_text")):
        if read.is_given(f"embedding.{key}"):
            read.take(f"embedding.{key}", f"embedding.{ours}", why="")
    read.take_file(disk, "embedding.model_name", "embedding.start_file")
