"""Class pictures drawn under watch: `python -m dreambooth.engine.bench.drawing_run ABOUT`, ABOUT a JSON file that names
a job of ours or a script of diffusers.

The same instrument for both: it takes hold of diffusers' UNet and looks at the files. The time runs from the UNet's
first work to the last picture's file.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

from dreambooth.engine import __main__ as engine
from dreambooth.engine.bench import peer_run, watch
from dreambooth.engine.process import lazy_imports


class TrainingBegan(Exception):
    """The script has drawn its class pictures and begins to train."""


class DrawingWatch:
    """When the UNet began, and how many predictions it has made, of how many pictures at once."""

    def __init__(self) -> None:
        self.began, self.cpu, self.predictions, self.most = 0.0, 0.0, 0, 0

    def install(self) -> None:
        from diffusers import UNet2DConditionModel

        forward = UNet2DConditionModel.forward

        @functools.wraps(forward)
        def watched(unet: Any, sample: Any, *arguments: Any, **more: Any) -> Any:
            if unet.training:
                raise TrainingBegan
            self.saw(len(sample))
            return forward(unet, sample, *arguments, **more)

        UNet2DConditionModel.forward = watched

    def install_in_ours(self) -> None:
        """Our predictions, most of which are made again from their record, past the UNet's own code."""
        from dreambooth.engine.drawing.prediction import Predictions

        predict = Predictions.__call__

        @functools.wraps(predict)
        def watched(predictions: Any, x: Any, *arguments: Any) -> Any:
            self.saw(len(x))
            return predict(predictions, x, *arguments)

        Predictions.__call__ = watched  # type: ignore[method-assign]

    def saw(self, count: int) -> None:
        if not self.began:
            self.began, self.cpu = time.time(), time.process_time()
        self.predictions, self.most = self.predictions + count, max(self.most, count)

    def found(self, pictures: list[Path], started: float) -> dict[str, Any]:
        cpu = time.process_time() - self.cpu
        written = sorted(path.stat().st_mtime for path in pictures)
        return {
            "count": len(pictures),
            "seconds": written[-1] - self.began,
            "cpu_seconds": cpu,
            "first_picture_seconds": written[0] - started,
            "steps": round(self.predictions / 2 / len(pictures)),  # with the prompt and without it
            "batch": self.most // 2,
            "peak_bytes": watch.peak_bytes(),
            "device_peak_bytes": watch.device_peak_bytes(),
        }


def main(about_file: Path) -> int:
    about, seen = json.loads(about_file.read_text(encoding="utf-8")), DrawingWatch()
    if "job" in about:
        lazy_imports.install()  # as the engine does, before the watch takes hold of diffusers
        seen.install_in_ours()
        code = engine.main([about["job"]])
    else:
        code = 0
        with contextlib.suppress(TrainingBegan):
            peer_run.run(about, seen.install)
    if code:
        return code
    drawn = [path for path in Path(about["pictures"]).rglob("*") if path.suffix in (".png", ".jpg")]
    Path(about["out"]).write_text(json.dumps(seen.found(drawn, about["started"])), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
