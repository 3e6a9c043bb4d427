"""When each request of a fleet would begin and end, if no other came.

Knows what waits in the front and what each replica has inside. It shares out the waiting requests in
order, each to the replica with the least work, and simulates each replica by itself. Ignorant of
locks and threads: what it returns is called later, without the fleet's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchlib.serving.engine.policies import Policy, Task
from benchlib.serving.engine.simulate import Finished, SimulatedTask, one_by_one_s, simulate
from benchlib.serving.engine.step_times import Times
from benchlib.serving.replicas.slots import Slot


class _Place:
    """What one replica has inside, copied at one time."""

    def __init__(self, slot: Slot, now_s: float) -> None:
        foretold = slot.foretold
        assert foretold is not None
        self.policy: Policy = foretold.policy
        self.times: Times = slot.times.__getitem__
        self.ready_s = foretold.ready_s(now_s)
        self.work_s = 0.0
        self._tasks: list[Task] = []
        self._copies: list[SimulatedTask] = []
        for task, present in foretold.inside.items():
            copy = SimulatedTask.copy_of(present)
            self.add(task, copy)

    def add(self, task: Task, copy: SimulatedTask) -> None:
        """Let one more task be here."""
        self._tasks.append(task)
        self._copies.append(copy)
        self.work_s += one_by_one_s([copy], self.times)

    def finished(self) -> dict[Any, Finished]:
        """When each task begins and ends."""
        ends = simulate(self.policy, self._copies, self.times, now_s=self.ready_s)
        return dict(zip(self._tasks, ends, strict=True))


def foretell_fleet(
    waiting: Sequence[Task], ready: Sequence[Slot], now_s: float
) -> Callable[[], Mapping[Any, Finished]]:
    """Copy what there is now; return what foretells it, by the tasks of the caller.

    Those that wait go to the slots that are `ready`. Without one everything is foretold to be done
    at once: `submit` refuses anyway.
    """
    places = [_Place(slot, now_s) for slot in ready]
    copies = {task: SimulatedTask.copy_of(task) for task in waiting}

    def foretell() -> dict[Any, Finished]:
        finished: dict[Any, Finished] = {}
        if not places:
            for task in copies:
                finished[task] = Finished(task.arrived_s, now_s, now_s)
            return finished
        for task, copy in copies.items():
            least = min(places, key=lambda place: place.work_s)
            least.add(task, copy)
        for place in places:
            finished |= place.finished()
        return finished

    return foretell
