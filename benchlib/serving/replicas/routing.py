"""Which request leaves the front's queue now, and to which replica.

Knows what each replica has inside, and what is foretold from that (foretold_replica.py). Ignorant
of threads, clocks, Ray, and of replicas that are lost: the fleet passes those that can work.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Generic, Protocol

from benchlib.serving.engine.policies import AnyTask, Task
from benchlib.serving.replicas.foretold_replica import HAND_OVER_S, ForetoldReplica

ROUTINGS = ("foretold", "round-robin", "two-choices")
TICK_S = 0.001  # decisions are at least so far apart if nothing happens


@dataclass(frozen=True)
class Routes(Generic[AnyTask]):
    """What to do now: send these requests, and decide again at `again_s` if nothing happens before.

    The replicas count the sent ones as inside already. Without held requests `again_s` is None.
    """

    sent: tuple[tuple[AnyTask, ForetoldReplica], ...] = ()
    again_s: float | None = None


class Router(Protocol):
    """Decides when a request comes, leaves a replica or is sent back, and when a replica comes."""

    def route(
        self, waiting: Sequence[AnyTask], replicas: Sequence[ForetoldReplica], now_s: float
    ) -> Routes[AnyTask]:
        """Which of `waiting`, in their order of arrival, go where. The others stay held back."""
        ...


def router_named(name: str, *, seed: int = 0) -> Router:
    """The router of a name. Raises ValueError, which names the field."""
    if name == "foretold":
        return ForetoldFinish()
    if name == "round-robin":
        return RoundRobin()
    if name == "two-choices":
        return TwoChoices(seed)
    raise ValueError(
        f"routing: {name!r} is not known; use 'foretold', 'round-robin' or 'two-choices'"
    )


class ForetoldFinish:
    """A request goes where it is foretold to be done first, as soon as it can begin there soon.

    **Held back**: a replica takes as many requests as its batch holds. The others stay in the front,
    where a late short one may overtake them, and go to whichever replica has room first. A replica
    has room `HAND_OVER_S` before a request leaves its batch, so that it never idles.

    **A long queue**: a replica's policy sees only what is inside, and runs large batches only where
    many are. So with continuous batching a replica takes more than one batch, up to two, as long as
    it has less than its share of all requests.

    **The order** is that of continuous batching: by arrival, but short requests get a head start of
    `patience` times their own seconds. So a request that needs T alone is never sent after one that
    arrives more than PATIENCE * T later. Inside a replica the same bound holds. Other policies
    have the order of arrival.

    **The choice** counts all that is inside. On a virtual clock, a choice that lets a request overtake
    was worse for the 95th percentile, since somebody else then waits. Of equal replicas, the one with
    the fewest rows inside wins.
    """

    def route(
        self, waiting: Sequence[AnyTask], replicas: Sequence[ForetoldReplica], now_s: float
    ) -> Routes[AnyTask]:
        """Which of `waiting` go where: see `Router`."""
        sent: list[tuple[AnyTask, ForetoldReplica]] = []
        for replica in replicas:
            replica.advance(now_s + HAND_OVER_S)
        if not replicas:
            return Routes()
        share = _present(waiting, replicas) // len(replicas)
        if not any(replica.has_room(now_s, share) for replica in replicas):
            return Routes(again_s=_again_s(replicas, now_s) if waiting else None)
        for task in _in_order(waiting, replicas):
            open_replicas = [replica for replica in replicas if replica.has_room(now_s, share)]
            if not open_replicas:
                break
            replica = _first_to_finish(task, open_replicas, now_s)
            replica.enter(task, now_s)
            sent.append((task, replica))
        is_held = len(sent) < len(waiting)
        return Routes(tuple(sent), _again_s(replicas, now_s) if is_held else None)


def _in_order(waiting: Sequence[AnyTask], replicas: Sequence[ForetoldReplica]) -> Sequence[AnyTask]:
    """The order in which `waiting` leave the queue."""
    first = replicas[0]
    if len(waiting) < 2 or not first.patience:
        return waiting
    patience = min(_present(waiting, replicas) / len(replicas) / 3, first.patience)
    alone_s: dict[tuple[object, ...], float] = {}

    def key_s(task: Task) -> float:
        kind = (task.size, task.rows, task.lora, task.steps_left)
        if kind not in alone_s:
            alone_s[kind] = first.alone_s(task)
        return task.arrived_s + patience * alone_s[kind]

    return sorted(waiting, key=key_s)


def _present(waiting: Sequence[Task], replicas: Sequence[ForetoldReplica]) -> int:
    """How many requests there are, waiting or inside."""
    return len(waiting) + sum(len(replica.inside) for replica in replicas)


def _first_to_finish(
    task: Task, replicas: Sequence[ForetoldReplica], now_s: float
) -> ForetoldReplica:
    """The replica where `task` is foretold to be done first."""
    return min(replicas, key=lambda replica: (replica.foretell_s(task, now_s), replica.rows))


def _again_s(replicas: Sequence[ForetoldReplica], now_s: float) -> float | None:
    """When the first replica should have room, less the time of handing over.

    None if that is unknown: then a request that leaves a replica tells.
    """
    room_s = min((replica.room_s() for replica in replicas), default=inf)
    if room_s == inf:
        return None
    return max(room_s - HAND_OVER_S, now_s) + TICK_S


class RoundRobin:
    """Each request goes at once to the replica that is next in turn. It is there to be compared."""

    def __init__(self) -> None:
        self._sent = 0

    def route(
        self, waiting: Sequence[AnyTask], replicas: Sequence[ForetoldReplica], now_s: float
    ) -> Routes[AnyTask]:
        """All of `waiting`, one to each replica in turn."""
        sent = []
        for task in waiting if replicas else ():
            replica = replicas[self._sent % len(replicas)]
            self._sent += 1
            replica.enter(task, now_s)
            sent.append((task, replica))
        return Routes(tuple(sent))


class TwoChoices:
    """Each request goes at once to that of two random replicas which has fewer requests inside.

    This is what Ray Serve's own router does (2.60, "power of two choices"). It is there to be
    compared.
    """

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)

    def route(
        self, waiting: Sequence[AnyTask], replicas: Sequence[ForetoldReplica], now_s: float
    ) -> Routes[AnyTask]:
        """All of `waiting`, each to one of two."""
        sent = []
        for task in waiting if replicas else ():
            two = self._random.sample(replicas, min(2, len(replicas)))
            replica = min(two, key=lambda one: len(one.inside))
            replica.enter(task, now_s)
            sent.append((task, replica))
        return Routes(tuple(sent))
