"""The sizes of the UNet's batch to which smaller batches are padded, in rows.

Ignorant of requests and of models.
"""

from __future__ import annotations

from collections.abc import Sequence


def powers_of_two(first: int, *, at_least: int) -> list[int]:
    """The powers of two from `first`, itself one, up to the first that is `at_least` or more."""
    powers = [first]
    while powers[-1] < at_least:
        powers.append(2 * powers[-1])
    return powers


def smallest_that_holds(rows: int, buckets: Sequence[int]) -> int | None:
    """The smallest of `buckets`, which are in order, that holds `rows`; None if there is none."""
    for bucket in buckets:
        if bucket >= rows:
            return bucket
    return None
