"""Measures many points, each as often as asked: the order, the budget, what is done already, and the servers.

Knows the plan of a sweep. Ignorant of how one run is made and kept (bench.py).
"""

from __future__ import annotations

import gc
import json
import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing, nullcontext
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from benchlib.load.bounds import check_number
from benchlib.load.runner import GeneratorError, Progress
from benchlib.run import Point, so_far, writing
from benchlib.study.store import Run, Study, check_names, results_dir

if TYPE_CHECKING:
    from benchlib.serving.server import Server

LOADED_SHARE = 0.75  # of a budget's time; the rest is for starting, loading and the last answers


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
    """Measure every point `repeat` times and return a `Study` of just these runs, in the order in which they began.

    A plan is printed first, and with `dry_run` that is all; then the runs are those that need not be made again.

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
        stored = so_far(results_dir(results) / study)
        _, done = _todo(asked, stored, resume)
        return Study(stored.path, tuple(done))
    with writing(results, study, on_progress) as writer:
        earlier = len(writer.runs)
        todo, done = _todo(asked, writer.study, resume)
        end_s = math.inf if budget_min is None else time.monotonic() + 60 * budget_min
        with closing(_served(todo)) as served:
            for number, (point, target, error) in enumerate(served, 1):
                if time.monotonic() + _least_s(point) > end_s:
                    print(
                        f"the budget is spent and {len(todo) - number + 1} runs are left: sweep again to go on"
                    )
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
    return Study(writer.folder, (*done, *writer.runs[earlier:]))


def _runs_asked(
    points: Iterable[Point | Mapping[str, Any]], repeat: int, budget_min: float | None
) -> list[Point]:
    """Every run of a sweep, in the order in which it is made, checked."""
    check_number("repeat", repeat, 1, whole=True)
    given, asked, seen = list(points), list[Point](), list[dict[str, Any]]()
    if not given:
        raise ValueError("points is empty: give at least one")
    if budget_min is not None:
        check_number("budget_min", budget_min, 0, above=True)
    for number, fields in enumerate(given):
        try:
            point = fields if isinstance(fields, Point) else Point(**fields)
        except TypeError as error:
            raise ValueError(
                f"points[{number}] takes {', '.join(Point.__dataclass_fields__)}: {error}"
            ) from error
        try:
            if budget_min is not None and point.duration_s is None and point.requests is None:
                share_s = LOADED_SHARE * 60 * budget_min / (len(given) * repeat)
                point = replace(point, duration_s=share_s - point.warmup_s)
            if not (isinstance(point.load, Mapping) and isinstance(point.serve, Mapping)):
                raise ValueError('load and serve must be dicts, such as load={"model": "tiny"}')
            point.plan("http://localhost" if point.target is None else point.target)
            if point.target is not None and (point.load or point.serve):
                raise ValueError("target is up already: give load and serve only without it")
            plain = point.to_dict()
        except (TypeError, ValueError) as error:
            raise ValueError(f"points[{number}]: {error}") from error
        if plain in seen:
            raise ValueError(
                f"points[{number}] is points[{seen.index(plain)}] again: give each a label of its own"
            )
        asked.append(point)
        seen.append(plain)
    models = [(point.target, point.load) for point in asked]
    asked.sort(key=lambda point: models.index((point.target, point.load)))
    rounds = [
        [replace(point, seed=point.seed + number) for point in asked] for number in range(repeat)
    ]
    return [
        point
        for number, one in enumerate(rounds)
        for point in (one if number % 2 == 0 else reversed(one))
    ]


def _served(points: list[Point]) -> Generator[tuple[Point, Server | str | None, str | None]]:
    """Each point with what it is measured on, or None and the error that kept it from starting."""
    for (target, load), same_model in groupby(points, key=lambda point: (point.target, point.load)):
        if target is not None:
            yield from ((point, target, None) for point in same_model)
            continue
        import torch

        from benchlib.serving.model.pipeline import load_pipeline
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


def _todo(asked: list[Point], stored: Study, resume: bool) -> tuple[list[Point], list[Run]]:
    """The runs that are still to be made, and those that are done; prints the plan, and which percentiles its runs
    can carry. Of several finished runs of the very same words the last one counts."""
    finished = [
        run for run in stored.runs if run.record["status"] == "finished" and "point" in run.record
    ]
    points = [point.to_dict() for point in asked]
    last = {json.dumps(run.record["point"], sort_keys=True): run for run in finished}
    done = [run for run in last.values() if resume and run.record["point"] in points]
    done.sort(key=lambda run: str(run.record["started_at"]))
    done_points = [run.record["point"] for run in done]
    todo = [point for point, plain in zip(asked, points, strict=True) if plain not in done_points]
    cases: dict[str, Point] = {}
    for point in asked:
        cases.setdefault(_case(point.to_dict()), point)
    print(
        f"study {stored.path.name}: {len(cases)} points, {len(asked)} runs, {len(asked) - len(todo)} of them done; "
        f"the rest take at least {sum(map(_least_s, todo)) / 60:.1f} minutes"
    )
    images_per_s = {
        _case(run.record["point"]): run.summary()["throughput_images_per_s"] for run in finished
    }
    for case, point in cases.items():
        print(
            f"  {_name(point)}: {_carried(_requests_expected(point, images_per_s.get(case)))}",
            flush=True,
        )
    return todo, done


def _least_s(point: Point) -> float:
    return point.warmup_s + (point.duration_s or 0.0)


def _case(point: dict[str, Any]) -> str:
    """A point whatever its seed."""
    return json.dumps({**point, "seed": None}, sort_keys=True)


def _name(point: Point) -> str:
    words = check_names("study", {"label": point.label, "arrivals": point.arrivals.to_dict()})
    return ", ".join(
        [words, *(f"{key}={value}" for key, value in {**point.load, **point.serve}.items())]
    )


def _requests_expected(point: Point, images_per_s: float | None) -> int | None:
    """How many requests a run of `point` measures: those of a schedule are counted, a closed loop's are as before."""
    counts = [point.plan("http://localhost").requests]  # a trace has its own
    if point.duration_s is not None:
        try:
            due_s = point.arrivals.schedule(point.warmup_s + point.duration_s, point.seed)
            counts.append(sum(moment_s >= point.warmup_s for moment_s in due_s))
        except ValueError:  # a closed loop has no schedule
            counts.append(None if images_per_s is None else int(images_per_s * point.duration_s))
    return min((number for number in counts if number is not None), default=None)


def _carried(requests: int | None) -> str:
    from benchlib.study.intervals import Estimates
    from benchlib.study.latency import carried_percentiles

    if requests is None:
        return "its first run will tell how many requests it gets, and so which percentiles"
    carried = [  # of no values is asked what independent ones need: at best
        f"p{100 * q:g}" + ("" if Estimates(()).rows_needed(q) <= requests else " without interval")
        for q in carried_percentiles(requests)
    ]
    return f"some {requests} requests a run carry at best {', '.join(carried) or 'no percentile'}"
