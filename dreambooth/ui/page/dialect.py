"""All that differs between the gradio releases that the WebUIs bring: 3.41 (A1111, reForge), 4.40 (Forge) and 6."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import gradio as gr

_RELEASE = int(gr.__version__.split(".")[0])


def on(
    event: Callable[..., Any],
    do: Callable[..., Any] | None,
    inputs: Any = None,
    outputs: Any = None,
    *,
    js: str | None = None,
    meanwhile: str = "once",
) -> Any:
    """Binds an event outside of gradio's queue, so that no long job holds it up; returns what `.then` hangs on.

    `js` is a browser function that gets the inputs and returns those that Python gets. Gradio drops an event that comes
    before the last one is answered; `meanwhile` has it take "multiple" then, or the newest afterwards ("always_last"),
    which 3.41 does not know.
    """
    more: dict[str, Any] = {"_js" if _RELEASE < 4 else "js": js} if js else {}
    more |= {"api_visibility": "private"} if _RELEASE >= 6 else {"api_name": False}
    more |= {"trigger_mode": meanwhile} if meanwhile != "once" and _RELEASE >= 4 else {}
    return event(do, inputs, outputs, queue=False, show_progress="hidden", **more)


def uploaded(files: Iterable[Any] | Any | None) -> list[str]:
    """The paths of dropped files: 3.41 gives open files with a name, later releases text."""
    if not files:
        return []
    return [str(getattr(file, "name", file)) for file in (files if isinstance(files, (list, tuple)) else [files])]


def serve(app: Any, page: gr.Blocks) -> Any:
    """Puts the page at the root of a web application."""
    more: dict[str, Any] = {"ssr_mode": False} if _RELEASE >= 5 else {}
    return gr.mount_gradio_app(app, page, path="/", **more)
