"""How the minutes of notebook 03 are shared, and the promise that it tests."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchlib.questions.capacity.measure import CapacityPlan, plan_capacity
from benchlib.study.store import Run, Study

PLAN = CapacityPlan(
    steps=5,
    image_s=0.2,
    slo="p95 < 0.8 s",
    minutes=2.0,
    rate_shares=(0.5, 1.0),
    trial_requests=300,
)


class Pipe:
    """Makes images of which the second took least."""

    spec: dict[str, Any] = {  # noqa: RUF012 - nobody changes it
        "showcase": {"width": 64, "height": 64, "num_inference_steps": 20}
    }

    def __init__(self) -> None:
        self.times_s = iter([0.9, 0.2, *[0.3] * 9])
        self.requests: list[Any] = []

    def generate(self, request: Any) -> SimpleNamespace:
        self.requests.append(request)
        return SimpleNamespace(timings=SimpleNamespace(total_s=next(self.times_s)))


def closed_loop(made: SimpleNamespace, images_per_s: float) -> Study:
    gap_s = 1 / images_per_s
    record, requests, telemetry = made.run([gap_s] * 100, gap_s=gap_s)
    return Study(Path("results/load"), (Run(record, requests, telemetry, Path("results/load/a")),))


NO_RUN = Study(Path("results/load"), ())


@pytest.mark.parametrize(
    ("options", "steps", "minutes", "slo"),
    [
        ({"profile": "quick"}, 5, 1.5, "p95 < 0.800 s"),
        ({"profile": "full"}, 20, 30, "p95 < 0.800 s"),
        ({"profile": "full", "budget_min": 7}, 20, 7, "p95 < 0.800 s"),
        ({"profile": "quick", "slo": "p90 < 1 s"}, 5, 1.5, "p90 < 1 s"),
    ],
)
def test_the_plan_follows_from_one_image(
    options: dict[str, Any], steps: int, minutes: float, slo: str
) -> None:
    pipe: Any = Pipe()
    plan = plan_capacity(pipe, **options)
    assert (plan.steps, plan.minutes, plan.slo) == (steps, minutes, slo)
    assert plan.image_s == 0.2, "the shortest time is what an image takes alone"
    assert {request.num_inference_steps for request in pipe.requests} == {steps}


def test_the_plan_in_words() -> None:
    assert str(PLAN) == (
        "One image of 5 steps takes 0.2 s alone. The promise: p95 < 0.8 s. "
        "Measuring takes about 2 minutes."
    )


def test_users_and_rates_get_their_shares_of_the_minutes() -> None:
    server: Any = "http://127.0.0.1:1"
    users = PLAN.user_points(server, [1, 2])
    assert [point.label for point in users] == ["users-1", "users-2"]
    assert [point.duration_s for point in users] == pytest.approx([9, 9])
    rates = PLAN.rate_points(server, [2.0, 4.0, 6.0])
    assert [point.label for point in rates] == ["rate-2", "rate-4", "rate-6"]
    assert [point.duration_s for point in rates] == pytest.approx([6, 6, 6])
    for point in [*users, *rates]:
        assert point.warmup_s == 0.4
        assert point.workload.num_inference_steps == 5
        assert point.plan(server)


def test_the_rates_are_shares_of_the_most_images_of_a_closed_loop(made: SimpleNamespace) -> None:
    assert PLAN.rates(closed_loop(made, 8)) == pytest.approx([4, 8], rel=0.05)
    assert PLAN.rates(NO_RUN) == [2.5, 5], "one image after another"


def test_the_search_has_time_for_four_trials(made: SimpleNamespace) -> None:
    options = PLAN.search_options(closed_loop(made, 8))
    assert options["start_rate"] == pytest.approx(3.2, rel=0.05)
    two_at_start_and_two_at_twice_s = 3 * options["trial_requests"] / options["start_rate"]
    assert two_at_start_and_two_at_twice_s < 60 * options["budget_min"] == 72
    assert options["trial_s"] == pytest.approx(1.6)
    assert options["slo"] == "p95 < 0.8 s"


def test_a_machine_that_takes_minutes_for_an_image_is_searched_from_the_lowest_rate() -> None:
    slow = CapacityPlan(
        steps=20,
        image_s=300.0,
        slo="p95 < 1200 s",
        minutes=1.0,
        rate_shares=(0.5,),
        trial_requests=150,
    )
    options = slow.search_options(NO_RUN)
    assert (options["start_rate"], options["trial_requests"]) == (0.01, 1)
