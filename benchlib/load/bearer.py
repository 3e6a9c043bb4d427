"""The key and the secret headers that a load sends: where they are from, and how no text gets them.

Each request carries them. Ignorant of plans, rows and servers.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Mapping
from urllib.parse import quote

KEY_VARIABLE = "BENCHLIB_LOAD_API_KEY"
HEADERS_VARIABLE = "BENCHLIB_LOAD_HEADERS"
_KEY = re.compile(r"[\x21-\x7e]+")
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # a token of RFC 9110
_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_OURS = {
    "accept-encoding", "connection", "content-length", "content-type", "host",
    "transfer-encoding", "x-request-id",
}  # fmt: skip
_LIKE = """like {"X-Api-Key": "..."}"""


def headers_of_environment() -> dict[str, str]:
    """The secret headers that a load on anybody's server sends.

    BENCHLIB_LOAD_API_KEY is sent as `Authorization: Bearer`. BENCHLIB_LOAD_HEADERS is a JSON object
    of names and values. Raises ValueError, which never shows a value, for what no header can hold.
    """
    headers = bearer_header(os.environ.get(KEY_VARIABLE) or None)
    text = os.environ.get(HEADERS_VARIABLE)
    if not text:
        return headers
    try:
        given = json.loads(text)
    except ValueError:
        raise ValueError(f"{HEADERS_VARIABLE} must be a JSON object {_LIKE}") from None
    if not isinstance(given, dict):
        raise ValueError(f"{HEADERS_VARIABLE} must be a JSON object {_LIKE}")
    taken = _OURS | {name.lower() for name in headers}
    for name, value in given.items():
        _check_header(name, value, taken)
        taken.add(name.lower())
    return headers | given


def _check_header(name: str, value: object, taken: set[str]) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{HEADERS_VARIABLE}: {name!r} can't be a header's name; it is {_LIKE}")
    if name.lower() in taken:
        raise ValueError(
            f"{HEADERS_VARIABLE}: {name} is set by the load itself, or twice: leave it"
        )
    if not (isinstance(value, str) and _VALUE.fullmatch(value)):
        raise ValueError(
            f"{HEADERS_VARIABLE}: the value of {name} must be visible ASCII characters; "
            "spaces may be between them"
        )


def bearer_header(key: str | None) -> dict[str, str]:
    """The header that carries `key`, or none for None. Raises ValueError as `check_key` does."""
    check_key(key)
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def check_key(key: str | None) -> None:
    """Raises ValueError, which never shows the key, for one that a header can't hold."""
    if key is not None and not (isinstance(key, str) and _KEY.fullmatch(key)):
        raise ValueError(
            f"api_key ({KEY_VARIABLE}) must have visible ASCII characters and no space"
        )


def without_secrets(words: str, headers: Mapping[str, str]) -> str:
    """`words` without the values of `headers`: some servers repeat them in their errors.

    Each spelling of a value is blotted out.
    """
    spellings: set[str] = set()
    for name, value in headers.items():
        spellings |= _spellings(value)
        if name.lower() == "authorization":  # after the scheme's name
            spellings |= _spellings(value.partition(" ")[2] or value)
    if not spellings:
        return words
    longest_first = sorted(spellings, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest_first)), "(the key)", words)


def _spellings(secret: str) -> set[str]:
    in_json = json.dumps(secret)[1:-1]
    in_url = quote(secret, safe="")
    return {secret, in_json, in_json.replace("/", "\\/"), in_url, html.escape(secret)}
