"""The engine: order, bounds, cancellation, memory, errors, stopping.

The fake model steps when the test allows it.
"""

import gc
import re
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import torch
from pydantic import ValidationError

from benchlib.serving.engine.engine import Engine
from benchlib.serving.engine.faults import MOST_FAILED_CALLS, EngineEnded
from benchlib.serving.engine.jobs import Cancelled, DoesNotFit, Refused
from benchlib.serving.engine.options import EngineOptions, in_words
from benchlib.serving.engine.policies import Turn
from benchlib.serving.engine.step_times import StepTimes
from benchlib.serving.model.torch_thread import on_torch_thread, others_wait
from benchlib.serving.schemas import GenerateRequest
from benchmarks.fakes.fake_pipeline import FakePipeline


def ask(prompt, steps=2, side=64, guidance=7.5):
    return GenerateRequest(
        prompt=prompt, num_inference_steps=steps, width=side, height=side, guidance_scale=guidance
    )


@pytest.fixture
def pipeline():
    return FakePipeline()


@pytest.fixture
def engine(pipeline):
    engine = Engine(pipeline, EngineOptions(batching="serial", max_queue=3))
    engine.start()
    assert engine.settled.wait(10)
    yield engine
    pipeline.gate.set()
    engine.stop()


@pytest.fixture
def start(pipeline):
    engines = []

    def start(**options):
        engine = Engine(pipeline, EngineOptions(**options))
        engines.append(engine)
        engine.start()
        assert engine.settled.wait(10)
        assert engine.failure is None
        pipeline.batches.clear()
        pipeline.calls.clear()
        return engine

    yield start
    pipeline.gate.set()
    for engine in engines:
        engine.stop()


def hold(pipeline, engine, prompt="first", steps=2):
    """Submit a job and return it once it is in its first step."""
    pipeline.gate.clear()
    pipeline.stepping.clear()
    job = engine.submit(ask(prompt, steps))
    assert pipeline.stepping.wait(10)
    return job


def test_jobs_run_whole_in_the_order_of_arrival(engine, pipeline):
    first = hold(pipeline, engine)
    others = [engine.submit(ask(name)) for name in ("second", "third")]
    pipeline.gate.set()
    for job in (first, *others):
        assert job.future.result(10).size == (8, 8)
    assert [job.work.request.prompt for job in (first, *others)] == ["first", "second", "third"]
    after_warm_up = [call for call in pipeline.calls if call[1] != "warm-up"]
    assert [prompt for _, prompt in after_warm_up] == ["first"] * 4 + ["second"] * 4 + ["third"] * 4
    assert first.arrived_s <= first.admitted_s <= others[0].admitted_s <= others[1].admitted_s


def test_another_caller_gets_the_torch_thread_between_steps(engine, pipeline):
    job = hold(pipeline, engine, steps=50)
    with ThreadPoolExecutor(1) as other:
        wanted = other.submit(on_torch_thread, lambda: len(pipeline.batches))
        while not others_wait():
            time.sleep(0.001)
        stood_at = len(pipeline.batches)
        pipeline.gate.set()
        assert wanted.result(10) == stood_at
    assert job.future.result(10)
    assert job.work.steps_done == 50
    assert not others_wait()


def test_a_full_queue_refuses_with_an_estimate_and_a_free_place_takes_again(engine, pipeline):
    engine.submit(ask("measured")).future.result(10)
    running = hold(pipeline, engine)
    waiting = [engine.submit(ask(str(i))) for i in range(3)]
    with pytest.raises(Refused, match=r"queue is full \(3 wait\)") as refusal:
        engine.submit(ask("too many"))
    assert 0 <= refusal.value.retry_after_s < 1
    engine.cancel(waiting[0])
    with pytest.raises(Cancelled):
        waiting[0].future.result(0)
    engine.submit(ask("in its place"))
    pipeline.gate.set()
    running.future.result(10)
    assert ("encode", "0") not in pipeline.calls


def test_a_cancelled_job_is_dropped_before_its_next_step(engine, pipeline):
    job = hold(pipeline, engine, steps=50)
    engine.cancel(job)
    pipeline.gate.set()
    with pytest.raises(Cancelled):
        job.future.result(10)
    assert pipeline.calls.count(("step", "first")) == 1
    assert ("decode", "first") not in pipeline.calls
    assert engine.submit(ask("next")).future.result(10).size == (8, 8)


def test_cancelling_a_finished_job_changes_nothing(engine):
    job = engine.submit(ask("a"))
    image = job.future.result(10)
    engine.cancel(job)
    assert job.future.result(0) is image


def test_an_error_ends_its_own_job_and_is_logged_with_its_id(engine, pipeline, caplog):
    pipeline.fail_on["bad"] = ZeroDivisionError("inside the model")
    bad, good = engine.submit(ask("bad"), request_id="id-of-bad"), engine.submit(ask("good"))
    with pytest.raises(ZeroDivisionError):
        bad.future.result(10)
    assert good.future.result(10)
    assert good.work.request.prompt == "good"
    assert "id-of-bad" in caplog.text
    assert "inside the model" in caplog.text


def test_out_of_memory_is_an_error_of_its_own(engine, pipeline):
    pipeline.fail_on["huge"] = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(DoesNotFit, match="64x64 does not fit"):
        engine.submit(ask("huge")).future.result(10)
    assert engine.submit(ask("small")).future.result(10)


def test_stopping_finishes_the_jobs_inside(engine, pipeline):
    first, second = hold(pipeline, engine), engine.submit(ask("second"))
    stopping = threading.Thread(target=engine.stop)
    stopping.start()
    while not engine._should_exit:
        pass
    with pytest.raises(Refused, match="stopping"):
        engine.submit(ask("late"))
    pipeline.gate.set()
    stopping.join(10)
    assert first.future.done()
    assert second.future.result(0)
    assert engine.state == "stopped"


def test_stopping_refuses_the_jobs_left_after_the_drain_time(engine, pipeline):
    first, second = hold(pipeline, engine, steps=50), engine.submit(ask("second"))
    stopping = threading.Thread(target=engine.stop, kwargs={"drain_s": 0.05})
    stopping.start()
    with pytest.raises(Refused, match="stopping"):
        second.future.result(10)
    pipeline.gate.set()
    stopping.join(10)
    with pytest.raises(Cancelled):
        first.future.result(10)


def test_stopping_gathers_no_longer(start):
    engine = start(batching="dynamic", max_wait_ms=60_000)
    jobs = [engine.submit(ask("a")), engine.submit(ask("b", side=128))]
    engine.stop(drain_s=20)
    assert all(job.future.result(0) for job in jobs)
    assert [job.work.request.prompt for job in jobs] == ["a", "b"]


def test_a_failure_to_load_is_kept_and_refuses():
    def load():
        raise RuntimeError("no such weights")

    engine = Engine(load)
    with pytest.raises(Refused, match="loading"):
        engine.submit(ask("early"))
    engine.start()
    assert engine.settled.wait(10)
    assert engine.state == "failed"
    with pytest.raises(Refused, match="no such weights"):
        engine.submit(ask("a"))
    engine.stop()


def test_an_owned_pipeline_is_freed():
    references = []

    def load():
        pipeline = FakePipeline()
        pipeline.itself = pipeline  # so that only the collector can free it
        references.append(weakref.ref(pipeline))
        return pipeline

    engine = Engine(load)
    engine.start()
    assert engine.settled.wait(10)
    engine.submit(ask("a")).future.result(10)
    engine.stop()
    gc.collect()
    assert references[0]() is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batching": "magic"}, "batching: .* not 'magic'"),
        ({"max_queue": 0}, "max_queue: .* not 0"),
        ({"max_batch_size": 0}, "max_batch_size: .* not 0"),
        ({"max_wait_ms": -1}, "max_wait_ms: .* not -1"),
        ({"max_wait_ms": float("nan")}, "max_wait_ms: .* not nan"),
        ({"batch_buckets": []}, r"batch_buckets: .* not \[\]"),
        ({"batch_buckets": [2, 0]}, r"batch_buckets\.1: .* not 0"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite: .* not 'ignore'"),
        ({"sizes": "64x"}, r"sizes\.0\.1: .* not ''"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(ValidationError) as raised:
        EngineOptions(**options)
    assert re.fullmatch(words, in_words(raised.value))


# -- batching --------------------------------------------------------------------------------------


def test_continuous_lets_requests_join_and_leave_between_steps(start, pipeline):
    engine = start(batching="continuous")
    first = hold(pipeline, engine, steps=5)
    others = [
        engine.submit(ask("short", steps=2)),
        engine.submit(ask("unguided", steps=3, guidance=0)),
    ]
    assert (engine.running, engine.waiting) == (1, 2)
    pipeline.gate.set()
    for job in (first, *others):
        job.future.result(10)
    assert [size for size, _ in pipeline.batches] == [1, 3, 3, 2, 1]
    assert [job.work.batch_rows for job in (first, *others)] == [10, 6, 8]
    assert first.work.service_s == pytest.approx(0.001 + 5 * 0.001 + 0.001)
    assert pipeline.calls.index(("decode", "short")) < pipeline.calls.index(("decode", "first"))
    assert engine.waiting == 0


@pytest.mark.parametrize(("once", "decisions"), [(False, 2), (True, 4)])
def test_a_turn_for_once_is_not_repeated(start, once, decisions):
    engine = start(batching="continuous")
    asked = []

    class OneByOne:
        def turn(self, tasks, _now_s, _lora=None):
            if not tasks:
                return Turn()
            asked.append(len(tasks))
            first = tasks[0]
            return Turn(step=(first,), once=once) if first.steps_left else Turn(decode=(first,))

    engine._turns = OneByOne()
    engine.submit(ask("three", steps=3)).future.result(10)
    assert asked == decisions * [1]


def test_dynamic_answers_a_batch_together_and_latecomers_after_it(start, pipeline):
    engine = start(batching="dynamic", max_batch_size=2, max_wait_ms=60_000)
    jobs = [engine.submit(ask("a", steps=1)), engine.submit(ask("b", steps=3))]
    jobs += [engine.submit(ask("c", side=128)), engine.submit(ask("d", side=128))]
    for job in jobs:
        job.future.result(10)
    assert [size for size, _ in pipeline.batches] == [2, 1, 1, 2, 2]
    assert [prompt for call, prompt in pipeline.calls if call == "decode"] == ["a", "b", "c", "d"]


def test_dynamic_waits_no_longer_than_max_wait_ms(start):
    engine = start(batching="dynamic", max_wait_ms=20)
    job = engine.submit(ask("alone"))
    job.future.result(10)
    assert job.admitted_s - job.arrived_s >= 0.02


def test_warm_up_measures_growing_batches_and_says_so(start):
    engine = start(batching="continuous", sizes=[(64, 64), (128, 64)], max_batch_size=6)
    curves = {
        "step_s": dict.fromkeys("1248", 0.001),
        "encode_s": dict.fromkeys("124", 0.001),
        "decode_s": dict.fromkeys("124", 0.001),
    }
    assert engine.spec["step_times"].keys() == {"64x64", "128x64"}
    for found in engine.spec["step_times"].values():
        measured = found.pop("measured")
        assert found == curves
        assert measured.keys() == curves.keys() | {"others_cpu_cores", "steal_cores"}
        assert {name: measured[name] for name in curves} == curves
    assert {name: engine.spec[name] for name in ("batching", "max_batch_size", "max_wait_ms", "max_queue")} == {
        "batching": "continuous", "max_batch_size": 6, "max_wait_ms": 5.0, "max_queue": 64,
    }  # fmt: skip
    # A size without measurements gets the times of the size nearest in pixels, in proportion.
    assert engine._times((256, 64)).step(2) == 0.002


def test_each_bucket_is_measured_full_and_what_is_padded_to_it_takes_as_long(
    start, pipeline, monkeypatch
):
    """Two to four requests fill a bucket of 8 rows, and five to eight a bucket of 16.

    Neither bucket gains anything here.
    """
    step = pipeline.step
    monkeypatch.setattr(pipeline, "step", lambda works, rows: step(works, rows=rows) * rows)
    engine = start(batching="continuous", batch_buckets=[2, 8, 16], max_batch_size=8)
    curve = engine.spec["step_times"]["64x64"]["step_s"]
    assert curve == pytest.approx(
        {"1": 0.002, "2": 0.002, "3": 0.008, "8": 0.008, "9": 0.016, "16": 0.016}
    )
    assert engine._times((64, 64)).step(32) == pytest.approx(0.032), "no larger batch is free"


def test_buckets_that_are_no_powers_of_two_or_can_not_be_filled_are_measured_too(
    start, pipeline, monkeypatch
):
    """Three cases: three requests in 6 rows, two requests in 5 rows, five requests in 16 rows.

    The first case fills its bucket; the others leave rows empty.
    """
    step = pipeline.step
    monkeypatch.setattr(pipeline, "step", lambda works, rows: step(works, rows=rows) * rows)
    for most_rows, most in ((6, 3), (5, 2), (16, 5)):
        engine = start(batching="continuous", batch_buckets=[2, most_rows], max_batch_size=most)
        curve = engine.spec["step_times"]["64x64"]["step_s"]
        rows_s = 0.001 * most_rows
        assert curve == pytest.approx({"1": 0.002, "2": 0.002, "3": rows_s, str(most_rows): rows_s})


def test_switches_from_one_adapter_to_another_are_counted(start):
    engine = start(batching="serial")
    assert engine.adapter_switches == 0
    for lora in (None, "style", "style", "style:0.5", None):
        request = ask("a cat", steps=3).model_copy(update={"lora": lora})
        engine.submit(request).future.result(10)
    assert engine.adapter_switches == 3


@pytest.mark.parametrize(("guided_rows", "rows"), [(2, [2, 1]), (1, [1, 1])])
def test_a_job_takes_the_rows_that_guidance_needs_in_this_model(start, pipeline, guided_rows, rows):
    pipeline.spec["guided_rows"] = guided_rows
    engine = start(batching="continuous")
    asked = [ask("guided"), ask("unguided", guidance=1.0)]
    assert [engine.submit(request).rows for request in asked] == rows
    curve = engine.spec["step_times"]["64x64"]["step_s"]
    assert list(curve)[:2] == ["1", "2"]


def test_batches_are_padded_up_to_the_next_bucket(start, pipeline):
    engine = start(batching="continuous", batch_buckets=[4, 1])
    hold(pipeline, engine, steps=1)
    jobs = [engine.submit(ask(str(i), steps=1)) for i in range(3)]
    pipeline.gate.set()
    for job in jobs:
        job.future.result(10)
    # The first batch has 2 rows. The second has 6 rows, and there is no bucket for them.
    assert pipeline.batches == [(1, 4), (3, None)]


def test_steps_and_busy_time_are_counted(start):
    engine = start(batching="continuous")
    seen = []
    engine.on_step = lambda *step: seen.append(step)
    engine.submit(ask("a", steps=3)).future.result(10)
    assert seen == [(1, 0.001)] * 3
    assert engine.busy_s > 0


@pytest.mark.parametrize("batching", ["dynamic", "continuous"])
def test_a_batch_that_is_too_large_is_halved_and_its_members_tried_again(start, pipeline, batching):
    engine = start(batching=batching, max_wait_ms=100, max_batch_size=4)
    pipeline.most_steps, pipeline.most_decodes = 2, 1
    for _ in range(2):
        jobs = [engine.submit(ask(str(i))) for i in range(4)]
        for job in jobs:
            assert job.future.result(10)
            assert job.work.steps_done == 2
    assert sum(size > 2 for size, _ in pipeline.batches) <= 2  # the smaller limit is remembered
    assert sum(call == "decode" for call, _ in pipeline.calls) <= 8 + 4 + 2


def test_a_newcomer_whose_encoding_runs_out_of_memory_once_is_served_and_no_batch_shrinks(
    start, pipeline, caplog, monkeypatch
):
    step, seven = pipeline.step, threading.Event()

    def step_and_hold_the_first_seven(works, *, rows=None):
        if len(works) == 7 and not seven.is_set():
            pipeline.gate.clear()
            seven.set()
        return step(works, rows=rows)

    engine = start(batching="continuous", max_batch_size=8)
    monkeypatch.setattr(pipeline, "step", step_and_hold_the_first_seven)
    jobs = [hold(pipeline, engine, steps=150)]
    jobs += [engine.submit(ask(str(i), steps=150)) for i in range(6)]
    pipeline.gate.set()
    assert seven.wait(10)
    pipeline.encode_errors = [torch.OutOfMemoryError("CUDA out of memory")]
    jobs.append(engine.submit(ask("newcomer", steps=150)))
    pipeline.gate.set()
    for job in jobs:
        assert job.future.result(60)
    assert pipeline.encode_errors == []
    assert "encode of 1 requests ran out of memory" in caplog.text
    assert engine.faults.out_of_memory == {"encode": 1}
    sizes = [size for size, _ in pipeline.batches]
    joined = sizes.index(8)
    assert set(sizes[joined - 1 : joined + 100]) == {7, 8}


def test_a_job_that_does_not_fit_alone_ends_and_the_others_go_on(start, pipeline):
    engine = start(batching="continuous")
    pipeline.fail_on["huge"] = torch.OutOfMemoryError("CUDA out of memory")
    hold(pipeline, engine, steps=3)
    huge, small = engine.submit(ask("huge")), engine.submit(ask("small"))
    pipeline.gate.set()
    with pytest.raises(DoesNotFit, match="64x64 does not fit"):
        huge.future.result(10)
    assert small.future.result(10)


def test_a_job_that_should_not_fit_is_refused_before_any_work(start, pipeline):
    engine = start(batching="continuous")
    pipeline.most_pixels = 2 * 64 * 64
    with pytest.raises(DoesNotFit, match="128x128 does not fit"):
        engine.submit(ask("huge", side=128)).future.result(10)
    assert pipeline.calls == []
    pipeline.most_decodes = 2  # a larger batch would fail, and be twice in `calls`
    hold(pipeline, engine, steps=1)
    jobs = [engine.submit(ask(str(i), steps=1)) for i in range(4)]
    pipeline.gate.set()
    for job in jobs:
        job.future.result(10)
    # Only the decoder lacks memory, so only the decoder gets smaller batches.
    assert (4, None) in pipeline.batches
    assert sum(call == "decode" for call, _ in pipeline.calls) == 5


def test_an_error_reaches_no_other_member_of_its_batch(start, pipeline):
    engine = start(batching="continuous", max_batch_size=2)
    pipeline.fail_on["bad"] = ZeroDivisionError()
    hold(pipeline, engine, steps=1)
    bad, beside, other = (engine.submit(ask(name)) for name in ("bad", "beside", "other"))
    pipeline.gate.set()
    with pytest.raises(ZeroDivisionError):
        bad.future.result(10)
    assert beside.future.result(10)
    assert other.future.result(10)
    assert (2, None) in pipeline.batches


def test_an_estimate_uses_copies_of_the_jobs(start, pipeline, monkeypatch):
    """A request is refused after a job's last step, before the engine has noticed that step."""
    engine = start(batching="serial", max_queue=1)
    step, seen, refused = pipeline.step, [], []

    def step_and_refuse(works, *, rows=None):
        seconds = step(works, rows=rows)
        if engine.waiting:
            with pytest.raises(Refused) as refusal:
                engine.submit(ask("too many"))
            refused.append(refusal.value.retry_after_s)
        return seconds

    class Watched(type(engine._policy)):
        def turn(self, tasks, now_s, lora=None):
            seen.extend(task.steps_left for task in tasks)
            return super().turn(tasks, now_s, lora)

    monkeypatch.setattr(pipeline, "step", step_and_refuse)
    engine._policy = Watched()
    hold(pipeline, engine, steps=1)
    waiting = engine.submit(ask("waiting", steps=3))
    pipeline.gate.set()
    waiting.future.result(10)
    assert refused
    assert min(seen) == 0


@pytest.mark.parametrize("batching", ["serial", "dynamic", "continuous"])
def test_a_refusal_says_when_a_place_should_come_free(start, pipeline, batching):
    engine = start(batching=batching, max_batch_size=2, max_wait_ms=0.0, max_queue=2)
    hold(pipeline, engine, steps=100)
    waiting = [engine.submit(ask(str(i), steps=100)) for i in range(2)]
    for _ in range(2):
        with pytest.raises(Refused) as refusal:
            engine.submit(ask("too many"))
    if batching == "continuous":  # one of them joins at the next step
        assert refusal.value.retry_after_s < 0.01
    else:
        assert 0.05 < refusal.value.retry_after_s < 0.11
    engine.cancel(waiting[0])
    engine.submit(ask("in its place"))


class OnItsOwnClock(FakePipeline):
    """A fake whose calls move a clock by the times of its curves. Nothing else moves the clock."""

    def __init__(self, step_s):
        super().__init__()
        self.now_s, self.curves = 1000.0, StepTimes(step_s, {1: 0.25, 2: 0.5}, {1: 2.0, 2: 3.0})

    def monotonic(self):
        return self.now_s

    def took(self, seconds):
        self.now_s += seconds
        return seconds

    def encode(self, requests):
        works, encode_s = super().encode(requests), self.took(self.curves.encode(len(requests)))
        for work in works:
            work.encode_s = encode_s
        return works

    def step(self, works, *, rows=None):
        super().step(works, rows=rows)
        return self.took(self.curves.step(2 * len(works)))

    def decode(self, works):
        images, decode_s = super().decode(works), self.took(self.curves.decode(len(works)))
        for work in works:
            work.decode_s = decode_s
        return images


@pytest.mark.parametrize("batching", ["serial", "dynamic", "continuous"])
@pytest.mark.parametrize(
    "step_s", [{1: 0.75, 2: 1.0, 4: 1.25}, {1: 0.5, 2: 1.0, 4: 2.0}], ids=["gain", "no gain"]
)
@pytest.mark.parametrize("steps", [(9, 7, 4), (1, 30, 2), (30, 20, 25)])
def test_retry_after_is_when_a_place_comes_free(batching, step_s, steps, monkeypatch):
    pipeline = OnItsOwnClock(step_s)
    monkeypatch.setattr("benchlib.serving.engine.engine.time", pipeline)
    engine = Engine(
        pipeline,
        EngineOptions(batching=batching, max_batch_size=2, max_wait_ms=0.0, max_queue=2),
    )
    engine.start()
    assert engine.settled.wait(10)
    running = hold(pipeline, engine, steps=steps[0])
    waiting = [engine.submit(ask("next", n)) for n in steps[1:]]
    with pytest.raises(Refused) as refusal:
        engine.submit(ask("too many"))
    refused_s = pipeline.now_s
    pipeline.gate.set()
    for job in (running, *waiting):
        job.future.result(10)
    engine.stop()
    after_s = min(job.admitted_s for job in waiting) - refused_s
    assert refusal.value.retry_after_s == after_s
    assert batching == "continuous" or after_s >= steps[0] + 2


@pytest.mark.parametrize("error", [LookupError("no such place"), SystemExit("no such place")])
def test_an_engine_that_breaks_tells_everybody_why_and_is_logged_once(
    start, pipeline, caplog, error
):
    engine = start(batching="serial")
    first = hold(pipeline, engine)
    waiting = engine.submit(ask("waiting"))

    def broken(*_):
        raise error

    engine.on_step = broken
    pipeline.gate.set()
    for job in (first, waiting):
        with pytest.raises(EngineEnded, match=f"{type(error).__name__}: no such place"):
            job.future.result(10)
    assert engine.ended.wait(10)
    with pytest.raises(EngineEnded, match="no such place"):
        engine.submit(ask("late"))
    assert engine.state == "failed"
    assert str(engine.failure) == engine.trouble
    assert (engine.waiting, engine.running) == (0, 0)
    [record] = caplog.records
    assert record.levelname == "CRITICAL"


@pytest.mark.parametrize("name", ["reset_peak_memory", "peak_memory"])
def test_an_error_outside_of_a_call_of_the_model_ends_the_engine(
    start, pipeline, monkeypatch, name
):
    engine = start(batching="continuous")
    monkeypatch.setattr(pipeline, name, lambda: 1 / 0)
    with pytest.raises(EngineEnded, match="ZeroDivisionError: division by zero"):
        engine.submit(ask("a")).future.result(10)


def test_an_engine_that_breaks_keeps_no_owned_model(monkeypatch):
    references = []

    def load():
        pipeline = FakePipeline()
        references.append(weakref.ref(pipeline))
        monkeypatch.setattr(pipeline, "peak_memory", lambda: 1 / 0)
        return pipeline

    engine = Engine(load)
    engine.start()
    assert engine.settled.wait(10)
    with pytest.raises(EngineEnded):
        engine.submit(ask("a")).future.result(10)
    assert engine.ended.wait(10)
    monkeypatch.undo()
    gc.collect()
    assert references[0]() is None
    engine.stop()


def test_an_engine_whose_calls_all_fail_is_not_ready_until_a_step_succeeds(start, pipeline, caplog):
    engine = start(batching="serial", max_queue=100)
    pipeline.fail_on["lost"] = RuntimeError("the device is lost")
    jobs = [engine.submit(ask("lost")) for _ in range(MOST_FAILED_CALLS - 1)]
    for job in jobs:
        with pytest.raises(RuntimeError, match="the device is lost"):
            job.future.result(10)
    assert engine.state == "ready"
    assert engine.trouble is None
    with pytest.raises(RuntimeError, match="the device is lost"):
        engine.submit(ask("lost")).future.result(10)
    assert engine.state == "failing"
    assert "30 calls" in engine.trouble
    assert "RuntimeError: the device is lost" in engine.trouble
    assert engine.submit(ask("well")).future.result(10), "it still takes requests"
    assert engine.state == "ready"
    assert "a step has succeeded after 30 failed calls" in caplog.text


def test_a_failing_engine_without_requests_tries_a_step_by_itself(start, pipeline, monkeypatch):
    monkeypatch.setattr("benchlib.serving.engine.engine.PROBE_S", 0.01)
    engine = start(batching="continuous", max_queue=100)
    pipeline.fail_on = dict.fromkeys(("lost", "warm-up"), RuntimeError("the device is lost"))
    jobs = [engine.submit(ask("lost")) for _ in range(MOST_FAILED_CALLS)]
    wait(job.future for job in jobs)
    while engine.faults.failed_calls < MOST_FAILED_CALLS + 3:
        time.sleep(0.001)
    assert engine.state == "failing"
    pipeline.fail_on.clear()
    while engine.state != "ready":
        time.sleep(0.001)
