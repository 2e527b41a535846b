"""Inputs: any JSON, and what is right but for a few places."""

# ruff: noqa: E501
from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

TEXTS = st.one_of(
    st.sampled_from(
        [
            "", " ", "..", "../..", "/etc/passwd", "C:\\Windows", "\\\\host\\share", "~", "~root/x", "a\x00b", "CON", "nul.txt",
            "%2e%2e%2f", "\udcff", "\ud800", "é" * 300, "a" * 5000, "\u202e", "{a|{b|c}}", "{" * 50, "[filewords]", "None",
            "NaN", "1e999", "-0", "0x10", "true", "<script>", "'; drop table", "{}", "\n\r\t", "🙂", "file:///etc/passwd",
            "http://169.254.169.254/", "https://[::1]/x", "https://hooks.example.com/x",
        ]
    ),
    st.text(max_size=40),
)  # fmt: skip
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 1, -1, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), -float("inf")]),
    TEXTS,
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=12
)


def dumped(value: Any) -> bytes:
    """JSON as Python writes it, with NaN, and surrogates that are no Unicode."""
    return json.dumps(value, default=str).encode(errors="surrogatepass")


@st.composite
def nearly(draw: Callable[..., Any], whole: Any) -> Any:
    """A JSON value in which up to three places are anything, gone, or doubled."""
    value = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        if not isinstance(value, (dict, list)) or not value:
            return draw(VALUES)
        at = value
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            key = draw(st.sampled_from(keys))
            if isinstance(at[key], (dict, list)) and at[key] and draw(st.booleans()):
                at = at[key]
                continue
            what = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
            if what == "remove":
                del at[key]
            elif what == "add" and isinstance(at, dict):
                at[draw(TEXTS)] = draw(VALUES)
            else:
                at[key] = draw(VALUES)
            break
    return value


@st.composite
def damaged(draw: Callable[..., Any], whole: bytes) -> bytes:
    """Bytes with up to four pieces replaced, cut out, doubled, or the end missing."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.sampled_from([1, 1, 2, 4, 8, 64]))
        what = draw(st.sampled_from(["replace", "replace", "flip", "cut", "double", "end"]))
        if what == "replace":
            data[at : at + length] = draw(st.binary(min_size=1, max_size=length))
        elif what == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "cut":
            del data[at : at + length]
        elif what == "double":
            data[at:at] = data[at : at + length]
        else:
            del data[at:]
    return bytes(data)


def json_bytes(whole: Any) -> st.SearchStrategy[bytes]:
    """A JSON file: right but for some places, anything at all, or bytes that once were one."""
    return st.one_of(nearly(whole).map(dumped), VALUES.map(dumped), damaged(dumped(whole)), st.binary(max_size=60))
