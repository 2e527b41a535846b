"""Which settings may change when a run goes on, and why the others may not.

What a run has saved is weights, what its optimizer remembers, and a place in an order of pictures. A setting that one
of these was made with stays; one that only says how long, how often, how fast or where to is taken from there on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dreambooth.core.errors import UserError
from dreambooth.core.schema import from_flat, general, to_flat
from dreambooth.core.settings import Settings, conflicts

MAY = ""
_WEIGHTS = "the weights in its state have the shape that this gave them"
_OPTIMIZER = "what its optimizer remembers was made with this"
_ORDER = "this says which picture comes when, and the order is half gone through"
_SHOWN = "what it has learned so far was learned from pictures and captions read in this way"
_TAUGHT = "it says what is learned, and half of it is learned already"

# By the whole key, or else by its group: MAY, or why it must stay.
RULES: dict[str, str] = {
    "general": _WEIGHTS,
    "general.resolution": _SHOWN,
    "general.seed": _ORDER,
    "concepts": _SHOWN,
    "concepts.N.instance_data_dir": MAY,  # the folder may have moved; pictures that differ are noticed and said
    "concepts.N.class_data_dir": MAY,
    "concepts.N.repeats": _ORDER,
    "concepts.N.loss_weight": _TAUGHT,
    "captions": _SHOWN,
    "pictures": _SHOWN,
    "pictures.cache_on_disk": MAY,
    "intervals": MAY,
    "intervals.validate_mirrored": "what is measured is held against what was measured of it before the first step",
    "batching": _ORDER,  # but see _STEP
    "batching.gradient_checkpointing": MAY,
    "batching.class_batch_size": MAY,
    "batching.num_processes": MAY,
    "learning": MAY,
    "learning.lora_plus_ratio": _OPTIMIZER,
    "optimizer": _OPTIMIZER,
    "optimizer.max_grad_norm": MAY,
    "optimizer.text_encoder_max_grad_norm": MAY,
    "tuning": _TAUGHT,
    "tuning.mixed_precision": MAY,
    "tuning.deterministic": MAY,
    "tuning.trace_steps": MAY,
    "tuning.cuda_graphs": MAY,
    "tuning.nonfinite_steps": MAY,
    "tuning.ema_decay": MAY,
    "tuning.use_ema": "its state holds an average only if there was one from the beginning",
    "tuning.max_token_length": _SHOWN,
    "tuning.clip_skip": _SHOWN,
    "tuning.pad_tokens": _SHOWN,
    "tuning.train_unet": _WEIGHTS,
    "tuning.text_encoders": _WEIGHTS,
    "objective": _TAUGHT,
    "memory": MAY,
    "memory.bf16_weights": _WEIGHTS,
    "lora": _WEIGHTS,
    "lora.max_norm": MAY,
    "embedding": _TAUGHT,
    "embedding.vectors": _WEIGHTS,
    "embedding.start_file": _WEIGHTS,
    "imagic": _TAUGHT,
    "previews": MAY,
    "saving": MAY,
    "reporting": MAY,
}
_STEP = ("batching.train_batch_size", "batching.gradient_accumulation_steps")


def why_not(key: str) -> str:
    """Why the setting must stay as it is when a run goes on; empty where it may change."""
    whole = general(key)
    return RULES[whole] if whole in RULES else RULES[whole.split(".")[0]]


@dataclass(frozen=True)
class Difference:
    """A setting that differs; None stands for a concept's that is not there."""

    key: str
    now: Any
    given: Any
    why_not: str  # why it must stay as it is; empty where it may change


def differences(now: dict[str, Any], given: dict[str, Any]) -> list[Difference]:
    """How a run's settings differ from others, and which of them it could take; both as `to_flat` has them."""
    one_step = _images_per_step(now) == _images_per_step(given)

    def reason(key: str) -> str:
        if key not in now or key not in given:
            return _SHOWN
        return MAY if key in _STEP and one_step else why_not(key)

    keys = [*given, *(key for key in now if key not in given)]
    found = [Difference(key, now.get(key), given.get(key), reason(key)) for key in keys]
    return [one for one in found if one.now != one.given]


def changes(now: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """What of `given` differs from the run's settings, as dotted keys.

    Raises UserError with a sentence for each setting that does not exist, will not do, or must stay as it is.
    """
    settings = from_flat(Settings, {**now, **given})
    found = differences(to_flat(from_flat(Settings, now)), to_flat(settings))
    problems = [
        f"{one.key}: it cannot change when a run goes on, as {one.why_not}; leave it, or start a new run."
        for one in found
        if one.why_not
    ]
    if problems := problems or conflicts.found(settings):
        raise UserError(problems)
    return {one.key: one.given for one in found}


def of_the_result(changed: dict[str, Any]) -> dict[str, Any]:
    """Those changes that can make another result."""
    return {key: value for key, value in changed.items() if key.split(".")[0] not in ("previews", "reporting")}


def _images_per_step(flat: dict[str, Any]) -> int:
    """The same number of images in a step, in smaller batches that are added up, is the same step."""
    return int(flat[_STEP[0]]) * int(flat[_STEP[1]])
