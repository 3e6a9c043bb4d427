"""A word before a run whose users need more connections than the server has.

Knows arrivals and the spec of a server of ours. Ignorant of how connections are limited.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from benchlib.load.arrivals import Arrivals


def warn_of_lost_connections(arrivals: Arrivals, spec: Mapping[str, Any]) -> None:
    """Warns if there are more users than the server in `spec` has connections.

    Each user of closed arrivals has a connection. Of open arrivals nobody knows how many they need.
    """
    users = len(arrivals.spans())
    most = spec.get("limits", {}).get("max_connections")
    if most is None or users <= most:
        return
    warnings.warn(
        f"{users:,} users need as many connections, and the server's max_connections is {most:,}. "
        "It closes idle ones, so requests may fail with 503. Give bl.serve a larger one, as in "
        f"limits=ConnectionLimits(max_connections={2 * users}), or allow more open files "
        "(ulimit -n)",
        RuntimeWarning,
        stacklevel=4,
    )
