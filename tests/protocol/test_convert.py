from datetime import UTC, datetime

import pytest

from sealface.cipher.distance import Metric
from sealface.cipher.layout import EmbeddingTooLong, Layout, WrongDimension
from sealface.cipher.parameters import UnknownParameters, parameter_sets
from sealface.protocol import convert
from sealface.protocol.policy import InvalidPolicy, Policy
from sealface_protos.keys.v1 import key_pb2

POLICIES = [
    Policy(0.4, 0.3),
    Policy(0.0, 0.0, max_candidates=10, disclosure_step=0.01, version=7),
    Policy(0.4, 0.3, target_fpir=0.01, curve=((0.1, 1e-5), (0.2, 1e-3)), version=2**40),
]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_comes_back(policy):
    message = convert.policy_to_proto(policy)
    assert convert.policy_from_proto(key_pb2.Policy.FromString(message.SerializeToString())) == policy


@pytest.mark.parametrize("metric", Metric)
@pytest.mark.parametrize("parameters", parameter_sets())
def test_a_layout_comes_back(metric, parameters):
    layout = Layout.of(parameters.name, 512, metric, 3.5)
    message = convert.layout_to_proto(layout)
    assert convert.layout_from_proto(parameters.name, message) == layout
    assert bool(message.largest_norm) is (metric is Metric.EUCLIDEAN)


def test_every_metric_of_the_contract_is_known():
    values = {value for value in key_pb2.Metric.values() if value}
    assert {convert.metric_to_proto(metric) for metric in Metric} == values


def test_an_empty_parameter_set_takes_the_smallest_that_fits():
    def chosen(dimension):
        message = key_pb2.ScoreFormat(dimension=dimension, metric=key_pb2.METRIC_COSINE)
        return convert.layout_from_proto("", message).parameters.degree

    assert (chosen(128), chosen(2048), chosen(4096)) == (4096, 4096, 8192)


@pytest.mark.parametrize(
    ("parameter_set", "fields", "error"),
    [
        ("", {"dimension": 128}, convert.MissingField),
        ("", {"dimension": 128, "metric": 99}, convert.MissingField),
        ("nonsense", {"dimension": 128, "metric": 1}, UnknownParameters),
        ("", {"metric": 1}, WrongDimension),
        ("", {"dimension": 1, "metric": 1}, WrongDimension),
        ("", {"dimension": 4097, "metric": 1}, UnknownParameters),
        ("", {"dimension": 2**32 - 1, "metric": 1}, UnknownParameters),
        ("ckks-n4096-v1", {"dimension": 2049, "metric": 1}, WrongDimension),
        ("", {"dimension": 128, "metric": 2}, EmbeddingTooLong),
        ("", {"dimension": 128, "metric": 2, "largest_norm": float("nan")}, EmbeddingTooLong),
        ("", {"dimension": 128, "metric": 2, "largest_norm": float("inf")}, EmbeddingTooLong),
        ("", {"dimension": 128, "metric": 2, "largest_norm": -1.0}, EmbeddingTooLong),
    ],
)
def test_a_score_format_that_means_nothing_is_refused(parameter_set, fields, error):
    with pytest.raises(error):
        convert.layout_from_proto(parameter_set, key_pb2.ScoreFormat(**fields))


def test_missing_fields_of_a_policy_are_named():
    def without(field):
        message = convert.policy_to_proto(POLICIES[1])
        message.ClearField(field)
        with pytest.raises((convert.MissingField, InvalidPolicy)) as caught:
            convert.policy_from_proto(message)
        return caught.value

    assert without("identification").metadata == {"field": "policy.identification"}
    assert without("disclosure").metadata == {"field": "policy.disclosure"}
    assert without("disclosure_step").metadata == {"field": "policy.disclosure_step"}
    assert isinstance(without("max_candidates"), InvalidPolicy)


def test_a_step_means_nothing_where_only_the_decision_is_told():
    message = convert.policy_to_proto(POLICIES[1])
    message.disclosure = key_pb2.DISCLOSURE_DECISION
    assert convert.policy_from_proto(message).disclosure_step == 0


def test_times_and_pages():
    when = datetime(2026, 3, 4, 5, 6, 7, 891000, UTC)
    assert convert.timestamp(when).ToDatetime(UTC) == when
    assert [convert.page_limit(size) for size in (0, 1, 1000, 1001, 2**32 - 1)] == [100, 1, 1000, 1000, 1000]
