"""Many cards fed from one queue on a virtual clock, compiled to machine code.

Each card is a lane of `serving/engine/lane.py` with the same policies, so that one card is that
lane. Requests wait in one queue in front of all cards. A waiting request goes to the card where it
is foretold to be done first: one that is idle, else the one that has the fewest inside.

CardStates come and go: an autoscaler asks for more or fewer, and a card that fails gives its requests
back to the queue. Knows arrays alone. Ignorant of bad input: `cards.py` checks it first, and
imports this file when it simulates, because importing numba takes a second. One thread computes.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchlib.serving.engine import lane
from benchlib.serving.engine.lane import (
    CONTINUOUS,
    DYNAMIC,
    SERIAL,
    CallSeconds,
    Floats,
    Ints,
    Rules,
    Tasks,
    continuous_turn,
    dynamic_turn,
    kept_machine_code,
    machine_code,
)

OFF, STARTING, READY, DRAINING = 0, 1, 2, 3
"""What a card may be. One that drains takes no more requests, and is off once it has none inside."""
NOTHING, STEPS, DECODING = 0, 1, 2
"""What a card does."""
MOST_INSIDE = 24
"""A card has at most so many requests inside, or two batches, and considers so many that wait."""


class FleetRules(NamedTuple):
    """How many cards there are, and how an autoscaler changes their number.

    It is asked every `tick_s`, and acts on the mean number of ongoing requests of the last `window`
    ticks: it wants a card for each `target` of them, within `least` and `most`. More cards are asked
    for once more were wanted for `upscale_delay_s` without a break, fewer likewise. A card takes
    `startup_s` to be ready, and one that failed is ready after `restart_s`.
    """

    first: int
    least: int
    most: int
    target: float
    upscale_delay_s: float
    downscale_delay_s: float
    startup_s: float
    restart_s: float
    tick_s: float
    window: int


class CardStates(NamedTuple):
    """All cards, by number: what each is and does, and which requests it has inside, oldest first.

    `event_s` is when the card is to be looked at next. A card that steps began its steps at
    `begun_s`, `steps` of them of `call_s` each, with the requests in `batch`.
    """

    state: Ints
    doing: Ints
    event_s: Floats
    inside: Ints
    number_inside: Ints
    batch: Ints
    together: Ints
    begun_s: Floats
    call_s: Floats
    steps: Ints


class CentralQueue(NamedTuple):
    """The requests that wait: those of `waiting` from place `ends[0]` until before `ends[1]`.

    `counts` holds how many are done, how many are inside cards that are ready, and how many cards
    are ready. `first_steps` are the steps of each request when it came.
    """

    waiting: Ints
    ends: Ints
    counts: Ints
    first_steps: Ints


DONE, INSIDE, NUMBER_READY, MADE_AGAIN = 0, 1, 2, 3
"""The places of `counts`."""


@machine_code
def begin_steps(
    card: int,
    turn: Ints,
    cards: CardStates,
    tasks: Tasks,
    actual: CallSeconds,
    factor: float,
    gap_s: float,
    now_s: float,
) -> None:
    """Encode the newcomers of `turn`, and step it until a request has no step left."""
    size = tasks.size[turn[0]]
    steps = tasks.steps_left[turn[0]]
    newcomers = 0
    rows = 0
    for task in turn:
        rows += tasks.rows[task]
        steps = min(steps, tasks.steps_left[task])
        if math.isnan(tasks.begun_s[task]):
            tasks.begun_s[task] = now_s
            newcomers += 1
    if newcomers:
        now_s += actual.encode_s[size, newcomers] * factor + gap_s
    cards.doing[card] = STEPS
    cards.begun_s[card] = now_s
    cards.call_s[card] = actual.step_s[size, rows] * factor + gap_s
    cards.steps[card] = steps
    cards.event_s[card] = now_s + steps * cards.call_s[card]


@machine_code
def take_from_queue(
    card: int, turn: Ints, cards: CardStates, tasks: Tasks, queue: CentralQueue
) -> None:
    """Move the requests of `turn` that have not begun from the queue into the card."""
    for task in turn:
        if not math.isnan(tasks.begun_s[task]):
            continue
        # 1) Out of the queue: those before it move up
        place = queue.ends[0]
        while queue.waiting[place] != task:
            place += 1
        while place > queue.ends[0]:
            queue.waiting[place] = queue.waiting[place - 1]
            place -= 1
        queue.ends[0] += 1

        # 2) Into the card, in the order of arrival
        place = cards.number_inside[card]
        while place > 0 and cards.inside[card, place - 1] > task:
            cards.inside[card, place] = cards.inside[card, place - 1]
            place -= 1
        cards.inside[card, place] = task
        cards.number_inside[card] += 1
        queue.counts[INSIDE] += 1


@machine_code
def look_at(card: int, cards: CardStates, queue: CentralQueue, batching: int, view: Ints) -> int:
    """Fill `view` with what a card may work on: its own, and its share of those that wait.

    No card takes more than its equal share of all requests, so that each goes where there is least
    to do. Returns their number.
    """
    # 1) How many more it may take
    _, room = cards.inside.shape
    own = cards.number_inside[card]
    waiting = queue.ends[1] - queue.ends[0]
    more = 0
    if cards.state[card] == READY:
        all_present = queue.counts[INSIDE] + waiting
        share = math.ceil(all_present / queue.counts[NUMBER_READY])
        more = max(0, min(share - own, waiting, room - own))
        if own and batching == SERIAL:
            more = 0

    # 2) Both in the order of arrival
    filled = 0
    mine = 0
    first = queue.ends[0]
    for place in range(first, first + more):
        while mine < own and cards.inside[card, mine] < queue.waiting[place]:
            view[filled] = cards.inside[card, mine]
            filled += 1
            mine += 1
        view[filled] = queue.waiting[place]
        filled += 1
    for place in range(mine, own):
        view[filled] = cards.inside[card, place]
        filled += 1
    return filled


@machine_code
def next_turn(
    card: int,
    cards: CardStates,
    queue: CentralQueue,
    tasks: Tasks,
    planned: CallSeconds,
    actual: CallSeconds,
    factors: Floats,
    rules: Rules,
    now_s: float,
    view: Ints,
    keys: Floats,
) -> None:
    """Ask the policy what a free card does next, and begin it. A drained card is off."""
    # 1) What it may work on
    cards.doing[card] = NOTHING
    cards.event_s[card] = math.inf
    filled = look_at(card, cards, queue, rules.batching, view)
    if not filled:
        if cards.state[card] == DRAINING:
            cards.state[card] = OFF
        return

    # 2) Ask the policy
    here = view[:filled]
    batch = cards.batch[card]
    due_s = math.inf
    if rules.batching == SERIAL:
        batch[0] = here[0]
        together = 1
    elif rules.batching == DYNAMIC:
        together, due_s = dynamic_turn(here, tasks, rules, now_s, batch)
    else:
        together = continuous_turn(here, tasks, planned, rules, 0, batch, keys)
    if not together:
        cards.event_s[card] = due_s
        return

    # 3) Step, or decode
    cards.together[card] = together
    turn = batch[:together]
    factor = factors[turn[0] % len(factors)]
    if tasks.steps_left[turn[0]]:
        take_from_queue(card, turn, cards, tasks, queue)
        begin_steps(card, turn, cards, tasks, actual, factor, rules.gap_s, now_s)
        return
    decode_s = actual.decode_s[tasks.size[turn[0]], together]
    cards.doing[card] = DECODING
    cards.event_s[card] = now_s + decode_s * factor + rules.gap_s


@machine_code
def end_turn(card: int, cards: CardStates, queue: CentralQueue, tasks: Tasks, now_s: float) -> None:
    """Note the steps that a card has made, or that its requests are answered."""
    turn = cards.batch[card, : cards.together[card]]
    if cards.doing[card] == STEPS:
        for task in turn:
            tasks.steps_left[task] -= cards.steps[card]
    elif cards.doing[card] == DECODING:
        for task in turn:
            tasks.done_s[task] = now_s
        kept = 0
        for place in range(cards.number_inside[card]):
            task = cards.inside[card, place]
            if math.isnan(tasks.done_s[task]):
                cards.inside[card, kept] = task
                kept += 1
        cards.number_inside[card] = kept
        queue.counts[DONE] += len(turn)
        if cards.state[card] == READY:
            queue.counts[INSIDE] -= len(turn)
    cards.doing[card] = NOTHING


@machine_code
def first_event(cards: CardStates) -> int:
    """The card that is to be looked at first."""
    first = 0
    for card in range(1, len(cards.event_s)):
        if cards.event_s[card] < cards.event_s[first]:
            first = card
    return first


@machine_code
def card_for_newcomer(cards: CardStates) -> int:
    """The ready card with the fewest requests inside, the first of several; -1 if none is ready."""
    best = -1
    fewest = 1 << 40
    for card in range(len(cards.state)):
        if cards.state[card] == READY and cards.number_inside[card] < fewest:
            best = card
            fewest = cards.number_inside[card]
            if not fewest:
                break
    return best


@machine_code
def stop_after_this_step(card: int, cards: CardStates, now_s: float) -> None:
    """Let a card decide anew at the end of the step that it is in, or of its first one."""
    if cards.doing[card] != STEPS or cards.call_s[card] <= 0:
        return
    so_far = (now_s - cards.begun_s[card]) / cards.call_s[card]
    steps = max(1, math.ceil(so_far))
    if steps < cards.steps[card]:
        cards.steps[card] = steps
        cards.event_s[card] = cards.begun_s[card] + steps * cards.call_s[card]


@machine_code
def give_back(card: int, cards: CardStates, queue: CentralQueue, tasks: Tasks) -> None:
    """Put what a failed card had inside back to the front of the queue, to be made anew."""
    number = cards.number_inside[card]
    for place in range(number - 1, -1, -1):
        task = cards.inside[card, place]
        tasks.steps_left[task] = queue.first_steps[task]
        tasks.begun_s[task] = math.nan
        queue.ends[0] -= 1
        queue.waiting[queue.ends[0]] = task
    if cards.state[card] == READY:
        queue.counts[INSIDE] -= number
    queue.counts[MADE_AGAIN] += number
    cards.number_inside[card] = 0


@machine_code
def change_number(cards: CardStates, queue: CentralQueue, wanted: int, ready_s: float) -> None:
    """Ask for cards, or give some up, until `wanted` are up or starting.

    Those that still start are given up first, then those with the fewest requests inside. The new
    ones are ready at `ready_s`.
    """
    up = 0
    for card in range(len(cards.state)):
        up += cards.state[card] == STARTING or cards.state[card] == READY
    for card in range(len(cards.state)):
        if up < wanted and cards.state[card] == OFF:
            cards.state[card] = STARTING
            cards.event_s[card] = ready_s
            up += 1
    for card in range(len(cards.state) - 1, -1, -1):
        if up > wanted and cards.state[card] == STARTING:
            cards.state[card] = OFF
            cards.event_s[card] = math.inf
            up -= 1
    while up > wanted:
        card = card_for_newcomer(cards)
        queue.counts[NUMBER_READY] -= 1
        queue.counts[INSIDE] -= cards.number_inside[card]
        cards.state[card] = DRAINING if cards.number_inside[card] else OFF
        if cards.state[card] == OFF:
            cards.event_s[card] = math.inf
        up -= 1


@machine_code
def wanted_cards(ongoing: float, fleet: FleetRules, asked_for: int, ticks: Ints) -> int:
    """How many cards the autoscaler asks for, if so many requests are ongoing in the mean.

    `ticks` counts for how many ticks without a break more cards were wanted, and how many fewer.
    """
    desired = math.ceil(ongoing / fleet.target)
    desired = max(fleet.least, min(fleet.most, desired))
    ticks[0] = ticks[0] + 1 if desired > asked_for else 0
    ticks[1] = ticks[1] + 1 if desired < asked_for else 0
    if ticks[0] and ticks[0] * fleet.tick_s > fleet.upscale_delay_s:
        ticks[0] = 0
        return desired
    if ticks[1] and ticks[1] * fleet.tick_s > fleet.downscale_delay_s:
        ticks[1] = 0
        return desired
    return asked_for


@machine_code
def serve_all(
    tasks: Tasks,
    cards: CardStates,
    queue: CentralQueue,
    planned: CallSeconds,
    actual: CallSeconds,
    factors: Floats,
    rules: Rules,
    fleet: FleetRules,
    fails_s: Floats,
    failing: Ints,
    paid: Ints,
) -> None:
    """Let the requests arrive and the cards work, until all are answered.

    At `fails_s` the card of `failing` fails, if it is ready. `paid` is filled with the number of
    cards that are paid for, by tick.
    """
    number = len(tasks.arrived_s)
    view = np.empty(cards.inside.shape[1], np.int64)
    keys = np.empty(rules.max_batch_size, np.float64)
    history = np.zeros(fleet.window)  # ongoing requests times seconds, of the last ticks
    in_a_row = np.zeros(2, np.int64)
    asked_for = fleet.first
    arrived = 0
    tick = 0
    failed = 0
    since_s = 0.0
    change_number(cards, queue, fleet.first, 0.0)
    while queue.counts[DONE] < number or tick < len(paid):
        # 1) What comes next: an arrival, a card, the autoscaler's tick or a failure
        card = first_event(cards)
        card_s = cards.event_s[card]
        arrival_s = tasks.arrived_s[arrived] if arrived < number else math.inf
        tick_s = tick * fleet.tick_s if tick < len(paid) else math.inf
        fail_s = fails_s[failed] if failed < len(fails_s) else math.inf
        now_s = min(card_s, arrival_s, tick_s, fail_s)
        if now_s == math.inf:
            return  # no card is left: what waits is never answered
        slot = (tick + fleet.window - 1) % fleet.window
        ongoing = arrived - queue.counts[DONE]
        history[slot] += ongoing * (now_s - since_s)
        since_s = now_s
        first_to_look = 0
        last_to_look = len(cards.state)

        # 2) A request arrives: idle cards look, or one does so after its present step
        if arrival_s <= now_s:
            queue.waiting[queue.ends[1]] = arrived
            queue.ends[1] += 1
            arrived += 1
            card = card_for_newcomer(cards)
            if card < 0 or cards.doing[card] != NOTHING:
                last_to_look = 0
            if card >= 0 and rules.batching == CONTINUOUS:
                stop_after_this_step(card, cards, now_s)

        # 3) The autoscaler looks at the last ticks
        elif tick_s <= now_s:
            if fleet.least < fleet.most and tick >= fleet.window:
                mean = history.sum() / (fleet.window * fleet.tick_s)
                wanted = wanted_cards(mean, fleet, asked_for, in_a_row)
                if wanted != asked_for:
                    asked_for = wanted
                    change_number(cards, queue, wanted, now_s + fleet.startup_s)
            paid[tick] = np.sum(cards.state != OFF)
            history[tick % fleet.window] = 0.0
            tick += 1
            last_to_look = 0

        # 4) A card fails: others make what it had inside
        elif fail_s <= now_s:
            card = failing[failed]
            failed += 1
            if card < len(cards.state) and cards.state[card] == READY:
                give_back(card, cards, queue, tasks)
                queue.counts[NUMBER_READY] -= 1
                cards.state[card] = STARTING
                cards.doing[card] = NOTHING
                cards.event_s[card] = now_s + fleet.restart_s

        # 5) A card is ready, or has done its turn
        else:
            if cards.state[card] == STARTING:
                cards.state[card] = READY
                queue.counts[NUMBER_READY] += 1
            else:
                end_turn(card, cards, queue, tasks, now_s)
            first_to_look = card
            last_to_look = card + 1

        # 6) Those that are free begin their next turn
        for one in range(first_to_look, last_to_look):
            is_up = cards.state[one] == READY or cards.state[one] == DRAINING
            if is_up and cards.doing[one] == NOTHING:
                next_turn(
                    one, cards, queue, tasks, planned, actual, factors, rules, now_s, view, keys
                )


def _kept() -> Callable[..., None]:
    """`serve_all` with plain tuples for ours, kept on disk as `lane.enter` is.

    numba would use kept code after a change of `lane.py`, for it looks at this file alone. It does
    look at the values that a function closes over, so this one closes over that file's text.
    """
    source = inspect.getsource(lane)

    @kept_machine_code
    def enter(
        tasks: tuple[Any, ...],
        cards: tuple[Any, ...],
        queue: tuple[Any, ...],
        planned: tuple[Any, ...],
        actual: tuple[Any, ...],
        factors: Floats,
        rules: tuple[Any, ...],
        fleet: tuple[Any, ...],
        fails_s: Floats,
        failing: Ints,
        paid: Ints,
    ) -> None:
        if len(source):
            serve_all(
                Tasks(*tasks), CardStates(*cards), CentralQueue(*queue), CallSeconds(*planned),
                CallSeconds(*actual), factors, Rules(*rules), FleetRules(*fleet), fails_s, failing, paid,
            )  # fmt: skip

    return enter


enter_cards = _kept()
