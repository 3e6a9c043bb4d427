"""The requests of a run: prompts, sizes, steps, guidance and seeds, the same ones every time.

Pure and deterministic, but for files of prompts. Ignorant of when a request is sent, to which
server, and what comes back.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Self, TypeAlias, TypeVar

from benchlib.load.bounds import FIELD_CHECKS, OWN_CHECKS, check_number, check_text
from benchlib.load.files import read_prompts

_T = TypeVar("_T")
Choice: TypeAlias = _T | Sequence[_T] | Mapping[_T, float] | None

_PREFIX = "BENCHLIB_WORKLOAD_"


@dataclass(frozen=True)
class Workload:
    """A reproducible stream of requests: `request(i)` depends on the workload and `i` alone.

    Each field but `seed` is a value, a list of values (all equally likely), or a mapping of value
    to weight. None leaves the field out of the request, so that the target's own default holds. For
    `prompts`, None means the prompts of this package. `prompts` may also be a `pathlib.Path` (see
    `files.read_prompts`), which is read at once. Only the choices of `negative_prompt`, `lora` and
    `scheduler` may include None: diffusers treats no prompt and an empty one differently, and a
    load may mix images with an adapter and without. Lists are kept as tuples.

    Raises ValueError that names the field, or the file and the prompt, for what no server can take:
    an empty prompt, a size or steps below 1, a guidance below 0. Our own server has bounds besides,
    which `check_own_bounds` and a run on our server hold to:

    | field                   | from                 | to                |
    |-------------------------|----------------------|-------------------|
    | prompts                 | 1 character          | 4000 characters   |
    | negative_prompt         | 0 characters         | 4000 characters   |
    | width, height           | 64 pixels            | 2048, by eights   |
    | num_inference_steps     | 1                    | 150               |
    | guidance_scale          | 0                    | 30                |
    | lora                    | "name" of an adapter | or "name:scale"   |
    | scheduler               | "name" of a sampler  | as servers write  |
    """

    prompts: Choice[str] | Path = None
    width: Choice[int] = None
    height: Choice[int] = None
    num_inference_steps: Choice[int] = None
    guidance_scale: Choice[float] = None
    negative_prompt: Choice[str | None] = None
    seed: int = 0
    lora: Choice[str | None] = None
    scheduler: Choice[str | None] = None

    def __post_init__(self) -> None:
        check_number("seed", self.seed, 0, whole=True)
        if isinstance(self.prompts, Path):
            object.__setattr__(self, "prompts", _checked_prompts(self.prompts))
        for field, check in FIELD_CHECKS.items():
            value = _as_kept(field, getattr(self, field))
            for choice in _choices(value):
                check(field, choice)
            object.__setattr__(self, field, value)

    def check_own_bounds(self) -> None:
        """Raises ValueError that names the field of a choice that our own server would refuse."""
        for field, check in OWN_CHECKS.items():
            for choice in _choices(getattr(self, field)):
                check(field, choice)

    def request(self, index: int) -> dict[str, Any]:
        """The JSON body of request `index` (from 0): `prompt`, `seed` and each set field."""
        # Python promises the same numbers in every version for Random.random() alone. A field
        # always takes the same draw, so more choices for one field change no other.
        draw = random.Random(f"{self.seed}:{index}").random
        seed = int(draw() * 2**32)
        body: dict[str, Any] = {"seed": seed}
        for field in FIELD_CHECKS:
            value = getattr(self, field)
            if field == "prompts" and value is None:
                value = _own_prompts()
            choice = _draw(value, draw())
            if choice is not None:
                body["prompt" if field == "prompts" else field] = choice
        return body

    def with_defaults(
        self,
        *,
        width: int,
        height: int,
        num_inference_steps: int,
        guidance_scale: float | None = None,
    ) -> Workload:
        """A copy in which these fields, a model's own, replace None.

        A model without a `guidance_scale` of its own leaves the target's default.
        """
        missing: dict[str, Any] = {}
        if self.width is None:
            missing["width"] = width
        if self.height is None:
            missing["height"] = height
        if self.num_inference_steps is None:
            missing["num_inference_steps"] = num_inference_steps
        if self.guidance_scale is None:
            missing["guidance_scale"] = guidance_scale
        return replace(self, **missing)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able fields; weights become `{"weights": [[value, weight], ...]}`."""
        fields = {field: _plain(value) for field, value in vars(self).items()}
        for field in ("lora", "scheduler"):  # older runs have neither
            if fields[field] is None:
                del fields[field]
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The workload that `to_dict` wrote, also after a trip through JSON."""
        given = dict(fields)
        for field, value in fields.items():
            if isinstance(value, Mapping):
                given[field] = dict(value["weights"])
        return cls(**given)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """The workload that variables such as BENCHLIB_WORKLOAD_WIDTH describe.

        PROMPTS is a file. WIDTH, HEIGHT, NUM_INFERENCE_STEPS and GUIDANCE_SCALE are each a number,
        or several with commas between. NEGATIVE_PROMPT is a text and may be empty. SEED is a
        number. LORA is an adapter, or several with commas between; "none" is an image without.
        SCHEDULER is the same for samplers; "none" is the model's own. Raises ValueError that names
        the variable.
        """
        given = {}
        for variable, text in environ.items():
            if not variable.startswith(_PREFIX):
                continue
            field = variable.removeprefix(_PREFIX).lower()
            if field not in _READERS:
                names = ", ".join(_READERS).upper()
                raise ValueError(f"{variable} is unknown: after {_PREFIX} comes one of {names}")
            try:
                given[field] = _READERS[field](text)
            except ValueError as error:
                raise ValueError(f"{variable}={text!r}: {error}") from error
        return cls(**given)


def _as_kept(field: str, value: Any) -> Any:
    """`value` with lists as tuples and mappings as dicts.

    Raises ValueError for an empty list and for bad weights.
    """
    if isinstance(value, Mapping):
        for weight in value.values():
            check_number(f"a weight of {field}", weight, 0)
        if not sum(value.values()) > 0:
            raise ValueError(f"{field}: give at least one choice a weight above 0")
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not value:
            raise ValueError(
                f"{field} is an empty list: give at least one choice, or None for the default"
            )
        return tuple(value)
    return value


def _choices(value: Any) -> Iterable[Any]:
    if value is None:
        return ()
    return value if isinstance(value, dict | tuple) else (value,)


def _numbers(kind: type[int] | type[float], text: str) -> Any:
    """One number, or a tuple where there are commas."""
    parts = text.split(",")
    numbers = tuple(kind(part) for part in parts)
    return numbers[0] if len(numbers) == 1 else numbers


def _names(text: str) -> Any:
    """One adapter or sampler, or a tuple where there are commas."""
    names = tuple(None if part == "none" else part for part in text.split(","))
    return names[0] if len(names) == 1 else names


_READERS: dict[str, Callable[[str], Any]] = {
    "prompts": Path,
    "negative_prompt": str,
    "seed": int,
    "width": partial(_numbers, int),
    "height": partial(_numbers, int),
    "num_inference_steps": partial(_numbers, int),
    "guidance_scale": partial(_numbers, float),
    "lora": _names,
    "scheduler": _names,
}


def _draw(value: Any, chance: float) -> Any:
    """The choice on which `chance` falls, a number of at least 0 and below 1."""
    if isinstance(value, tuple):
        return value[int(chance * len(value))]
    if not isinstance(value, dict):
        return value
    left = chance * math.fsum(value.values())
    likely = [choice for choice, weight in value.items() if weight > 0]
    for choice in likely:
        left -= value[choice]
        if left < 0:
            return choice
    return likely[-1]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {"weights": [list(pair) for pair in value.items()]}
    return list(value) if isinstance(value, tuple) else value


@cache
def _own_prompts() -> tuple[str, ...]:
    return _checked_prompts(Path(__file__).with_name("prompts.txt"))


def _checked_prompts(path: Path) -> tuple[str, ...]:
    prompts = read_prompts(path)
    for number, prompt in enumerate(prompts, 1):
        where = f"{path}: prompt {number} (of the column named prompt, in a .csv)"
        check_text(where, prompt, shortest=1)
    return tuple(prompts)
