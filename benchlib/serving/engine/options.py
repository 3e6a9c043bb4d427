"""The engine's options, spelled once.

`serve`, the command line, the environment and a run's record use them. Knows names, defaults,
bounds and descriptions. Ignorant of what the engine does with them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from benchlib.serving.engine.step_times import Size

Batching = Literal["serial", "dynamic", "continuous"]
OnNotFinite = Literal["error", "allow"]
AtLeastOne = Annotated[int, Field(ge=1)]
SomeNumbers = Annotated[tuple[AtLeastOne, ...], Field(min_length=1)]


def _split_numbers(value: object) -> object:
    """The numbers in a text such as "1,2,4"; any other value as it is."""
    if isinstance(value, str):
        return value.split(",")
    return value


def _split_sizes(value: object) -> object:
    """The sides in a text such as "1024x1024,512x512"; any other value as it is."""
    if isinstance(value, str):
        return [size.split("x") for size in value.split(",")]
    return value


class EngineOptions(BaseModel):
    """How requests share the model.

    Raises pydantic's ValidationError, which names the field at fault. `batch_buckets` are batch
    sizes of the UNet in rows; a guided request takes two rows. A compiled model is warmed for each
    bucket before it serves (by default 2, 4, 8, ...). A smaller batch is padded to the next bucket.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    batching: Batching = Field(
        default="continuous",
        description="how requests share the model: serial, dynamic or continuous",
    )
    max_batch_size: AtLeastOne = Field(
        default=8,
        description="most requests in one denoising step",
    )
    max_wait_ms: float = Field(
        default=5.0,
        ge=0,
        description="how long dynamic batching waits for more requests",
    )
    max_queue: AtLeastOne = Field(
        default=64,
        description="requests that may wait; one more gets 503",
    )
    batch_buckets: Annotated[SomeNumbers | None, BeforeValidator(_split_numbers)] = Field(
        default=None,
        description="batch sizes to pad to, for compiled models: 1,2,4",
    )
    sizes: Annotated[tuple[Size, ...] | None, BeforeValidator(_split_sizes)] = Field(
        default=None,
        description="sizes to measure before serving: 1024x1024,512x512; else the model's own",
    )
    on_nonfinite: OnNotFinite = Field(
        default="error",
        description="an image from NaN or infinite numbers: error (500), or allow (with a header)",
    )


# The options that a server's spec and a run's record name.
RECORDED_OPTIONS = ("batching", "max_batch_size", "max_wait_ms", "max_queue")


def in_words(error: ValidationError) -> str:
    """One line that names each field at fault, the problem, and the given value."""
    problems = []
    for problem in error.errors():
        field = ".".join(map(str, problem["loc"]))
        words = problem["msg"]
        if field:
            words = f"{field}: {words}"
        # A key reaches no text. A problem of several fields has all of them as its input.
        if field not in ("", "api_key"):
            words += f", not {problem['input']!r}"
        problems.append(words)
    return "; ".join(problems)
