"""Shows how far a run is: by a bar where somebody watches, by plain lines in a log.

Knows terminals, notebooks and the wording of the line. Ignorant of how the run is made and kept.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

from benchlib.load.runner import Progress
from benchlib.printing import print_line
from benchlib.telemetry import Sampler

LOG_LINE_EVERY_S = 5.0
DRAINING = "waiting for the last answers"


@contextmanager
def progress_shown(sampler: Sampler) -> Iterator[Callable[[Progress], None]]:
    """Yields a function that shows a run's progress and the memory that `sampler` saw last."""
    # jupyter_server names the session of a kernel that a person opened; papermill's kernels have
    # none.
    in_notebook = "JPY_SESSION_NAME" in os.environ or "VSCODE_PID" in os.environ
    if not in_notebook and not sys.stderr.isatty():
        yield _log_lines(sampler)
        return
    # The bar's length is 1, for the whole run: a notebook's bar can't change its length later.
    with tqdm(bar_format="{percentage:3.0f}% {bar} {desc}", total=1.0) as bar:

        def draw(progress: Progress) -> None:
            whole_s = progress.elapsed_s + (progress.time_left_s or 0.0)
            bar.n = progress.elapsed_s / (whole_s or 1.0)
            bar.set_description_str(progress_line(progress, sampler))

        yield draw
        # The bar stays on the page when the run is over.
        bar.set_description_str(bar.desc.removesuffix(f", {DRAINING}"))


def _log_lines(sampler: Sampler) -> Callable[[Progress], None]:
    due_s = 0.0

    def write(progress: Progress) -> None:
        nonlocal due_s
        if progress.elapsed_s >= due_s:
            due_s = progress.elapsed_s + LOG_LINE_EVERY_S
            print_line(progress_line(progress, sampler))

    return write


def progress_line(progress: Progress, sampler: Sampler) -> str:
    """The line that shows `progress` and the sampler's memory; an unknown value is left out.

    Such as "61 s: 230 done, 3.83 images/s, p95 1.23 s, 1.25 GiB, 2 errors, 19 s left".
    """
    words = [f"{progress.elapsed_s:.0f} s: {progress.done} done"]
    if progress.images_per_s:
        words.append(f"{progress.images_per_s:.3g} images/s")
    if progress.p95_latency_s is not None:
        words.append(f"p95 {progress.p95_latency_s:.3g} s")
    elif progress.median_latency_s is not None:
        words.append(f"median {progress.median_latency_s:.3g} s")
    for place, gib in sampler.memory_gib.items():
        words.append(f"{gib:.2f} GiB{place}")
    if progress.errors:
        words.append("1 error" if progress.errors == 1 else f"{progress.errors} errors")
    if progress.time_left_s is not None:
        words.append(f"{progress.time_left_s:.0f} s left" if progress.time_left_s else DRAINING)
    return ", ".join(words)
