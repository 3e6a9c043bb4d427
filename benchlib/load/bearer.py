"""The API key that a load sends: where it comes from, and how it is kept out of every text.

Ignorant of plans, rows and servers.
"""

from __future__ import annotations

import html
import json
import os
import re
from urllib.parse import quote

KEY_VARIABLE = "BENCHLIB_LOAD_API_KEY"
_KEY = re.compile(r"[\x21-\x7e]+")


def key_of_environment() -> str | None:
    """The key that a load on anybody's server sends, or None."""
    return os.environ.get(KEY_VARIABLE) or None


def check_key(key: str | None) -> None:
    """Raises ValueError, which never shows the key, for one that a header can't hold."""
    if key is not None and not (isinstance(key, str) and _KEY.fullmatch(key)):
        raise ValueError(
            f"api_key ({KEY_VARIABLE}) must have visible ASCII characters and no space"
        )


def without_key(words: str, key: str | None) -> str:
    """`words` with the key blotted out in each spelling: some servers repeat it in their errors."""
    if key is None:
        return words
    in_json = json.dumps(key)[1:-1]
    spellings = {key, in_json, in_json.replace("/", "\\/"), quote(key, safe=""), html.escape(key)}
    for spelling in sorted(spellings, key=len, reverse=True):
        words = words.replace(spelling, "(the key)")
    return words
