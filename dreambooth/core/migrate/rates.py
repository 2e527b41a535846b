"""What several programs have alike: optimizers with what belongs to each, rates, and a warmup that is so many steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dreambooth.core.migrate.reading import Reading
from dreambooth.core.migrate.report import Migration, number

WEIGHT_DECAY = ("optimizer.weight_decay", "optimizer.text_encoder_weight_decay")
GRADIENT_NORM = ("optimizer.max_grad_norm", "optimizer.text_encoder_max_grad_norm")
_LEAST_FACTOR, _MOST_RATE = 0.01, 0.1
_NO_EPSILON = ("lion", "lion_8bit", "paged_lion_8bit")


def take_optimizer(read: Reading, key: str, name: str, table: Mapping[str, str], *, finds_rate: bool) -> None:
    """`finds_rate`: it finds the rate itself, as D-Adaptation does, and is none of `table`."""
    if name in table:
        read.take(key, "optimizer.name", table[name], "")
    elif finds_rate:
        read.take(key, "optimizer.name", "prodigy", f"{name} is not here; prodigy finds the rate too")
    else:
        read.take(key, "optimizer.name", "adamw", f"there is no such optimizer here as {name}")


def take_part_of_optimizer(read: Reading, key: str, ours: str, value: Any, why: str | None = None) -> None:
    """What some optimizers have and others do not, after the optimizer itself."""
    name = read.into.settings.get("optimizer.name", "adamw")
    if (ours == "optimizer.d_coef" and name != "prodigy") or (ours == "optimizer.epsilon" and name in _NO_EPSILON):
        read.leave(key, f"{name} has none")
    elif ours == "optimizer.beta2" and name == "adafactor":
        read.leave(key, "adafactor works out its own")
    else:
        read.take(key, ours, value, why)


def take_rate(read: Reading, key: str, ours: str, value: Any, why: str | None = None) -> None:
    """A learning rate, after the optimizer: one that finds the rate takes a factor, and no other does."""
    name, rate = read.into.settings.get("optimizer.name", "adamw"), number(value)
    if name == "prodigy" and rate < _LEAST_FACTOR:
        read.take(key, ours, 1.0, "Prodigy finds the rate itself; this is a factor")
    elif name != "prodigy" and rate > _MOST_RATE:
        read.leave(key, f"{ours}: {rate:g} is a factor for an optimizer that finds the rate, and {name} does not")
    else:
        read.take(key, ours, value, why)


def take_two_rates(read: Reading, ours: str, first: tuple[str, Any], second: tuple[str, Any]) -> None:
    """The rates of SDXL's two text encoders, each with its key; the second is a multiple of the first here. One whose
    rate is 0 is not trained; not both are 0."""
    one, two = number(first[1]), number(second[1])
    key, rate = first if one else second
    take_rate(read, key, ours, rate, "")
    if one and two and one != two:
        ratio = float(f"{two / one:.6g}")
        read.take(second[0], "learning.text_encoder_2_ratio", ratio, f"{two:g} is so many times the first one's")
    elif not (one and two):
        which, other = ("first", second) if one else ("second", first)
        read.take(other[0], "tuning.text_encoders", which, "with a rate of 0 it is not trained")


def take_schedule(read: Reading, key: str, table: Mapping[str, tuple[str, str]]) -> None:
    """`table`: ours by theirs, and what differs."""
    name = str(read.theirs[key])
    if read.into.settings.get("optimizer.name") == "adamw_schedule_free":
        read.take(key, "learning.scheduler", "constant", "" if name.lower() == "constant" else "it needs no schedule")
        return
    ours, why = table.get(name, ("cosine", "the nearest that there is here"))
    read.take(key, "learning.scheduler", ours, f"{name}: {why}" if why else "")


def warmup(read: Reading, key: str, steps: float, total: float) -> None:
    """A warmup of so many steps of a run of `total`, which is 0 where that is not known."""
    if not total:
        read.leave(key, "a share of the run here (learning.warmup); your pictures were not found to work it out")
        return
    share = round(max(0.0, min(0.9, steps / total)), 4)
    read.take(key, "learning.warmup", share, f"{steps:g} of the run's {total:g} steps")


def seen_in_an_epoch(into: Migration, pictures: Mapping[str, int]) -> float:
    """How many of your pictures an epoch sees, by the folders of the concepts that were taken."""
    found = 0.0
    for key, folder in into.settings.items():
        if key.endswith(".instance_data_dir"):
            repeats = into.settings.get(key.replace("instance_data_dir", "repeats"), 1)
            found += pictures.get(str(folder), 0) * number(repeats, 1)
    return found


def has_class_pictures(into: Migration) -> bool:
    return any(key.endswith(".class_mode") and value == "folder" for key, value in into.settings.items())
