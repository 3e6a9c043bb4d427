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
    assert title(day).startswith(
        "tiny model, not SDXL: 4 cards keep p95 < 10 s on all 6 simulated days; 3 break"
    )
    assert "autoscaled 2 to 4, target 4: broken for 4 h" in str(day.get_label())
    cost = plots.cost_against_promise(outlook=outlook, record=record)
    kept = "4 cards keep p95 < 10 s on all 6 simulated days, for 192 dollars a day"
    assert f"{kept}; autoscaling 2 to 4 saves 29 % and breaks it for 10 min (0 to 78)" in (
        title(cost)
    )
    assert "3 cards: 144 dollars a day, broken for 2.17 h" in str(cost.get_label())


def test_without_a_price_the_cost_is_hours_of_cards(made):
    cost = plots.cost_against_promise(outlook=make_outlook(), record=made.record())
    assert cost.get_xlabel().startswith("cost: hours of cards a day (left and down is better")


def test_cards_that_are_never_enough(made):
    record = made.record()
    outlook = make_outlook(fixed=FIXED[:2], scaled=())
    day = plots.promise_over_day(outlook=outlook, record=record)
    assert "not even 3 cards keep p95 < 10 s on all 6 simulated days: broken for 2.17 h" in title(
        day
    )
    cost = plots.cost_against_promise(outlook=outlook, record=record)
    assert "no fixed number of cards keeps p95 < 10 s on all 6 simulated days" in title(cost)
    one = make_outlook(fixed=(make_fleet(1),), scaled=())
    for plot in (plots.promise_over_day, plots.cost_against_promise):
        assert "1 card keeps" in title(plot(outlook=one, record=record))


def test_a_title_claims_no_number_of_cards_where_the_answer_knows_none(made):
    sometimes = {"sometimes": (9, 10)}
    fixed = (make_fleet(2, **sometimes), make_fleet(3, **sometimes), make_fleet(4))
    outlook = make_outlook(fixed=fixed)
    assert outlook.open_question == "whether 2 or 4 cards keep p95 < 10 s all day"
    day = title(plots.promise_over_day(outlook=outlook, record=made.record()))
    assert f"not known {outlook.open_question}; 3 break it for" in day
    cost = title(plots.cost_against_promise(outlook=outlook, record=made.record()))
    assert f"not known {outlook.open_question}; 4 do for 96 card hours a day" in cost


def test_an_autoscaler_that_saves_next_to_nothing_saves_no_minus_zero(made):
    scaled = (make_fleet(4, 4, target=1.0, card_hours=96.3),)
    outlook = make_outlook(scaled=scaled)
    cost = title(plots.cost_against_promise(outlook=outlook, record=made.record()))
    assert "autoscaling 4 to 4 saves nothing and keeps it, too" in cost


def test_lines_that_leave_the_axes_are_said_to_be_cut(made):
    rare = make_outlook(fixed=(make_fleet(3, sometimes=(9, 15)), make_fleet(4)), scaled=())
    assert (
        "lines cut" in plots.cost_against_promise(outlook=rare, record=made.record()).get_ylabel()
    )
    whole = plots.cost_against_promise(outlook=make_outlook(), record=made.record())
    assert "lines cut" not in whole.get_ylabel()


def test_nothing_foretold_is_no_figure(made, tmp_path):
    refused = make_outlook(fixed=(), scaled=(), failing=None, refusal="it drifts")
    for plot in (plots.promise_over_day, plots.cost_against_promise):
        ax = plot(outlook=refused, record=made.record())
        assert "There is no figure, as it drifts." in str(ax.get_label())
        assert plots.save(ax, tmp_path / "nothing") == ()
