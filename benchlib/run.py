"""Makes one run: `load` sends the requests, `telemetry` watches the server, `study` keeps the rows.

    run = run_load("http://127.0.0.1:8000", ClosedLoop(users=4), duration_s=60, warmup_s=5)

Knows the order of these steps and what a run's record says. Ignorant of how each step works, and of
how runs relate to each other (sweeps.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from benchlib import machine, telemetry
from benchlib.budget import Budget, budget_of_cell
from benchlib.load.addresses import as_urls
from benchlib.load.arrivals import Arrivals
from benchlib.load.bearer import bearer_header, headers_of_environment
from benchlib.load.bounds import check_number
from benchlib.load.introductions import introduced
from benchlib.load.plan import LoadPlan
from benchlib.load.runner import LoadInterrupted, LoadOutcome, Progress, generate_load
from benchlib.load.workers import Workers
from benchlib.load.workload import Workload
from benchlib.lost_connections import warn_of_lost_connections
from benchlib.printing import print_line
from benchlib.progress import progress_shown
from benchlib.serving.model.torch_thread import on_torch_thread
from benchlib.study.folders import check_names, lock_study, results_dir, run_words
from benchlib.study.record_shape import MOST_FAILED
from benchlib.study.store import Run, RunFolder, Study, create_run
from benchlib.study.summary_table import renew_summary
from benchlib.target_fields import LATER_FIELDS, REQUESTED_FIELDS, TARGET_FIELDS

if TYPE_CHECKING:
    import pandas as pd

    from benchlib.serving.server import Server

    Target: TypeAlias = Server | str | list[str] | tuple[str, ...]

_URLS = (str, list, tuple)
_LENGTHS = ("duration_s", "requests", "max_s", "warmup_s", "timeout_s")
_PLAN_FIELDS = (*_LENGTHS, "seed", "api", "verify", "workers")


def run_load(
    target: Server | str | list[str] | tuple[str, ...],
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
    most_failed: float = MOST_FAILED,
    verify: bool = True,
    workers: Workers | Literal["external"] = 1,
    on_progress: Callable[[Progress], None] | None = None,
    budget: Budget | None = None,
) -> Run | Study:
    """Send `workload` to `target` as `arrivals` say, keep each request's row, and return the `Run`.

    `target` is a `Server`, or the base URL of anybody's server. For a URL, the model, settings and
    memory are unknown (null); name them in `label`. A list of URLs is one target: the requests go
    to them in turn. All must be ready and serve one model, and a row's `target` says where it went.
    Fields that `workload` leaves open take the server's showcase size, or the defaults at the URL.

    Requests are scheduled during `warmup_s`, then for `duration_s` or until `requests` more are
    scheduled, whichever comes first. Then the run waits for the answers; `max_s` cuts the whole
    run. `api` is the route that is loaded: "benchmark", or "openai", "vllm-omni" or "sglang" for
    the images API of such a server. The run is not valid if more than the share `most_failed` of
    its requests failed; what the server refused to protect others (429, 503, 504) is counted apart.
    A certificate that nobody vouches for is accepted only without `verify`, and the record says so.
    A user and a password in a URL are sent, but never kept. So is the key of a `Server`, or for a
    URL what is in BENCHLIB_LOAD_API_KEY and BENCHLIB_LOAD_HEADERS. `workers` processes send the
    load together, each on a core; "external" ones, or `ExternalWorkers`, run elsewhere.

    The run goes to <results>/<study>/<run>/ (see `study.folders.results_dir`), and gets a row in
    the study's summary.csv. Progress goes to `on_progress`, else to a bar where somebody watches,
    else to plain lines. With `repeat` above 1, the runs have the seeds `seed`, `seed` + 1 and so
    on, and a `Study` of just these runs is returned.

    With a `budget`, the run is cut at the end of the budget's tolerance. With a budget, and in a
    notebook, a first interrupt ends this run and spends the budget: the run is returned, with the
    status "interrupted". So `run = run_load(...)` binds what was measured.

    Raises ValueError for a bad argument, RuntimeError for a budget that was interrupted before
    or a study that another process writes.
    Any other KeyboardInterrupt, and `GeneratorError`, end the run early: its rows are kept and it
    is marked "interrupted" or "failed".
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
        most_failed=most_failed,
        verify=verify,
        workers=workers,
    )
    point.plan(target)
    check_names(study, point.to_dict())
    if budget is None:
        budget = budget_of_cell(results)
    with writing(results, study, on_progress) as writer:
        for number in range(repeat):
            writer.measure(replace(point, seed=seed + number), target, budget)
            if budget is not None and budget.interrupted:
                break
    return writer.runs[0] if repeat == 1 else Study(writer.folder, tuple(writer.runs))


@dataclass(frozen=True)
class Point:
    """One case of a sweep: arrivals, workload, target and lengths; the fields are `run_load`'s.

    `target` is a `Server` or URL that is up already. Where `target` is None, `load` holds the
    arguments of `load_pipeline`, such as `model`. Then `serve` holds the arguments of `serve()`,
    such as `batching`.
    """

    arrivals: Arrivals
    workload: Workload = field(default_factory=Workload)
    target: Target | None = None
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
    most_failed: float = MOST_FAILED
    verify: bool = True
    workers: Workers | Literal["external"] = 1

    def plan(self, target: Target) -> LoadPlan:
        """The plan of a load on `target`, which is up. Raises ValueError for a bad field."""
        check_number("most_failed", self.most_failed, 0, 1)
        showcase = server_spec(target).get("showcase")
        fields = {name: getattr(self, name) for name in _PLAN_FIELDS}
        workload = self.workload
        if showcase and isinstance(workload, Workload):
            workload = workload.with_defaults(**showcase)
        if isinstance(target, _URLS):
            headers = headers_of_environment()
            return LoadPlan(as_urls(target), self.arrivals, workload, **fields, headers=headers)
        headers = bearer_header(target.api_key)
        plan = LoadPlan(target.url, self.arrivals, workload, **fields, headers=headers)
        plan.check_own_bounds()
        return plan

    def to_dict(self) -> dict[str, Any]:
        """The point as JSON, without its server's URL and start-up figures, which may change."""
        spec = {} if self.target is None else server_spec(self.target)
        target = {name: spec.get(name) for name in REQUESTED_FIELDS}
        given = {name: spec[name] for name in LATER_FIELDS if spec.get(name) is not None}
        plain = {
            "arrivals": self.arrivals.to_dict(),
            "workload": self.workload.to_dict(),
            "target": target | given,
        }
        fields: dict[str, Any] = json.loads(json.dumps({**vars(self), **plain}))
        # These change nothing of what is measured.
        del fields["most_failed"], fields["verify"], fields["workers"]
        return fields


def server_spec(target: Target) -> dict[str, Any]:
    """The model and settings of a server, {} for URLs. Raises ValueError for anything else."""
    if isinstance(target, _URLS):
        return {}
    if not hasattr(target, "pid"):
        raise ValueError(f"target must be a Server (from serve()) or a URL as text, got {target!r}")
    return target.spec


@dataclass(frozen=True)
class Writer:
    """A study whose lock is held: its folder, and the runs that this writer has made in it."""

    folder: Path
    on_progress: Callable[[Progress], None] | None
    runs: list[Run] = field(default_factory=list)

    def measure(self, point: Point, target: Target, budget: Budget | None = None) -> Run:
        """Makes one run of `point` on `target`, which is up, and keeps the run however it ends."""
        if budget is None:
            return self._measure(point, target, point.max_s)
        made = len(self.runs)
        with budget.running(run_words(point.to_dict()), point.max_s) as running:
            run = self._measure(point, target, running.max_s)
            running.load_s = run.record["outcome"]["wall_s"]
        if len(self.runs) == made:
            raise KeyboardInterrupt("interrupted before the run had a folder")
        return self.runs[-1]

    def _measure(self, point: Point, target: Target, max_s: float | None) -> Run:
        # 1) Make its folder. The point is recorded as it was asked for, without the budget's cut.
        server = None if isinstance(target, _URLS) else target
        plan = replace(point, max_s=max_s).plan(target)
        warn_of_lost_connections(plan.arrivals, server_spec(target))
        folder = self._create(point, plan, plan.shown_url, server_spec(target))

        # 2) Send the load, and watch the server's process; that of a bare URL is unknown
        device = folder.record["spec"]["target"]["device"]
        sampler = telemetry.Sampler(os.getpid() if server is None else server.pid, device=device)
        graphs_before = 0 if server is None else server.graphs_made
        status = "failed"
        outcome: LoadOutcome | None = None
        error: str | None = None
        try:
            if server is not None:
                sampler.start()
            outcome = self._send(plan, folder, sampler)
            status = "finished"
        except KeyboardInterrupt as interrupt:
            status = "interrupted"
            if isinstance(interrupt, LoadInterrupted):
                outcome = interrupt.outcome
            # Python ends a script with status 130 for KeyboardInterrupt itself, not for a subclass.
            raise KeyboardInterrupt(*interrupt.args) from None
        except BaseException as failure:
            error = f"{type(failure).__name__}: {failure}"
            raise

        # 3) Keep what the run left.
        finally:
            sampler.stop()
            figures = None if outcome is None else asdict(outcome)
            if figures and server is not None:
                figures["graphs_made"] = server.graphs_made - graphs_before
            run = self.keep(folder, status, figures, sampler.frame, error)
        return run

    def _send(self, plan: LoadPlan, folder: RunFolder, sampler: telemetry.Sampler) -> LoadOutcome:
        def on_start(started_monotonic_s: float, child_pid: int) -> None:
            sampler.zero_s = started_monotonic_s
            sampler.watch_generator(child_pid)

        given = self.on_progress
        with nullcontext(given) if given else progress_shown(sampler) as show:
            return generate_load(plan, folder.rows_path, on_start=on_start, on_progress=show)

    def fail(self, point: Point, error: str | None) -> None:
        """Keeps a run that says why `point` was not measured: its model or server did not start."""
        folder = self._create(point, point.plan("http://none"), None, {**point.load, **point.serve})
        self.keep(folder, "failed", None, telemetry.Sampler(os.getpid()).frame, error)

    def _create(
        self, point: Point, plan: LoadPlan, url: str | None, target_spec: Mapping[str, Any]
    ) -> RunFolder:
        spec = plan.to_dict() | {"label": point.label, "most_failed": point.most_failed}
        del spec["url"]
        targets = introduced(plan.addresses, plan.headers, verify=plan.verify)
        return self.create(spec, target_spec, url, point=point.to_dict(), **targets)

    def create(
        self,
        spec: Mapping[str, Any],
        target_spec: Mapping[str, Any],
        url: str | None = None,
        **more: Any,
    ) -> RunFolder:
        """The folder of a new run; its record holds both specs, the machine, and `more`."""
        conditions = machine.describe_load()
        said_before = self.runs and self.runs[-1].record["conditions"]["warning"]
        if conditions["warning"] and not said_before:
            print_line(conditions["warning"])
        target = {"url": url} | {name: target_spec.get(name) for name in TARGET_FIELDS}
        record = {
            "spec": {**spec, "target": target},
            **more,
            "conditions": conditions,
            "machine": machine.describe_machine(target["device"]),
            "torch": on_torch_thread(machine.describe_torch) if target_spec else None,
            "packages": machine.describe_packages(),
            "git": machine.describe_git(Path(__file__).parent),
        }
        return create_run(self.folder.parent, self.folder.name, record)

    def keep(
        self, folder: RunFolder, status: str, outcome: Any, samples: pd.DataFrame, error: str | None
    ) -> Run:
        """Ends the run in `folder` and writes its row of the study's summary."""
        run = folder.finish(status, outcome, samples, error)
        self.runs.append(run)
        renew_summary(self.folder, [run])
        return run


@contextmanager
def writing(
    results: str | os.PathLike[str] | None,
    study: str,
    on_progress: Callable[[Progress], None] | None,
) -> Iterator[Writer]:
    """The writer of a study. Raises RuntimeError where another process writes it."""
    with lock_study(results_dir(results), study) as folder:
        yield Writer(folder, on_progress)
