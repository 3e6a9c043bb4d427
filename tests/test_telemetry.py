"""The sampler on real processes, and on made-up GPUs."""

import math
import os
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pandas as pd
import psutil
import pytest

from benchlib import telemetry
from benchlib.machine import describe_machine
from benchlib.telemetry import Sampler, process_memory_gib

from .load.conftest import wait_until

GIB = 2**30


def wait_for_samples(sampler: Sampler, number: int) -> None:
    """Wait until `sampler` has taken so many further samples."""
    enough = len(sampler.frame) + number
    wait_until(lambda: len(sampler.frame) >= enough)


TAKES_MEMORY = """
import mmap
input()
with mmap.mmap(-1, 2**27) as taken:
    for page in range(0, 2**27, mmap.PAGESIZE):
        taken[page] = 1
    print("taken", flush=True)
    input()
"""


def test_memory_rises_when_it_is_taken() -> None:
    """In a process of its own: this one may give back memory of earlier tests meanwhile."""
    # Not by malloc, which may reuse memory that it kept; mapped memory is taken when it is written to.
    command = [sys.executable, "-c", TAKES_MEMORY]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as taker:
        assert taker.stdin is not None
        assert taker.stdout is not None
        with Sampler(taker.pid, interval_s=0.02) as sampler:
            wait_for_samples(sampler, 20)
            taker.stdin.write("\n")
            taker.stdin.flush()
            assert taker.stdout.readline() == "taken\n"
            wait_for_samples(sampler, 2)
        taker.stdin.write("\n")
        taker.stdin.flush()
    frame = sampler.frame
    assert tuple(frame.columns) == telemetry.COLUMNS
    assert frame["rss_gib"].iloc[-1] - frame["rss_gib"].iloc[0] == pytest.approx(1 / 8, abs=0.02)
    assert frame["cuda_allocated_gib"].isna().all()
    assert frame["server_cpu_cores"].isna().tolist() == [True] + [False] * (len(frame) - 1)
    assert frame["system_used_gib"].between(0.01, 1e5).all()
    assert frame["time_s"].is_monotonic_increasing


def test_busy_process_takes_a_core_and_the_generator_is_counted_apart() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        process = psutil.Process(busy.pid)
        before_s = sum(process.cpu_times()[:2])
        began_s = time.monotonic()
        with Sampler(os.getpid(), interval_s=0.1) as sampler:
            sampler.generator_pid = busy.pid
            time.sleep(1)
        cores = (sum(process.cpu_times()[:2]) - before_s) / (time.monotonic() - began_s)
        busy.kill()
    assert sampler.frame["generator_cpu_cores"].mean() == pytest.approx(cores, rel=0.3)
    assert sampler.frame["server_cpu_cores"].mean() < cores


def test_a_loop_that_is_nobodys_is_other_work() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as loop:
        try:
            with Sampler(os.getpid(), interval_s=0.15) as sampler:
                wait_for_samples(sampler, 1)
                before_s = sum(psutil.Process(loop.pid).cpu_times()[:2])
                time.sleep(1)
                loop_s = sum(psutil.Process(loop.pid).cpu_times()[:2]) - before_s
                wait_for_samples(sampler, 3)
        finally:
            loop.kill()
    frame = sampler.frame
    assert math.isnan(frame["others_cpu_cores"].iloc[0]), "there is no sample before the first"
    known = frame.dropna(subset="others_cpu_cores")
    began_s = known["time_s"].shift(fill_value=frame["time_s"].iloc[0])
    others_s = (known["others_cpu_cores"] * (known["time_s"] - began_s)).sum()
    assert others_s > 0.5 * loop_s, "whatever else runs here"


def test_zero_can_be_set_after_the_start() -> None:
    with Sampler(os.getpid(), interval_s=0.02) as sampler:
        wait_for_samples(sampler, 1)
        sampler.zero_s = time.monotonic()
        wait_for_samples(sampler, 2)
    assert sampler.frame["time_s"].iloc[0] < 0 < sampler.frame["time_s"].iloc[-1]


@pytest.mark.parametrize("reaped", [True, False])
def test_a_process_that_ends_ends_the_sampling_quietly(reaped: bool) -> None:
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(sleeper) as process, Sampler(process.pid, interval_s=0.02) as sampler:
        wait_for_samples(sampler, 1)
        process.kill()
        if reaped:
            process.wait()
        wait_until(lambda: not sampler._thread.is_alive())
        assert len(sampler.frame) > 0
    with Sampler(process.pid) as gone:
        wait_until(lambda: not gone._thread.is_alive())
    assert gone.frame.empty
    assert (gone.frame.dtypes == "float64").all()


def test_generator_that_ends_leaves_the_server_sampled() -> None:
    with Sampler(os.getpid(), generator_pid=2**22 - 1, interval_s=0.02) as sampler:
        wait_for_samples(sampler, 3)
    assert sampler.frame["generator_cpu_cores"].isna().all()


def test_sampling_costs_little_and_says_what() -> None:
    with Sampler(os.getpid()) as sampler:
        time.sleep(1.5)
    assert sampler.cpu_cores is not None
    assert 0 < sampler.cpu_cores < 0.02  # of the sampling thread alone; 0.003 was measured


def test_interval_must_be_positive() -> None:
    with pytest.raises(ValueError, match="interval_s"):
        Sampler(os.getpid(), interval_s=0)


class FakeCuda:
    """The functions of torch.cuda that are called, for a process with two devices."""

    started = True

    def is_initialized(self) -> bool:
        return self.started

    def device_count(self) -> int:
        return 2

    def current_device(self) -> int:
        return 1

    def memory_stats_as_nested_dict(self, device: int) -> dict[str, Any]:
        allocated, reserved = (GIB, 2 * GIB) if device else (0, 0)
        return {
            "allocated_bytes": {"all": {"current": allocated, "peak": 5 * GIB}},
            "reserved_bytes": {"all": {"current": reserved, "peak": 5 * GIB}},
        }

    def memory_stats(self, _: int) -> dict[str, int]:
        raise AssertionError("it flattens and sorts all numbers, in each sample")

    memory_allocated = memory_reserved = memory_stats  # torch's call it

    def get_device_properties(self, device: int) -> SimpleNamespace:
        return SimpleNamespace(name=f"GPU {device}", total_memory=80 * GIB, uuid=f"00-{device}")


def test_cuda_is_asked_only_where_this_process_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    with (
        Sampler(os.getpid(), interval_s=0.02) as own,
        Sampler(os.getppid(), interval_s=0.02) as other,
    ):
        wait_for_samples(own, 1)
        wait_for_samples(other, 1)
    assert own.frame[["cuda_allocated_gib", "cuda_reserved_gib"]].iloc[-1].tolist() == [1.0, 2.0]
    assert other.frame["cuda_allocated_gib"].isna().all()
    assert describe_machine()["gpu"] == "GPU 1"
    cuda.started = False
    assert describe_machine()["gpu"] is None


class FakeNvml:
    """pynvml with a GPU that answers all but its clocks, or none at all with `missing`."""

    NVMLError = type("NVMLError", (Exception,), {})
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, missing: bool = False) -> None:
        self.missing, self.power_mw = missing, 300_000

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's names
        if self.missing:
            raise self.NVMLError

    def __getattr__(self, name: str) -> Any:
        def answer(*arguments: Any) -> Any:
            if name == "nvmlDeviceGetHandleByUUID":
                return arguments[0]
            if name == "nvmlSystemGetDriverVersion":
                return "580.1"
            if arguments[0] == "GPU-00-0":
                raise self.NVMLError
            return {
                "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=3 * GIB),
                "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=75),
                "nvmlDeviceGetPowerUsage": self.power_mw,
                "nvmlDeviceGetEnforcedPowerLimit": 700_000,
                "nvmlDeviceGetClockInfo": 1980 if arguments[-1] == 1 else 2619,
                "nvmlDeviceGetTemperature": 41,
            }[name]

        return answer


GPU_COLUMNS = [name for name in telemetry.COLUMNS if name.startswith("gpu_")]


def sample_once(device: str | None) -> pd.DataFrame:
    with Sampler(os.getpid(), interval_s=0.02, device=device) as sampler:
        wait_for_samples(sampler, 1)
    return sampler.frame[GPU_COLUMNS]


def test_a_gpu_is_watched_through_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=FakeCuda()))
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    assert sample_once("cuda:1").iloc[-1].tolist() == [3.0, 0.75, 300.0, 1980, 2619, 41]
    machine = describe_machine("cuda:1")
    assert (machine["gpu"], machine["gpu_driver"], machine["gpu_power_limit_w"]) == (
        "GPU 1",
        "580.1",
        700.0,
    )
    assert describe_machine() == machine, "the one that torch uses now"
    assert sample_once("cuda:0").isna().all(axis=None), "what a GPU does not tell is null"
    assert describe_machine("cuda:0")["gpu_power_limit_w"] is None
    assert sample_once("cpu").isna().all(axis=None)
    assert sample_once(None).isna().all(axis=None)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(missing=True))
    assert sample_once("cuda:1").isna().all(axis=None)
    assert describe_machine("cuda:1")["gpu_driver"] is None


def test_process_memory() -> None:
    assert 0.005 < process_memory_gib() == pytest.approx(process_memory_gib(os.getpid()), rel=0.2)


def test_importing_it_is_light() -> None:
    heavy = "{'pandas', 'torch', 'matplotlib'}"
    code = (
        f"import benchlib.telemetry, benchlib.study.store, sys; print({heavy} & {{*sys.modules}})"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "set()\n"
    )
