"""Budgets on a clock that jumps: what fits, what is left out, wrong costs, and interrupts."""

import os
import signal

import pytest

from benchlib import Budget, Part


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s

    def take(self, seconds):
        self.now_s += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make(clock, tmp_path):
    def budget(minutes, case=("tiny",)):
        return Budget(minutes, results=tmp_path, case=case, clock=clock)

    return budget


def fail_after(clock, seconds):
    clock.take(seconds)
    raise OSError("port")


# ---- the clock and the costs


def test_all_time_since_its_creation_counts(make, clock):
    budget = make(2)
    clock.take(50)
    assert (budget.used_s, budget.left_s, budget.cut_s) == (50, 70, 85)
    clock.take(80)
    assert (budget.used_s, budget.left_s, budget.cut_s) == (130, 0, 5)
    long = make(10)
    assert long.cut_s == 660, "a tenth is more than 15 s"


def test_a_start_that_took_most_of_the_time_before_is_announced(make, clock, capsys):
    budget = make(3)
    with budget.starting("the server"):
        clock.take(120)
    assert not capsys.readouterr().out
    later = make(3)
    with later.starting("the server"):
        clock.take(100)
    said = capsys.readouterr().out
    assert said == "the server: starting took 2.0 minutes here before, and 3.0 are left\n"
    assert later.cost("start of the server", 0.0) == 110, "the median of both"


def test_a_start_that_took_more_than_was_left_is_told_afterwards(make, clock, capsys):
    budget = make(3)
    with budget.starting("the server"):
        clock.take(252)
    assert capsys.readouterr().out == (
        "the server: starting took 4.2 minutes, more than the 3.0 that were left; "
        "what follows is shortened or left out\n"
    )
    plan = budget.plan([Part("calibrate", 60, least_s=40)])
    assert "calibrate" in plan, "the most telling part is measured all the same"


def test_without_minutes_there_is_no_limit(make, clock):
    budget = make(None)
    clock.take(1e6)
    plan = budget.plan([Part("a", 60, worth=1), Part("b", 7200, worth=2)])
    assert [share.seconds for share in plan.parts] == [60, 7200]
    assert "left of" not in str(plan)


def test_what_a_block_took_is_what_it_costs_next_time(make, clock):
    budget = make(2)
    assert budget.cost("start", default_s=9.0) == 9.0
    with budget.timed("start"):
        clock.take(4)
    with pytest.raises(OSError, match="port"), budget.timed("start"):
        fail_after(clock, 400)
    assert budget.cost("start", 9.0) == 4.0
    assert make(1).cost("start", 9.0) == 4.0
    assert make(1, case=["sdxl"]).cost("start", 9.0) == 9.0


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (lambda make: make(0), "minutes"),
        (lambda make: make(float("nan")), "minutes"),
        (lambda make: make(1).record("start", -1), "seconds"),
        (lambda _: Part("a", -1), "seconds"),
        (lambda _: Part("a", 5, least_s=6), "least_s"),
        (lambda _: Part("a", 5, worth=float("nan")), "worth"),
        (lambda _: Part("a", 5, overhead_s=-1), "overhead_s"),
        (lambda _: Part("a", 5, image_s=0), "image_s"),
        (lambda make: make(1).plan([Part("a", 5), Part("a", 6)]), "parts"),
    ],
)
def test_a_bad_value_is_refused_by_its_name(make, bad, field):
    with pytest.raises(ValueError, match=f"^{field}"):
        bad(make)


# ---- the plan


def seconds(plan):
    return {share.name: share.seconds for share in plan.parts}


def test_where_all_fits_each_gets_what_it_wants_and_no_more(make):
    plan = make(10).plan([Part("a", 60, least_s=10), Part("b", 30)])
    assert seconds(plan) == {"a": 60, "b": 30}
    assert (plan.left_out, plan.too_long, plan.seconds) == ((), False, 90)


def test_what_is_left_beyond_the_least_is_shared_by_what_each_wants(make):
    plan = make(1).plan([Part("a", 50, least_s=10), Part("b", 100, least_s=20)])
    # 30 s are left beyond the least, and 120 s are wanted: a quarter of each wish
    assert seconds(plan) == {"a": 20, "b": 40}
    assert plan["b"].seconds == 40
    assert "a" in plan
    assert "c" not in plan
    with pytest.raises(KeyError, match="c"):
        plan["c"]


def test_the_least_telling_parts_are_left_out_first_and_said(make):
    parts = [
        Part("two users", 40, least_s=30, worth=1),
        Part("calibrate", 60, least_s=30, worth=9),
        Part("confirm", 60, least_s=25, worth=5),
    ]
    plan = make(1).plan(parts)
    assert seconds(plan) == pytest.approx(
        {"calibrate": 30 + 5 * 30 / 65, "confirm": 25 + 5 * 35 / 65}
    )
    assert [share.name for share in plan.parts] == ["calibrate", "confirm"], "in the order given"
    assert [part.name for part in plan.left_out] == ["two users"]
    why = "two users is left out: it needs at least 0.50 minutes, and more telling ones leave 0.08"
    assert str(plan).splitlines()[-1] == why


def test_a_small_part_fits_beside_a_large_one_that_does_not(make):
    parts = [Part("large", 100, worth=5), Part("first", 40, worth=9), Part("small", 10, worth=1)]
    assert seconds(make(1).plan(parts)) == {"first": 40, "small": 10}


def test_a_part_goes_with_the_one_that_it_says_nothing_without(make):
    parts = [Part("calibrate", 90, worth=2), Part("confirm", 10, worth=1, needs="calibrate")]
    plan = make(1).plan(parts, keep_one=False)
    assert seconds(plan) == {}
    assert plan.left_out_lines()[1] == ("confirm is left out: it says nothing without calibrate")
    assert seconds(make(2).plan(parts)) == {"calibrate": 90, "confirm": 10}
    assert seconds(make(1).plan(parts[1:])) == {"confirm": 10}, "calibrate is done already"


def test_of_equally_telling_parts_the_first_ones_stay(make):
    rounds = [Part(f"round {number}", 25) for number in (1, 2, 3)]
    assert [*seconds(make(1).plan(rounds))] == ["round 1", "round 2"]


def test_no_part_gets_less_than_it_needs_whatever_is_left(make):
    parts = [Part(f"part {n}", 10.0 * n + 5, least_s=3.0 * n, worth=n % 4) for n in range(1, 9)]
    for left_s in range(1, 400, 7):
        plan = make(left_s / 60).plan(parts)
        kept = [share for share in plan.parts if share.seconds >= share.part.least_s - 1e-9]
        assert len(kept) == len(plan.parts)
        assert len(plan.parts) + len(plan.left_out) == len(parts)
        assert plan.too_long == (len(plan.parts) == 1 and plan.seconds > left_s + 1e-6)


def test_the_most_telling_part_stays_where_none_fits(make):
    parts = [Part("a", 90, least_s=50, worth=1), Part("b", 200, least_s=80, worth=2)]
    budget = make(0.5)
    plan = budget.plan(parts)
    assert seconds(plan) == {"b": 80}
    assert plan.too_long
    assert "b does not fit: it is measured all the same" in str(plan)
    assert "a is left out: it needs at least 0.83 minutes, and more telling ones leave 0" in str(
        plan
    )
    assert seconds(budget.plan(parts, keep_one=False)) == {}


def test_the_most_telling_part_stays_also_where_it_takes_all_or_nothing(make, clock):
    budget = make(1)
    clock.take(90)
    assert budget.plan([Part("a", 12)])["a"].seconds == 12


def test_the_time_is_read_once_for_a_plan(make, clock, monkeypatch):
    budget = make(1)
    monkeypatch.setattr(budget, "_clock", lambda: clock.take(0.01) or clock())
    assert not budget.plan([Part("a", 100, least_s=1)]).too_long


def test_what_comes_after_the_parts_has_its_seconds(make):
    plan = make(1).plan([Part("a", 100, least_s=10)], reserve_s=15)
    assert seconds(plan) == {"a": 45}
    assert plan.seconds == 60


def test_the_plan_is_a_table_of_minutes_and_images(make, clock):
    budget = make(3)
    clock.take(6)
    parts = [
        Part("calibrate", 66, least_s=40, overhead_s=6, image_s=0.7, worth=2),
        Part("simulate", 3),
    ]
    plan = budget.plan(parts, reserve_s=12)
    assert str(plan).splitlines() == [
        "  part                              minutes  images",
        "  calibrate                             1.1      85",
        "  simulate                             0.05",
        "  what follows                         0.20",
        "  in all                                1.4",
        "  left of 3.0 minutes                   2.9",
    ]
    assert plan["calibrate"].images == 85
    assert plan["simulate"].images is None


def test_a_part_that_gets_what_it_asked_for_gets_all_its_images(make):
    for images in range(1, 300):
        part = Part("a", 3.3 + images * 0.1, overhead_s=3.3, image_s=0.1)
        assert make(60).plan([part])["a"].images == images


# ---- costs that were wrong


def least_overrun_s(budget):
    return max(15, 0.1 * budget.seconds)


@pytest.mark.parametrize("slower", [0.3, 1, 1.5, 3, 10])
@pytest.mark.parametrize("minutes", [0.02, 0.5, 3, 30])
def test_a_budget_is_kept_where_everything_takes_longer_than_planned(make, clock, slower, minutes):
    budget = make(minutes)
    share_s = 60 * minutes / 10
    parts = [Part(f"part {n}", share_s, least_s=share_s / 3, worth=20 - n) for n in range(20)]
    made = []
    for share in budget.in_turn(parts):
        # A part makes its images, however long these take.
        believed = share.part.seconds / share_s
        images = share.seconds / believed
        clock.take(slower * images)
        made.append(share.name)
    assert made[0] == "part 0"
    # The first part's cost was not known better, so it alone may take too long.
    first_s = slower * share_s
    assert budget.used_s <= max(first_s, budget.seconds) + least_overrun_s(budget)
    if slower <= 1:
        assert budget.used_s <= budget.seconds + 1e-6
        assert len(made) >= 10


def test_parts_that_take_as_long_as_they_are_told_to_are_not_counted_as_slow(make, clock):
    budget = make(2)
    taken = []
    parts = [Part(f"part {n}", 60, least_s=20, overhead_s=2) for n in range(4)]
    for share in budget.in_turn(parts):
        clock.take(share.seconds)
        taken.append(share.seconds)
    assert taken == pytest.approx([30] * 4)


def test_a_part_that_no_longer_fits_is_left_out_when_that_is_known(make, clock, capsys):
    budget = make(2)
    parts = [Part("a", 40, worth=3), Part("b", 40, worth=2), Part("c", 40, worth=1)]
    turn = budget.in_turn(parts)
    assert next(turn).name == "a"
    assert "left out" not in capsys.readouterr().out
    clock.take(60)  # half as long again
    second = next(turn)
    assert (second.name, second.seconds) == ("b", pytest.approx(60))
    assert "c is left out: it needs at least 1.0 minutes, and more" in capsys.readouterr().out
    clock.take(60)
    assert list(turn) == []


def test_images_are_counted_at_the_pace_that_showed(make, clock):
    budget = make(2)
    parts = [Part(f"part {n}", 50, least_s=1, image_s=1.0) for n in range(2)]
    turn = budget.in_turn(parts)
    assert next(turn).images == 50
    clock.take(100)
    assert next(turn).images == 10, "20 s are left, and an image takes 2"


def test_what_was_planned_can_be_planned_again(make, clock):
    budget = make(2)
    first = budget.plan([Part("image", 10, worth=9), Part("runs", 110, least_s=30)])
    clock.take(3 * first["image"].seconds)
    again = budget.plan([Part("runs", 3 * 110, least_s=3 * 30)])
    assert again["runs"].seconds == budget.left_s == 90


# ---- runs that are cut


@pytest.mark.parametrize(
    ("used_s", "max_s", "expected"),
    [(0, None, 73), (0, 20, 20), (50, None, 23), (58, None, 15), (200, None, 15), (200, 5, 5)],
)
def test_a_run_is_cut_when_the_tolerance_ends(make, clock, used_s, max_s, expected):
    budget = make(1)
    budget.record("run", 2)
    clock.take(used_s)
    with budget.running("a run", max_s) as running:
        assert running.max_s == expected


def test_without_a_limit_no_run_is_cut(make):
    with make(None).running("a run", None) as running:
        assert running.max_s is None


def test_what_a_run_takes_beside_its_load_is_remembered(make, clock):
    budget = make(1)
    with budget.running("a run", None) as running:
        clock.take(13)
        running.load_s = 10
    with budget.running("a run that fails", None):
        clock.take(60)
    assert budget.cost("run", -1.0) == 3


# ---- interrupts


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_ends_the_block_and_spends_the_budget(make, clock, capsys):
    budget = make(10)
    made = []
    for share in budget.in_turn([Part(name, 60) for name in "abc"]):
        with budget.measuring(f"part {share.name}"):
            made.append(share.name)
            clock.take(10)
            if share.name == "b":
                press_ctrl_c()
            made.append(share.name)
    assert made == ["a", "a", "b"]
    assert budget.interrupted
    assert (budget.left_s, budget.cut_s) == (0, 0)
    printed = capsys.readouterr().out
    assert "part b: interrupted: the answer uses what was measured" in printed
    assert "left out" not in printed
    assert budget.plan([Part("d", 1)]).parts == (), "not even the most telling part"
    assert budget.plan([Part("d", 0)]).parts == ()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_second_interrupt_really_stops(make):
    budget = make(10)
    with budget.measuring("a"):
        press_ctrl_c()
    with pytest.raises(KeyboardInterrupt), budget.measuring("b"):
        press_ctrl_c()


def press_ctrl_c_twice():
    try:
        press_ctrl_c()
    finally:
        press_ctrl_c()


def test_a_second_interrupt_while_the_first_one_tidies_up_stops_too(make):
    budget = make(10)
    with pytest.raises(KeyboardInterrupt), budget.measuring("a"):
        press_ctrl_c_twice()
    assert not budget.interrupted
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_errors_are_not_an_interrupt(make, clock):
    budget = make(10)
    with pytest.raises(OSError, match="port"), budget.measuring("a"):
        fail_after(clock, 1)
    assert not budget.interrupted


def test_a_block_can_be_interrupted_within_another(make):
    budget = make(10)
    with budget.measuring("all"):
        with budget.measuring("a"):
            press_ctrl_c()
        after = True
    assert after


def test_a_budget_shows_what_is_left(tmp_path, capsys):
    budget = Budget(2, results=tmp_path, clock=lambda: 0.0)
    assert repr(budget) == "<Budget: 2.0 of 2.0 minutes are left>"
    with budget.measuring("mine"):
        raise KeyboardInterrupt
    assert "mine: interrupted" in capsys.readouterr().out
    assert repr(budget) == "<Budget: interrupted: nothing is left>"
    assert repr(Budget(None, results=tmp_path)) == "<Budget: no limit>"
