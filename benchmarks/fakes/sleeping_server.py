"""A server whose model sleeps as long as tiny computes, so other work slows down the server alone.

    python -m benchmarks.fakes.sleeping_server continuous --port 8001

Knows tiny's times at 64x64 pixels on one thread of a quiet machine. Ignorant of torch's networks.
"""

import argparse
import time

import uvicorn
from PIL import Image

from benchlib.serving.app import create_app
from benchlib.serving.engine.engine import Engine
from benchlib.serving.engine.options import EngineOptions
from benchlib.serving.engine.step_times import StepTimes
from benchmarks.fakes.fake_pipeline import FakePipeline

TINY = StepTimes(
    step_s={1: 0.0143, 2: 0.0181, 4: 0.0211, 8: 0.0273, 16: 0.043},
    encode_s={1: 0.0071, 2: 0.0072, 4: 0.0075, 8: 0.0082},
    decode_s={1: 0.0097, 2: 0.0141, 4: 0.0245, 8: 0.046},
)


class SleepingPipeline(FakePipeline):
    """Makes black images in tiny's times."""

    def encode(self, requests):
        works = super().encode(requests)
        self.calls.clear()
        took_s = sleep(TINY.encode(len(requests)))
        for work in works:
            work.encode_s = took_s
        return works

    def step(self, works, *, rows=None):  # noqa: ARG002
        took_s = sleep(TINY.step(sum(work.request.rows(2) for work in works)))
        for work in works:
            work.steps_done += 1
            work.step_s.append(took_s)
            work.batch_rows += len(works)
        return took_s

    def decode(self, works):
        took_s = sleep(TINY.decode(len(works)))
        for work in works:
            work.decode_s = took_s
        return [Image.new("RGB", (64, 64)) for _ in works]


def sleep(seconds):
    """Sleep, and return the seconds that it took."""
    began_s = time.monotonic()
    time.sleep(seconds)
    return time.monotonic() - began_s


def batches_per_s(together, steps):
    """Images per second in batches of `together` guided requests, without a server."""
    step_s = steps * TINY.step(2 * together)
    return together / (TINY.encode(together) + step_s + TINY.decode(together))


def main():
    parser = argparse.ArgumentParser(description="A server whose model sleeps.")
    parser.add_argument("batching")
    parser.add_argument("--port", type=int, default=8001)
    arguments = parser.parse_args()
    options = EngineOptions(batching=arguments.batching, max_batch_size=8, max_queue=1000)
    app = create_app(Engine(SleepingPipeline, options))
    uvicorn.run(app, port=arguments.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
