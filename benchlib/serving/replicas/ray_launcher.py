"""Puts the replicas of one server into service with Ray Serve, and takes them out again.

Knows Ray Serve's applications, and how many GPUs Ray has. Ignorant of what replicas do, and of how
they are called.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchlib.serving.replicas.ray_deployment import EngineDeployment, ReplicaPlan
from benchlib.serving.replicas.ray_session import RaySession

DEPLOYMENT = "replica"
MOST_ONGOING = 100_000
"""Calls that a replica may have at once. The front decides, so Ray Serve must not let any wait."""
CHECK_S = 1.0  # how often Ray Serve looks whether a replica is alive
CHECK_TIMEOUT_S = 60.0
STOP_S = 5.0  # the front has waited for its requests before
LEASE_S = 120.0
"""In a Ray that outlives this process, replicas go out of service so long after its last call."""
PASSED_ON = (
    "PYTHONPATH",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "BENCHLIB_CACHE",
    "NUMBA_CACHE_DIR",
    "OMP_NUM_THREADS",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TORCHINDUCTOR_CACHE_DIR",
)
"""The variables that replicas of a running Ray get from here. Those of a private Ray get them all."""


class RayLauncher:
    """The `count` replicas of one server, each an application of Ray Serve with one process.

    An application of its own gives each a name of its own, and a restart of its own. `address` is
    a cluster's, or None (see `RaySession.enter`).
    """

    def __init__(self, plan: ReplicaPlan, count: int, *, address: str | None, on_gpu: bool) -> None:
        self.plan = plan
        self.address = address
        self.on_gpu = on_gpu
        token = secrets.token_hex(4)
        self.applications = [f"benchlib-{token}-{number}" for number in range(count)]
        self._lock = threading.Lock()
        self._left = count
        self._session: RaySession | None = None
        self._error: Exception | None = None

    def launch(self) -> None:
        """Return once all replicas are being started; the first call starts them.

        Raises what `RaySession.enter` raises, and ValueError if there are too few GPUs.
        """
        with self._lock:
            if self._error is not None:
                raise self._error
            if self._session is None:
                try:
                    self._deploy()
                except Exception as error:
                    self._error = error
                    raise

    def release(self) -> None:
        """Say that one replica is not needed any more. The last one takes all out of service."""
        with self._lock:
            self._left -= 1
            session = self._session
            if self._left > 0 or session is None:
                return
            self._session = None
        session.leave(lambda: remove(self.applications))

    def _deploy(self) -> None:
        session = RaySession.enter(self.address)
        try:
            if self.on_gpu and self.address is None:
                require_gpus(len(self.applications))
            plan = self.plan
            if not session.is_private:
                plan = replace(plan, lease_s=LEASE_S)
            session.call(deploy, self.applications, plan, self._actor_options(session))
        except BaseException:
            session.leave(lambda: remove(self.applications))
            raise
        self._session = session

    def _actor_options(self, session: RaySession) -> dict[str, Any]:
        options: dict[str, Any] = {"num_cpus": 0, "num_gpus": int(self.on_gpu)}
        if not session.is_private:
            variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
            options["runtime_env"] = {"env_vars": variables}
        return options


def deploy(applications: Sequence[str], plan: ReplicaPlan, actor_options: dict[str, Any]) -> None:
    """Start an application of one replica by each name; wait for none of them."""
    from ray import serve

    deployment = make_deployment(actor_options)
    targets = [
        serve.RunTarget(deployment.bind(plan), name=name, route_prefix=None)
        for name in applications
    ]
    serve.run_many(
        targets,
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def make_deployment(actor_options: dict[str, Any], name: str = DEPLOYMENT) -> Any:
    """The deployment of one replica."""
    from ray import serve

    return serve.deployment(EngineDeployment).options(
        name=name,
        num_replicas=1,
        max_ongoing_requests=MOST_ONGOING,
        ray_actor_options=actor_options,
        health_check_period_s=CHECK_S,
        health_check_timeout_s=CHECK_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=STOP_S,
        # A process is asked before Ray Serve has made its engine, and Ray Serve logs a traceback then.
        # The engine's own errors are returned, not raised.
        logging_config={"enable_access_log": False, "log_level": "CRITICAL"},
    )


def remove(applications: Sequence[str]) -> None:
    """Take the applications out of service; return once their processes have ended."""
    from ray import serve

    for name in applications:
        serve.delete(name, _blocking=False)
    for name in applications:
        serve.delete(name)


def count_gpus(address: str | None) -> int:
    """The GPUs of the Ray at `address`, or those that a private one would have."""
    session = RaySession.enter(address)
    try:
        import ray

        return int(ray.cluster_resources().get("GPU", 0))
    finally:
        session.leave()


def require_gpus(count: int) -> None:
    """Raise ValueError unless `count` GPUs of this Ray are free."""
    import ray

    free = int(ray.available_resources().get("GPU", 0))
    if free < count:
        raise ValueError(
            f"replicas: {count} need a GPU each, and {free} are free; give {free} or less"
        )
