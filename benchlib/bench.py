"""The conductor: asks `load` to send, `telemetry` to watch and `study` to keep, and hands back a Run.

The only file that knows all three wings. Ignorant of how any of them does its work.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from benchlib import telemetry
from benchlib.load.arrivals import ClosedLoop
from benchlib.load.runner import LoadInterrupted, LoadOutcome, LoadPlan, Progress, generate_load
from benchlib.load.workload import Workload
from benchlib.study.store import Run, Study, create_run, load_run, load_study, results_dir

if TYPE_CHECKING:
    from benchlib.serving.server import Server

__all__ = ["Progress", "Run", "Study", "load_run", "load_study", "run_load"]

# What a run says of its target: a Server knows all of it, a bare URL none.
_TARGET_FIELDS = (
    "model", "device", "dtype", "recipe", "batching", "torch_threads", "max_queue", "seed",
    "model_params", "weights_gib", "memory_before_load_gib", "showcase",
)  # fmt: skip
LOG_LINE_EVERY_S = 5.0


def run_load(
    target: Server | str,
    arrivals: ClosedLoop,
    workload: Workload | None = None,
    *,
    duration_s: float | None = None,
    requests: int | None = None,
    max_s: float | None = None,
    warmup_s: float = 0.0,
    timeout_s: float = 600.0,
    label: str | None = None,
    study: str = "scratch",
    results: str | os.PathLike[str] | None = None,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
) -> Run:
    """Send `workload` to `target` as `arrivals` say, keep every request's row, and return the finished run.

    `target` is a `Server`, or the base URL of anybody's: then model, settings and memory are unknown (null), and
    `label` is the place to say what it was. Requests are scheduled through `warmup_s`, then for `duration_s` or until
    `requests` more, whichever comes first, then those in flight are waited for; `max_s` cuts the whole run. What
    `workload` leaves open is the server's showcase size, or the URL's own default. The run goes to
    <results>/<study>/<run>/ (`results`: see `study.store.results_dir`) and the study's summary.csv is renewed. Progress
    goes to `on_progress`, else to a bar where somebody watches, else to plain lines.

    Raises ValueError for a bad argument. KeyboardInterrupt and `GeneratorError` end the run early: its rows are kept
    and it is marked "interrupted" or "failed".
    """
    server = None if isinstance(target, str) else target
    known = {} if server is None else server.spec
    workload = Workload() if workload is None else workload
    if showcase := known.get("showcase"):
        workload = workload.with_defaults(**showcase)
    plan = LoadPlan(
        url=target if isinstance(target, str) else target.url,
        arrivals=arrivals,
        workload=workload,
        duration_s=duration_s,
        requests=requests,
        max_s=max_s,
        warmup_s=warmup_s,
        timeout_s=timeout_s,
        seed=seed,
    )
    spec = plan.to_dict() | {"label": label}
    spec["target"] = {"url": spec.pop("url")} | {field: known.get(field) for field in _TARGET_FIELDS}
    record = {
        "spec": spec,
        "machine": telemetry.describe_machine(),
        "packages": telemetry.describe_packages(),
        "git": telemetry.describe_git(Path(__file__).parent),
    }
    folder = create_run(results_dir(results), study, record)
    # A bare URL's process is unknown, so nothing is watched: this process's memory would pass for the server's.
    sampler = telemetry.Sampler(os.getpid() if server is None else server.pid)

    def on_start(started_monotonic_s: float, child_pid: int) -> None:
        sampler.zero_s, sampler.generator_pid = started_monotonic_s, child_pid

    def finish(status: str, outcome: LoadOutcome | None, error: str | None = None) -> Run:
        sampler.stop()
        run = folder.finish(status, None if outcome is None else asdict(outcome), sampler.frame, error)
        load_study(folder.path.parent).write_summary()
        return run

    with _shown() if on_progress is None else nullcontext(on_progress) as show:
        try:
            if server is not None:
                sampler.start()
            outcome = generate_load(plan, folder.rows_path, on_start=on_start, on_progress=show)
        except LoadInterrupted as interrupt:
            finish("interrupted", interrupt.outcome)
            raise
        except BaseException as error:
            finish("failed", None, f"{type(error).__name__}: {error}")
            raise
    return finish("finished", outcome)


@contextmanager
def _shown() -> Iterator[Callable[[Progress], None]]:
    """A bar where somebody watches, plain lines in a log."""
    # jupyter_server names the session of a kernel that a person opened; papermill's kernels have none.
    in_notebook = "JPY_SESSION_NAME" in os.environ or "VSCODE_PID" in os.environ
    if in_notebook or sys.stderr.isatty():
        # In parts of the whole, for a notebook's bar keeps the length that it began with.
        with tqdm(bar_format="{l_bar}{bar}|{postfix}", total=1.0) as bar:

            def draw(progress: Progress) -> None:
                bar.n = progress.elapsed_s / (progress.elapsed_s + (progress.time_left_s or 0.0) or 1.0)
                bar.set_postfix_str(_words(progress))

            yield draw
        return
    due_s = 0.0

    def write(progress: Progress) -> None:
        nonlocal due_s
        if progress.elapsed_s >= due_s:
            due_s = progress.elapsed_s + LOG_LINE_EVERY_S
            print(_words(progress), flush=True)

    yield write


def _words(progress: Progress) -> str:
    median = "-" if progress.median_latency_s is None else f"{progress.median_latency_s:.3g} s"
    left = "" if progress.time_left_s is None else f", {progress.time_left_s:.0f} s left"
    if progress.time_left_s == 0:
        left = ", waiting for the last ones"
    return f"{progress.elapsed_s:.0f} s: {progress.done} done, {progress.errors} errors, median {median}{left}"
