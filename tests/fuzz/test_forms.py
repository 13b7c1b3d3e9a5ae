"""Some hundred spoilt inputs of each form; `python -m tests.fuzz` (make soak) has a million."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.forms import Forms
from tests.keys.test_fuzz import spoilt

NAMES = (
    "decision request",
    "results",
    "renewal",
    "renewed block",
    "key",
    "public key",
    "evaluation key",
    "key version",
    "caller",
    "wrapped secret",
    "sealed decision",
    "signature",
)


@pytest.fixture(scope="module")
def forms() -> Iterator[Forms]:
    made = Forms()
    yield made
    made.close()


def test_all_forms_are_here(forms: Forms) -> None:
    assert set(forms.all) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_right_one_is_taken(forms: Forms, name: str) -> None:
    form = forms.all[name]
    assert form.samples
    assert all(form.try_(sample) for sample in form.samples)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), times=st.integers(1, 4))
def test_spoilt_ones_are_refused_or_taken(forms: Forms, name: str, seed: int, times: int) -> None:
    rng = random.Random(seed)
    data = rng.choice(forms.all[name].samples)
    for _ in range(times):
        data = spoilt(rng, data)
    forms.all[name].try_(data)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300))
def test_any_bytes_are_refused_or_taken(forms: Forms, name: str, data: bytes) -> None:
    forms.all[name].try_(data)
