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

from benchlib.study.picture_quality import PAIRS_NEEDED, Pair, compare_pair

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
    print(f"{len(prompts)} prompts show whether a setting changes the picture")
    if len(prompts) < PAIRS_NEEDED:
        print(f"too few for a verdict on pictures: it needs {PAIRS_NEEDED}")
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
    time. Then each is compared, and more are made and compared one by one. No further one is begun
    that would end later than `limit_s` seconds after the call. Without a `baseline` the images are
    the baseline's own. With one, there are as many pairs as it has images, at most.
    """
    began_s = time.monotonic()
    images: list[Image] = []
    pairs: list[Pair] = []
    times_s: list[float] = []

    # 1) The images that are timed.
    for number in range(max(1, timed)):
        prompt = prompts[number % len(prompts)]
        image, took_s = make(prompt, number + 1)
        images.append(image)
        times_s.append(took_s)

    # 2) Compare them, and make and compare the others.
    before = images if baseline is None else baseline.images
    wanted = len(prompts) if baseline is None else min(len(prompts), len(before))
    comparing_s = 0.0
    for number, prompt in enumerate(prompts[:wanted]):
        seed = number + 1
        if number >= len(images):
            left_s = began_s + limit_s - time.monotonic()
            if times_s[-1] + comparing_s > left_s:
                break
            image, _ = make(prompt, seed)
            images.append(image)
        compared_from_s = time.monotonic()
        pair = _compared(before[number], images[number], prompt, seed, learned)
        pairs.append(pair)
        comparing_s = max(comparing_s, time.monotonic() - compared_from_s)

    kept = tuple(images) if baseline is None else ()
    return Album(kept, tuple(times_s), tuple(pairs))


def _compared(
    reference: Image, image: Image, prompt: str, seed: int, learned: LearnedMetrics | None
) -> Pair:
    """The pair of two images, with the learned metrics and a small copy of `image`."""
    import numpy as np

    before, after = np.asarray(reference), np.asarray(image)
    pair = compare_pair(before, after, prompt=prompt, seed=seed)
    more: dict[str, Any] = {"picture": _small(image)}
    if learned is not None and learned.lpips is not None:
        more["lpips"] = 0.0 if pair.identical else learned.lpips(before, after)
    if learned is not None and learned.clip_score is not None:
        change = 0.0
        if not pair.identical:
            change = learned.clip_score(after, prompt) - learned.clip_score(before, prompt)
        more["clip_change"] = change
    return dataclasses.replace(pair, **more)


def _small(image: Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A copy whose longer side has SMALL_SIDE pixels, or fewer if `image` has."""
    import numpy as np

    copy = image.copy()
    copy.thumbnail((SMALL_SIDE, SMALL_SIDE))
    return np.asarray(copy)
