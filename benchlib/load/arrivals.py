"""When requests are due: closed and open loops, ramps and traces.

Closed arrivals are users, each with a span of time in which it sends requests. Open arrivals are
moments that depend on nothing but a seed, so that no answer, slow or missing, can move them. Pure:
ignorant of clocks, sockets and Locust, and of what a request holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count, takewhile
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal, Self

from benchlib.load.bounds import check_number, check_request
from benchlib.load.files import BAD_LINE, read_trace
from benchlib.load.levels import first_moment_s, moments_of_areas, ramp_corners
from benchlib.rows import PARAMETERS

MOST_IN_FLIGHT = 10_000  # connections that one process is sure to be able to open


class Arrivals:
    """The base of all arrivals. Moments are seconds from the run's start, its warm-up included."""

    kind: ClassVar[str]
    max_in_flight: int = 1000
    think_time_s: float = 0.0

    def spans(self) -> list[tuple[float, float]]:
        """When each user comes and when it goes, in seconds; open arrivals have no users."""
        return []

    def times(self, seed: int) -> Iterator[float]:  # noqa: ARG002 - open arrivals draw from it
        """When requests are due, in order, maybe endless. Raises ValueError for closed loops."""
        reason = "each of its users sends its next request once it has its answer"
        raise ValueError(f"{self.kind} has no schedule: {reason}")

    def schedule(self, until_s: float, seed: int) -> list[float]:
        """The moments before `until_s`, equal for equal seeds. Raises as `times` does."""
        moments = self.times(seed)
        return list(takewhile(lambda due_s: due_s < until_s, moments))

    def request(self, index: int) -> Mapping[str, Any]:  # noqa: ARG002 - a trace uses it
        """The fields of request `index` that the arrivals set, in place of the workload's."""
        return {}

    def different_requests(self) -> int:
        """How many requests may differ in which fields they set; later ones are like the first."""
        return 1

    def to_dict(self) -> dict[str, Any]:
        """JSON-able fields, with the `kind` that `from_dict` reads."""
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class ClosedLoop(Arrivals):
    """`users` who each send a request, wait for its answer, think, and send the next.

    They think for `think_time_s` seconds. All start together. A slow server slows them down, so the
    load never exceeds `users` requests in flight. Raises ValueError unless `users` is a whole
    number of 1 or more and `think_time_s` a finite number of 0 or more.
    """

    kind: ClassVar[str] = "closed_loop"
    users: int
    think_time_s: float = 0.0

    def __post_init__(self) -> None:
        check_number("users", self.users, 1, whole=True)
        check_number("think_time_s", self.think_time_s, 0)

    def spans(self) -> list[tuple[float, float]]:
        return [(0.0, math.inf)] * self.users


@dataclass(frozen=True)
class OpenLoop(Arrivals):
    """`rate` requests a second from callers who wait for no answer, so a slow server gets no fewer.

    The gaps between requests are "poisson", "constant" or "gamma". Poisson gaps are exponential:
    the callers know nothing of each other. Gamma gaps have the mean 1/rate and the squared
    coefficient of variation `burstiness`. Above 1 the requests come in bursts, 1 is Poisson, and
    towards 0 the gaps grow even. (vLLM's option of that name is the inverse.)

    At most `max_in_flight` requests are with the server at once. A further request is held, not
    dropped, and is sent once another has ended. Its latency counts from when it was due, and its
    wait is send lag. The outcome's `max_in_flight_hits` counts such requests. Raises ValueError
    that names the field.
    """

    kind: ClassVar[str] = "open_loop"
    rate: float
    arrivals: Literal["poisson", "constant", "gamma"] = "poisson"
    burstiness: float = 1.0
    max_in_flight: int = 1000

    def __post_init__(self) -> None:
        check_number("rate", self.rate, 0, above=True)
        if self.arrivals not in ("poisson", "constant", "gamma"):
            kinds = '"poisson", "constant" or "gamma"'
            raise ValueError(f"arrivals must be {kinds}, got {self.arrivals!r}")
        check_number("burstiness", self.burstiness, 0, above=True)
        if self.burstiness != 1 and self.arrivals != "gamma":
            given = f"{self.burstiness!r} with {self.arrivals!r}"
            raise ValueError(f'burstiness needs arrivals="gamma", got {given}')
        check_number("max_in_flight", self.max_in_flight, 1, MOST_IN_FLIGHT, whole=True)

    def times(self, seed: int) -> Iterator[float]:
        if self.arrivals == "constant":
            yield from (number / self.rate for number in count())
        random = Random(seed)
        draw = partial(random.expovariate, 1.0)
        if self.arrivals == "gamma":
            shape = 1 / self.burstiness
            draw = partial(random.gammavariate, shape, 1 / shape)
        due_s = 0.0
        while True:
            gap = draw()  # of mean 1
            due_s += gap / self.rate
            yield due_s


@dataclass(frozen=True)
class Ramp(Arrivals):
    """A load that goes from `start` to `end` in `over_s` seconds from the run's start, then stays.

    If `of` is "users", `start` and `end` are numbers of users, who behave as in a `ClosedLoop`.
    They come one by one, or go one by one, each after its last answer. If `of` is "rate", `start`
    and `end` are requests a second, as in a Poisson `OpenLoop`.

    The load changes in a straight line, or in `stairs` levels (2 or more) of equal length. The
    first level is `start`, the last is `end`. Raises ValueError that names the field.
    """

    kind: ClassVar[str] = "ramp"
    start: float
    end: float
    over_s: float
    of: Literal["users", "rate"] = "users"
    stairs: int | None = None

    def __post_init__(self) -> None:
        if self.of not in ("users", "rate"):
            raise ValueError(f'of must be "users" or "rate", got {self.of!r}')
        check_number("start", self.start, 0, whole=self.of == "users")
        check_number("end", self.end, 0, whole=self.of == "users")
        if not self.start + self.end:
            raise ValueError("start and end are both 0: no request would be sent; raise one")
        check_number("over_s", self.over_s, 0, above=True)
        if self.stairs is not None:
            check_number("stairs", self.stairs, 2, whole=True)

    def spans(self) -> list[tuple[float, float]]:
        if self.of == "rate":
            return []
        few = int(min(self.start, self.end))
        many = int(max(self.start, self.end))
        corners = ramp_corners(self.start, self.end, self.over_s, self.stairs)
        spans = [(0.0, math.inf)] * few  # these users stay all the time
        for user in range(few, many):
            if self.start < self.end:
                spans.append((first_moment_s(corners, user + 1), math.inf))
            else:
                spans.append((0.0, first_moment_s(corners, user)))
        return spans

    def times(self, seed: int) -> Iterator[float]:
        """A rate-1 Poisson process in time changed by the inverse integrated rate (Cinlar 1975)."""
        if self.of == "users":
            yield from super().times(seed)
        # A rate that ends at 0 ends the schedule too: no area is left under the line.
        corners = ramp_corners(self.start, self.end, self.over_s, self.stairs)
        corners.append((math.inf, self.end))
        yield from moments_of_areas(_poisson_arrivals(Random(seed)), corners)


def _poisson_arrivals(random: Random) -> Iterator[float]:
    """The arrivals of a Poisson process of rate 1, without end."""
    due = 0.0
    while True:
        due += random.expovariate(1.0)
        yield due


@dataclass(frozen=True)
class Trace(Arrivals):
    """Requests at `times_s`, seconds from the run's start, in order; none waits for an answer.

    `requests` holds a mapping for each moment. Its fields (`prompt`, `width`, `height`, ...)
    replace the workload's; the workload fills in a field that is absent or None. A run of a trace
    needs no `duration_s`: it ends with the trace. Raises ValueError that names the field and the
    entry.
    """

    kind: ClassVar[str] = "trace"
    times_s: Sequence[float]
    requests: Sequence[Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "times_s", tuple(self.times_s))
        if not self.times_s:
            raise ValueError("times_s is empty: give at least one moment")
        before_s = 0.0
        for number, due_s in enumerate(self.times_s):
            check_number(f"times_s[{number}] (they must be in order)", due_s, before_s)
            before_s = due_s
        if self.requests is None:
            return
        moments, requests = len(self.times_s), len(self.requests)
        if requests != moments:
            raise ValueError(f"requests must be one for each of {moments} times_s, got {requests}")
        checked = [check_request(f"requests[{i}]", body) for i, body in enumerate(self.requests)]
        object.__setattr__(self, "requests", tuple(checked))

    @classmethod
    def from_file(cls, path: Path | str) -> Self:
        """The trace in a .csv or .jsonl file (see `files.read_trace`).

        Each line has `time_s` and fields of a request. A field may be missing or empty; other
        columns are passed over. Raises ValueError that names the file.
        """
        path = Path(path)
        if path.suffix not in (".csv", ".jsonl"):
            raise ValueError(f"{path}: a trace is read from a .csv or .jsonl file")
        try:
            return cls(*read_trace(path, PARAMETERS))
        except BAD_LINE as error:
            like = '{"time_s": 0.5, "prompt": "..."}'
            raise ValueError(f"{path}: each line must be like {like}: {error!r}") from error

    def times(self, seed: int) -> Iterator[float]:  # noqa: ARG002 - nothing is drawn
        return iter(self.times_s)

    def request(self, index: int) -> Mapping[str, Any]:
        return {} if self.requests is None else self.requests[index]

    def different_requests(self) -> int:
        return 1 if self.requests is None else len(self.requests)

    def to_dict(self) -> dict[str, Any]:
        requests = None
        if self.requests is not None:
            requests = [dict(request) for request in self.requests]
        return {"kind": self.kind, "times_s": list(self.times_s), "requests": requests}


_KINDS = {kind.kind: kind for kind in (ClosedLoop, OpenLoop, Ramp, Trace)}


def from_dict(fields: Mapping[str, Any]) -> ClosedLoop | OpenLoop | Ramp | Trace:
    """The arrivals that `to_dict` wrote. Raises ValueError for an unknown kind."""
    arguments = dict(fields)
    kind = arguments.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"arrivals kind must be one of {sorted(_KINDS)}, got {kind!r}")
    return _KINDS[kind](**arguments)
