"""What can go wrong, as types that know no transport.

A module that detects a cause defines one error class for it, derived from one of the kinds below; the class
name is the reason a caller can test for (`NoFace` -> `NO_FACE`). The message names the caller's next step and
never holds a face, an embedding, a score or a path of the server. `runtime.status` maps kinds to gRPC.
"""

from __future__ import annotations

import re


class SealfaceError(Exception):
    """Base of every error a caller may see.

    Args:
        message: one line, what is wrong and what to do next.
        metadata: machine-readable details (limits, names), strings only.
    """

    def __init__(self, message: str, **metadata: object) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = {key: str(value) for key, value in metadata.items()}

    @property
    def reason(self) -> str:
        """UPPER_SNAKE_CASE of the class name, as in google.rpc.ErrorInfo.reason."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).upper()


class InvalidInput(SealfaceError):
    """The request is wrong whatever the state of the system."""


class NotFound(SealfaceError):
    """A named resource does not exist."""


class AlreadyExists(SealfaceError):
    """The resource to be made exists."""


class WrongState(SealfaceError):
    """The system's state does not allow it now; the message says what would change that."""


class Denied(SealfaceError):
    """The caller is known but may not."""


class Unauthenticated(SealfaceError):
    """The caller's credential is missing, unknown or does not verify."""


class LimitExceeded(SealfaceError):
    """A size, rate or count is over its limit."""


class Unavailable(SealfaceError):
    """A dependency is away; the same call may be retried."""


class DataCorrupted(SealfaceError):
    """Stored bytes do not match their digest: an operator is needed."""
