"""The HTTP API under /dreambooth: what the page shows and does, for scripts and for the page itself.

Bodies are JSON objects; what is wrong with one is answered with status 400 and {"problems": [sentence, ...], "errors":
[{"what", "where", "do", "log"}, ...]}, the same taken apart. Requests pass the WebUI's login (an extension's routes do
not, by themselves), and those of other origins are refused.
Works with FastAPI 0.94 on pydantic 1.10 as with today's on pydantic 2, so it declares no models of its own.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from dreambooth.core import schema
from dreambooth.core.errors import Problem, UserError
from dreambooth.core.run import runs as runs_of
from dreambooth.core.settings import Settings
from dreambooth.service import pictures, report
from dreambooth.service.routes import Answer, Door, Jobs, Machine, Models, Route, Routes, numbered, text

MOST_BODY_BYTES = 4_000_000

# Requests whose body may have settings; the schema of each is in the API's own.
_WITH_SETTINGS = {
    ("POST", "/settings/check"),
    ("POST", "/models"),
    ("PUT", "/models/{name}/settings"),
    ("PATCH", "/models/{name}/settings"),
    ("POST", "/models/{name}/runs"),
    ("POST", "/models/{name}/runs/{number}/resume"),
}
_BODY = {"type": "object", "properties": {"settings": schema.json_schema(Settings)}}
_BODIES = {"requestBody": {"content": {"application/json": {"schema": _BODY}}}}


def router(host: Door) -> APIRouter:
    """All routes, for the app of a WebUI or our own."""
    made = APIRouter(prefix="/dreambooth", route_class=guarded(host), tags=["dreambooth"], default_response_class=_Json)
    for routes in (Machine(host), Models(host), _Pictures(host), _Reports(host), Jobs(host)):
        for method, path, endpoint in routes.table():
            extra = _BODIES if (method, path) in _WITH_SETTINGS else None
            made.add_api_route(path, endpoint, methods=[method], response_model=None, openapi_extra=extra)
    return made


class _Json(JSONResponse):
    """JSON that any reader takes: a loss that is no number is null, and a file name need not be Unicode."""

    def render(self, content: Any) -> bytes:
        try:
            return json.dumps(content, allow_nan=False).encode()
        except ValueError:
            return json.dumps(_finite(content)).encode()


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    return [_finite(item) for item in content] if isinstance(content, list) else content


def guarded(host: Door) -> type[APIRoute]:
    """A route that lets only admitted requests in, and answers what a person can mend with a sentence."""

    class Guarded(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def answer(request: Request) -> Response:
                if refusal := _refusal(host, request):
                    return refusal
                try:
                    return await handle(request)
                except UserError as error:
                    return _refused(400, error)
                except RequestValidationError as error:
                    return _refused(400, UserError(_of_pydantic(one) for one in error.errors()))
                except HTTPException as error:  # a body that is no JSON
                    return _refused(error.status_code, UserError(f"{error.detail}."))
                except (OSError, UnicodeError) as error:
                    return _refused(400, UserError(f"The request cannot be done: {error}."))

            return answer

    return Guarded


def _refused(status: int, error: UserError, **headers: str) -> JSONResponse:
    return _Json(error.as_json(), status_code=status, headers=headers)


def _of_pydantic(problem: Any) -> Problem:
    place = ".".join(part for part in problem["loc"][1:] if isinstance(part, str)) or "body"
    return Problem(f"{place}: {problem['msg']}.", place)


def _refusal(host: Door, request: Request) -> Response | None:
    """Why a request may not pass; None if it may."""
    origin = request.headers.get("origin")
    elsewhere = origin and (origin == "null" or _netloc(origin) != request.headers.get("host"))
    if elsewhere or request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        return _refused(403, UserError("Requests from other sites are refused."))
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > MOST_BODY_BYTES:
        return _refused(413, UserError(f"The request is larger than {MOST_BODY_BYTES:,} bytes."))
    token = request.headers.get("x-dreambooth-token") or request.query_params.get("token") or ""
    if secrets.compare_digest(token.encode(), host.token.encode()):
        return None
    if host.admits(request.headers, request.cookies):
        return None
    login = UserError("Log in first: the WebUI asks for a name and a password.")
    return _refused(401, login, **{"WWW-Authenticate": "Basic"})


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:  # no address, so no page of ours
        return ""


class _Pictures(Routes):
    """Pictures of concepts, and those that runs have drawn. `side` asks for a thumbnail of at most so many pixels."""

    def table(self) -> list[Route]:
        return [
            ("GET", "/models/{name}/concepts/{concept}/pictures", self.listing),
            ("GET", "/models/{name}/concepts/{concept}/picture", self.picture),
            ("PUT", "/models/{name}/concepts/{concept}/caption", self.write_caption),
            ("POST", "/models/{name}/concepts/{concept}/describe", self.describe),
            ("GET", "/models/{name}/picture", self.drawn),
        ]

    def listing(self, name: str, concept: int, kind: str = "instance", offset: int = 0, limit: int = 100) -> Answer:
        """The pictures of a concept, with their captions; `kind` is instance or class."""
        return pictures.listing(pictures.concept_folder(self.open(name), concept, kind), offset, limit)

    def picture(
        self, name: str, concept: int, file: str, kind: str = "instance", side: int = 0, changed: str = ""
    ) -> Response:
        """A picture of a concept. `changed` is anything that differs when the file does: then it is kept for a day."""
        return _picture(pictures.concept_folder(self.open(name), concept, kind), file, side, changed)

    def write_caption(self, name: str, concept: int, body: dict[str, Any]) -> Answer:
        """Writes the caption `text` beside the picture `file`; without a word the file's name is the caption again."""
        path = pictures.confined(pictures.concept_folder(self.open(name), concept, "instance"), text(body, "file"))
        pictures.write_caption(path, text(body, "text", optional=True))
        return {"file": str(body["file"]), "caption": pictures.caption(path)}

    def describe(self, name: str, concept: int, body: dict[str, Any]) -> Answer:
        """Captions by the WebUI's BLIP or DeepDanbooru (`with`) for pictures that have none; for all with `over`."""
        folder, captioner = pictures.concept_folder(self.open(name), concept, "instance"), text(body, "with")
        described = pictures.describe(
            folder, lambda picture: self.host.describe(picture, captioner), over=bool(body.get("over"))
        )
        return {"described": described}

    def drawn(self, name: str, file: str, side: int = 0, changed: str = "") -> Response:
        """A picture in the model's own folder: previews, class pictures, sheets, generated ones."""
        return _picture(self.open(name).folder, file, side, changed)


class _Reports(Routes):
    """What tells of a run that went wrong, as one file to download."""

    def table(self) -> list[Route]:
        return [("GET", "/models/{name}/report", self.report)]

    def report(self, name: str, run: int) -> Response:
        """What tells of a run that went wrong, as a .zip file without pictures and secrets."""
        job = numbered(runs_of(self.open(name)), run, "run")
        headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(report.name(job), safe='')}"}
        return Response(report.build(job), media_type="application/zip", headers=headers)


def _picture(folder: Path, file: str, side: int, changed: str) -> Response:
    path = pictures.confined(folder, file)
    seconds = 86_400 if changed else 60
    headers = {"Cache-Control": f"private, max-age={seconds}", "X-Content-Type-Options": "nosniff"}
    if side:
        return Response(pictures.thumbnail(path, side), media_type="image/jpeg", headers=headers)
    return FileResponse(str(path), headers=headers)
