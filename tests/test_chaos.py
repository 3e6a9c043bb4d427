"""How the parts of `make chaos` run: what they leave is read, and what fails is a broken line."""

import json
import signal
import subprocess
import sys

import psutil
import pytest

from benchmarks import chaos
from benchmarks.figures import Figure
from benchmarks.held_lines import report

from .load.conftest import is_gone, wait_until


def test_each_part_has_a_name_of_its_own():
    for quick in (True, False):
        names = [part.name for lane in chaos.lanes(quick=quick) for part in lane]
        assert len(set(names)) == len(names)
        assert {"sweep", "server", "child", "parent", "soak"} <= set(names)


def test_a_part_that_leaves_no_record_is_a_broken_line(tmp_path):
    part = chaos.module("absent", "this_module_is_not_there")
    [figure] = part.run(tmp_path)
    assert figure.passed is False
    assert "FileNotFoundError" in figure.not_measured
    assert "No module named this_module_is_not_there" in (tmp_path / "absent.log").read_text()


def test_a_part_that_takes_too_long_is_ended_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(chaos, "LIMIT_S", 0.1)
    [figure] = chaos.module("slow", "http.server", "--bind=127.0.0.1", "0").run(tmp_path)
    assert figure.passed is False


SLEEP = """
import signal, sys
from benchmarks import chaos
signal.signal(signal.SIGINT, chaos.end_parts)
signal.signal(signal.SIGTERM, chaos.end_parts)
sleep = chaos.Part("sleep", ("http.server", "--bind=127.0.0.1", "0"), lambda folder: [])
apart = "import subprocess, sys; subprocess.Popen([sys.executable, '-m', 'http.server', '0'], start_new_session=True)"
with_child = chaos.Part("with_child", ("timeit", "-s", apart, "while True: pass"), lambda folder: [])
lanes = {"beside": [[sleep, sleep], [with_child], []], "alone": [[], [], [sleep, with_child]]}
chaos.lanes = lambda **_: lanes[LANES]
sys.exit(chaos.main())
"""


@pytest.mark.parametrize(
    ("number", "lanes", "count"), [(signal.SIGTERM, "beside", 3), (signal.SIGINT, "alone", 1)]
)
def test_a_signal_ends_all_parts(tmp_path, number, lanes, count):
    """Also what a part has started in a session of its own; the next parts of a lane never begin."""
    script = SLEEP.replace("LANES", repr(lanes))
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            watched = psutil.Process(process.pid)
            wait_until(lambda: len(watched.children(recursive=True)) == count)
            parts = watched.children(recursive=True)
            process.send_signal(number)
            assert process.wait(120) == 128 + number
        finally:
            process.kill()
    assert all(is_gone(part.pid) for part in parts)


def test_the_figures_of_a_record_come_back(tmp_path):
    figures = [
        Figure.once("server", "kills", 30, low=30),
        Figure("server", "late", [], high=1, not_measured="why"),
    ]
    report("server", figures, tmp_path, {})
    assert chaos.read_figures(tmp_path / "server.json") == figures


TESTS = """
import pytest

def test_well(): pass

@pytest.mark.skip
def test_left_out(): pass

def test_broken(): assert {broken}
"""


@pytest.mark.parametrize(("broken", "failed", "passed"), [("True", 0, 2), ("False", 1, 1)])
def test_tests_are_counted(tmp_path, broken, failed, passed):
    path = tmp_path / "test_some.py"
    path.write_text(TESTS.format(broken=broken))
    part = chaos.tests("some", str(path), "-p", "no:pytest-mpl")
    assert [figure.value for figure in part.run(tmp_path)] == [failed, passed]


def test_an_unknown_part_is_named(tmp_path, monkeypatch, capsys):
    arguments = ["chaos", str(tmp_path), "--parts", "sweep", "sweeep"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit):
        chaos.main()
    assert "--parts: sweeep: none of server, soak" in capsys.readouterr().err


@pytest.mark.parametrize(("high", "status"), [(1, 0), (0, 1)])
def test_a_broken_part_breaks_the_whole(tmp_path, monkeypatch, high, status):
    figure = Figure.once("one", "lost", 1, high=high)
    left_by_an_earlier_call = tmp_path / "parts/one.json"
    left_by_an_earlier_call.parent.mkdir()
    left_by_an_earlier_call.write_text("{}")
    part = chaos.Part(
        "one", ("platform",), lambda folder: [figure] * (not list(folder.glob("*.json")))
    )
    monkeypatch.setattr(chaos, "lanes", lambda **_: [[part], [], [part]])
    monkeypatch.setattr(sys, "argv", ["chaos", str(tmp_path)])
    assert chaos.main() == status
    record = json.loads((tmp_path / "chaos.json").read_text())
    assert [one["name"] for one in record["figures"]] == ["lost", "lost", "seconds"]
