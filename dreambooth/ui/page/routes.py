"""The addresses from which the browser keeps the page current. They only read; what changes anything is an event of
gradio's. All ask the host whether the request may pass, and for the token that the page was given.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from fastapi import Request
from fastapi.responses import FileResponse, HTMLResponse, Response

from dreambooth.core.captions import PICTURES
from dreambooth.core.errors import UserError
from dreambooth.core.project import Folders, open_project
from dreambooth.host.base import PAGE_TOKEN, Host
from dreambooth.ui.page import views

_VIEWS: dict[str, Callable[[Folders, str], str]] = {
    "run": views.run_view,
    "check": lambda folders, model: views.errand_view(folders, model, "check"),
    "generate": lambda folders, model: views.errand_view(folders, model, "generate"),
    "class-images": lambda folders, model: views.errand_view(folders, model, "class-images"),
    "export": lambda folders, model: views.errand_view(folders, model, "export"),
}


def attach(app: Any, host: Host) -> None:
    """Adds the page's own addresses to the WebUI's application."""

    def live(request: Request, view: str, model: str = "") -> Response:
        if not _may_pass(request, host):
            return Response(status_code=403)
        if view not in _VIEWS:
            return Response(status_code=404)
        try:
            shown = _VIEWS[view](host.folders(), model)
        except UserError as error:
            return Response(error.problems[0], status_code=404, media_type="text/plain")
        return HTMLResponse(shown, headers={"Cache-Control": "no-store"})

    def picture(request: Request, model: str, file: str) -> Response:
        if not _may_pass(request, host):
            return Response(status_code=403)
        try:
            folder = open_project(host.folders(), model).folder.resolve()
        except UserError:
            return Response(status_code=404)
        path = (folder / file).resolve()
        if not path.is_relative_to(folder) or path.suffix.lower() not in PICTURES or not path.is_file():
            return Response(status_code=404)
        return FileResponse(path, headers={"Cache-Control": "private, max-age=86400"})

    app.add_api_route("/dreambooth/page/live", live, methods=["GET"], include_in_schema=False, response_model=None)
    app.add_api_route(
        "/dreambooth/page/picture", picture, methods=["GET"], include_in_schema=False, response_model=None
    )


def _may_pass(request: Request, host: Host) -> bool:
    given = request.headers.get("x-dreambooth-token") or request.query_params.get("token", "")
    return secrets.compare_digest(given.encode(), PAGE_TOKEN.encode()) and host.admits(request.headers, request.cookies)
