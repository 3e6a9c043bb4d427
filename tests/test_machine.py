"""The descriptions of a machine, its packages and its source tree."""

import json
import os
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import psutil
import pytest

from benchlib import machine
from benchlib.machine import (
    available_memory_gib,
    cgroup_memory_limits,
    describe_git,
    describe_load,
    describe_machine,
    describe_packages,
    describe_torch,
)
from benchlib.telemetry import GIB


def test_torch_and_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    described = describe_torch()
    assert described is not None
    assert described["threads"] == torch.get_num_threads()
    assert (
        described["environment"]["OMP_NUM_THREADS"],
        described["environment"]["MKL_NUM_THREADS"],
    ) == (
        "3",
        None,
    )
    json.dumps(described, allow_nan=False)
    monkeypatch.delitem(sys.modules, "torch")
    assert describe_torch() is None


def test_other_work_on_the_machine_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        time.sleep(0.2)
        monkeypatch.setattr(machine, "BUSY_SHARE", 0.0)
        described = describe_load(0.5)
        busy.kill()
    assert described["others_cpu_cores"] > 0.2
    assert described["warning"].startswith(
        f"the machine is busy: other processes take {described['others_cpu_cores']:.1f} of"
    )
    monkeypatch.setattr(machine, "BUSY_SHARE", 2.0)
    assert describe_load(0.01)["warning"] is None


def test_machine_and_packages() -> None:
    described = describe_machine()
    assert list(described) == [
        "cpu", "cores", "cpu_limit_cores", "memory_gib", "gpu", "gpu_memory_gib", "gpu_driver",
        "gpu_power_limit_w", "os",
    ]  # fmt: skip
    assert described["gpu_driver"] is None
    assert described["cpu"]
    assert 1 <= described["cores"] <= (os.cpu_count() or 1)
    assert described["memory_gib"] > 0.1
    packages = describe_packages()
    assert {"python", "benchlib", "torch", "diffusers", "pydantic-settings"} <= packages.keys()
    assert "pytest" not in packages


def test_a_source_tree_that_is_not_installed_names_its_packages_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def not_installed(name: str) -> None:
        raise PackageNotFoundError(name)

    installed = describe_packages()
    monkeypatch.setattr("importlib.metadata.requires", not_installed)
    assert describe_packages() == installed


def test_container_memory_limit(tmp_path: Path) -> None:
    (tmp_path / "membership").write_text("0::/job/step\n")
    (tmp_path / "job/step").mkdir(parents=True)
    (tmp_path / "job/memory.max").write_text("4294967296\n")
    (tmp_path / "job/step/memory.max").write_text("max\n")
    assert cgroup_memory_limits(tmp_path, tmp_path / "membership") == [4 * GIB]
    assert cgroup_memory_limits(tmp_path, tmp_path / "absent") == []


def a_container(folder: Path, *, limit: int, used: int, cached: int = 0) -> tuple[Path, Path]:
    """The files of a process in a cgroup with a limit, below one without. Returns `root` and `membership`."""
    own = folder / "pod" / "container"
    own.mkdir(parents=True)
    for cgroup, words in ((own, str(limit)), (own.parent, "max")):
        (cgroup / "memory.max").write_text(f"{words}\n")
        (cgroup / "memory.current").write_text(f"{used}\n")
        stat = f"anon {used - cached}\ninactive_file {cached // 2}\nactive_file {cached // 2}\n"
        (cgroup / "memory.stat").write_text(stat)
    membership = folder / "membership"
    membership.write_text("0::/pod/container\n")
    return folder, membership


def test_memory_of_a_container_is_its_limit_less_what_is_used(tmp_path: Path) -> None:
    container = a_container(tmp_path, limit=GIB, used=GIB // 2, cached=GIB // 8)
    assert available_memory_gib(*container) == 5 / 8


def test_a_container_above_its_limit_has_no_memory(tmp_path: Path) -> None:
    assert available_memory_gib(*a_container(tmp_path, limit=GIB, used=2 * GIB)) == 0


def test_a_limit_above_the_machines_memory_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = psutil.virtual_memory()._replace(available=3 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    assert available_memory_gib(*a_container(tmp_path, limit=2**60, used=GIB)) == 3
    assert available_memory_gib(tmp_path, tmp_path / "absent") == 3


def test_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert describe_git(tmp_path) == {"commit": None, "dirty": None}
    author = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    (tmp_path / "file").write_text("1")
    for command in (["init", "-q"], ["add", "file"], [*author, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    clean = describe_git(tmp_path)
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "file").write_text("2")
    assert describe_git(tmp_path) == {"commit": clean["commit"], "dirty": True}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe_git(tmp_path) == {"commit": None, "dirty": None}
