"""What counts as this machine and its own network."""

# ruff: noqa: E501
from __future__ import annotations

import pytest

from dreambooth.core.network_addresses import is_private


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.8.9.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "fd12::1", "fec0::1", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1",
        "2002:7f00:1::", "2002:c0a8:101::1", "localhost", "LOCALHOST", "localhost.", "x.localhost", "printer.local", "a.internal.",
    ],
)  # fmt: skip
def test_private(host: str) -> None:
    assert is_private(host)


@pytest.mark.parametrize(
    "host", ["93.184.216.34", "2606:4700::1111", "2002:5db8:d822::1", "64:ff9b::5db8:d822", "example.com"]
)
def test_of_the_open_internet(host: str) -> None:
    assert not is_private(host)
