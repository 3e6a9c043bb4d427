"""Several cards behind one queue, for a whole day: who waits how long, and how many cards are paid.

    served = serve_by_cards(lane, arrived_s, draws, cards=4)
    served.latency_s

Every card is the calibrated lane of one card. Knows lanes, failures and an autoscaler. Ignorant of
days and of prices (questions/scale/), and of how the machine code works (central_queue.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from benchlib.load.bounds import check_number
from benchlib.queueing.lanes import BatchLane, Draws, Lane, SerialLane, drawn
from benchlib.queueing.work import Integers
from benchlib.serving.engine.compiled import CostTables
from benchlib.serving.engine.policies import PATIENCE
from benchlib.study.services import Floats

if TYPE_CHECKING:
    from benchlib.queueing.central_queue import FleetRules
    from benchlib.serving.engine.lane import CallSeconds, Rules, Tasks

MOST_CARDS = 256
"""A simulation of more cards would take minutes."""
TICK_S = 10.0
"""Ray Serve's replicas report their ongoing requests every so many seconds."""
LOOK_BACK_TICKS = 3
"""Ray Serve takes the mean of the last 30 seconds."""


@dataclass(frozen=True)
class Autoscaler:
    """Changes the number of cards by the ongoing requests, as Ray Serve's own autoscaler does.

    It wants one card for each `target_ongoing` requests that wait or are worked on, in the mean of
    the last 30 s, and never fewer than `least` cards or more than `most`. It asks for more once it
    has wanted more for `upscale_delay_s` without a break, and gives up cards likewise. Defaults are
    Ray Serve's. Source: Ray 2.60, "Advanced Ray Serve Autoscaling", docs.ray.io. Its smoothing
    factors are 1 here, as they are there. Raises ValueError that names the field.
    """

    least: int
    most: int
    target_ongoing: float = 2.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0

    def __post_init__(self) -> None:
        check_number("least", self.least, 1, whole=True)
        check_number("most", self.most, self.least, MOST_CARDS, whole=True)
        check_number("target_ongoing", self.target_ongoing, 0, above=True)
        check_number("upscale_delay_s", self.upscale_delay_s, 0)
        check_number("downscale_delay_s", self.downscale_delay_s, 0)


@dataclass(frozen=True)
class Failure:
    """A card that fails at `at_s`, by its number from 0; it does nothing to a card that is off."""

    at_s: float
    card: int


@dataclass(frozen=True)
class ServedByCards:
    """What became of each request, in the order of arrival, and of the cards.

    `latency_s` is infinite where no card was left. `paid` is the number of cards that are paid for
    at each tick of TICK_S: those that are ready, that start, or that end their last requests.
    `made_again` is how many requests a failed card had inside.
    """

    latency_s: Floats
    paid: Integers
    made_again: int


def serve_by_cards(
    lane: Lane,
    arrived_s: Floats,
    draws: Draws,
    *,
    cards: int | Autoscaler,
    first: int | None = None,
    startup_s: float = 0.0,
    restart_s: float | None = None,
    failures: Sequence[Failure] = (),
    until_s: float | None = None,
) -> ServedByCards:
    """Simulates so many `cards`, each of them `lane`, for requests that come at `arrived_s`.

    Request i has the work and the noise of draw i, whatever the number of cards (common random
    numbers). A waiting request goes to the card where it is foretold to be done first. An
    autoscaler begins with `first` cards, by default its least. A card that it asks for is ready
    after `startup_s`. A card that fails is ready again after `restart_s`, by default `startup_s`,
    and others make its requests anew. CardStates are counted until `until_s`, by default the last
    arrival. Raises ValueError that names the field.
    """
    from benchlib.queueing.central_queue import FleetRules

    # 1) Check what machine code would not
    scaling = cards if isinstance(cards, Autoscaler) else _fixed(cards)
    check_number("startup_s", startup_s, 0)
    check_number("restart_s", startup_s if restart_s is None else restart_s, 0)
    if first is not None:
        check_number("first", first, scaling.least, scaling.most, whole=True)
    if not np.isfinite(arrived_s).all() or (np.diff(arrived_s, prepend=0.0) < 0).any():
        raise ValueError("arrived_s: a time is missing, falls, or lies before 0; sort the arrivals")
    if len(draws.noise) < len(arrived_s):
        raise ValueError(f"draws: {len(draws.noise)} are too few for {len(arrived_s)} arrivals")

    # 2) The requests and their costs, as the lane of one card has them
    draws = draws.first(len(arrived_s))
    work = _work(lane, arrived_s, draws)

    # 3) Simulate
    last_s = float(arrived_s[-1]) if len(arrived_s) else 0.0
    ticks = math.ceil((last_s if until_s is None else until_s) / TICK_S)
    paid = np.zeros(ticks, np.int64)
    fleet = FleetRules(
        first=scaling.least if first is None else first,
        least=scaling.least,
        most=scaling.most,
        target=float(scaling.target_ongoing),
        upscale_delay_s=float(scaling.upscale_delay_s),
        downscale_delay_s=float(scaling.downscale_delay_s),
        startup_s=float(startup_s),
        restart_s=float(startup_s if restart_s is None else restart_s),
        tick_s=TICK_S,
        window=LOOK_BACK_TICKS,
    )
    made_again = _simulate(work, fleet, failures, paid)
    latency_s = work.tasks.done_s - arrived_s + drawn(lane.after_s, draws.after)
    unending = np.where(np.isnan(latency_s), math.inf, latency_s)
    return ServedByCards(unending, paid, made_again)


def _fixed(cards: int) -> Autoscaler:
    """So many cards all the time. Raises ValueError for what is no such number."""
    check_number("cards", cards, 1, MOST_CARDS, whole=True)
    return Autoscaler(cards, cards)


class _Work(NamedTuple):
    """The requests, what calls take, and the rules of a card, as the machine code has them."""

    tasks: Tasks
    planned: CallSeconds
    actual: CallSeconds
    factors: Floats
    rules: Rules


def _work(lane: Lane, arrived_s: Floats, draws: Draws) -> _Work:
    if isinstance(lane, SerialLane):
        return _one_by_one(lane, arrived_s, draws)
    return _in_batches(lane, arrived_s, draws)


def _one_by_one(lane: SerialLane, arrived_s: Floats, draws: Draws) -> _Work:
    """Each request is one step of 1 s, times its own service: what it takes of a card."""
    from benchlib.serving.engine.lane import SERIAL

    one_step = np.array([[0.0, 1.0]])
    nothing = np.zeros((1, 2))
    costs = _call_seconds(one_step, nothing, nothing)
    ones = np.ones(len(arrived_s), np.int64)
    tasks = _tasks(arrived_s, steps=ones, rows=ones, size=0 * ones)
    services_s = lane.services_s(draws)
    rules = _rules(SERIAL, max_batch_size=1)
    return _Work(tasks, costs, costs, services_s, rules)


def _in_batches(lane: BatchLane, arrived_s: Floats, draws: Draws) -> _Work:
    from benchlib.serving.engine.lane import BATCHING_NUMBERS

    asked = lane.drawn_work(draws)
    rules = _rules(
        BATCHING_NUMBERS[lane.batching],
        max_batch_size=lane.max_batch_size,
        max_wait_s=lane.max_wait_s,
        gap_s=lane.gap_s,
    )
    return _Work(
        tasks=_tasks(arrived_s, steps=asked.steps, rows=asked.rows, size=asked.size),
        planned=_of_tables(lane.planned),
        actual=_of_tables(lane.actual),
        factors=lane.noise(draws),
        rules=rules,
    )


def _rules(
    batching: int, *, max_batch_size: int, max_wait_s: float = 0.0, gap_s: float = 0.0
) -> Rules:
    from benchlib.serving.engine.lane import Rules

    return Rules(
        batching=batching,
        max_batch_size=max_batch_size,
        max_wait_s=float(max_wait_s),
        gap_s=float(gap_s),
        users=0,
        think_s=0.0,
        longest_queue=1,  # of one lane; the queue of all cards has no end
        patience=PATIENCE,
    )


def _tasks(arrived_s: Floats, *, steps: Integers, rows: Integers, size: Integers) -> Tasks:
    from benchlib.serving.engine.lane import Tasks

    number = len(arrived_s)
    unused = np.zeros(0)
    return Tasks(
        arrived_s=np.array(arrived_s, np.float64),
        steps_left=np.array(steps, np.int64),
        rows=np.array(rows, np.int64),
        size=np.array(size, np.int64),
        lora=np.zeros(number, np.int64),
        begun_s=np.full(number, np.nan),
        done_s=np.full(number, np.nan),
        denoise_s=unused,
        batch_sum=unused,
        first_call=unused,
        last_call=unused,
    )


def _of_tables(costs: CostTables) -> CallSeconds:
    return _call_seconds(costs.step_s, costs.encode_s, costs.decode_s)


def _call_seconds(step_s: Floats, encode_s: Floats, decode_s: Floats) -> CallSeconds:
    """Tables of one type for the machine code. No request has an adapter."""
    from benchlib.serving.engine.lane import CallSeconds

    sizes = len(step_s)
    return CallSeconds(
        step_s=np.array(step_s, np.float64, order="C"),
        encode_s=np.array(encode_s, np.float64, order="C"),
        decode_s=np.array(decode_s, np.float64, order="C"),
        switch_s=np.zeros(sizes),
        lora_ratio=np.ones(sizes),
    )


def _simulate(work: _Work, fleet: FleetRules, failures: Sequence[Failure], paid: Integers) -> int:
    """Fills in `done_s` of the tasks, and `paid`; returns how many requests were made again."""
    from benchlib.queueing.central_queue import (
        MADE_AGAIN,
        MOST_INSIDE,
        CardStates,
        CentralQueue,
        enter_cards,
    )

    # 1) CardStates that are all off, and an empty queue
    most = fleet.most
    room = max(MOST_INSIDE, 2 * work.rules.max_batch_size)
    number = len(work.tasks.arrived_s)
    cards = CardStates(
        state=np.zeros(most, np.int64),
        doing=np.zeros(most, np.int64),
        event_s=np.full(most, math.inf),
        inside=np.zeros((most, room), np.int64),
        number_inside=np.zeros(most, np.int64),
        batch=np.zeros((most, work.rules.max_batch_size), np.int64),
        together=np.zeros(most, np.int64),
        begun_s=np.zeros(most),
        call_s=np.zeros(most),
        steps=np.zeros(most, np.int64),
    )
    queue = CentralQueue(
        waiting=np.zeros(number, np.int64),
        ends=np.zeros(2, np.int64),
        counts=np.zeros(4, np.int64),
        first_steps=work.tasks.steps_left.copy(),
    )

    # 2) Failures in the order of time
    in_order = sorted(failures, key=lambda failure: failure.at_s)
    fails_s = np.array([failure.at_s for failure in in_order], dtype=np.float64)
    failing = np.array([failure.card for failure in in_order], dtype=np.int64)
    enter_cards(
        tuple(work.tasks), tuple(cards), tuple(queue), tuple(work.planned), tuple(work.actual),
        work.factors, tuple(work.rules), tuple(fleet), fails_s, failing, paid,
    )  # fmt: skip
    return int(queue.counts[MADE_AGAIN])
