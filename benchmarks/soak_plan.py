"""What the users of the soak ask for, in which order, and which answers are right.

Pure: one seed gives one endless sequence of asks. Knows the routes and their bodies. Ignorant of
sockets, of servers and of how a fault comes about (`fakes/faulty_pipeline.py`).

The asks come in blocks. Each block holds the same number of each kind, in an order of its
own, so that any two stretches of some blocks are alike.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

IMAGES = "/v1/images/generations"
BENCHMARK = "/benchmark/generate"

BLOCK = 200
# Two in each block, so of 200 asks one in a hundred, for each of these kinds.
FREQUENT = ("encode-error", "step-error", "decode-error", "nan", "left", "slow", "bad")
EACH_FREQUENT = 2
# In each block one of these, in turns. A lack of memory halves the batches for 100 calls. A late
# image takes the whole deadline, and under serial batching takes those behind it along.
OF_MEMORY = ("encode-memory", "step-memory", "decode-memory")
RARE = (*OF_MEMORY, *OF_MEMORY, "late")

IN_THE_MODEL = (*FREQUENT[:4], *OF_MEMORY)
"""The kinds that go wrong inside the model. Their prompts begin with their names."""

SHAPES = (
    # width, height, steps, guidance: most images are small and of few steps
    (64, 64, 1, 7.5),
    (64, 64, 2, 7.5),
    (64, 64, 2, 7.5),
    (64, 64, 3, 7.5),
    (64, 64, 4, 1.0),
    (96, 64, 2, 7.5),
    (128, 64, 2, 5.0),
)
SIZES = sorted({(width, height) for width, height, *_ in SHAPES})
PLAIN_SHOTS = 4 * len(SHAPES)
SHOTS_OF_A_FAULT = 2
SLOW_IMAGES = 4
LATE = (192, 192, 150, 7.5)
LATE_SEED = 900_000

# Bodies that are wrong, each with its route and the status that it must get.
WRONG: tuple[tuple[str, dict[str, Any] | bytes, int], ...] = (
    (BENCHMARK, {"prompt": "a cat", "width": 63}, 422),
    (BENCHMARK, {"prompt": ""}, 422),
    (BENCHMARK, {"prompt": "a cat", "colour": "red"}, 422),
    (BENCHMARK, b'{"prompt": ', 422),
    (BENCHMARK, b" " * (2**20 + 1), 413),
    (IMAGES, {"prompt": "a cat", "n": 99}, 400),
    (IMAGES, {"prompt": "a cat", "size": "1x1"}, 400),
    (IMAGES, {"prompt": "a cat", "model": "another"}, 404),
    ("/v1/images", {"prompt": "a cat"}, 404),
)


@dataclass(frozen=True)
class Shot:
    """One image that is made over and over: all that decides its bytes."""

    prompt: str
    seed: int
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float

    def to_request(self) -> dict[str, Any]:
        """The fields of a GenerateRequest."""
        return dict(vars(self))


@dataclass(frozen=True)
class Ask:
    """One HTTP request: its kind, where it goes, its body, and what is right.

    `seeds` are those of the images, in order. `statuses` are the HTTP statuses that are right.
    """

    number: int
    kind: str
    path: str
    body: bytes
    seeds: tuple[int, ...]
    statuses: frozenset[int]


def shots() -> list[Shot]:
    """Every image whose bytes are known before the soak. Each has a seed of its own."""
    plain = [
        Shot(f"a lighthouse, view {number}", 1000 + number, *SHAPES[number % len(SHAPES)])
        for number in range(PLAIN_SHOTS)
    ]
    slow = [Shot("slow sand", 2000 + number, 128, 64, 2, 5.0) for number in range(SLOW_IMAGES)]
    faulty = [
        Shot(f"{kind} {number}", 3000 + 10 * place + number, 64, 64, 2, 7.5)
        for place, kind in enumerate(IN_THE_MODEL)
        for number in range(SHOTS_OF_A_FAULT)
    ]
    return [*plain, *slow, *faulty]


class Plan:
    """The endless sequence of asks that `seed` stands for, in blocks of `block` asks."""

    def __init__(self, seed: int, *, block: int = BLOCK) -> None:
        self._seed = seed
        self._block = block
        self._plain = cycle(shots()[:PLAIN_SHOTS])
        self._slow = shots()[PLAIN_SHOTS : PLAIN_SHOTS + SLOW_IMAGES]
        self._faulty = {
            kind: cycle([shot for shot in shots() if shot.prompt.startswith(kind)])
            for kind in IN_THE_MODEL
        }
        self._wrong = cycle(WRONG)
        self._paths = cycle((IMAGES, BENCHMARK))

    def asks(self) -> Iterator[Ask]:
        """All asks, for ever."""
        number = 0
        rare = cycle(RARE)
        draw = random.Random(self._seed)
        while True:
            kinds = [*FREQUENT * EACH_FREQUENT, next(rare)]
            kinds += ["plain"] * (self._block - len(kinds))
            draw.shuffle(kinds)
            for kind in kinds:
                yield self._ask(number, kind)
                number += 1

    def first(self, count: int) -> list[Ask]:
        """The first `count` asks."""
        return list(islice(self.asks(), count))

    def _ask(self, number: int, kind: str) -> Ask:
        if kind == "bad":
            path, wrong, status = next(self._wrong)
            body = wrong if isinstance(wrong, bytes) else json.dumps(wrong).encode()
            return Ask(number, kind, path, body, (), frozenset({status}))
        if kind == "slow":
            return self._images(number, kind, self._slow)
        if kind == "late":
            # Nobody else has this image's seed, and it never gets to its end.
            late = Shot("late", LATE_SEED + number, *LATE)
            return self._image(number, kind, BENCHMARK, late)
        shot = next(self._faulty.get(kind, self._plain))
        return self._image(number, kind, next(self._paths), shot)

    def _image(self, number: int, kind: str, path: str, shot: Shot) -> Ask:
        if path == IMAGES:
            return self._images(number, kind, [shot])
        body = json.dumps(shot.to_request()).encode()
        return Ask(number, kind, path, body, (shot.seed,), right_statuses(kind))

    def _images(self, number: int, kind: str, wanted: list[Shot]) -> Ask:
        shot = wanted[0]
        fields = shot.to_request() | {
            "n": len(wanted),
            "size": f"{shot.width}x{shot.height}",
            "response_format": "b64_json",
        }
        seeds = tuple(one.seed for one in wanted)
        body = json.dumps(fields).encode()
        return Ask(number, kind, IMAGES, body, seeds, right_statuses(kind))


def right_statuses(kind: str) -> frozenset[int]:
    """The statuses that an ask of this kind may get.

    An ask that is well may find the queue full, or its deadline passed behind a late image.
    """
    if kind in ("encode-error", "step-error", "decode-error", "nan"):
        return frozenset({500, 503, 504})
    if kind == "late":
        return frozenset({503, 504})
    return frozenset({200, 503, 504})
