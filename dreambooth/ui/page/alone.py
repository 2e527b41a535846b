"""The page with a web server of its own, where there is no WebUI: `python -m dreambooth.ui.page.alone --port N`.

The style and the script are the files that a WebUI would add to its pages by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import FileResponse, Response, StreamingResponse

from dreambooth import __version__
from dreambooth.core.install_paths import PROJECT
from dreambooth.host.base import Host
from dreambooth.host.standalone import Standalone
from dreambooth.service import api, page_environment, queue
from dreambooth.ui.page import dialect, routes
from dreambooth.ui.page.page import build

ADDRESS = "127.0.0.1"
_SCRIPTS = {file.name: file for file in sorted((PROJECT / "javascript").glob("dreambooth*.js"))}  # all are a WebUI's
_FILES = {"style.css": PROJECT / "style.css", **_SCRIPTS}
_HEAD = (
    '<link rel="stylesheet" href="dreambooth/files/style.css">'
    + "".join(f'<script src="dreambooth/files/{name}"></script>' for name in _SCRIPTS)
    # Gradio 6 hides what flows over, and nothing can stick in what does: the run would scroll away.
    + "<style>footer { display: none !important; } .gradio-container { overflow: clip !important; }</style></head>"
)


def application(host: Host) -> Any:
    """The page, its addresses, and its files, as one web application."""
    # FastAPI's own pages of the schema would fetch their scripts from the network.
    app = FastAPI(
        title="Dreambooth", version=__version__, openapi_url="/dreambooth/openapi.json", docs_url=None, redoc_url=None
    )
    # A name of somebody's own that leads here would make his page one of ours.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[ADDRESS, "localhost", "[::1]"])
    app.include_router(api.router(host))
    app.include_router(routes.router(host))

    def file(name: str) -> Response:
        return FileResponse(_FILES[name]) if name in _FILES else Response(status_code=404)

    app.add_api_route("/dreambooth/files/{name}", file, methods=["GET"], response_model=None)
    app.middleware("http")(_with_head)
    return dialect.serve(app, build(host))


async def _with_head(request: Request, answer: Callable[[Request], Awaitable[StreamingResponse]]) -> Response:
    """Adds the style and the script to the page itself, whatever gradio makes of its own head."""
    response = await answer(request)
    if request.url.path != "/" or not response.headers.get("content-type", "").startswith("text/html"):
        return response
    whole = b"".join([part if isinstance(part, bytes) else str(part).encode() async for part in response.body_iterator])
    body = whole.replace(b"</head>", _HEAD.encode(), 1)
    kept = {key: value for key, value in response.headers.items() if key not in ("content-length", "content-encoding")}
    return Response(body, response.status_code, kept)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m dreambooth ui")
    parser.add_argument("--data", help="the models folder")
    parser.add_argument("--port", type=int, default=7870)
    options = parser.parse_args(arguments)
    host = Standalone(options.data)
    try:
        listening = socket.create_server((ADDRESS, options.port))
    except OSError as error:
        print(f"--port: {options.port} cannot be used ({error.strerror}).", file=sys.stderr)
        return page_environment.PORT_IS_TAKEN
    queue.watch(host)
    server = uvicorn.Server(uvicorn.Config(application(host), log_level="warning"))
    print(f"The page is at http://{ADDRESS}:{options.port} (Ctrl-C ends it; a run goes on).", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listening])
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
