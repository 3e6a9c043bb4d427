"""The images route of OpenAI's API, so that its clients can ask this server for images.

Knows the wire of https://platform.openai.com/docs/api-reference/images/create: what is asked, what is answered, how an
error looks. What that API knows and this server does not (quality, style, user, ...) is ignored. Ignorant of how images
are made (the desk's business).
"""

from __future__ import annotations

import base64
import io
import re
import secrets
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, field_validator

from benchlib.serving.handoff import Desk, Unserved, server_timing
from benchlib.serving.schemas import (
    MAX_SEED,
    MAX_SIDE,
    MIN_SIDE,
    GenerateRequest,
    Guidance,
    NegativePrompt,
    Prompt,
    Seed,
    Steps,
)

if TYPE_CHECKING:
    from PIL.Image import Image

PREFIX = "/v1"
_SIZE = re.compile(r"([0-9]{2,4})x([0-9]{2,4})")
_SAME = ("prompt", "negative_prompt", "num_inference_steps", "guidance_scale")


class ImagesRequest(BaseModel):
    """One to ten images of a prompt. None stands for the default; size and steps are by default the model's own.

    `num_inference_steps`, `guidance_scale`, `negative_prompt` and `seed` are not OpenAI's: in its Python client they go
    into `extra_body`. Image i is drawn with `seed` + i.
    """

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)

    prompt: Prompt
    model: str | None = Field(default=None, description="what /v1/models lists, or left out")
    n: int | None = Field(default=None, ge=1, le=10, description="how many images; 1 by default")
    size: str | None = Field(
        default=None,
        pattern=f"^(auto|{_SIZE.pattern})$",
        examples=["auto", "1024x1024"],
        description="WIDTHxHEIGHT",
    )
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = Field(
        default=None, description="png by default"
    )
    output_compression: int | None = Field(
        default=None, ge=0, le=100, description="quality of jpeg and webp; 100 by default"
    )
    stream: bool | None = Field(
        default=None, description="there are no partial images: false, or left out"
    )
    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None
    negative_prompt: NegativePrompt = None
    seed: Seed = None

    @field_validator("size")
    @classmethod
    def _check_size(cls, size: str | None) -> str | None:
        sides = [] if size in (None, "auto") else [int(side) for side in size.split("x")]
        if any(side % 8 or not MIN_SIDE <= side <= MAX_SIDE for side in sides):
            raise ValueError(
                f"width and height must be multiples of 8 from {MIN_SIDE} to {MAX_SIDE}, or auto"
            )
        return size

    @field_validator("stream")
    @classmethod
    def _check_stream(cls, stream: bool | None) -> bool | None:
        if stream:
            raise ValueError("there are no partial images to stream; leave it out")
        return stream

    def requests(self, defaults: Mapping[str, int]) -> list[GenerateRequest]:
        """A request for each image; `defaults` has the width, height and steps that were not asked for."""
        fields = {
            **defaults,
            **{name: value for name in _SAME if (value := getattr(self, name)) is not None},
        }
        if sides := _SIZE.fullmatch(self.size or ""):
            fields |= {"width": int(sides[1]), "height": int(sides[2])}
        n = self.n or 1
        seed = secrets.randbelow(MAX_SEED + 2 - n) if self.seed is None else self.seed
        if seed + n - 1 > MAX_SEED:
            raise _invalid("seed", f"the last of {n} images would have a seed above {MAX_SEED}")
        return [GenerateRequest(seed=seed + number, **fields) for number in range(n)]

    def write_file(self, image: Image) -> str:
        """The image as a file, in base64."""
        file = io.BytesIO()
        kind = self.output_format or "png"
        quality = (
            {}
            if kind == "png"
            else {"quality": 100 if self.output_compression is None else self.output_compression}
        )
        image.save(file, kind, **quality)
        return base64.b64encode(file.getvalue()).decode("ascii")


class ImageFile(BaseModel):
    b64_json: str


class ImagesResponse(BaseModel):
    """The images, in the order of their seeds; the header X-Seed has the first one's."""

    created: int
    data: list[ImageFile]
    size: str
    output_format: Literal["png", "jpeg", "webp"]


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["benchlib"] = "benchlib"


class ModelList(BaseModel):
    """The one model that is served; none as long as it loads."""

    object: Literal["list"] = "list"
    data: list[Model]


class OpenAIProblem(BaseModel):
    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """An error in OpenAI's shape; `param` is the field at fault, `code` the reason in a word."""

    error: OpenAIProblem


def make_router(desk: Desk) -> APIRouter:
    """The routes under /v1."""
    started = int(time.time())
    errors: dict[int | str, dict[str, Any]] = {
        code: {"model": OpenAIError} for code in ("4XX", 500, 503, 504, 507)
    }
    router = APIRouter(prefix=PREFIX)

    @router.post(
        "/images/generations",
        response_model=ImagesResponse,
        responses=errors,
        summary="Make images, as OpenAI does",
    )
    async def generate_images(body: ImagesRequest, request: Request) -> Response:
        spec = desk.engine.spec
        if spec and body.model is not None and body.model != spec["model"]:
            raise Unserved(
                404,
                "model_not_found",
                f"this server has {spec['model']!r} alone: name it, or no model",
            )
        asked = body.requests(spec.get("showcase", {}))
        made = await desk.make(request, asked, body.write_file)
        answer = ImagesResponse.model_construct(
            created=int(time.time()),
            data=[ImageFile.model_construct(b64_json=file) for file in made.files],
            size=f"{asked[0].width}x{asked[0].height}",
            output_format=body.output_format or "png",
        )
        headers = {"X-Seed": str(asked[0].seed), "Server-Timing": server_timing(made)}
        return Response(answer.model_dump_json(), headers=headers, media_type="application/json")

    @router.get("/models")
    async def list_models() -> ModelList:
        spec = desk.engine.spec
        return ModelList(data=[Model(id=spec["model"], created=started)] if spec else [])

    return router


def error_body(status: int, detail: object, code: str | None) -> dict[str, Any]:
    """An error in OpenAI's shape. `detail` is a sentence, or what FastAPI says of a bad body."""
    param = None
    if isinstance(detail, list):
        first = detail[0]
        code, message = first["type"], first["msg"]
        if len(first["loc"]) > 1 and isinstance(first["loc"][1], str):
            param = {"width": "size", "height": "size"}.get(first["loc"][1], first["loc"][1])
            message = f"{param}: {message}"
    else:
        message = str(detail)
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _invalid(field: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"loc": ("body", field), "msg": message, "type": "value_error"}])
