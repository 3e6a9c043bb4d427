"""The pictures that a setting is judged by: which prompts, how many of them, and when to stop.

Knows prompts, seeds and pairs of images. Ignorant of models and settings: it is given a function
that makes one image, and the baseline's images.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchlib.printing import print_line
from benchlib.questions.settings.comparing import Images, compare_pairs
from benchlib.study.picture_quality import PAIRS_NEEDED, Pair
from benchlib.study.wording import agreeing, counted

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from benchlib.questions.settings.learned_metrics import LearnedMetrics

QUICK_PROMPTS = PAIRS_NEEDED
"""How many of the own prompts the profile quick uses."""

SMALL_SIDE = 160
"""The longer side, in pixels, of the copies that are kept for a figure."""

MakeImage = Callable[[str, int], "tuple[Image, float]"]
"""Makes the image of a prompt and a seed, and returns it with its seconds."""


@dataclass(frozen=True)
class Album:
    """The images of one setting: the n-th has the n-th prompt and the seed n, counted from 1.

    - `images`: the images of the baseline; other settings keep none.
    - `times_s`: the seconds of each image that was timed.
    - `pairs`: how near each image is to the baseline's, for as many prompts as there was time.
    """

    images: tuple[Image, ...]
    times_s: tuple[float, ...]
    pairs: tuple[Pair, ...]


def picture_prompts(
    file: str | os.PathLike[str] | None = None, *, profile: str = "full"
) -> tuple[str, ...]:
    """Returns the prompts by which settings are judged, and prints how many there are.

    They are the lines of `file`, or else 64 of our own. The profile "quick" has the first
    QUICK_PROMPTS of our own. Raises ValueError for a file without a prompt, or with one twice.
    """
    prompts = own_prompts() if file is None else _prompts_in(Path(file))
    if file is None and profile == "quick":
        prompts = prompts[:QUICK_PROMPTS]
    show = agreeing(len(prompts), "shows", "show")
    print_line(f"{counted(len(prompts), 'prompt')} {show} whether a setting changes the picture")
    if len(prompts) < PAIRS_NEEDED:
        print_line(f"too few for a verdict on pictures: it needs {PAIRS_NEEDED}")
    return prompts


def own_prompts() -> tuple[str, ...]:
    """Returns the 64 prompts of this package."""
    return _prompts_in(Path(__file__).with_name("prompts.txt"))


def _prompts_in(path: Path) -> tuple[str, ...]:
    """The lines of a file that are not empty."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"prompts: there is no prompt in {path}; write one a line")
    for prompt in prompts:
        if prompts.count(prompt) > 1:
            raise ValueError(f"prompts: {prompt!r} is twice in {path}; write each prompt once")
    return tuple(prompts)


def pictures_needed(prompts: Sequence[str], *, exact: bool) -> int:
    """Returns how many pictures of `prompts` a setting needs.

    A setting that changes the algorithm is judged over all of them. An exact one, whose pictures
    differ by rounding alone, has PAIRS_NEEDED: the fewest with an interval.
    """
    if exact:
        return min(PAIRS_NEEDED, len(prompts))
    return len(prompts)


def take_pictures(
    make: MakeImage,
    prompts: Sequence[str],
    *,
    timed: int,
    limit_s: float = math.inf,
    baseline: Album | None = None,
    learned: LearnedMetrics | None = None,
) -> Album:
    """Makes the image of each prompt and compares it with the baseline's.

    The first `timed` images are made one after the other, so that nothing else takes part in their
    time. Then they are compared. Then as many others follow as should be made and compared within
    `limit_s` seconds of the call. Without a `baseline` the images are
    the baseline's own. With one, there are as many pairs as it has images, at most.
    """
    began_s = time.monotonic()
    images: list[Image] = []
    times_s: list[float] = []

    # 1) The images that are timed.
    for number in range(max(1, timed)):
        prompt = prompts[number % len(prompts)]
        image, took_s = make(prompt, number + 1)
        images.append(image)
        times_s.append(took_s)

    # 2) Compare them.
    before = images if baseline is None else baseline.images
    wanted = len(prompts) if baseline is None else min(len(prompts), len(before))
    first = min(wanted, len(images))
    comparing_from_s = time.monotonic()
    pairs = _compared(before, images, prompts, range(first), learned)
    pair_s = (time.monotonic() - comparing_from_s) / max(1, first)

    # 3) Make and compare the others, as many as there is time for.
    more = 0
    if wanted > len(images):
        left_s = began_s + limit_s - time.monotonic()
        more = wanted - len(images)
        if math.isfinite(left_s):
            more = min(more, max(0, int(left_s / (times_s[-1] + pair_s) + 1e-6)))
    for number in range(len(images), len(images) + more):
        image, _ = make(prompts[number], number + 1)
        images.append(image)
    pairs += _compared(before, images, prompts, range(first, first + more), learned)

    kept = tuple(images) if baseline is None else ()
    return Album(kept, tuple(times_s), tuple(pairs))


def _compared(
    before: Sequence[Image],
    images: Sequence[Image],
    prompts: Sequence[str],
    numbers: Sequence[int],
    learned: LearnedMetrics | None,
) -> list[Pair]:
    """The pairs of the images `numbers`, with the learned metrics and small copies."""
    import numpy as np

    asked = []
    for number in numbers:
        reference, image = np.asarray(before[number]), np.asarray(images[number])
        asked.append(Images(reference, image, prompts[number], number + 1))
    pairs = []
    for number, one, pair in zip(numbers, asked, compare_pairs(asked), strict=True):
        more: dict[str, Any] = {"picture": _small(images[number])}
        if learned is not None:
            more |= _learned(one, pair, learned)
        pairs.append(dataclasses.replace(pair, **more))
    return pairs


def _learned(images: Images, pair: Pair, learned: LearnedMetrics) -> dict[str, float]:
    """The learned metrics of a pair; without change where the images are equal."""
    found = {}
    if learned.lpips is not None:
        found["lpips"] = 0.0 if pair.identical else learned.lpips(images.before, images.after)
    if learned.clip_score is not None:
        change = 0.0
        if not pair.identical:
            score = learned.clip_score(images.after, images.prompt)
            change = score - learned.clip_score(images.before, images.prompt)
        found["clip_change"] = change
    return found


def _small(image: Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A copy whose longer side has SMALL_SIDE pixels, or fewer if `image` has."""
    import numpy as np

    copy = image.copy()
    copy.thumbnail((SMALL_SIDE, SMALL_SIDE))
    return np.asarray(copy)
