"""The plots of notebook 07: what their titles and alt texts say, and what they draw."""

from benchlib import plots
from benchlib.questions.scale.plots import BROKEN, KEPT, SOMETIMES, spells
from tests.questions.scale.made_days import FIXED, WINDOW_S, make_fleet, make_outlook


def title(ax):
    return " ".join(ax.get_title("left").split())


def test_a_strip_is_red_yellow_and_pale():
    found = spells(FIXED[1], WINDOW_S)
    assert [(spell.begin_h, spell.hours, spell.colour) for spell in found] == [
        (0.0, 12.0, KEPT),
        (12.0, 1.0, SOMETIMES),
        (13.0, 2.0, BROKEN),
        (15.0, 9.0, KEPT),
    ]


def test_the_titles_say_what_is_found(made):
    record = made.record()
    outlook = make_outlook(price_per_hour=2.0)
    day = plots.promise_over_day(outlook=outlook, record=record)
    assert title(day).startswith("tiny model, not SDXL: 4 cards keep p95 < 10 s all day; 3 break")
    assert "autoscaled 2 to 4, target 4: broken for 4 h" in str(day.get_label())
    cost = plots.cost_against_promise(outlook=outlook, record=record)
    assert "4 cards keep p95 < 10 s all day for 192 dollars; autoscaling 2 to 4 saves 29 %" in (
        title(cost)
    )
    assert "3 cards: 144 dollars a day, broken for 2.17 h" in str(cost.get_label())


def test_without_a_price_the_cost_is_hours_of_cards(made):
    cost = plots.cost_against_promise(outlook=make_outlook(), record=made.record())
    assert cost.get_xlabel() == "cost: hours of cards a day"


def test_cards_that_are_never_enough(made):
    record = made.record()
    outlook = make_outlook(fixed=FIXED[:2], scaled=())
    day = plots.promise_over_day(outlook=outlook, record=record)
    assert "not even 3 cards keep p95 < 10 s all day: 2.17 h" in title(day)
    cost = plots.cost_against_promise(outlook=outlook, record=record)
    assert "no fixed number of cards keeps p95 < 10 s all day" in title(cost)
    one = make_outlook(fixed=(make_fleet(1),), scaled=())
    assert "1 card keeps" in title(plots.promise_over_day(outlook=one, record=record))


def test_nothing_foretold_is_no_figure(made, tmp_path):
    refused = make_outlook(fixed=(), scaled=(), failing=None, refusal="it drifts")
    for plot in (plots.promise_over_day, plots.cost_against_promise):
        ax = plot(outlook=refused, record=made.record())
        assert "There is no figure, as it drifts." in str(ax.get_label())
        assert plots.save(ax, tmp_path / "nothing") == ()
