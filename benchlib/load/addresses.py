"""The addresses of the servers that are one target, and which request goes to which.

Pure. Knows URLs. Ignorant of what a server is asked.
"""

from __future__ import annotations

import base64
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

Urls = str | tuple[str, ...]


class Address(NamedTuple):
    """A server's base URL without user and password, and the header that carries these, or None."""

    url: str
    authorization: str | None


def as_urls(given: Any) -> Urls:
    """One base URL as text, or several as a tuple, without slashes at their ends.

    Raises ValueError for what is no such URL, and for one that is there twice.
    """
    if isinstance(given, str):
        return _checked(given)
    if not isinstance(given, list | tuple) or not given:
        raise ValueError(f"several targets must be a list of URLs, got {given!r}")
    urls = tuple(_checked(url) for url in given)
    seen = set()
    for shown in (address_of(url).url for url in urls):
        if shown in seen:
            raise ValueError(f"url {shown} is in the list of targets twice: leave one out")
        seen.add(shown)
    return urls[0] if len(urls) == 1 else urls


def _checked(url: Any) -> str:
    if not isinstance(url, str):
        raise ValueError(f"a target in a list must be a URL (a Server has .url), got {url!r}")
    parts = urlsplit(url)
    is_base = parts.scheme in ("http", "https") and parts.hostname
    if not is_base or parts.query or parts.fragment:
        shown = url.rpartition("@")[2]
        raise ValueError(f"url must be like http://127.0.0.1:8000, got {shown!r}")
    return url.rstrip("/")


def addresses_of(urls: Urls) -> tuple[Address, ...]:
    """The address of each URL, in order: request `index` goes to number `index` modulo their count.

    So each gets an equal share, and a run that is repeated sends the same request to the same one.
    """
    if isinstance(urls, str):
        return (address_of(urls),)
    return tuple(map(address_of, urls))


def address_of(url: str) -> Address:
    """`url` apart from its user and password, which reach no file and no page."""
    parts = urlsplit(url)
    person, _, host = parts.netloc.rpartition("@")
    authorization = None
    if person:
        user, _, password = person.partition(":")
        pair = f"{unquote(user)}:{unquote(password)}".encode()
        authorization = f"Basic {base64.b64encode(pair).decode()}"
    return Address(parts._replace(netloc=host).geturl(), authorization)
