"""Which requests run together, and in what order: serial, dynamic and continuous batching.

Knows how long steps take by the number of rows in them, and what each request has left. Ignorant of torch, threads,
clocks and HTTP: the engine asks for the next turn and carries it out, and so does `simulate`, on a clock of its own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf, log
from typing import Any, Protocol, cast

Size = tuple[int, int]
PATIENCE = 3.0  # how far a request may be overtaken, in multiples of its own time alone


def _at(curve: Mapping[int, float], n: int) -> float:
    """Seconds at `n`, on straight lines between what was measured. Beyond, they grow with `n`: where warm-up went no
    further, more at once were hardly better than one batch after the other, and the last slope may be a bucket's, 0."""
    if n in curve:
        return curve[n]
    known = sorted(curve)
    if n < known[0]:
        return curve[known[0]]
    if n > known[-1]:
        return curve[known[-1]] * n / known[-1]
    right = bisect_left(known, n)
    low, high = known[right - 1], known[right]
    return curve[low] + (curve[high] - curve[low]) / (high - low) * (n - low)


@dataclass(frozen=True)
class StepTimes:
    """What one size costs, in seconds: `step_s` by rows in the UNet's batch, the other two by number of requests.

    Between what was measured times are interpolated; beyond, they grow in proportion. ValueError for an empty curve.
    """

    step_s: Mapping[int, float]
    encode_s: Mapping[int, float]
    decode_s: Mapping[int, float]

    def __post_init__(self) -> None:
        for name, curve in (
            ("step_s", self.step_s),
            ("encode_s", self.encode_s),
            ("decode_s", self.decode_s),
        ):
            if not curve or min(curve) < 1 or not min(curve.values()) >= 0:
                raise ValueError(
                    f"{name}: {dict(curve)!r} needs an entry, batches from 1 and seconds from 0"
                )

    def step(self, rows: int) -> float:
        return _at(self.step_s, rows)

    def encode(self, requests: int) -> float:
        return _at(self.encode_s, requests)

    def decode(self, requests: int) -> float:
        return _at(self.decode_s, requests)

    def scaled(self, pixels_ratio: float) -> StepTimes:
        """For a size that was not measured, of `pixels_ratio` times the pixels. Prompts encode as before."""
        return StepTimes(
            step_s={rows: s * pixels_ratio for rows, s in self.step_s.items()},
            encode_s=self.encode_s,
            decode_s={requests: s * pixels_ratio for requests, s in self.decode_s.items()},
        )


class Measured(dict[Size, StepTimes]):
    """What each size costs: as measured, else as the nearest measured one, in proportion to the pixels."""

    def __missing__(self, size: Size) -> StepTimes:
        pixels = size[0] * size[1]
        near = min(self, key=lambda other: abs(log(other[0] * other[1] / pixels)))
        return self[near].scaled(pixels / (near[0] * near[1]))

    def told(self) -> dict[str, Any]:
        """JSON-able, as "step_times" of a server's spec: {"64x64": {"step_s": {"1": 0.01, ...}, ...}, ...}."""
        return {
            f"{width}x{height}": {
                part: {str(n): s for n, s in curve.items()} for part, curve in vars(times).items()
            }
            for (width, height), times in self.items()
        }

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Measured:
        """What was `told`."""
        known = cls()
        for size, curves in told.items():
            width, height = size.split("x")
            plain = {part: {int(n): s for n, s in curve.items()} for part, curve in curves.items()}
            known[int(width), int(height)] = StepTimes(**plain)
        return known


Times = Callable[[Size], StepTimes]


class Task(Protocol):
    """What a policy sees of a request. `rows`: 2 with guidance, else 1. `begun`: encoded, so no longer waiting."""

    @property
    def size(self) -> Size: ...
    @property
    def rows(self) -> int: ...
    @property
    def steps_left(self) -> int: ...
    @property
    def arrived_s(self) -> float: ...
    @property
    def begun(self) -> bool: ...


@dataclass(frozen=True)
class Turn:
    """What to do next: `decode` first, then one denoising `step`; each of one size.

    Members of `step` that have not begun are encoded before it, together. `wait_until_s`: nothing to do; ask again
    then, or when a request comes. A turn without all three says that nobody is there.
    """

    step: tuple[Task, ...] = ()
    decode: tuple[Task, ...] = ()
    wait_until_s: float | None = None


class Policy(Protocol):
    """Decides anew only when a request came, ended its steps or left: between, the same turn may be repeated."""

    def turn(self, tasks: Sequence[Task], now_s: float) -> Turn:
        """The next turn for all `tasks` that wait or have begun, in their order of arrival."""
        ...


@dataclass(frozen=True)
class Serial:
    """One at a time, first come first served."""

    def turn(self, tasks: Sequence[Task], now_s: float) -> Turn:  # noqa: ARG002
        first = tuple(tasks[:1])
        return Turn(step=first) if first and first[0].steps_left else Turn(decode=first)


@dataclass(frozen=True)
class Dynamic:
    """Requests of one size, gathered until `max_batch_size` are there or the oldest is `max_wait_s` old.

    They run, and are answered, as one batch: who has fewer steps waits for the rest, and who comes later for all.
    """

    max_batch_size: int
    max_wait_s: float

    def turn(self, tasks: Sequence[Task], now_s: float) -> Turn:
        if batch := tuple(task for task in tasks if task.begun):
            step = tuple(task for task in batch if task.steps_left)
            return Turn(step=step) if step else Turn(decode=batch)
        lanes: dict[Size, list[Task]] = {}
        for task in tasks:
            lanes.setdefault(task.size, []).append(task)
        for lane in lanes.values():
            if len(lane) >= self.max_batch_size or now_s >= lane[0].arrived_s + self.max_wait_s:
                return Turn(step=tuple(lane[: self.max_batch_size]))
        return Turn(
            wait_until_s=min(
                (lane[0].arrived_s + self.max_wait_s for lane in lanes.values()), default=None
            )
        )


@dataclass(frozen=True)
class Continuous:
    """Requests join and leave between steps.

    The order is that of arrival plus a head start in proportion to what a request has left, in seconds alone: a short
    one overtakes longer ones that came a little earlier. How much so grows with the number of requests there, up to
    `PATIENCE`. The first in order takes part in the step and its size runs: so sizes, which are lanes, take turns.

    **The age bound**: a request with `left_s` to do alone never sees one first that came more than `PATIENCE * left_s`
    after it. So it ends within as many steps as it and those that came before that have left together.

    Of the first one's size the shorter ones join, by the same rule with twice the head start, as long as that lowers an
    estimate of everybody's time here. Of n requests, b in a batch that takes `slowness` of the time of one after the
    other, the mean one ends in proportion to `(1 + b / n) * slowness`: sharing delays those who would have been the
    first. Those still to come wait for what is left of the queue, so their time goes by `slowness ** 2`, weighted by
    their number. That depends on the load, which nobody tells: n itself is the estimate, and half of it is used.
    Without any gain the best batch is thus one, and a small gain is taken only in a long queue.
    """

    times: Times
    max_batch_size: int

    def turn(self, tasks: Sequence[Task], now_s: float) -> Turn:  # noqa: ARG002
        for task in tasks:
            if task.begun and not task.steps_left:
                leavers = [t for t in tasks if t.begun and not t.steps_left and t.size == task.size]
                return Turn(decode=tuple(leavers[: self.max_batch_size]))
        if len(tasks) < 2:
            return Turn(step=tuple(tasks))
        alone_s = {
            kind: self.times(kind[0]).step(kind[1])
            for kind in {(task.size, task.rows) for task in tasks}
        }
        patience = min(len(tasks) / 3, PATIENCE)
        left_s = [task.steps_left * alone_s[task.size, task.rows] for task in tasks]
        places = range(len(tasks))
        first = min(places, key=lambda i: (tasks[i].arrived_s + patience * left_s[i], i))
        size = tasks[first].size
        others = [i for i in places if i != first and tasks[i].size == size]
        others.sort(key=lambda i: tasks[i].arrived_s + 2 * patience * left_s[i])
        batch = [tasks[i] for i in (first, *others[: self.max_batch_size - 1])]
        step, rows, work_s, least, best = self.times(size).step, 0, 0.0, inf, 1
        for n, task in enumerate(batch, 1):
            rows += task.rows
            work_s += alone_s[size, task.rows]
            slowness = step(rows) / work_s if work_s else 1.0
            cost = (1 + n / len(tasks)) * slowness + len(tasks) / 2 * slowness**2
            if cost < least:
                least, best = cost, n
        return Turn(step=tuple(batch[:best]))


def make_policy(batching: str, times: Times, *, max_batch_size: int, max_wait_s: float) -> Policy:
    """The policy of that name. `times` gives what a size costs. Raises ValueError that names the field."""
    if max_batch_size < 1:
        raise ValueError(f"max_batch_size: {max_batch_size} is too few; use 1 or more")
    if not 0 <= max_wait_s < inf:
        raise ValueError(f"max_wait_s: {max_wait_s} is no waiting time; use 0 or more seconds")
    if batching == "serial":
        return Serial()
    if batching == "dynamic":
        return Dynamic(max_batch_size, max_wait_s)
    if batching == "continuous":
        return Continuous(times, max_batch_size)
    raise ValueError(
        f"batching: {batching!r} is not known; use 'serial', 'dynamic' or 'continuous'"
    )


@dataclass(eq=False)
class SimulatedTask:
    """A request in the simulator."""

    size: Size
    rows: int
    steps_left: int
    arrived_s: float
    begun: bool = False
    begun_s: float | None = None  # None until begun, and where it had begun before the simulation


@dataclass(frozen=True)
class Finished:
    """When a simulated request came, was begun (its encoding started) and was answered."""

    arrived_s: float
    begun_s: float | None
    done_s: float


def simulate(
    policy: Policy, tasks: Sequence[Task], times: Times, *, now_s: float = 0.0
) -> list[Finished]:
    """Run `tasks` on a virtual clock that starts at `now_s`; what they became, in their order. Changes no task."""
    order = sorted(
        (
            (SimulatedTask(t.size, t.rows, t.steps_left, t.arrived_s, t.begun), place)
            for place, t in enumerate(tasks)
        ),
        key=lambda pair: pair[0].arrived_s,
    )
    coming = [task for task, _ in order]
    done_s: dict[int, float] = {}
    present: list[SimulatedTask] = []
    next_ = 0
    while present or next_ < len(coming):
        if not present:
            now_s = max(now_s, coming[next_].arrived_s)
        while next_ < len(coming) and coming[next_].arrived_s <= now_s:
            present.append(coming[next_])
            next_ += 1
        turn = policy.turn(present, now_s)
        next_s = coming[next_].arrived_s if next_ < len(coming) else inf
        if turn.wait_until_s is not None:
            now_s = min(turn.wait_until_s, next_s)
        if turn.decode:
            now_s += times(turn.decode[0].size).decode(len(turn.decode))
            done_s.update(dict.fromkeys(map(id, turn.decode), now_s))
            present = [task for task in present if id(task) not in done_s]
        if step := cast("tuple[SimulatedTask, ...]", turn.step):
            cost = times(step[0].size)
            new = [task for task in step if not task.begun]
            for task in new:
                task.begun, task.begun_s = True, now_s
            if new:
                now_s += cost.encode(len(new))
            step_s = cost.step(sum(task.rows for task in step))
            repeats = min(task.steps_left for task in step)
            if step_s > 0 and next_s < inf:  # a policy may decide anew when the next one comes
                repeats = min(repeats, max(1, ceil((next_s - now_s) / step_s)))
            now_s += repeats * step_s
            for task in step:
                task.steps_left -= repeats
    finished = {
        place: Finished(task.arrived_s, task.begun_s, done_s[id(task)]) for task, place in order
    }
    return [finished[place] for place in range(len(tasks))]


def until_place_s(
    policy: Policy,
    tasks: Sequence[Task],
    stepping: Sequence[Task],
    now_s: float,
    times: Times,
    max_queue: int,
) -> float:
    """Seconds from `now_s` until fewer than `max_queue` of `tasks` wait (are not begun) if nobody else comes.

    A step of those `stepping` begins now, whatever the policy says.
    """
    step_s = times(stepping[0].size).step(sum(task.rows for task in stepping)) if stepping else 0.0
    after = [
        SimulatedTask(t.size, t.rows, t.steps_left - (t in stepping), t.arrived_s, t.begun)
        for t in tasks
    ]
    begins = [
        f.begun_s
        for f in simulate(policy, after, times, now_s=now_s + step_s)
        if f.begun_s is not None
    ]
    excess = len(begins) - max_queue
    return sorted(begins)[excess] - now_s if excess >= 0 else 0.0
