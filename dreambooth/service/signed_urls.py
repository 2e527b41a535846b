"""Addresses that a browser asks for without headers of ours: pictures, and files to download. Each carries a seal that
the page's secret has made for it, and that is good for nothing else: whoever is given such a link sees what it shows.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from urllib.parse import parse_qsl, unquote

SEAL = "seal"  # in the query
_ROOT = "/dreambooth/models/"  # before it there may be whatever a proxy puts there


def sealed(secret: str, address: str) -> str:
    """An address, `dreambooth/...?...` as the page has it, with its seal."""
    path, _, query = address.partition("?")
    return f"{address}&{SEAL}={_seal(secret, unquote(path), query)}"


def is_sealed(secret: str, path: str, query: str) -> bool:
    """Whether a request's path, as it is decoded, and its query are an address that was sealed."""
    given = next((value for key, value in parse_qsl(query) if key == SEAL), "")
    return hmac.compare_digest(given.encode(), _seal(secret, path, query).encode())


def _seal(secret: str, path: str, query: str) -> str:
    of_model = f"/{path}".rpartition(_ROOT)[2]  # has the root nowhere in it, as a model's name has no slash
    parameters = sorted((key, value) for key, value in parse_qsl(query, keep_blank_values=True) if key != SEAL)
    text = json.dumps([of_model, parameters])
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
