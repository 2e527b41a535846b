"""Which addresses of a network are private."""

from __future__ import annotations

import ipaddress


def is_private(host: str) -> bool:
    """Whether an address in numbers is not one of the open internet; a name is judged where it leads, later."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith((".localhost", ".local", ".internal"))
    mapped = getattr(address, "ipv4_mapped", None)
    return not (mapped or address).is_global or address.is_multicast
