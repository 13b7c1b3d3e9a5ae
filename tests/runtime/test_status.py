import importlib
import pkgutil
import re

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

import sealface
import sealface_client
from sealface import errors
from sealface.enrollment.key_source import KeyServiceRefused  # carries the key service's reason, and is made of it
from sealface.errors import SealfaceError
from sealface.protocol.scores import ScoresMisplaced, ScoresNotGenuine
from sealface.protocol.sealing import DecisionNotGenuine, SecretNotForUs
from sealface.runtime import status
from sealface_client.errors import ServiceError
from tests.conftest import only_info

CODES = {
    errors.InvalidInput: "INVALID_ARGUMENT",
    errors.NotFound: "NOT_FOUND",
    errors.AlreadyExists: "ALREADY_EXISTS",
    errors.WrongState: "FAILED_PRECONDITION",
    errors.Denied: "PERMISSION_DENIED",
    errors.Unauthenticated: "UNAUTHENTICATED",
    errors.LimitExceeded: "RESOURCE_EXHAUSTED",
    errors.Unavailable: "UNAVAILABLE",
    errors.DataCorrupted: "DATA_LOSS",
}
# of no kind: said by no service (inside a box, or a client's finding), or carrying the code that a service said
NO_KIND = {
    ScoresMisplaced,
    ScoresNotGenuine,
    DecisionNotGenuine,
    SecretNotForUs,
    status.InternalError,
    status.UpstreamError,
    ServiceError,
}


def every_error() -> list[type[SealfaceError]]:
    for package in (sealface, sealface_client):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if "migrations." in module.name:  # Alembic's, to be run by it alone
                continue
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:  # an extra that is not installed
                assert (error.name or "").split(".")[0] not in {"sealface", "sealface_client"}

    def below(kind: type[SealfaceError]) -> set[type[SealfaceError]]:
        return {kind}.union(*(below(child) for child in kind.__subclasses__()))

    return sorted(
        below(SealfaceError) - {SealfaceError, KeyServiceRefused}, key=lambda kind: f"{kind.__module__}.{kind.__name__}"
    )


ERRORS = [kind for kind in every_error() if kind.__module__.split(".")[0] in {"sealface", "sealface_client"}]


def test_errors_are_found():
    assert len(ERRORS) > 40
    assert set(CODES) < set(ERRORS)


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_has_one_kind_a_code_and_a_reason(kind):
    kinds = [known for known in CODES if issubclass(kind, known)]
    if kind in NO_KIND:
        assert kinds == []
        return
    assert len(kinds) == 1
    error = kind("what to do next", limit=3)
    said = status.to_status(error)
    assert status.code_of(error).name == CODES[kinds[0]]
    assert said.code == status.code_of(error).value[0]
    assert said.message == "what to do next"
    info = only_info(said)
    assert re.fullmatch(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*", info.reason)
    assert info.reason.replace("_", "") == kind.__name__.upper()
    assert info.metadata == {"limit": "3"}


def test_reasons_are_told_apart():
    """One cause may be found in two modules, then under one name and one kind."""
    by_reason: dict[str, set[str]] = {}
    for kind in ERRORS:
        if kind not in NO_KIND:
            by_reason.setdefault(kind("m").reason, set()).add(status.code_of(kind("m")).name)
    assert {reason: codes for reason, codes in by_reason.items() if len(codes) > 1} == {}


def test_what_is_of_no_kind_is_internal():
    assert status.code_of(status.InternalError("m")) is grpc.StatusCode.INTERNAL
    assert only_info(status.to_status(status.InternalError("m"))).reason == "INTERNAL_ERROR"


def failed(trailing: list[tuple[str, bytes]]) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(grpc.StatusCode.UNKNOWN, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), "secret")


def test_what_another_service_said_is_passed_on():
    said = status.to_status(errors.NotFound("look elsewhere", name="x"))
    error = status.from_rpc_error(failed([(status.STATUS_DETAILS_KEY, said.SerializeToString())]), SealfaceError("no"))
    assert status.to_status(error) == said


@pytest.mark.parametrize("trailing", [[], [("other", "x")], [(status.STATUS_DETAILS_KEY, b"")]])
def test_what_no_service_of_ours_said_is_replaced(trailing):
    instead = errors.Unavailable("again")
    assert status.from_rpc_error(failed(trailing), instead) is instead


def test_other_details_are_not_taken_for_a_reason():
    said = status_pb2.Status(code=5, message="m")
    said.details.add().Pack(error_details_pb2.DebugInfo(detail="x"))
    instead = errors.Unavailable("again")
    assert status.from_rpc_error(failed([(status.STATUS_DETAILS_KEY, said.SerializeToString())]), instead) is instead
