"""The combinations of which training is measured, families x methods x batches x resolutions, and what is the same for
all who do them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURES
from dreambooth.engine.bench.watch import WARM_STEPS

LEAST_STEPS = WARM_STEPS + 3
PIXELS = 64  # a size is a multiple of this, which every trainer takes
_CHOSEN = ("family", "method")  # what a person can choose cases by
_CHANGED = ("batch", "resolution", "steps", "rank")  # and what can be made otherwise in all of them
RATES = {"lora": 1e-4, "full": 2e-6}  # of learning, by method; what others are told


@dataclass(frozen=True)
class Case:
    """One combination that is measured."""

    family: str
    method: str  # lora or full
    batch: int
    resolution: int  # pixels
    steps: int
    rank: int = 4
    layers: str = "attention"  # what a LoRA is put into, as `lora.layers` has it: as diffusers' script does

    @property
    def title(self) -> str:
        return f"{self.family} {self.method} batch {self.batch} at {self.resolution}"


SMALL = [
    *(Case(family, method, 1, 128, 60) for family in MINIATURES for method in ("full", "lora")),
    *(Case("sd1", method, 4, 128, 30) for method in ("full", "lora")),
    *(Case("sd1", method, 1, 256, 30) for method in ("full", "lora")),
]
LARGE = [
    *(Case("sd1", method, batch, 512, 40) for method in ("full", "lora") for batch in (1, 4)),
    *(Case("sdxl", method, batch, 1024, 30) for method in ("full", "lora") for batch in (1, 4)),
]


def asked_for(asked: dict[str, Any]) -> list[Case]:
    """The cases that job.json asks for, miniatures or models of full size. Raises UserError for what no case can be."""
    if asked.get("steps", LEAST_STEPS) < LEAST_STEPS:
        raise UserError(
            f"--steps: it must be at least {LEAST_STEPS} (it is {asked['steps']}); the first are not timed."
        )
    if asked.get("resolution", PIXELS) % PIXELS or asked.get("resolution", PIXELS) < PIXELS:
        raise UserError(f"--resolution: it must be a multiple of {PIXELS} (it is {asked['resolution']}).")
    large = bool(asked.get("large"))
    found = [
        case
        for case in (LARGE if large else SMALL)
        if all(getattr(case, name) == asked.get(name, getattr(case, name)) for name in _CHOSEN)
    ]
    if not found:
        there = " and ".join(dict.fromkeys(case.family for case in LARGE))
        raise UserError(f"--family: with --large, {there} are measured; name one of them.")
    changes = {name: asked[name] for name in _CHANGED if name in asked}
    return list(dict.fromkeys(replace(case, **changes) for case in found))


def precision() -> str:
    """What ours is by itself on this device, as accelerate has it; the scripts of others would take full precision."""
    from dreambooth.engine import hardware
    from dreambooth.engine.training import precision as of_ours

    device = hardware.here()
    return of_ours.automatic(device) if device.type == "cuda" else "no"
