"""Engines and fleets that answer at once, so that only the front's own time is left.

    python -m benchmarks.fakes.instant_engine fleet --port 8001

`engine` has the public face of an engine and no thread; `fleet` is a real fleet over four replicas
that answer at once. Ignorant of models.
"""

import argparse
import threading
import time
from itertools import count

import uvicorn

from benchlib.serving.app import create_app
from benchlib.serving.engine.faults import Faults
from benchlib.serving.engine.made import Made
from benchlib.serving.engine.options import EngineOptions
from benchlib.serving.replicas.fleet import Fleet
from benchlib.serving.replicas.fleet_job import FleetJob
from benchmarks.fakes.fake_pipeline import FakeSchedules
from benchmarks.fakes.replicas import InstantReplica, fake_spec

REPLICAS = 4
NO_TIME = fake_spec(0.0, batching="continuous")


class InstantEngine:
    """Takes a request and has its image."""

    replicas = ()
    failure = trouble = None
    state = "ready"
    doing = "loading the model"
    waiting = running = adapter_switches = 0
    busy_s = 0.0
    schedules = FakeSchedules()

    def __init__(self):
        self.options = EngineOptions()
        self.settled = threading.Event()
        self.ended = threading.Event()
        self.spec = NO_TIME
        self.faults = Faults()
        self.on_step = None
        self._numbers = count(1)

    def start(self):
        self.settled.set()

    def submit(self, request, *, request_id="", arrived_s=None, write_file=None):  # noqa: ARG002
        job = FleetJob(request, request_id, arrived_s, next(self._numbers), 1, 2)
        job.admitted_s = time.monotonic()
        job.outcome = Made(1, 0.0, 0.0, 0.0, batch_rows=1, steps_done=1, peak_gib=0.5)
        job.future.set_result(job.outcome)
        return job

    def work_s(self):
        return 0.0

    def foretell(self, now_s, *newcomers):  # noqa: ARG002
        return {}

    def cancel(self, job):
        pass

    def drop_jobs(self):
        pass

    def stop(self, *, drain_s=0.0):  # noqa: ARG002
        self.ended.set()


def make_fleet():
    """A fleet that has nothing to wait for."""
    return Fleet([InstantReplica(str(number), NO_TIME) for number in range(REPLICAS)])


KINDS = {"engine": InstantEngine, "fleet": make_fleet}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--port", type=int, required=True)
    wanted = parser.parse_args()
    app = create_app(KINDS[wanted.kind]())
    uvicorn.run(app, port=wanted.port, log_level="warning", access_log=False)
