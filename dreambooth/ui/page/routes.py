"""The address from which the browser keeps the page current, behind the same guard as the API, and that of the help,
which is the same for everybody. They only read; what changes anything is an event of gradio's.
"""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute

from dreambooth.core.errors import UserError
from dreambooth.core.project import Folders
from dreambooth.host.base import Host
from dreambooth.service.api import guarded
from dreambooth.ui.page import concept_view, file_view, help_page, model_view, run_view, short_job_view

_View = Callable[[Folders, str, int, int], str]


def _errand(kind: str) -> _View:
    return lambda folders, model, row, shown: short_job_view.errand_view(folders, model, kind)


def _start(key: str) -> _View:
    return lambda folders, model, row, shown: file_view.start_view(folders, model, key)


_VIEWS: dict[str, _View] = {
    "run": lambda folders, model, row, shown: run_view.run_view(folders, model),
    "model": lambda folders, model, row, shown: model_view.model_view(folders, model),
    "download": lambda folders, model, row, shown: short_job_view.download_view(folders),
    **{kind: _errand(kind) for kind in ("check", "generate", "class-images", "export", "tokens", "caption")},
    **{key: _start(key) for key in file_view.STARTS},
}


def router(host: Host) -> APIRouter:
    """The page's own addresses, for the WebUI's application or ours, beside the API's router."""

    def live(view: str, model: str = "", row: int = 0, shown: int = concept_view.SHOWN) -> HTMLResponse:
        if view not in (*_VIEWS, "pictures"):
            raise UserError(f"view: {view!r} is none of {', '.join((*_VIEWS, 'pictures'))}.")
        if view == "pictures":
            drawn = concept_view.concept_view(host.folders(), model, row, shown, host.captioners)
        else:
            drawn = _VIEWS[view](host.folders(), model, row, shown)
        told = drawn.encode(errors="replace")  # what is said of a file may name it, whose name need not be Unicode
        return HTMLResponse(told, headers={"Cache-Control": "no-store"})

    def settings_help() -> HTMLResponse:
        return HTMLResponse(help_page.help_page())

    made = APIRouter(prefix="/dreambooth/page")
    for path, answer, kind in (("/live", live, guarded(host)), ("/help", settings_help, APIRoute)):
        made.add_api_route(
            path, answer, methods=["GET"], include_in_schema=False, response_model=None, route_class_override=kind
        )
    return made
