"""Asks several servers who they are, before they share one load: they must be ready, and alike.

Knows `/ready`, as our own server answers it, and `/v1/models` of OpenAI's API, which others have.
Ignorant of plans, rows and of how a load is sent.
"""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from benchlib.load.addresses import Address
from benchlib.load.bearer import HEADERS_VARIABLE, KEY_VARIABLE, without_secrets

_PATIENCE_S = 20.0  # for one answer
_MOST_BYTES = 2**22
_MUST_AGREE = (
    "model", "model_params", "dtype", "recipe", "unet", "scheduler",
    "loras", "fused_loras", "lora_files",
)  # fmt: skip
"""The fields of our server's spec that change its images or the work of one."""


class Introduction(NamedTuple):
    """What a server says of itself: its model's name and our spec, None where it says nothing."""

    url: str
    model: str | None
    spec: dict[str, Any] | None


def introduced(
    addresses: Sequence[Address], headers: Mapping[str, str], *, verify: bool
) -> dict[str, list[dict[str, Any]]]:
    """What each of several servers says, as `targets` of a run's record; {} for a single one.

    Raises ValueError that names the server which can't be reached, is not ready or refuses the key,
    and for servers of different models.
    """
    if len(addresses) < 2:
        return {}
    said = [_ask(address, headers, verify=verify) for address in addresses]
    _check_models(said)
    _check_specs([one for one in said if one.spec is not None])
    return {"targets": [one._asdict() for one in said]}


def _ask(address: Address, headers: Mapping[str, str], *, verify: bool) -> Introduction:
    url = address.url
    sent = dict(headers)
    if address.authorization is not None:
        sent["Authorization"] = address.authorization
    try:
        # 1) Our own server answers /ready, and says what it serves.
        status, answer = _get(url, "/ready", sent, verify=verify)
        if "status" in answer and "spec" in answer:
            if status != 200:
                why = answer.get("detail") or answer["status"]
                raise ValueError(f"target {url} is not ready: {why}; wait until its /ready is 200")
            spec = dict(answer["spec"] or {})
            for name in ("step_times", "step_times_by_replica"):
                spec.pop(name, None)
            return Introduction(url, spec.get("model"), spec)

        # 2) Any other has OpenAI's list of models, or says nothing of its model.
        status, answer = _get(url, "/v1/models", sent, verify=verify)
    except (OSError, http.client.HTTPException) as error:
        words = without_secrets(f"{type(error).__name__}: {error}", sent)
        raise ValueError(
            f"target {url} does not answer ({words}): start it, or leave it out"
        ) from None
    if status in (401, 403):
        variables = f"{KEY_VARIABLE} or {HEADERS_VARIABLE}"
        raise ValueError(f"target {url} wants a key (HTTP {status}): set {variables}")
    return Introduction(url, _first_model(answer), None)


def _get(
    url: str, path: str, headers: Mapping[str, str], *, verify: bool
) -> tuple[int, dict[str, Any]]:
    """The status and the JSON object of an answer, {} for any other answer. Follows no redirect."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context()
        if not verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(
            host, parts.port, timeout=_PATIENCE_S, context=context
        )
    else:
        connection = http.client.HTTPConnection(host, parts.port, timeout=_PATIENCE_S)
    try:
        connection.request("GET", parts.path + path, headers=dict(headers))
        response = connection.getresponse()
        text = response.read(_MOST_BYTES)
    finally:
        connection.close()
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return response.status, {}
    return response.status, answer if isinstance(answer, dict) else {}


def _first_model(answer: Mapping[str, Any]) -> str | None:
    models = answer.get("data")
    if not isinstance(models, list) or not models or not isinstance(models[0], dict):
        return None
    name = models[0].get("id")
    return name if isinstance(name, str) else None


def _check_models(said: Sequence[Introduction]) -> None:
    known = [one for one in said if one.model is not None]
    if len({one.model for one in known}) < 2:
        return
    served = ", ".join(f"{one.url} serves {one.model}" for one in known)
    raise ValueError(
        f"the targets serve different models ({served}), and one run can't stand for both: "
        "give the URLs of one model"
    )


def _check_specs(said: Sequence[Introduction]) -> None:
    for field in _MUST_AGREE:
        values = [json.dumps((one.spec or {}).get(field)) for one in said]
        if len(set(values)) < 2:
            continue
        shown = ", ".join(f"{one.url} has {value}" for one, value in zip(said, values, strict=True))
        raise ValueError(
            f"the targets differ in {field} ({shown}), and one run can't stand for both: "
            "serve them alike"
        )
