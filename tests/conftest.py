"""Shared by all tests: a folder of their own for results and caches, and one tiny pipeline.

Where several pytest workers share the machine, each takes its part of the cores for torch. Two torch
threads that wait for each other's core are many times slower than one.
"""

import os
import signal
import sys
from collections import Counter

import pytest

from .load.conftest import FakeServerProcess
from .made_runs import made, setting  # noqa: F401 - fixtures of all tests

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:  # read when torch is imported, here and in each process that a test starts
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))
os.environ["HF_HUB_OFFLINE"] = "1"
# benchlib.serving does the same. Some tests import torch before it.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
# A shell that starts pytest with & makes it ignore the signal.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The files that take longest, the longest first.
LONGEST = (
    "tests/test_notebooks.py",
    "tests/load/test_runner.py",
    "tests/serving/test_server.py",
    "tests/test_run.py",
    "tests/test_kills.py",
    "tests/serving/test_process_end.py",
    "tests/test_soak.py",
    "tests/test_sweeps.py",
    "tests/test_docs.py",
    "tests/test_several_targets.py",
    "tests/load/test_locustfile.py",
    "tests/serving/test_script_end.py",
    "tests/serving/test_last_words.py",
    "tests/test_chaos.py",
    "tests/serving/test_schemathesis.py",
    "tests/test_truth.py",
    "tests/test_telemetry.py",
)


def pytest_collection_modifyitems(items):
    """Begins with the longest files, then those of many tests: so no worker ends long after another.

    Files go to the workers as a whole, and one that is free takes the next file.
    """
    tests_in = Counter(item.path for item in items)
    places = {name: place for place, name in enumerate(LONGEST)}

    def place_of(item):
        name = item.nodeid.partition("::")[0]
        return places.get(name, len(places)), -tests_in[item.path]

    items.sort(key=place_of)


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("BENCHLIB_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setenv("BENCHLIB_RESULTS", str(tmp_path_factory.mktemp("results")))
    yield
    patch.undo()


@pytest.fixture(scope="session", autouse=True)
def _quick_warm_up():
    """A server times each batch twice before its first request, in place of seven times.

    The times are as good as the machine is quiet, which no test relies on.
    """
    patch = pytest.MonkeyPatch()
    patch.setattr("benchlib.serving.engine.step_times.REPEATS", 1)
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def _no_figure_stays_open():
    """The test that leaves a figure in pyplot fails, and not a later one of the same worker."""
    yield
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        left = pyplot.get_fignums()
        pyplot.close("all")
        assert not left


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
