"""Finds the lane that explains a run: what work costs under load, and what it costs besides.

    lane, replays = fit_lane(runs)

Knows runs, step times and lanes. Ignorant of what is foretold with a lane (estimates.py), and of
which misfit is too much (study/misfit.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchlib.queueing.gaps import fit_gap, joined
from benchlib.queueing.given import check_one_card
from benchlib.queueing.lanes import BatchLane, Lane, SerialLane
from benchlib.queueing.unet_work import images_of, with_unet_work
from benchlib.queueing.work import AskedWork, Integers, Size, population, sizes_of, work_of
from benchlib.serving.engine.compiled import cost_tables, lindley
from benchlib.study.misfit import LEAST_SERIES
from benchlib.study.services import (
    Floats,
    are_timed,
    as_floats,
    one_lane_services,
    with_filled_times,
)

if TYPE_CHECKING:
    from benchlib.serving.engine.step_times import StepTimesBySize
    from benchlib.study.store import Run

ONE_LANE = "serial"
MOST_SIMULATED = 1000
"""For longer runs permuted blocks show as much as simulated runs, and take less time."""
CLEAR_SLOPE = 3.0
MIXTURES = 20
"""So many simulations show how much less images vary than calls."""
MOST_UNMIXED = 3.0
_ALIKE = (
    "model", "unet", "vae", "scheduler", "device", "dtype", "recipe", "batching",
    "max_batch_size", "max_wait_ms", "replicas",
)  # fmt: skip

Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


@dataclass(frozen=True)
class Replay:
    """A run beside a simulation of the very same arrivals.

    `images` is the frame of `services`, with three more columns: `ratio` is the image's work beside
    the expected work, `simulated_s` and `residual_s` are the simulated latency in seconds, and the
    measured latency less the simulated one. Only the images in the measuring window are in it.
    """

    images: pd.DataFrame
    expected_rms_s: float
    """What the noise of the services would leave of the residuals, in seconds."""
    by_chance: Floats | None = None
    """Ratios of simulated runs, a row each: images that share steps share their noise.

    None where each image has the model to itself, and for a run that had no part in the fit.
    """
    residual_by_chance_s: Floats | None = None
    """Residuals of simulated runs, a row each, in seconds; None as for `by_chance`."""


@dataclass(frozen=True)
class Setting:
    """What the runs of a calibration have in common."""

    batching: str
    max_batch_size: int
    max_wait_s: float
    step_times: StepTimesBySize
    workload: Mapping[str, Any] | None
    target: Mapping[str, Any]
    is_timed: bool


def fit_lane(runs: Sequence[Run]) -> tuple[Lane, tuple[Replay, ...]]:
    """The lane that fits `runs` of one server and one workload, and a replay of each run.

    Raises ValueError where the runs differ in server or workload, or have no image.
    """
    frames = [with_filled_times(images_of(run)) for run in runs]
    _check_frames(runs, frames)
    setting = _setting(runs, frames)
    if setting.batching == ONE_LANE or not setting.is_timed:
        return _fit_serial(setting, frames)
    return _fit_batches(setting, frames)


def replay(lane: Lane, run: Run) -> Replay:
    """The replay of a run that had no part in fitting `lane`: every image takes the mean time.

    Raises ValueError for a size that the lane does not know.
    """
    images = images_of(run)
    unknown = sorted(set(sizes_of([images])) - set(lane.sizes))
    if unknown:
        raise ValueError(f"run: its size {unknown[0]} was not calibrated; calibrate with this run")
    work = work_of(images, lane.sizes)
    mean_ratio = float(lane.ratios.mean())
    if isinstance(lane, SerialLane):
        service_s = mean_ratio * lane.cost(work)
        simulate = _serial_in_lane_s(images, service_s, lane.calls_of(work))
    else:
        factors = np.full(len(images), mean_ratio)
        simulate = _batch_in_lane_s(lane, images, work, factors)
    unknown_ratio = np.full(len(images), math.nan)
    return _replay(images, unknown_ratio, simulate(lane.gap_s), lane)


# ---- what the runs have in common


def _setting(runs: Sequence[Run], frames: Sequence[pd.DataFrame]) -> Setting:
    from benchlib.serving.engine.step_times import StepTimesBySize

    first = runs[0].spec
    target = first.get("target") or {}
    for run in runs[1:]:
        other = run.spec.get("target") or {}
        differing = [name for name in _ALIKE if other.get(name) != target.get(name)]
        if differing:
            raise ValueError(f"runs: their servers differ in {differing[0]}; calibrate them apart")
        if _mix(run.spec.get("workload")) != _mix(first.get("workload")):
            raise ValueError("runs: their workloads differ; calibrate them apart")
    check_one_card("runs", target)
    wait_ms = target.get("max_wait_ms") or 0.0
    step_times = target.get("step_times") or {}
    is_timed = all(are_timed(images) for images in frames)
    return Setting(
        batching=target.get("batching") or ONE_LANE,
        max_batch_size=target.get("max_batch_size") or 1,
        max_wait_s=wait_ms / 1000,
        step_times=StepTimesBySize.from_spec(step_times),
        workload=first.get("workload"),
        target=target,
        is_timed=is_timed,
    )


def _check_frames(runs: Sequence[Run], frames: Sequence[pd.DataFrame]) -> None:
    """Raises ValueError where runs have nothing to calibrate by, or times that can't be."""
    # 1) Enough, and nothing twice
    if not runs:
        raise ValueError("runs is empty: give at least one run")
    if not any(len(images) for images in frames):
        raise ValueError("runs: none of them has an image, so there is nothing to calibrate by")
    if not any(_is_measured(images).any() for images in frames):
        raise ValueError("runs: all of their images are of warm-up; give a run that measured")
    for place, run in enumerate(runs):
        if any(run.requests.equals(earlier.requests) for earlier in runs[:place]):
            raise ValueError(f"runs: the run at place {place} is given twice; give it once")

    # 2) Times and batches that can be
    for images in frames:
        for name in ("scheduled_s", "done_s", "latency_s"):
            if not np.isfinite(as_floats(images[name])).all():
                raise ValueError(f"runs: {name} of an image is not a number; leave its row out")
        work_s = as_floats(images["work_s"].dropna())
        if not (np.isfinite(work_s) & (work_s > 0)).all():
            raise ValueError("runs: encode_s, denoise_s and decode_s of an image must be above 0")
        if (images["num_inference_steps"] < 1).any():
            raise ValueError("runs: num_inference_steps of an image must be 1 or more")


def _mix(workload: Mapping[str, Any] | None) -> dict[str, Any]:
    """What requests ask for, whatever the order in which they do."""
    return {name: value for name, value in (workload or {}).items() if name != "seed"}


# ---- one request at a time


def _fit_serial(
    setting: Setting, frames: Sequence[pd.DataFrame]
) -> tuple[SerialLane, tuple[Replay, ...]]:
    # 1) What each image took, and what was expected of it
    sizes = sizes_of(frames)
    together = pd.concat(frames, ignore_index=True)
    measured_s = _own_services_s(setting, together)
    known = np.isfinite(measured_s)
    own = work_of(together, sizes)
    cost = _linear_cost(own, measured_s, known)
    ratio = measured_s / cost(own)

    # 2) What the lane loses between two calls
    asked = population(setting.workload, own, sizes, setting.target)
    mean_calls = float(asked.calls.mean())
    filled = np.where(known, ratio, np.nanmean(ratio))
    service_s = _by_run(filled * cost(own), frames)
    calls = _by_run(own.calls / mean_calls, frames)
    in_lane = []
    gaps = []
    for images, seconds, of_images in zip(frames, service_s, calls, strict=True):
        in_lane_s = _serial_in_lane_s(images, seconds, of_images)
        in_lane.append(in_lane_s)
        gaps.append(fit_gap(in_lane_s, images, setting.is_timed))
    gap = joined(gaps, frames)

    # 3) The lane, and its replays with each image's own service
    counts = known & _is_measured(together)
    expected_s = cost(asked)
    ascending = np.argsort(expected_s, kind="stable")
    lane = SerialLane(
        expected_s=expected_s[ascending],
        calls=asked.calls[ascending] / mean_calls,
        mean_calls=mean_calls,
        ratios=np.sort(ratio[counts]),
        gap_s=gap.gap_s,
        gap_error_s=gap.error_s,
        after_s=np.sort(gap.after_s),
        cost=cost,
        sizes=tuple(sizes),
    )
    if not own.is_equal:
        asked = asked.take(ascending)
        refit = partial(_with_cost_fitted_anew, own=own.take(np.flatnonzero(counts)), asked=asked)
        lane = replace(lane, refit=refit)
    replays = []
    for images, ratios, in_lane_s in zip(frames, _by_run(ratio, frames), in_lane, strict=True):
        simulated_s = in_lane_s(gap.gap_s)
        replays.append(_replay(images, ratios, simulated_s, lane))
    return lane, tuple(replays)


def _own_services_s(setting: Setting, images: pd.DataFrame) -> Floats:
    """Seconds of each service; NaN where it is not known."""
    if setting.is_timed:
        return as_floats(images["work_s"])
    return as_floats(one_lane_services(images))


def _linear_cost(
    work: AskedWork, measured_s: Floats, known: Bools
) -> Callable[[AskedWork], Floats]:
    """A function from work to expected seconds: a constant, and a cost for each step, by size.

    It is the least squares of the known services. Equal work simply has the mean.
    """
    known_s = measured_s[known]
    if work.is_equal:
        mean_s = float(known_s.mean())
        return lambda asked: np.full(len(asked), mean_s)
    shapes = np.stack([work.size, work.rows], axis=1)
    different = np.unique(shapes, axis=0)

    def terms(asked: AskedWork) -> Floats:
        columns = [np.ones(len(asked))]
        for size, rows in different:
            is_shape = (asked.size == size) & (asked.rows == rows)
            steps = np.where(is_shape, asked.steps, 0)
            columns.append(steps.astype(float))
        return np.stack(columns, axis=1)

    fit = np.linalg.lstsq(terms(work)[known], known_s, rcond=None)
    coefficients = fit[0]
    least_s = 0.5 * float(known_s.min())  # a fitted line may fall below 0 at few steps
    return lambda asked: np.maximum(terms(asked) @ coefficients, least_s)


def _with_cost_fitted_anew(
    lane: SerialLane, random: np.random.Generator, *, own: AskedWork, asked: AskedWork
) -> SerialLane:
    """The lane of another run with the same requests `own`, whose services are other ones.

    The requests keep their work and get the ratios of others, drawn with replacement. Source: the
    bootstrap of residuals, Efron, "Bootstrap methods: another look at the jackknife", Annals of
    Statistics 7 (1979).
    """
    drawn = random.choice(lane.ratios, len(own))
    measured_s = lane.cost(own) * drawn
    is_known = np.ones(len(own), dtype=bool)
    cost = _linear_cost(own, measured_s, is_known)
    ratios = np.sort(measured_s / cost(own))
    return replace(lane, expected_s=cost(asked), ratios=ratios, cost=cost)


def _serial_in_lane_s(
    images: pd.DataFrame, service_s: Floats, calls: Floats
) -> Callable[[float], Floats]:
    """A function from a gap to the seconds of each image from its sending to its end in the lane.

    `calls` are those of each image beside the mean, and so are its gaps.
    """
    sent_s = as_floats(images["sent_s"])
    return lambda gap_s: lindley(sent_s, service_s + gap_s * calls) - sent_s


# ---- requests that share steps


def _fit_batches(
    setting: Setting, frames: Sequence[pd.DataFrame]
) -> tuple[BatchLane, tuple[Replay, ...]]:
    # 1) The step times that the server planned with
    sizes = sizes_of(frames)
    missing = sorted(set(sizes) - setting.step_times.keys())
    if missing:
        raise ValueError(
            f"runs: their server has no step times of {missing} pixels; serve(sizes=...) measures them"
        )
    curves = [setting.step_times[size] for size in sizes]
    planned = cost_tables(curves, setting.max_batch_size)
    together = pd.concat(frames, ignore_index=True)
    own = work_of(together, sizes)

    # 2) What steps, encoding and decoding took under load, beside that
    denoise_s = as_floats(together["denoise_s"])
    if not (denoise_s > 0).all():
        raise ValueError("runs: denoise_s of an image must be above 0")
    if together["batch_size"].isna().any():
        raise ValueError("runs: batch_size of an image is missing; leave its row out")
    planned_s = _expected_denoise_s(planned.step_s, setting, frames, sizes)
    _, places = planned.step_s.shape
    step = _ratio_by_rows(together, own, denoise_s / planned_s, places)
    members = np.ones(len(own), dtype=np.int64)
    if setting.batching == "dynamic":
        in_batch = [_members(images) for images in frames]
        members = np.minimum(np.concatenate(in_batch), setting.max_batch_size)
    actual_s = _expected_denoise_s(planned.step_s * step, setting, frames, sizes)
    ratio = denoise_s / actual_s
    encode_s = ratio * planned.encode_s[own.size, members]
    decode_s = ratio * planned.decode_s[own.size, members]
    encode_ratio = together["encode_s"] / encode_s
    decode_ratio = together["decode_s"] / decode_s
    actual = planned.scaled(
        encode=float(np.nanmedian(encode_ratio)),
        step=step,
        decode=float(np.nanmedian(decode_ratio)),
    )

    # 3) What the lane loses at each call
    counts = _is_measured(together) & np.isfinite(ratio)
    lane = BatchLane(
        batching=setting.batching,
        max_batch_size=setting.max_batch_size,
        max_wait_s=setting.max_wait_s,
        planned=planned,
        actual=actual,
        work=population(setting.workload, own, sizes, setting.target),
        ratios=np.sort(ratio[counts]),
        gap_s=0.0,
        gap_error_s=0.0,
        after_s=np.zeros(1),
        sizes=tuple(sizes),
    )
    ratios = _by_run(ratio, frames)
    in_lane = []
    gaps = []
    for images, of_images in zip(frames, ratios, strict=True):
        is_known = np.isfinite(of_images)
        factors = np.where(is_known, of_images, lane.ratios.mean())
        work = work_of(images, sizes)
        in_lane_s = _batch_in_lane_s(lane, images, work, factors)
        in_lane.append(in_lane_s)
        gaps.append(fit_gap(in_lane_s, images, is_timed=True))
    gap = joined(gaps, frames)
    lane = replace(lane, gap_s=gap.gap_s, gap_error_s=gap.error_s, after_s=np.sort(gap.after_s))

    # 4) The replays, with each image's own ratio
    if np.isfinite(ratio).any():
        lane = replace(lane, ratios=_unmixed(lane, frames))
    replays = []
    for images, of_images, in_lane_s in zip(frames, ratios, in_lane, strict=True):
        simulated_s = in_lane_s(gap.gap_s)
        replays.append(_replay(images, of_images, simulated_s, lane))
    return lane, tuple(replays)


def _expected_denoise_s(
    step_s: Floats, setting: Setting, frames: Sequence[pd.DataFrame], sizes: Sequence[Size]
) -> Floats:
    """Seconds that the steps of each image of all runs should take, by a table of step times.

    A dynamic batch is known: its members begin together, and each step has those with steps left.
    Otherwise every step counts as one of the image's mean batch.
    """
    expected_s = []
    for images in frames:
        work = work_of(images, sizes)
        if setting.batching == "dynamic":
            expected_s.append(_of_dynamic_batches(step_s, work, _batch_numbers(images)))
        else:
            batch = as_floats(images["batch_size"])
            expected_s.append(work.steps * _step_s(step_s, work, batch))
    return np.concatenate(expected_s)


def _of_dynamic_batches(step_s: Floats, work: AskedWork, batch: Integers) -> Floats:
    """Seconds of each image's steps; `batch` is the number of its batch, from 0."""
    # 1) Batch by batch, those with the fewest steps first
    order = np.lexsort((work.steps, batch))
    steps = work.steps[order]
    rows = work.rows[order]
    is_first = np.diff(batch[order], prepend=-1) != 0
    number = np.cumsum(is_first) - 1
    first = np.flatnonzero(is_first)

    # 2) The steps since the one before it left, and the rows that took them
    since = np.diff(steps, prepend=0)
    since[first] = steps[first]
    all_rows = np.bincount(number, weights=rows)
    before = np.cumsum(rows) - rows
    first_before = before[first]
    left = before - first_before[number]
    rows_now = all_rows[number] - left
    _, places = step_s.shape
    rows_now = np.minimum(rows_now, places - 1).astype(np.int64)
    sizes = work.size[order]
    size = sizes[first][number]
    seconds = since * step_s[size, rows_now]

    # 3) Until each one's last step
    until_s = np.cumsum(seconds)
    before_s = until_s - seconds
    begun_s = before_s[first][number]
    expected_s = np.empty(len(work))
    expected_s[order] = until_s - begun_s
    return expected_s


def _batch_numbers(images: pd.DataFrame) -> Integers:
    """The number of each image's batch: images of one batch began within half of a shortest image."""
    begun_s = as_floats(images["sent_s"] + images["queue_s"])
    order = np.argsort(begun_s, kind="stable")
    apart_s = 0.5 * float(images["work_s"].min())
    is_first = np.diff(begun_s[order], prepend=-math.inf) > apart_s
    numbers = np.empty(len(images), dtype=np.int64)
    numbers[order] = np.cumsum(is_first) - 1
    return numbers


def _unmixed(lane: BatchLane, frames: Sequence[pd.DataFrame]) -> Floats:
    """The lane's ratios, spread so far that simulated images vary as the measured ones do.

    A call takes the relative duration of its first request. An image takes part in calls of several,
    so that its own ratio is a mean, and varies less.
    """
    longest = max(frames, key=len)
    simulated = _simulate_noise(lane, longest, MIXTURES).ratio
    spread = float(simulated.std())
    if not spread:
        return lane.ratios
    mean = float(lane.ratios.mean())
    times = float(lane.ratios.std()) / spread
    times = min(max(times, 1.0), MOST_UNMIXED)
    spread_out = mean + times * (lane.ratios - mean)
    least = 0.2 * mean
    return np.maximum(spread_out, least)


def _members(images: pd.DataFrame) -> Integers:
    """How many images began together with each one, itself included."""
    batch = _batch_numbers(images)
    members: Integers = np.bincount(batch)[batch]
    return members


def _step_s(step_s: Floats, work: AskedWork, batch: Floats) -> Floats:
    """Seconds of a step of each request in its mean batch, all members being like itself.

    A mean batch of 1.3 comes from steps alone and steps of two. So the line is drawn between whole
    requests: between whole rows it would pass through batches that padding makes as long as larger
    ones.
    """
    most = step_s.shape[1] - 1
    fewer = np.floor(batch)
    more = np.ceil(batch)
    fewer_rows = np.clip(fewer * work.rows, 1, most).astype(np.int64)
    more_rows = np.clip(more * work.rows, 1, most).astype(np.int64)
    fewer_s = step_s[work.size, fewer_rows]
    more_s = step_s[work.size, more_rows]
    share = batch - fewer
    interpolated: Floats = fewer_s + share * (more_s - fewer_s)
    return interpolated


def _ratio_by_rows(images: pd.DataFrame, work: AskedWork, ratio: Floats, places: int) -> Floats:
    """The ratio of a step under load to the planned step, for each number of rows from 0.

    The step times of the server say how the cost of a step grows with its rows, and the ratio is
    the same for all, unless the run shows otherwise: by CLEAR_SLOPE standard errors. Then it is a
    straight line by least squares, weighted by steps, as far as batches were seen, and constant
    beyond.
    """
    # 1) Whether a line shows
    rows = as_floats(images["batch_size"]) * work.rows
    is_known = np.isfinite(ratio) & np.isfinite(rows)
    rows = rows[is_known]
    ratio = ratio[is_known]
    steps = work.steps[is_known].astype(float)
    mean = float(np.average(ratio, weights=steps))
    low, high = np.quantile(rows, [0.02, 0.98])
    if high - low < 1:
        return np.full(places, mean)
    slope, intercept = np.polyfit(rows, ratio, 1, w=np.sqrt(steps))
    left = ratio - intercept - slope * rows
    mean_batch = float(images["batch_size"].mean())
    alike = max(1.0, mean_batch)  # images of one batch share their noise
    freedom = max(1.0, len(rows) / alike - 2)
    variance = float(np.mean(left**2)) / freedom
    error = math.sqrt(variance) / float(rows.std())
    if abs(slope) < CLEAR_SLOPE * error:
        return np.full(places, mean)

    # 2) A line within it
    place = np.arange(places, dtype=float)
    within = np.clip(place, low, high)
    line: Floats = intercept + slope * within
    return np.clip(line, 0.5 * mean, 2 * mean)


def _batch_in_lane_s(
    lane: BatchLane, images: pd.DataFrame, work: AskedWork, factors: Floats
) -> Callable[[float], Floats]:
    """A function from a gap to the seconds of each image from its sending to its end in the lane.

    `factors` are the images' relative durations.
    """
    sent_s = as_floats(images["sent_s"])

    def in_lane_s(gap_s: float) -> Floats:
        simulated = replace(lane, gap_s=gap_s).simulate(sent_s, work, factors)
        seconds: Floats = simulated.done_s - sent_s
        return seconds

    return in_lane_s


# ---- all runs together, and each by itself


def _is_measured(images: pd.DataFrame) -> Bools:
    phase = images["phase"].to_numpy()
    is_measured: Bools = phase == "measure"
    return is_measured


def _by_run(values: Floats, frames: Sequence[pd.DataFrame]) -> list[Floats]:
    """The values of all runs' images, run by run."""
    lengths = [len(images) for images in frames]
    ends = np.cumsum(lengths)
    return np.split(values, ends[:-1])


# ---- the replay


def _replay(images: pd.DataFrame, ratio: Floats, in_lane_s: Floats, lane: Lane) -> Replay:
    # 1) The latencies
    held_s = as_floats(images["sent_s"] - images["scheduled_s"])
    simulated_s = held_s + in_lane_s + float(lane.after_s.mean())
    measured_s = as_floats(images["latency_s"])
    columns = {"ratio": ratio, "simulated_s": simulated_s, "residual_s": measured_s - simulated_s}
    replayed = images.assign(**columns)

    # 2) What chance alone would do
    is_counted = _is_measured(images)
    expected_s = float(lane.after_s.std())
    by_chance = residual_by_chance_s = None
    if isinstance(lane, BatchLane):
        many = len(images) <= MOST_SIMULATED
        noise = _simulate_noise(lane, images, LEAST_SERIES if many else 8)
        moved_s = noise.in_lane_s - in_lane_s
        expected_s = math.hypot(expected_s, float(np.sqrt(np.mean(moved_s**2))))
        if np.isfinite(ratio).any() and many:
            by_chance = noise.ratio[:, is_counted]
            after_s = np.random.default_rng(1).choice(lane.after_s, moved_s.shape)
            of_chance_s = moved_s + after_s - lane.after_s.mean()
            residual_by_chance_s = of_chance_s[:, is_counted]
    return Replay(replayed[is_counted], expected_s, by_chance, residual_by_chance_s)


@dataclass(frozen=True)
class _Noise:
    """Simulations of a run's arrivals, a row each, with its ratios dealt out by chance."""

    in_lane_s: Floats
    ratio: Floats


def _simulate_noise(lane: BatchLane, images: pd.DataFrame, series: int) -> _Noise:
    work = work_of(images, lane.sizes)
    sent_s = as_floats(images["sent_s"])
    random = np.random.default_rng(0)
    in_lane_s = []
    ratios = []
    for _ in range(series):
        dealt = random.choice(lane.ratios, len(images))
        done = lane.simulate(sent_s, work, dealt)
        in_lane_s.append(done.done_s - sent_s)
        if lane.batching == "dynamic":
            _, batch = np.unique(done.begun_s, return_inverse=True)
            expected_s = _of_dynamic_batches(lane.actual.step_s, work, batch)
        else:
            expected_s = work.steps * _step_s(lane.actual.step_s, work, done.batch_size)
        ratios.append(done.denoise_s / expected_s)
    return _Noise(np.array(in_lane_s), np.array(ratios))


def lane_alone(
    spec: Mapping[str, Any], image_s: Sequence[float], workload: Mapping[str, Any] | None = None
) -> Lane:
    """The lane of a server without load, from its spec and the seconds of images made alone.

    The images have the model's own size, steps and guidance, or those of `workload` where these are
    single values.
    """
    from benchlib.serving.engine.step_times import StepTimesBySize

    seconds = np.asarray(image_s, dtype=float)
    ratios = np.sort(seconds / seconds.mean())
    nothing = np.zeros(1)
    if spec["batching"] == ONE_LANE:
        mean_s = np.array([seconds.mean()])
        return SerialLane(
            expected_s=mean_s,
            calls=np.ones(1),
            mean_calls=1.0,
            ratios=ratios,
            gap_s=0.0,
            gap_error_s=0.0,
            after_s=nothing,
            cost=lambda asked: np.full(len(asked), seconds.mean()),
            sizes=(),
        )

    # 1) The work of one image
    given = {
        name: value
        for name, value in (workload or {}).items()
        if isinstance(value, int | float | str)
    }
    fields = spec["showcase"] | given
    size = int(fields["width"]), int(fields["height"])
    asked = with_unet_work(pd.DataFrame([fields]), spec)
    step_times = StepTimesBySize.from_spec(spec["step_times"])

    # 2) Tables that make it take as long as the images did
    planned = cost_tables([step_times[size]], spec["max_batch_size"])
    lane = BatchLane(
        batching=spec["batching"],
        max_batch_size=spec["max_batch_size"],
        max_wait_s=spec["max_wait_ms"] / 1000,
        planned=planned,
        actual=planned,
        work=work_of(asked, [size]),
        ratios=ratios,
        gap_s=0.0,
        gap_error_s=0.0,
        after_s=nothing,
        sizes=(size,),
    )
    k = float(seconds.mean()) / lane.service_s
    return replace(lane, actual=planned.scaled(encode=k, step=k, decode=k))
