"""The engine's queue: order, bounds, cancellation, errors, stopping. The model is a fake that steps when told to."""

import gc
import threading
import weakref

import pytest
import torch

from benchlib.serving.engine import Cancelled, DoesNotFit, Engine, Refused
from benchlib.serving.schemas import GenerateRequest
from tests.serving.fake_pipeline import FakePipeline


def ask(prompt, steps=2):
    return GenerateRequest(prompt=prompt, num_inference_steps=steps, width=64, height=64)


@pytest.fixture
def pipeline():
    return FakePipeline()


@pytest.fixture
def engine(pipeline):
    engine = Engine(pipeline, max_queue=3)
    engine.start()
    assert engine.settled.wait(10)
    yield engine
    pipeline.gate.set()
    engine.stop()


def hold(pipeline, engine, prompt="first", steps=2):
    """Submit a job and return when it stands in its first step."""
    pipeline.gate.clear()
    pipeline.stepping.clear()
    job = engine.submit(ask(prompt, steps))
    assert pipeline.stepping.wait(10)
    return job


def test_jobs_run_whole_in_the_order_of_arrival(engine, pipeline):
    first = hold(pipeline, engine)
    others = [engine.submit(ask(name)) for name in ("second", "third")]
    pipeline.gate.set()
    done = [job.future.result(10) for job in (first, *others)]
    assert [d.work.request.prompt for d in done] == ["first", "second", "third"]
    after_warm_up = [call for call in pipeline.calls if call[0] != "generate"]
    assert [prompt for _, prompt in after_warm_up] == ["first"] * 4 + ["second"] * 4 + ["third"] * 4
    assert first.arrived_s <= first.admitted_s <= others[0].admitted_s <= others[1].admitted_s


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
    assert engine.submit(ask("next")).future.result(10).image.size == (8, 8)


def test_cancelling_a_finished_job_changes_nothing(engine):
    job = engine.submit(ask("a"))
    done = job.future.result(10)
    engine.cancel(job)
    assert job.future.result(0) is done


def test_an_error_ends_its_own_job_and_is_logged_with_its_id(engine, pipeline, caplog):
    pipeline.fail_on["bad"] = ZeroDivisionError("inside the model")
    bad, good = engine.submit(ask("bad"), request_id="id-of-bad"), engine.submit(ask("good"))
    with pytest.raises(ZeroDivisionError):
        bad.future.result(10)
    assert good.future.result(10).work.request.prompt == "good"
    assert "id-of-bad" in caplog.text
    assert "inside the model" in caplog.text


def test_out_of_memory_is_told_apart(engine, pipeline):
    pipeline.fail_on["huge"] = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(DoesNotFit, match="64x64 does not fit"):
        engine.submit(ask("huge")).future.result(10)
    assert engine.submit(ask("small")).future.result(10)


def test_stopping_finishes_what_is_inside(engine, pipeline):
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


def test_stopping_refuses_what_the_drain_time_leaves(engine, pipeline):
    first, second = hold(pipeline, engine, steps=50), engine.submit(ask("second"))
    stopping = threading.Thread(target=engine.stop, kwargs={"drain_s": 0.05})
    stopping.start()
    with pytest.raises(Refused, match="stopping"):
        second.future.result(10)
    pipeline.gate.set()
    stopping.join(10)
    with pytest.raises(Cancelled):
        first.future.result(10)


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
        made = FakePipeline()
        references.append(weakref.ref(made))
        return made

    engine = Engine(load)
    engine.start()
    assert engine.settled.wait(10)
    engine.submit(ask("a")).future.result(10)
    engine.stop()
    gc.collect()
    assert references[0]() is None


@pytest.mark.parametrize(
    ("options", "message"), [({"batching": "magic"}, "batching: 'magic'"), ({"max_queue": 0}, "max_queue: 0")]
)
def test_bad_options_are_named(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        Engine(pipeline, **options)
