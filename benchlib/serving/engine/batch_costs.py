"""How many requests share a step under continuous batching: what a batch costs everybody.

Knows how slow a batch of each size is, beside its members one by one. Ignorant of requests, steps
and seconds. `lane.py` says the same in machine code.
"""

from __future__ import annotations

from math import inf


def cheapest_of_mix(slownesses: list[float], present: int) -> int:
    """The b of least cost, where entry b - 1 of `slownesses` is that of a batch of b.

    The mean finishing time of the n requests that are `present` is proportional to
    (1 + b / n) * slowness: sharing delays the requests at the front. Requests that come later wait
    for the rest of the queue, so their time is proportional to slowness ** 2. It is weighted by
    their number, which is unknown; n/2 stands for it. So without any gain the best batch is one
    request. A small gain is taken only in a long queue.
    """
    least_cost = inf
    best = 1
    for b, slowness in enumerate(slownesses, 1):
        # A product rounds as it does in machine code (lane.py); a power does not
        cost = (1 + b / present) * slowness + present / 2 * (slowness * slowness)
        if cost < least_cost:
            least_cost = cost
            best = b
    return best


def cheapest_of_equals(slownesses: list[float], present: int) -> int:
    """The b of least cost for candidates that need the same, else as in `cheapest_of_mix`.

    Let n be `present`, s a slowness, and the time of a request alone be 1. Those who come at a rate
    L while the queue drains find it shorter and shorter: n / (1 - L * s) requests pass in all. Each
    is delayed by (n + b) * s / 2 on average. So the cost is (1 + b / n) * s / (1 - L * s).

    L is unknown. The number in a queue that is not empty is geometric in the load. So the likeliest
    load, given n, is (n - 1) / n of what the fastest batch can serve: L = (n - 1) / (n * least).
    In a long queue this takes the fastest batch; of two, a pair must gain a seventh.

    Only even splits count. A batch of six out of eight would leave two, who are slow by themselves.
    This rule does not mix phases: a newcomer among those who have begun is encoded and decoded
    alone, again and again, and the capacity falls. Sources: the fluid limit of a queue (Newell,
    "Applications of Queueing Theory", 1971), the queue M/M/1 (Kleinrock, "Queueing Systems", 1975).
    """
    # 1) Even splits, and the fastest of them
    most = len(slownesses)
    even = []
    for b in range(1, most + 1):
        batches = -(-most // b)
        if -(-most // batches) == b:
            even.append(b)
    least_slowness = min(slownesses[b - 1] for b in even)

    # 2) The batch of least cost
    least_cost = inf
    best = 1
    for b in even:
        slowness = slownesses[b - 1]
        spare = present * least_slowness - (present - 1) * slowness
        if spare <= 0:
            continue  # slower than they come
        cost = (1 + b / present) * slowness / spare
        if cost < least_cost:
            least_cost = cost
            best = b
    return best
