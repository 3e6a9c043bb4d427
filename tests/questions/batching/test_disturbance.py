"""Which step times carry no claim: those beside other work, and those that fall."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from benchlib.questions.batching import plots
from benchlib.questions.batching.disturbance import (
    disturbance,
    first_disturbance,
    measured_curves,
)
from benchlib.questions.batching.judge import gains, judge_batching
from benchlib.study.store import Run

SHOWCASE = {"showcase": {"width": 64, "height": 64, "num_inference_steps": 10}}


def curves(step_s: dict[int, float], **measured: Any) -> dict[str, Any]:
    """Evened curves of a step that takes 0.4 s, whatever the rows; `step_s` is what was measured."""
    by_request = {str(n // 2): 0.1 for n in step_s if n > 1}
    around = {"encode_s": by_request, "decode_s": by_request}
    evened = {"step_s": {str(n): 0.4 for n in step_s}} | around
    found = {"step_s": {str(n): seconds for n, seconds in step_s.items()}} | around
    return evened | {"measured": found | measured}


CALM = {1: 0.2, 2: 0.4, 4: 0.41, 8: 0.7}
CALMING = {1: 0.9, 2: 0.8, 4: 0.6, 8: 0.4}


def test_what_others_took_while_steps_were_timed_disturbs_them(made: SimpleNamespace) -> None:
    record = made.record()
    calm = curves(CALM, others_cpu_cores=0.1, steal_cores=0.0)
    assert disturbance(record, calm) is None
    busy = curves(CALM, others_cpu_cores=1.31, steal_cores=0.0)
    assert disturbance(record, busy) == "other processes took 1.31 of 2 cores (limit: 0.5)"


@pytest.mark.parametrize(
    ("step_s", "reason"),
    [
        (CALMING, "a step of 2 rows took 2 times as long as one of 8"),
        ({2: 0.4, 4: 0.9, 8: 0.5}, "a step of 4 rows took 1.8 times as long as one of 8"),
        ({2: 0.43, 4: 0.4, 8: 0.41}, None),  # within 10 %
        ({1: 2.0, 2: 0.4, 4: 0.5}, None),  # no claim is made of images without guidance
        ({2: 0.4}, None),
        ({2: 0.4, 4: 0.0}, None),
    ],
)
def test_a_step_that_takes_longer_than_one_of_a_larger_batch_was_disturbed(
    made: SimpleNamespace, step_s: dict[int, float], reason: str | None
) -> None:
    assert disturbance(made.record(), curves(step_s)) == reason


def test_older_step_times_are_taken_as_they_are(made: SimpleNamespace) -> None:
    old = curves(CALMING)
    del old["measured"]
    assert measured_curves(old) is old
    assert disturbance(made.record(), old) is None


def test_disturbed_step_times_are_drawn_as_measured_and_show_no_gain(made: SimpleNamespace) -> None:
    record = made.record(target=SHOWCASE)
    ax = plots.step_time_curve(step_times={"64x64": curves(CALMING)}, record=record)
    _, lower = ax.figure.axes
    assert lower.lines[0].get_ydata().tolist() == pytest.approx([800, 600, 400])
    title = " ".join(ax.get_title("left").replace("\u00a0", " ").split())
    assert "what a batch gains is not shown: a step of 2 rows took 2 times as long" in title
    assert "makes" not in title
    assert "measured, disturbed" in [text.get_text() for text in lower.texts]
    calm = plots.step_time_curve(step_times={"64x64": curves(CALM)}, record=record)
    assert "a batch of 4 makes" in calm.get_title("left").replace("\n", " ")


def test_the_answer_claims_nothing_by_disturbed_step_times(made: SimpleNamespace) -> None:
    def run(step_s: dict[int, float]) -> Run:
        record = made.record(target={"step_times": {"64x64": curves(step_s)}})
        return Run(record, made.requests([made.row()]), made.telemetry(), Path("results/a/b"))

    predicted = pd.DataFrame({"serial": [1.0], "continuous": [0.5]}, index=["when busy"])
    options: dict[str, Any] = {"serial_images_per_s": 4.0, "rush": {}, "predicted": predicted}
    assert first_disturbance([run(CALM)]) is None
    calm = str(judge_batching(gains([]), runs=[run(CALM)], **options))
    assert "by the step times it should pay" in calm
    found = str(judge_batching(gains([]), runs=[run(CALM), run(CALMING)], **options))
    assert "- continuous: not measured\n" in found
    assert "The step times show nothing, as they were disturbed: a step of 2 rows took" in found
    assert "By the step times" not in found
