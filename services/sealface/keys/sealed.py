"""A key service without its key-encryption key is sealed: it listens, says so in health, and unseals by itself.

Afterwards the provider may go away again: keys in use stay open, so the service goes on, and what needs the provider
fails alone. Health has a name of its own for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog

from sealface.errors import SealfaceError, Unavailable
from sealface.runtime.looking import Looking

KEY_ENCRYPTION = "key-encryption"
"""In health, the provider of the key-encryption key: whether it answered when it was looked at last."""
LOOK_S = 30.0
_FIRST_S, _LONGEST_S = 0.5, 5.0
_SERVICE = "/sealface.keys.v1.KeyService/"
_WITHOUT_SECRETS = frozenset(
    _SERVICE + method
    for method in (
        "GetKey",
        "ListKeys",
        "GetKeyVersion",
        "ListKeyVersions",
        "GetMaterial",
        "RegisterKey",
        "RegisterKeyVersion",
        "UploadEvaluationKey",
        "UpdateKey",
        "UpdateKeyVersion",
        "DestroyKeyVersion",
        "RestoreKeyVersion",
        "UpdatePolicy",
        "CreateCaller",
        "ListCallers",
        "UpdateCaller",
        "FindCaller",
        "DeleteCaller",
        "ListUsage",
        "ExportAudit",
    )
)
_log = structlog.get_logger("sealface.seal")


class KeysSealed(Unavailable):
    """The key service cannot open its secrets yet."""


class Seal(Looking):
    """Looks for the key-encryption key in the background: until the service is unsealed, and every now and then after.

    Args:
        unseal: opens what the service cannot do without.
        probe: has the provider wrap and unwrap.
        report: told whether a part of health is well: `KEY_ENCRYPTION`, or the whole of it without a name.
        look_s: seconds between looks once it is unsealed.
    """

    def __init__(
        self,
        unseal: Callable[[], object],
        probe: Callable[[], object],
        report: Callable[..., None],
        look_s: float = LOOK_S,
    ) -> None:
        super().__init__("seal", _FIRST_S)
        self._unseal = unseal
        self._probe = probe
        self._report = report
        self._look_s = look_s
        self._reason = "it has not looked yet"
        self._lost = False
        self.sealed = True

    def check(self) -> None:
        """Refuse while it is sealed.

        Raises:
            KeysSealed: see there.
        """
        if self.sealed:
            raise KeysSealed(f"the key service is sealed until it has its key-encryption key: {self._reason}")

    def start(self) -> None:
        """Look once at once."""
        self._report(False)
        self.look()
        super().start()

    def look(self) -> None:
        """Unseal if that can be, and see whether the provider answers."""
        try:
            self._look()
        finally:
            self.pause_s = min(2 * self.pause_s, _LONGEST_S) if self.sealed else self._look_s

    def _look(self) -> None:
        try:
            if self.sealed:
                self._unseal()
            self._probe()
        except Exception as error:
            told = error.message if isinstance(error, SealfaceError) else "see the key service's log"
            if not self._lost or told != self._reason:
                event = "sealed" if self.sealed else "key-encryption key lost"
                _log.warning(event, error=type(error).__name__, message=told)
            self._reason, self._lost = told, True
            self._report(False, KEY_ENCRYPTION)
            return
        if self.sealed or self._lost:
            _log.info("unsealed" if self.sealed else "key-encryption key found")
        self._report(True, KEY_ENCRYPTION)
        if self.sealed:
            self.sealed = False
            self._report(True)
        self._lost = False


class SealInterceptor(grpc.aio.ServerInterceptor):
    """Refuses what needs a secret while the service is sealed, before a signature is looked at or a nonce consumed.

    What is not listed as needing none is refused, so a method added later is until somebody lists it.
    """

    def __init__(self, seal: Seal) -> None:
        self._seal = seal

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of a method that needs a secret."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if not self._seal.sealed or not method.startswith(_SERVICE) or method in _WITHOUT_SECRETS or handler is None:
            return handler

        async def refuse(request: Any, context: Any) -> Any:
            self._seal.check()
            raise KeysSealed("the key service has been unsealed just now: try again")

        async def refuse_stream(request: Any, context: Any) -> AsyncIterator[Any]:
            yield await refuse(request, context)

        kinds = (
            "stream" if streaming else "unary" for streaming in (handler.request_streaming, handler.response_streaming)
        )
        make = getattr(grpc, f"{'_'.join(kinds)}_rpc_method_handler")
        return make(refuse_stream if handler.response_streaming else refuse)
