"""`serve(...)`: uvicorn in this process, on a thread, as a thing that starts, says where it is, and stops.

Knows sockets, threads and uvicorn's life. Ignorant of routes (app.py) and of images (engine.py).
"""

from __future__ import annotations

import asyncio
import atexit
import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI

from benchlib.serving.app import Settings, create_app, engine_from
from benchlib.serving.engine.engine import Engine

if TYPE_CHECKING:
    from benchlib.serving.model.pipeline import SDXLPipeline

# Past uvicorn's default of 5 s it closes an idle connection just as a slow client takes it up again.
KEEP_ALIVE_S = 75
DRAIN_S = 30

_servers: dict[str, Server] = {}


class Server:
    """An app that listens, before an engine that `make_engine` makes anew at each start. Made by `serve`.

    A context manager that stops at its end. `app_options` go to `create_app`.
    """

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        *,
        host: str,
        port: int,
        name: str,
        log_level: str,
        **app_options: Any,
    ) -> None:
        self.name = name
        self.started = False
        self._make_engine, self._app_options = make_engine, app_options
        self._host, self._port, self._log_level = host, port, log_level
        self._engine: Engine | None = None
        self._url: str | None = None

    def __repr__(self) -> str:
        where = (
            f"{self.spec['model']} on {self.spec['device']} at {self.url}"
            if self.started
            else "stopped"
        )
        return f"<Server {self.name!r}: {where}>"

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Base URL, without a slash at its end. Raises RuntimeError where the server is stopped."""
        if self._url is None:
            raise RuntimeError(f"server {self.name!r} is stopped; call start()")
        return self._url

    @property
    def pid(self) -> int:
        """The process that serves: this one."""
        return os.getpid()

    @property
    def graphs_made(self) -> int:
        """Graphs that this process has compiled or recorded so far: a request that adds to it waited for that."""
        optimisations = sys.modules.get(
            "benchlib.serving.model.optimisations"
        )  # without it, none was
        return optimisations.graphs_made() if optimisations else 0

    @property
    def spec(self) -> dict[str, Any]:
        """What is served: model, device, dtype, recipe, batching, weights_gib and so on. Empty before it is ready."""
        return {} if self._engine is None else self._engine.spec

    def start(self) -> Server:
        """Bind, load, warm up; return when the model is ready. Where that fails, raise why and leave nothing running.

        OSError where the address can't be bound; what `load_pipeline` raises where the model can't be had.
        """
        if self.started:
            return self
        self._engine = self._make_engine()
        if (former := _servers.get(self.name)) is not None:
            former.stop()
        listener = _listen(self._host, self._port)
        host, port = listener.getsockname()[:2]
        self._url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        app = create_app(self._engine, **self._app_options)
        self._uvicorn = DrainingServer(app, self._engine, log_level=self._log_level)
        self._thread = threading.Thread(
            target=self._uvicorn.run,
            kwargs={"sockets": [listener]},
            name=f"benchlib-server-{self.name}",
            daemon=True,
        )
        _servers[self.name] = self
        self.started = True
        self._thread.start()
        try:
            self._engine.settled.wait()
        except BaseException:  # the cell was interrupted while a model loads
            self.stop()
            raise
        if (failure := self._engine.failure) is not None:
            self.stop()
            raise failure
        return self

    def stop(self) -> None:
        """Finish what is being answered (at most 30 s), then free the port, the threads, and a model of its own."""
        if not self.started:
            return
        self._uvicorn.should_exit = True
        self._thread.join()
        self.started = False
        self._url = None
        if _servers.get(self.name) is self:
            del _servers[self.name]


def serve(
    model: str | SDXLPipeline = "tiny",
    *,
    batching: str = "continuous",
    max_batch_size: int = 8,
    max_wait_ms: float = 5.0,
    batch_buckets: Sequence[int] | None = None,
    sizes: Sequence[tuple[int, int]] | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    name: str = "default",
    max_queue: int = 64,
    deadline_s: float | None = None,
    max_pixel_steps: int | None = None,
    log_level: str = "warning",
    **load_options: Any,
) -> Server:
    """Serve a pipeline, or a model by name, over HTTP from this process; return when it is ready.

    A pipeline stays yours. A model given by name is loaded with `load_options` (`device`, `dtype`, `recipe`, `seed`,
    `torch_threads`: see `load_pipeline`), is owned by the server, and is freed at `stop()`. `port=0` takes a free port.
    A server that runs under the same `name` is stopped first, so that a notebook cell can be run again; others are left
    alone. `batching`, `max_batch_size`, `max_wait_ms`, `batch_buckets` and `sizes` say how requests share the model:
    see `Engine`. `max_queue`, `deadline_s` and `max_pixel_steps` bound what is taken in: see `create_app`. Raises
    ValueError for a bad argument, OSError where the port is taken, and what loading raises.
    """
    if load_options and not isinstance(model, str):
        raise ValueError(
            f"{', '.join(load_options)}: a loaded pipeline has its own; give these to load_pipeline instead"
        )

    def load() -> SDXLPipeline:
        from benchlib.serving.model.loading import load_pipeline

        return load_pipeline(model, **load_options) if isinstance(model, str) else model

    def make_engine() -> Engine:
        return Engine(
            load if isinstance(model, str) else model,
            batching=batching,
            max_batch_size=max_batch_size,
            max_wait_ms=max_wait_ms,
            max_queue=max_queue,
            batch_buckets=batch_buckets,
            sizes=sizes,
        )

    limits = {"deadline_s": deadline_s, "max_pixel_steps": max_pixel_steps}
    return Server(
        make_engine, host=host, port=port, name=name, log_level=log_level, **limits
    ).start()


def serve_alone(settings: Settings, *, host: str, port: int) -> int:
    """Serve until a signal ends it: the body of `python -m benchlib serve`. Returns the exit status.

    The port is bound first and the model loads behind it; where that fails, the reason is printed and the status is 1.
    """
    engine = engine_from(settings)
    app = create_app(
        engine, deadline_s=settings.deadline_s, max_pixel_steps=settings.max_pixel_steps
    )
    server = DrainingServer(app, engine, host=host, port=port, log_level="info")

    def give_up_if_failed() -> None:
        engine.settled.wait()
        if engine.failure is not None:
            server.should_exit = True

    threading.Thread(target=give_up_if_failed, name="benchlib-watch", daemon=True).start()
    with suppress(KeyboardInterrupt):  # uvicorn raises it anew once it has stopped in order
        server.run()
    if engine.failure is not None:
        print(f"benchlib: {type(engine.failure).__name__}: {engine.failure}", file=sys.stderr)
        return 1
    return 0


class DrainingServer(uvicorn.Server):
    """uvicorn, which answers for DRAIN_S what it has taken in. It refuses the rest, so that nothing waits for it."""

    def __init__(self, app: FastAPI, engine: Engine, **options: Any) -> None:
        config = uvicorn.Config(
            app,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=2 * DRAIN_S,  # then it cuts even what it is refusing
            **options,
        )
        super().__init__(config)
        self._engine = engine

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().call_later(DRAIN_S, self._engine.drop_jobs)
        await super().shutdown(sockets)


def _listen(host: str, port: int) -> socket.socket:
    """A bound TCP socket, of IPPROTO_TCP by name: asyncio spares only such the 40 ms of Nagle's algorithm."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise OSError(
            f"host and port: {host}:{port} can't be bound ({error}); use another, or port=0"
        ) from error
    return listener


@atexit.register
def _stop_all() -> None:
    """A daemon thread inside torch at the interpreter's exit crashes it, so they are ended in order."""
    for server in list(_servers.values()):
        server.stop()
