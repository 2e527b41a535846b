"""What a picture shows, by the WebUI's own BLIP or DeepDanbooru: one of the files that import its `modules` (see
`webui.py`). The WebUI fetches their weights itself when they are first used.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from modules import call_queue, shared
from PIL import ImageOps

from dreambooth.core.errors import UserError
from dreambooth.core.picture_opening import open_picture


def captioners() -> tuple[str, ...]:
    """The names of what can describe pictures here; SD.Next has neither under these names."""
    found = ["BLIP"] if hasattr(getattr(shared, "interrogator", None), "generate_caption") else []
    return (*found, *(["DeepDanbooru"] if importlib.util.find_spec("modules.deepbooru") else []))


def describe(picture: Path, captioner: str) -> str:
    """Waits for its turn in the WebUI's queue. Raises UserError where the WebUI cannot."""
    if captioner not in captioners():
        known = ", ".join(captioners()) or "none"
        raise UserError(f"with: this WebUI has no {captioner!r} that describes pictures (it has: {known}).")
    try:
        with open_picture(picture) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except Exception as error:  # noqa: BLE001  (Pillow raises nearly anything on a damaged file)
        raise UserError(f"{picture}: the picture cannot be read ({str(error)[:100]}).") from None
    try:
        with call_queue.queue_lock:
            return str(_blip(image) if captioner == "BLIP" else _deepdanbooru(image)).strip()
    except IndexError:  # the WebUI takes the first of the files it found, and says nothing of a download that failed
        raise UserError(
            f"The WebUI's {captioner} has no weights yet, and they could not be fetched; the WebUI's console says more."
        ) from None
    except Exception as error:  # noqa: BLE001  (weights that do not load, too little memory, the GPU is lent)
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"The WebUI's {captioner} cannot describe {picture.name}: {said[0][:200]}") from None


def _blip(image: Any) -> Any:
    try:
        shared.interrogator.load()
        return shared.interrogator.generate_caption(image)
    finally:
        shared.interrogator.unload()


def _deepdanbooru(image: Any) -> Any:
    from modules import deepbooru

    tagger = deepbooru.model
    tagger.start()
    try:
        return tagger.tag_multi(image, force_disable_ranks=True)  # a tag with its rank, (dog:0.9), is no caption
    finally:
        tagger.stop()
