"""The same app in a Ray cluster of its own, without a process of ours: what a Serve config builds.

    serve run deploy/ray-serve.yaml

One deployment is the front: it has our app and the fleet. Each replica is a deployment, too. Knows
the arguments in the config. Ignorant of HTTP, which Ray Serve's proxies speak.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from benchlib.serving.engine.faults import reason_of
from benchlib.serving.replicas.fleet import Fleet
from benchlib.serving.replicas.ray_deployment import ReplicaPlan
from benchlib.serving.replicas.ray_launcher import make_deployment
from benchlib.serving.replicas.ray_replica import RayReplica
from benchlib.serving.standalone import Settings, app_before

FRONT_CPUS = 1
REPLICA_CPUS = 1
MOST_REQUESTS = 4096  # at the front; what is too much, our app itself refuses in words


class Deployed:
    """Stands for a launcher where Ray Serve itself has put the replicas into service."""

    def launch(self) -> None:
        """Nothing is left to do."""

    def release(self) -> None:
        """Ray Serve takes them out of service with the front."""


@serve.ingress()
class Front:
    """The app, with a fleet over the replicas of this application of Ray Serve.

    There must be one front, because one queue holds all requests.
    """

    def __init__(self, arguments: dict[str, Any], *_replicas: object) -> None:
        self.settings = Settings(**arguments)
        self.fleet: Fleet | None = None

    def check_health(self) -> None:
        """Raise if the fleet has ended: Ray Serve must not call it healthy, and makes another."""
        if self.fleet is not None and self.fleet.failure is not None:
            raise RuntimeError(reason_of(self.fleet.failure))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The app, which Ray Serve asks for by this name, once the model is loaded and warm.

        Raises what loading has raised, so that `serve status` tells it and the deployment fails.
        """
        application = serve.get_replica_context().app_name
        count = self.settings.replicas
        assert isinstance(count, int)
        replicas = [
            RayReplica(str(number), application, deployment_name(number), Deployed())
            for number in range(count)
        ]
        fleet = self.fleet = Fleet(replicas, self.settings.engine_options())
        fleet.start()  # the app would begin once uvicorn listens, and there is none here
        fleet.settled.wait()
        if fleet.failure is not None:
            raise fleet.failure
        return app_before(fleet, self.settings)


def build(arguments: dict[str, Any]) -> Application:
    """The application of the config's `args`, which are settings such as `model` and `replicas`.

    Raises pydantic's ValidationError for a bad setting, and ValueError without a number of replicas.
    """
    settings = Settings(**arguments)
    count = settings.replicas
    if not isinstance(count, int):
        raise ValueError(f"replicas: {count!r} is no number; the config must give one")
    on_gpu = settings.device != "cpu"
    plan = ReplicaPlan(settings.model, settings.engine_options(), settings.load_options())
    actor_options = {"num_cpus": REPLICA_CPUS, "num_gpus": int(on_gpu)}
    replicas = [
        make_deployment(actor_options, deployment_name(number)).bind(plan)
        for number in range(count)
    ]
    front = serve.deployment(Front).options(
        name="front",
        num_replicas=1,
        max_ongoing_requests=MOST_REQUESTS,
        ray_actor_options={"num_cpus": FRONT_CPUS},
    )
    return front.bind(arguments, *replicas)


def deployment_name(number: int) -> str:
    """The name of a replica's deployment."""
    return f"replica-{number}"
