"""How one image is requested over HTTP: the user of `run_load` and of the `locust` command.

    locust -f benchlib/load/locustfile.py --host http://localhost:8000 --headless -u 10 -r 2 -t 5m

sends the requests that `run_load` sends. BENCHLIB_WORKLOAD_* choose them (see `Workload.from_env`).
A request fails after BENCHLIB_LOAD_TIMEOUT_S seconds, by default 600. BENCHLIB_LOAD_API=openai
sends them as OpenAI's clients do (see `APIS`). BENCHLIB_LOAD_VERIFY=0 accepts any certificate.
BENCHLIB_LOAD_API_KEY is sent as `Authorization: Bearer`, BENCHLIB_LOAD_HEADERS as it is.

Ignorant of plans, rows and results. Importing this file imports Locust, which patches the process:
never import it in a notebook's kernel.
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

from benchlib.load.addresses import Address
from benchlib.load.apis import APIS
from benchlib.load.bearer import headers_of_environment, without_secrets
from benchlib.load.workload import Workload
from benchlib.rows import Call


class ImageUser(FastHttpUser):
    """Requests one image after the other. `next_call` says which, and when to stop."""

    host = "http://localhost:8000"
    timeout_s = float(os.environ.get("BENCHLIB_LOAD_TIMEOUT_S", "600"))
    # Locust's own timeouts count anew with each packet; `timeout_s` bounds the whole request.
    connection_timeout = network_timeout = None  # type: ignore[assignment]
    concurrency = 10_000  # a pool that never makes a request wait
    max_retries = max_redirects = 0  # one row is one request
    insecure = os.environ.get("BENCHLIB_LOAD_VERIFY", "1") == "0"  # Locust's own default is True
    api = os.environ.get("BENCHLIB_LOAD_API", "benchmark")
    secret_headers = headers_of_environment()
    workload = Workload.from_env(os.environ)
    # The servers of a plan, in turn; none means Locust's own host.
    addresses: tuple[Address, ...] = ()
    # All users share this counter, so that the i-th request sent is workload.request(i).
    indexes = itertools.count()

    def __init__(self, environment: Any) -> None:
        # Locust puts the host right before the route, which begins with a slash.
        self.host = (self.host or "").rstrip("/")
        super().__init__(environment)
        # geventhttpclient decodes the body of a bad status as UTF-8. A body that is not UTF-8 would
        # raise there, and Locust would report no request. So every status counts as good here, and
        # `send` judges it.
        agent: Any = self.client.client
        agent.valid_response_codes = frozenset(range(100, 600))

    def next_call(self) -> Call:
        """The request to send now. Raises StopUser where there is none left to send."""
        index = next(self.indexes)
        now_s = time.monotonic()
        return Call(index, uuid.uuid4().hex, self.workload.request(index), due_s=now_s)

    @task
    def generate(self) -> None:
        """Sends the next request and waits for its whole answer."""
        self.send(self.next_call())

    def headers(self, call: Call, address: Address) -> dict[str, str]:
        """The headers of a request. The secret ones are for the server alone: no text has them."""
        headers = {"X-Request-ID": call.request_id, "Accept-Encoding": "identity"}
        headers |= self.secret_headers
        if address.authorization is not None:
            headers["Authorization"] = address.authorization
        return headers

    def address(self, call: Call) -> Address:
        """The server that `call` goes to, which is noted in the call where there are several."""
        if not self.addresses:
            return Address("", None)
        address = self.addresses[call.index % len(self.addresses)]
        if len(self.addresses) > 1:
            call.target = address.url
        return address

    def send(self, call: Call) -> None:
        """Sends `call` and waits for its whole answer, for at most `timeout_s`.

        Anything but a complete 200 with an answer is a failure. A large answer may delay the
        timeout. The request still ends at `timeout_s`, and the late answer does not count.
        """
        api = APIS[self.api]
        body = api.to_body(call.body)
        address = self.address(call)
        began_s = call.sent_s = time.monotonic()
        # 1) Send it; the deadline holds for the whole request.
        with gevent.Timeout(self.timeout_s) as deadline:
            response = self.client.post(
                address.url + api.route,
                name=api.route,
                json=body,
                headers=self.headers(call, address),
                context={"call": call},
                catch_response=True,
            )
        # 2) Note when it ended, and why it failed.
        error = response.request_meta["exception"]
        cause = getattr(error, "original", error)
        call.done_s = time.monotonic() if cause or call.read_s is None else call.read_s
        is_late = cause is deadline or call.done_s - began_s > self.timeout_s
        if is_late:
            call.done_s = began_s + self.timeout_s
        answer = response.content or b""
        with response:
            if is_late:
                response.failure(f"timeout: no answer within {self.timeout_s:g} s")
            elif cause is not None:
                words = f"{type(cause).__name__}: {cause}"
                response.failure(without_secrets(words, self.secret_headers))
            elif response.status_code != 200:
                words = without_secrets(answer.decode("utf-8", "replace"), self.secret_headers)
                response.failure(f"HTTP {response.status_code}: {' '.join(words.split())[:300]}")
            else:
                fault = api.fault(answer)
                if fault is not None:
                    words = f"no answer: {fault}"
                    response.failure(without_secrets(words, self.secret_headers))


@events.test_start.add_listener
def count_from_zero(**_: Any) -> None:
    """Makes each test that Locust's web page starts send the same requests."""
    ImageUser.indexes = itertools.count()
