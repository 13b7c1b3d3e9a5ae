"""What this service signs its requests for decisions with: a credential of its own, which is no operator's."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import grpc

from sealface.protocol.signing import Credential
from sealface_client import AsyncClient, Endpoints, ServiceError
from sealface_client.aio import CredentialMissing


async def own_credential(folder: Path, endpoints: Endpoints) -> Credential:
    """SEALFACE_CREDENTIAL's file; else one of its own, registered where an operator's credential lies beside it.

    Args:
        folder: the edge zone's state.
        endpoints: where the key service is.

    Raises:
        CredentialMissing: there is none, and nobody to register one.
        ServiceError: the key service did not register it.
    """
    named = os.environ.get("SEALFACE_CREDENTIAL")
    if named:
        return _load(Path(named))
    held, operator = _held(folder), _operator(folder)
    if operator is None:
        if held is None:
            raise CredentialMissing(
                "no signing credential for the edge service: make one (`sealface keys caller edge DIR`) and set "
                "SEALFACE_CREDENTIAL to its file"
            )
        return held
    if held is None:
        held = Credential.generate(f"callers/edge-{secrets.token_hex(4)}")
        held.save(folder)  # before it is registered, which is repeated at every start
    await _register(held, operator, endpoints)
    return held


def _held(folder: Path) -> Credential | None:
    files = sorted(folder.glob("edge-*.pem"))
    return _load(files[0]) if files else None


def _operator(folder: Path) -> Credential | None:
    file = folder / "operator.pem"
    return _load(file) if file.exists() else None


def _load(file: Path) -> Credential:
    try:
        return Credential.load(file)
    except OSError:
        raise CredentialMissing(
            f"{file.name} cannot be read: name the edge service's credential in SEALFACE_CREDENTIAL"
        ) from None


async def _register(credential: Credential, operator: Credential, endpoints: Endpoints) -> None:
    async with AsyncClient(endpoints, operator) as client:
        try:
            await client.create_caller(credential.caller.removeprefix("callers/"), credential.verifying_key)
        except ServiceError as error:
            if error.code is not grpc.StatusCode.ALREADY_EXISTS:
                raise
