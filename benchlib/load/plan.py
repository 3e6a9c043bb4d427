"""The plan of one load run: the server, when and which requests, and when the run ends.

Knows which plans make sense. Ignorant of how a plan is carried out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from benchlib.load import arrivals as arrivals_
from benchlib.load.addresses import Address, Urls, addresses_of, as_urls
from benchlib.load.apis import APIS
from benchlib.load.bounds import check_number, check_own_request
from benchlib.load.workers import ExternalWorkers, Workers, checked_workers
from benchlib.load.workload import Workload


@dataclass(frozen=True)
class LoadPlan:
    """One load run on the server at `url`; times are in seconds from the run's start.

    Several URLs are one target: request i goes to the one at i modulo their number. Requests are
    scheduled during `warmup_s`, then for `duration_s` or until `requests` more are scheduled,
    whichever comes first. A trace ends by itself. Then the run waits for the answers. A request
    fails after `timeout_s`. At `max_s` the whole run is cut, and requests in flight are censored.
    `seed` draws the moments of open arrivals. `api` is one of `APIS`; "benchmark" is our own
    server's, whose bounds then hold. Without `verify`, any certificate of an https server is
    accepted. `headers` are secrets that are sent with each request; no text has them, `to_dict`
    neither. `workers` is how many processes share the load, or which (see `ExternalWorkers`).
    Raises ValueError that names the field and the fix.
    """

    url: Urls
    arrivals: arrivals_.Arrivals
    workload: Workload
    duration_s: float | None = None
    requests: int | None = None
    max_s: float | None = None
    warmup_s: float = 0.0
    timeout_s: float = 600.0
    seed: int = 0
    api: str = "benchmark"
    verify: bool = True
    workers: Workers = 1
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        # 1) The server and the requests.
        _check_kind("arrivals", self.arrivals, arrivals_.Arrivals, "ClosedLoop(users=4)")
        _check_kind("workload", self.workload, Workload, "Workload()")
        object.__setattr__(self, "url", as_urls(self.url))
        check_number("warmup_s", self.warmup_s, 0)

        # 2) When the run ends.
        is_open_end = self.duration_s is None and self.requests is None
        if is_open_end and isinstance(self.arrivals, arrivals_.Trace):
            object.__setattr__(self, "requests", self._measured_of_trace(self.arrivals))
        elif is_open_end:
            raise ValueError("give duration_s, requests or both: nothing says when the run ends")
        if self.duration_s is not None:
            check_number("duration_s", self.duration_s, 0, above=True)
        if self.max_s is not None:
            check_number("max_s", self.max_s, 0, above=True)
        if self.requests is not None:
            check_number("requests", self.requests, 1, whole=True)
        check_number("timeout_s", self.timeout_s, 0, above=True)
        check_number("seed", self.seed, 0, whole=True)
        if not isinstance(self.verify, bool):
            raise ValueError(f"verify must be True or False, got {self.verify!r}")

        # 3) Whether the API takes the requests. All have the same fields, except in a trace.
        if self.api not in APIS:
            raise ValueError(f"api must be one of {', '.join(map(repr, APIS))}, got {self.api!r}")
        api = APIS[self.api]
        for index in range(self.arrivals.different_requests()):
            api.to_body(self.request(index))
        if self.api == "benchmark":
            self.check_own_bounds()

        # 4) Who sends them.
        workers = checked_workers(self.workers, self.arrivals, self.addresses)
        object.__setattr__(self, "workers", workers)

    def check_own_bounds(self) -> None:
        """Raises ValueError that names the field of a request that our own server would refuse."""
        self.workload.check_own_bounds()
        for index in range(self.arrivals.different_requests()):
            check_own_request(f"requests[{index}]", self.arrivals.request(index))

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where the requests go, in turn."""
        return addresses_of(self.url)

    @property
    def shown_url(self) -> str:
        """The URL without its user and password, which reach no file and no page."""
        first, *others = self.addresses
        return f"{first.url} and {len(others)} more" if others else first.url

    def _measured_of_trace(self, trace: arrivals_.Trace) -> int:
        """How many of the trace's requests come after the warm-up."""
        measured = sum(due_s >= self.warmup_s for due_s in trace.times_s)
        if not measured:
            raise ValueError(
                f"warmup_s of {self.warmup_s:g} leaves no request of the trace to measure: "
                "give less"
            )
        return measured

    def request(self, index: int) -> dict[str, Any]:
        """The JSON body of request `index`.

        The fields that the arrivals set replace the workload's.
        """
        own = self.arrivals.request(index)
        return self.workload.request(index) | dict(own)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able fields, without the secret headers; `workers` only where there are several."""
        fields = {
            **vars(self),
            "arrivals": self.arrivals.to_dict(),
            "workload": self.workload.to_dict(),
        }
        del fields["headers"]
        if isinstance(self.workers, ExternalWorkers):
            fields["workers"] = asdict(self.workers)
        elif self.workers == 1:
            del fields["workers"]
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The plan that `to_dict` wrote. Of external workers only their number is kept."""
        parts: dict[str, Any] = {
            "arrivals": arrivals_.from_dict(fields["arrivals"]),
            "workload": Workload.from_dict(fields["workload"]),
        }
        workers = fields.get("workers")
        if isinstance(workers, dict):
            parts["workers"] = workers["number"]
        return cls(**{**fields, **parts})


def _check_kind(field: str, value: Any, kind: type, example: str) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"{field} must be like {example}, got {value!r}")
