"""Whether a setting makes the baseline's pictures: pairs over prompts, their means, and a verdict.

Pure. Knows pairs of images of one prompt and one seed, the baseline's and another's. Ignorant of
what made them.

The verdict rests on SSIM and FLIP, each with two limits. The mean over all prompts must stay within
the first, with its whole interval. Each single pair must stay within the second.

| metric | of the mean | of one pair | source                                                      |
|--------|-------------|-------------|-------------------------------------------------------------|
| SSIM   | above 0.99  | above 0.95  | mean: "excellent" of five grades, in videos (Zinner et al.) |
|        |             |             | pair: half of the people saw no difference (Flynn et al.)   |
| FLIP   | below 0.103 | below 0.138 | FLIP of an even change of lightness by so much in CIELAB:   |
|        |             |             | mean: 2.3 units, just noticeable (Mahy et al.)              |
|        |             |             | pair: 3.5 units, clear to anybody (Mokrzycki & Tatol)       |

Sources: Zinner, Abboud, Hohlfeld, Hossfeld & Tran-Gia, "Towards QoE Management for Scalable Video
Streaming", ITC Specialist Seminar 21 (2010). Flynn, Ward, Abich & Poole, "Image Quality Assessment
Using the SSIM and the Just Noticeable Difference Paradigm", EPCE (2013). Mahy, Van Eycken &
Oosterlinck, "Evaluation of uniform color spaces", Color Research & Application 19 (1994).
Mokrzycki & Tatol, "Colour difference Delta E: A survey", Machine Graphics & Vision 20 (2011).

To call a mean of the grade "excellent" indistinguishable is our own choice: the viewers of Zinner et
al. graded videos, and were not asked whether they saw a difference.

Nobody tested these limits on diffusion models. They were found on compressed photographs and
videos, and on even patches. A small part of a picture may differ visibly within them. SSIM sees
structure and nearly no tint; FLIP sees both. So neither is enough alone. PSNR has no part in the
verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchlib.study.intervals import Interval, few_interval
from benchlib.study.likeness import Pixels, flip, psnr_db, ssim, why_no_flip
from benchlib.study.wording import counted, words

SAME = "same"
INDISTINGUISHABLE = "indistinguishable"
CHANGED = "changed"
NOT_SHOWN = "not shown"

PAIRS_NEEDED = 8
"""The fewest pairs with an interval, and so with a verdict.

From 8 independent values on, the interval held 93 % of simulated exponential means; from 5, 92 %.
Of very skewed ones (lognormal, sigma 1) it held 90 % from 8 on, and 93 % of 64.
"""

METRICS = ("psnr_db", "ssim", "flip", "lpips", "clip_change")
"""The columns of a pair's figures; `clip_change` is the CLIP score less the baseline's."""


@dataclass(frozen=True)
class Limit:
    """How far from the baseline a mean and a single pair may be, in a metric that is 0 if equal."""

    metric: str
    mean: float
    pair: float
    distance: Callable[[float], float]


LIMITS = (
    Limit("ssim", mean=0.01, pair=0.05, distance=lambda value: 1 - value),
    Limit("flip", mean=0.103, pair=0.138, distance=lambda value: value),
)


@dataclass(frozen=True)
class Pair:
    """How near an image is to the baseline's image of the same prompt and seed.

    `psnr_db` is infinite where both are equal. `flip` is None without flip-evaluator. `lpips` and
    `clip_change` are None without their weights. `picture` is a small copy of the image.
    """

    prompt: str
    seed: int
    identical: bool
    psnr_db: float
    ssim: float
    flip: float | None
    lpips: float | None = None
    clip_change: float | None = None
    picture: Pixels | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Quality:
    """What the pairs of a setting show. `str()` has it in a sentence.

    - `verdict`: "same", "indistinguishable", "changed" or "not shown". `reason` says why.
    - `pairs`, `identical`: how many pairs there are, and how many of them are equal to the bit.
    - `means`, `intervals`: by the names in METRICS. PSNR is of the pairs that differ, since it is
      infinite for the others. Unknown is None.
    - `worst`: the pair that is farthest beyond its limit or nearest to it; None if all are equal.
    """

    verdict: str
    reason: str
    pairs: int
    identical: int
    means: dict[str, float | None]
    intervals: dict[str, Interval]
    worst: Pair | None

    def __str__(self) -> str:
        figures = []
        for metric, name in (("ssim", "SSIM"), ("flip", "FLIP"), ("psnr_db", "PSNR")):
            value = self.means[metric]
            if value is not None and math.isfinite(value):
                unit = "dB" if metric == "psnr_db" else ""
                figures.append(f"{name} {words(value, self.intervals[metric], unit)}")
        sentence = f"{self.verdict}: {self.reason}"
        if figures and self.identical < self.pairs:
            sentence += f" ({', '.join(figures)})"
        return sentence


def compare_pair(reference: Pixels, image: Pixels, *, prompt: str, seed: int) -> Pair:
    """How near `image` is to `reference`; arrays as in `likeness.psnr_db`.

    Two equal images take no time. The others take seconds on a CPU if they have a megapixel.
    """
    if np.array_equal(reference, image):
        return Pair(prompt, seed, identical=True, psnr_db=math.inf, ssim=1.0, flip=0.0)
    flip_known = why_no_flip() is None
    return Pair(
        prompt,
        seed,
        identical=False,
        psnr_db=psnr_db(reference, image),
        ssim=ssim(reference, image),
        flip=flip(reference, image) if flip_known else None,
    )


def judge_pictures(pairs: Sequence[Pair]) -> Quality:
    """Judges the pairs of one setting, each of another prompt.

    | verdict           | what must hold                                                          |
    |-------------------|-------------------------------------------------------------------------|
    | same              | all pairs are equal to the bit                                          |
    | changed           | a pair is beyond its limit, or the whole interval of a mean is          |
    | indistinguishable | no pair is beyond its limit, and the interval of each mean lies within  |
    | not shown         | fewer than PAIRS_NEEDED pairs, an interval around its limit, or no FLIP |
    """
    # 1) The means, with intervals.
    differing = [pair for pair in pairs if not pair.identical]
    means: dict[str, float | None] = {}
    intervals: dict[str, Interval] = {}
    for metric in METRICS:
        counted_pairs = differing if metric == "psnr_db" and differing else pairs
        values = _known(counted_pairs, metric)
        means[metric] = math.fsum(values) / len(values) if values else None
        is_enough = len(values) >= PAIRS_NEEDED and math.isfinite(values[0])
        intervals[metric] = few_interval(values) if is_enough else None

    # 2) The pair that differs most, as a multiple of what a pair may differ.
    worst = max(differing, key=_strain, default=None)
    verdict, reason = _verdict(pairs, worst, means, intervals)
    return Quality(
        verdict=verdict,
        reason=reason,
        pairs=len(pairs),
        identical=len(pairs) - len(differing),
        means=means,
        intervals=intervals,
        worst=worst,
    )


def picture_columns(pairs: Sequence[Pair] | None) -> dict[str, Any]:
    """The columns that pairs add to a setting's row; all of them None without pairs.

    - `pictures`, `pictures_reason`: the verdict, and why.
    - each of METRICS and its `_interval`
    - `picture_pairs`, `identical_pairs`: how many.
    - `pairs`: the pairs themselves.
    """
    names = ["pictures", "pictures_reason", "picture_pairs", "identical_pairs", "pairs"]
    for metric in METRICS:
        names += [metric, f"{metric}_interval"]
    columns: dict[str, Any] = dict.fromkeys(names)
    if not pairs:
        return columns
    quality = judge_pictures(pairs)
    columns |= quality.means
    for metric, interval in quality.intervals.items():
        columns[f"{metric}_interval"] = interval
    columns["pictures"] = quality.verdict
    columns["pictures_reason"] = quality.reason
    columns["picture_pairs"] = quality.pairs
    columns["identical_pairs"] = quality.identical
    columns["pairs"] = tuple(pairs)
    return columns


def visibly_differs(pair: Pair) -> bool:
    """Whether a pair is beyond its limit in SSIM or FLIP."""
    return _strain(pair) > 1


def _verdict(
    pairs: Sequence[Pair],
    worst: Pair | None,
    means: dict[str, float | None],
    intervals: dict[str, Interval],
) -> tuple[str, str]:
    """The verdict, and why."""
    if len(pairs) < PAIRS_NEEDED:
        return NOT_SHOWN, f"{counted(len(pairs), 'pair')}; a verdict needs {PAIRS_NEEDED}"
    if worst is None:
        return SAME, f"{len(pairs)} of {counted(len(pairs), 'pair')} identical"
    identical = sum(pair.identical for pair in pairs)
    found = f"{identical} of {len(pairs)} pairs identical"

    # 1) What shows a change.
    broken = sum(visibly_differs(pair) for pair in pairs)
    if broken:
        return CHANGED, f"visibly different: {broken} of {len(pairs)} pairs, most {worst.prompt!r}"
    open_metrics = []
    for limit in LIMITS:
        interval = intervals[limit.metric]
        if interval is None:
            open_metrics.append(limit.metric.upper())
            continue
        near, far = sorted(limit.distance(end) for end in interval)
        if near > limit.mean:
            farther = f"{limit.metric.upper()} is {words(means[limit.metric], interval)} on average"
            return CHANGED, f"{found}; {farther}, beyond its limit"
        if far > limit.mean:
            open_metrics.append(limit.metric.upper())

    # 2) What leaves it open.
    missing = why_no_flip() if any(pair.flip is None for pair in pairs) else None
    if missing:
        return NOT_SHOWN, f"{found}; {missing}"
    if open_metrics:
        limits = " and ".join(open_metrics)
        return NOT_SHOWN, f"{found}; the interval of {limits} holds its limit, so add prompts"
    return INDISTINGUISHABLE, f"{found}, the others within the limits of SSIM and FLIP"


def _strain(pair: Pair) -> float:
    """A pair's distance as a multiple of its limit: the larger one of SSIM's and FLIP's."""
    strains = [0.0]
    for limit in LIMITS:
        value = getattr(pair, limit.metric)
        if value is not None:
            strains.append(limit.distance(value) / limit.pair)
    return max(strains)


def _known(pairs: Sequence[Pair], metric: str) -> list[float]:
    values = [getattr(pair, metric) for pair in pairs]
    return [value for value in values if value is not None]
