"""What would requests wait if they could move between cards at no cost? A mark for routers.

Cards run one request or two. As long as no more requests are there than cards, each is alone. Else
the oldest are alone, and the youngest share cards in pairs. Any request may be paused or moved to
another card at any time, which no real card can do. Where all cards run pairs, the others wait. This
is no strict bound: a pair gains little, so with few requests an order without pairs may be better.

Knows seconds of requests alone, and the speed of a pair. Ignorant of routers, policies and steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from benchlib.serving.engine.step_times import StepTimes

ROUNDING_S = 1e-9


def pair_speed(times: StepTimes, steps: float, rows: int = 2) -> float:
    """How fast each of two requests of so many `steps` runs on one card, as a share of alone."""
    alone_s = times.encode(1) + steps * times.step(rows) + times.decode(1)
    pair_s = times.encode(2) + steps * times.step(2 * rows) + times.decode(2)
    return alone_s / pair_s


def latencies_s(
    arrived_s: Sequence[float], alone_s: Sequence[float], cards: int, pair: float
) -> list[float]:
    """The latency of each request, in order of arrival.

    `alone_s` is what each takes alone on a card. In a pair it runs at `pair` times that speed.
    """
    left_s = list(alone_s)
    done_s = [inf] * len(left_s)
    present: list[int] = []  # in order of arrival
    arrived = 0
    now_s = 0.0
    while arrived < len(left_s) or present:
        # 1) Who runs at which speed
        pairs = min(max(0, len(present) - cards), cards)
        speeds = [1.0] * (cards - pairs) + [pair] * (2 * pairs)
        running = list(zip(present, speeds, strict=False))

        # 2) Until one is done, or the next one comes
        next_s = arrived_s[arrived] if arrived < len(left_s) else inf
        seconds = min((left_s[one] / speed for one, speed in running), default=inf)
        seconds = min(seconds, next_s - now_s)
        now_s += seconds
        for one, speed in running:
            left_s[one] -= speed * seconds
            if left_s[one] < ROUNDING_S:
                done_s[one] = now_s
        present = [one for one in present if done_s[one] == inf]
        if now_s >= next_s - ROUNDING_S:
            present.append(arrived)
            arrived += 1
    return [end_s - begin_s for end_s, begin_s in zip(done_s, arrived_s, strict=True)]
