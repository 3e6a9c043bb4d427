"""What an app needs of whoever makes its images: one engine, or a fleet of them.

Knows names and types only. Ignorant of how images are made.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from benchlib.serving.engine.faults import Faults
from benchlib.serving.engine.made import Made, WriteFile
from benchlib.serving.engine.options import EngineOptions
from benchlib.serving.replicas.replica import ReplicaStatus
from benchlib.serving.schemas import GenerateRequest

if TYPE_CHECKING:
    from benchlib.serving.engine.simulate import Finished, SimulatedTask

State = Literal["loading", "ready", "degraded", "failing", "failed", "stopped"]


class CountsCalls(Protocol):
    """Says how many calls of the UNet a request takes."""

    def knows_calls(self, request: GenerateRequest) -> bool:
        """Whether `count_calls` answers at once."""
        ...

    def count_calls(self, request: GenerateRequest) -> int:
        """The calls of the UNet. Raises `BadField`."""
        ...


class ImageJob(Protocol):
    """One request inside. `future` ends once its image is made, or with an error.

    Times are readings of `time.monotonic()`. `outcome` is what the future ends with, or None.
    """

    @property
    def request_id(self) -> str: ...
    @property
    def arrived_s(self) -> float: ...
    @property
    def admitted_s(self) -> float | None:
        """When the work on the image began, None while the request waits."""
        ...

    @property
    def future(self) -> Future[Any]: ...
    @property
    def outcome(self) -> object: ...
    @property
    def made(self) -> Made | None:
        """What was made; None unless the future ended well."""
        ...

    @property
    def replica(self) -> str | None:
        """Who makes the image, where there are several."""
        ...

    @property
    def retries(self) -> int:
        """How often the image was begun anew, because a replica was lost."""
        ...


AnyJob = TypeVar("AnyJob", bound=ImageJob)


@dataclass(frozen=True)
class ReplicaView:
    """How one replica of a fleet is. `images`, `losses` and `restarts` are the fleet's counts.

    `inside` are the requests that were sent there and have not come back.
    """

    name: str
    ready: bool
    inside: int
    images: int
    losses: int
    restarts: int
    retries: int
    status: ReplicaStatus


class Backend(Protocol[AnyJob]):
    """Makes images. `Engine` and `Fleet` are both of this kind; see there for each member."""

    on_step: Callable[[int, float], None]

    @property
    def options(self) -> EngineOptions: ...
    @property
    def settled(self) -> threading.Event: ...
    @property
    def ended(self) -> threading.Event: ...
    @property
    def failure(self) -> BaseException | None: ...
    @property
    def spec(self) -> Mapping[str, Any]: ...
    @property
    def state(self) -> State: ...
    @property
    def trouble(self) -> str | None: ...
    @property
    def doing(self) -> str:
        """What a start does now, in words, such as "loading the model"."""
        ...

    @property
    def schedules(self) -> CountsCalls | None: ...
    @property
    def replicas(self) -> Sequence[ReplicaView]:
        """A view of each replica; none of an engine that is alone."""
        ...

    @property
    def waiting(self) -> int: ...
    @property
    def running(self) -> int: ...
    @property
    def busy_s(self) -> float: ...
    @property
    def adapter_switches(self) -> int: ...
    @property
    def faults(self) -> Faults: ...

    def start(self) -> None: ...
    def submit(
        self,
        request: GenerateRequest,
        *,
        request_id: str = ...,
        arrived_s: float | None = ...,
        write_file: WriteFile | None = ...,
    ) -> AnyJob:
        """Queue a request. Where there are replicas, the image's file is written there."""
        ...

    def work_s(self) -> float: ...
    def foretell(
        self, now_s: float, *newcomers: SimulatedTask
    ) -> Mapping[AnyJob | SimulatedTask, Finished]: ...
    def cancel(self, job: AnyJob) -> None: ...
    def drop_jobs(self) -> None: ...
    def stop(self, *, drain_s: float = ...) -> None: ...
