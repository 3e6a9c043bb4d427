"""The rows that a worker has not sent home yet, and how many may be on their way.

Pure but for the ledger whose figures it takes along. Ignorant of sockets, and of who gets the rows.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Mapping
from itertools import islice
from typing import Any, NamedTuple

from benchlib.load.ledger import Ledger
from benchlib.load.rows_file import line_of

BATCH_ROWS = 500
MOST_ON_THEIR_WAY = 20_000
"""Rows that were sent, and that the master has not confirmed: beyond these, a worker waits."""
MOST_WAITING = 200_000
"""Some 100 MB of rows: beyond these the run fails, as nobody takes them."""


class _Waiting(NamedTuple):
    line: bytes
    due_s: float
    done_s: float


class Outbox:
    """Rows in the order in which their requests ended; `worker` is named in each of them."""

    def __init__(self) -> None:
        self.worker = ""
        self.sent = 0
        self.confirmed = 0
        self._waiting: deque[_Waiting] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, row: Mapping[str, Any]) -> None:
        """Takes a row. Raises RuntimeError where too many wait."""
        if len(self._waiting) >= MOST_WAITING:
            raise RuntimeError(f"{MOST_WAITING} rows wait for the master, which takes none")
        done_s = row["done_s"]
        line = line_of({**row, "worker": self.worker})
        waiting = _Waiting(line, row["scheduled_s"], float("nan") if done_s is None else done_s)
        self._waiting.append(waiting)

    def may_send(self) -> bool:
        """Whether there is a row, and not too many are on their way."""
        return bool(self._waiting) and self.sent - self.confirmed < MOST_ON_THEIR_WAY

    def batch(self, ledger: Ledger) -> dict[str, Any]:
        """The next rows with their figures, and the ledger's since the last batch.

        Times are in seconds from the run's start, packed as doubles; NaN is a request that never
        ended. Both counts are those of the whole run so far.
        """
        count = min(BATCH_ROWS, len(self._waiting))
        rows = [self._waiting.popleft() for _ in range(count)]
        self.sent += count
        lags_s = array("d", ledger.lags_s)
        ledger.lags_s.clear()
        gauge = [list(sample) for sample in islice(ledger.gauge, BATCH_ROWS)]
        del ledger.gauge[: len(gauge)]
        return {
            "lines": b"".join(row.line for row in rows),
            "due_s": array("d", [row.due_s for row in rows]).tobytes(),
            "done_s": array("d", [row.done_s for row in rows]).tobytes(),
            "lags_s": lags_s.tobytes(),
            "gauge": gauge,
            "max_in_flight_hits": ledger.max_in_flight_hits,
            "nonfinite_images": ledger.nonfinite_images,
        }
