"""Nobody reads what a program prints any more: it goes on, and its later lines are in the log."""

import io
import logging
import os
import subprocess
import sys

import httpx
import pytest

from benchlib.load import standing_worker
from benchlib.printing import flush_or_drop, print_line
from benchlib.serving import long_start
from benchlib.serving.last_words import ENGINE_ENDED
from benchlib.serving.process_end import ENDED_BY_SIGINT
from benchlib.serving.server import serve
from benchmarks.fakes.fake_pipeline import FakePipeline
from tests.serving.test_server import wait_until


@pytest.fixture
def unread():
    """A stream whose reader has ended."""
    reading, writing = os.pipe()
    os.close(reading)
    stream = open(writing, "w", encoding="ascii")  # noqa: SIM115 - it can't be closed before it is dropped
    yield stream
    flush_or_drop(stream)
    stream.close()


def words_of(caplog, level):
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def test_lines_come_at_once_to_a_stream_that_is_read(capsys, caplog):
    print_line("one")
    print_line(2, sys.stderr)
    assert capsys.readouterr() == ("one\n", "2\n")
    assert not caplog.records


def test_lines_that_nobody_reads_go_to_the_log_after_one_warning(unread, monkeypatch, caplog):
    monkeypatch.setattr(sys, "stdout", unread)
    caplog.set_level(logging.INFO, "benchlib")
    print_line("one")
    print_line("two")
    (warning,) = words_of(caplog, logging.WARNING)
    assert "Broken pipe" in warning
    assert words_of(caplog, logging.INFO) == ["one", "two"]


def test_so_do_lines_for_a_stream_that_is_closed_or_lacks_a_letter(caplog):
    caplog.set_level(logging.INFO, "benchlib")
    closed = io.StringIO()
    closed.close()
    print_line("one", closed)
    print_line("zwölf", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert words_of(caplog, logging.INFO) == ["one", "zwölf"]


def test_a_program_without_stdout_goes_on(caplog, monkeypatch):
    caplog.set_level(logging.INFO, "benchlib")
    monkeypatch.setattr(sys, "stdout", None)
    print_line("one")
    flush_or_drop(sys.stdout)
    assert words_of(caplog, logging.INFO) == ["one"]


def test_a_server_starts_and_serves(unread, monkeypatch, caplog, capsys):
    """Its long start tells something, and so does its access log."""
    monkeypatch.setattr(sys, "stdout", unread)
    caplog.set_level(logging.INFO, "benchlib")
    monkeypatch.setattr(long_start, "TELL_EVERY_S", 0.002)

    class Slow(FakePipeline):
        def step(self, works, *, rows=None):
            wait_until(lambda: "so far" in "".join(words_of(caplog, logging.INFO)), 30)
            return super().step(works, rows=rows)

    with serve(Slow(), name="unread", access_log=True, log_level="info") as server:
        assert httpx.get(f"{server.url}/health").status_code == 200
    errors = capsys.readouterr().err
    assert '"route": "/health"' in errors
    assert "Traceback" not in errors


def test_a_standing_worker_goes_on(unread, monkeypatch):
    monkeypatch.setattr(sys, "stdout", unread)
    statuses = iter([0, standing_worker.REFUSED])
    monkeypatch.setattr(standing_worker, "_work_once", lambda _: next(statuses))
    monkeypatch.setattr("time.sleep", lambda _: None)
    assert standing_worker.work("127.0.0.1", 1) == standing_worker.REFUSED


LAST_WORDS = """
import threading, time
from types import SimpleNamespace
from benchlib.serving import last_words
from benchlib.serving.engine.faults import EngineEnded
last_words.LAST_WORDS_S = 0
ended = threading.Event()
ended.set()
last_words.leave_with(SimpleNamespace(ended=ended, failure=EngineEnded("gone")))
time.sleep(60)
"""
END_AT_ONCE = """
import sys
from benchlib.serving.process_end import end_at_once
if sys.stdout is not None:
    sys.stdout.write("a word in the buffer")
end_at_once()
"""
NORMAL_END = """
from benchlib.printing import print_line
print_line("a word")
"""


@pytest.mark.parametrize(
    ("code", "status"),
    [(LAST_WORDS, ENGINE_ENDED), (END_AT_ONCE, ENDED_BY_SIGINT), (NORMAL_END, 0)],
    ids=["last words", "end at once", "normal end"],
)
@pytest.mark.parametrize("streams", [">&-", "2>&-", ">&- 2>&-", None])
def test_a_process_ends_with_its_own_status(unread, code, status, streams):
    """With streams that nobody reads, and without one or both."""
    command = [sys.executable, "-c", code]
    if streams is not None:
        command = ["sh", "-c", f'exec "$@" {streams}', "sh", *command]
    buffered = os.environ | {"PYTHONUNBUFFERED": ""}
    ran = subprocess.run(command, stdout=unread, stderr=unread, env=buffered, timeout=60)
    assert ran.returncode == status
