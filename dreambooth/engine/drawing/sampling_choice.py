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


NO_ZERO_TERMINAL_SNR = (  # diffusers has no such schedule for them, they step over its end, or spend their steps there
    "dpm++_karras",
    "dpm++_sde_karras",
    "euler_karras",
    "dpm++_single",
    "heun",
    "kdpm2",
    "kdpm2_a",
    "deis",
    "sa",
    "lms",
    "lms_karras",
    "pndm",
)


def problem(scheduler: str, *, zero_terminal_snr: bool) -> str:
    """Why a scheduler does not go with a model; empty if it does."""
    if zero_terminal_snr and scheduler in NO_ZERO_TERMINAL_SNR:
        return f"{scheduler} cannot draw with a model of zero terminal SNR; choose dpm++, ddim, euler or unipc"
    return ""
