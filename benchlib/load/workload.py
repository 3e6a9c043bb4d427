"""Knows which requests are sent: prompts, sizes, steps, guidance, seeds; the same ones every time.

Pure and deterministic. Ignorant of when they are sent, to whom, and what comes back.
"""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import IO, Any, Self, TypeAlias, TypeVar

from benchlib.load.bounds import check_number

_T = TypeVar("_T")
Choice: TypeAlias = _T | Sequence[_T] | Mapping[_T, float] | None

_PREFIX = "BENCHLIB_WORKLOAD_"


@dataclass(frozen=True)
class Workload:
    """A reproducible stream of requests: `request(i)` depends on the workload and `i` alone.

    Each field but `seed` is a value, a list of values (each as likely), a mapping of value to weight, or None, which
    leaves the field out of the request, so that the target's own default holds (`prompts`: the prompts of this
    package). `prompts` may also be a `pathlib.Path` to a .txt (a prompt a line), .csv (column `prompt`) or .jsonl (key
    `prompt`) file, which is read at once. None may stand *among* the choices of `negative_prompt` alone, as none and
    an empty one differ in diffusers. Lists are kept as tuples.

    Bounds: prompts of 1 to 4000 characters, negative prompts up to 4000, width and height multiples of 8 from 64 to
    2048 pixels, 1 to 150 steps, guidance 0 to 30. Raises ValueError that names the field, or the file and prompt.
    """

    prompts: Choice[str] | Path = None
    width: Choice[int] = None
    height: Choice[int] = None
    num_inference_steps: Choice[int] = None
    guidance_scale: Choice[float] = None
    negative_prompt: Choice[str | None] = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("seed", self.seed, 0, whole=True)
        if isinstance(self.prompts, Path):
            object.__setattr__(self, "prompts", _read_prompts(self.prompts))
        for field, check in _CHECKS.items():
            value = getattr(self, field)
            if isinstance(value, Mapping):
                value = dict(value)
                for weight in value.values():
                    check_number(f"a weight of {field}", weight, 0)
                if not sum(value.values()) > 0:
                    raise ValueError(f"{field}: give at least one choice a weight above 0")
            elif isinstance(value, Sequence) and not isinstance(value, str):
                value = tuple(value)
                if not value:
                    raise ValueError(
                        f"{field} is an empty list: give at least one choice, or None for the default"
                    )
            for choice in (
                () if value is None else value if isinstance(value, dict | tuple) else (value,)
            ):
                check(field, choice)
            object.__setattr__(self, field, value)

    def request(self, index: int) -> dict[str, Any]:
        """The JSON body of request `index` (0 and up): `prompt`, `seed`, and every other field that is not None."""
        # Random.random() alone is promised to be the same in every Python, and a field always takes the same draw,
        # so giving one field more choices changes no other.
        draw = random.Random(f"{self.seed}:{index}").random
        body: dict[str, Any] = {"seed": int(draw() * 2**32)}
        for field in _CHECKS:
            value = getattr(self, field)
            choice = _draw(
                _own_prompts() if field == "prompts" and value is None else value, draw()
            )
            if choice is not None:
                body["prompt" if field == "prompts" else field] = choice
        return body

    def with_defaults(self, *, width: int, height: int, num_inference_steps: int) -> Workload:
        """A copy in which these fields are filled in where they are None: a model's own size and steps."""
        defaults: dict[str, Any] = {
            "width": width,
            "height": height,
            "num_inference_steps": num_inference_steps,
        }
        return replace(
            self,
            **{field: value for field, value in defaults.items() if getattr(self, field) is None},
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able fields; weights become `{"weights": [[value, weight], ...]}`, as JSON's keys are strings only."""
        return {field: _plain(value) for field, value in vars(self).items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The workload that `to_dict` told of, equal to it also after a trip through JSON."""
        weights = {
            field: dict(value["weights"])
            for field, value in fields.items()
            if isinstance(value, Mapping)
        }
        return cls(**{**fields, **weights})

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Read BENCHLIB_WORKLOAD_PROMPTS (a file), _WIDTH, _HEIGHT, _NUM_INFERENCE_STEPS, _GUIDANCE_SCALE (a number, or
        several with commas between), _NEGATIVE_PROMPT (a text as it stands, may be empty) and _SEED.

        Raises ValueError that names the variable.
        """
        whole, real = _numbers(int), _numbers(float)
        readers: dict[str, Callable[[str], Any]] = {
            "prompts": Path,
            "negative_prompt": str,
            "seed": int,
        }
        readers |= {
            "width": whole,
            "height": whole,
            "num_inference_steps": whole,
            "guidance_scale": real,
        }
        fields = {}
        for variable, text in environ.items():
            if not variable.startswith(_PREFIX):
                continue
            field = variable.removeprefix(_PREFIX).lower()
            if field not in readers:
                raise ValueError(
                    f"{variable} is not known: after {_PREFIX} comes one of {', '.join(readers).upper()}"
                )
            try:
                fields[field] = readers[field](text)
            except ValueError as error:
                raise ValueError(f"{variable}={text!r}: {error}") from error
        return cls(**fields)


def _check_text(field: str, text: Any, shortest: int = 0) -> None:
    if not isinstance(text, str) or not shortest <= len(text) <= 4000:
        raise ValueError(
            f"{field} must be text of {shortest} to 4000 characters, got {str(text)[:40]!r}"
        )
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(
            f"{field} holds half a character (a lone surrogate), which UTF-8 cannot carry: {text[:40]!r}"
        )


def _check_size(field: str, pixels: Any) -> None:
    check_number(field, pixels, 64, 2048, whole=True)
    if pixels % 8:
        raise ValueError(f"{field} must be a multiple of 8, got {pixels}")


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "prompts": lambda field, text: _check_text(field, text, shortest=1),
    "width": _check_size,
    "height": _check_size,
    "num_inference_steps": lambda field, steps: check_number(field, steps, 1, 150, whole=True),
    "guidance_scale": lambda field, scale: check_number(field, scale, 0, 30),
    "negative_prompt": lambda field, text: None if text is None else _check_text(field, text),
}


def check_request(where: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of one request, but for those that are None; a number may be text, as a .csv has it.

    Raises ValueError that names `where` and the field.
    """
    checks = {"prompt" if field == "prompts" else field: check for field, check in _CHECKS.items()}
    checks["seed"] = lambda field, seed: check_number(field, seed, 0, whole=True)
    body = {}
    for field, value in fields.items():
        if field not in checks:
            raise ValueError(
                f"{where}: {field!r} is no field of a request; there are {', '.join(checks)}"
            )
        if isinstance(value, str) and "prompt" not in field:
            value = float(value) if field == "guidance_scale" else int(value)
        if value is not None:
            checks[field](f"{where}: {field}", value)
            body[field] = value
    return body


def _openai_body(body: Mapping[str, Any]) -> dict[str, Any]:
    rest = {field: value for field, value in body.items() if field not in ("width", "height")}
    if len(body) - len(rest) == 1:
        raise ValueError(
            "api='openai' has one field for the size: give both width and height, or neither"
        )
    size = {"size": f"{body['width']}x{body['height']}"} if len(rest) < len(body) else {}
    return {**rest, **size, "n": 1, "response_format": "b64_json"}


# How a server is asked for an image: the route, and its body made of that of `Workload.request`.
APIS: dict[str, tuple[str, Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    "benchmark": ("/benchmark/generate", dict),
    "openai": ("/v1/images/generations", _openai_body),
}


def _draw(value: Any, chance: float) -> Any:
    """The choice that `chance`, from 0 up to but not 1, falls on."""
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


def _numbers(kind: type[int] | type[float]) -> Callable[[str], Any]:
    """A reader of `text`: one number, or a tuple where there are commas."""

    def read(text: str) -> Any:
        numbers = tuple(kind(part) for part in text.split(","))
        return numbers[0] if len(numbers) == 1 else numbers

    return read


@cache
def _own_prompts() -> tuple[str, ...]:
    return _read_prompts(Path(__file__).with_name("prompts.txt"))


def _read_prompts(path: Path) -> tuple[str, ...]:
    readers: dict[str, Callable[[IO[str]], list[Any]]] = {
        ".txt": lambda file: [line.strip() for line in file if line.strip()],
        ".csv": lambda file: [row.get("prompt") for row in csv.DictReader(file)],
        ".jsonl": lambda file: [json.loads(line)["prompt"] for line in file if line.strip()],
    }
    if path.suffix not in readers:
        raise ValueError(f"{path}: prompts are read from .txt, .csv or .jsonl files")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            prompts = readers[path.suffix](file)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path}: each line must be like {{"prompt": "..."}} in UTF-8: {error!r}'
        ) from error
    if not prompts:
        raise ValueError(f"{path}: there is no prompt in it")
    for number, prompt in enumerate(prompts, 1):
        _check_text(
            f"{path}: prompt {number} (of the column named prompt, in a .csv)", prompt, shortest=1
        )
    return tuple(prompts)
