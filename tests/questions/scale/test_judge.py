"""The answer of notebook 07 in words, and the table of fleets."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from benchlib.questions.scale.judge import fleets_table, judge_scale
from benchlib.questions.scale.outcomes import next_day
from benchlib.questions.scale.peak import PeakRun
from tests.made_runs import make_record
from tests.questions.scale.made_days import FIXED, SCALED, make_fleet, make_outlook

CARD = SimpleNamespace(folder=Path("results/scale"), record=make_record())


def said(*, peak=None, **changes):
    return str(judge_scale(CARD, make_outlook(**changes), peak))


def test_the_first_sentence_is_one_to_act_on():
    first = said(card="H100", is_tiny=False, price_per_hour=2.5).split("\n")[0]
    assert first == (
        "SDXL (tiny; baseline, continuous): 4 H100 keep p95 < 10 s all day, "
        "and 3 break it for 2.17 h (1.03 to 3.30); "
        "autoscaling 2 to 4 costs 29 % (26 to 32) less and breaks it for 10 min (0 to 78); "
        "1,525 images a dollar (1,462 to 1,588)."
    )


def test_without_a_price_and_a_gpu_it_speaks_of_cards_and_hours():
    text = said()
    first = text.split("\n")[0]
    assert first.startswith("The tiny model, not SDXL (tiny; baseline, continuous): 4 cards keep")
    assert " images for each hour of a card (" in first
    assert text.endswith("Runs and figures are in results/scale")
    assert "No real run confirms it." in text


def test_autoscaling_that_breaks_nothing_and_one_card_that_is_enough():
    assert "costs 8 % (5 to 12) less and keeps it, too" in said(scaled=SCALED[:1])
    alone = said(fixed=(make_fleet(1),), scaled=(), failing=None)
    assert "1 card keeps p95 < 10 s all day; " in alone
    assert "autoscaling" not in alone
    assert "fails at the peak" not in alone


def test_of_autoscalers_that_all_break_much_the_least_bad_is_named():
    outlook = make_outlook(scaled=(make_fleet(2, 4, target=3.0, broken=(9, 12)), SCALED[2]))
    assert outlook.autoscaled.target_ongoing == 3.0


def test_a_failure_at_the_peak_is_told():
    assert (
        "If one card fails at the peak, ready again after 12.5 s, the promise is broken" in said()
    )
    kept = said(failing=make_fleet(4), mtbf_h=500.0)
    assert "the promise is kept all the same." in kept
    assert "Each card fails at random, once in 500 h in the mean." in kept


def test_what_is_not_known_is_said():
    refused = said(refusal="20 images show too little", fixed=(), scaled=(), failing=None)
    assert refused.split("\n")[0] == (
        "The tiny model, not SDXL (tiny; baseline, continuous): "
        "How many cards keep p95 < 10 s is not known: 20 images show too little."
    )
    assert "up to 3 cards, none keeps p95 < 10 s all day" in said(fixed=FIXED[:2], failing=None)
    assert "The estimate is widened: it drifts." in said(remarks=("it drifts",))


def test_where_days_need_very_different_numbers_the_answer_is_not_known():
    fixed = (make_fleet(2, sometimes=(12, 14)), make_fleet(3, sometimes=(13, 14)), make_fleet(4))
    text = said(fixed=fixed)
    assert (
        "it is not known whether 2 or 4 cards keep p95 < 10 s all day: what was measured leaves "
        "both possible; 4 do on every simulated day, and 3 break it for 10 min (0 to 78)"
    ) in text
    assert "The easiest simulated day needs 2 cards, the hardest 4: a longer" in text
    assert "not known whether" not in said()


def test_a_real_run_confirms_it_or_leaves_nothing_shown():
    confirmed = PeakRun(1, 1.4, 40, "confirmed", 8.0, (7.0, 9.0), 0.975, (0.9, 1.0))
    text = said(peak=confirmed)
    assert "1 real card made 40 images at 1.4/s: confirmed (98 % in time, 90 to 100 %" in text
    assert "4 cards keep p95 < 10 s all day, and 3 break" in text.split("\n")[0]
    as_foretold = PeakRun(1, 0.682, 29, "confirmed", 4.1, (3.0, 5.0), 0.971, (0.969, 0.973))
    assert "confirmed (97 % in time, 97 % foretold)" in str(as_foretold)
    contradicting = PeakRun(2, 2.8, 40, "not confirmed", 12.0, (7.0, 9.0), 0.5, (0.9, 1.0))
    first, *_ = said(peak=contradicting).split("\n")
    assert "how many cards keep p95 < 10 s all day is not shown: a real run contradicts" in first


def test_other_work_beside_the_calibrating_run_is_told():
    outcome = {"others_cpu_cores": 1.31, "steal_cores": 0.0}
    busy = SimpleNamespace(folder=CARD.folder, record=make_record(outcome=outcome))
    lines = str(judge_scale(busy, make_outlook(), None)).split("\n")
    assert lines[2].startswith("The machine was busy: other processes took 1.31 of 2 cores")


def test_the_table_has_a_row_for_each_fleet():
    table = fleets_table(make_outlook(price_per_hour=2.0))
    assert table["cards"].tolist() == ["2 cards", "3 cards", "4 cards"] + 3 * ["2 to 4 cards"]
    assert table["broken_days"].tolist()[:3] == ["6 of 6", "6 of 6", "0 of 6"]
    assert table["target_ongoing"].tolist() == ["", "", "", "1", "2", "4"]
    per_dollar = table["images_per_dollar"].tolist()[2]
    assert per_dollar == pytest.approx(table["images_per_card_hour"].tolist()[2] / 2, abs=1)
    assert "images_per_dollar" not in fleets_table(make_outlook())


def test_the_interval_of_one_more_day_by_hand():
    """Mean 2, deviation 1, t of 2 degrees 4.303, times the root of 4/3."""
    assert next_day([1.0, 2.0, 3.0]) == pytest.approx((0, 2 + 4.30265 * 1.154701))
    assert next_day([1.0, 2.0, 3.0], most=5.0)[1] == 5.0
    assert next_day([1.0]) is None
    assert next_day([2.0, 2.0, 2.0]) is None
