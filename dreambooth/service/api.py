"""The HTTP API under /dreambooth: what the page shows and does, for scripts and for the page itself.

Bodies are JSON objects; what is wrong with one is answered with status 400 and {"problems": [sentence, ...], "errors":
[{"what", "where", "do", "log"}, ...]}, the same taken apart. Requests pass the WebUI's login (an extension's routes do
not, by themselves), and those of other origins are refused.
Works with FastAPI 0.94 on pydantic 1.10 as with today's on pydantic 2, so it declares no models of its own.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import secrets
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from dreambooth.core import reference
from dreambooth.core.errors import Problem, UserError
from dreambooth.core.settings import Settings
from dreambooth.service import signed_urls
from dreambooth.service.routes import KINDS, Door

MOST_BODY_BYTES = 4_000_000

# Requests whose body may have settings; the schema of each is in the API's own.
_WITH_SETTINGS = {
    ("POST", "/settings/check"),
    ("POST", "/performance"),
    ("POST", "/models"),
    ("PUT", "/models/{name}/settings"),
    ("PATCH", "/models/{name}/settings"),
    ("POST", "/models/{name}/performance"),
    ("POST", "/models/{name}/runs"),
    ("POST", "/models/{name}/runs/{number}/resume"),
}
_BODY = {"type": "object", "properties": {"settings": reference.json_schema(Settings)}}
_BODIES = {"requestBody": {"content": {"application/json": {"schema": _BODY}}}}


def router(host: Door) -> APIRouter:
    """All routes, for the app of a WebUI or our own."""
    routes = APIRouter(
        prefix="/dreambooth", route_class=guarded(host), tags=["dreambooth"], default_response_class=_Json
    )
    for kind in KINDS:
        for method, path, endpoint in kind(host).table():
            extra = _BODIES if (method, path) in _WITH_SETTINGS else None
            routes.add_api_route(path, _answering(endpoint), methods=[method], response_model=None, openapi_extra=extra)
    return routes


def _answering(endpoint: Callable[..., Any]) -> Callable[..., Response]:
    """The endpoint with its answer made into JSON where it is asked, in a thread: FastAPI would do so in the loop in
    which the WebUI answers everything else, and the events of a long run take it half a second."""

    @functools.wraps(endpoint)
    def answer(*arguments: Any, **named: Any) -> Response:
        found = endpoint(*arguments, **named)
        return found if isinstance(found, Response) else _Json(jsonable_encoder(found))

    # With the types themselves: FastAPI would look for their names here.
    answer.__signature__ = inspect.signature(endpoint, eval_str=True)  # type: ignore[attr-defined]
    return answer


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
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > MOST_BODY_BYTES:
        return _refused(413, UserError(f"The request is larger than {MOST_BODY_BYTES:,} bytes."))
    if _is_ours(host, request):
        return None  # our page's, which no other site knows; a proxy may have given it another host's name
    origin = request.headers.get("origin")
    elsewhere = origin and (origin == "null" or _netloc(origin) != request.headers.get("host"))
    if elsewhere or request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        return _refused(403, UserError("Requests from other sites are refused."))
    if host.admits(request.headers, request.cookies):
        return None
    if _is_of_a_page(request):
        return _refused(401, UserError("The WebUI was started anew; reload this page."))
    login = UserError("Log in first: the WebUI asks for a name and a password.")
    return _refused(401, login, **({"WWW-Authenticate": "Basic"} if host.has_accounts else {}))


def _is_of_a_page(request: Request) -> bool:
    """Whether a page of ours asks that was left open while the WebUI started anew. A browser would show a password box
    of its own for what else is refused so."""
    sealed = any(key == "seal" for key, _ in request.query_params.multi_items())
    return sealed or "x-dreambooth-token" in request.headers or request.url.path.endswith("/dreambooth/page/live")


def _is_ours(host: Door, request: Request) -> bool:
    """Whether a request carries the page's secret, or is for a picture or a file at an address that the page gave."""
    token = request.headers.get("x-dreambooth-token", "")
    if secrets.compare_digest(token.encode(), host.token.encode()):
        return True
    return request.method == "GET" and signed_urls.is_sealed(host.token, request.scope["path"], request.url.query)


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:  # no address, so no page of ours
        return ""
