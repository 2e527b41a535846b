"""Standing alone: which models folder to use when no WebUI says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dreambooth import __version__
from dreambooth.core.drawing import Drawing, Keep, Look
from dreambooth.core.errors import UserError
from dreambooth.core.files import paths
from dreambooth.core.install_paths import PROJECT
from dreambooth.core.models.model_file import SUFFIXES
from dreambooth.core.project import Folders
from dreambooth.host.base import ALONE_MINUTES, PAGE_TOKEN


def folders(data: str | None = None) -> Folders:
    """`data`, or the models folder of the WebUI around this extension, or one of our own."""
    if data is not None:
        return Folders(paths.named(data, "--data"))
    webui = PROJECT.parent.parent
    if PROJECT.parent.name == "extensions" and (webui / "models").is_dir():
        return Folders(webui / "models")
    return Folders(PROJECT / "models")


class Standalone:
    """The host of `python -m dreambooth ui`: a models folder, and nobody else on the GPU."""

    name = "Dreambooth"
    version = __version__
    token = PAGE_TOKEN
    sends_to_txt2img = False
    is_dark: bool | None = None
    captioners: tuple[str, ...] = ()
    samplers: tuple[str, ...] = ()
    has_accounts = False

    def __init__(self, data: str | None = None, *, alone_minutes: float = ALONE_MINUTES) -> None:
        self._folders = folders(data)
        self.alone_minutes = alone_minutes

    def folders(self) -> Folders:
        return self._folders

    def checkpoints(self) -> list[tuple[str, Path]]:
        """Every model file of the checkpoints folder and the folders in it, titled by its path there."""
        base = self._folders.checkpoints
        found = [path for path in base.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
        return [(path.relative_to(base).as_posix(), path) for path in sorted(found)]

    def refresh(self) -> None:
        """Every list is read from the disk when it is shown."""

    def describe(self, picture: Path, captioner: str) -> str:
        raise UserError("with: only a WebUI's own models describe pictures; here is none.")

    def draw(self, wanted: Drawing, look: Look, keep: Keep) -> None:
        raise UserError("library: only a WebUI has a txt2img of its own; here is none. Draw with Diffusers.")

    def lend_gpu(self) -> None:
        """Nobody else is on it."""

    def take_gpu_back(self) -> None:
        """Nothing was lent."""

    def admits(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> bool:
        return True
