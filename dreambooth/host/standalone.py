"""Standing alone: which models folder to use when no WebUI says."""

from __future__ import annotations

from pathlib import Path

from dreambooth.core.layout import PROJECT
from dreambooth.core.project import Folders


def folders(data: str | None = None) -> Folders:
    """`data`, or the models folder of the WebUI around this extension, or one of our own."""
    if data:
        return Folders(Path(data).expanduser().resolve())
    webui = PROJECT.parent.parent
    if PROJECT.parent.name == "extensions" and (webui / "models").is_dir():
        return Folders(webui / "models")
    return Folders(PROJECT / "models")
