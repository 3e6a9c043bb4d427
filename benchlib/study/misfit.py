"""Whether a model of the server explains a run: small residuals, without structure.

A model says that services are alike through the whole run, that they depend on nothing but the work
asked for, and that requests wait by the server's policy. Each function looks for one way in which
that can be wrong, and returns a `Breach` or None.

Pure functions on arrays, with a value for each image in the order in which it was served. Ignorant
of how services and residuals were found. Each test compares a statistic of the run with that of
`by_chance`: many series, a row each, of the same services without structure. Where each image has
the model to itself, these are permutations of the run's own series. Images that share steps share
their noise; then a caller simulates the series. Source: Good, "Permutation, Parametric, and
Bootstrap Tests of Hypotheses" (2005).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchlib.study.services import Floats
from benchlib.study.wording import counted

PERMUTATIONS = 1999
LEAST_SERIES = 399
"""So many series by chance are needed, for a share as small as CHANCE."""
CHANCE = 0.003
"""How often chance alone may make one test find structure."""
LEAST_SHARE = 0.01
"""A breach of less than this share of a service or of a latency does not matter."""
MOST_VALUES = 1000
"""A longer series is replaced by so many means: its structure is then as plain, and sooner found."""
SHORTEST_WINDOW = 4
"""The scan of the run looks at windows of this many images or more."""
LEAST_SHARING = 10
UNSEEN_SHARE = 0.03
STALL_SHARE = 0.3
"""A pause is at least this share of a mean service."""
STALL_SPREADS = 3.0
"""A pause exceeds the services below it by this many times their own spread."""
LONG_STALL = 2.5
"""A pause that holds up a whole batch takes its longest image to this many medians."""

Integers = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Scale = Literal["service", "latency"]


@dataclass(frozen=True)
class Breach:
    """An assumption that a run breaks: by how large a share of `scale`, and what that looks like.

    `words` are a sentence without its full stop, for the reader of an answer.
    """

    assumption: str
    share: float
    scale: Scale
    words: str


def drift(ratio: Floats, by_chance: Floats) -> Breach | None:
    """Whether services grew or fell steadily. `ratio` is each service over the expected one.

    The statistic is Spearman's rank correlation with the order of service. The share is the change
    from the first to the last image, by the slope through the thirds' medians (Tukey's resistant
    line).
    """
    order = np.arange(len(ratio), dtype=float)
    if not _depend(order, ratio, by_chance):
        return None
    change = _resistant_slope(order, ratio) * (len(ratio) - 1)
    if abs(change) < LEAST_SHARE:
        return None
    direction = "slower" if change > 0 else "faster"
    words = (
        f"images became {100 * abs(change):.0f} % {direction} in the run: "
        "clocks that change, or another process, may be why"
    )
    return Breach("services are alike through the run", abs(change), "service", words)


def slow_window(ratio: Floats, begun_s: Floats, by_chance: Floats) -> Breach | None:
    """Whether some stretch of the run differs from the rest.

    The scan statistic is the greatest difference of a window's mean rank from the mean rank, in
    standard errors, over windows of SHORTEST_WINDOW images up to half of the run. Source: Glaz,
    Naus & Wallenstein, "Scan Statistics" (2001). One such stretch was seen, so up to
    `_most_times(1)` of them may come in as long a run; the share is what they would change.
    """
    if len(ratio) < 4 * SHORTEST_WINDOW:
        return None
    ratio = _thinned(ratio)
    begun_s = _thinned(begun_s)
    n = len(ratio)
    ranks = _centred_ranks(ratio)
    greatest, starts, lengths = _scan(ranks[None, :])
    of_chance, _, _ = _scan(_centred_ranks(_thinned(by_chance)))
    if _chance_of(greatest[0], of_chance) > CHANCE:
        return None
    window = np.zeros(n, dtype=bool)
    window[starts[0] : starts[0] + lengths[0]] = True
    excess = float(np.median(ratio[window]) - np.median(ratio[~window]))
    share = abs(excess) * min(1.0, _most_times(1) * lengths[0] / n)
    if share < LEAST_SHARE:
        return None
    direction = "longer" if excess > 0 else "shorter"
    first_s, last_s = begun_s[window][[0, -1]]
    words = (
        f"images begun from {first_s:.3g} s to {last_s:.3g} s took {100 * abs(excess):.0f} % {direction} "
        "than the others: another process may be why"
    )
    return Breach("services are alike through the run", share, "service", words)


def pause(ratio: Floats, together: float = 1.0) -> Breach | None:
    """Whether a few services are far above all others, such as after a pause of the process.

    The services beyond a gap count: the gap is STALL_SPREADS times the distance from the median to
    the service below it. At most one image in twenty may lie beyond; more of them are a tail, which
    resampling repeats as often as it came. A pause also hits the images that share a call, at most
    `together`, some of them in part. Then the longest must take LONG_STALL times the median. The
    share is what pauses take of all services if they come as often as `_most_times` says.
    """
    median = float(np.median(ratio))
    beyond = _images_of_pause(ratio, median, together)
    if not beyond:
        return None
    paused = np.sort(ratio)[-beyond:]
    longest = paused[-1] / median
    times = "one image" if beyond == 1 else f"{beyond} images"
    words = (
        f"{times} took up to {longest:.1f} times as long as the others: "
        "a pause whose frequency one run does not show"
    )
    lost = float((paused - median).sum()) / (len(ratio) * median)
    share = lost * _most_times(max(1.0, beyond / together))
    return Breach("no pauses", share, "service", words)


def _images_of_pause(ratio: Floats, median: float, together: float) -> int:
    """How many of the longest services a pause explains; 0 where there is none."""
    n = len(ratio)
    ordered = np.sort(ratio)
    rare = max(1, n // 20)
    for beyond in range(1, rare + 1):
        below = ordered[n - beyond - 1]
        gap = ordered[n - beyond] - below
        if gap > STALL_SHARE * median and gap > STALL_SPREADS * (below - median):
            return beyond
    if together > 1 and ordered[-1] > LONG_STALL * median:
        long = int((ratio > (1 + STALL_SHARE) * median).sum())
        if long <= max(rare, 1.5 * together):
            return long
    return 0


def grows_with_queue(ratio: Floats, found: Floats, by_chance: Floats) -> Breach | None:
    """Whether services depend on how many requests were with the server (`found`)."""
    if np.ptp(found) == 0 or not _depend(found, ratio, by_chance):
        return None
    change = _change_over(found, ratio)
    if abs(change) < LEAST_SHARE:
        return None
    direction = "longer" if change > 0 else "shorter"
    words = (
        f"images took {100 * abs(change):.0f} % {direction} when many requests were waiting than when few "
        "were: the server works differently under load"
    )
    return Breach("services do not depend on the queue", abs(change), "service", words)


def depends_on_batch(ratio: Floats, batch_size: Floats, by_chance: Floats) -> Breach | None:
    """Whether the cost of a batch still differs from the expected one after its calibration."""
    if np.ptp(batch_size) < 0.5 or not _depend(batch_size, ratio, by_chance):
        return None
    change = _change_over(batch_size, ratio)
    if abs(change) < LEAST_SHARE:
        return None
    words = (
        f"a step's time depends on its batch otherwise than expected, by {100 * abs(change):.0f} %"
    )
    return Breach("batches cost what was measured", abs(change), "service", words)


def unlike_runs(ratios: Sequence[Floats], rng: np.random.Generator, *, block: int) -> Breach | None:
    """Whether services took longer in one of several runs than in the others.

    `ratios` has each run's services beside the expected ones. The statistic is the sum over runs of
    squared rank sums, each over its number of images (Kruskal & Wallis, JASA 47, 1952). The share
    is that from the quickest run's mean to the slowest one's.
    """
    runs = [ratio for ratio in ratios if len(ratio)]
    if len(runs) < 2:
        return None
    means = [float(ratio.mean()) for ratio in runs]
    images = sum(len(ratio) for ratio in runs)
    at_once = -(-images // MOST_VALUES)
    together = np.concatenate([_means_of(ratio, at_once) for ratio in runs])
    ends = np.cumsum([len(_means_of(ratio, at_once)) for ratio in runs])
    starts = np.concatenate([[0], ends[:-1]])

    def statistic(ranks: Floats) -> Floats:
        sums = np.add.reduceat(ranks, starts, axis=-1)
        squares = sums**2 / (ends - starts)
        total: Floats = squares.sum(axis=-1)
        return total

    ranks = _centred_ranks(together)
    observed = float(statistic(ranks))
    if _chance_of(observed, statistic(permuted(ranks, rng, block=block))) > CHANCE:
        return None
    share = max(means) / min(means) - 1
    if share < LEAST_SHARE:
        return None
    words = f"images took {100 * share:.0f} % longer in one run than in another: the machine changed in between"
    return Breach("services are alike in all runs", share, "service", words)


def few_shared_steps(batch_size: Floats) -> Breach | None:
    """Whether too few images shared steps for the cost of a shared step under load to be known.

    Then it is that of warm-up. On one H200 shared steps took 2 to 3 % longer under load, and steps
    alone did not.
    """
    sharing = int((batch_size > 1.05).sum())
    if sharing >= LEAST_SHARING:
        return None
    seen = f"only {counted(sharing, 'image')} of the run" if sharing else "no image of the run"
    words = f"{seen} shared steps: what sharing costs under load is taken from warm-up"
    return Breach("shared steps were seen under load", UNSEEN_SHARE, "service", words)


def unexplained(residual_s: Floats, latency_s: Floats, expected_rms_s: float) -> Breach | None:
    """Whether waiting is explained: the residuals are small beside the latencies.

    `residual_s` is measured minus simulated latency. `expected_rms_s` is the root mean square that
    the noise of the services alone would leave. The share is the root mean square over the mean
    latency.
    """
    rms_s = float(np.sqrt(np.mean(residual_s**2)))
    mean_s = float(np.mean(latency_s))
    share = rms_s / mean_s
    if share < 0.03 or rms_s < 2 * expected_rms_s:
        return None
    words = (
        f"the simulated waits are {100 * share:.0f} % off, more than uneven services explain: the server may "
        "take requests in another order, or in other batches, than its policy says"
    )
    return Breach("requests wait as the policy says", share, "latency", words)


def residual_structure(
    residual_s: Floats, mean_latency_s: float, found: Floats, by_chance: Floats
) -> Breach | None:
    """Whether latencies hold time that the model lacks, and that grows with the queue."""
    if np.ptp(found) == 0 or not _depend(found, residual_s, by_chance):
        return None
    change_s = _change_over(found, residual_s)
    share = abs(change_s) / mean_latency_s
    if share < LEAST_SHARE:
        return None
    words = (
        f"latencies differ from the simulated ones by {abs(change_s):.2g} s more when many requests "
        "wait: time is lost that no stage accounts for"
    )
    return Breach("time outside the stages does not depend on the queue", share, "latency", words)


def slow_client(outside_s: Floats, service_s: float) -> Breach | None:
    """Whether much of a latency passes outside of the server: the network, or a busy client.

    The share is the part of the time outside that varies. Its median comes again in every
    prediction, but its spread belongs to the client.
    """
    typical_s = float(np.median(outside_s))
    spread_s = float(np.quantile(outside_s, 0.9)) - typical_s
    share = spread_s / service_s
    if share < 0.05:
        return None
    words = (
        f"one answer in ten spent {spread_s + typical_s:.2g} s or more outside of the server: "
        "the network or the client is slow"
    )
    return Breach("the client is quick", share, "latency", words)


# ---- series by chance, and what they show


def permuted(values: Floats, rng: np.random.Generator, *, block: int = 1) -> Floats:
    """PERMUTATIONS rows of `values`, in each of which blocks of `block` stand in another order."""
    values = _thinned(values)
    n = len(values)
    blocks = -(-n // block)
    numbers = np.tile(np.arange(blocks), (PERMUTATIONS, 1))
    order = rng.permuted(numbers, axis=1)
    places = order[:, :, None] * block + np.arange(block)
    flat = places.reshape(PERMUTATIONS, -1)
    # The last block may be short: its missing places are left out of every row.
    kept = flat[flat < n].reshape(PERMUTATIONS, n)
    shuffled: Floats = values[kept]
    return shuffled


def _depend(x: Floats, y: Floats, by_chance: Floats) -> bool:
    """Whether the ranks of `y` correlate with those of `x` more than chance would have it."""
    ranks_x = _centred_ranks(_thinned(x))
    ranks_y = _centred_ranks(_thinned(y))
    if not (ranks_x.any() and ranks_y.any()):
        return False
    observed = abs(float(ranks_x @ ranks_y))
    of_chance = np.abs(_centred_ranks(_thinned(by_chance)) @ ranks_x)
    return _chance_of(observed, of_chance) <= CHANCE


def _thinned(values: Floats) -> Floats:
    """The means of successive values, at most MOST_VALUES; the values themselves if they are few."""
    at_once = -(-values.shape[-1] // MOST_VALUES)
    return _means_of(values, at_once)


def _means_of(values: Floats, at_once: int) -> Floats:
    """The means of each `at_once` successive values along the last axis; a short rest is left out."""
    *rows, n = values.shape
    if at_once <= 1 or n < at_once:
        return values
    whole = n // at_once * at_once
    groups = values[..., :whole].reshape(*rows, -1, at_once)
    means: Floats = groups.mean(axis=-1)
    return means


def _most_times(seen: float) -> float:
    """How many times as often as it was seen a rare event may come: the upper end of 95 %.

    Source: Garwood, "Fiducial limits for the Poisson distribution", Biometrika 28 (1936).
    """
    from scipy.special import chdtri

    upper = float(chdtri(2 * (seen + 1), 0.025)) / 2
    return upper / seen


def _chance_of(observed: float, by_chance: Floats) -> float:
    """The share of permutations, itself included, that are as extreme as what was observed."""
    # Sums of ranks in another order may differ in the last digit.
    as_extreme = int((by_chance >= observed * (1 - 1e-12)).sum())
    return (1 + as_extreme) / (1 + len(by_chance))


def _centred_ranks(values: Floats) -> Floats:
    """The ranks along the last axis, less their mean."""
    from scipy.stats import rankdata

    ranks = rankdata(values, axis=-1)
    centred: Floats = ranks - (values.shape[-1] + 1) / 2
    return centred


def _scan(
    rows: Floats,
) -> tuple[
    Floats, np.ndarray[tuple[int], np.dtype[np.int64]], np.ndarray[tuple[int], np.dtype[np.int64]]
]:
    """For each row the greatest standardised sum of a window, and that window's start and length."""
    count, n = rows.shape
    sums = np.concatenate([np.zeros((count, 1)), np.cumsum(rows, axis=1)], axis=1)
    variance = float(np.mean(rows[0] ** 2))
    greatest = np.full(count, -1.0)
    starts = np.zeros(count, dtype=np.int64)
    lengths = np.zeros(count, dtype=np.int64)
    for length in _window_lengths(n):
        windows = np.abs(sums[:, length:] - sums[:, :-length])
        # The variance of a sum of `length` values drawn without replacement.
        error = np.sqrt(variance * length * (n - length) / (n - 1))
        at = windows.argmax(axis=1)
        score = windows[np.arange(count), at] / error
        better = score > greatest
        greatest[better] = score[better]
        starts[better] = at[better]
        lengths[better] = length
    return greatest, starts, lengths


def _window_lengths(n: int) -> list[int]:
    """Lengths from SHORTEST_WINDOW to half of `n`, each about a fifth above the one before."""
    lengths = []
    length = float(SHORTEST_WINDOW)
    while length <= n / 2:
        lengths.append(int(length))
        length = max(length + 1, 1.2 * length)
    return lengths


def _change_over(x: Floats, y: Floats) -> float:
    """How much y changes from few to many of x: from its 5th to its 95th percentile."""
    few, many = np.quantile(x, [0.05, 0.95])
    return _slope(x, y) * float(many - few)


def _slope(x: Floats, y: Floats) -> float:
    """The slope of y on x by least squares."""
    centred = x - x.mean()
    return float(centred @ y / (centred @ centred))


def _resistant_slope(x: Floats, y: Floats) -> float:
    third = len(x) // 3
    rise = np.median(y[-third:]) - np.median(y[:third])
    run = np.median(x[-third:]) - np.median(x[:third])
    return float(rise / run)
