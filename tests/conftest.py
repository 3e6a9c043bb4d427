"""Shared by all tests: a folder of their own for results and caches, and one tiny pipeline."""

import os
import signal

import pytest

from .load.conftest import FakeServerProcess
from .made_runs import made, setting  # noqa: F401 - fixtures of all tests

os.environ["HF_HUB_OFFLINE"] = "1"
# benchlib.serving does the same. Some tests import torch before it.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
# A shell that starts pytest with & makes it ignore the signal.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("BENCHLIB_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setenv("BENCHLIB_RESULTS", str(tmp_path_factory.mktemp("results")))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def tiny():
    from benchlib.serving.model.loading import load_pipeline

    return load_pipeline("tiny", device="cpu")


@pytest.fixture(scope="module")
def fake():
    """Another project's server, in a process of its own."""
    server = FakeServerProcess(service_s=0.02)
    yield server
    server.close()


@pytest.fixture
def idle_machine(monkeypatch):
    """Other work on the machine that runs the tests changes nothing of what is printed."""
    from benchlib import machine

    idle = {"load_average_1min": 0.1, "others_cpu_cores": 0.0, "warning": None}
    monkeypatch.setattr(machine, "describe_load", lambda: idle)
