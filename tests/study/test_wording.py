"""A number in words."""

import math

import numpy as np
import pytest

from benchlib.study import figure
from benchlib.study.wording import (
    agreeing,
    counted,
    number,
    numbers,
    numbers_apart,
    per_second,
    span,
    words,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12345, "0.123"), (12.345, "12.3"), (0.0004, "0"), (-0.0001, "0"), (1234.5, "1,234")],
)
def test_a_number_has_three_digits_at_most_and_no_minus_before_a_zero(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(6.6251, "6.63"), (6.6249, "6.62"), (0.12349, "0.123"), (0.99951, "1"), (-6.6251, "-6.63")],
)
def test_a_number_is_rounded_once(value, text):
    assert number(value) == text


@pytest.mark.parametrize("value", [*np.geomspace(1e-7, 1e9, 400), math.pi * 1e-4, 99.95, 999.5])
def test_a_number_is_the_nearest_of_its_digits_and_has_no_exponent(value):
    for signed in (value, -value):
        text = number(signed)
        assert "e" not in text
        assert text != "-0"
        digits = max(0, min(3, 2 - math.floor(math.log10(value))))
        error = abs(float(text.replace(",", "")) - signed)
        assert error <= 0.5 * 10**-digits * (1 + 1e-9)


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        ((1.1, 1.3), "1.2 times (1.1 to 1.3)"),
        (None, "1.2 times"),
        ((math.nan, math.nan), "1.2 times"),
    ],
)
def test_a_value_comes_with_its_unit_and_its_interval(interval, text):
    assert words(1.2, interval, "times") == text


def test_a_missing_interval_may_be_said():
    assert words(1.2, None, "times", no_interval="no interval") == "1.2 times (no interval)"
    assert words(1.2, (1, 2), no_interval="no interval") == "1.2 (1.0 to 2.0)"


@pytest.mark.parametrize("value", [None, math.nan])
def test_a_value_that_is_not_known_is_no_number(value):
    assert words(value, None, "s") == "not known"


def test_a_span_of_numbers_that_are_written_alike_is_one_number():
    assert span([0.2, 0.9, 0.5]) == "0.2 to 0.9"
    assert span([0.2001, 0.2002]) == "0.2"
    assert span([]) == "not known"


@pytest.mark.parametrize(("count", "text"), [(0, "0 runs"), (1, "1 run"), (1500, "1,500 runs")])
def test_a_count_comes_with_its_noun(count, text):
    assert counted(count, "run") == text


def test_whiskers_reach_as_far_as_their_intervals():
    ax = figure.axes(None)
    above = figure.whiskers(ax, [1, 2], [10.0, 20.0], [(8, 13), None], marker="o")
    assert above.tolist() == [3, 0]
    across = figure.whiskers(ax, [10.0], [1], [(9, 14)], horizontal=True)
    assert across.tolist() == [4]


def test_a_verb_agrees_with_its_count():
    assert [agreeing(count, "shows", "show") for count in (0, 1, 2)] == ["show", "shows", "show"]


@pytest.mark.parametrize(
    ("rate", "text"), [(1, "1 image/s"), (1.0004, "1 image/s"), (0.5, "0.5 images/s")]
)
def test_a_rate_of_one_is_one_image(rate, text):
    assert per_second(rate) == text
    assert words(rate, None, "images/s") == text
    assert per_second(rate, "request") == text.replace("image", "request")


def test_a_ratio_of_one_is_no_single_time() -> None:
    assert words(1.0, (0.98, 1.03), "times") == "1.00 times (0.98 to 1.03)"
    assert words(1.2, unit="times serial's") == "1.2 times serial's"


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ((0.56, 0.654), ["0.560", "0.654"]),
        ((35, 34.3, 35.8), ["35.0", "34.3", "35.8"]),
        ((0.2, 120), ["0.2", "120"]),
        ((9.87, 12.3), ["9.87", "12.3"]),
        ((0, 0.654), ["0", "0.654"]),
        ((math.inf, 0.25), ["inf", "0.25"]),
        ((999.7, 1234.5, 0.25), ["1,000", "1,234", "0.25"]),
        ((), []),
    ],
)
def test_numbers_that_stand_together_keep_their_zeros(values, texts):
    assert numbers(values) == texts


@pytest.mark.parametrize("scale", np.geomspace(1e-3, 1e6, 40))
def test_ends_that_differ_by_three_per_cent_are_written_so(scale):
    said = words(scale, (0.985 * scale, 1.015 * scale), "s").replace(",", "")
    low, high = said.partition(" s (")[2].removesuffix(")").split(" to ")
    assert float(low) < float(high)


def test_an_interval_within_a_thousandth_has_more_decimals():
    assert words(0.0150, (0.0147, 0.0153), "s a step") == "0.0150 s a step (0.0147 to 0.0153)"
    assert words(1, (1, 1), "times") == "1.00 times (1 to 1)"


def test_a_value_outside_an_interval_is_not_written_as_its_end():
    assert numbers_apart(0.1036, (0.1041, 0.124)) == ["0.1036", "0.1041", "0.1240"]
    assert numbers_apart(0.139, (0.096, 0.117)) == ["0.139", "0.096", "0.117"]
