"""Knows when requests are due. Pure: ignorant of clocks, sockets and Locust; what a request holds it passes on as told.

Closed arrivals are users, each with a span in which it keeps asking. Open ones are moments, drawn from a seed before
the first request is sent, so that no answer, slow or missing, can move them.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count, pairwise, takewhile
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal, Self

from benchlib.load.bounds import check_number
from benchlib.load.workload import check_request
from benchlib.rows import PARAMETERS

MOST_IN_FLIGHT = 10_000  # connections that one process is sure to be able to open


class Arrivals:
    """What all kinds of arrivals share; moments are in seconds from the run's start, its warm-up included."""

    kind: ClassVar[str]
    max_in_flight: int = 1000
    think_time_s: float = 0.0

    def spans(self) -> list[tuple[float, float]]:
        """When each user comes and when it goes; open arrivals have none."""
        return []

    def times(self, seed: int) -> Iterator[float]:  # noqa: ARG002 - open arrivals draw from it
        """When requests are due, in order and maybe without end. Raises ValueError for a closed loop."""
        raise ValueError(
            f"{self.kind} has no schedule: each of its users asks again once it has its answer"
        )

    def schedule(self, until_s: float, seed: int) -> list[float]:
        """The moments before `until_s`, the same for the same seed. Raises ValueError for a closed loop."""
        return list(takewhile(lambda due_s: due_s < until_s, self.times(seed)))

    def request(self, index: int) -> Mapping[str, Any]:  # noqa: ARG002 - a trace uses it
        """What the arrivals themselves say of request `index`, in place of the workload's word."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able fields, with the `kind` that `from_dict` reads."""
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class ClosedLoop(Arrivals):
    """`users` who each send a request, wait for its answer, think for `think_time_s` seconds, and send the next.

    All start together. A slow server slows them down, so the load never exceeds `users` requests in flight.
    Raises ValueError where `users` is no whole number of 1 or more, or `think_time_s` no finite number of 0 or more.
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
    """`rate` requests a second, from a crowd that waits for no answer: a slow server meets as many as a quick one.

    The gaps between requests are "poisson" (exponential: callers who know nothing of each other), "constant", or
    "gamma" with the mean 1/rate and the squared coefficient of variation `burstiness`: above 1 they come in bursts, 1
    is Poisson, towards 0 they grow even. (vLLM's option of that name is the inverse of this.)

    Of the requests that are due, `max_in_flight` at most are with the server at once. A further one is held, not
    dropped: it is sent, late, once another has ended; its latency counts from when it was due, the wait is send lag,
    and the outcome's `max_in_flight_hits` counts it. Raises ValueError that names the field.
    """

    kind: ClassVar[str] = "open_loop"
    rate: float
    arrivals: Literal["poisson", "constant", "gamma"] = "poisson"
    burstiness: float = 1.0
    max_in_flight: int = 1000

    def __post_init__(self) -> None:
        check_number("rate", self.rate, 0, above=True)
        if self.arrivals not in ("poisson", "constant", "gamma"):
            raise ValueError(
                f'arrivals must be "poisson", "constant" or "gamma", got {self.arrivals!r}'
            )
        check_number("burstiness", self.burstiness, 0, above=True)
        if self.burstiness != 1 and self.arrivals != "gamma":
            raise ValueError(
                f'burstiness needs arrivals="gamma", got {self.burstiness!r} with {self.arrivals!r}'
            )
        check_number("max_in_flight", self.max_in_flight, 1, MOST_IN_FLIGHT, whole=True)

    def times(self, seed: int) -> Iterator[float]:
        if self.arrivals == "constant":
            yield from (number / self.rate for number in count())
        random, due_s = Random(seed), 0.0
        shape = 1 / self.burstiness
        while True:
            gap = (
                random.expovariate(1.0)
                if self.arrivals == "poisson"
                else random.gammavariate(shape, 1 / shape)
            )
            due_s += gap / self.rate
            yield due_s


@dataclass(frozen=True)
class Ramp(Arrivals):
    """A load that goes from `start` to `end`, up or down, in `over_s` seconds from the run's start, and stays there.

    `of="users"`: so many users, as of a `ClosedLoop`, who come (or go, once answered) one by one; whole numbers.
    `of="rate"`: so many requests a second, as of a Poisson `OpenLoop`. The way is straight, or in `stairs` levels (2 or
    more, the first of them `start` and the last `end`), each for an equal part of `over_s`. Raises ValueError that
    names the field.
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
            raise ValueError(
                "start and end are both 0: no request would ever be sent; give one of them more"
            )
        check_number("over_s", self.over_s, 0, above=True)
        if self.stairs is not None:
            check_number("stairs", self.stairs, 2, whole=True)

    def spans(self) -> list[tuple[float, float]]:
        if self.of == "rate":
            return []
        few, many = sorted((int(self.start), int(self.end)))
        up = self.start < self.end
        moved = [self._first_s(user + up) for user in range(few, many)]
        return [(0.0, math.inf)] * few + [
            (moment_s, math.inf) if up else (0.0, moment_s) for moment_s in moved
        ]

    def times(self, seed: int) -> Iterator[float]:
        """A Poisson process of rate 1, its time changed by the inverse of the integrated rate (Cinlar 1975, 4.7)."""
        if self.of == "users":
            yield from super().times(seed)
        random, past = Random(seed), 0.0  # in expected arrivals
        due = random.expovariate(1.0)
        for (from_s, low), (until_s, high) in pairwise([*self._corners(), (math.inf, self.end)]):
            length_s = until_s - from_s
            area = (low + high) / 2 * length_s if low + high else 0.0
            while due < past + area:
                into, slope = due - past, (high - low) / length_s
                yield from_s + 2 * into / (low + math.sqrt(max(0.0, low * low + 2 * slope * into)))
                due += random.expovariate(1.0)
            past += area

    def _corners(self) -> list[tuple[float, float]]:
        """The line of (moment, level), straight from corner to corner; a stair is two corners at one moment."""
        if self.stairs is None:
            return [(0.0, self.start), (self.over_s, self.end)]
        levels = [
            self.start + (self.end - self.start) * step / (self.stairs - 1)
            for step in range(self.stairs)
        ]
        return [
            (self.over_s * moment / self.stairs, level)
            for step, level in enumerate(levels)
            for moment in (step, step + 1)
        ]

    def _first_s(self, level: float) -> float:
        """The first moment at which the line reaches `level`, which lies between start and end."""
        for (from_s, one), (until_s, other) in pairwise(self._corners()):
            if one != other and min(one, other) <= level <= max(one, other):
                return from_s + (level - one) / (other - one) * (until_s - from_s)
        raise AssertionError("a level between start and end is on the line")


@dataclass(frozen=True)
class Trace(Arrivals):
    """Requests at `times_s`, seconds from the run's start, in order; nobody waits for an answer, as in an `OpenLoop`.

    `requests`, one for each moment, are mappings of fields (`prompt`, `width`, `height`, `num_inference_steps`, ...)
    that stand in for the workload's; a field that is absent or None is left to the workload. A run of a trace needs no
    `duration_s`: it ends with the trace. Raises ValueError that names the field and the entry.
    """

    kind: ClassVar[str] = "trace"
    times_s: Sequence[float]
    requests: Sequence[Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "times_s", tuple(self.times_s))
        if not self.times_s:
            raise ValueError("times_s is empty: give at least one moment")
        for number, (before_s, due_s) in enumerate(pairwise((0.0, *self.times_s))):
            check_number(f"times_s[{number}] (they must be in order)", due_s, before_s)
        if self.requests is not None:
            if len(self.requests) != len(self.times_s):
                raise ValueError(
                    f"requests must be one for each of {len(self.times_s)} times_s: {len(self.requests)}"
                )
            checked = tuple(
                check_request(f"requests[{i}]", request) for i, request in enumerate(self.requests)
            )
            object.__setattr__(self, "requests", checked)

    @classmethod
    def from_file(cls, path: Path | str) -> Self:
        """Read a .csv (its columns named in the first line) or .jsonl file (an object a line), a request a line.

        `time_s` in seconds is required; the fields of a request may be missing or empty, and others are passed over.
        Raises ValueError that names the file.
        """
        path = Path(path)
        if path.suffix not in (".csv", ".jsonl"):
            raise ValueError(f"{path}: a trace is read from a .csv or .jsonl file")
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = (
                    csv.DictReader(file)
                    if path.suffix == ".csv"
                    else map(json.loads, filter(str.strip, file))
                )
                lines = [(float(row["time_s"]), row) for row in rows]
            requests = [
                {name: row[name] for name in PARAMETERS if row.get(name) not in (None, "")}
                for _, row in lines
            ]
            return cls([time_s for time_s, _ in lines], requests)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'{path}: each line must be like {{"time_s": 0.5, "prompt": "..."}}: {error!r}'
            ) from error

    def times(self, seed: int) -> Iterator[float]:  # noqa: ARG002 - nothing is drawn
        return iter(self.times_s)

    def request(self, index: int) -> Mapping[str, Any]:
        return {} if self.requests is None else self.requests[index]

    def to_dict(self) -> dict[str, Any]:
        requests = None if self.requests is None else [dict(request) for request in self.requests]
        return {"kind": self.kind, "times_s": list(self.times_s), "requests": requests}


_KINDS = {kind.kind: kind for kind in (ClosedLoop, OpenLoop, Ramp, Trace)}


def from_dict(fields: Mapping[str, Any]) -> ClosedLoop | OpenLoop | Ramp | Trace:
    """The arrivals that `to_dict` told of. Raises ValueError for a kind that is not known."""
    kind, arguments = (
        fields.get("kind"),
        {name: value for name, value in fields.items() if name != "kind"},
    )
    if kind not in _KINDS:
        raise ValueError(f"arrivals kind must be one of {sorted(_KINDS)}, got {kind!r}")
    return _KINDS[kind](**arguments)
