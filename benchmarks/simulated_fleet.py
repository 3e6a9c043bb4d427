"""Several cards behind one front, on a virtual clock: engines as they are, and a router to be judged.

Each card carries out its engine's own policy, one call at a time. What a call takes is the step
times with a little noise, which nobody foretells. A request, and word of its end, take a few
milliseconds between the front and a card.

Knows routers, policies and step times. Ignorant of HTTP, Ray, models, and of what makes a router good.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchlib.serving.engine.cohort import KeptTogether
from benchlib.serving.engine.policies import Turn
from benchlib.serving.engine.policy_names import make_policy
from benchlib.serving.engine.simulate import SimulatedTask
from benchlib.serving.engine.step_times import Size, StepTimesBySize
from benchlib.serving.replicas.foretold_replica import ForetoldReplica
from benchlib.serving.replicas.routing import Router

HAND_OVER_S = (0.002, 0.005)  # the least and the most, drawn anew each way
NEXT_S = (0.001, 0.003)  # from an answer to the same user's next request
NOISE = 0.01  # the standard deviation of a call's seconds, as a share


@dataclass(eq=False)
class Asked:
    """One request: a `Task` to routers, with what becomes of it. Times are seconds."""

    size: Size
    rows: int
    steps_left: int
    arrived_s: float
    lora: str | None = None
    begun: bool = False
    card: str | None = None
    begun_s: float | None = None
    done_s: float | None = None

    @property
    def latency_s(self) -> float:
        """From its arrival at the front to its answer there."""
        assert self.done_s is not None
        return self.done_s - self.arrived_s


@dataclass
class Clock:
    """The virtual clock, and what happens when."""

    now_s: float = 0.0
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        """Do `action` at `time_s`."""
        heapq.heappush(self._events, (time_s, next(self._numbers), action))

    def run(self, is_over: Callable[[], bool]) -> None:
        """Go on until `is_over`, or until nothing is left to happen."""
        while self._events and not is_over():
            self.now_s, _, action = heapq.heappop(self._events)
            action()


class SimulatedCard:
    """An engine on the virtual clock: see `Engine._take_turn`, which this follows."""

    def __init__(
        self,
        spec: dict[str, Any],
        clock: Clock,
        random: np.random.Generator,
        answer: Callable[[Asked], None],
    ) -> None:
        self._clock = clock
        self._random = random
        self._answer = answer
        self._times = StepTimesBySize.from_spec(spec["step_times"]).__getitem__
        policy = make_policy(
            spec["batching"],
            self._times,
            max_batch_size=spec["max_batch_size"],
            max_wait_s=spec["max_wait_ms"] / 1000,
        )
        is_continuous = spec["batching"] == "continuous"
        self._turns = KeptTogether(policy, self._times) if is_continuous else policy
        self._tasks: dict[SimulatedTask, Asked] = {}
        self._turn: Turn[SimulatedTask] | None = None
        self._lora: str | None = None
        self._busy = False
        self._wakes = 0  # how often a wait has been begun; an older one's end means nothing
        self.busy_s = 0.0

    def submit(self, asked: Asked) -> None:
        """A request has reached the card."""
        task = SimulatedTask.copy_of(asked)
        task.begun = False
        self._tasks[task] = asked
        self._turn = None
        if not self._busy:
            self._take_turn()

    def _take_turn(self) -> None:
        # 1) Decide, unless the latest decision still holds
        now_s = self._clock.now_s
        if self._turn is None:
            self._turn = self._turns.turn(tuple(self._tasks), now_s, self._lora)
        turn = self._turn
        self._wakes += 1
        if turn.wait_until_s is not None:
            number = self._wakes
            self._clock.at(turn.wait_until_s, lambda: self._wake(number))
            return

        # 2) The seconds of the call
        seconds = 0.0
        if turn.decode:
            seconds += self._times(turn.decode[0].size).decode(len(turn.decode))
        if turn.step:
            seconds += self._begin_step(turn.step)
        if not turn.decode and not turn.step:
            return
        seconds *= max(0.5, 1 + NOISE * self._random.standard_normal())
        self._busy = True
        self.busy_s += seconds
        self._clock.at(now_s + seconds, lambda: self._end_call(turn))

    def _wake(self, number: int) -> None:
        if number == self._wakes and not self._busy:
            self._turn = None
            self._take_turn()

    def _begin_step(self, batch: Sequence[SimulatedTask]) -> float:
        cost = self._times(batch[0].size)
        lora = batch[0].lora
        seconds = cost.step(sum(task.rows for task in batch), lora)
        if lora != self._lora:
            seconds += cost.switch_s
            self._lora = lora
        newcomers = [task for task in batch if not task.begun]
        if newcomers:
            seconds += cost.encode(len(newcomers))
        for task in newcomers:
            task.begun = True
            self._tasks[task].begun_s = self._clock.now_s
        return seconds

    def _end_call(self, turn: Turn[SimulatedTask]) -> None:
        self._busy = False
        if turn.once:
            self._turn = None
        for task in turn.decode:
            self._turn = None
            self._answer(self._tasks.pop(task))
        for task in turn.step:
            task.steps_left -= 1
            if task.steps_left == 0:
                self._turn = None
        self._take_turn()


class SimulatedFront:
    """The front's queue before its cards. `answered` is called with each request that is done."""

    def __init__(
        self,
        cards: int,
        spec: dict[str, Any],
        router: Router,
        *,
        seed: int,
        answered: Callable[[Asked], None],
    ) -> None:
        self.clock = Clock()
        self.random = np.random.default_rng(seed)
        self.waiting: list[Asked] = []
        self.decisions = 0
        self._router = router
        self._answered = answered
        self._again_s: float | None = None
        self._foretold: dict[str, ForetoldReplica] = {}
        self._cards: dict[str, SimulatedCard] = {}
        for number in range(cards):
            name = str(number)
            self._foretold[name] = ForetoldReplica(name, spec)
            self._cards[name] = SimulatedCard(spec, self.clock, self.random, self._hand_back)

    def between(self, bounds: tuple[float, float]) -> float:
        """A random time between two bounds."""
        return float(self.random.uniform(*bounds))

    def ask(self, asked: Asked) -> None:
        """A request has come."""
        self.waiting.append(asked)
        self._route()

    def _route(self) -> None:
        # 1) Decide
        now_s = self.clock.now_s
        self.decisions += 1
        replicas = tuple(self._foretold.values())
        routes = self._router.route(tuple(self.waiting), replicas, now_s)

        # 2) Send
        for asked, replica in routes.sent:
            self.waiting.remove(asked)
            asked.card = replica.name
            card = self._cards[replica.name]
            reached_s = now_s + self.between(HAND_OVER_S)
            self.clock.at(reached_s, lambda card=card, asked=asked: card.submit(asked))  # type: ignore[misc]

        # 3) Decide again in time
        self._again_s = routes.again_s
        if routes.again_s is not None:
            again_s = routes.again_s
            self.clock.at(again_s, lambda: self._wake(again_s))

    def _wake(self, again_s: float) -> None:
        if again_s == self._again_s:
            self._route()

    def _hand_back(self, asked: Asked) -> None:
        home_s = self.clock.now_s + self.between(HAND_OVER_S)
        self.clock.at(home_s, lambda: self._end(asked))

    def _end(self, asked: Asked) -> None:
        asked.done_s = self.clock.now_s
        assert asked.card is not None
        self._foretold[asked.card].leave(asked, self.clock.now_s)
        self._answered(asked)
        if self.waiting:
            self._route()


Draw = Callable[[np.random.Generator, float], Asked]  # a request that arrives at a time


def closed_loop(
    cards: int,
    spec: dict[str, Any],
    router: Router,
    draw: Draw,
    *,
    users: int,
    images: int,
    seed: int,
) -> list[Asked]:
    """The first `images` requests that `users` get, in the order of their ends. All begin at once."""
    done: list[Asked] = []

    def next_one() -> None:
        front.ask(draw(front.random, front.clock.now_s))

    def answered(asked: Asked) -> None:
        done.append(asked)
        front.clock.at(front.clock.now_s + front.between(NEXT_S), next_one)

    front = SimulatedFront(cards, spec, router, seed=seed, answered=answered)
    for _ in range(users):
        front.clock.at(front.between(NEXT_S), next_one)
    front.clock.run(lambda: len(done) >= images)
    return done


def open_loop(
    cards: int,
    spec: dict[str, Any],
    router: Router,
    requests: Sequence[Asked],
    *,
    seed: int,
) -> SimulatedFront:
    """Let `requests` come at their times, and end all. Fills in their fields; returns the front."""
    done: list[Asked] = []
    front = SimulatedFront(cards, spec, router, seed=seed, answered=done.append)
    for asked in requests:
        front.clock.at(asked.arrived_s, lambda asked=asked: front.ask(asked))  # type: ignore[misc]
    front.clock.run(lambda: len(done) == len(requests))
    return front
