"""OpenAI's images API, so that its clients can request images from this server.

Knows https://platform.openai.com/docs/api-reference/images/create: bodies, answers, and the shape
and status of errors. Fields that this server lacks (quality, style, user, ...) are ignored.
Ignorant of how images are made (handoff.py).
"""

from __future__ import annotations

import base64
import io
import json
import re
import secrets
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, field_validator

from benchlib.serving.engine.made import File
from benchlib.serving.handoff import HandOff
from benchlib.serving.headers import answer_headers
from benchlib.serving.image_links import MOST_IMAGES, link_to
from benchlib.serving.model_list import Model, ModelList, adapter_named, models_of
from benchlib.serving.scheduler_names import SchedulerName
from benchlib.serving.schemas import (
    MAX_SEED,
    MAX_SIDE,
    MIN_SIDE,
    GenerateRequest,
    Guidance,
    Lora,
    NegativePrompt,
    Prompt,
    Seed,
    Steps,
)
from benchlib.serving.unserved import Unserved

if TYPE_CHECKING:
    from PIL.Image import Image

PREFIX = "/v1"
# zlib's fastest. Pillow's default takes three times as long, and its files are an eighth smaller.
PNG_OPTIONS = {"compress_level": 1}
_SIZE = re.compile(r"([0-9]{2,4})x([0-9]{2,4})")
_SAME = ("prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "scheduler", "lora")


class ImagesRequest(BaseModel):
    """A request for one to ten images of a prompt. None stands for a field's default.

    The defaults of size and steps are the model's own. `num_inference_steps`, `guidance_scale`,
    `negative_prompt`, `seed`, `scheduler` and `lora` are not OpenAI's: in its Python client they go
    into `extra_body`.
    Image i, counted from 0, is drawn with `seed` + i.
    """

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)

    prompt: Prompt
    model: str | None = Field(
        default=None, description="an id that /v1/models lists; the model's own if left out"
    )
    n: int | None = Field(
        default=None, ge=1, le=MOST_IMAGES, description="how many images; 1 by default"
    )
    size: str | None = Field(
        default=None,
        pattern=f"^(auto|{_SIZE.pattern})$",
        examples=["auto", "1024x1024"],
        description="WIDTHxHEIGHT",
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        default=None, description="the image, or a link to it that lasts minutes; both by default"
    )
    output_format: Literal["png", "jpeg", "webp"] | None = Field(
        default=None, description="png by default"
    )
    output_compression: int | None = Field(
        default=None, ge=0, le=100, description="quality of jpeg and webp; 100 by default"
    )
    stream: bool | None = Field(
        default=None, description="false or left out, because there are no partial images"
    )
    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None
    negative_prompt: NegativePrompt = None
    seed: Seed = None
    scheduler: SchedulerName | None = None
    lora: Lora | None = None

    @field_validator("size")
    @classmethod
    def _check_size(cls, size: str | None) -> str | None:
        if size in (None, "auto"):
            return size
        for side in map(int, size.split("x")):
            if side % 8 or not MIN_SIDE <= side <= MAX_SIDE:
                raise ValueError(
                    f"width and height must be multiples of 8 from {MIN_SIDE} to {MAX_SIDE}, "
                    f"or auto"
                )
        return size

    @field_validator("stream")
    @classmethod
    def _check_stream(cls, stream: bool | None) -> bool | None:
        if stream:
            raise ValueError("there are no partial images to stream; leave stream out")
        return stream

    def requests(self, own: Mapping[str, Any]) -> list[GenerateRequest]:
        """Return a request for each image. `own` has the fields that the body may leave out.

        Raises RequestValidationError if the last seed would be too large.
        """
        # 1) The fields that all images share
        fields: dict[str, Any] = dict(own)
        for name in _SAME:
            value = getattr(self, name)
            if value is not None:
                fields[name] = value
        sides = _SIZE.fullmatch(self.size or "")
        if sides is not None:
            fields["width"] = int(sides[1])
            fields["height"] = int(sides[2])

        # 2) A seed for each image
        n = self.n or 1
        seed = self.seed
        if seed is None:
            seed = secrets.randbelow(MAX_SEED + 2 - n)
        if seed + n - 1 > MAX_SEED:
            last = "the image" if n == 1 else f"the last of {n} images"
            raise _invalid("seed", f"{last} would have a seed above {MAX_SEED}")
        return [GenerateRequest(seed=seed + number, **fields) for number in range(n)]

    def write_file(self, image: Image) -> File:
        """Return the image as a file of the requested format, and its base64 if that is wanted."""
        file = io.BytesIO()
        kind = self.output_format or "png"
        quality = 100 if self.output_compression is None else self.output_compression
        options = PNG_OPTIONS if kind == "png" else {"quality": quality}
        image.save(file, kind, **options)
        content = file.getvalue()
        in_base64 = "" if self.response_format == "url" else base64.b64encode(content).decode()
        return content, in_base64


class ImageFile(BaseModel):
    """The image in base64, a link to it, or both, as the request's `response_format` says."""

    b64_json: str | None = None
    url: str | None = None


class ImagesResponse(BaseModel):
    """The images, in the order of their seeds. The header X-Seed has the first image's seed."""

    created: int
    data: list[ImageFile]
    size: str
    output_format: Literal["png", "jpeg", "webp"]


class OpenAIProblem(BaseModel):
    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """An error in OpenAI's shape. `param` is the field at fault; `code` is the reason in a word."""

    error: OpenAIProblem


def make_router(handoff: HandOff) -> APIRouter:
    """The routes under /v1."""
    started = int(time.time())
    errors: dict[int | str, dict[str, Any]] = {
        code: {"model": OpenAIError} for code in ("4XX", 500, 503, 504, 507)
    }
    router = APIRouter(prefix=PREFIX)

    # 1) Images
    @router.post(
        "/images/generations",
        response_model=ImagesResponse,
        responses=errors,
        summary="Make images, by OpenAI's API",
    )
    async def generate_images(body: ImagesRequest, http: Request) -> Response:
        wanted = body.requests(_own_fields(handoff.engine.spec, body.model))
        answer = await handoff.make_images(http, wanted, body.write_file)
        kind = body.output_format or "png"
        data = []
        for content, in_base64 in answer.files:
            shown = {}
            if in_base64:
                shown["b64_json"] = in_base64
            if body.response_format != "b64_json":
                shown["url"] = link_to(http, handoff.links.add(content, kind))
            data.append(shown)
        response = {
            "created": int(time.time()),
            "data": data,
            "size": f"{wanted[0].width}x{wanted[0].height}",
            "output_format": kind,
        }
        return Response(
            json.dumps(response), headers=answer_headers(answer), media_type="application/json"
        )

    # 2) The model
    @router.get("/models", summary="The model that is served, and its adapters")
    async def list_models() -> ModelList:
        return ModelList(data=models_of(handoff.engine.spec, started))

    # A model's id may hold slashes: a hub id, or a path.
    @router.get(
        "/models/{model:path}",
        summary="One of these models",
        responses={404: {"model": OpenAIError}},
    )
    async def retrieve_model(model: str) -> Model:
        spec = handoff.engine.spec
        if not spec:
            raise Unserved(404, "model_not_found", "the model is still loading; wait for /ready")
        for listed in models_of(spec, started):
            if listed.id == model:
                return listed
        raise _unknown_model(spec)

    return router


def _own_fields(spec: Mapping[str, Any], model: str | None) -> dict[str, Any]:
    """The fields of a request that leaves them out. Raises `Unserved` for an unknown model.

    `model` may name an adapter. Then it is on, unless the request's `lora` says otherwise.
    """
    if not spec:  # it loads, and the engine refuses
        return {}
    try:
        adapter = adapter_named(model, spec)
    except KeyError:
        raise _unknown_model(spec) from None
    return {**spec["showcase"], "lora": adapter}


def _unknown_model(spec: Mapping[str, Any]) -> Unserved:
    others = ", ".join(spec.get("loras") or ())
    words = f"this server serves only {spec['model']!r}; name that model, or none"
    if others:
        words += f", or one of its adapters: {others}"
    return Unserved(404, "model_not_found", words)


def expects_openai(http: Request) -> bool:
    """Whether the client of this request expects OpenAI's errors."""
    path: str = http.state.path
    return path.startswith(f"{PREFIX}/")


def error_body(status: int, detail: object, code: str | None) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of an error in OpenAI's shape.

    `detail` is a sentence, or FastAPI's list of problems. A bad body gets 400 in place of 422,
    because OpenAI's clients treat the two statuses differently.
    """
    if status == 422:
        status = 400
    message = str(detail)
    param = None
    if isinstance(detail, list):
        problem = detail[0]
        code = problem["type"]
        message = problem["msg"]
        place = problem["loc"]
        if len(place) > 1 and isinstance(place[1], str):
            param = "size" if place[1] in ("width", "height") else place[1]
            message = f"{param}: {message}"
    kind = "invalid_request_error" if status < 500 else "server_error"
    return status, {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _invalid(field: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"loc": ("body", field), "msg": message, "type": "value_error"}])
