"""Limits for connections: how long, how many and how much. uvicorn alone has none of them.

Knows how uvicorn drives a connection, its clock, its order of closing and its stop. Ignorant of
routes, of jobs, and of what the answers say.

uvicorn gives each connection to a protocol. This one builds on the protocol of httptools. That is
a parser in C, so it takes less of the torch thread's time than h11, which is Python. h11 also limits
the bytes of the headers alone.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import re
import resource
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import httptools
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.lifespan.on import LifespanOn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from benchlib.serving.half_closed import FIRST_LOOK_S, PROBE, has_left, may_wait
from benchlib.serving.handshakes import limit_handshakes
from benchlib.serving.seldom_log import SeldomLine
from benchlib.telemetry import GIB

MAX_HEADERS = 100
MAX_HEADER_BYTES = 2**16
# Beside its body a request may have its headers, and the frames of a body in chunks.
FRAME_BYTES_PER_BODY_BYTE = 8
# A client that reads slower than this many bytes in `unread_s` reads nothing.
LEAST_READ_BYTES = 2**20
MOST_CONNECTIONS = 4096
# A refused client may still be sending. It would lose the answer if the socket closed at once.
LINGER_S = 2.0
SWEEP_S = 1.0
# The stop waits this long for requests that are on their way on idle connections.
STOP_TICK_S = 0.05
# After `drain_s` the answers "stopping" may take this long to be read.
LAST_WORDS_S = 0.25
# uvicorn's own limit of its stop must not come first: it would answer 500.
UVICORNS_LIMIT_LATER_S = 5
UVICORNS_KEEP_ALIVE_S = 5
# So many connections that were refused may linger beside the others, if there are files enough.
MOST_LINGERING = 64
_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)
OUT_OF_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

log = logging.getLogger("uvicorn.error")


class ConnectionLimits(BaseModel):
    """How long the server waits for its clients, and how many it has.

    Raises pydantic's ValidationError, which names the field at fault.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    headers_s: float = Field(
        default=20.0, gt=0, description="seconds for a request's headers; then 408"
    )
    body_s: float = Field(default=60.0, gt=0, description="seconds for a request's body; then 408")
    # uvicorn's default of 5 s would close an idle connection just as a slow client uses it again.
    keep_alive_s: float = Field(
        default=75.0, gt=0, description="seconds that a connection may be idle after an answer"
    )
    unread_s: float = Field(
        default=30.0, gt=0, description="seconds for a client to read 1 MiB of its answer"
    )
    unread_gib: float = Field(
        default=0.25, gt=0, description="most GiB of answers that clients have yet to read"
    )
    max_connections: int | None = Field(
        default=None,
        ge=1,
        description="most connections; else half of the files that the process may open",
    )
    drain_s: float = Field(
        default=30.0, ge=0, description="seconds to finish requests at a stop; then 503"
    )

    @property
    def connections(self) -> int:
        """The most connections. One more closes the one that has been idle for longest."""
        if self.max_connections is not None:
            return self.max_connections
        return max(1, min(MOST_CONNECTIONS, _most_files() // 2))

    @property
    def may_linger(self) -> int:
        """The most connections that were refused, or have to leave, and have not closed yet."""
        return max(1, min(MOST_LINGERING, _most_files() // 8))

    def in_force(self) -> dict[str, float]:
        """The limits as numbers, for the spec; also the one that follows from the files."""
        numbers = {name: getattr(self, name) for name in ConnectionLimits.model_fields}
        return numbers | {"max_connections": self.connections}

    @property
    def too_many(self) -> str:
        """What a client is told who comes when there are as many connections as may be."""
        return f"too many connections: this server's max_connections is {self.connections}"


def _most_files() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2 * MOST_CONNECTIONS if files == resource.RLIM_INFINITY else files


class Connections:
    """The open connections of one server, and its stop.

    `on_listening` is called once uvicorn listens, and may be called again. `refuse_rest` is called
    once `drain_s` is over: it must answer the requests inside at once. `on_refused` is called with
    the status and the reason of each answer that the app itself has no part in. `on_closed` is
    called with the limit for which an idle connection is closed.
    """

    def __init__(
        self,
        limits: ConnectionLimits,
        *,
        on_listening: Callable[[], None],
        refuse_rest: Callable[[], None],
        on_refused: Callable[[int, str], None],
        on_closed: Callable[[str], None],
    ) -> None:
        self.limits = limits
        self.drain_s = limits.drain_s
        self.attached = False
        self.stopping = False
        self.open: set[Connection] = set()
        # The connections that wait for their clients, the longest wait first.
        self.quiet: OrderedDict[Connection, None] = OrderedDict()
        # The connections with whole requests that have no answer yet.
        self.busy: set[Connection] = set()
        # The connections whose answers wait to be read, the longest wait first.
        self.unread: OrderedDict[Connection, None] = OrderedDict()
        # The connections that were refused, or have to leave, the first one first.
        self.leaving: OrderedDict[Connection, None] = OrderedDict()
        self._on_listening = on_listening
        self._refuse_rest = refuse_rest
        self.on_refused = on_refused
        self._on_closed = on_closed
        self._max_bytes = limits.unread_gib * GIB
        self._loop: asyncio.AbstractEventLoop
        self._sweep_timer: asyncio.TimerHandle | None = None
        waits_s = (limits.headers_s, limits.body_s, limits.unread_s)
        self._sweep_s = min(SWEEP_S, min(waits_s) / 4)
        self._shed_s = -SWEEP_S
        self._full_line = SeldomLine(
            f"Connections closed or refused, as {limits.connections} are the most "
            "(max_connections). Since the last such line: %d"
        )
        self._files_line = SeldomLine(
            "The oldest idle connections are closed, as no more files may be open (ulimit -n). "
            "Since the last such line, so often: %d"
        )
        self._broken_line = SeldomLine(
            "Requests that are no HTTP got 400. Since the last such line: %d"
        )

    # -- start and end -----------------------------------------------------------------------------

    def attach(self, config: uvicorn.Config) -> None:
        """Take over each connection of the uvicorn that `config` describes; it calls this loop's."""
        if not issubclass(config.http_protocol_class, HttpToolsProtocol):
            log.warning("Connections have no limits: they need uvicorn's --http httptools.")
            return
        # 1) Each connection is one of ours
        make: Any = partial(Connection, self)
        config.http_protocol_class = make
        config.ws_protocol_class = None
        if config.timeout_keep_alive == UVICORNS_KEEP_ALIVE_S:
            config.timeout_keep_alive = self.limits.keep_alive_s  # type: ignore[assignment]

        # 2) uvicorn's option may shorten the stop
        if config.timeout_graceful_shutdown is not None:
            self.drain_s = config.timeout_graceful_shutdown
        stop_s = self.drain_s + UVICORNS_LIMIT_LATER_S
        config.timeout_graceful_shutdown = stop_s  # type: ignore[assignment]

        # 3) uvicorn calls this when its start-up is over, and from time to time
        async def listening() -> None:
            self._on_listening()

        config.callback_notify = listening

        # 4) Look after them
        self._loop = asyncio.get_running_loop()
        self._former_handler = self._loop.get_exception_handler()
        self._loop.set_exception_handler(self._on_loop_error)
        self._undo_handshakes = limit_handshakes(self._loop, self.limits.headers_s)
        self._sweep()
        self.attached = True

    def detach(self) -> None:
        """Stop to look after connections."""
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._undo_handshakes()
            self._loop.set_exception_handler(self._former_handler)

    def begin_stop(self) -> None:
        """Close what waits for its client; after `drain_s` answer and close the rest."""
        if self.stopping:
            return
        self.stopping = True
        self._loop.call_later(STOP_TICK_S, self._close_quiet)
        self._loop.call_later(self.drain_s, self._refuse_rest)
        self._loop.call_later(self.drain_s + LAST_WORDS_S, self._abort_all)

    def _close_quiet(self) -> None:
        for connection in tuple(self.quiet):
            connection.give_up(503, "the server is stopping", "stopping")
        if self.open:
            self._loop.call_later(STOP_TICK_S, self._close_quiet)

    def _abort_all(self) -> None:
        for connection in tuple(self.open):
            connection.transport.abort()

    # -- limits ------------------------------------------------------------------------------------

    def admit(self, connection: Connection) -> None:
        """Note a new connection. If there are too many, the one that is idle for longest leaves."""
        # 1) One of those that may stay
        self.open.add(connection)
        staying = len(self.open) - len(self.leaving)
        if staying > self.limits.connections and self.quiet:
            self.note_too_many()
            self._on_closed("max_connections")
            next(iter(self.quiet)).leave()
        self.quiet[connection] = None

        # 2) Those that leave may take some time, if they are few
        while len(self.leaving) > self.limits.may_linger:
            first, _ = self.leaving.popitem(last=False)
            first.transport.abort()

    def note_too_many(self) -> None:
        """A connection is closed, or a request refused, as there are too many connections."""
        self._full_line.note()

    def note_broken(self) -> None:
        """A client has sent what is no HTTP."""
        self._broken_line.note()

    def forget(self, connection: Connection) -> None:
        """A connection has closed."""
        self.open.discard(connection)
        self.busy.discard(connection)
        self.quiet.pop(connection, None)
        self.unread.pop(connection, None)
        self.leaving.pop(connection, None)

    @property
    def too_busy(self) -> bool:
        """Whether as many connections wait for the server as there may be."""
        return len(self.busy) >= self.limits.connections

    def note_unread(self, connection: Connection) -> None:
        """An answer waits to be read. Too many bytes of them cut off the one that waits longest."""
        self.unread.setdefault(connection)
        held = {each: each.unread_bytes for each in self.unread}
        total = sum(held.values())
        for each in tuple(self.unread):
            if total <= self._max_bytes:
                break
            total -= held[each]
            del self.unread[each]
            each.transport.abort()

    def _sweep(self) -> None:
        now_s = self._loop.time()
        for connection in tuple(self.open):
            connection.check(now_s)
        self._sweep_timer = self._loop.call_later(self._sweep_s, self._sweep)

    def _free_files(self) -> None:
        """Close a quarter of all connections, those that have been idle for longest."""
        for connection in tuple(self.quiet)[: len(self.open) // 4 + 1]:
            self._on_closed("open_files")
            connection.give_up(503, "too many open files", "too_many_connections")

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Make room where no more files may be open.

        asyncio tries again after a second. Until then CPython 3.11 calls this 2,000 times.
        """
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in OUT_OF_FILES:
            if self._former_handler is None:
                loop.default_exception_handler(context)
            else:
                self._former_handler(loop, context)
            return
        now_s = loop.time()
        if now_s - self._shed_s >= SWEEP_S / 2:
            self._shed_s = now_s
            self._files_line.note()
            self._free_files()


class Connection(HttpToolsProtocol):
    """One connection. It waits for its client, or the client waits for an answer."""

    def __init__(self, connections: Connections, **given: Any) -> None:
        super().__init__(**given)
        self._all = connections
        # What the client sends, and since when. "nothing": it may begin another request.
        self._sends: Literal["headers", "body", "nothing"] = "headers"
        self._since_s = self.loop.time()
        self._began = False  # the first byte of the unfinished request is there
        self._inside = 0  # requests that are whole and unanswered
        self._refused_s: float | None = None
        self._leaves_s: float | None = None  # since then it may have one more request, and then go
        self._half_closed = False  # the client sends no more, and may wait for its answer
        # The unfinished request
        self._header_count = 0
        self._header_bytes = 0
        self._body_bytes = 0
        self._received_bytes = 0
        # The answers
        self._unread_since_s: float | None = None
        self._unread_before = 0

    @property
    def unread_bytes(self) -> int:
        """What the client has yet to read, in this process; the kernel has more."""
        unread = self.transport.get_write_buffer_size()
        # With TLS, asyncio has another transport below, and leaves out what waits there.
        tls = getattr(self.transport, "_ssl_protocol", None)
        below = getattr(tls, "_transport", None)
        if below is not None:
            unread += below.get_write_buffer_size()
        return unread

    # -- what asyncio and uvicorn call -------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._all.admit(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused_s is not None:
            return
        self._received_bytes += len(data)
        if self._sends != "body":
            data = _without_upgrade(data)
        if not self._read(data):
            return
        if self._sends == "nothing":
            if not self._inside:  # empty lines before a request
                self._wait_for("headers")
            return
        frame_bytes = self._received_bytes - self._body_bytes
        if frame_bytes > MAX_HEADER_BYTES + FRAME_BYTES_PER_BODY_BYTE * self._body_bytes:
            words = f"the headers have more than {MAX_HEADER_BYTES} bytes"
            self._refuse(431, words, "headers_too_large")

    def _read(self, data: bytes) -> bool:
        """Read on, and return whether it is HTTP.

        uvicorn's own `data_received` does the same, and logs a line or two for each broken request.
        """
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._all.note_broken()
            self._refuse(400, "this is no HTTP", "not_http")
            return False
        except httptools.HttpParserUpgrade:
            pass  # the app answers as if no other protocol had been asked for
        return True

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """The client sends no more. True keeps the connection open for the answer to one request."""
        waits = self._inside == 1 and not self._began and not self.cycle.response_started
        is_known = self.scope is not None and self.scope["http_version"] == "1.1"
        if not (waits and is_known and may_wait(self.transport)):
            return None
        self._half_closed = True
        self.cycle.keep_alive = False
        self.transport.write(PROBE)
        self.loop.call_later(FIRST_LOOK_S, self._drop_if_left)
        return True

    def _drop_if_left(self) -> None:
        if not self.transport.is_closing() and has_left(self.transport):
            self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._began = True
        self._header_count = 0
        self._header_bytes = 0
        self._body_bytes = 0
        self._received_bytes = 0
        if self._sends == "nothing":
            self._wait_for("headers")

    def on_url(self, url: bytes) -> None:
        self._header_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_count += 1
        self._header_bytes += len(name) + len(value)
        if not self._has_too_many_headers:
            super().on_header(name, value)

    @property
    def _has_too_many_headers(self) -> bool:
        return self._header_count > MAX_HEADERS or self._header_bytes > MAX_HEADER_BYTES

    def on_headers_complete(self) -> None:
        self._wait_for("body")
        app = self.app
        if self._has_too_many_headers:
            words = f"at most {MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes are read"
            self.app = _answer(431, words)
            self._all.on_refused(431, "headers_too_large")
        elif self._all.too_busy:
            self.app = _answer(503, self._all.limits.too_many)
            self._all.on_refused(503, "too_many_connections")
            self._all.note_too_many()
        super().on_headers_complete()
        self.app = app
        if self._all.stopping or self._leaves_s is not None:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._began = False
        if not self.cycle.response_complete:
            self._inside += 1
            self._all.busy.add(self)
            self._all.quiet.pop(self, None)
        self._wait_for("nothing")

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._inside = max(0, self._inside - 1)
        self._wait_for(self._sends)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._all.note_unread(self)

    def timeout_keep_alive_handler(self) -> None:
        self.give_up(408, "the connection was idle", "too_slow")

    def shutdown(self) -> None:
        """uvicorn stops."""
        self._all.begin_stop()
        if self.cycle is not None:
            self.cycle.keep_alive = False

    # -- limits ------------------------------------------------------------------------------------

    def check(self, now_s: float) -> None:
        """Give up on a client that is too late."""
        # 1) It reads, or has been refused
        self._check_reading(now_s)
        if self._half_closed:
            self._drop_if_left()
        if self._refused_s is not None and now_s - self._refused_s > LINGER_S:
            self.transport.abort()
        if self.transport.is_closing() or self._refused_s is not None or self._inside:
            return
        if self._leaves_s is not None and now_s - self._leaves_s > LINGER_S and not self._began:
            self.transport.close()
            return

        # 2) It sends
        limits = self._all.limits
        limit_s = {
            "headers": limits.headers_s,
            "body": limits.body_s,
            "nothing": float(self.timeout_keep_alive),
        }
        longest_s = limit_s[self._sends]
        if now_s - self._since_s > longest_s:
            words = f"the {self._sends} took longer than {longest_s:g} s"
            self.give_up(408, words, "too_slow")

    def _check_reading(self, now_s: float) -> None:
        unread = self.unread_bytes
        if unread == 0:
            self._unread_since_s = None
            self._all.unread.pop(self, None)
        elif self._unread_since_s is None:
            self._unread_since_s = now_s
            self._unread_before = unread
            self._all.note_unread(self)
        elif now_s - self._unread_since_s > self._all.limits.unread_s:
            if self._unread_before - unread < LEAST_READ_BYTES:
                self.transport.abort()
            self._unread_since_s = None

    def _wait_for(self, what: Literal["headers", "body", "nothing"]) -> None:
        """Wait for what the client sends, unless it waits for an answer."""
        self._sends = what
        self._since_s = self.loop.time()
        if self._inside or self._refused_s is not None or self._leaves_s is not None:
            return
        if not self.transport.is_closing():
            self._all.busy.discard(self)
            self._all.quiet[self] = None
            self._all.quiet.move_to_end(self)

    def leave(self) -> None:
        """Make room soon. A client that is idle may just be sending its next request.

        So that request is answered, if it comes within LINGER_S, and the connection closes then. A
        word of our own would do harm: some clients take it for a part of the answer before.
        """
        if self._began:
            self.give_up(503, self._all.limits.too_many, "too_many_connections")
            return
        self._all.quiet.pop(self, None)
        self._all.leaving[self] = None
        self._leaves_s = self.loop.time()

    def give_up(self, status: int, words: str, reason: str) -> None:
        """Close. A client that has begun a request is told why."""
        self._all.quiet.pop(self, None)
        if self._began and self._refused_s is None:
            self._refuse(status, words, reason)
        elif self.unread_bytes > 0:
            self.transport.abort()
        else:
            self.transport.close()

    def _refuse(self, status: int, words: str, reason: str) -> None:
        """Answer the unfinished request, unless another answer comes first, and close."""
        # 1) The app learns that its client has gone
        cycle = self.cycle
        answered = cycle is not None and cycle.response_started and self._sends == "body"
        if self._inside or answered:
            self.transport.abort()
            return
        if self._sends == "body":
            cycle.disconnected = True
            cycle.message_event.set()
        self._refused_s = self.loop.time()
        self._all.leaving[self] = None
        self._all.on_refused(status, reason)
        self._unset_keepalive_if_required()

        # 2) The client learns why
        body = json.dumps({"detail": words}).encode()
        head = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        head += "Connection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[status] + head.encode() + body)
        if self._all.stopping or not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        self.flow.resume_reading()


class ServedApp(FastAPI):
    """An app that attaches its `connections` to the uvicorn that runs it, and looks at its host.

    uvicorn's `LifespanOn` calls the app with one of its own methods, and has the configuration. So
    this holds for each way to start uvicorn. A middleware would come too late: FastAPI wraps that
    method.
    """

    connections: Connections
    look_at_host: Callable[[str], None]
    # Called where uvicorn ends without its own end of the app's life: after a second Ctrl+C.
    cut_short: Callable[[], None] | None = None
    _life: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            self._life = asyncio.current_task()
            lifespan = getattr(receive, "__self__", None)
            if isinstance(lifespan, LifespanOn):
                self.connections.attach(lifespan.config)
                self.look_at_host(lifespan.config.host)
            receive = self._watched(receive)
        try:
            await super().__call__(scope, receive, send)
        except asyncio.CancelledError:
            self._end_if_cut_short()
            raise

    def _watched(self, receive: Receive) -> Receive:
        """`receive` of the app's life. Starlette would log a traceback where it is cut short."""

        async def watched() -> Message:
            try:
                return await receive()
            except asyncio.CancelledError:
                self._end_if_cut_short()
                raise

        return watched

    def _end_if_cut_short(self) -> None:
        """Call `cut_short` if asyncio cancels everything, the app's life too, in any order.

        uvicorn would log a traceback for each request that is cancelled before the life is.
        """
        if self.cut_short is not None and self._life is not None and self._life.cancelling():
            self.cut_short()


def _without_upgrade(data: bytes) -> bytes:
    """The bytes of a request's head, in which a header Upgrade has another name of equal length.

    A server may answer as if it was not asked to change the protocol. Java's own client asks for
    HTTP/2 with each first request. httptools then takes the request's body for another protocol's.
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    if b"upgrade" not in head.lower():
        return data
    return _UPGRADE.sub(b"\r\nX-Grade:", head) + end + rest


def _answer(status: int, words: str) -> ASGIApp:
    """An app that answers anything with an error, and closes the connection."""
    body = json.dumps({"detail": words}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    if status == 503:
        headers.append((b"retry-after", b"1"))

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app
