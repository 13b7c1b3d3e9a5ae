"""From a bearer token to a right. Callers are registered with the key service, which is asked now and then."""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import grpc
import jwt

from sealface.errors import InvalidInput, Unauthenticated, Unavailable
from sealface.protocol import convert, tokens
from sealface.protocol.rights import Right
from sealface.protocol.tokens import Claim, TokenRefused
from sealface.runtime.status import UpstreamError, from_rpc_error
from sealface_protos.keys.v1 import caller_pb2, key_service_pb2, key_service_pb2_grpc

FRESH_S = 5.0
"""For how long what the register said is taken as it was: so long may a caller that was withdrawn go on."""
_STALE_S = 600.0  # while the key service is away
_DEADLINE_S = 5.0
_CALLERS = 10_000
_KEYS_S = 3600
COOLDOWN_S = 30.0
"""For how long an issuer is not asked for its keys again, whatever key tokens name."""


class TokenMissing(Unauthenticated):
    """The call says nothing of who calls."""


class CallerUnknown(Unauthenticated):
    """Nobody is registered with such a token."""


class KeyServiceUnavailable(Unavailable):
    """The key service, which knows the callers, does not answer."""


class IssuerUnavailable(Unavailable):
    """An issuer's keys cannot be fetched."""


class InvalidIssuers(InvalidInput):
    """The file of issuers is none."""


@dataclass(frozen=True)
class Issuer:
    """Whose tokens are taken.

    Attributes:
        issuer: as tokens have it in `iss`.
        audience: that tokens must be for.
        jwks: where its keys are: https://, or a file, which is read again when a key is not in it.
    """

    issuer: str
    audience: str
    jwks: str


def read_issuers(path: Path) -> list[Issuer]:
    """Issuers of a file: a JSON list of objects with `issuer`, `audience` and `jwks`.

    Raises:
        InvalidIssuers: it is none.
    """
    try:
        found = [Issuer(**one) for one in json.loads(path.read_text())]
        whole = bool(found) and all(isinstance(value, str) and value for one in found for value in vars(one).values())
    except (OSError, ValueError, TypeError):
        whole = False
    if not whole or any(one.issuer.startswith("callers/") for one in found):
        raise InvalidIssuers(f"{path.name}: a list of objects with issuer, audience and jwks is needed")
    if any("://" in one.jwks and not one.jwks.startswith("https://") for one in found):
        raise InvalidIssuers(f"{path.name}: jwks is an https:// address or a file")
    return found


def bearer(metadata: Mapping[str, str | bytes]) -> str:
    """The token of a call.

    Raises:
        TokenMissing: it has none.
    """
    scheme, _, token = str(metadata.get("authorization", "")).partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise TokenMissing("this call needs a credential: set SEALFACE_CREDENTIAL or SEALFACE_TOKEN")
    return token


class Authenticator:
    """Knows callers by their tokens.

    Args:
        channel: to the key service's address for services.
        issuers: whose tokens are taken beside those of the key service's own callers.
    """

    def __init__(self, channel: grpc.aio.Channel, issuers: Sequence[Issuer] = ()) -> None:
        self._stub: key_service_pb2_grpc.KeyServiceAsyncStub = key_service_pb2_grpc.KeyServiceStub(channel)
        # one fetch at a time: an issuer that is away must not take all threads
        self._issuers = {issuer.issuer: (issuer, _key_set(issuer.jwks), asyncio.Lock()) for issuer in issuers}
        self._known: OrderedDict[bytes, tuple[float, caller_pb2.Caller]] = OrderedDict()

    async def right(self, metadata: Mapping[str, str | bytes]) -> Right:
        """Who calls, and what they may do.

        Raises:
            TokenMissing, TokenRefused, CallerUnknown, KeyServiceUnavailable, IssuerUnavailable: see there.
        """
        token = bearer(metadata)
        claim = tokens.claim_of(token)
        if claim.issuer:
            caller = await self._of_issuer(token, claim)
        else:
            caller = await self._registered(_asked(claim))
            if claim.caller:
                tokens.verify_signed(token, claim.caller, caller.verifying_key)
        grants = tuple(convert.grant_from_proto(grant) for grant in caller.grants)
        return Right(caller.name, grants)

    async def _of_issuer(self, token: str, claim: Claim) -> caller_pb2.Caller:
        if claim.issuer not in self._issuers:
            raise TokenRefused("the token is of an issuer that is not trusted here: ask the operator")
        issuer, keys, alone = self._issuers[claim.issuer]
        try:
            async with alone:
                key = await asyncio.to_thread(keys.get_signing_key_from_jwt, token)
            subject = tokens.verify_issued(token, issuer.issuer, issuer.audience, key.key)
        except jwt.PyJWKClientConnectionError:
            raise IssuerUnavailable("the issuer's keys cannot be fetched now: try again") from None
        except (jwt.PyJWKClientError, jwt.InvalidTokenError):
            raise TokenRefused("the token is signed with no key of its issuer: get a new one") from None
        oidc = caller_pb2.OidcIdentity(issuer=issuer.issuer, subject=subject)
        return await self._registered(key_service_pb2.FindCallerRequest(oidc=oidc))

    async def _registered(self, asked: key_service_pb2.FindCallerRequest) -> caller_pb2.Caller:
        name, now = asked.SerializeToString(deterministic=True), time.monotonic()
        seen, caller = self._known.get(name, (now - _STALE_S, None))
        if caller is not None and now - seen < FRESH_S:
            return caller
        try:
            found = await self._stub.FindCaller(asked, timeout=_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            said = from_rpc_error(error, None)
            if isinstance(said, UpstreamError) and said.code in _NOBODY:
                self._known.pop(name, None)
                raise CallerUnknown("nobody is registered with this credential: an operator must register it") from None
            if caller is not None and now - seen < _STALE_S:
                return caller
            raise KeyServiceUnavailable(
                "the key service, which knows the callers, does not answer: try again"
            ) from None
        self._known[name] = (now, found)
        while len(self._known) > _CALLERS:
            self._known.popitem(last=False)
        return found


_NOBODY = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)


def _asked(claim: Claim) -> key_service_pb2.FindCallerRequest:
    if claim.digest:
        return key_service_pb2.FindCallerRequest(token_digest=claim.digest)
    return key_service_pb2.FindCallerRequest(name=claim.caller)


class _Keys(Protocol):
    def get_signing_key_from_jwt(self, token: str) -> jwt.PyJWK: ...


def _key_set(jwks: str) -> _Keys:
    """An issuer's keys; they are fetched when they are needed, and again when a token names another."""
    if "://" not in jwks:
        return _KeyFile(Path(jwks))
    return jwt.PyJWKClient(jwks, lifespan=_KEYS_S, timeout=_DEADLINE_S, cooldown_duration=COOLDOWN_S)


class _KeyFile:
    """Keys in a file: of an issuer that cannot be reached from here."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get_signing_key_from_jwt(self, token: str) -> jwt.PyJWK:
        """The key that a token names."""
        named = jwt.get_unverified_header(token).get("kid")
        try:
            held = jwt.PyJWKSet.from_dict(json.loads(self._path.read_text()))
        except (OSError, ValueError, jwt.PyJWKSetError):
            raise jwt.PyJWKClientConnectionError("the file of keys cannot be read") from None
        for key in held.keys:
            if key.key_id == named:
                return key
        raise jwt.PyJWKClientError("no such key")
