import pytest

from sealface.runtime.timing import SERVER_TIMING, format_timing, parse_timing


def test_the_form_is_that_of_server_timing():
    assert SERVER_TIMING == "server-timing"
    assert format_timing({"expand": 1.25, "pass": 3.0}) == "expand;dur=1.250, pass;dur=3.000"
    assert format_timing({}) == ""


@pytest.mark.parametrize(
    "told", [{}, {"expand": 0.0}, {"expand": 1.5, "multiply": 0.001, "pass": 12345.678}, {"a": 1e-3, "b": 86_400_000.0}]
)
def test_what_is_told_comes_back(told):
    assert parse_timing(format_timing(told)) == pytest.approx(told)


def test_of_several_steps_of_one_name_the_sum_is_told():
    assert parse_timing("open;dur=1, pass;dur=2, open;dur=3.5") == {"open": 4.5, "pass": 2.0}
    both = ", ".join([format_timing({"pass": 1.0}), format_timing({"pass": 2.0, "open": 4.0})])
    assert parse_timing(both) == {"pass": 3.0, "open": 4.0}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("", {}),
        (",", {}),
        ("expand", {}),
        ("expand;dur=", {}),
        ("expand;dur=fast", {}),
        ("expand;dur=1;dur=2", {}),
        ("cache;desc=x, pass;dur=7", {"pass": 7.0}),
        ("  pass;dur=7  ,", {"pass": 7.0}),
        ("pass;dur=7, \x00\xff, pass;dur=1e2", {"pass": 107.0}),
    ],
)
def test_what_is_no_timing_is_left_out(value, told):
    assert parse_timing(value) == told
