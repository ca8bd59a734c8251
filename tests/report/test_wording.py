import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowgrain.evaluate.table import MetricDifference
from flowgrain.report.sections.summary import pair_sentence
from flowgrain.report.wording import decimals_for, difference_sentence, duration, interval, number


def difference(value, half, name="loss", higher=False):
    return MetricDifference(name, "held-out", "whole", "slices", value, value - half, value + half, 0.95, 30, higher)


@pytest.mark.parametrize(
    ("value", "decimals", "sign", "text"),
    [
        (-0.0123, 3, True, "−0.012"),
        (0.5, 1, True, "+0.5"),
        (-0.0001, 2, True, "0.00"),
        (979200, 0, False, "979\u2009200"),
    ],
)
def test_numbers(value, decimals, sign, text):
    assert number(value, decimals, sign) == text


@given(st.floats(1e-5, 1e4))
def test_decimals_show_two_digits_of_the_half_width(half):
    decimals = decimals_for(-half, half)
    if 0 < decimals < 6:
        assert 10 <= round(half * 10**decimals, 6) <= 100
    assert 0 <= decimals <= 6


def test_intervals_and_durations():
    assert interval(-0.0151, -0.0089, sign=True) == "−0.0151 to −0.0089"
    assert [duration(s) for s in (1.25, 130, 7300)] == ["1.2 s", "2 min 10 s", "2 h 1 min"]


def test_sentence_names_whoever_is_ahead():
    assert "slices is ahead" in difference_sentence(difference(-0.01, 0.005))
    assert "whole is ahead" in difference_sentence(difference(0.01, 0.005))
    assert "slices is ahead" in difference_sentence(difference(0.01, 0.005, higher=True))
    assert "no difference that the interval supports" in difference_sentence(difference(0.01, 0.02))


def test_pair_sentence_is_fair_to_both_arms():
    mixed = [difference(-1.0, 0.5), difference(-1.0, 0.5), difference(1.0, 0.5), difference(0.1, 0.5)]
    sentence = pair_sentence(mixed)
    assert re.search(r"slices is ahead on 2 of 4 measures, whole on 1, no difference .* on 1\.", sentence)
    turned = pair_sentence([difference(-d.value, 0.5) for d in mixed])
    assert re.search(r"whole is ahead on 2 of 4 measures, slices on 1, no difference .* on 1\.", turned)
    tie = pair_sentence([difference(-1.0, 0.5), difference(1.0, 0.5)])
    assert "slices and whole are each ahead on 1 of 2 measures." in tie
    assert "no difference that the interval supports, on any of 2 measures" in pair_sentence([difference(0.0, 1.0)] * 2)
