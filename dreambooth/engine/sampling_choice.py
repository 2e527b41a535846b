"""How a picture is to be drawn. Apart from the drawing itself, so that a plan needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How to draw: everything but the prompts and the seeds. Width and height in pixels."""

    width: int
    height: int
    steps: int = 20
    guidance_scale: float = 7.5
    negative_prompt: str = ""
    scheduler: str = "dpm++"


NO_ZERO_TERMINAL_SNR = ("lms", "lms_karras", "pndm")
