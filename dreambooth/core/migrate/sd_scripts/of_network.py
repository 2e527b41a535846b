"""What kohya's scripts train: a LoRA of some kind, the whole model, or a word; and which parts learn."""

from __future__ import annotations

from typing import Any, Literal

from dreambooth.core.migrate.disk import Disk
from dreambooth.core.migrate.reading import Reading
from dreambooth.core.migrate.report import number
from dreambooth.core.migrate.sd_scripts import of_data

Method = Literal["lora", "full", "embedding"]

_KINDS = {  # LyCORIS' names: ours, and what differs
    "": ("lora", ""),
    "lora": ("lora", ""),
    "locon": ("lora", ""),
    "loha": ("loha", ""),
    "lokr": ("lokr", ""),
    "diag-oft": ("oft", "OFT's blocks are of the side that lora.rank says"),
    "oft": ("oft", ""),
    "boft": ("oft", "the nearest that there is here"),
}
_LAYERS = {  # LyCORIS' presets
    "full": ("convolutions", ""),
    "full-lin": ("transformer", ""),
    "attn-mlp": ("transformer", ""),
    "attn-only": ("attention", ""),
    "unet-transformer-only": ("transformer", ""),
    "unet-convblock-only": ("convolutions", "the transformer blocks get one, too"),
}
_OF_A_LORA = ("network_module", "network_dim", "network_alpha", "unet_lr", "text_encoder_lr", "network_weights")
_OFT = "networks.oft"  # of the scripts themselves
_OFT_LAYERS = {"enable_conv": "convolutions", "enable_all_linear": "transformer"}
_OFT_BLOCKS = "a number of blocks there, and lora.rank is the side of them"
_OFT_LIMIT = "there it limits how far OFT turns, which nothing does here"
_ALPHA_OF_ZERO = "0 there is as much as the rank"
_WORDS = {"init_word": "embedding.initial_text", "num_vectors_per_token": "embedding.vectors"}


def take(read: Reading, disk: Disk, *, whole: bool) -> Method:
    method = _method(read)
    if method == "embedding":
        _word(read, disk)
    elif method == "lora":
        _kind(read)
        _size(read, disk, whole=whole)
        _parts(read)
    else:
        read.into.take("network_module", "general.method", "full", "there is none, so that the model itself is trained")
        _text_encoder(read, whole=whole)
    return method


def _method(read: Reading) -> Method:
    if any(read.is_given(key) for key in ("token_string", "init_word", "num_vectors_per_token")):
        return "embedding"
    if read.theirs.get("algo") == "full" or not any(read.is_given(key) for key in _OF_A_LORA):
        return "full"
    return "lora"


def _word(read: Reading, disk: Disk) -> None:
    why = "a word alone learns"
    read.take(next(key for key in ("token_string", *_WORDS) if read.is_given(key)), "general.method", "embedding", why)
    if read.is_given("token_string"):
        rows = {key.split(".")[1] for key in read.into.settings if key.startswith("concepts.")} or {"0"}
        for row in sorted(rows):
            read.take("token_string", f"concepts.{row}.instance_token", str(read.theirs["token_string"]))
    read.same({key: ours for key, ours in _WORDS.items() if read.is_given(key)})
    read.take_file(disk, "weights", "embedding.start_file")


def _kind(read: Reading) -> None:
    name = str(read.theirs.get("network_module") or "networks.lora")
    read.take("network_module", "general.method", "lora", "")
    algo = str(read.theirs.get("algo") or name.removeprefix("networks.").removeprefix("lycoris.kohya")).lower()
    kind, why = _KINDS.get(algo, ("lora", f"there is no such kind here as {algo}"))
    if read.is_given("dora_wd") and kind == "lora":
        kind, why = "dora", ""
        read.take("dora_wd", "lora.kind", kind, "")
    elif read.is_given("dora_wd"):
        read.leave("dora_wd", f"DoRA is a kind of its own here, and lora.kind is {kind}")
    read.take("algo" if read.is_given("algo") else "network_module", "lora.kind", kind, why)
    _layers(read, name)


def _layers(read: Reading, module: str) -> None:
    preset = str(read.theirs.get("preset") or ("full" if "lycoris" in module else ""))
    if module == _OFT:
        asked_for = [key for key in _OFT_LAYERS if read.is_given(key)]
        if asked_for:
            read.take(asked_for[0], "lora.layers", _OFT_LAYERS[asked_for[0]])
        else:
            read.into.take("network_module", "lora.layers", "attention", "networks.oft is on these")
        return
    if preset:
        layers, why = _LAYERS.get(preset, ("transformer", f"there is no such choice here as {preset}"))
        read.take("preset", "lora.layers", layers, why)
    elif read.number("conv_dim"):
        read.take("conv_dim", "lora.layers", "convolutions", "")
    else:
        read.into.take("conv_dim", "lora.layers", "transformer", "without it kohya's LoRA is on these")
    _convolutions(read, module)


def _convolutions(read: Reading, module: str) -> None:
    """Their rank and alpha, where they are others than the rest's."""
    for key, ours, of_all, unsaid in (
        ("conv_dim", "rank", "network_dim", 4),
        ("conv_alpha", "alpha", "network_alpha", 1),
    ):
        if read.number(key):
            own = read.number(key) != read.number(of_all, unsaid)
            read.take(key, f"lora.conv_{ours}" if own else f"lora.{ours}", read.number(key), "")
    if read.number("conv_dim") and _is_zero(read, "conv_alpha"):
        read.take("conv_alpha", "lora.conv_alpha", read.number("conv_dim"), _ALPHA_OF_ZERO)
    unsaid_alpha = read.number("conv_dim") and "conv_alpha" not in read.theirs and "lycoris" not in module
    if unsaid_alpha and read.number("network_alpha", 1) != 1:
        read.take("conv_alpha", "lora.conv_alpha", 1)


def _size(read: Reading, disk: Disk, *, whole: bool) -> None:
    is_oft = read.theirs.get("network_module") == _OFT
    for key, ours, otherwise in (("network_dim", "lora.rank", 4), ("network_alpha", "lora.alpha", 1)):
        if is_oft and key in read.theirs:
            read.leave(key, _OFT_BLOCKS if key == "network_dim" else _OFT_LIMIT)
        elif is_oft:
            continue
        elif read.number(key):
            read.take(key, ours, why="")
        elif whole and key == "network_alpha" and _is_zero(read, key):
            read.take(key, ours, read.number("network_dim", 4) or 4, _ALPHA_OF_ZERO)
        elif whole or key == "network_alpha":
            read.take(key, ours, otherwise)
    if read.is_given("network_dropout"):
        _dropout(read)
    if read.is_given("factor") and read.into.settings.get("lora.kind") == "lokr":
        read.take("factor", "lora.lokr_factor", max(0, int(read.number("factor"))))
    read.take_file(disk, "network_weights", "lora.start_file")
    if read.number("scale_weight_norms"):
        read.take("scale_weight_norms", "lora.max_norm", why="")
    ratios = [key for key in ("loraplus_unet_lr_ratio", "loraplus_lr_ratio") if read.number(key)]
    if ratios:
        read.take(ratios[0], "learning.lora_plus_ratio", why="")


def _dropout(read: Reading) -> None:
    kind = read.into.settings.get("lora.kind")
    if kind in ("lora", "dora"):
        read.take("network_dropout", "lora.dropout")
    else:
        read.leave("network_dropout", f"{kind} has no input to drop; lora and dora have lora.dropout")


def _parts(read: Reading) -> None:
    """Which parts of the model get a LoRA."""
    unet_only, text_only = "network_train_unet_only", "network_train_text_encoder_only"
    cached = next((key for key in ("cache_text_encoder_outputs", unet_only) if read.is_given(key)), "")
    if _is_zero(read, "text_encoder_lr"):
        read.take("text_encoder_lr", "tuning.text_encoder_ratio", 0.0, "with a rate of 0 it is not trained")
    elif cached:
        read.take(cached, "tuning.text_encoder_ratio", 0.0, "only the UNet is trained")
    else:
        why = "both parts are trained there unless it is told otherwise"
        read.take(text_only if read.is_given(text_only) else unet_only, "tuning.text_encoder_ratio", 1.0, why)
    if read.is_given(text_only) or _is_zero(read, "unet_lr"):
        key = text_only if read.is_given(text_only) else "unet_lr"
        read.take(key, "tuning.train_unet", False, "only the text encoder is trained")
    else:
        read.into.settings["tuning.train_unet"] = True


def _is_zero(read: Reading, key: str) -> bool:
    values = _listed(read.theirs.get(key))
    return bool(values) and all(not isinstance(value, bool) and number(value, 1.0) == 0 for value in values)


def _listed(value: Any) -> list[Any]:
    """What is said, be it one value or several."""
    return [one for one in (value if isinstance(value, list) else [value]) if one not in (None, "")]


def text_rates(read: Reading, method: Method) -> list[tuple[str, Any]]:
    """The rates that text encoders have of their own, each with its key: none, one for all, or those of SDXL's two."""
    if method == "lora":
        return [("text_encoder_lr", rate) for rate in _listed(read.theirs.get("text_encoder_lr"))[:2]]
    rates = {key: read.theirs[key] for key in rate_keys(read) if read.theirs.get(key) not in (None, "")}
    general = ("learning_rate", read.theirs.get("learning_rate"))
    pairs = [(key, rates[key]) if key in rates else general for key in rate_keys(read)]
    return [pair for pair in pairs if pair[1] not in (None, "")] if rates else []


def rate_keys(read: Reading) -> tuple[str, ...]:
    """Of full fine-tuning: SDXL's two have keys of their own."""
    one, two = ("learning_rate_te",), ("learning_rate_te1", "learning_rate_te2")
    return one if one[0] in read.theirs and not read.is_given("sdxl") else two


def _text_encoder(read: Reading, *, whole: bool) -> None:
    """Of full fine-tuning: train_db.py trains it, the others where they are told to."""
    stop = str(read.theirs.get("stop_text_encoder_training") or "")
    rates = [key for key in rate_keys(read) if key in read.theirs]
    if stop.endswith("%"):
        share = max(0.0, min(1.0, number(stop[:-1]) / 100))
        read.take("stop_text_encoder_training", "tuning.text_encoder_ratio", share)
    elif number(stop) < 0:
        read.take("stop_text_encoder_training", "tuning.text_encoder_ratio", 0.0)
    elif number(stop):
        steps = of_data.steps_here(read, number(stop))
        read.take("stop_text_encoder_training", "tuning.text_encoder_steps", steps)
    elif whole and _is_zero(read, "stop_text_encoder_training"):
        why = "it stops before the first step there"
        read.take("stop_text_encoder_training", "tuning.text_encoder_ratio", 0.0, why)
    elif "train_text_encoder" in read.theirs:
        share = 1.0 if read.is_given("train_text_encoder") else 0.0
        read.take("train_text_encoder", "tuning.text_encoder_ratio", share)
    elif rates and not any(read.number(key) for key in rates):
        read.take(rates[0], "tuning.text_encoder_ratio", 0.0, "with a rate of 0 it is not trained")
    elif whole or rates or "stop_text_encoder_training" in read.theirs:
        why = "train_db.py trains it; of fine_tune.py and sdxl_train.py without train_text_encoder set it to 0"
        read.into.take("stop_text_encoder_training", "tuning.text_encoder_ratio", 1.0, why)
