"""An engine in the process of a replica: orders in, images and errors out."""

import pytest

from benchlib.serving.engine.jobs import Cancelled
from benchlib.serving.engine.options import EngineOptions
from benchlib.serving.replicas.hosted_engine import HostedEngine
from benchlib.serving.replicas.replica import Order
from benchlib.serving.schemas import GenerateRequest
from benchmarks.fakes.fake_pipeline import FakePipeline


def order(number, write_file=None):
    request = GenerateRequest(prompt="a", num_inference_steps=2, width=64, height=64, seed=number)
    return Order(number, request, "id", waited_s=5.0, write_file=write_file)


@pytest.fixture
def pipeline():
    return FakePipeline()


@pytest.fixture
def hosted(pipeline):
    hosted = HostedEngine(lambda: pipeline, EngineOptions(batching="serial", max_queue=1))
    hosted.engine.start()
    hosted.settle()
    yield hosted
    pipeline.gate.set()
    hosted.engine.stop()


def test_it_takes_whatever_the_fleet_sends(hosted, pipeline):
    pipeline.gate.clear()
    futures = [hosted.make(order(number)) for number in range(5)]
    pipeline.gate.set()
    made = [future.result(30) for future in futures]
    assert [one.seed for one in made] == [0, 1, 2, 3, 4]
    # Only the time in this engine's own queue counts: the front knows of the rest.
    assert all(0 <= one.queued_s < 5 for one in made[:1])
    assert made[1].queued_s <= made[4].queued_s
    assert all(one.file is None for one in made)
    assert hosted.status().steps_by_batch == {1: 10}


def test_a_file_is_written_here(hosted):
    made = hosted.make(order(1, lambda image: (str(image.size).encode(), "text"))).result(30)
    assert made.file == (b"(8, 8)", "text")
    assert made.file_s > 0


def test_a_file_that_cannot_be_written_is_the_orders_error(hosted):
    def fail(_):
        raise OSError("no codec")

    with pytest.raises(OSError, match="no codec"):
        hosted.make(order(1, fail)).result(30)


def test_an_order_is_cancelled_by_its_number(hosted, pipeline):
    pipeline.gate.clear()
    pipeline.stepping.clear()
    first, second = hosted.make(order(1)), hosted.make(order(2))
    assert pipeline.stepping.wait(30)
    hosted.cancel(2)
    with pytest.raises(Cancelled):
        second.result(30)
    hosted.cancel(99)
    pipeline.gate.set()
    assert first.result(30).seed == 1
