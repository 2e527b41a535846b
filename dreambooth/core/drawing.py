"""What a WebUI is asked to draw by its own txt2img, and how it tells of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Drawing:
    """Pictures for the WebUI's own txt2img to draw. The prompt has whatever tags of LoRAs it is to have."""

    prompt: str
    negative_prompt: str
    sampler: str
    steps: int
    guidance_scale: float
    width: int  # pixels
    height: int
    seeds: tuple[int, ...]  # each the one before and 1
    batch: int
    checkpoint: Path  # one of the WebUI's


# Called again and again with how much of a batch is drawn, 0 to 1; True asks to stop.
Look = Callable[[float], bool]
# Called with each picture (Pillow's), its seed, and how the WebUI says that it was drawn.
Keep = Callable[[Any, int, str], None]
