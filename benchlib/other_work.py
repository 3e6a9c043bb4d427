"""Reads which CPU cores this process may use, and how many of them other work takes.

Knows the kernel's counters of CPU time, through psutil and the control groups of Linux. Ignorant of
runs, and of how much other work is too much (machine.py, study/busy.py).

What is seen depends on where this process runs:

- On a machine, and in a container without a CPU limit: every process on the CPUs that this process
  may use. Those of other containers are among them.
- In a container with a CPU limit (control groups of version 2): every process that shares the
  limit. Work outside of the container is not seen, even where it fills the whole machine. The
  machine's own counters would tell of CPUs that this container may never use.
- In a virtual machine: also what the hypervisor gave to others, as `steal`. Not every hypervisor
  tells it, and macOS never does.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import psutil

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
SHORTEST_S = 0.1
"""Readings nearer to each other say nothing: the counters move in steps of 0.01 s."""


class Taken(NamedTuple):
    """Cores that other processes took, and that the hypervisor gave away; None where unknown."""

    others_cpu_cores: float | None
    steal_cores: float | None


class _Reading(NamedTuple):
    """Counters at a moment of time.monotonic(), in seconds of CPU since some beginning.

    `all_s` holds the time in which nothing ran, too: it stands still where a sandbox hides the
    counters. `own_s` is of this project's own processes, which `pids` names.
    """

    moment_s: float
    all_s: float
    busy_s: float
    steal_s: float | None
    own_s: float
    pids: frozenset[int]


class OtherWork:
    """What others took of the cores that this process may use, between one reading and the next."""

    def __init__(self, *, root: Path = CGROUPS, membership: Path = MEMBERSHIP) -> None:
        self._limited = _limited_cgroup(root, membership)
        self._last: _Reading | None = None

    def read(self, pids: Collection[int | None] = ()) -> Taken:
        """What others took since the reading before; `pids` are our processes beside this one.

        Both are None in the first reading, and until SHORTEST_S after the reading before. They are
        also None where `pids` changed, or one of them ended: what it took is not known.
        """
        unknown = Taken(None, None)
        last = self._last
        if last is not None and time.monotonic() < last.moment_s + SHORTEST_S:
            return unknown
        now = self._reading({os.getpid(), *pids})
        self._last = now
        if last is None or now.pids != last.pids or now.all_s <= last.all_s:
            return unknown
        span_s = now.moment_s - last.moment_s
        others_s = now.busy_s - last.busy_s - (now.own_s - last.own_s)
        steal_cores = None
        if now.steal_s is not None and last.steal_s is not None:
            steal_cores = max(0.0, (now.steal_s - last.steal_s) / span_s)
        return Taken(max(0.0, others_s / span_s), steal_cores)

    def _reading(self, pids: set[int | None]) -> _Reading:
        own_s = 0.0
        living = set()
        for pid in pids:
            cpu_s = None if pid is None else process_cpu_s(pid)
            if pid is not None and cpu_s is not None:
                own_s += cpu_s
                living.add(pid)
        moment_s = time.monotonic()
        if self._limited is not None:
            used_s = _cgroup_used_s(self._limited)
            # Nothing says how long the container idled, so the clock stands for `all_s`.
            return _Reading(moment_s, moment_s, used_s, None, own_s, frozenset(living))
        times = _cpu_times()
        all_s = sum(_total_s(time_of_cpu) for time_of_cpu in times)
        busy_s = sum(_busy_s(time_of_cpu) for time_of_cpu in times)
        steals_s = [getattr(time_of_cpu, "steal", None) for time_of_cpu in times]
        known_s = [steal_s for steal_s in steals_s if steal_s is not None]
        steal_s = sum(known_s) if known_s else None
        return _Reading(moment_s, all_s, busy_s, steal_s, own_s, frozenset(living))


def usable_cores(root: Path = CGROUPS, membership: Path = MEMBERSHIP) -> float:
    """How many CPU cores this process may use: its container's limit, or else its CPUs."""
    limit = cpu_limit_cores(root, membership)
    return float(usable_cpus()) if limit is None else limit


def usable_cpus() -> int:
    """How many CPUs this process may run on, whatever time a container allows it there."""
    return len(_affinity() or ()) or os.cpu_count() or 1


def cpu_limit_cores(root: Path = CGROUPS, membership: Path = MEMBERSHIP) -> float | None:
    """The container's limit in cores; None where there is none, or where it is no limit.

    Only control groups of version 2 are read.
    """
    limited = _limited_cgroup(root, membership)
    return None if limited is None else _quota_cores(limited)


def process_cpu_s(pid: int) -> float | None:
    """CPU seconds that a process has taken; None where it has ended or is another user's."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return None
    return float(times.user + times.system)


def cgroup_folders(root: Path, membership: Path, file: str) -> list[Path]:
    """The folders of this process's control group and its parents that hold `file`.

    Only control groups of version 2 are found. The nearest comes first.
    """
    if not membership.exists():
        return []
    own = "/"
    for line in membership.read_text().splitlines():
        if line.startswith("0::"):
            own = line[3:]
            break
    folder = root / own.lstrip("/")
    return [above for above in (folder, *folder.parents) if (above / file).is_file()]


def _limited_cgroup(root: Path, membership: Path) -> Path | None:
    """The control group whose CPU limit is the lowest; None where the CPUs are fewer."""
    limited = []
    for folder in cgroup_folders(root, membership, "cpu.max"):
        cores = _quota_cores(folder)
        if cores is not None and cores < usable_cpus():
            limited.append((cores, folder))
    if not limited:
        return None
    _, folder = min(limited)
    return folder


def _quota_cores(cgroup: Path) -> float | None:
    quota, period = (cgroup / "cpu.max").read_text().split()
    return None if quota == "max" else int(quota) / int(period)


def _cgroup_used_s(cgroup: Path) -> float:
    for line in (cgroup / "cpu.stat").read_text().splitlines():
        name, value = line.split()
        if name == "usage_usec":
            return int(value) / 1e6
    raise ValueError(f"{cgroup / 'cpu.stat'} has no usage_usec")


def _affinity() -> set[int] | None:
    """The CPUs that this process may run on; None where the system does not say."""
    return os.sched_getaffinity(0) if sys.platform == "linux" else None


def _cpu_times() -> list[Any]:
    """psutil's times of the CPUs that this process may run on, or of all together."""
    affinity = _affinity()
    if affinity is None or len(affinity) == os.cpu_count():
        return [psutil.cpu_times()]
    every = psutil.cpu_times(percpu=True)
    if max(affinity) >= len(every):  # CPUs that are off line have no entry, and shift the others
        return [psutil.cpu_times()]
    return [every[cpu] for cpu in affinity]


def _total_s(times: Any) -> float:
    """All seconds of psutil's cpu_times, idle ones too. Linux counts guests in user time, too."""
    guests_s = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return float(sum(times) - guests_s)


def _busy_s(times: Any) -> float:
    """The seconds in which a process ran here."""
    away_s = getattr(times, "iowait", 0.0) + getattr(times, "steal", 0.0)
    busy_s: float = _total_s(times) - times.idle - away_s
    return busy_s
