"""The three zones, and how a certificate says which one its holder is of.

A certificate of a zone names it twice: as a URI, which a server asks of its peer, and as a DNS name, which is all that
a gRPC client can ask of a server. Neither is an address: a service may move, and what takes its old address is not
taken for it.
"""

from __future__ import annotations

from enum import StrEnum


class Zone(StrEnum):
    """Who runs a process, and is trusted with what; see docs/architecture.md."""

    KEYS = "keys"
    COMPUTE = "compute"
    EDGE = "edge"

    @property
    def identity(self) -> str:
        """The URI (SPIFFE) in a certificate of the zone."""
        return f"spiffe://sealface/{self}"

    @property
    def server_name(self) -> str:
        """The DNS name in it."""
        return f"{self}.sealface"
