"""The cost of a step: what was measured is kept beside what it is evened out to."""

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchlib import other_work
from benchlib.other_work import Taken
from benchlib.serving.engine.step_times import (
    StepTimes,
    StepTimesBySize,
    measure_step_times,
)
from benchmarks.fakes.fake_pipeline import FakeSchedules

SIZE = (64, 64)


@pytest.fixture(autouse=True)
def _as_often_as_a_server_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchlib.serving.engine.step_times.REPEATS", 6)


class FakePipeline:
    """Tells the times of a model, by rows of a step and by requests, without a model."""

    schedules = FakeSchedules()
    guided_rows = 2
    adapters = SimpleNamespace(names=())

    def __init__(self, step_s: dict[int, float]) -> None:
        self.step_s = step_s

    @property
    def spec(self) -> dict[str, Any]:
        return {"guided_rows": self.guided_rows}

    def encode(self, requests: list[Any]) -> list[Any]:
        rows = [request.rows(self.guided_rows) for request in requests]
        begun = {"encode_s": 0.3, "decode_s": None, "failure": None, "finished": False}
        return [SimpleNamespace(**begun, rows=count) for count in rows]

    def step(self, works: list[Any], *, rows: int | None) -> float:
        assert rows is None
        return self.step_s[sum(work.rows for work in works)]

    def decode(self, works: list[Any]) -> None:
        works[0].decode_s = 0.1 * len(works)

    def fits(self, width: int, height: int, images: int) -> bool:
        return (width, height) == SIZE and images <= 4


# A machine that grew calm while larger and larger batches were timed.
CALMING = {1: 0.9, 2: 0.8, 4: 0.6, 8: 0.4}


def measured_beside(monkeypatch: pytest.MonkeyPatch, others: float | None) -> StepTimes:
    readings = [Taken(None, None), Taken(others, 0.0)]
    monkeypatch.setattr(other_work.OtherWork, "read", lambda _: readings.pop(0))
    pipeline = cast(Any, FakePipeline(CALMING))
    return measure_step_times(pipeline, SIZE, max_batch_size=8, padded=lambda _: None)


def test_what_was_measured_is_kept_beside_what_it_is_evened_out_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = measured_beside(monkeypatch, 1.31)
    assert times.step_s == dict.fromkeys(CALMING, 0.4)
    assert times.measured is not None
    assert times.decode_s == {1: 0.1, 2: 0.2, 4: 0.4}
    assert times.measured == {
        "step_s": {"1": 0.9, "2": 0.8, "4": 0.6, "8": 0.4},
        "encode_s": {"1": 0.3, "2": 0.3, "4": 0.3},
        "decode_s": {"1": 0.1, "2": 0.2, "4": 0.4},
        "others_cpu_cores": 1.31,
        "steal_cores": 0.0,
    }
    assert times.step(2) == 0.4, "policies go by the evened times"
    assert times.scaled(4).measured is None, "nobody measured another size"


class Disturbed(FakePipeline):
    """Other work slows down the first steps of two requests."""

    def __init__(self, *, disturbed_steps: int) -> None:
        super().__init__({1: 0.01, 2: 0.01, 4: 0.01, 8: 0.01})
        self.disturbed_steps = disturbed_steps

    def step(self, works: list[Any], *, rows: int | None) -> float:
        step_s = super().step(works, rows=rows)
        if len(works) == 2 and self.disturbed_steps:
            self.disturbed_steps -= 1
            return 10 * step_s
        return step_s

    def encode(self, requests: list[Any]) -> list[Any]:
        works = super().encode(requests)
        for work in works:
            work.encode_s = 0.0
        return works

    def decode(self, works: list[Any]) -> None:
        works[0].decode_s = 0.001 * len(works)


def batches_measured(pipeline: FakePipeline) -> list[int]:
    times = measure_step_times(cast(Any, pipeline), SIZE, max_batch_size=4, padded=lambda _: None)
    return sorted(times.decode_s)


def test_a_batch_that_other_work_slowed_down_is_measured_again() -> None:
    assert batches_measured(Disturbed(disturbed_steps=0)) == [1, 2, 4]
    assert batches_measured(Disturbed(disturbed_steps=7)) == [1, 2, 4]


def test_a_batch_without_a_gain_is_the_last() -> None:
    always = Disturbed(disturbed_steps=1000)
    assert batches_measured(always) == [1, 2]


def test_one_decoding_may_be_the_gain_of_a_batch() -> None:
    no_gain = FakePipeline({1: 0.1, 2: 0.1, 4: 0.2, 8: 0.4})
    assert batches_measured(no_gain) == [1, 2, 4], "all are encoded in 0.3 s"


def test_a_unet_that_reads_the_guidance_is_measured_in_single_rows() -> None:
    pipeline = FakePipeline(CALMING)
    pipeline.guided_rows = 1
    times = measure_step_times(cast(Any, pipeline), SIZE, max_batch_size=4, padded=lambda _: None)
    assert times.measured is not None
    assert times.measured["step_s"] == {"1": 0.9, "2": 0.8, "4": 0.6}


def test_both_are_in_the_spec_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    by_size = StepTimesBySize({SIZE: measured_beside(monkeypatch, None)})
    spec = json.loads(json.dumps(by_size.to_spec(), allow_nan=False))
    assert spec["64x64"]["step_s"] == {"1": 0.4, "2": 0.4, "4": 0.4, "8": 0.4}
    assert spec["64x64"]["measured"]["step_s"]["2"] == 0.8
    assert spec["64x64"]["measured"]["others_cpu_cores"] is None
    assert StepTimesBySize.from_spec(spec) == by_size


def test_older_specs_hold_no_measured_times() -> None:
    old = {"64x64": {name: {"1": 0.5} for name in ("step_s", "encode_s", "decode_s")}}
    by_size = StepTimesBySize.from_spec(old)
    assert by_size[SIZE].measured is None
    assert by_size.to_spec() == old
