"""Two servers over Ray whose replicas answer at once: our front, and a plain Ray Serve application.

    python -m benchmarks.fakes.instant_ray replicas --port 8001   # our app, our fleet
    python -m benchmarks.fakes.instant_ray bare --port 8001       # Ray Serve's proxy and FastAPI

Both have REPLICAS processes in a private Ray of the same settings, read the same request and answer
with the same fields. The plain one writes no access log, as ours doesn't. Ignorant of models.
"""

import argparse
import secrets
import signal
import sys
from itertools import count

import uvicorn
from fastapi import FastAPI

from benchlib.serving.app import create_app
from benchlib.serving.replicas.fleet import Fleet
from benchlib.serving.replicas.ray_launcher import DEPLOYMENT, make_deployment, remove
from benchlib.serving.replicas.ray_replica import RayReplica
from benchlib.serving.replicas.ray_session import RaySession
from benchlib.serving.replicas.replica import ReplicaStatus
from benchlib.serving.schemas import GenerateRequest, GenerateResponse
from benchmarks.fakes.replicas import fake_spec, made_for

REPLICAS = 2
MOST_REQUESTS = 100
NO_CPU = {"num_cpus": 0}  # a private Ray has none to give away
NO_TIME = fake_spec(0.0, batching="continuous")


class InstantDeployment:
    """A replica's process that has its image at once."""

    async def settle(self):
        return NO_TIME

    async def make(self, order):
        return made_for(order)

    async def count_calls(self, request):
        return request.num_inference_steps

    async def cancel(self, number):
        pass

    async def status(self):
        return ReplicaStatus()


class InstantLauncher:
    """Puts `REPLICAS` of them into service, each as an application of its own."""

    def __init__(self):
        token = secrets.token_hex(4)
        self.applications = [f"benchlib-{token}-{number}" for number in range(REPLICAS)]
        self._session = RaySession.enter(None)
        self._session.call(self._deploy)
        self._left = count(REPLICAS - 1, -1)

    def _deploy(self):
        from ray import serve

        deployment = make_deployment(NO_CPU).options(func_or_class=InstantDeployment)
        targets = [
            serve.RunTarget(deployment.bind(), name=name, route_prefix=None)
            for name in self.applications
        ]
        serve.run_many(targets, wait_for_ingress_deployment_creation=False)

    def launch(self):
        """It has been done."""

    def release(self):
        if next(self._left) == 0:
            self._session.leave(lambda: remove(self.applications))


def serve_replicas(port):
    """Our app before a fleet of Ray's processes, until SIGTERM."""
    launcher = InstantLauncher()
    replicas = [
        RayReplica(str(number), application, DEPLOYMENT, launcher)
        for number, application in enumerate(launcher.applications)
    ]
    app = create_app(Fleet(replicas))
    uvicorn.run(app, port=port, log_level="warning", access_log=False)


def make_bare():
    """A deployment that answers by FastAPI, as Ray Serve's own pages show it."""
    from ray import serve

    app = FastAPI()

    @serve.deployment(
        num_replicas=REPLICAS,
        max_ongoing_requests=MOST_REQUESTS,
        ray_actor_options=NO_CPU,
        logging_config={"enable_access_log": False},
    )
    @serve.ingress(app)
    class Bare:
        @app.get("/ready")
        async def ready(self) -> str:
            return "ready"

        @app.post("/benchmark/generate")
        async def generate(self, request: GenerateRequest) -> GenerateResponse:
            return GenerateResponse(
                **request.model_dump(include=GenerateResponse.model_fields.keys()),
                time_s=0.0,
                mem_gb=0.5,
                model_params=7,
            )

    return Bare


def serve_bare(port):
    """A plain application behind Ray Serve's own proxy, until SIGTERM."""

    def deploy():
        from ray import serve

        serve.shutdown()  # it has no proxy
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        serve.run(make_bare().bind(), name="bare", route_prefix="/")

    session = RaySession.enter(None)
    try:
        session.call(deploy)
        signal.pause()
    finally:
        session.leave()


KINDS = {"replicas": serve_replicas, "bare": serve_bare}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--port", type=int, required=True)
    wanted = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    KINDS[wanted.kind](wanted.port)
