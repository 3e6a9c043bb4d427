"""`serve(...)`: a uvicorn server on a thread of this process, as an object that starts and stops.

Knows sockets, threads and uvicorn's life. Ignorant of routes (app.py) and of images (engine/).
"""

from __future__ import annotations

import atexit
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr, ValidationError
from uvicorn.config import LOG_LEVELS

from benchlib.cell_view import CellView, ShownInCell
from benchlib.printing import print_line
from benchlib.serving.app import create_app
from benchlib.serving.backend import Backend
from benchlib.serving.connection_limits import ConnectionLimits
from benchlib.serving.door_options import Auto, DoorOptions
from benchlib.serving.engine.engine import Engine
from benchlib.serving.engine.options import Batching, EngineOptions, OnNotFinite, in_words
from benchlib.serving.image_links import LINK_S, LINKS_GIB, MAX_LINKS, ImageLinks
from benchlib.serving.lock import warn_of_open_door
from benchlib.serving.long_start import wait_for_start
from benchlib.serving.process_end import REPLICAS_END_S, SigtermEndsScript
from benchlib.serving.replicas.fleet_spec import step_span_in_words
from benchlib.serving.replicas.replica_arguments import check_replicas

if TYPE_CHECKING:
    from benchlib.serving.model.pipeline import SDXLPipeline

# How many connections wait for their acceptance; uvicorn's own default.
BACKLOG = 2048

_servers: dict[str, Server] = {}


class PortFreeingUvicorn(uvicorn.Server):
    """A uvicorn that frees its port when it stops.

    A forked process keeps the socket. Closing ours alone would leave clients waiting in its queue.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listener in sockets or []:
            with suppress(OSError):  # macOS knows no shutdown of a socket that listens
                listener.shutdown(socket.SHUT_RDWR)
        await super().shutdown(sockets)


def make_uvicorn(app: FastAPI, **options: Any) -> uvicorn.Server:
    """The uvicorn that serves `app`. The app itself limits the connections (connection_limits.py).

    Its loop is asyncio's own, also where uvloop is installed: servers are compared between machines.
    """
    return PortFreeingUvicorn(uvicorn.Config(app, loop="asyncio", access_log=False, **options))


class Server(ShownInCell):
    """An app that listens, and its engine; `serve` returns it.

    Each start calls `make_engine` for a new engine. As a context manager, the server stops at the
    end of the block. `door`, `links` and `limits` go to `create_app`. The lines of a long start begin with
    `model`.
    """

    def __init__(
        self,
        make_engine: Callable[[], Backend[Any]],
        *,
        host: str,
        port: int,
        name: str,
        log_level: str,
        door: DoorOptions,
        links: ImageLinks,
        limits: ConnectionLimits | None,
        model: str | None = None,
    ) -> None:
        self.name = name
        self.started = False
        self._make_engine = make_engine
        self._model = model or name
        self._door = door
        self._links = links
        self._limits = limits or ConnectionLimits()
        self._host = host
        self._port = port
        self._log_level = log_level
        self._engine: Backend[Any] | None = None
        self._url: str | None = None

    def _view(self) -> CellView:
        if not self.started:
            return CellView(f"{self.name}: stopped; start() starts it")
        if self._failure is not None:
            return CellView(f"{self.name}: {self._failure}")
        spec = self.spec
        span = step_span_in_words(spec)
        answer = f"{self.name}: {spec['model']} on {spec['device']} at {self.url}"
        rows = [
            ("batching", f"{spec['batching']}, at most {spec['max_batch_size']} together"),
            ("recipe", str(spec.get("recipe"))),
            ("replicas", str(spec.get("replicas", "none, the engine is in this process"))),
            *([] if span is None else [("a step of one image", span)]),
            ("more", "bl.run_load(server, bl.ClosedLoop(users=4)), server.spec, server.stop()"),
        ]
        return CellView(answer, rows, link=f"{self.url}/docs")

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
        """Base URL, without a slash at its end. Raises RuntimeError if the server is stopped."""
        if self._url is None:
            raise RuntimeError(f"server {self.name!r} is stopped; call start()")
        return self._url

    @property
    def api_key(self) -> str | None:
        """The key that requests must bring, or None."""
        return self._door.key

    @property
    def pid(self) -> int:
        """The id of the process that serves, which is this process."""
        return os.getpid()

    @property
    def graphs_made(self) -> int:
        """The number of graphs that this process has compiled or recorded.

        A request that increases the number has waited for a compilation or a recording.
        """
        from benchlib.serving.model.optimisations import graphs_made

        return graphs_made()

    @property
    def _failure(self) -> BaseException | None:
        return None if self._engine is None else self._engine.failure

    @property
    def spec(self) -> dict[str, Any]:
        """The model, device, dtype, recipe, batching, weights_gib and so on; empty before ready."""
        if self._engine is None:
            return {}
        return self._door.add_to(self._engine.spec, self._limits.in_force())

    def start(self) -> Server:
        """Bind, load and warm up; return this server when the model is ready.

        A server whose engine has ended by an error is stopped first. Raises OSError if the address
        can't be bound, and what `load_pipeline` raises if the model can't be loaded. After an error
        nothing is left running.
        """
        if self.started and self._failure is None:
            return self
        self.stop()

        # 1) Stop the running server of the same name
        engine = self._make_engine()
        former = _servers.get(self.name)
        if former is not None:
            former.stop()

        # 2) Listen
        tls = self._door.uvicorn_options()
        listener = listen(self._host, self._port)
        self._url = url_of(listener, tls)
        app = create_app(engine, self._door, links=self._links, limits=self._limits)
        self._uvicorn = make_uvicorn(app, log_level=self._log_level, **tls)
        warn_of_open_door(listener.getsockname()[0], self._door.key)
        self._thread = threading.Thread(
            target=self._uvicorn.run,
            kwargs={"sockets": [listener]},
            name=f"benchlib-server-{self.name}",
            daemon=True,
        )
        self._engine = engine
        self.started = True
        _servers[self.name] = self
        _sigterm.begin()
        self._thread.start()

        # 3) Wait for the model
        try:
            wait_for_start(engine, self._model, print_line)
            # At the script's end, Ray would end before the servers, as it has been imported since.
            atexit.unregister(_stop_all)
            atexit.register(_stop_all)
        except BaseException:  # a notebook's cell was interrupted while the model loaded
            self.stop()
            raise
        if engine.failure is not None:
            self.stop()
            raise engine.failure
        return self

    def stop(self) -> None:
        """Finish requests inside for at most `drain_s`; free the port, threads and an owned model.

        After `drain_s` the others are told 503. A step or a decode that has begun ends first.
        """
        if not self.started:
            return
        self.begin_stop()
        self._thread.join()
        self.started = False
        self._url = None
        if _servers.get(self.name) is self:
            del _servers[self.name]
        if not _servers:
            _sigterm.end()

    def begin_stop(self) -> None:
        """Begin what `stop` waits for."""
        self._uvicorn.should_exit = True

    @property
    def longest_stop_s(self) -> float:
        """How long `stop` waits for requests, which a server that loads has none of, and for Ray."""
        engine = self._engine
        if engine is None:
            return 0.0
        longest_s = 0.0
        if engine.state != "loading":
            longest_s = self._limits.drain_s
        if engine.replicas:
            longest_s += REPLICAS_END_S
        return longest_s


def serve(
    model: str | SDXLPipeline = "tiny",
    *,
    batching: Batching = "continuous",
    max_batch_size: int = 8,
    max_wait_ms: float = 5.0,
    batch_buckets: Sequence[int] | None = None,
    sizes: Sequence[tuple[int, int]] | None = None,
    on_nonfinite: OnNotFinite = "error",
    host: str = "127.0.0.1",
    port: int = 0,
    name: str = "default",
    max_queue: int = 64,
    deadline_s: float | None = None,
    max_pixel_steps: int | Auto | None = "auto",
    max_queue_s: float | Auto | None = "auto",
    max_per_client: int | None = None,
    api_key: str | None = None,
    access_log: bool = False,
    link_s: float = LINK_S,
    max_links: int = MAX_LINKS,
    links_gib: float = LINKS_GIB,
    root_path: str = "",
    ssl_certfile: str | os.PathLike[str] | None = None,
    ssl_keyfile: str | os.PathLike[str] | None = None,
    limits: ConnectionLimits | None = None,
    log_level: str = "warning",
    replicas: int | Literal["auto"] | None = None,
    address: str | None = None,
    **load_options: Any,
) -> Server:
    """Serve a pipeline, or a model by name, over HTTP from this process; return when it is ready.

    A pipeline stays the caller's. A model given by name is loaded with `load_options`: `device`,
    `dtype`, `recipe`, `scheduler`, `loras`, `fuse`, `seed`, `torch_threads`, `unet`, `vae` (see
    `load_pipeline`). The server owns that model and frees it at `stop()`. `port=0` takes a free
    port. A server that runs under the same `name` is stopped first, so that a notebook cell can be
    run again; other servers go on.

    `EngineOptions` describes how requests share the model: `batching`, `max_batch_size`,
    `max_wait_ms`, `batch_buckets`, `sizes`, `max_queue` and `on_nonfinite`. `DoorOptions` describes
    which requests and clients come in: `deadline_s`, `max_pixel_steps`, `max_queue_s`, `max_per_client`,
    `api_key`, `access_log`, `root_path`, `ssl_certfile` and `ssl_keyfile`. `ImageLinks` describes
    the links to images: `link_s`, `max_links` and `links_gib`. `limits` says how long clients may
    take, how many may be connected, and how long `stop()` waits for requests.

    `replicas` says how many processes of Ray Serve hold an engine each, on a GPU of its own; "auto"
    is every GPU. `address` is that of a Ray that runs (docs/replicas.md).

    Raises ValueError for a bad argument or certificate, OSError if the port is taken, ImportError
    for `replicas` without Ray, and what loading raises.
    """
    # 1) Check the arguments
    if load_options and not isinstance(model, str):
        names = ", ".join(load_options)
        raise ValueError(
            f"{names}: a loaded pipeline has its own; give these to load_pipeline instead"
        )
    check_replicas(model, replicas, address)
    if limits is not None and not isinstance(limits, ConnectionLimits):
        raise ValueError(f"limits: {limits!r} is no ConnectionLimits")
    if log_level not in LOG_LEVELS:
        raise ValueError(f"log_level: {log_level!r} is none of {', '.join(LOG_LEVELS)}")
    try:
        options = EngineOptions(
            batching=batching,
            max_batch_size=max_batch_size,
            max_wait_ms=max_wait_ms,
            max_queue=max_queue,
            batch_buckets=batch_buckets,
            sizes=sizes,
            on_nonfinite=on_nonfinite,
        )
        door = DoorOptions(
            deadline_s=deadline_s,
            max_pixel_steps=max_pixel_steps,
            max_queue_s=max_queue_s,
            max_per_client=max_per_client,
            api_key=None if api_key is None else SecretStr(api_key),
            access_log=access_log,
            root_path=root_path,
            ssl_certfile=None if ssl_certfile is None else os.fspath(ssl_certfile),
            ssl_keyfile=None if ssl_keyfile is None else os.fspath(ssl_keyfile),
        )
    except ValidationError as error:
        raise ValueError(in_words(error)) from None
    links = ImageLinks(link_s=link_s, max_links=max_links, links_gib=links_gib)

    # 2) Describe how each start gets its engine
    def load() -> SDXLPipeline:
        from benchlib.serving.model.loading import load_pipeline

        return load_pipeline(model, **load_options) if isinstance(model, str) else model

    def make_engine() -> Backend[Any]:
        if replicas is not None:
            from benchlib.serving.replicas.ray_fleet import make_ray_fleet

            assert isinstance(model, str)
            return make_ray_fleet(model, options, load_options, replicas=replicas, address=address)
        return Engine(load if isinstance(model, str) else model, options)

    # 3) Start
    return Server(
        make_engine,
        host=host,
        port=port,
        name=name,
        log_level=log_level,
        door=door,
        links=links,
        limits=limits,
        model=model if isinstance(model, str) else model.spec.get("model"),
    ).start()


def listen(host: str, port: int) -> socket.socket:
    """A TCP socket that listens. Raises OSError that names the address.

    A loaded pipeline is ready before uvicorn accepts. Until then, connections wait in this socket.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Unless IPPROTO_TCP is named, asyncio leaves Nagle's algorithm on, which costs 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        raise OSError(
            f"host and port: {host}:{port} can't be bound ({error}); use another, or port=0"
        ) from error
    return listener


def url_of(listener: socket.socket, tls: Mapping[str, str | None]) -> str:
    """The base URL of a socket that listens, with uvicorn's options of TLS."""
    host, port = listener.getsockname()[:2]
    if ":" in host:  # IPv6
        host = f"[{host}]"
    scheme = "https" if tls else "http"
    return f"{scheme}://{host}:{port}"


def _longest_stop_s() -> float:
    return max((server.longest_stop_s for server in _servers.values()), default=0.0)


_sigterm = SigtermEndsScript(_longest_stop_s)


@atexit.register
def _stop_all() -> None:
    """Stop all servers.

    A daemon thread that is inside torch when the interpreter ends would crash the process.
    """
    for server in _servers.values():
        server.begin_stop()
    for server in list(_servers.values()):
        server.stop()
