"""The benchmark of routers: the virtual fleet agrees with the simulator, and its figures by hand."""

import csv

import numpy as np
import pytest
from matplotlib.figure import Figure

from benchlib.serving.engine.policy_names import make_policy
from benchlib.serving.engine.simulate import SimulatedTask, simulate
from benchlib.serving.engine.step_times import StepTimesBySize
from benchlib.serving.replicas.routing import ROUTINGS, router_named
from benchmarks import routing, simulated_fleet
from benchmarks.routing import Row, draw_equal, draw_mixed
from benchmarks.simulated_fleet import Asked, closed_loop, open_loop


@pytest.fixture
def exact(monkeypatch):
    """No noise, and nothing takes time on its way."""
    monkeypatch.setattr(simulated_fleet, "NOISE", 0.0)
    monkeypatch.setattr(simulated_fleet, "HAND_OVER_S", (0.0, 0.0))
    monkeypatch.setattr(simulated_fleet, "NEXT_S", (0.0, 0.0))


@pytest.mark.parametrize("batching", ["serial", "dynamic"])
@pytest.mark.usefixtures("exact")
def test_one_card_takes_as_long_as_the_simulator_says(batching):
    spec = routing.SPECS["h200"] | {"batching": batching}
    random = np.random.default_rng(2)
    arrivals_s = random.exponential(1.0, 40).cumsum()
    requests = [draw_mixed(random, float(arrived_s)) for arrived_s in arrivals_s]
    tasks = [SimulatedTask.copy_of(asked) for asked in requests]
    times = StepTimesBySize.from_spec(spec["step_times"]).__getitem__
    policy = make_policy(batching, times, max_batch_size=8, max_wait_s=0.005)
    expected = [one.done_s for one in simulate(policy, tasks, times)]
    open_loop(1, spec, router_named("round-robin"), requests, seed=0)
    assert [asked.done_s for asked in requests] == pytest.approx(expected)


@pytest.mark.parametrize("name", ROUTINGS)
def test_every_request_is_answered_once(name):
    random = np.random.default_rng(0)
    requests = [draw_mixed(random, float(s)) for s in random.exponential(0.4, 60).cumsum()]
    front = open_loop(3, routing.SPECS["h200"], router_named(name), requests, seed=1)
    assert all(asked.done_s is not None for asked in requests)
    assert front.waiting == []
    assert not any(replica.inside for replica in front._foretold.values())


def test_users_of_a_closed_loop_wait_for_their_answers():
    router = router_named("foretold")
    done = closed_loop(2, routing.SPECS["h200"], router, draw_equal, users=5, images=40, seed=0)
    events = sorted((asked.arrived_s, 1) for asked in done)
    events += sorted((asked.done_s, -1) for asked in done)
    inside = np.cumsum([change for _, change in sorted(events)])
    assert inside.max() <= 5


def test_the_rate_and_the_slowest_tenth_by_hand():
    done = [Asked((64, 64), 2, 1, 0.0, done_s=float(second)) for second in range(1, 12)]
    assert routing._rate(done, 1) == 1.0
    assert routing._slowest_tenth(done) == pytest.approx(10 / 6)


def test_a_limit_is_for_ours_alone():
    assert Row("equal", 2, "foretold", "linear share", [0.98, 0.96]).passed is True
    assert Row("equal", 2, "foretold", "linear share", [0.96]).passed is False
    assert Row("equal", 2, "round-robin", "linear share", [0.5]).passed is None
    assert Row("mixed 80%", 2, "foretold", "p95_s", [3.0]).passed is None
    assert Row("mixed 60%", 4, "foretold", "p95 ratio", [0.8]).passed is True
    assert Row("mixed 120%", 4, "foretold", "mean ratio", [1.01]).passed is False
    assert "FAIL mixed 80%   4 foretold     p95 ratio          0.800  -" in str(
        Row("mixed 80%", 4, "foretold", "p95 ratio", [0.8])
    )


def test_all_cases_run_and_are_kept(tmp_path, capsys):
    rows = routing.measure((1, 2), seeds=1, images=24)
    assert {(row.case, row.cards, row.routing) for row in rows} == {
        (case, cards, name)
        for case in ("equal", "mixed 60%", "mixed 80%", "mixed 90%", "mixed 120%")
        for cards in (1, 2)
        for name in (*ROUTINGS, routing.MOVED)
        if name != routing.MOVED or case not in ("equal", "mixed 120%")
    }
    routing.write_csv(rows, tmp_path / "routing.csv")
    with (tmp_path / "routing.csv").open(encoding="utf-8") as file:
        kept = list(csv.DictReader(file))
    assert len(kept) == len(rows)
    assert float(kept[0]["value"]) == rows[0].values[0]
    assert len(capsys.readouterr().out.splitlines()) == len(rows)


def test_a_decision_is_timed():
    assert routing.decision_ms(routing.STEP_TIMES["h200"], inside=2, cards=2, count=3) > 0


def test_a_long_queue_is_worked_off_as_soon_as_by_round_robin():
    """With one batch inside, a card took the queue for short, and ran pairs: 2 % slower."""
    last_s = {}
    for name in ("foretold", "round-robin"):
        requests = [draw_equal(np.random.default_rng(0), 0.0) for _ in range(64)]
        open_loop(1, routing.SPECS["h200"], router_named(name), requests, seed=0)
        last_s[name] = max(asked.done_s for asked in requests)
    assert last_s["foretold"] <= 1.01 * last_s["round-robin"]


def test_a_router_has_one_look_in_all_panels_and_an_empty_panel_is_left_out(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_args, **_options: drawn.append(figure))
    rows = [
        Row("equal", cards, name, "slowest tenth", [1.0, 1.1, 1.2, 1.1, 1.0])
        for cards in (1, 2)
        for name in ("foretold", "two-choices")
    ]
    rows += [Row("mixed 80%", 2, "two-choices", "p95 ratio", [1.0, 1.1, 1.2, 1.1, 1.0])]
    routing.draw(rows, tmp_path / "routing.png")
    (figure,) = drawn
    both, alone = figure.axes
    colours = [
        container.lines[0].get_color() for container in (*both.containers, *alone.containers)
    ]
    assert colours[1] == colours[2] != colours[0]
    for ax in (both, alone):
        assert ax.get_yscale() == "log"
        assert [text.get_text() for text in ax.texts] == ["↑ worse", "↓ better"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["foretold", "two-choices"]


@pytest.mark.parametrize("gpu", routing.SPECS)
def test_equal_users_of_a_card_stay_in_batches_of_eight(gpu):
    """The first begins alone. Without a step to catch up, ones, twos and fours took turns: 8 % slower."""
    rate, slowest = routing.closed_figures(gpu, 1, "foretold", images=80, seed=0)
    times = StepTimesBySize.from_spec(routing.SPECS[gpu]["step_times"])[routing.SIZE]
    batch_s = times.encode(8) + routing.EQUAL_STEPS * times.step(16) + times.decode(8)
    assert rate == pytest.approx(8 / batch_s, rel=0.02)
    assert slowest < 1.05
