"""Which runs are wanted, at which rates, and how many images each takes."""

import pytest

from benchlib.questions.capacity.load_parts import (
    ABOVE,
    CALIBRATE,
    CONFIRM,
    least_images,
    part_at_rate,
    part_of_users,
    rates_to_confirm,
    spread_out,
)


def test_a_narrow_interval_is_confirmed_just_below_and_above():
    assert rates_to_confirm(2.0, (1.95, 2.05)) == [
        (CONFIRM, pytest.approx(1.9)),
        (ABOVE, pytest.approx(2.2)),
    ]


def test_a_wide_interval_moves_the_runs_apart():
    assert rates_to_confirm(2.0, (1.4, 2.5)) == [(CONFIRM, 1.4), (ABOVE, 2.5)]
    (_, below), (_, above) = rates_to_confirm(2.0, (0.1, 9.0))
    assert below == 1.0, "a rate near 0 would confirm nothing"
    assert above == 2.6, "a rate far beyond would only fill the queue"
    assert rates_to_confirm(2.0, None)[0] == (CONFIRM, pytest.approx(1.9))


def test_given_rates_replace_both():
    assert rates_to_confirm(2.0, (1.9, 2.1), [1.0, 3.0]) == [
        ("confirm at 1/s", 1.0),
        ("confirm at 3/s", 3.0),
    ]


@pytest.mark.parametrize(
    ("rates", "names"),
    [
        ([1.331, 1.334], ["1.331", "1.334"]),
        ([0.0004, 1.0], ["0.0004", "1"]),
        ([1.0, 1.0000000001], ["1.0", "1.0000000001"]),
        ([1234.5, 2.0], ["1,234", "2"]),
    ],
)
def test_given_rates_have_names_that_tell_them_apart(rates, names):
    given = rates_to_confirm(2.0, None, rates)
    assert given == [
        (f"confirm at {name}/s", rate) for name, rate in zip(names, rates, strict=True)
    ]


def test_above_its_highest_throughput_a_server_makes_images_no_faster():
    part = part_at_rate("confirm at 100/s", rate=100.0, run_s=4.0, least=30, most_images_per_s=2.0)
    assert (part.overhead_s, part.least_s, part.image_s) == (5.5, 20.5, 0.5)
    below = part_at_rate(CONFIRM, rate=1.0, run_s=4.0, most_images_per_s=2.0)
    assert below.image_s == 1.0


def test_a_part_holds_its_images_a_warm_up_and_what_a_run_costs():
    part = part_at_rate(CALIBRATE, rate=2.0, run_s=4.0, least=60)
    assert part.overhead_s == 4 + 1.5
    assert part.least_s == 5.5 + 30
    assert part.seconds == 5.5 + 50
    other = part_at_rate("confirm at 3/s", rate=3.0, run_s=4.0)
    assert other.worth == part_at_rate(CONFIRM, rate=3.0, run_s=4.0).worth < part.worth


def test_calibrating_takes_fewer_images_where_the_budget_is_small():
    assert least_images(CALIBRATE) == (60, 40, 20)
    assert least_images("confirm at 3/s") == least_images(CONFIRM)


def test_the_most_users_tell_most_and_less_than_any_rate():
    most, fewest = (part_of_users(people, 8, rate=2.0, run_s=4.0) for people in (8, 1))
    assert fewest.worth < most.worth < part_at_rate(ABOVE, 2.0, 4.0).worth
    assert (most.name, fewest.name) == ("a closed loop of 8 users", "a closed loop of 1 user")


def test_users_are_spread_out_for_a_smooth_line():
    assert spread_out([1, 4]) == [1, 2, 3, 4]
    many = spread_out([5, 1000])
    assert many[0] == 1
    assert {5, 1000} <= set(many)
    assert len(many) < 25
