"""Samples how much of the machine a server's process takes while a run lasts.

Knows processes by their pid, through psutil, and GPUs through NVML, where there is a driver.
Ignorant of servers, load and results: the caller says which process to watch and keeps the samples.
It never imports torch: CUDA is read only where this process already uses it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

import psutil

from benchlib.other_work import OtherWork, process_cpu_s

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
    "others_cpu_cores",
    "steal_cores",
    "gpu_used_gib",
    "gpu_utilisation",
    "gpu_power_w",
    "gpu_sm_clock_mhz",
    "gpu_memory_clock_mhz",
    "gpu_temperature_c",
)


def process_memory_gib(pid: int | None = None) -> float:
    """Resident memory of a process in GiB, by default this one. Raises psutil.NoSuchProcess."""
    return float(psutil.Process(pid).memory_info().rss) / GIB


def cuda_memory_gib() -> tuple[float | None, float | None]:
    """GiB that torch's allocator has handed out and has reserved; None where CUDA is not in use.

    Both are sums over all devices.
    """
    cuda = cuda_in_use()
    if cuda is None:
        return None, None
    allocated_bytes = reserved_bytes = 0
    for index in range(cuda.device_count()):
        # Not `memory_stats`: it flattens and sorts hundreds of numbers, five times a second.
        stats = cuda.memory_stats_as_nested_dict(index)
        allocated_bytes += stats["allocated_bytes"]["all"]["current"]
        reserved_bytes += stats["reserved_bytes"]["all"]["current"]
    return allocated_bytes / GIB, reserved_bytes / GIB


def cuda_in_use() -> Any:
    """`torch.cuda` where this process has begun to use it, else None."""
    cuda: Any = getattr(sys.modules.get("torch"), "cuda", None)
    # The function is absent while another thread is half-way through `import torch`.
    is_initialized = getattr(cuda, "is_initialized", None)
    return cuda if is_initialized is not None and is_initialized() else None


class Sampler:
    """Samples the process `pid` every `interval_s` seconds on a thread, from start() to stop().

    Memory is in GiB: `rss_gib` is the process's, `system_used_gib` the machine's. The `cuda_`
    columns are what torch's allocator has handed out and has reserved over all devices. They are
    null unless `pid` is this process. A peak between two samples is missed.

    CPU shares are in cores: CPU seconds per second since the previous sample, null in the first
    one. `others_cpu_cores` is what processes took that are neither the server, the generator nor
    this one, and `steal_cores` what a hypervisor gave away: see `other_work`.

    The `gpu_` columns are NVML's figures of `device`, such as "cuda:0", whichever process uses it.
    Their units are GiB, share of the time, watts, MHz and degrees Celsius. A figure that NVML does
    not have is null. Sampling ends quietly when the process does.

    After the start, `zero_s` may be set: the time.monotonic() that `time_s` counts from. So may
    `generator_pid`, the process whose CPU share is taken beside the server's; `watch_generator`
    adds the processes that it has started.
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
        self._worker_pids: tuple[int, ...] = ()
        self.interval_s = interval_s
        self.zero_s = time.monotonic()
        # The cores that the sampling itself took, up to the last sample.
        self.cpu_cores: float | None = None
        self._gpu = Gpu.find(device)
        self._other_work = OtherWork()
        self._samples: list[tuple[float | None, ...]] = []
        self._last_cpu: dict[int, tuple[float, float]] = {}  # by pid: the moment, CPU seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._sample_until_stopped, name="benchlib-telemetry", daemon=True
        )

    def watch_generator(self, pid: int) -> None:
        """From now on counts process `pid`, and its children of this moment, as the generator."""
        with contextlib.suppress(psutil.Error):  # it has ended already
            self._worker_pids = tuple(child.pid for child in psutil.Process(pid).children())
        self.generator_pid = pid

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
        """The samples so far: float64, a row for each, in the order taken; a null is NaN."""
        import pandas as pd

        samples = pd.DataFrame(list(self._samples), columns=list(COLUMNS), dtype="float64")
        samples["time_s"] -= self.zero_s
        return samples

    @property
    def memory_gib(self) -> dict[str, float]:
        """GiB of the last sample: the process's under "", torch's reserved under " on the GPU"."""
        if not self._samples:
            return {}
        last = dict(zip(COLUMNS, self._samples[-1], strict=True))
        by_place = {"": last["rss_gib"], " on the GPU": last["cuda_reserved_gib"]}
        return {place: gib for place, gib in by_place.items() if gib is not None}

    def _sample_until_stopped(self) -> None:
        began_s = due_s = time.monotonic()
        began_cpu_s = time.thread_time()
        try:
            server = psutil.Process(self.pid)
            while not self._stop.is_set():
                now_s = time.monotonic()
                rss_bytes = server.memory_info().rss
                if rss_bytes == 0:  # a zombie: it ended, but its parent has not yet waited for it
                    return
                self._samples.append(self._sample(now_s, rss_bytes))
                if now_s > began_s:
                    self.cpu_cores = (time.thread_time() - began_cpu_s) / (now_s - began_s)
                due_s = max(due_s + self.interval_s, time.monotonic())
                self._stop.wait(due_s - time.monotonic())
        except psutil.Error:
            return  # the process has ended, or is another user's: the samples so far stay

    def _sample(self, now_s: float, rss_bytes: int) -> tuple[float | None, ...]:
        """One row of COLUMNS."""
        cuda_gib: tuple[float | None, float | None] = (None, None)
        if self.pid == os.getpid():
            cuda_gib = cuda_memory_gib()
        return (
            now_s,
            rss_bytes / GIB,
            psutil.virtual_memory().used / GIB,
            *cuda_gib,
            self._cores(self.pid, now_s),
            self._generator_cores(now_s),
            *self._other_work.read((self.pid, self.generator_pid, *self._worker_pids)),
            *(self._gpu.sample() if self._gpu else [None] * 6),
        )

    def _generator_cores(self, now_s: float) -> float | None:
        """The cores that all processes of the generator took together."""
        all_cores = [self._cores(pid, now_s) for pid in (self.generator_pid, *self._worker_pids)]
        known = [cores for cores in all_cores if cores is not None]
        return sum(known) if known else None

    def _cores(self, pid: int | None, now_s: float) -> float | None:
        """The cores that a process took since its previous sample."""
        if pid is None:
            return None
        cpu_s = process_cpu_s(pid)
        if cpu_s is None:  # the generator ends before the server does
            return None
        last_s, last_cpu_s = self._last_cpu.get(pid, (now_s, cpu_s))
        self._last_cpu[pid] = (now_s, cpu_s)
        return (cpu_s - last_cpu_s) / (now_s - last_s) if now_s > last_s else None


class Gpu:
    """One GPU, as NVML describes it; a value that NVML does not have is None."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle

    @classmethod
    def find(cls, device: str | None) -> Gpu | None:
        """The GPU that torch calls `device`; None for a CPU, and without NVML or CUDA in use."""
        cuda = cuda_in_use()
        if cuda is None or device is None or not device.startswith("cuda"):
            return None
        nvml = import_module("pynvml")
        index = int(device.partition(":")[2] or 0)
        try:
            nvml.nvmlInit()
            # By UUID, as CUDA_VISIBLE_DEVICES renumbers the devices for torch but not for NVML.
            uuid = cuda.get_device_properties(index).uuid
            return cls(nvml, nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
        except nvml.NVMLError:
            return None

    def ask(self, question: str, *arguments: Any) -> Any:
        """The answer of NVML's function `question`; None where it has none."""
        try:
            return getattr(self._nvml, question)(self._handle, *arguments)
        except self._nvml.NVMLError:
            return None

    def watts(self, question: str) -> float | None:
        milliwatts = self.ask(question)
        return None if milliwatts is None else milliwatts / 1000

    def sample(self) -> list[float | None]:
        """The six `gpu_` values of COLUMNS."""
        memory = self.ask("nvmlDeviceGetMemoryInfo")
        rates = self.ask("nvmlDeviceGetUtilizationRates")
        return [
            None if memory is None else memory.used / GIB,
            None if rates is None else rates.gpu / 100,
            self.watts("nvmlDeviceGetPowerUsage"),
            self.ask("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_SM),
            self.ask("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_MEM),
            self.ask("nvmlDeviceGetTemperature", self._nvml.NVML_TEMPERATURE_GPU),
        ]

    def driver(self) -> str:
        return str(self._nvml.nvmlSystemGetDriverVersion())
