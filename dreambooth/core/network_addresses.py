"""Which addresses of a network are private."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# IPv6 addresses that end in one of IPv4, to which a router on the way may send what is sent to them (RFC 4291, 6052,
# 8215); those of 6to4 and Teredo Python knows.
_ENDING_IN_IPV4 = [ipaddress.ip_network(prefix) for prefix in ("::/96", "64:ff9b::/96", "64:ff9b:1::/48")]


def is_private(host: str) -> bool:
    """Whether an address in numbers is not one of the open internet; a name is judged where it leads, later."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.rstrip(".").lower()
        return name == "localhost" or name.endswith((".localhost", ".local", ".internal"))
    return any(not one.is_global or one.is_multicast for one in _meant(address))


def _meant(address: _Address) -> Iterator[_Address]:
    """The address, and those of IPv4 that stand in it."""
    if isinstance(address, ipaddress.IPv4Address):
        yield address
        return
    if address.ipv4_mapped:
        yield address.ipv4_mapped
        return
    yield ipaddress.IPv6Address("::1") if address.is_site_local else address
    if address.sixtofour:
        yield address.sixtofour
    if any(address in network for network in _ENDING_IN_IPV4):
        yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
