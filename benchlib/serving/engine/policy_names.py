"""The policies by name, and the bounds of their numbers.

Knows the names that options and records use. Ignorant of what a policy does (policies.py).
"""

from __future__ import annotations

from math import inf

from benchlib.serving.engine.policies import Continuous, Dynamic, Policy, Serial
from benchlib.serving.engine.step_times import Times

BATCHINGS = ("serial", "dynamic", "continuous")


def make_policy(batching: str, times: Times, *, max_batch_size: int, max_wait_s: float) -> Policy:
    """The policy named `batching`. Raises ValueError, which names the field."""
    check_batching(batching, max_batch_size=max_batch_size, max_wait_s=max_wait_s)
    if batching == "serial":
        return Serial()
    if batching == "dynamic":
        return Dynamic(max_batch_size, max_wait_s)
    return Continuous(times, max_batch_size)


def check_batching(batching: str, *, max_batch_size: int, max_wait_s: float) -> None:
    """Raise ValueError, which names the field, unless there is such a policy."""
    if max_batch_size < 1:
        raise ValueError(f"max_batch_size: {max_batch_size} is too few; use 1 or more")
    if not 0 <= max_wait_s < inf:
        raise ValueError(f"max_wait_s: {max_wait_s} is no waiting time; use 0 or more seconds")
    if batching not in BATCHINGS:
        raise ValueError(
            f"batching: {batching!r} is not known; use 'serial', 'dynamic' or 'continuous'"
        )
