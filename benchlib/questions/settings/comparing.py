"""Compares pairs of images, large ones in processes of their own: one pair takes seconds of a core.

    pairs = compare_pairs([Images(before, after, "a chair", 1), ...])

Knows arrays of pixels, processes and their pipes. Ignorant of models and verdicts. The processes
run only while this call waits for them, so they take nothing from what is measured.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from benchlib.study.picture_quality import Pair, compare_pair

LARGE_PIXELS = 2**18
"""Images with fewer pixels are compared in this process: a new one takes longer to start."""
MOST_PROCESSES = 16

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class Images(NamedTuple):
    """The baseline's image and another one's, of one prompt and seed: arrays (H, W, 3) of uint8."""

    before: Pixels
    after: Pixels
    prompt: str
    seed: int


def compare_pairs(images: Sequence[Images]) -> list[Pair]:
    """The pair of each of `images`, in their order.

    Raises RuntimeError with the last words of a process that fails.
    """
    costly = [one for one in images if one.before.size >= 3 * LARGE_PIXELS and _differ(one)]
    processes = min(_cores(), MOST_PROCESSES, len(costly))
    if processes < 2:
        return [_compare(one) for one in images]

    # Costly pairs are dealt out in turn; equal ones cost nothing.
    hands = [costly[first::processes] for first in range(processes)]
    with ThreadPoolExecutor(processes) as threads:
        compared = list(threads.map(_compare_elsewhere, hands))
    by_seed = {pair.seed: pair for pairs in compared for pair in pairs}
    return [by_seed.get(one.seed) or _compare(one) for one in images]


def _cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _differ(images: Images) -> bool:
    return not np.array_equal(images.before, images.after)


def _compare(images: Images) -> Pair:
    return compare_pair(images.before, images.after, prompt=images.prompt, seed=images.seed)


def _compare_elsewhere(images: Sequence[Images]) -> list[Pair]:
    """The pairs of `images`, compared in another process."""
    # -P: no module in the working folder may stand in for one that the process imports.
    command = [sys.executable, "-P", "-m", "benchlib.questions.settings.comparing"]
    plain = [tuple(one) for one in images]
    process = subprocess.run(command, input=pickle.dumps(plain), capture_output=True, check=False)
    if process.returncode != 0:
        last_words = process.stderr.decode(errors="replace").strip()[-300:]
        raise RuntimeError(f"comparing pictures failed: {last_words}")
    pairs: list[Pair] = pickle.loads(process.stdout)
    return pairs


def main() -> None:
    """Reads images from stdin, and writes their pairs to stdout."""
    images = pickle.load(sys.stdin.buffer)
    pairs = [_compare(Images(*one)) for one in images]
    pickle.dump(pairs, sys.stdout.buffer)


if __name__ == "__main__":
    main()
