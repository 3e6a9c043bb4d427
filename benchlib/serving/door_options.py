"""The door's options, spelled once: which requests and clients come in, and what is told of them.

`serve`, the command line and the environment use them. Knows names, defaults, bounds, descriptions,
and the default bounds of each device. Ignorant of who applies them.
"""

from __future__ import annotations

import math
import re
import ssl
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    SecretStr,
    model_validator,
)

Auto = Literal["auto"]
FULL_PIXELS = 1024 * 1024
_KEY = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True)
class Bounds:
    """The bounds that are in force on a device. None is no bound.

    `max_pixel_steps`: the most width x height x steps, summed over a request's images.
    `max_queue_s`: the longest foretold wait. `max_per_client`: the most images that a client's
    address may have in the queue or under way.
    """

    max_pixel_steps: int | None
    max_queue_s: float | None
    max_per_client: int | None

    def in_words(self) -> str:
        """One sentence or more for the log."""
        sentences = []
        if self.max_pixel_steps is not None:
            steps = self.max_pixel_steps / FULL_PIXELS
            sentences.append(
                f"A request may have {self.max_pixel_steps:,} pixel steps: {steps:,.4g} steps "
                "of 1024x1024."
            )
        if self.max_queue_s is not None:
            sentences.append(f"It is refused if it would wait over {self.max_queue_s:,.4g} s.")
        if self.max_per_client is not None:
            sentences.append(f"A client may have {self.max_per_client} images inside.")
        return " ".join(sentences) or "No bound is set on a request's cost, wait or client."


# OpenAI's images API allows ten images of 1024x1024, which take 500 such steps at 50 steps each. An
# old GPU makes about one such step a second. OpenAI's client and `run_load` wait 600 s for an
# answer. The tiny model takes some seconds for such a step on a CPU, and people wait for it.
_USUAL = {
    "cpu": Bounds(max_pixel_steps=60 * FULL_PIXELS, max_queue_s=1800.0, max_per_client=None),
    "mps": Bounds(max_pixel_steps=600 * FULL_PIXELS, max_queue_s=1800.0, max_per_client=None),
    "cuda": Bounds(max_pixel_steps=1000 * FULL_PIXELS, max_queue_s=600.0, max_per_client=None),
}


def _read_bound(value: object) -> float | Auto | None:
    """A bound above 0; a text may say "auto" or "none"."""
    if value is None or value == "none":
        return None
    if value == "auto":
        return "auto"
    number = math.nan
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
    if not 0 < number < math.inf:
        raise ValueError('give a number above 0, "auto" or None')
    return number


def _read_whole_bound(value: object) -> int | Auto | None:
    bound = _read_bound(value)
    if bound is None or bound == "auto":
        return bound
    if bound != int(bound):
        raise ValueError('give a whole number, "auto" or None')
    return int(bound)


def _read_none(value: object) -> object:
    return None if value == "none" else value


def _check_key(value: object) -> object:
    """The key, unless it can't be one. The message never shows the key."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if text is not None and not (isinstance(text, str) and _KEY.fullmatch(text)):
        raise ValueError("a key has one or more visible ASCII characters and no space")
    return value


class DoorOptions(BaseModel):
    """Which requests and clients come in, and what is told of them.

    Raises pydantic's ValidationError, which names the field at fault. Texts never show the key.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )

    deadline_s: Annotated[float | None, BeforeValidator(_read_none)] = Field(
        default=None, gt=0, description="seconds; a slower request gets 504"
    )
    max_pixel_steps: Annotated[int | Auto | None, PlainValidator(_read_whole_bound)] = Field(
        default="auto",
        description="most width x height x steps of a request, over its images; more gets 422. "
        "auto: by device; none: no bound",
    )
    max_queue_s: Annotated[float | Auto | None, PlainValidator(_read_bound)] = Field(
        default="auto",
        description="longest foretold wait in seconds; a longer one gets 503. auto: by device; "
        "none: no bound",
    )
    max_per_client: Annotated[int | None, BeforeValidator(_read_none)] = Field(
        default=None,
        ge=1,
        description="most images of one client's address in the queue or under way; more gets 429",
    )
    api_key: Annotated[SecretStr | None, BeforeValidator(_check_key)] = Field(
        default=None, description="the key that clients send as Authorization: Bearer KEY"
    )
    access_log: bool = Field(
        default=False, description="write a line of JSON for each request to stdout"
    )
    root_path: str = Field(
        default="", description="the prefix of a proxy in front of this server, such as /sdxl"
    )
    ssl_certfile: str | None = Field(
        default=None, description="a certificate in PEM format; the server then speaks HTTPS"
    )
    ssl_keyfile: str | None = Field(
        default=None, description="the certificate's private key, unless its file holds it"
    )

    @model_validator(mode="after")
    def _check_certificate(self) -> DoorOptions:
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ValueError("ssl_keyfile needs a certificate: give ssl_certfile too")
        return self

    @property
    def key(self) -> str | None:
        """The API key itself."""
        return None if self.api_key is None else self.api_key.get_secret_value()

    def uvicorn_options(self) -> dict[str, Any]:
        """uvicorn's options for HTTPS, or {}. Raises ValueError if the certificate can't be used."""
        if self.ssl_certfile is None:
            return {}
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # Without a password, OpenSSL would ask the terminal for that of an encrypted key.
            context.load_cert_chain(self.ssl_certfile, self.ssl_keyfile, password=lambda: "")
        except OSError as error:
            raise ValueError(
                f"ssl_certfile, ssl_keyfile: {self.ssl_certfile!r} and {self.ssl_keyfile!r} are no "
                f"certificate and its key without a password ({error})"
            ) from None
        return {"ssl_certfile": self.ssl_certfile, "ssl_keyfile": self.ssl_keyfile}

    def bounds_on(self, device: str) -> Bounds:
        """The bounds on a device such as "cpu" or "cuda:1"."""
        kind = device.partition(":")[0]
        usual = _USUAL.get(kind, _USUAL["cuda"])
        pixel_steps = self.max_pixel_steps
        queue_s = self.max_queue_s
        return Bounds(
            max_pixel_steps=usual.max_pixel_steps if pixel_steps == "auto" else pixel_steps,
            max_queue_s=usual.max_queue_s if queue_s == "auto" else queue_s,
            max_per_client=self.max_per_client,
        )

    def add_to(self, spec: Mapping[str, Any], limits: Mapping[str, float]) -> dict[str, Any]:
        """A server's spec with what is in force at its door; {} before it is ready.

        That is the bounds, the deadline, whether a key is needed, and the `limits` of connections.
        """
        if not spec:
            return {}
        return {
            **spec,
            **asdict(self.bounds_on(spec["device"])),
            "deadline_s": self.deadline_s,
            "needs_key": self.api_key is not None,
            "limits": dict(limits),
        }
