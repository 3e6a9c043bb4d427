"""What a fleet knows of a replica: a whole engine, on this machine or on another.

Knows the calls and the values that cross between the two. Ignorant of how they cross (a thread, or
Ray), of who gets which request (routing.py), and of what becomes of a lost one (fleet.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from benchlib.serving.engine.faults import Outcome, Part
from benchlib.serving.engine.made import Made, WriteFile
from benchlib.serving.schemas import GenerateRequest


class ReplicaLost(RuntimeError):
    """A replica has died, or can't be reached. `str` is the reason.

    `inside` is false if the order surely never reached the model, so that it can't be the cause.
    """

    def __init__(self, reason: str, *, inside: bool = True) -> None:
        super().__init__(reason)
        self.inside = inside


class LosesReplicas(RuntimeError):
    """A request was inside at several losses in a row, at the last one alone."""

    def __init__(self, losses: int) -> None:
        super().__init__(
            f"{losses} replicas in a row were lost while they made this image, so the request is the "
            "likely cause; it is not tried again"
        )
        self.losses = losses

    def __reduce__(self) -> tuple[type[LosesReplicas], tuple[int]]:
        return LosesReplicas, (self.losses,)


@dataclass(frozen=True)
class Order:
    """One image to make.

    `number` is the fleet's own: another try of the same request has another number. `request` has a
    seed. The request had waited for `waited_s` when it was sent: clocks of two machines differ.
    `write_file` turns the image into a file at the replica. It is pickled.
    """

    number: int
    request: GenerateRequest
    request_id: str
    waited_s: float = 0.0
    write_file: WriteFile | None = None


@dataclass(frozen=True)
class ReplicaStatus:
    """What a replica has last said of itself. Counts and `busy_s` begin anew with each life.

    `life` is 1 for the first process and grows by one with each restart. `running` are the requests
    in the latest step, `waiting` those that have not begun. `steps_by_batch` counts steps by the
    number of their requests. `trouble` says why it is failing (faults.py), else None.
    `memory_gib` is by the source of the figure, such as "rss".
    """

    life: int = 1
    running: int = 0
    waiting: int = 0
    busy_s: float = 0.0
    adapter_switches: int = 0
    steps_by_batch: Mapping[int, int] = field(default_factory=dict)
    out_of_memory: Mapping[Part, int] = field(default_factory=dict)
    not_finite: Mapping[Outcome, int] = field(default_factory=dict)
    failed_calls: int = 0
    trouble: str | None = None
    memory_gib: Mapping[str, float] = field(default_factory=dict)


class Replica(Protocol):
    """One place that makes images. It outlives the processes that stand behind it one by one.

    All methods may be called from any thread and return at once, but for `stop`.
    """

    @property
    def name(self) -> str:
        """ "0", "1" and so on: Server-Timing and the metrics show it."""
        ...

    @property
    def spec(self) -> Mapping[str, Any] | None:
        """The spec of its engine with "step_times", or None while there is no engine to use."""
        ...

    @property
    def status(self) -> ReplicaStatus:
        """The latest that is known. A second old is good enough."""
        ...

    @property
    def failure(self) -> BaseException | None:
        """Why there will never be an engine here again, such as what loading has raised."""
        ...

    def start(self, changed: Callable[[], None]) -> None:
        """Begin to load. Calls `changed()`, on any thread, whenever `spec` or `failure` change.

        So it does when `life` grows, or `trouble` comes or goes.
        """
        ...

    def make(self, order: Order) -> Future[Made]:
        """Begin an image. The future ends with it, with the engine's own error, or `ReplicaLost`.

        After a `ReplicaLost` the fleet sends nothing until `life` has grown. A replica that dies
        ends all its futures.
        """
        ...

    def count_calls(self, request: GenerateRequest) -> Future[int]:
        """The calls of the UNet that `request` takes. It ends with `BadField` as an engine does."""
        ...

    def cancel(self, number: int) -> None:
        """Drop the order of this number. Its future ends soon, with `Cancelled` or with an image."""
        ...

    def stop(self) -> None:
        """End the engine and what it holds; all futures end. Returns once that is done."""
        ...
