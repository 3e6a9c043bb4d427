"""The first notebook: how long it measures, and its answer in words."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchlib.questions.quickstart import INTERRUPTED_EARLY, judge_quickstart, run_times
from benchlib.study.store import Run


@pytest.mark.parametrize(
    ("fields", "duration_s", "warmup_s"),
    [
        ({"users": 1, "image_s": 0.1, "images": 20}, 15.0, 3.0),
        ({"users": 4, "image_s": 2.0, "images": 20}, 40.0, 8.0),
        ({"users": 1, "image_s": 0.1, "images": 10, "least_s": 6}, 6.0, 3.0),
        ({"users": 1, "image_s": 2.0, "images": 20, "duration_s": 5}, 5.0, 3.0),
    ],
)
def test_it_measures_for_so_many_images(
    fields: dict[str, Any], duration_s: float, warmup_s: float
) -> None:
    users = fields.pop("users")
    assert run_times(users, **fields) == {"duration_s": duration_s, "warmup_s": warmup_s}


def answer(
    made: SimpleNamespace, latency_s: list[float], status: str = "finished", **changes: Any
) -> str:
    record, requests, telemetry = made.run(latency_s, status=status)
    requests = requests.assign(**changes)
    telemetry = telemetry.assign(rss_gib=0.9)
    return str(judge_quickstart(Run(record, requests, telemetry, Path("results/quickstart/run"))))


def test_the_answer_where_it_works(made: SimpleNamespace) -> None:
    assert answer(made, [0.5] * 40).splitlines() == [
        "It works here: tiny made 9 images/s for 4 users. Half of the images came within 0.5 s.",
        "The process held at most 0.9 GiB.",
        "Rows, record and figures are in results/quickstart",
    ]


def test_the_answer_where_there_is_no_median(made: SimpleNamespace) -> None:
    drifting = answer(made, [0.1 * i for i in range(1, 81)])
    assert "Latency still drifted, so there is no median: measure longer." in drifting
    assert "There were too few images for a median: measure longer." in answer(made, [0.5])


def test_the_answer_of_an_interrupted_run_is_of_what_was_measured(made: SimpleNamespace) -> None:
    said = answer(made, [0.5] * 40, status="interrupted")
    assert said.startswith("It works here: tiny made ")
    assert "The run was interrupted after 40 images." in said
    early = answer(made, [], status="interrupted")
    assert early.startswith(f"{INTERRUPTED_EARLY}\n")


def test_the_answer_where_it_does_not_work(made: SimpleNamespace) -> None:
    failed = answer(made, [0.5] * 3, error="503: the queue is full", http_status=503)
    assert failed.startswith(
        "It does not work yet: 0 of 3 requests got an image (HTTP 503 3 times)."
    )
    none = answer(made, [])
    reason = "no request was scheduled in the measuring window"
    assert none.startswith(f"It does not work yet: 0 of 0 requests got an image ({reason}).")


def test_the_answer_says_that_the_machine_was_busy(made: SimpleNamespace) -> None:
    run = Run(*made.run([0.5] * 40), Path("results/quickstart/run"))
    calm, busy = str(judge_quickstart(run)), str(judge_quickstart(made.busy(run)))
    assert "busy" not in calm
    assert busy.splitlines()[1] == made.busy_sentence, "below the first line, as it bears on it"
