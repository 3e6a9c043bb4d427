"""The choice of a setting, on made-up frames."""

import math

import pandas as pd
import pytest

from benchlib.questions.settings.judge import decide


def test_the_fastest_that_nothing_rules_out_is_chosen(setting):
    frame = setting.frame(
        setting.row("baseline", 5.0),
        setting.row("compile", 9.0, latencies_s=[[3.0] * 100]),
        setting.row("bf16", 8.0, exact=False, memory_gib=3.0),
        setting.row("channels-last", 6.0),
    )
    decision = decide(frame, slo="p95 < 2 s", memory_limit_gib=4.0)
    assert (decision.best, decision.runner_up, decision.shown) == (
        "bf16, serial",
        "channels-last, serial",
        True,
    )
    assert decision.table["recipe"].tolist() == ["bf16", "channels-last", "baseline", "compile"]
    assert decision.table["verdict"].tolist() == ["met", "met", "met", "missed"]
    assert decision.table["ruled_out"].tolist() == [None, None, None, "misses the promise"]
    for changes in ({"exact_only": True}, {"memory_limit_gib": 2.9}):
        other = decide(frame, **{"slo": "p95 < 2 s", "memory_limit_gib": 4.0} | changes)
        assert (other.best, other.runner_up, other.shown) == (
            "channels-last, serial",
            "baseline, serial",
            True,
        )


@pytest.mark.parametrize(
    ("a", "b", "shown"),
    [((4.9, 5.1), (4.0, 4.8), True), ((4.7, 5.3), (4.0, 4.8), False), (None, (4.0, 4.8), None)],
)
def test_a_difference_is_shown_where_the_intervals_lie_apart(setting, a, b, shown):
    frame = setting.frame(
        setting.row("a", 5.0, images_per_s_interval=a),
        setting.row("b", 4.4, images_per_s_interval=b),
    )
    decision = decide(frame, slo="p95 < 2 s", memory_limit_gib=4.0)
    assert decision.shown is shown
    assert ("is not shown" not in str(decision)) == (shown is True)


def test_too_few_requests_neither_rule_out_nor_show(setting):
    decision = decide(
        setting.frame(setting.row("a", 5.0, latencies_s=[[1.0] * 20])),
        slo="p95 < 2 s",
        memory_limit_gib=4.0,
    )
    assert (decision.best, decision.runner_up, decision.shown) == ("a, serial", None, None)
    assert "Run a, serial: 5 images/s with 3 users, not shown to keep p95 < 2 s." in str(decision)


def test_requests_of_all_runs_show_together_what_one_run_is_too_short_for(setting):
    frame = setting.frame(setting.row("a", 5.0, latencies_s=[[1.0] * 20] * 5))
    decision = decide(frame, slo="p95 < 2 s", memory_limit_gib=4.0)
    assert decision.table["verdict"].tolist() == ["met"]
    assert "Run a, serial: at least 5 images/s within p95 < 2 s, with 3 users." in str(decision)


def test_a_setting_stands_at_its_best_load_that_is_shown_to_keep_the_promise(setting):
    few, late = {"latencies_s": [[1.0] * 20]}, {"latencies_s": [[3.0] * 100]}
    frame = setting.frame(
        *(setting.row("a", rate, users=users) for users, rate in ((1, 4.0), (2, 5.0))),
        setting.row("a", 9.0, users=8, **late),
        *(setting.row("b", rate, users=users, **few) for users, rate in ((1, 6.0), (2, 7.0))),
        *(setting.row("c", 8.0, users=users, **late) for users in (1, 2)),
    )
    table = decide(frame, slo="p95 < 2 s", memory_limit_gib=4.0).table
    assert table[["recipe", "users", "verdict"]].values.tolist() == [
        ["a", 2, "met"], ["b", 2, "not shown"], ["c", 1, "missed"],
    ]  # fmt: skip


def test_one_run_that_misses_outweighs_one_that_meets(setting):
    runs = [[1.0] * 100, [3.0] * 100]
    decision = decide(
        setting.frame(setting.row("a", 5.0, latencies_s=runs)),
        slo="p95 < 2 s",
        memory_limit_gib=4.0,
    )
    assert decision.best is None
    assert str(decision) == "None of the settings can be run: misses the promise."


def test_a_failed_setting_and_unknown_memory_are_ruled_out(setting):
    failed = setting.row(
        "a", None, images_per_s_interval=None, error="no compiler", latencies_s=[], memory_gib=None
    )
    decision = decide(
        setting.frame(failed, setting.row("b", 5.0, memory_gib=None)),
        slo="p95 < 2 s",
        memory_limit_gib=4,
    )
    assert decision.best is None
    assert decision.table["ruled_out"].tolist() == ["its memory is not known", "no compiler"]


def test_a_fleet_is_sized_by_the_low_end_and_costs_by_the_hour(setting):
    frame = setting.frame(
        setting.row("a", 5.0, images_per_s_interval=(4.0, 6.0), energy_per_image_j=360.0)
    )
    decision = decide(
        frame, slo="p95 < 2 s", memory_limit_gib=4.0, target_rate=9.0, price_per_hour=2.7
    )
    assert decision.gpus == math.ceil(9 / 4)
    assert decision.cost_per_1000 == pytest.approx(3 * 2.7 / (9 * 3600) * 1000)
    assert decision.energy_kwh_per_1000 == pytest.approx(0.1)  # 360 kJ; 1 kWh is 3,600 kJ
    assert "For 9 images/s: 3 such machines, if" in str(decision)
    bare = decide(setting.frame(setting.row("a", 5.0)), slo="p95 < 2 s", memory_limit_gib=4.0)
    assert (bare.cost_per_1000, bare.energy_kwh_per_1000) == (None, None)
    assert "the cost is not known without price_per_hour, and the energy is not known" in str(bare)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"slo": "fast"}, "slo: 'fast'"),
        ({"target_rate": 0}, "target_rate: 0"),
        ({"price_per_hour": -1}, "price_per_ho"),
    ],
)
def test_what_cannot_be_asked_is_refused(setting, changes, words):
    options = {"slo": "p95 < 2 s", "memory_limit_gib": 4.0} | changes
    with pytest.raises(ValueError, match=f"^{words}"):
        decide(setting.frame(setting.row("a", 5.0)), **options)


def test_the_frame_given_stays_as_it_was(setting):
    frame = setting.frame(setting.row("a", 5.0))
    before = frame.copy()
    decide(frame, slo="p95 < 2 s", memory_limit_gib=4.0)
    pd.testing.assert_frame_equal(frame, before)


def test_without_an_image_or_a_bound_above_zero_no_fleet_is_named(setting):
    frame = setting.frame(setting.row("a", 0.0, images_per_s_interval=None))
    assert decide(frame, slo="p95 < 2 s", memory_limit_gib=4.0).best is None
    frame = setting.frame(setting.row("a", 1.0, images_per_s_interval=(-0.1, 2.1)))
    decision = decide(frame, slo="p95 < 2 s", memory_limit_gib=4.0, price_per_hour=1.0)
    assert (decision.best, decision.gpus, decision.cost_per_1000) == ("a, serial", None, None)
    assert "For 1 image/s: an unknown number of such machines" in str(decision)


PICTURES = {
    "same": "Its pictures are the baseline's, to the bit: why.",
    "indistinguishable": "Its pictures can't be told from the baseline's: why.",
    "changed": "It changes the picture, why.",
    "not shown": "Whether it changes the picture is not shown: why.",
}


@pytest.mark.parametrize("verdict", PICTURES)
def test_the_answer_says_what_the_best_setting_does_to_the_picture(setting, verdict):
    frame = setting.frame(
        setting.row("fp8", 9.0, exact=False, pictures=verdict, pictures_reason="why"),
        setting.row("baseline", 5.0, pictures="same", pictures_reason="it is the baseline"),
    )
    decision = decide(frame, slo="p95 < 2 s", memory_limit_gib=4.0)
    assert decision.best == "fp8, serial"
    first, second, *others = str(decision).split("\n")
    assert first.startswith("Run fp8, serial: at least 9 images/s")
    assert second == PICTURES[verdict]
    assert "the picture" not in " ".join(others)


def test_a_runner_up_that_changes_the_picture_is_told_and_exact_only_goes_by_the_recipe(setting):
    frame = setting.frame(
        setting.row("compile", 9.0, pictures="changed", pictures_reason="visibly different"),
        setting.row("fp8", 8.0, exact=False, pictures="same", pictures_reason="why"),
    )
    decision = decide(frame, slo="p95 < 2 s", memory_limit_gib=4.0, exact_only=True)
    assert (decision.best, decision.runner_up) == ("compile, serial", None)
    assert "It changes the picture, visibly different." in str(decision)
    lines = str(decide(frame, slo="p95 < 2 s", memory_limit_gib=4.0)).split("\n")
    assert lines[2].startswith("Next comes fp8, serial: ")
    assert lines[3] == "Its pictures are the baseline's, to the bit: why."


def test_without_pictures_nothing_is_said_of_them(setting):
    frame = setting.frame(setting.row("fp8", 9.0, pictures=None))
    assert "picture" not in str(decide(frame, slo="p95 < 2 s", memory_limit_gib=4.0))
    bare = frame.drop(columns=["pictures", "pictures_reason"])
    assert "picture" not in str(decide(bare, slo="p95 < 2 s", memory_limit_gib=4.0))
