"""Describes what a run ran on: the machine, torch, other load, the packages and the commit.

Knows where Linux, macOS, CUDA, package metadata and git keep these facts. It never imports torch:
torch and CUDA are described only where this process already uses them. Ignorant of runs and
results, and of anything that changes while a run lasts (telemetry.py).
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from benchlib import other_work
from benchlib.other_work import CGROUPS, MEMBERSHIP, OtherWork, cgroup_folders
from benchlib.telemetry import GIB, Gpu, cuda_in_use

ENVIRONMENT = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    "MKL_NUM_THREADS",
    "KMP_BLOCKTIME",
    "CUDA_VISIBLE_DEVICES",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
)
"""The environment variables that change how fast torch computes."""
BUSY_SHARE = 0.25
"""Above this share of the usable cores, other work may have slowed what is measured."""
_COMMAND_LIMIT_S = 10


def describe_machine(device: str | None = None) -> dict[str, Any]:
    """The hardware and the operating system.

    `device` names the GPU, such as "cuda:0"; by default it is torch's current one. `cores` are the
    CPUs that this process may run on, and `cpu_limit_cores` is how many of them a container lets it
    use at a time, null without a limit. `memory_gib` is the machine's, or the container's limit
    where that is lower. `gpu` and `gpu_memory_gib` are null unless this process already uses CUDA;
    `gpu_driver` and `gpu_power_limit_w` are null without NVML, too.
    """
    memory_bytes = min([psutil.virtual_memory().total, *cgroup_memory_limits()])
    return {
        "cpu": _cpu_model(),
        "cores": other_work.usable_cpus(),
        "cpu_limit_cores": other_work.cpu_limit_cores(),
        "memory_gib": memory_bytes / GIB,
        **_describe_gpu(device),
        "os": f"{platform.system()} {platform.release()}",
    }


def _describe_gpu(device: str | None) -> dict[str, Any]:
    unknown = dict.fromkeys(("gpu", "gpu_memory_gib", "gpu_driver", "gpu_power_limit_w"))
    cuda = cuda_in_use()
    if cuda is None:
        return unknown
    named = (device or "").partition("cuda:")[2]
    index = int(named or cuda.current_device())
    properties = cuda.get_device_properties(index)
    described = unknown | {
        "gpu": properties.name,
        "gpu_memory_gib": properties.total_memory / GIB,
    }
    gpu = Gpu.find(f"cuda:{index}")
    if gpu is not None:
        described["gpu_driver"] = gpu.driver()
        described["gpu_power_limit_w"] = gpu.watts("nvmlDeviceGetEnforcedPowerLimit")
    return described


def describe_torch() -> dict[str, Any] | None:
    """How this process's torch computes; None where torch is not imported.

    Holds the numbers of threads, the settings that trade exactness for speed, and ENVIRONMENT.
    """
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
    """How busy the machine is with other work, watched for `watch_s` seconds.

    `others_cpu_cores` are the cores that all processes but this one take, and `steal_cores` those
    that the hypervisor gives away: see `other_work`. `load_average_1min` also holds the work of
    earlier runs. `warning` is a sentence where the others take more than BUSY_SHARE of all cores,
    else null.
    """
    watched = OtherWork()
    watched.read()
    time.sleep(max(watch_s, other_work.SHORTEST_S))
    others, steal = watched.read()
    cores = other_work.usable_cores()
    warning = None
    if others is not None and others + (steal or 0.0) > BUSY_SHARE * cores:
        usable = "1 core" if cores == 1 else f"{cores:g} cores"
        warning = (
            f"the machine is busy: other processes take {others:.1f} of {usable}, "
            "so figures of the CPU may be off"
        )
    return {
        "load_average_1min": os.getloadavg()[0],
        "others_cpu_cores": others,
        "steal_cores": steal,
        "warning": warning,
    }


def describe_packages() -> dict[str, str | None]:
    """Versions of Python, benchlib and the required packages; None for one that is missing."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    names = [re.split(r"[^\w.-]", requirement)[0] for requirement in _requirements()]
    for name in ["benchlib", *names]:
        versions[name] = version_of(name)
    return versions


def version_of(package: str) -> str | None:
    """The version of an installed package; None for one that is missing, or runs from its source."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _requirements() -> list[str]:
    try:
        requirements = metadata.requires("benchlib") or []
    except metadata.PackageNotFoundError:  # run from its source tree, without an installation
        project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
        requirements = project["project"]["dependencies"]
    return [requirement for requirement in requirements if "extra ==" not in requirement]


def describe_git(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The full hash of the `commit`, and whether tracked files differ from it (`dirty`).

    Both are null without git, and where `folder` is in no repository.
    """
    git = ["git", "-C", os.fspath(folder)]
    try:
        commit = _output([*git, "rev-parse", "HEAD"])
        changes = _output([*git, "status", "--porcelain", "--untracked-files=no"])
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(changes)}


def _output(command: list[str]) -> str:
    """The output of `command`, stripped. Raises OSError or SubprocessError where it fails."""
    ended = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=_COMMAND_LIMIT_S
    )
    return ended.stdout.strip()


def _cpu_model() -> str | None:
    if sys.platform == "darwin":
        return _output(["sysctl", "-n", "machdep.cpu.brand_string"])
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine() or None  # ARM's /proc/cpuinfo names no model


def available_memory_gib(root: Path = CGROUPS, membership: Path = MEMBERSHIP) -> float:
    """The memory in GiB that this process can still take.

    It is the machine's, or the container's where that is less. In a container with a limit, a
    process that takes more is killed, however much the machine has.
    """
    available_bytes = [psutil.virtual_memory().available]
    for cgroup in cgroup_folders(root, membership, "memory.max"):
        limit = (cgroup / "memory.max").read_text().strip()
        if limit != "max":
            available_bytes.append(int(limit) - _used_bytes(cgroup))
    return max(0, min(available_bytes)) / GIB


def cgroup_memory_limits(root: Path = CGROUPS, membership: Path = MEMBERSHIP) -> list[int]:
    """The memory limits, in bytes, of this process's cgroup and of the cgroups above it.

    The lowest limit holds. Only cgroups of version 2 are read.
    """
    limits = [
        (cgroup / "memory.max").read_text().strip()
        for cgroup in cgroup_folders(root, membership, "memory.max")
    ]
    return [int(limit) for limit in limits if limit != "max"]


def _used_bytes(cgroup: Path) -> int:
    """Bytes that a cgroup holds, less its cached files: the kernel drops these on demand."""
    used = int((cgroup / "memory.current").read_text())
    for line in (cgroup / "memory.stat").read_text().splitlines():
        name, value = line.split()
        if name in ("active_file", "inactive_file"):
            used -= int(value)
    return used
