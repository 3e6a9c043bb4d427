"""The conductor: asks `load` to send, `telemetry` to watch and `study` to keep, and hands back runs and studies.

The only file that knows all three wings. Ignorant of how any of them does its work.
"""

from __future__ import annotations

import gc
import json
import math
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import count, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from benchlib import telemetry
from benchlib.load.arrivals import Arrivals, OpenLoop
from benchlib.load.bounds import check_number
from benchlib.load.runner import GeneratorError, LoadInterrupted, LoadOutcome, LoadPlan, Progress, generate_load
from benchlib.load.workload import Workload
from benchlib.search import Capacity, find_highest
from benchlib.study.store import (
    Run,
    RunFolder,
    Study,
    check_names,
    create_run,
    load_run,
    load_study,
    lock_study,
    results_dir,
)

if TYPE_CHECKING:
    from benchlib.serving.server import Server

__all__ = [
    "Capacity", "Point", "Progress", "Run", "Study", "find_capacity", "load_run", "load_study", "run_load", "sweep",
]  # fmt: skip

# What a run says of its target: a Server knows all of it, a bare URL none.
_TARGET_FIELDS = (
    "model", "device", "dtype", "recipe", "batching", "torch_threads", "max_queue", "seed",
    "model_params", "weights_gib", "memory_before_load_gib", "showcase",
)  # fmt: skip
_RUN_FIELDS = ("duration_s", "requests", "max_s", "warmup_s", "timeout_s", "seed")
LOG_LINE_EVERY_S = 5.0
LOADED_SHARE = 0.75  # of a budget's time; the rest is for starting, loading and the last answers


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
    has a row for each.

    Raises ValueError for a bad argument, RuntimeError where another process writes the study. KeyboardInterrupt and
    `GeneratorError` end the run early: its rows are kept and it is marked "interrupted" or "failed".
    """
    check_number("repeat", repeat, 1, whole=True)
    point = Point(
        arrivals, workload or Workload(), target, {}, {}, duration_s, requests, max_s, warmup_s, timeout_s, label, seed
    )
    point.plan(target)
    check_names(study, point.to_dict())
    with _writing(results, study, on_progress) as writer:
        runs = [writer.measure(replace(point, seed=seed + number), target) for number in range(repeat)]
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

    @property
    def known(self) -> dict[str, Any]:
        """What is known of the target before it is up."""
        if self.target is None:
            return {**self.load, **self.serve}
        return {} if isinstance(self.target, str) else self.target.spec

    def plan(self, target: Server | str) -> LoadPlan:
        """How `target`, which is up, is loaded. Raises ValueError for a bad field."""
        server = None if isinstance(target, str) else target
        showcase = None if server is None else server.spec.get("showcase")
        return LoadPlan(
            url=target if isinstance(target, str) else target.url,
            arrivals=self.arrivals,
            workload=self.workload.with_defaults(**showcase) if showcase else self.workload,
            **{name: getattr(self, name) for name in _RUN_FIELDS},
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: all that is asked for. The URL, and what memory was taken before loading, say nothing of that."""
        known = {} if self.target is None else self.known
        target = {name: known.get(name) for name in _TARGET_FIELDS if name != "memory_before_load_gib"}
        plain = {"arrivals": self.arrivals.to_dict(), "workload": self.workload.to_dict(), "target": target}
        fields: dict[str, Any] = json.loads(json.dumps({**vars(self), **plain}))
        return fields


def sweep(
    points: Iterable[Point | Mapping[str, Any]],
    *,
    study: str,
    repeat: int = 1,
    budget_min: float | None = None,
    resume: bool = True,
    dry_run: bool = False,
    results: str | os.PathLike[str] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Study:
    """Measure every point `repeat` times and return the study; a plan is printed first, and with `dry_run` that is all.

    A point is a `Point`, or a dict of its fields. All are measured once, then again in the opposite order, and so on,
    so that drift hits all alike; those of one model (`load`) stand together, for it is loaded only where that changes.
    Each round has a seed of its own. `budget_min` minutes are shared among the runs: a point that gives neither
    `duration_s` nor `requests` gets its share, less warm-up and LOADED_SHARE, and no run begins that the time left is
    too short for. With `resume` a run that the study holds, finished and asked for in the very same words, is not made
    again, so that running again goes on. A point that fails leaves a run marked "failed" with its error, and the sweep
    goes on.

    Raises ValueError, before anything is measured, for a bad point; RuntimeError where another process writes the
    study.
    """
    asked = _runs_asked(points, repeat, budget_min)
    for point in asked:
        check_names(study, point.to_dict())
    if dry_run:
        so_far = _so_far(results_dir(results) / study)
        _todo(asked, so_far, resume)
        return so_far
    with _writing(results, study, on_progress) as writer:
        todo = _todo(asked, writer.study, resume)
        end_s = math.inf if budget_min is None else time.monotonic() + 60 * budget_min
        with closing(_served(todo)) as served:
            for number, (point, target, error) in enumerate(served, 1):
                if time.monotonic() + _least_s(point) > end_s:
                    print(f"the budget is spent and {len(todo) - number + 1} runs are left: sweep again to go on")
                    break
                print(f"run {number} of {len(todo)}: {_name(point)}", flush=True)
                if target is None:
                    writer.fail(point, error)
                else:
                    try:
                        writer.measure(point, target)
                    except GeneratorError as failure:
                        error = str(failure)
                if error:
                    print(f"passed over: {error}", flush=True)
        # A kill between a run's end and its line in the summary leaves that line to us.
        writer.study.write_summary()
    return writer.study


def find_capacity(
    target: Server | str,
    workload: Workload | None = None,
    *,
    slo: str = "p95 < 2 s",
    budget_min: float | None = None,
    start_rate: float = 1.0,
    precision: float = 0.05,
    trial_s: float = 30.0,
    trial_requests: int = 200,
    study: str = "capacity",
    results: str | os.PathLike[str] | None = None,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
) -> Capacity:
    """The highest rate (requests/s, Poisson) at which `target` meets `slo`, with its interval: see `find_highest`.

    Each trial is a run of the study, `trial_s` seconds long or as long as `trial_requests` take to come, after a tenth
    of that to warm up, and is judged by `Slo`. It is cut where the last answers take longer than the trial did. A trial
    that was missed while the generator itself fell behind (send lag p99 over 5 ms + 1 % of the median latency) shows
    nothing. No trial begins that `budget_min` minutes are too short for. Raises what `run_load` raises.
    """
    from benchlib.study.statistics import Slo, latencies, percentile

    goal, seeds = Slo.parse(slo), count(seed)
    end_s = math.inf if budget_min is None else time.monotonic() + 60 * budget_min
    with _writing(results, study, on_progress) as writer:

        def judge(rate: float) -> str | None:
            length_s = max(trial_s, trial_requests / rate)
            times_s: dict[str, Any] = {"duration_s": length_s, "warmup_s": 0.1 * length_s, "max_s": 2.1 * length_s}
            if time.monotonic() + 1.1 * length_s > end_s:
                return None
            run = writer.measure(
                Point(OpenLoop(rate), workload or Workload(), target, seed=next(seeds), **times_s), target
            )
            latency_s = latencies(run.requests.sort_values("scheduled_s"))
            verdict: str = goal.judge(latency_s)
            lag_s = run.record["outcome"].get("send_lag_p99_s") or 0.0
            behind = lag_s > 0.005 + 0.01 * (percentile(latency_s, 0.5) or 0.0)
            return "not shown" if behind and verdict == "missed" else verdict

        return find_highest(judge, start=start_rate, precision=precision)


@dataclass(frozen=True)
class _Writer:
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
        folder = self._create(point, plan, plan.url, {} if server is None else server.spec)
        # A bare URL's process is unknown, so nothing is watched: this process's memory would pass for the server's.
        device = folder.record["spec"]["target"]["device"]
        sampler = telemetry.Sampler(os.getpid() if server is None else server.pid, device=device)

        def on_start(started_monotonic_s: float, child_pid: int) -> None:
            sampler.zero_s, sampler.generator_pid = started_monotonic_s, child_pid

        def finish(status: str, outcome: LoadOutcome | None, error: str | None = None) -> Run:
            sampler.stop()
            return self._keep(folder, status, None if outcome is None else asdict(outcome), sampler, error)

        with _shown() if self.on_progress is None else nullcontext(self.on_progress) as show:
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

    def fail(self, point: Point, error: str | None) -> None:
        """Leave a run that says why `point`, whose model or server could not be had, was not measured."""
        folder = self._create(point, point.plan("http://none"), None, point.known)
        self._keep(folder, "failed", None, telemetry.Sampler(os.getpid()), error)

    def _create(self, point: Point, plan: LoadPlan, url: str | None, known: Mapping[str, Any]) -> RunFolder:
        spec = plan.to_dict() | {"label": point.label}
        spec["target"] = {"url": url} | {name: known.get(name) for name in _TARGET_FIELDS}
        del spec["url"]
        conditions = telemetry.describe_load()
        if conditions["warning"]:
            print(conditions["warning"], flush=True)
        record = {
            "spec": spec,
            "point": point.to_dict(),
            "conditions": conditions,
            "machine": telemetry.describe_machine(known.get("device")),
            "torch": telemetry.describe_torch() if known else None,
            "packages": telemetry.describe_packages(),
            "git": telemetry.describe_git(Path(__file__).parent),
        }
        return create_run(self.folder.parent, self.folder.name, record)

    def _keep(self, folder: RunFolder, status: str, outcome: Any, sampler: telemetry.Sampler, error: str | None) -> Run:
        self.runs.append(run := folder.finish(status, outcome, sampler.frame, error))
        self.study.write_summary()
        return run


@contextmanager
def _writing(
    results: str | os.PathLike[str] | None, study: str, on_progress: Callable[[Progress], None] | None
) -> Iterator[_Writer]:
    with lock_study(results_dir(results), study) as folder:
        yield _Writer(folder, list(_so_far(folder).runs), on_progress)


def _so_far(folder: Path) -> Study:
    try:
        return load_study(folder)
    except ValueError:  # there is none yet
        return Study(folder, ())


def _runs_asked(points: Iterable[Point | Mapping[str, Any]], repeat: int, budget_min: float | None) -> list[Point]:
    """Every run of a sweep, in the order in which it is made, checked."""
    check_number("repeat", repeat, 1, whole=True)
    asked = []
    for number, fields in enumerate(points):
        try:
            asked.append(fields if isinstance(fields, Point) else Point(**fields))
        except TypeError as error:
            raise ValueError(f"points[{number}] takes {', '.join(Point.__dataclass_fields__)}: {error}") from error
    if not asked:
        raise ValueError("points is empty: give at least one")
    if budget_min is not None:
        check_number("budget_min", budget_min, 0, above=True)
        share_s = LOADED_SHARE * 60 * budget_min / (len(asked) * repeat)
        asked = [
            replace(point, duration_s=share_s - point.warmup_s)
            if point.duration_s is None and point.requests is None
            else point
            for point in asked
        ]
    seen: list[dict[str, Any]] = []
    for number, point in enumerate(asked):
        try:
            point.plan("http://localhost" if point.target is None else point.target)
            if point.target is not None and (point.load or point.serve):
                raise ValueError("target is up already: give load and serve only without it")
            plain = point.to_dict()
        except (TypeError, ValueError) as error:
            raise ValueError(f"points[{number}]: {error}") from error
        if plain in seen:
            raise ValueError(f"points[{number}] is points[{seen.index(plain)}] again: give each a label of its own")
        seen.append(plain)
    models = [(point.target, point.load) for point in asked]
    asked.sort(key=lambda point: models.index((point.target, point.load)))
    rounds = [[replace(point, seed=point.seed + number) for point in asked] for number in range(repeat)]
    return [point for number, one in enumerate(rounds) for point in (one if number % 2 == 0 else reversed(one))]


def _served(points: list[Point]) -> Generator[tuple[Point, Server | str | None, str | None]]:
    """Each point with what it is measured on, or None and the error that kept it from starting."""
    for (target, load), same_model in groupby(points, key=lambda point: (point.target, point.load)):
        if target is not None:
            yield from ((point, target, None) for point in same_model)
            continue
        import torch

        from benchlib.serving.pipeline import load_pipeline
        from benchlib.serving.server import serve

        pipe, error = _attempt(load_pipeline, **load)
        for options, same_server in groupby(same_model, key=lambda point: point.serve):
            server = None
            if pipe is not None:
                server, error = _attempt(serve, pipe, **{"name": "sweep", **options})
            with server or nullcontext():
                yield from ((point, server, error) for point in same_server)
        pipe = server = None
        gc.collect()  # before the next model: two may not fit
        torch.cuda.empty_cache()


def _attempt(make: Callable[..., Any], *args: Any, **options: Any) -> tuple[Any, str | None]:
    try:
        return make(*args, **options), None
    except Exception as error:  # noqa: BLE001 - loading raises what it likes; it is recorded, and ends this point only
        return None, f"{type(error).__name__}: {error}"


def _todo(asked: list[Point], so_far: Study, resume: bool) -> list[Point]:
    """The runs that are still to be made; prints the plan, and which percentiles its runs can carry."""
    finished = [run for run in so_far.runs if run.record["status"] == "finished" and "point" in run.record]
    done = [run.record["point"] for run in finished] if resume else []
    todo = [point for point in asked if point.to_dict() not in done]
    cases: dict[str, Point] = {}
    for point in asked:
        cases.setdefault(_case(point.to_dict()), point)
    print(
        f"study {so_far.path.name}: {len(cases)} points, {len(asked)} runs, {len(asked) - len(todo)} of them done; "
        f"the rest take at least {sum(map(_least_s, todo)) / 60:.1f} minutes"
    )
    images_per_s = {_case(run.record["point"]): run.summary()["throughput_images_per_s"] for run in finished}
    for case, point in cases.items():
        print(f"  {_name(point)}: {_carried(_requests_expected(point, images_per_s.get(case)))}", flush=True)
    return todo


def _least_s(point: Point) -> float:
    return point.warmup_s + (point.duration_s or 0.0)


def _case(point: dict[str, Any]) -> str:
    """A point whatever its seed."""
    return json.dumps({**point, "seed": None}, sort_keys=True)


def _name(point: Point) -> str:
    words = check_names("study", {"label": point.label, "arrivals": point.arrivals.to_dict()})
    return ", ".join([words, *(f"{key}={value}" for key, value in {**point.load, **point.serve}.items())])


def _requests_expected(point: Point, images_per_s: float | None) -> int | None:
    """How many requests a run of `point` measures: those of a schedule are counted, a closed loop's are as before."""
    counts = [] if point.requests is None else [point.requests]
    if point.duration_s is not None:
        with suppress(ValueError):  # a closed loop has none
            due_s = point.arrivals.schedule(point.warmup_s + point.duration_s, point.seed)
            counts.append(sum(moment_s >= point.warmup_s for moment_s in due_s))
            return min(counts)
        if images_per_s is not None:
            counts.append(int(images_per_s * point.duration_s))
    return min(counts, default=None)


def _carried(requests: int | None) -> str:
    from benchlib.study.statistics import carried_percentiles

    if requests is None:
        return "its first run will tell how many requests it gets, and so which percentiles"
    # The largest of n values lies above percentile q with probability 1 - q**n: an interval of 95 % needs 97.5 %.
    carried = [
        f"p{100 * q:g}" + ("" if q**requests <= 0.025 else " without interval") for q in carried_percentiles(requests)
    ]
    return f"some {requests} requests a run carry at best {', '.join(carried) or 'no percentile'}"


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
