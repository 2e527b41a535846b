"""OneTrainer's settings, of all its versions, and its lists of concepts.

Every key is told of: taken, changed, or left out with the reason (`controls.py`). What is nested there has a dot here:
`unet.train`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dreambooth.core.migrate.disk import Disk
from dreambooth.core.migrate.onetrainer import of_concepts, of_lora, of_results, of_training, older_names
from dreambooth.core.migrate.onetrainer.controls import BY_KEY, IN_ITS_OPTIMIZER, OF_ANOTHER
from dreambooth.core.migrate.reading import Reading, exact
from dreambooth.core.migrate.report import Migration, side

SAME = {
    "batch_size": "batching.train_batch_size",
    "gradient_accumulation_steps": "batching.gradient_accumulation_steps",
    "ema_decay": "tuning.ema_decay",
    "aspect_ratio_bucketing": "pictures.buckets",
    "unmasked_weight": "objective.unmasked_weight",
    "masked_training": "objective.masked",
    "tensorboard": "reporting.tensorboard",
    "epochs": "intervals.num_train_epochs",
}
_WHOLE = ("concepts", "samples", "cloud", "secrets", "optimizer_defaults", "scheduler_params")
_OTHER_PARTS = (
    "prior", "transformer", "unconditional_transformer", "text_encoder_3", "text_encoder_4", "effnet_encoder",
    "decoder", "decoder_text_encoder", "decoder_vqgan",
)  # fmt: skip
_OF_ANOTHER = {"frames", "vb_loss_strength", "text_encoder_sequence_length", "text_encoder_2_sequence_length"}
_OWN = {"__version", "workspace_dir", "cache_dir", "debug_mode", "debug_dir", "embedding.uuid"}
_SECRET = {"cloud", "secrets"}
KNOWN = {"base_model_name", "training_method", "concept_file_name", "learning_rate_scheduler", "lora_model_name"}
_METHODS = {"FINE_TUNE": "full", "LORA": "lora", "EMBEDDING": "embedding"}
_FAMILIES = ("STABLE_DIFFUSION_15", "STABLE_DIFFUSION_2", "STABLE_DIFFUSION_XL_10")


def config(theirs: Mapping[str, Any], disk: Disk) -> Migration:
    """The settings of a preset or of a saved configuration."""
    values = older_names.newest(_flat(theirs))
    read = Reading(values, BY_KEY, Migration())
    _method(read)
    of_concepts.take(read, disk)
    read.same({key: ours for key, ours in SAME.items() if key in values})
    if read.is_given("resolution"):
        _resolution(read)
    of_lora.take(read, disk)
    of_training.take(read, disk)
    of_results.take(read, disk)
    _others(read)
    read.rest(_OWN, _SECRET, of_training.without_meaning(read))
    return read.into


def concepts(theirs: Sequence[Any], disk: Disk) -> Migration:
    """A list of concepts alone."""
    read = Reading({"concepts": list(theirs)}, BY_KEY, Migration())
    of_concepts.take(read, disk)
    return read.into


def _flat(theirs: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in theirs.items():
        if isinstance(value, Mapping) and key not in _WHOLE and prefix.count(".") < 2:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _method(read: Reading) -> None:
    name = str(read.theirs.get("training_method") or "")
    ours = _METHODS.get(name or "FINE_TUNE")
    if ours:
        read.take("training_method", "general.method", ours, "" if name else "FINE_TUNE there unless it is said")
    else:
        read.leave("training_method", f"there is no such method here as {name}")
    family = str(read.theirs.get("model_type") or "")
    if family and not family.startswith(_FAMILIES):
        read.leave("model_type", f"{OF_ANOTHER}, and this is {family}")


def _resolution(read: Reading) -> None:
    text = str(read.theirs["resolution"])
    first = text.split(",")[0].strip().lower()
    side("resolution", first.replace("x", ","), read.into)
    if "," in text and "general.resolution" in read.into.settings:
        read.take("resolution", "general.resolution", read.into.settings["general.resolution"], f"the first of {text}")


def _others(read: Reading) -> None:
    """What belongs to other families, and the rest of an optimizer's own settings, each with one reason."""
    reported = read.into.reported_keys()
    for key in sorted(read.theirs.keys() - reported):
        of_another = key.partition(".")[0] in _OTHER_PARTS or key in _OF_ANOTHER or key.startswith("text_encoder_3")
        if of_another or key.startswith("text_encoder_4"):
            read.into.leave(key, exact(read.theirs[key]), OF_ANOTHER)
        elif key.startswith("optimizer.") and key not in BY_KEY and read.is_given(key):
            read.into.leave(key, exact(read.theirs[key]), IN_ITS_OPTIMIZER)
