"""Which workers share the load of a run, and which share of its plan each of them carries out.

Pure. Ignorant of processes, messages and clocks.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

from benchlib.load.bounds import check_number
from benchlib.printing import print_line

if TYPE_CHECKING:
    from benchlib.load.addresses import Address
    from benchlib.load.arrivals import Arrivals
    from benchlib.load.plan import LoadPlan

MOST_WORKERS = 256
DEFAULT_PORT = 5557  # Locust's own
TOKEN_VARIABLE = "BENCHLIB_LOAD_TOKEN"


@dataclass(frozen=True)
class ExternalWorkers:
    """`number` workers that somebody starts: `python -m benchlib load-worker --master HOST`.

    The run listens for them at `host` and `port`, and begins once all are there. It fails if they
    are not there within `wait_s` seconds. If other machines can reach `host`, both sides need the
    same secret in BENCHLIB_LOAD_TOKEN. Raises ValueError that names the field.
    """

    number: int = 1
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    wait_s: float = 120.0

    def __post_init__(self) -> None:
        check_number("number", self.number, 1, MOST_WORKERS, whole=True)
        check_number("port", self.port, 1, 2**16 - 1, whole=True)
        check_number("wait_s", self.wait_s, 0, above=True)
        if not isinstance(self.host, str) or not self.host:
            raise ValueError(f"host must be an address of this machine, got {self.host!r}")


Workers = int | ExternalWorkers


def checked_workers(workers: Any, arrivals: Arrivals, addresses: Iterable[Address]) -> Workers:
    """`workers` as a plan keeps them. Raises ValueError that names the field and the fix."""
    # 1) Their kind
    if workers == "external":
        workers = ExternalWorkers()
    if isinstance(workers, ExternalWorkers):
        _check_reach(workers, addresses)
    elif isinstance(workers, str):
        raise ValueError(
            f"workers must be a number, 'external' or ExternalWorkers(...), got {workers!r}"
        )
    else:
        check_number("workers", workers, 1, MOST_WORKERS, whole=True)

    # 2) Whether there is something for each of them
    count = worker_count(workers)
    users = len(arrivals.spans())
    if users and users < count:
        raise ValueError(f"workers: {count} are more than the users, {users}: give fewer workers")
    if not users and arrivals.max_in_flight < count:
        raise ValueError(
            f"workers: {count} are more than max_in_flight, {arrivals.max_in_flight}: "
            "give fewer workers"
        )
    checked: Workers = workers
    return checked


def worker_count(workers: Workers) -> int:
    return workers.number if isinstance(workers, ExternalWorkers) else workers


def announce(workers: Workers) -> None:
    """Prints which command to run elsewhere, where the workers are external."""
    if isinstance(workers, ExternalWorkers):
        master = "127.0.0.1" if is_loopback(workers.host) else "THIS_MACHINE"
        command = f"python -m benchlib load-worker --master {master} --port {workers.port}"
        print_line(f"Waiting for {workers.number} of: {command}")


def token_of_environment() -> str:
    """The secret that this process shares with others; empty where there is none."""
    return os.environ.get(TOKEN_VARIABLE) or ""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_reach(workers: ExternalWorkers, addresses: Iterable[Address]) -> None:
    """Raises ValueError for a run that would be open to strangers, or tell them a password."""
    if is_loopback(workers.host):
        return
    if not token_of_environment():
        raise ValueError(
            f"workers: others can reach {workers.host}, so set {TOKEN_VARIABLE} to a secret, "
            "here and where the workers are"
        )
    if any(address.authorization is not None for address in addresses):
        raise ValueError(
            "workers: a URL's user and password would cross the network unencrypted: leave them out"
        )


class Share(NamedTuple):
    """The share of worker `number` of `of` workers: every `of`-th request, user or slot.

    Each worker walks the same schedule, and takes its own moments out of it. So all of them send
    together exactly what one worker would. The shares of a number add up to it.
    """

    number: int = 0
    of: int = 1

    def part(self, whole: int) -> int:
        """How many of the numbers below `whole` are this worker's."""
        return len(range(self.number, whole, self.of))

    def index_of(self, count: int) -> int:
        """The index, among all requests of the run, of the request after `count` own ones."""
        return self.number + self.of * count

    def moments(self, plan: LoadPlan) -> Iterator[float]:
        """The own moments of open arrivals, in seconds from the run's start."""
        return islice(plan.arrivals.times(plan.seed), self.number, None, self.of)

    def spans(self, plan: LoadPlan) -> list[tuple[float, float]]:
        """The spans of the own users; open arrivals have none."""
        return plan.arrivals.spans()[self.number :: self.of]

    def most_in_flight(self, plan: LoadPlan) -> int:
        return self.part(plan.arrivals.max_in_flight)

    def requests(self, plan: LoadPlan) -> int | None:
        """How many measured requests this worker sends; None where the plan has no number.

        In an open loop they are the own ones among the plan's. Users get equal parts.
        """
        if plan.requests is None:
            return None
        if plan.arrivals.spans():
            return self.part(plan.requests)
        schedule = plan.arrivals.times(plan.seed)
        before = takewhile(lambda due_s: due_s < plan.warmup_s, schedule)
        first = sum(1 for _ in before)
        return self.part(first + plan.requests) - self.part(first)


def schedule_digest(plan: LoadPlan) -> str:
    """What two machines compare to see that both would draw the same schedule."""
    drawn: list[Any] = plan.arrivals.spans()
    if not drawn:
        drawn = list(islice(plan.arrivals.times(plan.seed), 1000))
    return hashlib.sha256(repr(drawn).encode()).hexdigest()
