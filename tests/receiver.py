"""The other end of a webhook, for tests of both processes: it keeps what it is told and answers as it is set to."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from dreambooth.core.webhook import Allowed

HERE = Allowed(schemes=("http",), private_addresses=("127.0.0.1",))  # only a test can say this


class Receiver(http.server.BaseHTTPRequestHandler):
    got: list[dict[str, Any]]
    answer = 204

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.got.append({"path": self.path, "host": self.headers["Host"], **json.loads(body)})
        self.send_response(self.answer)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[http.server.HTTPServer]:
    handler = type("Handler", (Receiver,), {"got": []})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()
