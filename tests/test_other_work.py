"""What other processes take: by made-up counters, in a made-up container, and beside a real loop."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import psutil
import pytest

from benchlib import other_work
from benchlib.other_work import OtherWork, Taken, cpu_limit_cores, process_cpu_s, usable_cores


class LinuxTimes(NamedTuple):
    """psutil's cpu_times on Linux, where user time holds the time of guests, too."""

    user: float
    system: float
    idle: float
    iowait: float
    steal: float
    guest: float


class MacTimes(NamedTuple):
    """psutil's cpu_times on macOS, which tells no steal."""

    user: float
    nice: float
    system: float
    idle: float


class Counters:
    """Counters that a test moves: the machine's, each process's, and the clock."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.times: Any = LinuxTimes(10, 5, 100, 1, 2, 0)
        self.processes_s: dict[int, float] = {os.getpid(): 1.0, 7: 2.0}

    def move(self, seconds: float, **by: float) -> None:
        self.now_s += seconds
        moved = {name: getattr(self.times, name) + more for name, more in by.items()}
        self.times = self.times._replace(**moved)

    def take(self, pid: int, seconds: float) -> None:
        self.processes_s[pid] += seconds


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> Counters:
    made = Counters()
    monkeypatch.setattr(other_work, "_limited_cgroup", lambda *_: None)
    monkeypatch.setattr(other_work, "_cpu_times", lambda: [made.times])
    monkeypatch.setattr(other_work, "process_cpu_s", lambda pid: made.processes_s.get(pid))
    monkeypatch.setattr(other_work, "time", SimpleNamespace(monotonic=lambda: made.now_s))
    return made


UNKNOWN = Taken(None, None)


def test_what_is_not_ours_is_others(counters: Counters) -> None:
    watched = OtherWork()
    assert watched.read([7, None]) == UNKNOWN, "there is no reading before the first"
    counters.move(2, user=3, system=0.4, idle=0.5, iowait=0.1, steal=0.6, guest=0.2)
    counters.take(os.getpid(), 0.4)
    counters.take(7, 1.0)
    others, steal = watched.read([7, None])
    assert others == pytest.approx((3.4 - 1.4) / 2), "guests are in user time already"
    assert steal == pytest.approx(0.3)


def test_what_ours_took_beyond_the_machines_counters_is_no_negative_work(
    counters: Counters,
) -> None:
    watched = OtherWork()
    watched.read()
    counters.move(1, user=0.99, idle=1.01)
    counters.take(os.getpid(), 1.0)
    assert watched.read() == (0, 0)


def test_a_system_without_steal_says_null(counters: Counters) -> None:
    counters.times = MacTimes(10, 0, 5, 100)
    watched = OtherWork()
    watched.read()
    counters.move(1, user=0.5, idle=1.5)
    assert watched.read() == (0.5, None)


def test_counters_that_stand_still_are_not_0_cores(counters: Counters) -> None:
    watched = OtherWork()
    watched.read()
    counters.move(1)
    counters.take(os.getpid(), 0.5)
    assert watched.read() == UNKNOWN


def test_a_process_that_comes_or_goes_leaves_one_gap(counters: Counters) -> None:
    watched = OtherWork()
    watched.read()
    counters.move(1, user=1.5, idle=0.5)
    assert watched.read([7]) == UNKNOWN, "what it took before is not known"
    counters.move(1, user=1.5, idle=0.5)
    counters.take(7, 1.0)
    assert watched.read([7]) == (0.5, 0)
    del counters.processes_s[7]
    counters.move(1, user=1.5, idle=0.5)
    assert watched.read([7]) == UNKNOWN
    counters.move(1, user=1.5, idle=0.5)
    assert watched.read([7]) == (1.5, 0)


def test_readings_close_together_are_left_to_the_next(counters: Counters) -> None:
    watched = OtherWork()
    watched.read()
    counters.move(0.05, user=0.05, idle=0.05)
    assert watched.read() == UNKNOWN
    counters.move(0.15, user=0.15, idle=0.15)
    assert watched.read()[0] == pytest.approx(1.0), "over both"


def a_container(folder: Path, cpu_max: str, used_usec: int) -> dict[str, Path]:
    """The files of a control group with a CPU limit, below one without."""
    own = folder / "pod" / "container"
    own.mkdir(parents=True, exist_ok=True)
    (own.parent / "cpu.max").write_text("max 100000\n")
    (own / "cpu.max").write_text(f"{cpu_max}\n")
    (own / "cpu.stat").write_text(f"usage_usec {used_usec}\nuser_usec 1\n")
    membership = folder / "membership"
    membership.write_text("9:cpu:/\n0::/pod/container\n")
    return {"root": folder, "membership": membership}


def test_a_container_with_a_limit_sees_what_shares_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(other_work, "usable_cpus", lambda: 64)
    container = a_container(tmp_path, "150000 100000", 0)
    assert cpu_limit_cores(**container) == usable_cores(**container) == 1.5
    now_s, own_s = 0.0, 0.0
    monkeypatch.setattr(other_work, "process_cpu_s", lambda _: own_s)
    monkeypatch.setattr(other_work, "time", SimpleNamespace(monotonic=lambda: now_s))
    watched = OtherWork(**container)
    watched.read()
    a_container(tmp_path, "150000 100000", 2_500_000)
    now_s, own_s = 2.0, 0.5
    assert watched.read() == (1.0, None), "the machine's steal is not the container's"


@pytest.mark.parametrize("cpu_max", ["max 100000", "6400000 100000"])
def test_a_limit_that_is_none_leaves_the_cpus(
    cpu_max: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(other_work, "usable_cpus", lambda: 64)
    container = a_container(tmp_path, cpu_max, 0)
    assert cpu_limit_cores(**container) is None
    assert usable_cores(**container) == 64
    assert cpu_limit_cores(tmp_path, tmp_path / "absent") is None


def test_only_the_cpus_that_may_be_used_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    every = [LinuxTimes(cpu, 0, 0, 0, 0, 0) for cpu in range(4)]

    def cpu_times(percpu: bool = False) -> Any:
        return every if percpu else LinuxTimes(6, 0, 0, 0, 0, 0)

    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(psutil, "cpu_times", cpu_times)
    for affinity, users_s in (({1, 3}, [1, 3]), ({0, 1, 2, 3}, [6]), ({2, 5}, [6]), (None, [6])):
        monkeypatch.setattr(other_work, "_affinity", lambda found=affinity: found)
        assert [times.user for times in other_work._cpu_times()] == users_s


def test_a_real_loop_beside_this_process_is_seen() -> None:
    watched = OtherWork()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as loop:
        try:
            watched.read()
            began_s = time.monotonic()
            before_s = process_cpu_s(loop.pid)
            time.sleep(1)
            after_s = process_cpu_s(loop.pid)
            others, _ = watched.read()
            span_s = time.monotonic() - began_s
        finally:
            loop.kill()
    assert before_s is not None
    assert after_s is not None
    assert others is not None
    assert others > 0.5 * (after_s - before_s) / span_s, "however busy the machine is otherwise"
