"""Plans what fits into the minutes that a notebook may take, and ends measuring when told to.

    budget = Budget(3, case=("sdxl-random", "cuda"))
    for share in budget.in_turn([Part("calibrate", 60, least_s=40, worth=10)]):
        with budget.measuring(share.name):
            ...  # takes share.seconds

Knows the clock, the parts' wishes, what things cost here (costs.py), and the keyboard's interrupt.
Ignorant of what a part measures, and of what it shows.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from benchlib.cell_view import CellView, ShownInCell
from benchlib.costs import Costs
from benchlib.load.bounds import check_number
from benchlib.printing import print_line

TOLERANCE = 0.1
TOLERANCE_S = 15.0
"""A budget is kept within a tenth or these seconds, whichever is more."""
RUN_COST = "run"
"""The cost of a run beside its load: to start the generator, and to keep the rows."""
INTERRUPTED = "interrupted: the answer uses what was measured; interrupt again to stop at once"
_in_block: ContextVar[bool] = ContextVar("a budget's block ends at an interrupt", default=False)


@dataclass(frozen=True)
class Part:
    """One thing to measure: its `name`, the `seconds` that it wants, and how telling it is.

    Below `least_s` seconds its estimate gets too few images to say anything, so it is left out
    instead. By default a part takes all of its seconds or none. `worth` orders the parts: the
    highest is the most telling one. `needs` names a more telling part without which this one says
    nothing. `overhead_s` of its seconds make no image, and `image_s` is how
    long an image takes; both are for the plan's column of images.
    """

    name: str
    seconds: float
    least_s: float | None = None
    worth: float = 1.0
    needs: str | None = None
    overhead_s: float = 0.0
    image_s: float | None = None

    def __post_init__(self) -> None:
        check_number("seconds", self.seconds, 0)
        check_number("worth", self.worth, 0)
        check_number("overhead_s", self.overhead_s, 0)
        if self.least_s is not None:
            check_number("least_s", self.least_s, 0, self.seconds)
        if self.image_s is not None:
            check_number("image_s", self.image_s, 0, above=True)

    @property
    def needed_s(self) -> float:
        """The seconds without which the part is left out."""
        return self.seconds if self.least_s is None else self.least_s

    def scaled(self, factor: float) -> Part:
        """The same part where everything takes `factor` times as long."""
        image_s = None if self.image_s is None else factor * self.image_s
        return replace(
            self,
            seconds=factor * self.seconds,
            least_s=factor * self.needed_s,
            overhead_s=factor * self.overhead_s,
            image_s=image_s,
        )


@dataclass(frozen=True)
class PlannedPart:
    """A part that is measured, and the `seconds` that it may take."""

    part: Part
    seconds: float

    @property
    def name(self) -> str:
        return self.part.name

    @property
    def images(self) -> int | None:
        """How many images its seconds are enough for; None where an image's time is unknown."""
        if self.part.image_s is None:
            return None
        loaded_s = max(0.0, self.seconds - self.part.overhead_s)
        # A part that gets what it asked for must not lose an image to rounding.
        return math.floor(loaded_s / self.part.image_s + 1e-6)


@dataclass(frozen=True)
class BudgetPlan:
    """Which parts are measured, in their order, and which are left out; `str()` is a table.

    When it was made, `left_s` of the `budget_s` seconds were left. `reserve_s` of them are for what
    comes after.
    """

    parts: tuple[PlannedPart, ...]
    left_out: tuple[Part, ...]
    left_s: float
    reserve_s: float = 0.0
    budget_s: float = math.inf

    def __getitem__(self, name: str) -> PlannedPart:
        """The planned part of that name. Raises KeyError where it is left out."""
        for planned in self.parts:
            if planned.name == name:
                return planned
        raise KeyError(name)

    def __contains__(self, name: str) -> bool:
        return any(planned.name == name for planned in self.parts)

    @property
    def seconds(self) -> float:
        """What all planned parts and the reserve take together."""
        return sum(planned.seconds for planned in self.parts) + self.reserve_s

    @property
    def too_long(self) -> bool:
        """Whether the most telling part is kept though it does not fit."""
        return self.seconds > self.left_s + 1e-6

    def __str__(self) -> str:
        lines = [_row("part", "minutes", "images")]
        for planned in self.parts:
            images = "" if planned.images is None else f"{planned.images:,}"
            lines.append(_row(planned.name, _minutes(planned.seconds), images))
        if self.reserve_s:
            lines.append(_row("what follows", _minutes(self.reserve_s)))
        lines.append(_row("in all", _minutes(self.seconds)))
        if math.isfinite(self.left_s):
            lines.append(_row(f"left of {_minutes(self.budget_s)} minutes", _minutes(self.left_s)))
        if self.too_long:
            lines.append(f"{self.parts[0].name} does not fit: it is measured all the same")
        lines += self.left_out_lines()
        return "\n".join(lines)

    def left_out_lines(self) -> list[str]:
        """A sentence for each part that is left out, and why."""
        needed_s = sum(planned.part.needed_s for planned in self.parts)
        spare_s = max(0.0, self.left_s - self.reserve_s - needed_s)
        spare = f"{_minutes(spare_s)} minutes are left"
        if self.parts:
            spare = f"more telling ones leave {_minutes(spare_s)}"
        lines = []
        for part in self.left_out:
            reason = f"it needs at least {_minutes(part.needed_s)} minutes, and {spare}"
            if any(part.needs == other.name for other in self.left_out):
                reason = f"it says nothing without {part.needs}"
            lines.append(f"{part.name} is left out: {reason}")
        return lines


def _row(name: str, minutes: str, images: str = "") -> str:
    return f"  {name:<32} {minutes:>8} {images:>7}".rstrip()


def _minutes(seconds: float) -> str:
    """Minutes in words; two decimals where one would show nothing."""
    minutes = seconds / 60
    return f"{minutes:.1f}" if minutes >= 0.95 else f"{minutes:.2f}"


class Budget(ShownInCell):
    """The minutes that all measuring may take, from this object's creation to the last measurement.

    Loading, compiling, warming up and predicting count as well. `minutes` of None is no limit.
    `results` and `case` say where costs are remembered and what they belong to (see Costs).
    `clock` gives monotonic seconds.
    """

    def __init__(
        self,
        minutes: float | None,
        *,
        results: str | os.PathLike[str] | None = None,
        case: Iterable[object] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if minutes is not None:
            check_number("minutes", minutes, 0, above=True)
        self.seconds = math.inf if minutes is None else 60.0 * minutes
        self.interrupted = False
        self._clock = clock
        self._began_s = clock()
        self._costs = Costs(results, case)

    def _view(self) -> CellView:
        if self.interrupted:
            return CellView("interrupted: nothing is left")
        if math.isinf(self.seconds):
            return CellView("no limit")
        left = f"{_minutes(self.left_s)} of {_minutes(self.seconds)} minutes"
        return CellView(f"{left} are left")

    # ---- time

    @property
    def used_s(self) -> float:
        """Seconds since the budget began."""
        return self._clock() - self._began_s

    @property
    def left_s(self) -> float:
        """Seconds that are left, never below 0; none after an interrupt."""
        if self.interrupted:
            return 0.0
        return max(0.0, self.seconds - self.used_s)

    @property
    def cut_s(self) -> float:
        """Seconds until what still runs must be cut: what is left, and the tolerance.

        A run whose length is not certain takes it as its `max_s`.
        """
        if self.interrupted:
            return 0.0
        latest_s = self.seconds + max(TOLERANCE_S, TOLERANCE * self.seconds)
        return max(0.0, latest_s - self.used_s)

    # ---- costs

    def cost(self, name: str, default_s: float) -> float:
        """What `name` took here lately, in seconds; `default_s` where that is not known."""
        known_s = self._costs.median_s(name)
        return default_s if known_s is None else known_s

    def record(self, name: str, seconds: float) -> None:
        """Remembers that `name` took `seconds`, for this budget and for later ones."""
        check_number("seconds", seconds, 0)
        self._costs.record(name, seconds)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Remembers how long the block took. A block that raises is not remembered."""
        began_s = self._clock()
        yield
        self.record(name, self._clock() - began_s)

    @contextmanager
    def starting(self, name: str) -> Iterator[None]:
        """Remembers how long the start of `name` took: loading, compiling, warming up.

        A start that took more than half of the time left, when it was last made here, is announced.
        One that took all of the time left is told afterwards.
        """
        cost = f"start of {name}"
        known_s = self.cost(cost, 0.0)
        left_s = self.left_s
        if known_s > left_s / 2:
            print_line(
                f"{name}: starting took {_minutes(known_s)} minutes here before, "
                f"and {_minutes(left_s)} are left",
            )
        began_s = self._clock()
        with self.timed(cost):
            yield
        took_s = self._clock() - began_s
        if 0 < left_s < took_s:
            print_line(
                f"{name}: starting took {_minutes(took_s)} minutes, more than the "
                f"{_minutes(left_s)} that were left; what follows is shortened or left out",
            )

    # ---- the plan

    def plan(
        self, parts: Iterable[Part], *, reserve_s: float = 0.0, keep_one: bool = True
    ) -> BudgetPlan:
        """The parts that fit into what is left, less `reserve_s` for what comes after them.

        A part is kept if the least that it needs fits beside what all more telling parts need.
        What is then left is shared out: each part gets the same share of what it wants beyond its
        least. With `keep_one`, the most telling part is kept where no part fits. Nothing is kept
        after an interrupt.

        Raises ValueError where two parts have one name.
        """
        wanted = list(parts)
        names = [part.name for part in wanted]
        if len(set(names)) != len(names):
            raise ValueError(f"parts: each needs a name of its own, got {', '.join(names)}")
        left_s = self.left_s
        free_s = max(0.0, left_s - reserve_s)
        kept = [] if self.interrupted else _fitting(wanted, free_s)
        if not kept and wanted and keep_one and not self.interrupted:
            kept = [_by_worth(wanted)[0]]
        left_out = tuple(part for part in wanted if part not in kept)
        planned = _shared_out([part for part in wanted if part in kept], free_s)
        return BudgetPlan(planned, left_out, left_s, reserve_s, self.seconds)

    def in_turn(self, parts: Iterable[Part], *, reserve_s: float = 0.0) -> Iterator[PlannedPart]:
        """Prints the plan, then yields each part that is to be measured, in the order given.

        Before each part the rest is planned anew with the time that is left. Where parts took
        longer than planned, the rest is taken to do so as well. A part that no longer fits is left
        out, in words.
        """
        wanted = list(parts)
        as_asked = {part.name: part for part in wanted}
        plan = self.plan(wanted, reserve_s=reserve_s)
        print_line(plan)
        planned_s = took_s = 0.0
        while plan.parts:
            share, *later = plan.parts
            began_s = self._clock()
            yield share
            planned_s += share.seconds
            took_s += self._clock() - began_s

            slower = max(1.0, took_s / planned_s) if planned_s else 1.0
            rest = [as_asked[planned.name].scaled(slower) for planned in later]
            plan = self.plan(rest, reserve_s=reserve_s, keep_one=False)
            if not self.interrupted:
                for line in plan.left_out_lines():
                    print_line(line)

    # ---- the interrupt

    @contextmanager
    def measuring(self, name: str) -> Iterator[None]:
        """Ends the block at the first interrupt (Ctrl-C, or the notebook's stop button), in words.

        The budget is then spent, and the code after the block goes on with what was measured. A
        second interrupt raises KeyboardInterrupt as ever: in this block while it ends, in a later
        block of the budget, and anywhere else.
        """
        with _interrupts_counted() as interrupts:
            before = _in_block.set(True)
            try:
                yield
            except KeyboardInterrupt:
                if self.interrupted or len(interrupts) > 1:
                    raise
                self.interrupted = True
                print_line(f"{name}: {INTERRUPTED}")
            finally:
                _in_block.reset(before)

    @contextmanager
    def running(self, name: str, max_s: float | None) -> Iterator[RunningTime]:
        """A run that is cut when the budget's tolerance ends, or after `max_s` seconds.

        A run that must be made although the budget is spent gets TOLERANCE_S. An interrupt ends the
        block as in measuring(). What the run took beside its load is remembered as RUN_COST. Raises
        RuntimeError where the budget was interrupted before.
        """
        if self.interrupted:
            raise RuntimeError("budget: it was interrupted; ask for budget.left_s before a run")
        limits_s = [max(TOLERANCE_S, self.cut_s - self.cost(RUN_COST, 0.0))]
        if max_s is not None:
            limits_s.append(max_s)
        most_s = min(limits_s)
        running = RunningTime(most_s if math.isfinite(most_s) else max_s)
        began_s = self.used_s
        with self.measuring(name):
            yield running
        if running.load_s is not None and math.isfinite(self.seconds):
            self.record(RUN_COST, max(0.0, self.used_s - began_s - running.load_s))


def budget_of_cell(results: str | os.PathLike[str] | None) -> Budget | None:
    """A budget without a limit where a notebook measures, so that an interrupt ends in words.

    A call that raises binds no name: after an interrupt, `run` would be unknown, or an older run.
    So in a notebook, and in IPython, the first interrupt makes the call return what it has. A
    script gets None, and its KeyboardInterrupt. So does what runs in a block of another budget,
    which ends at the interrupt itself.
    """
    if _in_block.get() or not _is_interactive():
        return None
    return Budget(None, results=results)


def _is_interactive() -> bool:
    """Whether a notebook's kernel or IPython runs this code."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return get_ipython() is not None


@contextmanager
def _interrupts_counted() -> Iterator[list[int]]:
    """Yields a list that grows with each SIGINT; each does what it did before, too.

    Code that tidies up after a first KeyboardInterrupt may end with one of its own, so exceptions
    can't be counted. Off the main thread no signal arrives, and the list stays empty.
    """
    seen: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield seen
        return

    def count(number: int, frame: Any) -> None:
        seen.append(number)
        before(number, frame)

    signal.signal(signal.SIGINT, count)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass
class RunningTime:
    """How long a run may take in all, and how long its load took, which the run says at its end."""

    max_s: float | None
    load_s: float | None = None


def _by_worth(parts: Sequence[Part]) -> list[Part]:
    """The most telling part first; parts of one worth stay in their order."""
    return sorted(parts, key=lambda part: -part.worth)


def _fitting(parts: Sequence[Part], free_s: float) -> list[Part]:
    """The parts whose least times fit, the most telling ones first."""
    kept: list[Part] = []
    # What a part needs may have been measured already. Then it is not among the parts.
    missing = {part.name for part in parts}
    for part in _by_worth(parts):
        if part.needed_s <= free_s and part.needs not in missing:
            kept.append(part)
            missing.remove(part.name)
            free_s -= part.needed_s
    return kept


def _shared_out(kept: Sequence[Part], free_s: float) -> tuple[PlannedPart, ...]:
    """Each part with its seconds: the least, and the same share of what it wants beyond."""
    needed_s = sum(part.needed_s for part in kept)
    beyond_s = sum(part.seconds for part in kept) - needed_s
    share = 1.0
    if beyond_s > 0 and free_s - needed_s < beyond_s:
        share = max(0.0, free_s - needed_s) / beyond_s
    planned = []
    for part in kept:
        seconds = part.needed_s + share * (part.seconds - part.needed_s)
        planned.append(PlannedPart(part, seconds))
    return tuple(planned)
