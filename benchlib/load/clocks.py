"""How far a worker's clock is from the master's: by messages that go there and back.

The worker reads its clock somewhere between a message's sending and the answer's coming. So the
offset is known to half of the round trip, and best from the quickest one (Cristian, Distributed
Computing 3, 1989). Pure: ignorant of messages, and of which clock it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Echo(NamedTuple):
    """A message that went to a worker and back.

    `sent_s` and `back_s` are readings of the master's clock, `theirs_s` is one of the worker's.
    """

    sent_s: float
    theirs_s: float
    back_s: float

    @property
    def round_trip_s(self) -> float:
        return self.back_s - self.sent_s


class ClockReading(NamedTuple):
    """A worker's clock is `offset_s` ahead of the master's, give or take `within_s`."""

    offset_s: float
    within_s: float


def read_clock(echoes: Iterable[Echo]) -> ClockReading:
    """The reading by the quickest of some echoes. Raises ValueError where there is none."""
    quickest = min(echoes, key=lambda echo: echo.round_trip_s)
    within_s = quickest.round_trip_s / 2
    middle_s = quickest.sent_s + within_s
    return ClockReading(quickest.theirs_s - middle_s, within_s)


@dataclass
class Alignment:
    """A worker's clock at the begin of a run and at its end; `end` is None until it was read.

    All processes of a machine read one clock. Clocks of two machines began with their boots, so
    they are seconds apart at least. An offset that is less than its error is therefore taken for 0.
    """

    begin: ClockReading
    end: ClockReading | None = None

    @property
    def used_offset_s(self) -> float:
        """The offset by which the worker's times become the master's, for the whole run."""
        is_one_clock = abs(self.begin.offset_s) <= self.begin.within_s
        return 0.0 if is_one_clock else self.begin.offset_s

    @property
    def drift_s(self) -> float | None:
        """How far the worker's clock moved from the master's while the run lasted."""
        if self.end is None:
            return None
        return self.end.offset_s - self.begin.offset_s

    @property
    def error_s(self) -> float:
        """The most by which a time of the run may be off: offsets not corrected, and not known."""
        readings = [self.begin] if self.end is None else [self.begin, self.end]
        worst_s = 0.0
        for reading in readings:
            off_s = abs(reading.offset_s - self.used_offset_s) + reading.within_s
            worst_s = max(worst_s, off_s)
        return worst_s
