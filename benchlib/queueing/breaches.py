"""What is wrong with a fitted lane: which assumption its runs break, and how far it may be off.

Knows the replays of runs, and asks misfit.py about each one. Ignorant of how a lane is fitted
(calibration.py) and of what is foretold with it (estimates.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from benchlib.queueing.calibration import Replay
from benchlib.queueing.lanes import Lane, SerialLane
from benchlib.study import misfit
from benchlib.study.intervals import Estimates
from benchlib.study.misfit import Breach
from benchlib.study.services import (
    MOST_UNTIMED,
    Floats,
    Losses,
    as_floats,
    losses,
    services,
    without_times,
)
from benchlib.study.wording import agreeing, counted

if TYPE_CHECKING:
    from benchlib.study.store import Run

LEAST_IMAGES = 20
"""Fewer services carry no estimate."""
MOST_LOST = 0.05
"""More requests that failed or waited in vain leave no estimate, as a share."""
SEED = 20_261_127


def breaches_of_runs(runs: Sequence[Run], replays: Sequence[Replay], lane: Lane) -> list[Breach]:
    """What the runs, or the replays of them by `lane`, break of the model's assumptions."""
    found = breaches_of_replays(replays, lane)
    found += _ended_early(runs)
    found += _without_image(runs)
    found += _untimed(runs)
    return found


def inflation_of(lane: Lane, replays: Sequence[Replay]) -> float:
    """How many images are worth one with noise of its own; at least 1.

    Successive services may be alike, and images of one batch share their noise.
    """
    frames = [one.images for one in replays]
    images = pd.concat(frames, ignore_index=True)
    ratio = as_floats(images["ratio"])
    is_known = np.isfinite(ratio)
    if not is_known.any():
        return 1.0
    known = ratio[is_known]
    inflation = max(len(known) / Estimates(known).effective_number(), _correlation_time(known))
    if isinstance(lane, SerialLane):
        return max(1.0, inflation)
    shared = max(inflation, float(images["batch_size"].mean()))
    of_lane = float(lane.ratios.var())
    if not of_lane:
        return shared
    return max(1.0, shared * float(known.var()) / of_lane)  # the lane's ratios may be unmixed


def _correlation_time(values: Floats) -> float:
    """How many successive values are worth one, by the correlation of neighbours; at least 1.

    It is not tested first, since a few values can't show a correlation that matters. The estimate
    from few values is too low: Marriott & Pope, "Bias in the estimation of autocorrelations",
    Biometrika 41 (1954).
    """
    n = len(values)
    centred = values - values.mean()
    square = float(centred @ centred)
    if n < 4 or not square:
        return 1.0
    r = float(centred[1:] @ centred[:-1]) / square
    r = min(r + (1 + 3 * r) / n, 0.9)
    return max(1.0, (1 + r) / (1 - r))


def mean_misfit(replays: Sequence[Replay]) -> float:
    """How far the mean latency of a replay may be off, as a share of it: the largest of the runs.

    It is the residuals' mean and two standard errors. The errors of one busy spell are alike, so a
    standard error counts them as their correlation does. What the services' noise does by chance
    alone is taken off, because the sampling error holds it.
    """
    shares = [0.0]
    for one in replays:
        residual_s = as_floats(one.images["residual_s"])
        if len(residual_s) < 2:
            continue
        effective = Estimates(residual_s).effective_number()
        spread_s = float(residual_s.std(ddof=1))
        error_s = spread_s / math.sqrt(max(1, effective))
        mean_s = float(one.images["latency_s"].mean())
        largest_s = float(np.abs(residual_s).max())
        off_s = abs(float(residual_s.mean())) + 2 * error_s
        off_s = min(off_s, largest_s)
        if one.residual_by_chance_s is not None:
            of_chance_s = one.residual_by_chance_s.mean(axis=1)
            off_s = max(0.0, off_s - 2 * float(of_chance_s.std()))
        shares.append(off_s / mean_s)
    return max(shares)


def breaches_of_replays(replays: Sequence[Replay], lane: Lane) -> list[Breach]:
    """What the runs break of the model's assumptions: the largest breach of each assumption."""
    found: dict[str, Breach] = {}
    for one in replays:
        for breach in _breaches_of(one, lane):
            before = found.get(breach.assumption)
            if before is None or before.share < breach.share:
                found[breach.assumption] = breach

    # Whether the runs are alike
    ratios = []
    for one in replays:
        ratio = as_floats(one.images["ratio"])
        ratios.append(ratio[np.isfinite(ratio)])
    block = max(_block(lane, one.images) for one in replays)
    unlike = misfit.unlike_runs(ratios, np.random.default_rng(SEED), block=block)
    if unlike is not None:
        found[unlike.assumption] = unlike

    # What one run did not show, another may
    if not isinstance(lane, SerialLane) and lane.max_batch_size > 1:
        batch_size = np.concatenate([as_floats(one.images["batch_size"]) for one in replays])
        unseen = misfit.few_shared_steps(batch_size)
        if unseen is not None:
            found[unseen.assumption] = unseen
    return list(found.values())


def losses_of(run: Run) -> Losses:
    """What became of the run's requests that got no image."""
    outcome = run.record["outcome"] or {}
    return losses(run.requests, outcome.get("wall_s"))


def _ended_early(runs: Sequence[Run]) -> list[Breach]:
    """A breach for the runs that did not end as planned: their images count all the same."""
    ends = {
        "failed": ("failed", "before"),
        "interrupted": ("was interrupted", "before"),
        "running": ("did not end: it still goes on, or was killed", "so far"),
    }
    found = []
    for status, (end, until) in ends.items():
        early = [run for run in runs if run.record["status"] == status]
        if early:
            words_of = f"{counted(len(early), 'run')} {end}, and what was measured {until} counts"
            found.append(Breach("the run ended as planned", 0.0, "latency", words_of))
    return found


def _without_image(runs: Sequence[Run]) -> list[Breach]:
    """A breach for the requests that failed, for those that waited in vain, and for those cut off.

    What a lost request took of the server is between nothing and an image's time. So services may
    be off by the share of lost requests. Those that were cut wait behind the images, and change
    nothing.
    """
    # 1) All runs together; the share is that of the worst run
    of_runs = [losses_of(run) for run in runs]
    asked = counted(sum(one.sent for one in of_runs), "request")
    failed = sum(one.failed for one in of_runs)
    overdue = sum(one.overdue for one in of_runs)
    cut = sum(one.cut for one in of_runs)
    found = []

    # 2) In words
    if failed:
        share = max(one.failed / max(1, one.sent) for one in of_runs)
        words_of = f"{failed} of {asked} failed, and what they took of the server is not known"
        found.append(Breach("every request gets an image", share, "service", words_of))
    if overdue:
        share = max(one.overdue / max(1, one.sent) for one in of_runs)
        words_of = f"{overdue} of {asked} got no answer, though others took half that time or less"
        found.append(Breach("every request is answered", share, "service", words_of))
    if cut:
        count = agreeing(cut, "counts", "count")
        words_of = f"{cut} of {asked} had no answer yet when the run ended, and {count} for nothing"
        found.append(Breach("the run waits for all answers", 0.0, "latency", words_of))
    return found


def _untimed(runs: Sequence[Run]) -> list[Breach]:
    """A breach where some images lack the server's own times, and others have them."""
    frames = [services(run.requests) for run in runs]
    images = 0
    missing = 0
    rest = "and count as others of their kind"
    for frame in frames:
        lacking = without_times(frame)
        if lacking > MOST_UNTIMED * len(frame):
            rest = "so latencies alone count"
        images += len(frame)
        missing += lacking
    if missing in (0, images):
        return []
    words_of = f"{missing} of {images} images came without Server-Timing, {rest}"
    return [Breach("every image is timed", 0.0, "latency", words_of)]


def _breaches_of(one: Replay, lane: Lane) -> list[Breach]:
    random = np.random.default_rng(SEED)

    # 1) The services, in the order in which they began
    has_ratio = np.isfinite(as_floats(one.images["ratio"]))
    queued_s = one.images["queue_s"].fillna(0.0)
    begun_s = as_floats(one.images["sent_s"] + queued_s)
    order = np.argsort(begun_s, kind="stable")
    order = order[has_ratio[order]]
    images = one.images.iloc[order]
    ratio = as_floats(images["ratio"])
    breaches: list[Breach | None] = []
    if len(ratio) >= LEAST_IMAGES:
        by_chance = one.by_chance
        if by_chance is None:
            by_chance = misfit.permuted(ratio, random, block=_block(lane, images))
        else:
            by_chance = by_chance[:, order]
        found = as_floats(images["found"])
        breaches += [
            misfit.drift(ratio, by_chance),
            misfit.slow_window(ratio, begun_s[order], by_chance),
            misfit.pause(ratio, _together(lane, images)),
            misfit.grows_with_queue(ratio, found, by_chance),
        ]
        if not isinstance(lane, SerialLane):
            batch = as_floats(images["batch_size"])
            breaches.append(misfit.depends_on_batch(ratio, batch, by_chance))

    # 2) The latencies beside the simulated ones
    residual_s = as_floats(one.images["residual_s"])
    latency_s = as_floats(one.images["latency_s"])
    if len(residual_s) >= LEAST_IMAGES:
        mean_s = float(latency_s.mean())
        waiting = as_floats(one.images["found"])
        by_chance = misfit.permuted(residual_s, random, block=_block(lane, one.images))
        breaches.append(misfit.unexplained(residual_s, latency_s, one.expected_rms_s))
        structure = misfit.residual_structure(residual_s, mean_s, waiting, by_chance)
        if structure is not None and one.residual_by_chance_s is not None:
            # Noise that images share makes waits longer, too: it must not do as much.
            noisy_s = one.residual_by_chance_s
            structure = misfit.residual_structure(residual_s, mean_s, waiting, noisy_s)
        breaches.append(structure)
        outside_s = as_floats(one.images["outside_s"])
        if np.isfinite(outside_s).all():
            breaches.append(misfit.slow_client(outside_s, lane.alone_s))
    return [breach for breach in breaches if breach is not None]


def _together(lane: Lane, images: pd.DataFrame) -> float:
    """How many images one call may hold up."""
    if isinstance(lane, SerialLane):
        return 1.0
    return max(1.0, float(images["batch_size"].max()))


def _block(lane: Lane, images: pd.DataFrame) -> int:
    """How many successive images may share their noise: about as many as two batches hold."""
    if isinstance(lane, SerialLane):
        return 1
    return max(1, round(2 * float(images["batch_size"].mean())))
