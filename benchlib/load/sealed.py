"""Seals the messages between a master and its workers, as Locust's protocol has no key of its own.

Locust's port takes everybody's messages, and nothing on it is encrypted. A seal shows that a message
comes from somebody who knows the secret, and was not changed, sent again, or sent back. It hides
nothing. Ignorant of sockets, and of what the messages say.
"""

from __future__ import annotations

import hashlib
import hmac
import platform
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgpack  # type: ignore[import-untyped]

from benchlib.machine import version_of

CHANNEL = "benchlib"
"""The type of all our messages, among Locust's own."""

Side = Literal["master", "worker"]


class Seal:
    """The seal of one conversation, on one `side` of it."""

    def __init__(self, secret: bytes, side: Side) -> None:
        self._secret = secret
        self._side: Side = side
        self._sealed = 0
        self._opened = 0

    def close(self, **message: Any) -> dict[str, bytes]:
        """The message as Locust carries it: numbers, text, bytes and lists of them."""
        self._sealed += 1
        packed: bytes = msgpack.packb([self._side, self._sealed, message])
        return {"packed": packed, "mac": hmac.digest(self._secret, packed, "sha256")}

    def open(self, wire: Any) -> dict[str, Any] | None:
        """The message that the other side has sealed; None for anything else."""
        packed = _bytes_of(wire, "packed")
        mac = _bytes_of(wire, "mac")
        if not hmac.compare_digest(hmac.digest(self._secret, packed, "sha256"), mac):
            return None
        side, number, message = msgpack.unpackb(packed)
        if side == self._side or number <= self._opened:
            return None
        self._opened = number
        opened: dict[str, Any] = message
        return opened

    def of_session(self, *nonces: str) -> Seal:
        """The seal of the messages that follow once both sides have given a random text."""
        words = " ".join(nonces)
        return Seal(hmac.digest(self._secret, words.encode(), "sha256"), self._side)


def _bytes_of(wire: Any, name: str) -> bytes:
    value = wire.get(name) if isinstance(wire, dict) else None
    return value if isinstance(value, bytes) else b""


@cache
def own_versions() -> dict[str, str]:
    """What master and worker must have in common, so that all workers send the same load."""
    major, minor, _ = platform.python_version_tuple()
    return {
        "benchlib": version_of("benchlib") or "from its source",
        "its code": _code_digest(),
        "Python": f"{major}.{minor}",
        "locust": str(version_of("locust")),
    }


def _code_digest() -> str:
    """Stands for the source of this package's load generator: versions change more seldom."""
    folder = Path(__file__).parent
    files = [*sorted(folder.glob("*.py")), folder.parent / "rows.py"]
    content = b"".join(file.read_bytes() for file in files)
    return hashlib.sha256(content).hexdigest()[:12]


def version_fault(theirs: Any) -> str | None:
    """Why a worker of these versions can't take part, in words; None where it can."""
    ours = own_versions()
    given = theirs if isinstance(theirs, dict) else {}
    faults = []
    for name, version in ours.items():
        if given.get(name) != version:
            faults.append(f"{name} {given.get(name)} (the run has {version})")
    if not faults:
        return None
    return f"the worker has {', '.join(faults)}: install the same on both machines"
