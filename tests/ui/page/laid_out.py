"""The page without a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from dreambooth.core import project
from dreambooth.core.install_paths import MINIATURE
from dreambooth.host.standalone import Standalone
from dreambooth.ui.page.page import Page


def laid_out(folder: Path, **own: Any) -> Page:
    """The page on a models folder with one model, whose own settings may be named."""
    host = Standalone(str(folder))
    made = Page(host)
    with gr.Blocks() as blocks:
        made.lay_out()
        made.bind(blocks)
    project.create(host.folders(), "star", MINIATURE, {key.replace("__", "."): value for key, value in own.items()})
    return made
