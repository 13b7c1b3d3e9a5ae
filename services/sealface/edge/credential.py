"""What this service signs its requests for decisions with: a credential of its own, which is no operator's.

Where an operator's credential lies in the state folder, one is made and registered with it before the service starts,
by a process of its own: `python -m sealface.edge.credential STATE`. The service itself, which decodes pictures from
strangers, can read neither the operator's credential nor the secret keys beside it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from pathlib import Path

import grpc

from sealface.errors import SealfaceError
from sealface.protocol.rights import ALL, Grant, Role
from sealface.protocol.signing import Credential
from sealface_client import AsyncClient, Endpoints, ServiceError
from sealface_client.aio import CredentialMissing

FOLDER = "edge-service"
"""The service's own folder in the state folder."""
GRANTS = (Grant(Role.VERIFIER, ALL),)
"""What it may do itself: have decisions. What its callers may is theirs."""


def own_credential(folder: Path) -> Credential:
    """SEALFACE_CREDENTIAL's file, else the one in the service's own folder.

    Raises:
        CredentialMissing: there is none.
        CredentialUnreadable: a file holds no signing key.
    """
    named = os.environ.get("SEALFACE_CREDENTIAL")
    file = Path(named) if named else _held(folder)
    if file is None:
        raise CredentialMissing(
            "no signing credential for the edge service: make one (`sealface keys caller edge DIR`) and set "
            "SEALFACE_CREDENTIAL to its file"
        )
    return Credential.load(file)


async def provide(state: Path) -> None:
    """Make the service's credential and register it, where an operator's is at hand; repeated at every start.

    Raises:
        NoServices: nothing says where the key service is.
        ServiceError: the key service did not register it.
    """
    operator = state / "edge" / "operator.pem"
    if os.environ.get("SEALFACE_CREDENTIAL") or not operator.exists():
        return
    folder = state / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    held = _held(folder)
    own = Credential.load(held) if held else Credential.generate(f"callers/edge-{secrets.token_hex(4)}")
    if held is None:
        own.save(folder)
    async with AsyncClient(Endpoints.discover(state), Credential.load(operator)) as client:
        caller_id = own.caller.removeprefix("callers/")
        try:
            await client.create_caller(caller_id, own.verifying_key, GRANTS)
        except ServiceError as error:
            if error.code is not grpc.StatusCode.ALREADY_EXISTS:
                raise
            await client.grant(caller_id, GRANTS)


def _held(folder: Path) -> Path | None:
    return next(iter(sorted(folder.glob("edge-*.pem"))), None)


if __name__ == "__main__":
    from sealface.edge.seeds import hand_over

    try:
        asyncio.run(provide(Path(sys.argv[1])))
        hand_over(Path(sys.argv[1]))
    except SealfaceError as error:
        sys.exit(error.message)
