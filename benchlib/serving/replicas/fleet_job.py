"""A request in a fleet: from the front's queue through one or several replicas to its image.

Knows what an app reads of a job, and how often the request was lost. Ignorant of who sends it where.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

from benchlib.serving.engine.made import Made, WriteFile
from benchlib.serving.engine.step_times import Size
from benchlib.serving.schemas import GenerateRequest


@dataclass(eq=False)
class FleetJob:
    """One request in a fleet. It is a `Task` to the policies, and an `ImageJob` to the app.

    `number` is that of the present try, or of the first one while the job waits. `place` orders the
    queue. `admitted_s` is when the job was sent to `replica`; once the image is made, it is when the
    replica began it. `losses` counts the replicas that were lost while the job was inside, in a row.
    """

    request: GenerateRequest  # with a seed
    request_id: str
    arrived_s: float
    number: int
    steps_left: int
    rows: int
    write_file: WriteFile | None = None
    future: Future[Made] = field(default_factory=Future)
    place: tuple[float, int] = (0.0, 0)
    admitted_s: float | None = None
    replica: str | None = None
    life: int = 0  # the replica's, when the job was sent there
    cancelled: bool = False
    losses: int = 0
    outcome: Made | Exception | None = None

    def __post_init__(self) -> None:
        self.place = (self.arrived_s, self.number)

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return self.request.width, self.request.height

    @property
    def lora(self) -> str | None:
        """The adapter with its scale, or None."""
        return self.request.lora

    @property
    def begun(self) -> bool:
        """Whether the job has left the front's queue."""
        return self.admitted_s is not None

    @property
    def made(self) -> Made | None:
        """What was made; None before the end."""
        return self.outcome if isinstance(self.outcome, Made) else None

    @property
    def retries(self) -> int:
        """How often the image was begun anew."""
        return self.losses
