"""The frontier: what is foretold of policies whose truth is known, and of nothing."""

import pytest

from benchlib.questions.batching.calibrated import calibrate_policies
from benchlib.questions.batching.frontier import foretell_frontier
from benchlib.study.slo import Slo
from tests.queueing.simulated_runs import simulated_run

RATE = 1.1  # an image takes 0.82 s


def test_each_policy_has_a_line_that_meets_the_promise_at_its_capacity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("benchlib.questions.batching.frontier.SHARES", (0.3, 0.8))  # takes seconds
    runs = [
        simulated_run(name, rate=RATE, requests=60, seed=3) for name in ("serial", "continuous")
    ]
    frontier = foretell_frontier(calibrate_policies(runs))
    assert frontier.slo is not None
    goal = Slo.parse(frontier.slo)
    assert goal.q == 0.95
    assert goal.latency_s == pytest.approx(4 * 0.82, rel=0.05), "by default four images' time"
    assert frontier.images == {"serial": 60, "continuous": 60}
    assert frontier.refusals == {}
    for name, rows in frontier.rows.groupby("name"):
        rate, interval = frontier.capacities[str(name)]
        assert rate is not None
        assert interval is not None
        assert interval[0] < rate < interval[1]
        assert rows["images_per_s"].is_monotonic_increasing
        at_capacity = rows.set_index("images_per_s")["promised_s"][rate]
        assert at_capacity == pytest.approx(goal.latency_s, rel=0.05)
    most = {name: rate or 0.0 for name, (rate, _) in frontier.capacities.items()}
    assert most["continuous"] > 1.5 * most["serial"]


def test_a_refused_calibration_has_no_line_and_its_reason() -> None:
    few = simulated_run("serial", rate=RATE, requests=5, seed=3)
    calibrations = calibrate_policies([few])
    frontier = foretell_frontier(calibrations, slo="p95 < 2 s")
    assert not len(frontier.rows)
    assert frontier.refusals == {"serial": calibrations["serial"].refusal}
    assert not len(foretell_frontier({}).rows)


def test_a_promise_that_can_not_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match="fast"):
        foretell_frontier({}, slo="fast")
