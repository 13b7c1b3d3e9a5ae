"""Bearer tokens: those that a caller signs with its own credential, static ones, and those of OpenID Connect issuers.

A token says who calls, to the services of compute; it is worth nothing at the key service, which has every decision
signed by itself. Signed and issued tokens are JWTs (RFC 7519) with EdDSA, RS256 or ES256 (RFC 7518, RFC 8037).
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from sealface.errors import Unauthenticated
from sealface.protocol.signing import Credential

AUDIENCE = "sealface"
"""What a token that callers sign is for."""
LIFETIME_S = 300
_LEEWAY_S = 30
_PREFIX = "sft_"
_LONGEST = 8192
_ISSUED = ["RS256", "ES256", "EdDSA", "PS256"]


class TokenRefused(Unauthenticated):
    """A token is none, has lapsed, is meant for somebody else, or is signed by nobody known."""


@dataclass(frozen=True)
class Claim:
    """Whom a token says its bearer is, before anybody has looked whether that is so.

    Attributes:
        caller: name of the caller that has signed it, or empty.
        issuer: of whom it is, or empty.
        digest: SHA-256 of a static token, or empty.
    """

    caller: str = ""
    issuer: str = ""
    digest: bytes = b""


def new_static() -> tuple[str, bytes]:
    """A static token of 256 random bits, and its digest, by which the key service knows it."""
    token = _PREFIX + os.urandom(32).hex()
    return token, digest(token)


def digest(token: str) -> bytes:
    """SHA-256: a token has 256 random bits, so that nothing slower is needed."""
    return hashlib.sha256(token.encode()).digest()


class Signed:
    """Tokens that a caller signs for itself; one lasts for some minutes, and is used until it nearly lapses.

    Args:
        credential: the caller's.
    """

    def __init__(self, credential: Credential) -> None:
        self._credential = credential
        self._token, self._until = "", 0.0

    def __call__(self) -> str:
        """A token that is good for a while."""
        now = time.time()
        if not now < self._until:
            name = self._credential.caller
            claims = {"iss": name, "sub": name, "aud": AUDIENCE, "iat": int(now), "exp": int(now) + LIFETIME_S}
            self._token = jwt.encode(claims, self._credential.key, "EdDSA")
            self._until = now + LIFETIME_S / 2
        return self._token


def claim_of(token: str) -> Claim:
    """Whom a token names.

    Raises:
        TokenRefused: it is none.
    """
    if len(token) <= _LONGEST and token.startswith(_PREFIX):
        return Claim(digest=digest(token))
    try:
        if len(token) > _LONGEST:
            raise jwt.InvalidTokenError
        issuer = jwt.decode(token, options={"verify_signature": False}).get("iss")
    except (jwt.InvalidTokenError, RecursionError):
        issuer = None
    if not isinstance(issuer, str) or not issuer:
        raise TokenRefused("the token is none that this service takes: sign one, or ask an operator for one")
    return Claim(caller=issuer) if issuer.startswith("callers/") else Claim(issuer=issuer)


def verify_signed(token: str, caller: str, verifying_key: bytes) -> None:
    """Check a token that a caller has signed.

    Raises:
        TokenRefused: the caller has not, or it is not for these services, or not for now.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(verifying_key)
        claims = _decoded(token, key, ["EdDSA"], AUDIENCE, caller)
    except ValueError:
        raise _refused("the caller has no signing key") from None
    if claims["exp"] - claims["iat"] > LIFETIME_S:
        raise _refused(f"it lasts for more than {LIFETIME_S} seconds")


def verify_issued(token: str, issuer: str, audience: str, key: object) -> str:
    """Check an issuer's token; returns its subject.

    Args:
        token: the token.
        issuer: whose it must be.
        audience: whom it must be for.
        key: the issuer's that the token names.

    Raises:
        TokenRefused: it is not what it must be.
    """
    return str(_decoded(token, key, _ISSUED, audience, issuer)["sub"])


def _decoded(token: str, key: Any, algorithms: list[str], audience: str, issuer: str) -> dict[str, Any]:
    required = ["exp", "iat", "aud", "iss", "sub"]
    try:
        found: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=algorithms,
            audience=audience,
            issuer=issuer,
            leeway=_LEEWAY_S,
            options={"require": required},
        )
    except jwt.ExpiredSignatureError:
        raise _refused("it has lapsed") from None
    except jwt.InvalidAudienceError:
        raise _refused("it is for another audience") from None
    except (jwt.InvalidTokenError, TypeError, ValueError):
        raise _refused("its signature or its claims are not what they must be") from None
    return found


def _refused(why: str) -> TokenRefused:
    return TokenRefused(f"the token is refused: {why}: get a new one")
