"""What the page, the API and the queue ask of the place where the extension lives."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from dreambooth.core.drawing import Drawing, Keep, Look
from dreambooth.core.project import Folders

# What the page's own requests carry in the header X-Dreambooth-Token; a picture's address, which has no headers, has a
# seal that was made with it (service/signed_urls.py). Made anew in each process; here a reloaded page finds it again.
PAGE_TOKEN = secrets.token_urlsafe(24)


# Long enough for a WebUI to be updated and started again; short enough that a forgotten engine does not keep the GPU
# for a night.
ALONE_MINUTES = 60.0


class Host(Protocol):
    """A WebUI, or nothing but ourselves. Nothing here imports torch or waits for a model to load."""

    name: str  # AUTOMATIC1111, Forge, or Dreambooth where it stands alone
    token: str  # PAGE_TOKEN
    version: str  # the WebUI's, as it says it; empty where it says none
    sends_to_txt2img: bool  # whether there is a txt2img tab that a prompt can be sent to
    is_dark: bool | None  # the theme that was forced by a flag; None where the browser decides

    captioners: tuple[str, ...]  # what can describe pictures; empty where nothing can
    samplers: tuple[str, ...]  # of the WebUI's own txt2img, by its names; empty where it cannot be asked to draw
    alone_minutes: float  # an engine whose host has been gone for so long saves its state and pauses; 0: it never does

    def folders(self) -> Folders:
        """Where models, checkpoints and LoRAs lie."""

    def checkpoints(self) -> list[tuple[str, Path]]:
        """The checkpoints that a model can be made from: title as people know it, and file."""

    def refresh(self) -> None:
        """Makes files that were just written appear in the WebUI's lists."""

    def describe(self, picture: Path, captioner: str) -> str:
        """What a picture shows, in words. Raises UserError where that cannot be said."""

    def draw(self, wanted: Drawing, look: Look, keep: Keep) -> None:
        """Draws with the WebUI's own txt2img, in its turn of the WebUI's queue. A batch that is stopped is not kept.

        Raises UserError where the WebUI cannot."""

    def lend_gpu(self) -> None:
        """Empties the GPU for the engine and refuses pictures meanwhile, with a sentence. Waits for the picture that
        is being drawn. Does nothing when it is lent already, and where the WebUI works on the CPU."""

    def take_gpu_back(self) -> None:
        """Ends the loan. Does nothing when nothing is lent."""

    @property
    def has_accounts(self) -> bool:
        """Whether there are names and passwords that HTTP's basic login would be admitted with."""

    def admits(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> bool:
        """Whether a request may pass: the WebUI's own login, its --api-auth, or no login where it asks for none."""
