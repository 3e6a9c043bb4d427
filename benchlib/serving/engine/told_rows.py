"""Says in words which batch a start compiles or measures.

Knows the words. Ignorant of how a batch is measured, and of who reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchlib.serving.engine.buckets import smallest_that_holds


def tell_rows_of(
    size: tuple[int, int],
    to_compile: Sequence[int],
    tell: Callable[[str], None],
    keep: Callable[[], None],
) -> Callable[[int], None]:
    """A function that gives `tell` the words for a batch of so many rows, when it begins.

    The first batch in each bucket of `to_compile` compiles; that is empty for a model that does not.
    `size` is width and height in pixels. First it calls `keep`, which keeps what the batches before
    have compiled: a start that is killed has not compiled for nothing.
    """
    compiled: set[int] = set()

    def tell_rows(rows: int) -> None:
        if to_compile:
            keep()
        bucket = smallest_that_holds(rows, to_compile) or rows
        in_words = "1 row" if bucket == 1 else f"{bucket} rows"
        if bucket not in to_compile or bucket in compiled:
            tell(f"measuring {in_words} at {size[0]}x{size[1]}")
            return
        compiled.add(bucket)
        which = f"{to_compile.index(bucket) + 1} of {len(to_compile)}"
        tell(f"compiling the UNet for {in_words} ({which})")

    return tell_rows
