"""A Ray of this process's own, on this machine: its processes, its folder and its secret.

Knows Ray's own classes for them, because `ray.init` starts more than is needed, and fails on a busy
machine. Ignorant of Ray Serve and of replicas.

Must be made and ended on a thread that lives as long as the Ray: the kernel kills Ray's processes
together with the thread that has started them.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import tempfile
from contextlib import ExitStack, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

OBJECT_STORE_BYTES = 256 * 2**20
"""Of shared memory, through which Ray passes values above 100 KiB: here the files of images."""
LONGEST_FOLDER = 36  # characters: Ray adds some 70 for a socket's path, which may have 107
ENDS_S = 10.0  # until a process is killed that has not ended with the others
AGENTS_MS = 600_000  # until Ray gives up its agents, which start slowly on a busy machine
_FOLDER = "benchlib-ray-{pid}-"


class PrivateRay:
    """A Ray that this process has started. `address` is what `ray.init` joins it by."""

    def __init__(self) -> None:
        remove_old_folders()
        self._folder = make_folder()
        try:
            self._node = start_node(self._folder)
        except BaseException:
            self._remove_folder()
            raise
        self.address: str = self._node.gcs_address

    def end(self) -> None:
        """End its processes; return once they are gone, and what they held of GPUs is free."""
        processes = self._processes()
        self._node.kill_all_processes(check_alive=False, allow_graceful=True, wait=True)
        _, alive = psutil.wait_procs(processes, timeout=ENDS_S)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive)
        self._remove_folder()

    def _processes(self) -> list[psutil.Process]:
        """All its processes, those of replicas too."""
        found = []
        for _, started in self._node.live_processes():
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(started.pid)
                found += [process, *process.children(recursive=True)]
        return found

    def _remove_folder(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def private_variables() -> dict[str, str]:
    """The variables of a private Ray, which its processes inherit.

    Its ports can be reached from other machines, and whoever gets in can run any code. So Ray asks
    for a token, unless its user has set RAY_AUTH_MODE.
    """
    return {
        "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "token"),
        "RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_metrics_collection": "0",
        "RAY_agent_register_timeout_ms": str(AGENTS_MS),
        # Ray would kill the largest process of a machine whose memory is 95 % in use.
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # The methods of a replica never block, so a second thread for them only costs time.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_LOG_TO_STDERR": "0",
    }


def read_variables_anew() -> None:
    """Make Ray forget the token and the settings that it has read before."""
    raylet: Any = import_module("ray._raylet")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
    raylet.Config.initialize("")


def start_node(folder: Path) -> Any:
    """Start Ray's processes; return Ray's own object for them.

    Left out are those that serve a dashboard, copy logs to the terminal, or scale a cluster.
    """
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    # Ray's main process ends if its agents have not written their ports into files within 15 s. A
    # busy machine takes longer (github.com/ray-project/ray/issues/65983). So the ports are chosen
    # here, and the files are written before.
    raylet: Any = import_module("ray._raylet")
    metrics, export, listen, environment = free_ports(4)
    ports = {
        raylet.METRICS_AGENT_PORT_NAME: metrics,
        raylet.METRICS_EXPORT_PORT_NAME: export,
        raylet.DASHBOARD_AGENT_LISTEN_PORT_NAME: listen,
        raylet.RUNTIME_ENV_AGENT_PORT_NAME: environment,
    }

    class SmallNode(Node):  # type: ignore[misc]
        def start_api_server(self, **_: object) -> None:
            """There is no dashboard."""

        def start_raylet(self, *args: Any, **options: Any) -> None:
            for name, port in ports.items():
                raylet.persist_port(self._session_dir, self._node_id, name, port)
            super().start_raylet(*args, **options)

    params = RayParams(
        num_cpus=0,  # as many processes would be started ahead
        object_store_memory=OBJECT_STORE_BYTES,
        temp_dir=str(folder),
        include_dashboard=False,
        include_log_monitor=False,
        no_monitor=True,
        metrics_agent_port=metrics,
        metrics_export_port=export,
        dashboard_agent_listen_port=listen,
        runtime_env_agent_port=environment,
    )
    return SmallNode(
        params, head=True, shutdown_at_exit=False, spawn_reaper=True, ray_init_cluster=True
    )


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]


def make_folder() -> Path:
    """A folder for Ray's sockets and logs, with a short path."""
    usual = Path(tempfile.gettempdir())
    prefix = _FOLDER.format(pid=os.getpid())
    if len(str(usual / prefix)) + 8 > LONGEST_FOLDER:
        usual = Path("/tmp")
    return Path(tempfile.mkdtemp(prefix=prefix, dir=usual))


def remove_old_folders() -> None:
    """Remove the folders of processes that were killed."""
    for parent in {Path(tempfile.gettempdir()), Path("/tmp")}:
        for folder in parent.glob(_FOLDER.format(pid="*") + "*"):
            pid = re.search(r"-(\d+)-", folder.name)
            if pid is not None and not psutil.pid_exists(int(pid[1])):
                shutil.rmtree(folder, ignore_errors=True)
