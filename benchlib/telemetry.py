"""Samples what a server's process takes of the machine while a run lasts, and describes machine, packages and commit.

Knows processes by their pid, by way of psutil, and GPUs by way of NVML, where there is a driver. Ignorant of servers,
load and results: whoever starts it says whom to watch and keeps the samples. It never imports torch: CUDA is asked
about only where this process already uses it.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import threading
import time
import tomllib
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    import pandas as pd

GIB = 2**30
COLUMNS = (
    "time_s",
    "rss_gib",
    "system_used_gib",
    "cuda_allocated_gib",
    "cuda_reserved_gib",
    "server_cpu_cores",
    "generator_cpu_cores",
    "gpu_used_gib",
    "gpu_utilisation",
    "gpu_power_w",
    "gpu_sm_clock_mhz",
    "gpu_memory_clock_mhz",
    "gpu_temperature_c",
)
ENVIRONMENT = (
    "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MKL_NUM_THREADS", "KMP_BLOCKTIME",
    "CUDA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF",
)  # fmt: skip
"""Settings from outside that change how fast torch computes."""
BUSY_SHARE = 0.25  # of the machine's cores


def process_memory_gib(pid: int | None = None) -> float:
    """Resident set size (RSS) in GiB of a process, this one by default; psutil.NoSuchProcess where there is none."""
    return float(psutil.Process(pid).memory_info().rss) / GIB


def cuda_memory_gib() -> tuple[float | None, float | None]:
    """GiB that torch's allocator has handed out and has reserved over all devices; None where CUDA is not in use."""
    cuda = _cuda()
    if cuda is None:
        return None, None
    devices = [cuda.memory_stats(index) for index in range(cuda.device_count())]
    allocated = sum(device.get("allocated_bytes.all.current", 0) for device in devices)
    reserved = sum(device.get("reserved_bytes.all.current", 0) for device in devices)
    return allocated / GIB, reserved / GIB


class Sampler:
    """Samples the process `pid` every `interval_s` seconds on a daemon thread of this process, from start() to stop().

    Memory is in GiB: `rss_gib` of the process (0.2 s apart: a shorter peak can be missed), `system_used_gib` of the
    machine, and, if `pid` is this process and uses CUDA, what torch's allocator has handed out and reserved over all
    devices. CPU shares are cores: CPU seconds per second since the previous sample, null in the first. The `gpu_`
    columns are NVML's word on `device`, such as "cuda:0", whoever uses it: GiB in use, the share of the time in which
    it computed, watts, MHz and degrees Celsius; null without NVML, and each where the GPU does not tell it. Sampling
    ends quietly when the process does.

    `zero_s` is the time.monotonic() that `time_s` counts from and `generator_pid` the process whose CPU share is taken
    beside the server's: both may be set after the start, as a load run's clock and child come later.
    """

    def __init__(
        self,
        pid: int,
        *,
        generator_pid: int | None = None,
        interval_s: float = 0.2,
        device: str | None = None,
    ) -> None:
        if not interval_s > 0:
            raise ValueError(f"interval_s must be more than 0 seconds, not {interval_s}: try 0.2")
        self.pid = pid
        self.generator_pid = generator_pid
        self.interval_s = interval_s
        self._gpu = _Gpu.of(device)
        self.zero_s = time.monotonic()
        self.cpu_cores: float | None = (
            None  # what the sampling itself took, in cores, up to the last sample
        )
        self._samples: list[tuple[float | None, ...]] = []
        self._previous: dict[int, tuple[float, float]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._sample_until_stopped, name="benchlib-telemetry", daemon=True
        )

    def start(self) -> Sampler:
        self._thread.start()
        return self

    def stop(self) -> None:
        """Takes no more samples; may be called again."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def __enter__(self) -> Sampler:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def frame(self) -> pd.DataFrame:
        """The samples so far, float64, one row each, in the order taken; nulls are NaN."""
        import pandas as pd

        samples = pd.DataFrame(list(self._samples), columns=list(COLUMNS), dtype="float64")
        samples["time_s"] -= self.zero_s
        return samples

    @property
    def memory_gib(self) -> dict[str, float]:
        """The last sample in GiB, by where: "" the process, and what torch has reserved " on the GPU"; {} before."""
        last = dict(zip(COLUMNS, self._samples[-1], strict=True)) if self._samples else {}
        asked = {"": last.get("rss_gib"), " on the GPU": last.get("cuda_reserved_gib")}
        return {where: gib for where, gib in asked.items() if gib is not None}

    def _sample_until_stopped(self) -> None:
        began_s, began_cpu_s = time.monotonic(), time.thread_time()
        due_s = began_s
        try:
            server = psutil.Process(self.pid)
            while not self._stop.is_set():
                now_s = time.monotonic()
                rss = server.memory_info().rss
                if rss == 0:  # a zombie: ended, but not yet waited for by its parent
                    return
                memory_gib = (
                    rss / GIB,
                    psutil.virtual_memory().used / GIB,
                    *(cuda_memory_gib() if self.pid == os.getpid() else (None, None)),
                )
                cores = (self._cores(self.pid, now_s), self._cores(self.generator_pid, now_s))
                self._samples.append(
                    (now_s, *memory_gib, *cores, *(self._gpu.sample() if self._gpu else [None] * 6))
                )
                if now_s > began_s:
                    self.cpu_cores = (time.thread_time() - began_cpu_s) / (now_s - began_s)
                due_s = max(due_s + self.interval_s, time.monotonic())
                self._stop.wait(due_s - time.monotonic())
        except psutil.Error:
            return  # the process has ended, or is another user's: what was sampled stays

    def _cores(self, pid: int | None, now_s: float) -> float | None:
        if pid is None:
            return None
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.Error:  # the generator ends before the server does
            return None
        cpu_s = times.user + times.system
        before_s, before_cpu_s = self._previous.get(pid, (now_s, cpu_s))
        self._previous[pid] = (now_s, cpu_s)
        return (cpu_s - before_cpu_s) / (now_s - before_s) if now_s > before_s else None


class _Gpu:
    """One GPU as NVML knows it; what it does not tell is None."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    @classmethod
    def of(cls, device: str | None) -> _Gpu | None:
        """The GPU that torch calls `device`; None for a CPU, without NVML, and before this process uses CUDA."""
        cuda = _cuda()
        if cuda is None or device is None or not device.startswith("cuda"):
            return None
        nvml = import_module("pynvml")
        try:
            nvml.nvmlInit()
            # By UUID, as CUDA_VISIBLE_DEVICES renumbers the devices for torch but not for NVML.
            uuid = cuda.get_device_properties(int(device.partition(":")[2] or 0)).uuid
            return cls(nvml, nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
        except nvml.NVMLError:
            return None

    def ask(self, question: str, *arguments: Any) -> Any:
        try:
            return getattr(self._nvml, question)(self._handle, *arguments)
        except self._nvml.NVMLError:
            return None

    def watts(self, question: str) -> float | None:
        milliwatts = self.ask(question)
        return None if milliwatts is None else milliwatts / 1000

    def sample(self) -> list[float | None]:
        nvml, memory, busy = (
            self._nvml,
            self.ask("nvmlDeviceGetMemoryInfo"),
            self.ask("nvmlDeviceGetUtilizationRates"),
        )
        return [
            None if memory is None else memory.used / GIB,
            None if busy is None else busy.gpu / 100,
            self.watts("nvmlDeviceGetPowerUsage"),
            self.ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            self.ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
            self.ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
        ]

    def driver(self) -> str:
        return str(self._nvml.nvmlSystemGetDriverVersion())


def describe_machine(device: str | None = None) -> dict[str, Any]:
    """What a run ran on: `cpu`, `cores` (that this process may use), `memory_gib` (the machine's, or a container's
    limit where that is less), `gpu` and `gpu_memory_gib` (null unless this process already uses CUDA), its
    `gpu_driver` and `gpu_power_limit_w` (null without NVML), `os`. The GPU is `device`, such as "cuda:0".
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    memory = min([psutil.virtual_memory().total, *_cgroup_memory_limits()])
    cuda = _cuda()
    index = int((device or "").partition("cuda:")[2] or (cuda.current_device() if cuda else 0))
    properties = cuda.get_device_properties(index) if cuda else None
    gpu = _Gpu.of(f"cuda:{index}")
    return {
        "cpu": _cpu_model(),
        "cores": cores,
        "memory_gib": memory / GIB,
        "gpu": properties.name if properties else None,
        "gpu_memory_gib": properties.total_memory / GIB if properties else None,
        "gpu_driver": gpu.driver() if gpu else None,
        "gpu_power_limit_w": gpu.watts("nvmlDeviceGetEnforcedPowerLimit") if gpu else None,
        "os": f"{platform.system()} {platform.release()}",
    }


def describe_torch() -> dict[str, Any] | None:
    """How this process's torch computes: its threads, the settings that trade exactness for speed, and ENVIRONMENT as
    it stands; None where torch is not imported."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return None
    return {
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "environment": {name: os.environ.get(name) for name in ENVIRONMENT},
    }


def describe_load(watch_s: float = 0.25) -> dict[str, Any]:
    """What else the machine does now: `load_average_1min`, which earlier runs of ours raise, and `others_cpu_cores`,
    the cores taken over `watch_s` seconds by all but this process; `warning` says so where these are over BUSY_SHARE
    of all, else it is null."""
    own = psutil.Process()

    def busy_s() -> tuple[float, float]:
        all_s, own_s = psutil.cpu_times(), own.cpu_times()
        # On Linux guest time is counted in user time too.
        idle_s = all_s.idle + getattr(all_s, "iowait", 0.0) + getattr(all_s, "guest", 0.0)
        return sum(all_s) - idle_s - own_s.user - own_s.system, time.monotonic()

    before_s, began_s = busy_s()
    time.sleep(watch_s)
    after_s, ended_s = busy_s()
    others = max(0.0, (after_s - before_s) / (ended_s - began_s))
    cores = psutil.cpu_count() or 1
    busy = f"the machine is busy: other processes take {others:.1f} of {cores} cores, so figures of the CPU may be off"
    return {
        "load_average_1min": os.getloadavg()[0],
        "others_cpu_cores": others,
        "warning": busy if others > BUSY_SHARE * cores else None,
    }


def describe_packages() -> dict[str, str | None]:
    """Versions of Python, of benchlib and of what its metadata requires; None for what is not installed."""
    try:
        requirements = [r for r in metadata.requires("benchlib") or [] if "extra ==" not in r]
    except metadata.PackageNotFoundError:  # run from its source tree, without an installation
        project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
        requirements = project["project"]["dependencies"]
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in [
        "benchlib",
        *(re.split(r"[^\w.-]", requirement)[0] for requirement in requirements),
    ]:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def describe_git(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """`commit` (its full hash) and `dirty` (whether tracked files differ from it); null outside git or without git."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return {
            "commit": commit,
            "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def _git(folder: str | os.PathLike[str], *arguments: str) -> str:
    command = ["git", "-C", os.fspath(folder), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()


def _cuda() -> Any:
    cuda: Any = getattr(sys.modules.get("torch"), "cuda", None)
    started = getattr(
        cuda, "is_initialized", bool
    )  # absent while another thread is half-way through `import torch`
    return cuda if started() else None


def _cpu_model() -> str | None:
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine() or None  # ARM's /proc/cpuinfo names no model


def _cgroup_memory_limits(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> list[int]:
    """Bytes that this process's cgroup and those above it allow (cgroup v2; the least of them holds)."""
    if not membership.exists():
        return []
    own = next(
        (line[3:] for line in membership.read_text().splitlines() if line.startswith("0::")), "/"
    )
    folder = root / own.lstrip("/")
    files = [above / "memory.max" for above in (folder, *folder.parents)]
    limits = [file.read_text().strip() for file in files if file.is_file()]
    return [int(limit) for limit in limits if limit != "max"]
