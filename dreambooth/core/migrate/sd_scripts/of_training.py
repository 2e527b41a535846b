"""How long kohya's scripts train, with which rates and optimizer, and what is minimised."""

from __future__ import annotations

from math import ceil

from dreambooth.core.migrate import rates
from dreambooth.core.migrate.disk import Disk
from dreambooth.core.migrate.reading import Reading
from dreambooth.core.migrate.report import number
from dreambooth.core.migrate.sd_scripts import of_data, of_network
from dreambooth.core.migrate.sd_scripts.of_network import Method

OPTIMIZERS = {  # by the name in small letters, without the package
    "adamw": "adamw",
    "adamw8bit": "adamw_8bit",
    "pagedadamw8bit": "paged_adamw_8bit",
    "lion": "lion",
    "lion8bit": "lion_8bit",
    "pagedlion8bit": "paged_lion_8bit",
    "adafactor": "adafactor",
    "came": "came",
    "prodigy": "prodigy",
    "adamwschedulefree": "adamw_schedule_free",
}
SCHEDULES = {  # ours, and what differs
    "constant": ("constant", ""),
    "constant_with_warmup": ("constant", ""),
    "linear": ("linear", ""),
    "cosine": ("cosine", ""),
    "cosine_with_restarts": ("cosine_with_restarts", ""),
    "polynomial": ("polynomial", ""),
    "cosine_with_min_lr": ("cosine", ""),
    "adafactor": ("constant", "there Adafactor has a curve of its own"),
    "piecewise_constant": ("constant", "steps of one's own are not here"),
}
_FIND_RATES = ("dadapt", "prodigy")
_DECAYING = ("adamw", "adamw_8bit")  # have a weight decay unless it is said; all others have none in their packages
_LOSSES = {"l2": "mse", "huber": "huber", "smooth_l1": "huber", "l1": "huber"}
_WEIGHTINGS = {  # in the order in which they count
    "min_snr_gamma": "min_snr",
    "debiased_estimation_loss": "debiased",
    "scale_v_pred_loss_like_noise_pred": "noise",
}
_UNSAID_STEPS, _UNSAID_RATE = 1600, 2e-6


def take(read: Reading, method: Method, disk: Disk, *, whole: bool) -> None:
    _length(read, whole=whole)
    _optimizer(read, whole=whole)
    _rates(read, method, whole=whole)
    _schedule(read, disk)
    _losses(read)
    _noise(read)
    if "clip_skip" in read.theirs and read.number("clip_skip"):
        if read.is_given("sdxl") or read.is_given("v2"):
            read.leave("clip_skip", "SD 2 and SDXL are always read at one and the same block")
        else:
            read.take("clip_skip", "tuning.clip_skip")
    if read.theirs.get("prior_loss_weight") not in (None, ""):
        read.take("prior_loss_weight", "tuning.prior_loss_weight", why="")
    elif whole and rates.has_class_pictures(read.into):
        read.take("prior_loss_weight", "tuning.prior_loss_weight", 1.0)


def without_meaning(read: Reading) -> set[str]:
    """What has a meaning only with something that is off."""
    found = set[str]()
    if str(read.theirs.get("loss_type") or "l2") == "l2":
        found |= {"huber_c", "huber_schedule", "huber_scale"}
    if not read.number("multires_noise_iterations"):
        found |= {"multires_noise_discount"}
    if not read.number("noise_offset"):
        found |= {"noise_offset_random_strength", "adaptive_noise_scale"}
    schedule = str(read.theirs.get("lr_scheduler") or "constant")
    found |= {"lr_scheduler_num_cycles"} if schedule != "cosine_with_restarts" else set()
    found |= {"lr_scheduler_power"} if schedule != "polynomial" else set()
    of_others = {"learning_rate_te", "learning_rate_te1", "learning_rate_te2"}
    found |= (
        of_others - set(of_network.rate_keys(read)) if read.into.settings.get("general.method") == "full" else set()
    )
    found |= {"factor"} if read.into.settings.get("lora.kind") != "lokr" else set()
    found |= {"no_metadata", "huber_scale"} if read.number("huber_scale", 1) == 1 else set()
    return found


def _length(read: Reading, *, whole: bool) -> None:
    epochs, steps = read.number("max_train_epochs"), read.number("max_train_steps")
    if epochs:
        read.take("max_train_epochs", "intervals.num_train_epochs", why="")
        read.into.settings["intervals.max_train_steps"] = 0
        if steps:
            read.leave("max_train_steps", "max_train_epochs goes before it there")
    elif steps or whole:
        value = of_data.steps_here(read, steps or _UNSAID_STEPS)
        read.take("max_train_steps", "intervals.max_train_steps", value, "" if value == steps else None)
    if steps and not epochs and read.is_given("epoch"):
        read.leave("epoch", "max_train_steps goes before it there")


def _optimizer(read: Reading, *, whole: bool) -> None:
    key = next((key for key in ("use_8bit_adam", "use_lion_optimizer") if read.is_given(key)), "optimizer_type")
    if key != "optimizer_type":
        read.take(key, "optimizer.name", "adamw_8bit" if key == "use_8bit_adam" else "lion")
    elif read.is_given("optimizer_type"):
        name = str(read.theirs["optimizer_type"])
        short = name.lower().rpartition(".")[2]
        table = {name: OPTIMIZERS[short]} if short in OPTIMIZERS else {}
        rates.take_optimizer(read, key, name, table, finds_rate=short.startswith(_FIND_RATES))
    betas = str(read.theirs.get("betas") or "").strip("()[]").split(",")
    for beta, ours in zip(betas, ("optimizer.beta1", "optimizer.beta2")):
        if beta.strip():
            rates.take_part_of_optimizer(read, "betas", ours, beta.strip())
    for key, ours in (("eps", "optimizer.epsilon"), ("d_coef", "optimizer.d_coef")):
        if read.is_given(key):
            rates.take_part_of_optimizer(read, key, ours, read.theirs[key])
    for key, both in (("weight_decay", rates.WEIGHT_DECAY), ("max_grad_norm", rates.GRADIENT_NORM)):
        for ours in both:
            if read.theirs.get(key) not in (None, ""):
                read.take(key, ours)
    is_unsaid = whole and read.theirs.get("weight_decay") in (None, "")
    if is_unsaid and not read.into.settings.get("optimizer.name", "adamw").endswith(_DECAYING):
        for ours in rates.WEIGHT_DECAY:
            read.take("weight_decay", ours, 0.0, "none there unless it is said, but with AdamW")


def _rates(read: Reading, method: Method, *, whole: bool) -> None:
    if method == "embedding":
        _rate(read, "learning_rate", "learning.embedding_learning_rate", whole=whole)
        return
    prefix = "lora_" if method == "lora" else ""
    if method == "lora" and read.theirs.get("unet_lr") not in (None, ""):
        rates.take_rate(read, "unet_lr", f"learning.{prefix}learning_rate", read.theirs["unet_lr"], "")
    else:
        _rate(read, "learning_rate", f"learning.{prefix}learning_rate", whole=whole)
    ours, found = f"learning.{prefix}text_encoder_learning_rate", of_network.text_rates(read, method)
    if len(found) == 2 and any(number(rate) for _, rate in found):
        rates.take_two_rates(read, ours, *found)
    elif found:
        rates.take_rate(read, found[0][0], ours, found[0][1], "")
    else:
        _rate(read, "learning_rate", ours, whole=whole)
    if read.is_given("learning_rate") and "learning_rate" not in read.into.reported_keys():
        read.leave("learning_rate", "both parts have a rate of their own")


def _rate(read: Reading, key: str, ours: str, *, whole: bool) -> None:
    if read.theirs.get(key) not in (None, ""):
        rates.take_rate(read, key, ours, read.theirs[key], "")
    elif whole:
        rates.take_rate(read, key, ours, _UNSAID_RATE)


def _schedule(read: Reading, disk: Disk) -> None:
    if read.is_given("lr_scheduler_type"):
        read.leave("lr_scheduler_type")
    if read.is_given("lr_scheduler"):
        rates.take_schedule(read, "lr_scheduler", SCHEDULES)
    name = str(read.theirs.get("lr_scheduler") or "constant")
    if name == "cosine_with_restarts":
        read.take("lr_scheduler_num_cycles", "learning.cycles", read.number("lr_scheduler_num_cycles") or 1, "")
    if name == "polynomial":
        read.take("lr_scheduler_power", "learning.power", read.number("lr_scheduler_power") or 1, "")
    if read.is_given("lr_scheduler_min_lr_ratio"):
        read.take("lr_scheduler_min_lr_ratio", "learning.minimum")
    steps = read.number("lr_warmup_steps")
    if name == "constant" and steps:
        read.leave("lr_warmup_steps", "a constant rate has no warmup there; learning.warmup gives it one")
    elif 0 < steps < 1:
        read.take("lr_warmup_steps", "learning.warmup", min(0.9, steps))
    elif steps:
        rates.warmup(read, "lr_warmup_steps", steps, _steps(read, disk))
    elif "learning.scheduler" in read.into.settings:
        read.into.settings["learning.warmup"] = 0.0


def _steps(read: Reading, disk: Disk) -> float:
    """How many steps the run has there; 0 where that is not known."""
    if not read.number("max_train_epochs"):
        return read.number("max_train_steps")
    folders = {str(value) for key, value in read.into.settings.items() if key.endswith(".instance_data_dir")}
    seen = rates.seen_in_an_epoch(read.into, {folder: disk.look(folder).pictures for folder in folders})
    seen *= 2 if rates.has_class_pictures(read.into) else 1
    batch = max(1.0, read.number("train_batch_size", 1)) * max(1.0, read.number("gradient_accumulation_steps", 1))
    return ceil(seen / batch) * read.number("max_train_epochs")


def _losses(read: Reading) -> None:
    loss = str(read.theirs.get("loss_type") or "")
    if loss in _LOSSES:
        read.take("loss_type", "objective.loss", _LOSSES[loss], "" if loss in ("l2", "huber") else None)
    if _LOSSES.get(loss) == "huber":
        for key, ours in (("huber_c", "objective.huber_delta"), ("huber_schedule", "objective.huber_schedule")):
            if read.is_given(key):
                read.take(key, ours, why="")
    chosen = ""
    for key, ours in _WEIGHTINGS.items():
        if not read.is_given(key) or not read.theirs[key]:
            continue
        if chosen:
            read.leave(key, f"there is one weighting at a time here, and {chosen} stands")
            continue
        chosen = key
        if key == "min_snr_gamma":
            read.take(key, "objective.min_snr_gamma")
        if key != "min_snr_gamma" or "objective.min_snr_gamma" in read.into.settings:
            read.take(key, "objective.weighting", ours)


def _noise(read: Reading) -> None:
    if read.number("noise_offset"):
        read.take("noise_offset", "objective.offset_noise", why="")
    if read.number("multires_noise_iterations"):
        levels = int(read.number("multires_noise_iterations")) - 1  # the first there is as fine as the noise itself
        read.take("multires_noise_iterations", "objective.multires_noise_levels", levels)
        if read.number("multires_noise_discount"):
            read.take("multires_noise_discount", "objective.multires_noise_discount")
    if read.number("max_timestep"):
        read.take("max_timestep", "objective.timestep_max", int(read.number("max_timestep")) - 1)
