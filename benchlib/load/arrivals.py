"""Knows when requests are due. Pure: ignorant of clocks, sockets, what a request holds, and Locust."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from benchlib.load.bounds import check_number


@dataclass(frozen=True)
class ClosedLoop:
    """`users` who each send a request, wait for its answer, think for `think_time_s` seconds, and send the next.

    All start together. A slow server slows them down, so the load never exceeds `users` requests in flight.
    Raises ValueError where `users` is no whole number of 1 or more, or `think_time_s` no finite number of 0 or more.
    """

    users: int
    think_time_s: float = 0.0

    def __post_init__(self) -> None:
        check_number("users", self.users, 1, whole=True)
        check_number("think_time_s", self.think_time_s, 0)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able fields, with the `kind` that `from_dict` reads."""
        return {"kind": "closed_loop", **asdict(self)}


_KINDS = {"closed_loop": ClosedLoop}


def from_dict(fields: Mapping[str, Any]) -> ClosedLoop:
    """The arrivals that `to_dict` told of. Raises ValueError for a kind that is not known."""
    kind, arguments = fields.get("kind"), {name: value for name, value in fields.items() if name != "kind"}
    if kind not in _KINDS:
        raise ValueError(f"arrivals kind must be one of {sorted(_KINDS)}, got {kind!r}")
    return _KINDS[kind](**arguments)
