"""What runs in the process of a replica: an engine, behind the methods of a Ray Serve deployment.

Ray Serve makes the process, asks `check_health`, and makes another where it fails or is gone.
Knows the environment of that process. Ignorant of who calls (ray_replica.py) and of the engine.
Importing this file imports no torch, which reads OMP_NUM_THREADS once.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchlib.serving.engine.faults import reason_of
from benchlib.serving.engine.options import EngineOptions

if TYPE_CHECKING:
    from benchlib.serving.engine.made import Made
    from benchlib.serving.model.pipeline import SDXLPipeline
    from benchlib.serving.replicas.replica import Order, ReplicaStatus
    from benchlib.serving.schemas import GenerateRequest

KNOWN_PACKAGES = ("benchlib", "builtins")
"""Errors of other packages cross in words: the front may not have the package, or not want it."""


@dataclass(frozen=True)
class ReplicaPlan:
    """What a replica loads, and how it serves.

    `load_options` go to `load_pipeline`. `threads` is torch's own number of CPU threads there, None
    if the environment says it. Without a call for `lease_s` seconds the replica takes itself out of
    service, because the front that has made it must be gone; None is for ever.
    """

    model: str
    options: EngineOptions
    load_options: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None
    lease_s: float | None = None


class EngineDeployment:
    """A whole engine in a process of its own.

    Errors are returned, not raised: Ray would wrap them, and Ray Serve would log each.
    """

    def __init__(self, plan: ReplicaPlan) -> None:
        # 1) torch has not been imported here yet
        if plan.threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(plan.threads)
        from benchlib.serving.last_words import leave_with
        from benchlib.serving.replicas.hosted_engine import HostedEngine

        def load() -> SDXLPipeline:
            from benchlib.serving.model.loading import load_pipeline

            return load_pipeline(plan.model, **plan.load_options)

        # 2) Loading goes on after this returns, so that its error can be told
        self._host = HostedEngine(load, plan.options)
        self._engine = self._host.engine
        self._called_s = time.monotonic()
        self._told = False
        leave_with(self._engine)
        self._engine.start()
        if plan.lease_s is not None:
            end_lease = threading.Thread(
                target=self._end_lease, args=(plan.lease_s,), name="benchlib-lease", daemon=True
            )
            end_lease.start()

    async def settle(self) -> dict[str, Any] | Exception:
        """Wait until the model is loaded and warm. Returns its spec, or what loading has raised."""
        self._called_s = time.monotonic()
        try:
            spec = await asyncio.to_thread(self._host.settle)
        except Exception as error:  # noqa: BLE001 - `serve` raises it in its own process
            self._told = True
            return portable(error)
        return spec

    async def make(self, order: Order) -> Made | Exception:
        """Return the made image, or the engine's error."""
        self._called_s = time.monotonic()
        try:
            return await asyncio.wrap_future(self._host.make(order))
        except Exception as error:  # noqa: BLE001 - the front answers with it
            return portable(error)

    async def count_calls(self, request: GenerateRequest) -> int | Exception:
        """Return the calls of the UNet that `request` takes, or `BadField`."""
        try:
            return await asyncio.to_thread(self._host.count_calls, request)
        except Exception as error:  # noqa: BLE001 - the front answers with it
            return portable(error)

    async def cancel(self, number: int) -> None:
        """Drop the order of this number."""
        self._host.cancel(number)

    async def status(self) -> ReplicaStatus:
        """What the engine does and has counted."""
        self._called_s = time.monotonic()
        return self._host.status()

    async def check_health(self) -> None:
        """Raise if there is no engine any more, so that Ray Serve makes another process.

        An error of loading must have been told before.
        """
        failure = self._engine.failure
        if failure is not None and self._told:
            raise RuntimeError(reason_of(failure))

    def _end_lease(self, lease_s: float) -> None:
        """Take this application out of service once nobody has called for `lease_s` seconds."""
        from ray import serve

        left_s = lease_s
        while left_s > 0:
            time.sleep(left_s)
            left_s = self._called_s + lease_s - time.monotonic()
            if self._engine.state == "loading":
                left_s = lease_s
        serve.delete(serve.get_replica_context().app_name, _blocking=False)


def portable(error: Exception) -> Exception:
    """`error` itself if it can cross to another process whole, else a RuntimeError of its words."""
    is_known = type(error).__module__.split(".")[0] in KNOWN_PACKAGES
    if not is_known:
        return RuntimeError(reason_of(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - pickle raises what the error's own class raises
        return RuntimeError(reason_of(error))
    return error
