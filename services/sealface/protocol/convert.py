"""The contract's messages to domain types and back, for what clients and services share."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from sealface.cipher.distance import Metric
from sealface.cipher.layout import Layout
from sealface.errors import InvalidInput
from sealface.protocol import names
from sealface.protocol.policy import Budget, Policy
from sealface.protocol.rights import ALL, Grant, Role
from sealface_protos.keys.v1 import caller_pb2, key_pb2

PAGE_SIZE = 100
LARGEST_PAGE = 1000

_METRICS = {
    key_pb2.METRIC_COSINE: Metric.COSINE,
    key_pb2.METRIC_EUCLIDEAN: Metric.EUCLIDEAN,
    key_pb2.METRIC_EUCLIDEAN_L2: Metric.EUCLIDEAN_L2,
    key_pb2.METRIC_ANGULAR: Metric.ANGULAR,
}
_ROLES = {
    caller_pb2.GALLERY_ROLE_ADMIN: Role.ADMIN,
    caller_pb2.GALLERY_ROLE_ENROLLER: Role.ENROLLER,
    caller_pb2.GALLERY_ROLE_VERIFIER: Role.VERIFIER,
    caller_pb2.GALLERY_ROLE_AUDITOR: Role.AUDITOR,
}
_ROLE_VALUES = {role: value for value, role in _ROLES.items()}
_METRIC_VALUES = {metric: value for value, metric in _METRICS.items()}


class MissingField(InvalidInput):
    """A required field is not set, or an enumeration has a value this version does not know."""


def missing(field: str) -> MissingField:
    """The error for a field."""
    return MissingField(f"{field} is required", field=field)


def timestamp(value: datetime) -> Timestamp:
    """A protobuf timestamp."""
    stamp = Timestamp()
    stamp.FromDatetime(value)
    return stamp


def page_limit(page_size: int) -> int:
    """Items of a page for a requested page_size (AIP-158)."""
    return min(page_size or PAGE_SIZE, LARGEST_PAGE)


def metric_to_proto(metric: Metric) -> key_pb2.Metric.ValueType:
    """A metric's value in the contract."""
    return _METRIC_VALUES[metric]


def layout_from_proto(parameter_set: str, score_format: key_pb2.ScoreFormat) -> Layout:
    """A layout; an empty parameter set takes the smallest that fits.

    Raises:
        MissingField: no metric.
        UnknownParameters, WrongDimension, EmbeddingTooLong: see `Layout`.
    """
    metric = _METRICS.get(score_format.metric)
    if metric is None:
        raise missing("score_format.metric")
    return Layout.of(parameter_set, score_format.dimension, metric, score_format.largest_norm)


def layout_to_proto(layout: Layout) -> key_pb2.ScoreFormat:
    """A layout's score format."""
    return key_pb2.ScoreFormat(
        dimension=layout.dimension,
        metric=metric_to_proto(layout.metric),
        largest_norm=0.0 if layout.metric.normalised else layout.largest_norm,
    )


def policy_from_proto(message: key_pb2.Policy) -> Policy:
    """A policy.

    Raises:
        MissingField: no identification rule or disclosure.
        InvalidPolicy: see `Policy`.
    """
    if not message.HasField("identification"):
        raise missing("policy.identification")
    if message.disclosure == key_pb2.DISCLOSURE_UNSPECIFIED:
        raise missing("policy.disclosure")
    disclosed = message.disclosure == key_pb2.DISCLOSURE_ROUNDED_DISTANCE
    if disclosed and not message.disclosure_step:
        raise missing("policy.disclosure_step")
    return Policy(
        verification_threshold=message.verification_threshold,
        identification_threshold=message.identification.threshold,
        target_fpir=message.identification.target_fpir,
        curve=tuple((point.distance, point.rate) for point in message.identification.curve),
        max_candidates=message.max_candidates,
        disclosure_step=message.disclosure_step if disclosed else 0.0,
        version=message.version,
        budget=budget_from_proto(message.budget),
    )


def budget_from_proto(message: key_pb2.Budget) -> Budget:
    """A budget; what is not set is as it is by default."""
    return Budget(**{field.name: value for field, value in message.ListFields()})


def budget_to_proto(budget: Budget) -> key_pb2.Budget:
    """A budget's message."""
    return key_pb2.Budget(**vars(budget))


def policy_to_proto(policy: Policy) -> key_pb2.Policy:
    """A policy's message."""
    return key_pb2.Policy(
        verification_threshold=policy.verification_threshold,
        identification=key_pb2.IdentificationRule(
            threshold=policy.identification_threshold,
            target_fpir=policy.target_fpir,
            curve=[key_pb2.FalseMatchRate(distance=distance, rate=rate) for distance, rate in policy.curve],
        ),
        max_candidates=policy.max_candidates,
        disclosure=(key_pb2.DISCLOSURE_ROUNDED_DISTANCE if policy.disclosure_step else key_pb2.DISCLOSURE_DECISION),
        disclosure_step=policy.disclosure_step,
        version=policy.version,
        budget=budget_to_proto(policy.budget),
    )


def grant_from_proto(message: caller_pb2.Grant) -> Grant:
    """A role for a gallery, or for all.

    Raises:
        MissingField: there is no such role.
        InvalidName: the gallery is none.
    """
    role = _ROLES.get(message.role)
    if role is None:
        raise missing("grants.role")
    everywhere = message.gallery == f"galleries/{ALL}"
    return Grant(role, ALL if everywhere else names.id_of(message.gallery, "galleries"))


def grant_to_proto(grant: Grant) -> caller_pb2.Grant:
    """A grant's message."""
    return caller_pb2.Grant(role=_ROLE_VALUES[grant.role], gallery=f"galleries/{grant.gallery}")
