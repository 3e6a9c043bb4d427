"""How many calls of the UNet a request takes, asked of the replicas, because the front has no model.

Knows whom to ask, and keeps the answers. Ignorant of schedulers.
"""

from __future__ import annotations

from collections.abc import Callable

from benchlib.serving.replicas.replica import Replica, ReplicaLost
from benchlib.serving.schemas import BadField, GenerateRequest

MOST_KEPT = 5000  # pairs of a scheduler and a number of steps
ANSWER_S = 10.0  # a replica that takes longer to count is busy with its own end


class CallCounts:
    """Counts calls as an engine's `Schedules` does. May be used by several threads.

    `find_replica()` is a replica that is ready, or None. All replicas have the same model.
    """

    def __init__(self, find_replica: Callable[[], Replica | None]) -> None:
        self._find_replica = find_replica
        self._known: dict[tuple[str | None, int], int | BadField] = {}

    def knows_calls(self, request: GenerateRequest) -> bool:
        """Whether `count_calls` answers at once. Else it asks a replica."""
        return _key(request) in self._known

    def count_calls(self, request: GenerateRequest) -> int:
        """The calls of the UNet. Raises `BadField`.

        Without a replica that answers it is the number of steps. The replica that makes the image
        counts anew.
        """
        known = self._known.get(_key(request))
        if known is None:
            replica = self._find_replica()
            if replica is None:
                return request.num_inference_steps
            try:
                known = replica.count_calls(request).result(ANSWER_S)
            except BadField as error:
                known = error
            except (ReplicaLost, TimeoutError):
                return request.num_inference_steps
            if len(self._known) < MOST_KEPT:
                self._known[_key(request)] = known
        if isinstance(known, BadField):
            raise BadField(known.field, known.problem)
        return known

    def estimate(self, request: GenerateRequest) -> int:
        """The calls if they are known, else the number of steps. Asks nobody."""
        known = self._known.get(_key(request))
        return known if isinstance(known, int) else request.num_inference_steps


def _key(request: GenerateRequest) -> tuple[str | None, int]:
    return request.scheduler, request.num_inference_steps
