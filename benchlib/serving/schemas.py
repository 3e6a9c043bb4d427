"""The bodies of requests and answers. Python callers use the same request model.

Knows fields and bounds. Ignorant of torch, of engines and of how HTTP carries these models.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from benchlib.lora import usual_spelling
from benchlib.serving.scheduler_names import SchedulerName

MAX_SEED = 2**63 - 1

MIN_SIDE, MAX_SIDE = 64, 2048
MAX_STEPS = 150

Prompt = Annotated[
    str, Field(min_length=1, max_length=4000, examples=["a cute cat sitting on a table"])
]
NegativePrompt = Annotated[str | None, Field(max_length=4000)]
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Guidance = Annotated[float, Field(ge=0, le=30)]
Side = Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE, multiple_of=8, description="pixels")]
Seed = Annotated[int | None, Field(ge=0, le=MAX_SEED)]


class BadField(ValueError):
    """The model can't take a request's value, though its bounds allow it. `field` names it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem

    def __reduce__(self) -> tuple[type[BadField], tuple[str, str]]:
        return BadField, (self.field, self.problem)  # a replica's error crosses to another process


Lora = Annotated[
    str,
    Field(max_length=80, examples=["style:0.8"], description="an adapter, and its scale"),
    AfterValidator(usual_spelling),
]


class GenerateRequest(BaseModel):
    """A request for one image.

    A `guidance_scale` of 1 or less switches classifier-free guidance off. `negative_prompt=None`
    stands for zero embeddings, `""` for an encoded empty prompt; the images differ. With
    `seed=None` the server draws a seed and names it. `scheduler=None` stands for the model's own;
    docs/samplers.md lists the others. `lora` is one of the server's adapters, such as "style", or
    "style:0.8" with its scale. Raises pydantic's ValidationError, which names the
    field, if a value is out of bounds.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    prompt: Prompt
    negative_prompt: NegativePrompt = None
    num_inference_steps: Steps = 20
    guidance_scale: Guidance = 7.5
    width: Side = 1024
    height: Side = 1024
    seed: Seed = None
    scheduler: SchedulerName | None = None
    lora: Lora | None = None

    @property
    def pixel_steps(self) -> int:
        """Pixels times denoising steps: the cost of a request, to first order."""
        return self.width * self.height * self.num_inference_steps

    def rows(self, guided_rows: int) -> int:
        """Rows in the UNet's batch, if a guided image takes `guided_rows`: 2 in most models."""
        return guided_rows if self.guidance_scale > 1 else 1


def unfit_sides(request: GenerateRequest, multiple: int) -> dict[str, str]:
    """The sides that are no multiple of `multiple` pixels, a model's own, and why they are unfit.

    The bounds above hold for every model; one whose VAE makes larger squares of a latent has more.
    """
    unfit = {}
    for name, pixels in (("width", request.width), ("height", request.height)):
        if pixels % multiple:
            nearest = max(multiple, pixels - pixels % multiple)
            unfit[name] = (
                f"{pixels} is no multiple of {multiple}, which this model's VAE needs; "
                f"take {nearest}"
            )
    return unfit


class GenerateResponse(BaseModel):
    """The cost of one image. The image itself is decoded to PIL and dropped."""

    prompt: str
    time_s: float = Field(
        description="wall seconds of this request's engine calls, without queueing"
    )
    mem_gb: float | None = Field(
        description="peak GiB over these calls: the CUDA allocator's, or the process's RSS on a CPU"
    )
    num_inference_steps: int
    guidance_scale: float
    width: int
    height: int
    model_params: int = Field(description="parameters of all the pipeline's networks")


class Health(BaseModel):
    """`detail` says why the server is not alive: it has no engine, and needs a new start."""

    status: Literal["alive", "failed"] = "alive"
    detail: str | None = None


class Readiness(BaseModel):
    """A server that is "failing" takes requests, but its last 30 calls of the model have failed.

    Of one that is "degraded", some replicas are missing or failing. The others serve.
    """

    status: Literal["loading", "ready", "degraded", "failing", "failed", "stopped"]
    replicas: int | None = Field(default=None, description="how many there should be")
    ready_replicas: int | None = Field(default=None, description="how many of them can serve")
    detail: str | None = Field(
        default=None, description="why it has failed or is failing, or what its start does now"
    )
    spec: dict[str, Any] | None = Field(
        default=None,
        description="once ready: the model, the options and the measured step times",
    )


class Problem(BaseModel):
    """An error's body.

    `detail` is a sentence, or for a 422 a list of `{loc, msg, type}` that names each field.
    """

    detail: str | list[dict[str, object]]
    request_id: str
