"""What becomes of the members of a batch when a call fails: in each part, under each policy.

The real tiny model shows that the others' images have the bytes of a batch without the fault.
"""

import weakref
from concurrent.futures import wait
from contextlib import contextmanager

import pytest
import torch

from benchlib.serving.engine.engine import Engine
from benchlib.serving.engine.faults import MOST_FAILED_CALLS, NotFinite, ShortOfMemory
from benchlib.serving.engine.guarded_calls import is_out_of_memory
from benchlib.serving.engine.jobs import DoesNotFit
from benchlib.serving.engine.model_calls import ModelCalls
from benchlib.serving.engine.options import EngineOptions
from benchlib.serving.engine.step_times import StepTimes
from benchlib.serving.model.torch_thread import on_torch_thread
from benchlib.serving.schemas import GenerateRequest
from benchmarks.fakes.fake_pipeline import FakePipeline

POLICIES = ["serial", "dynamic", "continuous"]
PARTS = ["encode", "step", "decode"]
FREE = StepTimes({1: 0.01, 64: 0.01}, {1: 0.01, 64: 0.01}, {1: 0.01, 64: 0.01})
SIDE = 64


def ask(prompt, side=SIDE, seed=1):
    return GenerateRequest(
        prompt=prompt, num_inference_steps=2, width=side, height=side, seed=seed, guidance_scale=5
    )


@contextmanager
def running(pipeline, batching, **options):
    """An engine to which a larger batch costs nothing. It is not warmed up."""
    options |= {"max_wait_ms": 60_000, "max_batch_size": 4} if batching == "dynamic" else {}
    engine = Engine(pipeline, EngineOptions(batching=batching, **options))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelCalls, "warm_up", lambda *_: FREE)
        engine.start()
        assert engine.settled.wait(120)
        assert engine.failure is None
        try:
            yield engine
        finally:
            engine.stop()


def submit_at_once(engine, *requests):
    """The jobs of requests that the policy sees together, ended one way or the other."""
    with engine._change:
        jobs = [engine.submit(request) for request in requests]
    assert not wait([job.future for job in jobs], timeout=120).not_done
    return jobs


@contextmanager
def failing(pipeline, part, error, *, prompt=None, times=None, batches_of=1):
    """`part` raises `error` for `prompt`, so many times; or for batches of so many and more."""
    usual = getattr(pipeline, part)
    left = [times]

    def call(works, **options):
        prompts = [getattr(work, "request", work).prompt for work in works]
        fits = prompt is None or prompt in prompts
        if fits and len(works) >= batches_of and left[0] != 0:
            left[0] = None if left[0] is None else left[0] - 1
            raise error
        return usual(works, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, part, call)
        yield


def bytes_of(jobs):
    return [job.future.result(0).tobytes() for job in jobs]


# -- a fault ---------------------------------------------------------------------------------------


def made_without(pipe, part, good, bad):
    """The bytes of the images of `good`, had `bad` left them just before `part`."""

    def make():
        works = pipe.encode([*good, bad] if part != "encode" else good)
        if part == "step":
            works = works[: len(good)]
        while not works[0].finished:
            pipe.step(works)
        return [image.tobytes() for image in pipe.decode(works[: len(good)])]

    return on_torch_thread(make)


@pytest.mark.parametrize("batching", POLICIES)
@pytest.mark.parametrize("part", PARTS)
def test_the_others_of_a_batch_get_the_bytes_that_they_get_without_the_fault(tiny, batching, part):
    good = [ask(f"a lighthouse {number}", seed=number) for number in range(3)]
    bad = ask("bad")
    with (
        running(tiny, batching) as engine,
        failing(tiny, part, ZeroDivisionError(part), prompt="bad"),
    ):
        *others, ended = submit_at_once(engine, *good, bad)
    with pytest.raises(ZeroDivisionError, match=part):
        ended.future.result(0)
    if batching == "serial":
        expected = [tiny.generate(request).images[0].tobytes() for request in good]
    else:
        expected = made_without(tiny, part, good, bad)
    assert bytes_of(others) == expected


@pytest.mark.parametrize("batching", ["dynamic", "continuous"])
def test_a_fault_that_comes_once_changes_no_byte_of_anybodys_image(tiny, batching):
    requests = [ask(f"a lighthouse {number}", seed=number) for number in range(4)]
    with running(tiny, batching) as engine:
        expected = bytes_of(submit_at_once(engine, *requests))
        for part in PARTS:
            with failing(tiny, part, ZeroDivisionError(part), times=1):
                jobs = submit_at_once(engine, *requests)
            assert bytes_of(jobs) == expected, part


@pytest.mark.parametrize("batching", POLICIES)
@pytest.mark.parametrize("part", PARTS)
def test_jobs_at_fault_end_alone_however_many_they_are(batching, part):
    pipeline = FakePipeline()
    prompts = ["good", "bad", "good", "worse"]
    with (
        running(pipeline, batching) as engine,
        failing(pipeline, part, ZeroDivisionError(), prompt="bad"),
        failing(pipeline, part, LookupError(), prompt="worse"),
    ):
        jobs = submit_at_once(engine, *map(ask, prompts))
    outcomes = [type(job.outcome).__name__ for job in jobs]
    assert outcomes == ["Image", "ZeroDivisionError", "Image", "LookupError"]
    assert [jobs[number].work.steps_done for number in (0, 2)] == [2, 2]
    assert engine.faults.failed_calls < MOST_FAILED_CALLS


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batching", POLICIES)
@pytest.mark.parametrize("part", PARTS)
def test_a_lack_of_memory_that_comes_once_is_served_counted_and_logged(batching, part, caplog):
    pipeline = FakePipeline()
    with (
        running(pipeline, batching) as engine,
        failing(pipeline, part, torch.OutOfMemoryError(), times=1),
    ):
        jobs = submit_at_once(engine, *[ask("a")] * 4)
    assert all(job.future.result(0) for job in jobs)
    assert engine.faults.out_of_memory == {part: 1}
    assert engine.faults.failed_calls == 0
    assert f"{part} of {1 if batching == 'serial' else 4} requests ran out" in caplog.text


@pytest.mark.parametrize("batching", ["dynamic", "continuous"])
@pytest.mark.parametrize("part", PARTS)
def test_batches_that_do_not_fit_are_made_in_parts_and_grow_again(
    batching, part, monkeypatch, caplog
):
    pipeline = FakePipeline()
    with running(pipeline, batching, max_batch_size=4) as engine:
        with failing(pipeline, part, torch.OutOfMemoryError(), batches_of=3):
            jobs = submit_at_once(engine, *[ask("a")] * 4)
            assert all(job.future.result(0) for job in jobs)
        assert engine._calls._guard.most(part, (SIDE, SIDE)) == 2
        for other in set(PARTS) - {part}:
            assert engine._calls._guard.most(other, (SIDE, SIDE)) is None
        monkeypatch.setattr("benchlib.serving.engine.memory_limits.RETRY_CALLS", 4)
        for _ in range(4):
            submit_at_once(engine, *[ask("a")] * 4)
        assert engine._calls._guard.most(part, (SIDE, SIDE)) >= 4
    assert f"{part} of 64x64: at most 2 at once from here on" in caplog.text


@pytest.mark.parametrize("batching", POLICIES)
@pytest.mark.parametrize("part", PARTS)
def test_what_does_not_fit_alone_is_told_after_two_tries_and_what_fitted_before_may_try_again(
    batching, part
):
    pipeline = FakePipeline()
    with running(pipeline, batching) as engine:

        def outcome(*beside):
            with failing(pipeline, part, torch.OutOfMemoryError(), prompt="huge"):
                job, *others = submit_at_once(engine, ask("huge"), *map(ask, beside))
            assert all(other.future.result(0) for other in others)
            return job.outcome

        if batching == "dynamic":
            engine._turns = type(engine._policy)(max_batch_size=1, max_wait_s=60.0)
        assert isinstance(outcome(), DoesNotFit)
        assert engine.faults.out_of_memory == {part: 2}
        submit_at_once(engine, ask("huge"))
        short = outcome()
        assert isinstance(short, ShortOfMemory)
        assert short.retry_after_s > 0
        assert isinstance(outcome(), DoesNotFit), "without an image in between"
        if batching == "dynamic":
            engine._turns = type(engine._policy)(max_batch_size=3, max_wait_s=60.0)
        assert isinstance(outcome("beside", "beside"), DoesNotFit | ShortOfMemory)
        assert engine.state == "ready"


def test_the_cache_is_emptied_once_the_errors_frames_are_gone(monkeypatch):
    """The frames hold what the call had made: emptying the cache before would free nothing."""
    made = []
    left = []

    def short_of_memory(works, **_):
        activations = torch.zeros(len(works))
        made.append(weakref.ref(activations))
        raise torch.OutOfMemoryError

    with running(FakePipeline(), "serial") as engine:
        monkeypatch.setattr(engine._calls.pipeline, "step", short_of_memory)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: left.append(made[-1]()))
        submit_at_once(engine, ask("a"))
    assert left == [None, None]


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 4 bytes"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_of_memory_are_known_by_kind_and_words(error, verdict):
    assert is_out_of_memory(error) is verdict


# -- numbers that are none -------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["error", "allow"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_an_image_of_latents_that_are_not_finite_ends_its_own_job_or_is_marked(
    tiny, monkeypatch, answer, number, caplog
):
    step = tiny.step

    def step_to_nan(works, **options):
        seconds = step(works, **options)
        for work in works:
            if work.request.prompt == "bad":
                work.latents = work.latents.clone()
                work.latents[..., 0, 0] = number
                tiny._batch = None
        return seconds

    with running(tiny, "continuous", on_nonfinite=answer) as engine:
        monkeypatch.setattr(tiny, "step", step_to_nan)
        good, bad = submit_at_once(engine, ask("good"), ask("bad"))
    assert good.future.result(0)
    assert good.work.not_finite is None
    assert bad.work.not_finite == "latents"
    if answer == "error":
        with pytest.raises(NotFinite, match="its latents are NaN or infinite"):
            bad.future.result(0)
        assert engine.faults.not_finite == {"refused": 1}
    else:
        assert bad.future.result(0)
        assert engine.faults.not_finite == {"answered": 1}
    assert "NaN or infinite" in caplog.text
