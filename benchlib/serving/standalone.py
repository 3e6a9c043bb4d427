"""A server in a process of its own: settings from the environment, and life until a signal.

The exit status is 4 if the engine has ended by an error (last_words.py). A supervisor should then
start the server again.

Knows the BENCHLIB_* variables and the log lines while a model loads. Ignorant of routes and of how
images are made.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import FastAPI
from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from benchlib.lora import split_loras
from benchlib.printing import print_line
from benchlib.serving.app import create_app
from benchlib.serving.backend import Backend
from benchlib.serving.connection_limits import ConnectionLimits, ServedApp
from benchlib.serving.door_options import DoorOptions
from benchlib.serving.engine.engine import Engine
from benchlib.serving.engine.faults import EngineEnded
from benchlib.serving.engine.options import EngineOptions
from benchlib.serving.image_links import (
    LEAST_LINKS_GIB,
    LINK_S,
    LINKS_GIB,
    MAX_LINKS,
    MOST_IMAGES,
    ImageLinks,
)
from benchlib.serving.last_words import ENGINE_ENDED, leave_with
from benchlib.serving.long_start import wait_for_start
from benchlib.serving.process_end import (
    ENDED_BY_SIGINT,
    NOT_STARTED,
    REPLICAS_END_S,
    UNFINISHED_S,
    end_at_once,
    in_time,
)
from benchlib.serving.replicas.fleet_spec import step_span_in_words
from benchlib.serving.replicas.replica_arguments import check_replicas
from benchlib.serving.scheduler_names import SchedulerName
from benchlib.serving.schemas import GenerateRequest
from benchlib.serving.server import listen, make_uvicorn, url_of

if TYPE_CHECKING:
    from benchlib.serving.model.pipeline import SDXLPipeline

log = logging.getLogger("uvicorn.error")  # uvicorn shows its own start-up lines by this name


LOAD_OPTIONS = {
    "device",
    "dtype",
    "recipe",
    "scheduler",
    "loras",
    "fuse",
    "seed",
    "torch_threads",
    "unet",
    "vae",
}


class Settings(BaseSettings, EngineOptions, DoorOptions, ConnectionLimits):
    """The settings that the environment gives: BENCHLIB_MODEL, BENCHLIB_DEVICE and so on."""

    model_config = SettingsConfigDict(env_prefix="BENCHLIB_", extra="ignore", enable_decoding=False)

    model: str = Field(
        default="auto",
        description="auto (sdxl on CUDA, else tiny), tiny, sdxl, sdxl-random, hub id, folder, file",
    )
    device: str = Field(
        default="auto", description="auto (CUDA, else the CPU), cpu, cuda, cuda:1, mps"
    )
    dtype: str = Field(
        default="auto",
        description="auto (float16 on CUDA, else float32), float32, float16, bfloat16",
    )
    recipe: str = Field(
        default="baseline", description="named optimisations, such as channels-last+vae-tiling"
    )
    scheduler: SchedulerName | None = Field(
        default=None, description="a sampler's name, such as dpmpp-2m-karras; else the model's own"
    )
    seed: int = Field(default=0, ge=0, description="seed of the random models' weights")
    torch_threads: int | None = Field(
        default=None, ge=1, description="CPU threads of torch; torch's own choice if not given"
    )
    loras: Annotated[dict[str, str] | None, BeforeValidator(split_loras)] = Field(
        default=None, description="LoRA adapters: style=a.safetensors,face=b.safetensors"
    )
    fuse: str | None = Field(
        default=None, description="adapters of these to fuse into the weights: style:0.8+face"
    )
    unet: str | None = Field(
        default=None, description="a UNet in place of the model's: file, folder or hub id"
    )
    vae: str | None = Field(
        default=None, description="a VAE in place of the model's: file, folder or hub id"
    )
    replicas: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        default=None,
        description="processes of Ray Serve with an engine and a GPU each, or auto for every GPU; "
        "none if not given",
    )
    address: str | None = Field(
        default=None, description="of a Ray that runs, for the replicas: auto, or 10.0.0.1:6379"
    )
    link_s: float = Field(
        default=LINK_S, gt=0, description="seconds that the link to an image lasts"
    )
    max_links: int = Field(
        default=MAX_LINKS, ge=MOST_IMAGES, description="most images that are kept for links"
    )
    links_gib: float = Field(
        default=LINKS_GIB, ge=LEAST_LINKS_GIB, description="most GiB that are kept for links"
    )

    @model_validator(mode="after")
    def _check_replicas(self) -> Settings:
        check_replicas(self.model, self.replicas, self.address)
        return self

    def engine_options(self) -> EngineOptions:
        """The settings that belong to the engine."""
        return EngineOptions(**self.model_dump(include=set(EngineOptions.model_fields)))

    def load_options(self) -> dict[str, Any]:
        """The settings that go to `load_pipeline`, but for the model."""
        return self.model_dump(include=LOAD_OPTIONS)

    def door_options(self) -> DoorOptions:
        """The settings that belong to the door."""
        return DoorOptions(**self.model_dump(include=set(DoorOptions.model_fields)))

    def connection_limits(self) -> ConnectionLimits:
        """The settings that limit connections."""
        return ConnectionLimits(**self.model_dump(include=set(ConnectionLimits.model_fields)))


def engine_from(settings: Settings) -> Backend[Any]:
    """The engine that `settings` describe, or the fleet of several.

    While loading, it logs the model, why the model was chosen, and the time of an image. Raises
    ImportError or ValueError if there can't be such replicas.
    """
    if settings.replicas is not None:
        from benchlib.serving.replicas.ray_fleet import make_ray_fleet

        return make_ray_fleet(
            settings.model,
            settings.engine_options(),
            settings.load_options(),
            replicas=settings.replicas,
            address=settings.address,
        )

    def load() -> SDXLPipeline:
        from benchlib.serving.model.loading import load_pipeline
        from benchlib.serving.model.torch_thread import on_torch_thread

        pipe = load_pipeline(settings.model, **settings.load_options())
        log.info("Serving %(model)s on %(device)s in %(dtype)s: %(model_reason)s.", pipe.spec)
        if pipe.spec["checkpoint"] is not None:
            log.info("The file is %(checkpoint)s.", pipe.spec)
        if pipe.spec["predicts"] is not None:
            log.info("It predicts %(predicts)s.", pipe.spec)
        if pipe.spec["unet"] is not None:
            log.info("Its UNet is %(unet)s.", pipe.spec)
        if pipe.spec["vae"] is not None:
            log.info("Its VAE is %(vae)s.", pipe.spec)
        _log_cost(pipe)
        log.info(settings.door_options().bounds_on(pipe.spec["device"]).in_words())
        if pipe.adapters.names:
            switch_ms = on_torch_thread(pipe.adapters.measure_switch_s) * 1000
            names = ", ".join(pipe.adapters.names)
            log.info("Adapters by request: %s. A switch takes %.2g ms.", names, switch_ms)
        return pipe

    return Engine(load, settings.engine_options())


def _log_cost(pipe: SDXLPipeline) -> None:
    """Log the seconds that an image of the default size will take."""
    usual = GenerateRequest(prompt="-")
    size = (usual.width, usual.height, usual.num_inference_steps)
    shrink = 1
    words = "about"
    if pipe.device.type == "cpu":
        # On a CPU a step at full size takes as long as the whole start-up. The cost grows faster
        # than the number of pixels, so a smaller image gives a lower bound.
        shrink = 4
        words = "at least"
    small_s = pipe.predict_s(
        usual.width // shrink, usual.height // shrink, usual.num_inference_steps
    )
    cost_s = shrink**2 * small_s
    seconds = f"{cost_s:.2g}" if cost_s < 10 else f"{cost_s:,.0f}"
    log.info("An image of %dx%d at %d steps will take %s %s s here.", *size, words, seconds)


def app_from(settings: Settings) -> FastAPI:
    """The app that `uvicorn benchlib.serving.app:app` serves.

    Raises ValueError for a certificate, which only uvicorn itself can use then.
    """
    if settings.ssl_certfile is not None:
        raise ValueError("ssl_certfile: give uvicorn itself --ssl-certfile and --ssl-keyfile")
    engine = engine_from(settings)
    leave_with(engine, not_loaded=NOT_STARTED)
    app = app_before(engine, settings)
    if not engine.replicas:  # Ray's processes need Python's own end
        app.cut_short = end_at_once
    return app


def app_before(engine: Backend[Any], settings: Settings) -> ServedApp:
    """The app in front of an engine or a fleet, as `settings` say."""
    longest_s = UNFINISHED_S
    if engine.replicas:
        longest_s = REPLICAS_END_S
    links = ImageLinks(
        link_s=settings.link_s, max_links=settings.max_links, links_gib=settings.links_gib
    )
    return create_app(
        engine,
        settings.door_options(),
        links=links,
        limits=settings.connection_limits(),
        stopping=partial(in_time, longest_s),
    )


def serve_alone(settings: Settings, *, host: str, port: int) -> int:
    """Serve until a signal comes; return the exit status. This is `python -m benchlib serve`.

    The port is bound before the model loads. If that or loading fails, the reason is printed and the
    status is 1.
    """
    # 1) Listen
    try:
        listener = listen(host, port)
    except OSError as error:
        print_line(f"benchlib: {error}", sys.stderr)
        return NOT_STARTED
    try:
        engine = engine_from(settings)
    except (ImportError, OSError, ValueError) as error:  # of replicas
        listener.close()
        print_line(f"benchlib: {type(error).__name__}: {error}", sys.stderr)
        return NOT_STARTED
    leave_with(engine)
    app = app_before(engine, settings)
    tls = settings.door_options().uvicorn_options()
    server = make_uvicorn(app, host=host, port=port, log_level="info", **tls)
    log.info("Uvicorn running on %s (Press CTRL+C to quit)", url_of(listener, tls))

    # 2) Serve until a signal comes or the model can't be loaded

    def give_up_if_failed() -> None:
        wait_for_start(engine, settings.model, log.info)
        if engine.failure is not None:
            server.should_exit = True
        elif engine.replicas:
            words = "Serving %(model)s on %(device)s in %(dtype)s by %(replicas)d replicas."
            log.info(words, engine.spec)
            log.info("A step of one image of %s.", step_span_in_words(engine.spec))

    threading.Thread(target=give_up_if_failed, name="benchlib-watch", daemon=True).start()
    with suppress(KeyboardInterrupt):  # uvicorn raises it again once it has stopped in order
        server.run(sockets=[listener])
    if server.force_exit:  # a second Ctrl+C: the engine may be at work
        os._exit(ENDED_BY_SIGINT)
    if engine.failure is not None:
        print_line(f"benchlib: {type(engine.failure).__name__}: {engine.failure}", sys.stderr)
        return ENGINE_ENDED if isinstance(engine.failure, EngineEnded) else NOT_STARTED
    return 0
