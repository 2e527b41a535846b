"""What the .yaml beside a checkpoint tells a WebUI of the UNet's prediction. Read without a YAML parser."""

from __future__ import annotations

import re
from pathlib import Path

_MOST_BYTES = 1_000_000
_COMMENT = re.compile(r"(?m)(?:^|(?<=\s))#.*$")
_PARAMETERIZATION = re.compile(r"\bparameterization[\"']?\s*:\s*[\"']?(\w+)")
_SCALING = re.compile(r"\bscaling_config\b(?:(?!_config\b).)*?\btarget[\"']?\s*:\s*[\"']?(?:[\w.]*\.)?(\w+)", re.DOTALL)
_PREDICTIONS = {"v": "v_prediction", "VScaling": "v_prediction", "eps": "epsilon", "EpsScaling": "epsilon"}


def prediction_beside(checkpoint: Path, family: str) -> str:
    """What the UNet predicts by the .yaml beside its checkpoint; empty if there is none, or it does not say."""
    beside = checkpoint.with_suffix(".yaml")
    if not beside.is_file() or beside.stat().st_size >= _MOST_BYTES:
        return ""
    return prediction(beside.read_text(encoding="utf-8", errors="replace"), family)


def prediction(text: str, family: str) -> str:
    """What the UNet predicts by a configuration's text; empty if it does not say. Other kinds keep their own name.

    Stability's older code base, of SD 1 and 2, names the parameterization, and without one means epsilon. The newer
    one, of SDXL, names the class that scales the denoiser's output.
    """
    text = _COMMENT.sub("", text)
    match = _PARAMETERIZATION.search(text) or _SCALING.search(text)
    if match:
        return _PREDICTIONS.get(match[1], match[1])
    return "epsilon" if family in ("sd1", "sd2") else ""
