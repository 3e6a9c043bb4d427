"""Knows how one image is asked for over HTTP: the Locust user of `run_load`, and of the plain `locust` command line.

    locust -f benchlib/load/locustfile.py --host http://localhost:8000 --headless -u 10 -r 2 -t 5m --csv fastapi_bench

sends the requests that `run_load` sends, as BENCHLIB_WORKLOAD_* choose them (see `Workload.from_env`); each is given up
after BENCHLIB_LOAD_TIMEOUT_S, or 600, seconds; BENCHLIB_LOAD_API=openai asks for them as OpenAI's clients do. Ignorant
of plans, rows and results. Importing it imports Locust, which patches the process: never do so in a notebook's kernel.
"""

# Locust's own functions are typed in part:
# mypy: disable-error-code="no-untyped-call, untyped-decorator"

from __future__ import annotations

import itertools
import os
import time
import uuid
from typing import Any

import gevent
from locust import FastHttpUser, events, task

from benchlib.load.apis import APIS
from benchlib.load.workload import Workload
from benchlib.rows import Call


class ImageUser(FastHttpUser):
    """Asks for one image after the other. What is asked for, and whether at all, is `next_call`'s to say."""

    host = "http://localhost:8000"
    timeout_s = float(os.environ.get("BENCHLIB_LOAD_TIMEOUT_S", "600"))
    # Locust's own timeouts count anew with each packet; `timeout_s` bounds the whole request.
    connection_timeout = network_timeout = None  # type: ignore[assignment]
    concurrency = 10_000  # a pool that never makes a request wait
    max_retries = max_redirects = 0  # one row is one request
    api = os.environ.get("BENCHLIB_LOAD_API", "benchmark")
    workload = Workload.from_env(os.environ)
    indexes = (
        itertools.count()
    )  # of the class: users share it, so the i-th request sent is workload.request(i)

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        # For a status that it takes for bad, geventhttpclient decodes the body as UTF-8, and a body that is none raises
        # past Locust's request event. So every status is good to it, and `generate` judges.
        agent: Any = self.client.client
        agent.valid_response_codes = frozenset(range(100, 600))

    def next_call(self) -> Call:
        """The request to send now. Raises StopUser where there is none left to send."""
        index, now_s = next(self.indexes), time.monotonic()
        return Call(index, uuid.uuid4().hex, self.workload.request(index), due_s=now_s)

    @task
    def generate(self) -> None:
        """Send the next request and wait for its whole answer."""
        self.send(self.next_call())

    def send(self, call: Call) -> None:
        """Send `call` and wait for its whole answer; all but a complete 200 is a failure."""
        route, to_body = APIS[self.api]
        body = to_body(call.body)
        call.sent_s = time.monotonic()
        with gevent.Timeout(self.timeout_s) as deadline:
            response = self.client.post(
                route,
                json=body,
                headers={"X-Request-ID": call.request_id, "Accept-Encoding": "identity"},
                context={"call": call},
                catch_response=True,
            )
        error = response.request_meta["exception"]
        cause = getattr(error, "original", error)
        call.done_s = time.monotonic() if cause or call.read_s is None else call.read_s
        with response:
            if cause is deadline:
                response.failure(f"timeout: no answer within {self.timeout_s:g} s")
            elif cause is not None:
                response.failure(f"{type(cause).__name__}: {cause}")
            elif response.status_code != 200:
                words = (response.content or b"").decode("utf-8", "replace")
                response.failure(f"HTTP {response.status_code}: {' '.join(words.split())[:300]}")


@events.test_start.add_listener
def count_from_zero(**_: Any) -> None:
    """Each test that Locust's web page starts sends the same requests."""
    ImageUser.indexes = itertools.count()
