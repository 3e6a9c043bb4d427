"""What the tests share: results and caches in a folder of their own, and one tiny pipeline."""

import os
import signal

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as benchlib.serving does, for tests that import torch before it

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that started pytest with & has it ignored


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("BENCHLIB_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setenv("BENCHLIB_RESULTS", str(tmp_path_factory.mktemp("results")))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def tiny():
    from benchlib.serving.pipeline import load_pipeline

    return load_pipeline("tiny", device="cpu")


@pytest.fixture
def idle_machine(monkeypatch):
    """Other work on the machine that runs the tests changes nothing of what is printed."""
    from benchlib import telemetry

    idle = {"load_average_1min": 0.1, "others_cpu_cores": 0.0, "warning": None}
    monkeypatch.setattr(telemetry, "describe_load", lambda: idle)
