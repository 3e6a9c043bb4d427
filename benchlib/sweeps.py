"""Measures many points, each several times: order, budget, existing runs, and servers.

    points = [Point(ClosedLoop(n), target=server, requests=200) for n in (1, 2, 4)]
    study = sweep(points, study="load")

Knows the plan of a sweep. Ignorant of how one run is made and kept (run.py).
"""

from __future__ import annotations

import gc
import json
import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchlib.budget import RUN_COST, Budget, budget_of_cell
from benchlib.load.bounds import check_number
from benchlib.load.runner import GeneratorError, Progress
from benchlib.printing import print_line
from benchlib.run import Point, Writer, writing
from benchlib.study.folders import check_names, results_dir, run_words
from benchlib.study.store import Run, Study, load_run, read_records
from benchlib.study.summary_table import renew_summary
from benchlib.study.wording import agreeing, counted

if TYPE_CHECKING:
    from benchlib.serving.server import Server

LOADED_SHARE = 0.75  # of a budget's time; the rest is for starting, loading and the last answers


def sweep(
    points: Iterable[Point | Mapping[str, Any]],
    *,
    study: str,
    repeat: int = 1,
    budget_min: float | None = None,
    budget: Budget | None = None,
    resume: bool = True,
    invalid_again: bool = False,
    dry_run: bool = False,
    results: str | os.PathLike[str] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Study:
    """Measure every point `repeat` times and return a `Study` of just these runs, oldest first.

    A point is a `Point`, or a dict of its fields. All points are measured once, then again in the
    opposite order, and so on: drift then hits all points alike. Points of one model are neighbours,
    and a model is loaded only where `load` changes. Each round has a seed of its own. A point that
    fails leaves a run marked "failed" with its error, and the sweep goes on.

    `budget_min` minutes are shared among the runs. A point without `duration_s` and `requests` gets
    its part of LOADED_SHARE of the budget, less its warm-up. A run does not begin if the time left
    is too short for it.

    A `budget` of several cells is kept, too: no run begins that is longer than what is left of it.
    With a budget, and in a notebook, an interrupt ends the sweep, and the runs made so far are
    returned. The last one has the status "interrupted".

    With `resume`, a finished run is not made again if it was requested in exactly the same words.
    The newest such run is returned, so a second call goes on where the first one ended. With
    `invalid_again`, a finished run that is invalid is made again, too. Both are kept. The plan is
    printed first. With `dry_run` nothing is measured, and only the finished runs are returned.

    Raises ValueError, before anything is measured, for a bad point; RuntimeError where another
    process writes the study.
    """
    requested = _requested_runs(points, repeat, budget_min)
    for point in requested:
        check_names(study, point.to_dict())
    if dry_run:
        folder = results_dir(results) / study
        plan = _make_plan(requested, folder, resume, invalid_again)
        return Study(folder, tuple(plan.done))
    if budget is None:
        budget = budget_of_cell(results)
    with writing(results, study, on_progress) as writer:
        plan = _make_plan(requested, writer.folder, resume, invalid_again)
        # A model may be loading when the interrupt comes.
        with nullcontext() if budget is None else budget.measuring(f"study {study}"):
            _make_runs(plan.todo, writer, budget_min, budget)
        # A process that was killed may have left a finished run without a row.
        renew_summary(writer.folder)
    return Study(writer.folder, (*plan.done, *writer.runs))


def _make_runs(
    todo: Sequence[Point], writer: Writer, budget_min: float | None, budget: Budget | None
) -> None:
    """Makes the runs `todo`, until a budget is spent or interrupted."""
    end_s = math.inf if budget_min is None else time.monotonic() + 60 * budget_min
    with closing(_on_targets(todo)) as on_targets:
        for number, (point, target, error) in enumerate(on_targets, 1):
            if budget is not None and budget.interrupted:
                break
            run_s = _least_run_s(point)
            is_late = time.monotonic() + run_s > end_s
            if budget is not None and run_s + budget.cost(RUN_COST, 0.0) > budget.left_s:
                is_late = True
            if is_late:
                left = len(todo) - number + 1
                are_left = f"{counted(left, 'run')} {agreeing(left, 'is', 'are')} left"
                print_line(f"the budget is spent and {are_left}: sweep again to go on")
                break
            print_line(f"run {number} of {len(todo)}: {_name(point)}")
            if target is None:
                writer.fail(point, error)
            else:
                try:
                    writer.measure(point, target, budget)
                except GeneratorError as failure:
                    error = str(failure)
            if error:
                print_line(f"passed over: {error}")


# ---- which runs, in which order


def _requested_runs(
    points: Iterable[Point | Mapping[str, Any]], repeat: int, budget_min: float | None
) -> list[Point]:
    """Every run of a sweep, checked, in the order in which it is made."""
    check_number("repeat", repeat, 1, whole=True)
    given = list(points)
    if not given:
        raise ValueError("points is empty: give at least one")
    share_s = None
    if budget_min is not None:
        check_number("budget_min", budget_min, 0, above=True)
        share_s = LOADED_SHARE * 60 * budget_min / (len(given) * repeat)

    # 1) Check each point.
    checked: list[Point] = []
    seen: list[dict[str, Any]] = []
    for number, fields in enumerate(given):
        try:
            point = _checked_point(fields, share_s)
            plain = point.to_dict()
        except (TypeError, ValueError) as error:
            raise ValueError(f"points[{number}]{error}") from error
        if plain in seen:
            first = seen.index(plain)
            raise ValueError(
                f"points[{number}] is points[{first}] again: give each a label of its own"
            )
        checked.append(point)
        seen.append(plain)

    # 2) Put the points of one model together, in the order of their first ones.
    models = [_model_of(point) for point in checked]
    checked.sort(key=lambda point: models.index(_model_of(point)))

    # 3) Repeat the points, every second time in the opposite order.
    runs: list[Point] = []
    for number in range(repeat):
        one_round = [replace(point, seed=point.seed + number) for point in checked]
        runs += one_round if number % 2 == 0 else reversed(one_round)
    return runs


def _model_of(point: Point) -> tuple[Any, Any]:
    """The target and the model of a point: what stays when only the server's settings change."""
    return point.target, point.load


def _checked_point(fields: Point | Mapping[str, Any], share_s: float | None) -> Point:
    """The point, its duration filled in from its share of the budget.

    The words of its ValueErrors continue "points[0]".
    """
    try:
        point = fields if isinstance(fields, Point) else Point(**fields)
    except TypeError as error:
        names = ", ".join(Point.__dataclass_fields__)
        raise ValueError(f" takes {names}: {error}") from error
    try:
        if share_s is not None and point.duration_s is None and point.requests is None:
            if share_s <= point.warmup_s:
                raise ValueError(
                    f"duration_s: budget_min leaves {share_s:.3g} s for this point, "
                    f"and its warm-up takes {point.warmup_s:.3g} s: give more minutes, "
                    "fewer points or repetitions, or less warm-up"
                )
            point = replace(point, duration_s=share_s - point.warmup_s)
        if not (isinstance(point.load, Mapping) and isinstance(point.serve, Mapping)):
            raise ValueError('load and serve must be dicts, such as load={"model": "tiny"}')
        point.plan("http://localhost" if point.target is None else point.target)
        if point.target is not None and (point.load or point.serve):
            raise ValueError(
                "target is a running server: give load and serve only without a target"
            )
        point.to_dict()
    except (TypeError, ValueError) as error:
        raise ValueError(f": {error}") from error
    return point


# ---- the servers of the points


def _on_targets(
    points: Sequence[Point],
) -> Generator[tuple[Point, Server | str | None, str | None]]:
    """Each point with its server, or with None and the error that kept the server from starting."""
    for (target, load), same_model in groupby(points, key=_model_of):
        if target is not None:
            yield from ((point, target, None) for point in same_model)
            continue
        import torch

        from benchlib.serving.model.loading import load_pipeline
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


def _attempt(start: Callable[..., Any], *args: Any, **options: Any) -> tuple[Any, str | None]:
    """The result of `start` and None, or None and the error of `start` in words."""
    try:
        return start(*args, **options), None
    except Exception as error:  # noqa: BLE001 - loading raises what it likes; the error is recorded
        return None, f"{type(error).__name__}: {error}"


# ---- the plan


@dataclass(frozen=True)
class _Plan:
    """The runs to make (`todo`), and the finished runs that are kept (`done`, oldest first)."""

    todo: list[Point]
    done: list[Run]


def _make_plan(
    requested: list[Point],
    folder: Path,
    resume: bool,
    invalid_again: bool,
) -> _Plan:
    """Prints and returns the plan: the requested runs, less those finished in `folder`.

    With `invalid_again`, a finished run must be valid to be left out of the runs to make.
    """
    # 1) The newest finished run of each point, and of each case.
    by_point: dict[str, Path] = {}
    by_case: dict[str, Path] = {}
    for path, record in read_records(folder):
        if record["status"] == "finished" and "point" in record:
            by_point[_key(record["point"])] = path
            by_case[_case(record["point"])] = path

    # 2) What is done, and what is to do.
    todo: list[Point] = []
    done: list[Run] = []
    for point in requested:
        key = _key(point.to_dict())
        made = load_run(by_point[key]) if resume and key in by_point else None
        if made is None or (invalid_again and not made.summary()["valid"]):
            todo.append(point)
        else:
            done.append(made)
    done.sort(key=lambda run: str(run.record["started_at"]))

    # 3) Print the plan, and the percentiles that the runs can carry.
    cases: dict[str, Point] = {}
    for point in requested:
        cases.setdefault(_case(point.to_dict()), point)
    least_min = sum(map(_least_run_s, todo)) / 60
    points = f"{counted(len(cases), 'point')}, {counted(len(requested), 'run')}"
    print_line(
        f"study {folder.name}: {points}, "
        f"{len(done)} of them done; the rest take at least {least_min:.1f} minutes"
    )
    for case, point in cases.items():
        images_per_s = None
        if case in by_case:
            last = load_run(by_case[case])
            images_per_s = last.summary()["throughput_images_per_s"]
        expected = _requests_expected(point, images_per_s)
        print_line(f"  {_name(point)}: {_carried(expected)}")
    return _Plan(todo, done)


def _key(point: Mapping[str, Any]) -> str:
    return json.dumps(point, sort_keys=True)


def _case(point: Mapping[str, Any]) -> str:
    """The key of a point without its seed."""
    return _key({**point, "seed": None})


def _name(point: Point) -> str:
    spec = {"label": point.label, "arrivals": point.arrivals.to_dict()}
    settings = {**point.load, **point.serve}
    words = [f"{key}={value}" for key, value in settings.items()]
    return ", ".join([run_words(spec), *words])


def _least_run_s(point: Point) -> float:
    return point.warmup_s + (point.duration_s or 0.0)


def _requests_expected(point: Point, images_per_s: float | None) -> int | None:
    """The number of requests that a run of `point` measures, or None if that is unknown.

    The requests of a schedule are counted. The number for a closed loop follows from
    `images_per_s`, the throughput of its last run.
    """
    limits = [point.plan("http://localhost").requests]  # a trace has its own
    if point.duration_s is not None:
        try:
            end_s = point.warmup_s + point.duration_s
            due_s = point.arrivals.schedule(end_s, point.seed)
            limits.append(sum(moment_s >= point.warmup_s for moment_s in due_s))
        except ValueError:  # a closed loop has no schedule
            if images_per_s is not None:
                limits.append(int(images_per_s * point.duration_s))
    given = [number for number in limits if number is not None]
    return min(given, default=None)


def _carried(requests: int | None) -> str:
    """The percentiles that a run of so many requests can carry, in words."""
    from benchlib.study.intervals import Estimates
    from benchlib.study.latency import carried_percentiles

    if requests is None:
        return "its first run will show how many requests it gets, and so which percentiles"
    independent = Estimates(())  # the best case: the rows that independent values need
    firm: list[str] = []
    bare: list[str] = []
    for q in carried_percentiles(requests):
        has_interval = independent.rows_needed(q) <= requests
        (firm if has_interval else bare).append(f"p{100 * q:g}")
    carried = [", ".join(firm)] if firm else []
    if bare:
        interval = agreeing(len(bare), "an interval", "intervals")
        carried.append(f"{', '.join(bare)} without {interval}")
    support = agreeing(requests, "supports", "support")
    at_best = "; ".join(carried) or "no percentile"
    return f"about {counted(requests, 'request')} a run {support} at best {at_best}"
