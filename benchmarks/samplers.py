"""What does a step cost by each sampler, beside a step by Euler's method?

    python -m benchmarks.samplers
    python -m benchmarks.samplers --all

steps eight requests at once with `tiny`, by each sampler that has a solver, or with `--all` by
every sampler. The samplers take turns, forwards and backwards, so that other work on the machine
falls on all of them. It prints the median of each sampler's steps, each over Euler's of the same
turn. The exit status is 1 if one of the most used is above LIMIT. It takes about two minutes on an
idle machine; `--all` takes eight. On a busy machine its figures scatter by more than LIMIT.
"""

from __future__ import annotations

import argparse
import statistics
import sys

import benchlib as bl
from benchlib.serving.model.denoise import Work
from benchlib.serving.model.pipeline import SDXLPipeline
from benchlib.serving.model.torch_thread import on_torch_thread
from benchlib.serving.scheduler_names import SCHEDULERS

LIMIT = 1.05
REQUESTS = 8
STEPS = 10
SIDES = (64, 128)
MOST_USED = ("euler", "euler-a", "dpmpp-2m", "dpmpp-2m-karras", "ddim", "lcm", "tcd")
MIXED = "one of each kind"


def make_works(pipe: SDXLPipeline, names: list[str], side: int) -> list[Work]:
    """A work for each name, at its first step."""
    requests = [
        bl.GenerateRequest(
            prompt="a lighthouse",
            num_inference_steps=STEPS,
            width=side,
            height=side,
            seed=seed,
            scheduler=name,
        )
        for seed, name in enumerate(names)
    ]
    return pipe.encode(requests)


def step_times(
    pipe: SDXLPipeline, side: int, mixes: dict[str, list[str]], rounds: int
) -> dict[str, list[float]]:
    """The seconds of each mix's steps, in turns. The first step of a batch is not counted."""
    seconds: dict[str, list[float]] = {mix: [] for mix in mixes}
    for _ in range(rounds):
        works = {mix: make_works(pipe, names, side) for mix, names in mixes.items()}
        for step in range(STEPS):
            turns = list(works.items())
            if step % 2:
                turns.reverse()
            for mix, batch in turns:
                step_s = pipe.step(batch)
                if step > 0:
                    seconds[mix].append(step_s)
    return seconds


def main(*, every: bool, rounds: int) -> bool:
    """Print the table; return whether the samplers with solvers are within LIMIT."""
    pipe = bl.load_pipeline("tiny", device="cpu")
    names = SCHEDULERS if every else MOST_USED
    mixes = {name: [name] * REQUESTS for name in names}
    mixes[MIXED] = [MOST_USED[number % len(MOST_USED)] for number in range(REQUESTS)]
    passed = True
    for side in SIDES:
        seconds = on_torch_thread(step_times, pipe, side, mixes, rounds)
        euler_s = seconds["euler"]
        median_ms = 1000 * statistics.median(euler_s)
        print(f"{side}x{side}, {REQUESTS} requests: a step of Euler takes {median_ms:.2f} ms")
        for mix, times in seconds.items():
            ratio = statistics.median(a / b for a, b in zip(times, euler_s, strict=True))
            print(f"  {mix:<22} {ratio:.3f}")
            passed = passed and (mix not in MOST_USED or ratio <= LIMIT)
    return passed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="every sampler, not the most used")
    parser.add_argument("--rounds", type=int, default=12, help="batches of each sampler and size")
    given = parser.parse_args()
    sys.exit(0 if main(every=given.all, rounds=given.rounds) else 1)
