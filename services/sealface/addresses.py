"""What an address says of the way to it."""

from __future__ import annotations

import ipaddress


def is_loopback(address: str) -> bool:
    """Whether what is sent to `host:port` stays on this machine; a name other than `localhost` is not looked up."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
