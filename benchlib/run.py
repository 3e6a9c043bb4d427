"""The conductor: asks `load` to send, `telemetry` to watch and `study` to keep, and hands back runs.

Ignorant of how any of them does its work, and of what one run is to another (sweeps.py, search.py).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from benchlib import machine, telemetry
from benchlib.load.arrivals import Arrivals
from benchlib.load.bounds import check_number
from benchlib.load.runner import LoadInterrupted, LoadOutcome, LoadPlan, Progress, generate_load
from benchlib.load.workload import Workload
from benchlib.serving.model.torch_thread import on_torch_thread
from benchlib.study.store import (
    Run,
    RunFolder,
    Study,
    check_names,
    create_run,
    load_study,
    lock_study,
    results_dir,
)

if TYPE_CHECKING:
    import pandas as pd

    from benchlib.serving.server import Server

# What a run says of its target: a Server knows all of it, a bare URL none.
_TARGET_FIELDS = (
    "model", "device", "dtype", "recipe", "batching", "max_batch_size", "max_wait_ms", "torch_threads", "max_queue",
    "seed", "model_params", "weights_gib", "showcase", "memory_before_load_gib", "step_times",
)  # fmt: skip
_MEASURED_FIELDS = ("memory_before_load_gib", "step_times")
_RUN_FIELDS = ("duration_s", "requests", "max_s", "warmup_s", "timeout_s", "seed", "api")
LOG_LINE_EVERY_S = 5.0
DRAINING = "waiting for the last ones"


def run_load(
    target: Server | str,
    arrivals: Arrivals,
    workload: Workload | None = None,
    *,
    duration_s: float | None = None,
    requests: int | None = None,
    max_s: float | None = None,
    warmup_s: float = 0.0,
    repeat: int = 1,
    timeout_s: float = 600.0,
    label: str | None = None,
    study: str = "scratch",
    results: str | os.PathLike[str] | None = None,
    seed: int = 0,
    api: str = "benchmark",
    on_progress: Callable[[Progress], None] | None = None,
) -> Run | Study:
    """Send `workload` to `target` as `arrivals` say, keep every request's row, and return the finished `Run`.

    `target` is a `Server`, or the base URL of anybody's: then model, settings and memory are unknown (null), and
    `label` is the place to say what it was. Requests are scheduled through `warmup_s`, then for `duration_s` or until
    `requests` more, whichever comes first, then those in flight are waited for; `max_s` cuts the whole run. What
    `workload` leaves open is the server's showcase size, or the URL's own default. The run goes to
    <results>/<study>/<run>/ (`results`: see `study.store.results_dir`) and the study's summary.csv is renewed. Progress
    goes to `on_progress`, else to a bar where somebody watches, else to plain lines. With `repeat` above 1 that many
    runs are made, of the seeds `seed`, `seed` + 1 and so on, and a `Study` of just these is returned, whose `summary`
    has a row for each. `api` is the route that is loaded: "benchmark", or "openai" for the images API of any server
    that has it.

    Raises ValueError for a bad argument, RuntimeError where another process writes the study. KeyboardInterrupt and
    `GeneratorError` end the run early: its rows are kept and it is marked "interrupted" or "failed".
    """
    check_number("repeat", repeat, 1, whole=True)
    workload = Workload() if workload is None else workload
    point = Point(
        arrivals=arrivals,
        workload=workload,
        target=target,
        duration_s=duration_s,
        requests=requests,
        max_s=max_s,
        warmup_s=warmup_s,
        timeout_s=timeout_s,
        label=label,
        seed=seed,
        api=api,
    )
    point.plan(target)
    check_names(study, point.to_dict())
    with writing(results, study, on_progress) as writer:
        runs = [
            writer.measure(replace(point, seed=seed + number), target) for number in range(repeat)
        ]
    return runs[0] if repeat == 1 else Study(writer.folder, tuple(runs))


@dataclass(frozen=True)
class Point:
    """One case of a sweep: how to load, with what, and whom; the fields are `run_load`'s.

    `target` is a `Server` or URL that is up already; where it is None, `load` holds `load_pipeline`'s arguments, the
    `model` among them, and `serve` those of `serve`, such as `batching`.
    """

    arrivals: Arrivals
    workload: Workload = field(default_factory=Workload)
    target: Server | str | None = None
    load: Mapping[str, Any] = field(default_factory=dict)
    serve: Mapping[str, Any] = field(default_factory=dict)
    duration_s: float | None = None
    requests: int | None = None
    max_s: float | None = None
    warmup_s: float = 0.0
    timeout_s: float = 600.0
    label: str | None = None
    seed: int = 0
    api: str = "benchmark"

    def plan(self, target: Server | str) -> LoadPlan:
        """How `target`, which is up, is loaded. Raises ValueError for a bad field."""
        showcase = _told(target).get("showcase")
        url = target if isinstance(target, str) else target.url
        fields = {name: getattr(self, name) for name in _RUN_FIELDS}
        workload = self.workload
        if showcase and isinstance(workload, Workload):
            workload = workload.with_defaults(**showcase)
        return LoadPlan(url, self.arrivals, workload, **fields)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: all that is asked for. The URL, and what was measured at the start, say nothing of that."""
        known = {} if self.target is None else _told(self.target)
        target = {name: known.get(name) for name in _TARGET_FIELDS if name not in _MEASURED_FIELDS}
        plain = {
            "arrivals": self.arrivals.to_dict(),
            "workload": self.workload.to_dict(),
            "target": target,
        }
        fields: dict[str, Any] = json.loads(json.dumps({**vars(self), **plain}))
        return fields


def _told(target: Server | str) -> dict[str, Any]:
    """What `target` says of itself; a bare URL says nothing. Raises ValueError where it is neither."""
    if isinstance(target, str):
        return {}
    if not hasattr(target, "pid"):
        raise ValueError(
            f"target must be a Server, as serve() makes one, or a URL as text, got {target!r}"
        )
    return target.spec


@dataclass(frozen=True)
class Writer:
    """A study whose lock is held: its folder, and its runs so far."""

    folder: Path
    runs: list[Run]
    on_progress: Callable[[Progress], None] | None

    @property
    def study(self) -> Study:
        return Study(self.folder, tuple(self.runs))

    def measure(self, point: Point, target: Server | str) -> Run:
        """One run of `point` on `target`, which is up."""
        server = None if isinstance(target, str) else target
        plan = point.plan(target)
        folder = self._create(point, plan, plan.url, _told(target))
        # A bare URL's process is unknown, so nothing is watched: this process's memory would pass for the server's.
        device = folder.record["spec"]["target"]["device"]
        sampler = telemetry.Sampler(os.getpid() if server is None else server.pid, device=device)
        graphs = 0 if server is None else server.graphs_made

        def on_start(started_monotonic_s: float, child_pid: int) -> None:
            sampler.zero_s, sampler.generator_pid = started_monotonic_s, child_pid

        def finish(status: str, outcome: LoadOutcome | None, error: str | None = None) -> Run:
            sampler.stop()
            told = None if outcome is None else asdict(outcome)
            if told and server is not None:
                told["graphs_made"] = server.graphs_made - graphs
            return self.keep(folder, status, told, sampler.frame, error)

        with _shown(sampler) if self.on_progress is None else nullcontext(self.on_progress) as show:
            try:
                if server is not None:
                    sampler.start()
                outcome = generate_load(plan, folder.rows_path, on_start=on_start, on_progress=show)
            except KeyboardInterrupt as interrupt:
                finish(
                    "interrupted",
                    interrupt.outcome if isinstance(interrupt, LoadInterrupted) else None,
                )
                # Python ends a script as interrupted (130) for this very class, not for those derived from it.
                raise KeyboardInterrupt(*interrupt.args) from None
            except BaseException as error:
                finish("failed", None, f"{type(error).__name__}: {error}")
                raise
        return finish("finished", outcome)

    def fail(self, point: Point, error: str | None) -> None:
        """Leave a run that says why `point`, whose model or server could not be had, was not measured."""
        folder = self._create(point, point.plan("http://none"), None, {**point.load, **point.serve})
        self.keep(folder, "failed", None, telemetry.Sampler(os.getpid()).frame, error)

    def _create(
        self, point: Point, plan: LoadPlan, url: str | None, known: Mapping[str, Any]
    ) -> RunFolder:
        spec = plan.to_dict() | {"label": point.label}
        del spec["url"]
        return self.create(spec, known, url, point=point.to_dict())

    def create(
        self, spec: Mapping[str, Any], known: Mapping[str, Any], url: str | None = None, **more: Any
    ) -> RunFolder:
        """The folder of a run of `spec` on a target of which so much is `known`, with what the machine is and does."""
        conditions = machine.describe_load()
        if conditions["warning"]:
            print(conditions["warning"], flush=True)
        record = {
            "spec": {
                **spec,
                "target": {"url": url} | {name: known.get(name) for name in _TARGET_FIELDS},
            },
            **more,
            "conditions": conditions,
            "machine": machine.describe_machine(known.get("device")),
            "torch": on_torch_thread(machine.describe_torch) if known else None,
            "packages": machine.describe_packages(),
            "git": machine.describe_git(Path(__file__).parent),
        }
        return create_run(self.folder.parent, self.folder.name, record)

    def keep(
        self, folder: RunFolder, status: str, outcome: Any, samples: pd.DataFrame, error: str | None
    ) -> Run:
        """Ends the run in `folder`; the study's summary is renewed."""
        self.runs.append(run := folder.finish(status, outcome, samples, error))
        self.study.write_summary()
        return run


@contextmanager
def writing(
    results: str | os.PathLike[str] | None,
    study: str,
    on_progress: Callable[[Progress], None] | None,
) -> Iterator[Writer]:
    """The writer of a study. Raises RuntimeError where another process writes it."""
    with lock_study(results_dir(results), study) as folder:
        yield Writer(folder, list(so_far(folder).runs), on_progress)


def so_far(folder: Path) -> Study:
    """The study in `folder`; one without runs where it holds none."""
    try:
        return load_study(folder)
    except ValueError:  # there is none yet
        return Study(folder, ())


@contextmanager
def _shown(sampler: telemetry.Sampler) -> Iterator[Callable[[Progress], None]]:
    """A bar where somebody watches, plain lines in a log."""
    # jupyter_server names the session of a kernel that a person opened; papermill's kernels have none.
    in_notebook = "JPY_SESSION_NAME" in os.environ or "VSCODE_PID" in os.environ
    if in_notebook or sys.stderr.isatty():
        # In parts of the whole, for a notebook's bar keeps the length that it began with.
        with tqdm(bar_format="{percentage:3.0f}% {bar} {desc}", total=1.0) as bar:

            def draw(progress: Progress) -> None:
                bar.n = progress.elapsed_s / (
                    progress.elapsed_s + (progress.time_left_s or 0.0) or 1.0
                )
                bar.set_description_str(_words(progress, sampler))

            yield draw
            bar.set_description_str(
                bar.desc.removesuffix(f", {DRAINING}")
            )  # it stays when all is over
        return
    due_s = 0.0

    def write(progress: Progress) -> None:
        nonlocal due_s
        if progress.elapsed_s >= due_s:
            due_s = progress.elapsed_s + LOG_LINE_EVERY_S
            print(_words(progress, sampler), flush=True)

    yield write


def _words(progress: Progress, sampler: telemetry.Sampler) -> str:
    words = [f"{progress.elapsed_s:.0f} s: {progress.done} done"]
    if progress.images_per_s:
        words.append(f"{progress.images_per_s:.3g} images/s")
    if progress.p95_latency_s is not None:
        words.append(f"p95 {progress.p95_latency_s:.3g} s")
    elif progress.median_latency_s is not None:
        words.append(f"median {progress.median_latency_s:.3g} s")
    words += [f"{gib:.2f} GiB{where}" for where, gib in sampler.memory_gib.items()]
    if progress.errors:
        words.append(f"{progress.errors} errors")
    if progress.time_left_s is not None:
        words.append(f"{progress.time_left_s:.0f} s left" if progress.time_left_s else DRAINING)
    return ", ".join(words)
