"""Simulated days of several fleets: paired, with the card's uncertainty, and refused where unknown."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from benchlib import calibrate
from benchlib.budget import Budget
from benchlib.questions.scale import fleets, pace
from benchlib.questions.scale.fleets import simulate_fleets
from benchlib.questions.scale.measure import MeasuredCard
from benchlib.questions.scale.outcomes import next_day, saved
from benchlib.queueing.day import DayCurve
from benchlib.queueing.lanes import SerialLane
from tests.queueing.simulated_runs import simulated_run


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    """A card that makes one image at a time in about 8 s, so that a day has few requests."""
    calibration = calibrate(simulated_run("serial", rate=0.9, requests=80))
    lane = calibration.lane
    assert isinstance(lane, SerialLane)
    slow = replace(lane, expected_s=10 * lane.expected_s)
    return SimpleNamespace(
        calibration=replace(calibration, lane=slow),
        slo="p95 < 40 s",
        startup_s=60.0,
        server_words="sdxl; baseline, serial",
        is_tiny=False,
        gpu="H100",
        source="a run made now",
        budget=Budget(None, results=tmp_path_factory.mktemp("results")),
        simulating_s=lambda _day, _profile: math.inf,
    )


@pytest.fixture(scope="module")
def day(card):
    return DayCurve(1.3 * card.calibration.most_images_per_s, peak_factor=1.8)


@pytest.fixture(scope="module")
def outlook(card, day):
    return simulate_fleets(card, day, days=4, target_ongoing=[1.5, 3], restart_s=1800.0)


def test_more_cards_break_it_less_until_one_fleet_keeps_it(outlook):
    broken_h = [fleet.broken_h.mean() for fleet in outlook.fixed]
    assert broken_h == sorted(broken_h, reverse=True)
    assert [fleet.most for fleet in outlook.fixed] == [2, 3, 4][: len(broken_h)]
    assert outlook.fixed[-1].keeps
    assert outlook.enough is outlook.fixed[-1]
    assert outlook.too_few is outlook.fixed[-2]
    assert outlook.too_few.broken_h.mean() > 1


def test_all_fleets_get_the_same_days_and_are_paid_for_them(outlook):
    first, *others = outlook.fleets
    for fleet in others:
        np.testing.assert_array_equal(fleet.images, first.images)
    for fleet in outlook.fixed:
        assert fleet.card_hours == pytest.approx(24.0 * fleet.most)
    assert first.images.mean() == pytest.approx(outlook.requests, rel=0.02)
    assert outlook.rates.mean() * 86_400 == pytest.approx(first.images.mean())


def test_autoscaling_saves_and_a_lower_target_saves_less(outlook):
    eager, lazy = outlook.scaled
    assert (eager.least, eager.most) == (lazy.least, lazy.most)
    assert 1 <= eager.least < eager.most == outlook.enough.most
    assert 0 < saved(outlook.enough, eager).mean() < saved(outlook.enough, lazy).mean() < 0.8
    assert eager.broken_h.mean() <= lazy.broken_h.mean()
    assert eager.cards.max() > eager.cards.min()


def test_a_failure_at_the_peak_breaks_what_was_kept(outlook):
    assert outlook.failing.most == outlook.enough.most
    assert outlook.failing.late.mean() > outlook.enough.late.mean()
    np.testing.assert_array_equal(outlook.failing.card_hours, outlook.enough.card_hours)


def test_an_uncertain_card_makes_uncertain_days(card, day, outlook):
    calibration = replace(card.calibration, service_share=0.15)
    unsure = SimpleNamespace(**vars(card) | {"calibration": calibration})
    wide = simulate_fleets(unsure, day, days=4, target_ongoing=[2])
    ends_h = []
    for found in (wide, outlook):
        of_three = next(fleet for fleet in found.fixed if fleet.most == 3)
        ends_h.append(next_day(of_three.broken_h))
    (low_h, high_h), (least_h, most_h) = [ends or (0.0, 0.0) for ends in ends_h]
    assert high_h - low_h > 2 * (most_h - least_h)
    assert wide.enough.most >= outlook.enough.most


def test_cards_that_fail_at_random_break_it_more(card, day):
    options = {"days": 2, "target_ongoing": [2], "restart_s": 1800.0}
    kept = simulate_fleets(card, day, **options).enough
    failing = simulate_fleets(card, day, mtbf_h=6.0, **options)
    same = next(fleet for fleet in failing.fixed if fleet.most == kept.most)
    assert same.late.mean() > kept.late.mean()
    assert failing.mtbf_h == 6.0


def test_what_a_person_asks_for_is_taken(card, day):
    outlook = simulate_fleets(
        card, day, days=2, min_cards=1, max_cards=3, target_ongoing=[2], startup_s=5.0
    )
    assert {(fleet.least, fleet.most) for fleet in outlook.scaled} == {(1, 3)}
    assert (outlook.startup_s, outlook.restart_s, outlook.startup_is_measured) == (5.0, 5.0, False)
    with pytest.raises(ValueError, match=r"^min_cards must be at most max_cards \(2\), got 3"):
        simulate_fleets(card, day, min_cards=3, max_cards=2)
    with pytest.raises(ValueError, match=r"^target_ongoing"):
        simulate_fleets(card, day, target_ongoing=[0])


def test_what_cannot_be_known_is_refused_in_words(card, day):
    refused = replace(card.calibration, refusal="12 images show too little")
    changed = vars(card) | {"calibration": refused}
    outlook = simulate_fleets(SimpleNamespace(**changed), day)
    assert (outlook.refusal, outlook.fleets) == ("12 images show too little", ())
    impatient = SimpleNamespace(**vars(card) | {"slo": "p95 < 0.1 s"})
    assert "a card to itself takes" in simulate_fleets(impatient, day).refusal
    lane = card.calibration.lane
    assert isinstance(lane, SerialLane)
    slow = replace(card.calibration, lane=replace(lane, expected_s=500 * lane.expected_s))
    slow = SimpleNamespace(**vars(card) | {"calibration": slow, "slo": "p95 < 9999 s"})
    assert "more than 256 are not simulated" in simulate_fleets(slow, day).refusal


def on_a_slow_machine(card, monkeypatch, tmp_path, share_s):
    """The card where each fleet takes 10 s for a day and compiling 50 s, by a clock of our own."""
    time_s = [0.0]
    serve, compile_it = fleets.serve_by_cards, fleets.compile_simulation

    def served_slowly(*args, **options):
        time_s[0] += 10.0
        return serve(*args, **options)

    def compiled_slowly(*args):
        compile_it(*args)
        time_s[0] += 50.0

    monkeypatch.setattr(fleets, "serve_by_cards", served_slowly)
    monkeypatch.setattr(fleets, "compile_simulation", compiled_slowly)
    budget = Budget(60, results=tmp_path, clock=lambda: time_s[0])
    slow = {"budget": budget, "simulating_s": lambda _day, _profile: share_s}
    return SimpleNamespace(**vars(card) | slow), time_s


@pytest.mark.parametrize(("share_s", "days"), [(0.0, 1), (110.0, 2), (160.0, 3), (900.0, 4)])
def test_the_days_end_with_their_share_and_stay_whole(
    card, day, outlook, monkeypatch, tmp_path, capsys, share_s, days
):
    slow, time_s = on_a_slow_machine(card, monkeypatch, tmp_path, share_s)
    found = simulate_fleets(slow, day, days=4, target_ongoing=[1.5, 3], restart_s=1800.0)
    # Fixed fleets serve the first day whatever it takes, and compiling is no part of a day.
    assert time_s[0] - 50.0 <= max(share_s, 20.0)
    assert {fleet.days for fleet in found.fleets} == {days}
    whole = {fleet.most: fleet.broken_h[:days] for fleet in outlook.fixed}
    for fleet in found.fixed:
        np.testing.assert_array_equal(fleet.broken_h, whole[fleet.most])
    assert found.enough.most == outlook.enough.most
    assert found.rates.mean() * 86_400 == pytest.approx(found.fixed[0].images.mean())
    assert (next_day(found.fixed[0].late) is None) == (days == 1)
    assert len(found.scaled) == (2 if share_s else 0)
    assert (found.failing is None) == (not share_s)
    said = capsys.readouterr().out
    if days == 4:
        assert found.cut is None
        assert "simulated" not in said
        return
    assert found.cut.startswith(f"{days} of 4 days w")
    assert ("and 4 fleets not at all" in found.cut) == (not share_s)
    why = f"each takes 10 s here for one fleet, and the budget left {share_s:.3g} s for all"
    assert found.cut.endswith(why)
    assert f"{found.cut}." in said


def test_the_plan_has_the_days_at_this_machines_pace(card, tmp_path):
    # Each look at the clock is a second later: 1 s went by while the piece was simulated.
    times_s = iter(range(1000))
    budget = Budget(60, results=tmp_path, clock=lambda: float(next(times_s)))
    request_s = pace.time_request_s(card.calibration, budget)
    piece = 1 / request_s
    assert 100 < piece <= pace.MOST_IN_PIECE
    part = pace.simulation_part("full", 250_000, 1e-6)
    assert part.seconds == pytest.approx(20 * 250_000 * pace.USUAL_FLEETS * 1e-6)
    assert part.least_s == pytest.approx(250_000 * pace.LEAST_FLEETS * 1e-6)
    slower = pace.simulation_part("full", 250_000, 4e-6)
    assert slower.seconds == pytest.approx(4 * part.seconds)


def test_the_run_that_confirms_keeps_its_share(card, day, tmp_path):
    budget = Budget(8, results=tmp_path, clock=lambda: 0.0)
    measured = MeasuredCard(
        calibration=card.calibration,
        slo=card.slo,
        startup_s=60.0,
        record={},
        source="a run made now",
        steps=20,
        folder=tmp_path,
        budget=budget,
        request_s=2e-3,
    )
    assert measured.simulating_s(day, "full") == 480.0, "no server is there to confirm by"
    measured.server = SimpleNamespace()
    share_s = measured.simulating_s(day, "full")
    # A run of 23 images and what it costs besides, at the peak's rate over 3 cards.
    least_s = 4.0 + 23 * 3 / day.peak_rate
    assert 0 < share_s <= 480.0 - least_s
