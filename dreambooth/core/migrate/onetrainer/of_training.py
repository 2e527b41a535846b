"""How long OneTrainer trains what, with which rates and optimizer, and what is minimised."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

from dreambooth.core.migrate import rates
from dreambooth.core.migrate.disk import Disk
from dreambooth.core.migrate.onetrainer.controls import BY_KEY
from dreambooth.core.migrate.reading import Reading
from dreambooth.core.migrate.report import number

OPTIMIZERS = {
    "ADAMW": "adamw",
    "ADAMW_8BIT": "adamw_8bit",
    "LION": "lion",
    "LION_8BIT": "lion_8bit",
    "ADAFACTOR": "adafactor",
    "CAME": "came",
    "PRODIGY": "prodigy",
    "SCHEDULE_FREE_ADAMW": "adamw_schedule_free",
}
_FIND_RATES = ("DADAPT_", "PRODIGY_")
_PAGED = ("adamw_8bit", "lion_8bit")
SCHEDULES = {  # ours, and what differs
    "CONSTANT": ("constant", ""),
    "LINEAR": ("linear", ""),
    "COSINE": ("cosine", ""),
    "COSINE_WITH_HARD_RESTARTS": ("cosine_with_restarts", ""),
    "COSINE_WITH_RESTARTS": ("cosine_with_restarts", "it rose again slowly there, and jumps back here"),
    "REX": ("rex", ""),
    "ADAFACTOR": ("constant", "there Adafactor has a curve of its own"),
}
_PRECISIONS = {"FLOAT_16": "fp16", "BFLOAT_16": "bf16", "FLOAT_32": "no", "TFLOAT_32": "no"}
_SMALL = {"INT_8": "int8", "FLOAT_8": "int8", "INT_W8A8": "int8", "FLOAT_W8A8": "int8", "NFLOAT_4": "nf4"}
_ATTENTION = {"SDP": "sdpa", "FLASH": "flash"}
_WEIGHTINGS = {"CONSTANT": "none", "MIN_SNR_GAMMA": "min_snr", "DEBIASED_ESTIMATION": "debiased"}
_IsOff = Callable[[Reading], bool]
_UNSAID_RATE, _UNSAID_EPOCHS, _UNSAID_WARMUP, _UNSAID_STOP = 3e-6, 100, 200, 30


def take(read: Reading, disk: Disk) -> None:
    method = str(read.into.settings.get("general.method") or "full")
    if "epochs" in read.theirs:
        read.into.settings["intervals.max_train_steps"] = 0
    _optimizer(read, method)
    _rates(read, method)
    _schedule(read, disk)
    if method != "embedding":
        _parts(read)
    _machine(read, method)
    _losses(read)
    _noise(read)
    if str(read.theirs.get("model_type") or "STABLE_DIFFUSION_15").startswith("STABLE_DIFFUSION_15"):
        if "text_encoder_layer_skip" in read.theirs:
            skipped = int(read.number("text_encoder_layer_skip"))
            read.take("text_encoder_layer_skip", "tuning.clip_skip", skipped + 1)
    elif read.is_given("text_encoder_layer_skip"):
        read.leave("text_encoder_layer_skip", BY_KEY["text_encoder_2_layer_skip"].why)


def updates(read: Reading, batches: float) -> int:
    """So many batches, which are steps there, as updates of the weights, which are steps here."""
    return ceil(batches / max(1.0, read.number("gradient_accumulation_steps", 1)))


def without_meaning(read: Reading) -> set[str]:
    """The keys that have a meaning only with something that is off."""
    unused = tuple(key for is_off, keys in _MEANT_ONLY_WITH if is_off(read) for key in keys)
    prefixes = tuple(key.removesuffix("*") for key in unused if key.endswith("*"))
    return {key for key in read.theirs if key.startswith(prefixes)} | {key for key in unused if not key.endswith("*")}


def _left_at(key: str, default: str) -> _IsOff:
    return lambda read: str(read.theirs.get(key) or default) == default


def _zero(key: str) -> _IsOff:
    return lambda read: not read.number(key)


def _not_given(key: str) -> _IsOff:
    return lambda read: not read.is_given(key)


def _is_not(ours: str, value: str) -> _IsOff:
    return lambda read: read.into.settings.get(ours) != value


def _never_restarts(read: Reading) -> bool:
    return "RESTARTS" not in str(read.theirs.get("learning_rate_scheduler"))


# When something is off, and the keys that have a meaning only with it; an asterisk ends what keys begin with.
_MEANT_ONLY_WITH: tuple[tuple[_IsOff, tuple[str, ...]], ...] = (
    (_left_at("ema", "OFF"), ("ema_decay", "ema_update_step_interval", "non_ema_sampling")),
    (_zero("huber_strength"), ("huber_delta",)),
    (_left_at("loss_weight_fn", "CONSTANT"), ("loss_weight_strength",)),
    (_left_at("timestep_distribution", "UNIFORM"), ("noising_weight", "noising_bias")),
    (
        _not_given("masked_training"),
        ("unmasked_probability", "normalize_masked_area_loss", "masked_prior_preservation_weight"),
    ),
    (_never_restarts, ("learning_rate_cycles",)),
    (_is_not("general.method", "lora"), ("lora_*", "oft_*", "lokr_*", "peft_type")),
    (_is_not("lora.kind", "oft"), ("oft_*",)),
    (_is_not("lora.kind", "lokr"), ("lokr_*",)),
    (_is_not("lora.kind", "dora"), ("lora_decompose_norm_epsilon", "lora_decompose_output_axis")),
    (_is_not("general.method", "embedding"), ("embedding.*", "preserve_embedding_norm")),
    (_not_given("validation"), ("validate_after", "validate_after_unit")),
    (_left_at("learning_rate_scaler", "NONE"), ("learning_rate_scaler",)),
    (_left_at("loss_scaler", "NONE"), ("loss_scaler",)),
)


def _optimizer(read: Reading, method: str) -> None:
    key = "optimizer.optimizer"
    if read.is_given(key):
        name = str(read.theirs[key])
        rates.take_optimizer(read, key, name, OPTIMIZERS, finds_rate=name.startswith(_FIND_RATES))
        ours = read.into.settings["optimizer.name"]
        if read.is_given("optimizer.is_paged") and ours in _PAGED:
            read.take("optimizer.is_paged", "optimizer.name", f"paged_{ours}")
    for part, ours in (("beta1", "beta1"), ("beta2", "beta2"), ("eps", "epsilon"), ("d_coef", "d_coef")):
        if read.is_given(f"optimizer.{part}"):
            why = "" if part != "eps" else None
            rates.take_part_of_optimizer(read, f"optimizer.{part}", f"optimizer.{ours}", None, why)
    for key, both in (("optimizer.weight_decay", rates.WEIGHT_DECAY), ("clip_grad_norm", rates.GRADIENT_NORM)):
        for ours in both:
            if read.theirs.get(key) is not None:
                read.take(key, ours)
    if read.is_given("optimizer.fused_back_pass") and method == "full":
        read.take("optimizer.fused_back_pass", "memory.step_in_backward", True)


def _rates(read: Reading, method: str) -> None:
    if read.is_given("embedding_learning_rate"):
        rate = read.theirs["embedding_learning_rate"]
        rates.take_rate(read, "embedding_learning_rate", "learning.embedding_learning_rate", rate, "")
    elif method == "embedding":
        _rate(read, "learning.embedding_learning_rate")
    if method == "embedding":
        return
    prefix = "lora_" if method == "lora" else ""
    key = "unet.learning_rate"
    if read.theirs.get(key) is not None:
        rates.take_rate(read, key, f"learning.{prefix}learning_rate", read.theirs[key], "")
    else:
        _rate(read, f"learning.{prefix}learning_rate")
    _text_rate(read, f"learning.{prefix}text_encoder_learning_rate")
    if read.is_given("learning_rate") and "learning_rate" not in read.into.reported_keys():
        read.leave("learning_rate", "both parts have a rate of their own")


def _text_rate(read: Reading, ours: str) -> None:
    """Of the text encoders that learn."""
    given = [(f"{part}.learning_rate", read.theirs.get(f"{part}.learning_rate")) for part in _learning(read)]
    general = ("learning_rate", read.theirs.get("learning_rate", _UNSAID_RATE))
    found = [pair if pair[1] is not None else general for pair in given]
    if not any(pair[1] is not None for pair in given):
        _rate(read, ours)
    elif len(found) == 2 and any(number(rate) for _, rate in found):
        rates.take_two_rates(read, ours, *found)
    else:
        rates.take_rate(read, found[0][0], ours, found[0][1], "")


def _rate(read: Reading, ours: str) -> None:
    if read.theirs.get("learning_rate") is not None:
        rates.take_rate(read, "learning_rate", ours, read.theirs["learning_rate"], "")
    else:
        rates.take_rate(read, "learning_rate", ours, _UNSAID_RATE)


def _schedule(read: Reading, disk: Disk) -> None:
    if read.is_given("learning_rate_scheduler"):
        rates.take_schedule(read, "learning_rate_scheduler", SCHEDULES)
    if read.into.settings.get("learning.scheduler") == "cosine_with_restarts":
        cycles = max(1, round(read.number("learning_rate_cycles", 1)))
        read.take("learning_rate_cycles", "learning.cycles", cycles)
    if read.theirs.get("learning_rate_min_factor") is not None:
        read.take("learning_rate_min_factor", "learning.minimum", why="")
    key = "learning_rate_warmup_steps"
    steps = read.number(key, _UNSAID_WARMUP)
    if 0 <= steps <= 1:
        read.take(key, "learning.warmup", min(0.9, steps), "" if steps <= 0.9 else "0.9 at most")
    else:
        rates.warmup(read, key, steps, _steps(read, disk))


def _steps(read: Reading, disk: Disk) -> float:
    """How many batches the run has, as there; 0 where that is not known."""
    folders = {str(value) for key, value in read.into.settings.items() if key.endswith(".instance_data_dir")}
    seen = rates.seen_in_an_epoch(read.into, {folder: disk.look(folder).pictures for folder in folders})
    return ceil(seen / max(1.0, read.number("batch_size", 1))) * read.number("epochs", _UNSAID_EPOCHS)


def _parts(read: Reading) -> None:
    """Which parts learn, and until when; two text encoders learn for as long as each other here."""
    if "unet.train" in read.theirs:
        read.take("unet.train", "tuning.train_unet", why="")
    learns = _learning(read)
    if not learns:
        for part in _text_encoders(read):
            read.take(f"{part}.train", "tuning.text_encoder_ratio", 0.0, "")
        return
    for part in _text_encoders(read):
        if part not in learns:
            read.take(f"{part}.train", "tuning.text_encoders", "second" if part == "text_encoder" else "first", "")
    _until(read, learns[0])


def _text_encoders(read: Reading) -> tuple[str, ...]:
    is_sdxl = str(read.theirs.get("model_type") or "").startswith("STABLE_DIFFUSION_XL")
    return ("text_encoder", "text_encoder_2") if is_sdxl else ("text_encoder",)


def _learning(read: Reading) -> list[str]:
    """The text encoders that are trained there."""
    return [part for part in _text_encoders(read) if read.theirs.get(f"{part}.train") is not False]


def _until(read: Reading, part: str) -> None:
    key = f"{part}.stop_training_after"
    unit = str(read.theirs.get(f"{key}_unit") or ("EPOCH" if key not in read.theirs else "NEVER"))
    after = read.number(key, _UNSAID_STOP)
    epochs = max(1.0, read.number("epochs", _UNSAID_EPOCHS))
    told = key if key in read.theirs else f"{part}.train"
    if unit == "EPOCH":
        share = round(min(1.0, max(0.0, after / epochs)), 4)
        read.take(told, "tuning.text_encoder_ratio", share, f"until epoch {after:g} of {epochs:g}")
    elif unit == "STEP":
        steps = updates(read, after)
        read.take(told, "tuning.text_encoder_steps", steps, "updates of the weights, and not batches")
    else:
        why = "for the whole run" if unit == "NEVER" else f"for the whole run: {unit} is no measure here"
        read.take(f"{part}.train", "tuning.text_encoder_ratio", 1.0, why)
    if f"{key}_unit" in read.theirs:
        read.leave(f"{key}_unit", "it says what the number counts")


def _machine(read: Reading, method: str) -> None:
    if str(read.theirs.get("ema") or ""):
        name = str(read.theirs["ema"])
        read.take("ema", "tuning.use_ema", name != "OFF", "" if name in ("OFF", "GPU") else "on the GPU here")
    if read.is_given("train_dtype"):
        name = str(read.theirs["train_dtype"])
        if name in _PRECISIONS:
            read.take("train_dtype", "tuning.mixed_precision", _PRECISIONS[name], None if "32" in name else "")
        else:
            read.leave("train_dtype", f"there is no such precision here as {name}; tuning.mixed_precision has others")
    key = "gradient_checkpointing" if "gradient_checkpointing" in read.theirs else "unet.gradient_checkpointing"
    if key in read.theirs:
        is_on = read.theirs[key] not in (False, "OFF", None)
        why = "streamed weights are memory.unet_weights" if read.theirs[key] == "CPU_OFFLOADED" else ""
        read.take(key, "batching.gradient_checkpointing", is_on, why)
    else:
        read.take(key, "batching.gradient_checkpointing", True, "on there unless it is said")
    attention = _ATTENTION.get(str(read.theirs.get("attention_mechanism")))
    if attention:
        read.take("attention_mechanism", "memory.attention", attention, "")
    small = _SMALL.get(str(read.theirs.get("unet.weight_dtype")))
    can_be_small = read.into.settings.get("batching.gradient_checkpointing") and (
        method == "embedding" or (method == "lora" and read.into.settings.get("lora.kind") == "lora")
    )
    if small and can_be_small:
        read.take("unet.weight_dtype", "memory.unet_weights", small)
    if read.is_given("text_encoder.dropout_probability"):
        read.take("text_encoder.dropout_probability", "captions.dropout")


def _losses(read: Reading) -> None:
    strengths = {
        key: read.number(key, 1.0 if key == "mse_strength" else 0.0) for key in ("mse_strength", "huber_strength")
    }
    if strengths["huber_strength"] and not strengths["mse_strength"]:
        read.take("huber_strength", "objective.loss", "huber", "the pseudo-Huber loss here")
        read.take("huber_delta", "objective.huber_delta", read.number("huber_delta", 1.0))
        read.take("huber_delta", "objective.huber_schedule", "constant")
    elif strengths["mse_strength"] and "mse_strength" in read.theirs:
        read.take(
            "mse_strength", "objective.loss", "mse", "" if strengths["mse_strength"] == 1 else "it counts as 1 here"
        )
    name = str(read.theirs.get("loss_weight_fn") or "")
    if name in _WEIGHTINGS:
        read.take("loss_weight_fn", "objective.weighting", _WEIGHTINGS[name], "")
        if name == "MIN_SNR_GAMMA":
            read.take("loss_weight_strength", "objective.min_snr_gamma", read.number("loss_weight_strength", 5.0), "")
    elif name:
        read.leave("loss_weight_fn", f"objective.weighting: there is no {name} here")
    if read.number("min_snr_gamma"):
        read.take("min_snr_gamma", "objective.min_snr_gamma")
        read.take("min_snr_gamma", "objective.weighting", "min_snr")


def _noise(read: Reading) -> None:
    if read.number("offset_noise_weight"):
        read.take("offset_noise_weight", "objective.offset_noise", why="")
    if read.number("perturbation_noise_weight"):
        read.take("perturbation_noise_weight", "objective.input_perturbation")
    if read.number("min_noising_strength"):
        read.take("min_noising_strength", "objective.timestep_min", int(1000 * read.number("min_noising_strength")))
    if "max_noising_strength" in read.theirs:
        last = int(1000 * read.number("max_noising_strength", 1.0)) - 1
        read.take("max_noising_strength", "objective.timestep_max", last)
    name = str(read.theirs.get("timestep_distribution") or "")
    if name in ("UNIFORM", "LOGIT_NORMAL"):
        read.take("timestep_distribution", "objective.timesteps", name.lower(), "")
    elif name:
        read.leave("timestep_distribution", f"objective.timesteps: there is no {name} here")
    if name == "LOGIT_NORMAL":
        read.take("noising_bias", "objective.logit_mean", number(read.theirs.get("noising_bias")))
        read.take("noising_weight", "objective.logit_std", 1 + number(read.theirs.get("noising_weight")))
