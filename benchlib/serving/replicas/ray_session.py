"""Ray as this process uses it: a private one, the one that its owner has begun, or a cluster's.

Knows how Ray and Ray Serve start, are joined and end, and what they leave behind. Ignorant of
replicas.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, NoReturn, ParamSpec, TypeVar

from benchlib.serving.replicas.ray_private import (
    PrivateRay,
    private_variables,
    read_variables_anew,
)
from benchlib.serving.worker_threads import WorkerThreads

P = ParamSpec("P")
T = TypeVar("T")

DOOR_S = 10.0  # until a machine of a cluster must have taken a connection
LONG_S = 10**6
JOINED = {"RAY_gcs_rpc_server_reconnect_timeout_s": str(LONG_S)}
"""The variables of a process in a cluster. Ray would end it 60 s after the cluster's head has died, and a
notebook's kernel with it. The replicas find that out by themselves, and the server fails."""
CONTROLLER = "SERVE_CONTROLLER_ACTOR"
NAMESPACE = "serve"
SERVE_ENDS_S = 30.0

_lock = threading.Lock()
_current: RaySession | None = None


def require_ray() -> None:
    """Raise ImportError, which says what to install, if Ray Serve is missing."""
    if importlib.util.find_spec("ray") is None:
        raise ImportError(
            "replicas: this needs Ray Serve, which is not installed; run pip install 'benchlib[ray]'"
        )


class RaySession:
    """One use of Ray by this process. Servers with replicas share it.

    `enter` begins it or joins it, and the last `leave` ends it.

    Ray is started and ended on a thread that lives as long: the kernel kills Ray's processes with
    the thread that has started them. On this thread Ray takes no signals, either.
    """

    def __init__(self, address: str | None) -> None:
        self.address = address
        self.users = 0
        self._thread = WorkerThreads("benchlib-ray")
        self._environment: dict[str, str | None] = {}  # the variables as they were before
        self._private: PrivateRay | None = None
        self._has_joined = False
        self._gcs_address = ""  # of the Ray's head
        self._is_lost = False
        self._has_begun_serve = False
        self._guard = ExitStack()
        self._serve_level = logging.NOTSET

    @classmethod
    def enter(cls, address: str | None) -> RaySession:
        """The session at `address`: None for a private Ray, or for one that runs here already.

        Raises ImportError without Ray, ValueError if this process is in another session, and
        ConnectionError if there is no Ray at `address`.
        """
        global _current
        require_ray()
        with _lock:
            if _current is None:
                session = cls(address)
                session._begin()
                _current = session
            elif _current.address != address:
                raise ValueError(
                    f"address: {address!r} is not {_current.address!r}, where this process has "
                    "servers already; stop those first"
                )
            _current.users += 1
            return _current

    @property
    def is_private(self) -> bool:
        """Whether the Ray has been started here, for this process alone."""
        return self._private is not None

    def leave(self, clean_up: Callable[[], None] = lambda: None) -> None:
        """End this use of the session. The last one ends what has been started here.

        `clean_up` removes what this use has put there; it is not called where Ray itself ends.
        """
        global _current
        with _lock:
            self.users -= 1
            is_last = self.users == 0
            try:
                if not (is_last and self.is_private) and self.call(self._serves):
                    self.call(clean_up)
            finally:
                if is_last:
                    _current = None
                    self._end()

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` on the thread that lives as long as Ray."""
        return self._thread.submit(function, *args, **kwargs).result()

    # -- on the calling thread ---------------------------------------------------------------------

    def _begin(self) -> None:
        try:
            self.call(self._open)
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        self.call(self._close)
        self._thread.close()

    # -- on the session's own thread ---------------------------------------------------------------

    def _open(self) -> None:
        # 1) Ray reads its variables when it is imported
        own_ray = self.address is None and not is_ray_running()
        self._has_joined = own_ray or self.address is not None
        if self._has_joined:
            self._set_variables(private_variables() if own_ray else JOINED)
        import ray
        from ray import serve

        logger = logging.getLogger("ray.serve")
        self._serve_level = logger.level
        logger.setLevel(logging.ERROR)

        # 2) Ray
        join = {"log_to_driver": False, "logging_level": logging.ERROR}
        if own_ray:
            logging.getLogger("ray").setLevel(logging.ERROR)
            read_variables_anew()
            self._private = PrivateRay()
            with sigterm_kept():
                ray.init(address=self._private.address, **join)
        elif self.address is not None:
            read_variables_anew()
            with sigterm_kept(), told_in_words(self.address, ray.__version__):
                ray.init(address=self.address, **join)
        self._gcs_address = ray.get_runtime_context().gcs_address

        self._guard.enter_context(shutdown_refused())

        # 3) Ray Serve, without a server for HTTP
        self._has_begun_serve = not is_serve_running()
        if self._has_begun_serve:
            serve.start(proxy_location="Disabled")

    def _close(self) -> None:
        self._guard.close()
        try:
            import ray
            from ray import serve

            if ray.is_initialized():
                ends_serve = self._has_begun_serve and not self.is_private
                if ends_serve and self._serves() and not serve.status().applications:
                    end_serve()
                if self._has_joined:
                    ray.shutdown()
            logging.getLogger("ray.serve").setLevel(self._serve_level)
        finally:
            if self._private is not None:
                self._private.end()
            if self._has_joined:
                self._restore_variables()
                read_variables_anew()

    def _serves(self) -> bool:
        """Whether Ray Serve runs, and can be called: a call never ends if the Ray's head has died.

        A head that was started anew refuses this process.
        """
        from ray.exceptions import RayError

        if self._is_lost:
            return False
        try:
            check_door(self._gcs_address)
            return is_serve_running()
        except (OSError, RayError):
            self._is_lost = True
            return False

    def _set_variables(self, variables: Mapping[str, str]) -> None:
        names = [*variables, "PYTHONBREAKPOINT"]  # Ray sets this one for its own debugger
        self._environment = {name: os.environ.get(name) for name in names}
        os.environ.update(variables)

    def _restore_variables(self) -> None:
        for name, value in self._environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        self._environment = {}


@contextmanager
def sigterm_kept() -> Iterator[None]:
    """Keep who answers SIGTERM: Ray's library takes it, prints a trace and aborts the process.

    Python itself could set its own answer again in the main thread alone.
    """
    ask = ctypes.pythonapi.PyOS_getsig
    ask.restype = ctypes.c_void_p
    answer = ctypes.pythonapi.PyOS_setsig
    answer.argtypes = [ctypes.c_int, ctypes.c_void_p]
    answer.restype = ctypes.c_void_p
    before = ask(signal.SIGTERM)
    try:
        yield
    finally:
        answer(signal.SIGTERM, before)


@contextmanager
def shutdown_refused() -> Iterator[None]:
    """Make `ray.shutdown()` raise RuntimeError: Ray would end this process and not just the servers.

    Ray's library exits where any thread calls it after that, and replicas are called all the time.
    """
    import ray

    original = ray.shutdown

    @wraps(original)
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise RuntimeError(
            "ray.shutdown(): servers with replicas use this Ray; call stop() of each server first"
        )

    ray.shutdown = refuse
    try:
        yield
    finally:
        ray.shutdown = original


@contextmanager
def told_in_words(address: str, version: str) -> Iterator[None]:
    """Turn what joining the Ray at `address` raises into a ConnectionError that says what to do.

    Ray raises a RuntimeError where the versions of Ray or Python differ. It says nothing of a wrong
    token but in its log.
    """
    from ray.exceptions import RayError

    try:
        check_door(address)
        yield
    except (OSError, RuntimeError, ValueError, RayError) as error:
        words = " ".join(str(error).split()).rstrip(".")
        raise ConnectionError(
            f"address: no Ray could be joined at {address!r} ({words}); it must run there, be of "
            f"version {version}, and know this process by RAY_AUTH_MODE and RAY_AUTH_TOKEN"
        ) from error


def check_door(address: str) -> None:
    """Raise OSError if nobody listens at `address`: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        with socket.create_connection((host.strip("[]"), int(port)), timeout=DOOR_S):
            return


def is_ray_running() -> bool:
    """Whether this process is in a Ray already."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def end_serve() -> None:
    """End Ray Serve; return once its controller has ended.

    `serve.shutdown()` waits in a call of the controller until that is killed, and Ray then prints
    that the call has failed and will be tried again. This one does not wait within the call.
    """
    import ray
    from ray.serve import context

    controller = ray.get_actor(CONTROLLER, namespace=NAMESPACE)
    ray.get(controller.graceful_shutdown.remote(wait=False))
    latest_s = time.monotonic() + SERVE_ENDS_S
    while is_serve_running() and time.monotonic() < latest_s:
        time.sleep(0.05)
    context._set_global_client(None)


def is_serve_running() -> bool:
    """Whether the Ray that this process is in runs Ray Serve already."""
    from ray.util import list_named_actors

    named = list_named_actors(all_namespaces=True)
    return any(actor["name"] == CONTROLLER for actor in named)
