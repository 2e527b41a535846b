"""Sending a notice to a webhook: by https alone, to the open internet alone, and never showing the address.

A webhook's address is a password: who has it can write. It stands in no event, no log and no output.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from dreambooth.core import network_addresses

SECONDS = 10  # for each of connecting and answering


@dataclass(frozen=True)
class Allowed:
    """Where a notice may go. Nothing that a person sets changes it; a test names its own server."""

    schemes: tuple[str, ...] = ("https",)
    private_addresses: tuple[str, ...] = ()


def post(url: str, text: str, allowed: Allowed = Allowed()) -> str:
    """Sends a text as Discord and Slack take it. Returns why it could not be sent, without the address; else nothing.

    The address that was judged is the one that is connected to, and no redirection is followed.
    """
    parts = urlsplit(url)
    if parts.scheme not in allowed.schemes or not parts.hostname:
        return "it is no https address"
    host, port = parts.hostname, parts.port or 443
    try:
        found = [str(place[4][0]) for place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        return "its host is not known"
    if any(network_addresses.is_private(address) and address not in allowed.private_addresses for address in found):
        return "it leads to this machine or its own network"
    body = json.dumps({"content": text, "text": text})
    headers = {"Content-Type": "application/json", "User-Agent": "dreambooth", "Host": parts.netloc}
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
    try:
        connection.sock = socket.create_connection((found[0], port), timeout=SECONDS)
        if parts.scheme == "https":
            connection.sock = ssl.create_default_context().wrap_socket(connection.sock, server_hostname=host)
        connection.request("POST", path, body, headers)
        status = connection.getresponse().status
    except ssl.SSLError:
        return "its certificate is not good"
    except (OSError, http.client.HTTPException):
        return "its host does not answer"
    finally:
        connection.close()
    return "" if 200 <= status < 300 else f"it answered {status}"
