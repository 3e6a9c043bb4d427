"""Locust's real master and workers against the fake server, and how a plan is shared out."""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import psutil
import pytest

from benchlib import ExternalWorkers, load_run, run_load
from benchlib.load.arrivals import ClosedLoop, OpenLoop, Ramp, Trace
from benchlib.load.plan import LoadPlan
from benchlib.load.runner import GeneratorError, LoadInterrupted, generate_load
from benchlib.load.sealed import own_versions
from benchlib.load.workers import TOKEN_VARIABLE, Share
from benchlib.load.workload import Workload

from .conftest import is_gone, read_rows, wait_until

URL = "http://127.0.0.1:1"


def plan_of(arrivals, url=URL, **fields):
    return LoadPlan(url, arrivals, Workload("a cat"), **fields)


# ---- how a plan is shared out

OPEN = [
    OpenLoop(50, max_in_flight=10),
    OpenLoop(50, "constant"),
    OpenLoop(50, "gamma", burstiness=4),
    Ramp(10, 90, over_s=2, of="rate", stairs=3),
    Trace([0, 0.1, 0.1, 0.5, 2.0, 2.5, 3.0]),
]


@pytest.mark.parametrize("of", [1, 2, 3, 7])
@pytest.mark.parametrize("arrivals", OPEN, ids=lambda arrivals: arrivals.kind)
def test_the_shares_of_a_schedule_are_the_schedule(arrivals, of):
    plan = plan_of(arrivals, duration_s=4, seed=5)
    found = {}
    for number in range(of):
        share = Share(number, of)
        for count, moment_s in enumerate(share.moments(plan)):
            if moment_s >= 4:
                break
            found[share.index_of(count)] = moment_s
    assert found == dict(enumerate(arrivals.schedule(4, 5)))
    held = [Share(number, of).most_in_flight(plan) for number in range(of)]
    assert (sum(held), min(held) > 0) == (arrivals.max_in_flight, True)


@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_the_shares_of_a_number_of_requests_are_the_same_requests(of):
    plan = plan_of(OpenLoop(50), requests=20, warmup_s=0.33, seed=2)
    first = len(plan.arrivals.schedule(0.33, 2))
    measured = range(first, first + 20)
    for number in range(of):
        own = [index for index in measured if index % of == number]
        assert Share(number, of).requests(plan) == len(own)


@pytest.mark.parametrize("arrivals", [ClosedLoop(8), Ramp(8, 2, over_s=1), Ramp(1, 9, over_s=3)])
@pytest.mark.parametrize("of", [1, 2, 3])
def test_the_shares_of_users_are_all_users(arrivals, of):
    plan = plan_of(arrivals, requests=10)
    shares = [Share(number, of) for number in range(of)]
    users = [user for share in shares for user in share.spans(plan)]
    assert sorted(users) == sorted(arrivals.spans())
    sizes = [len(share.spans(plan)) for share in shares]
    assert sizes == [share.part(len(users)) for share in shares]
    assert sum(share.requests(plan) for share in shares) == 10
    assert [share.requests(replace(plan, requests=None, duration_s=1)) for share in shares] == [
        None
    ] * of


@pytest.mark.parametrize(
    ("workers", "words"),
    [
        (0, "workers must be a whole number from 1 to 256, got 0"),
        (True, "workers must be a whole number"),
        ("many", "workers must be a number, 'external' or ExternalWorkers"),
        (5, "workers: 5 are more than the users, 4: give fewer workers"),
        (ExternalWorkers(host="0.0.0.0"), "others can reach 0.0.0.0, so set BENCHLIB_LOAD_TOKEN"),
    ],
)
def test_workers_that_make_no_sense_are_refused(workers, words, monkeypatch, tmp_path):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with pytest.raises(ValueError, match=words):
        run_load(URL, ClosedLoop(4), requests=1, workers=workers, results=tmp_path)
    assert not list(tmp_path.iterdir())


def test_more_reasons_to_refuse_workers(monkeypatch):
    with pytest.raises(ValueError, match="are more than max_in_flight, 2"):
        plan_of(OpenLoop(1, max_in_flight=2), requests=1, workers=3)
    for fields in ({"number": 0}, {"port": 0}, {"wait_s": 0}, {"host": ""}):
        with pytest.raises(ValueError, match=next(iter(fields))):
            ExternalWorkers(**fields)
    monkeypatch.setenv(TOKEN_VARIABLE, "secret")
    outside = ExternalWorkers(host="10.1.2.3")
    assert plan_of(ClosedLoop(1), requests=1, workers=outside).workers == outside
    with pytest.raises(ValueError, match="would cross the network unencrypted"):
        plan_of(ClosedLoop(1), url="http://me:secret@host", requests=1, workers=outside)


def test_a_plan_keeps_its_workers_and_says_nothing_of_one():
    one = plan_of(ClosedLoop(4), requests=1)
    assert "workers" not in one.to_dict()
    assert LoadPlan.from_dict(one.to_dict()) == one
    two = plan_of(ClosedLoop(4), requests=1, workers=2)
    assert LoadPlan.from_dict(json.loads(json.dumps(two.to_dict()))) == two
    outside = plan_of(ClosedLoop(4), requests=1, workers="external")
    assert outside.workers == ExternalWorkers()
    assert outside.to_dict()["workers"]["port"] == 5557
    assert LoadPlan.from_dict(outside.to_dict()).workers == 1


# ---- real workers


@pytest.fixture
def load(tmp_path):
    """`load(url, arrivals, workers=2, **plan)` runs a plan; it leaves no process or file open."""

    def run(url, arrivals, prompts="a cat", workers=2, on_start=None, on_progress=None, **fields):
        rows_path = tmp_path / "requests.jsonl"
        us = psutil.Process()
        before = us.num_fds(), us.children()
        plan = LoadPlan(url, arrivals, Workload(prompts), workers=workers, **fields)
        try:
            outcome = generate_load(plan, rows_path, on_start=on_start, on_progress=on_progress)
        finally:
            assert (us.num_fds(), us.children()) == before
        return outcome, read_rows(rows_path)

    return run


def master_of_run():
    """The process of the master, among the children of this one."""
    children = psutil.Process().children()
    [master] = [child for child in children if "benchlib.load.master_process" in child.cmdline()]
    return master


def assert_true(rows, outcome, server):
    """Each row is a request that the server got, in the master's time."""
    seen = {request["request_id"]: request for request in server.seen()}
    assert seen.keys() == {row["request_id"] for row in rows}
    for row in rows:
        request = seen[row["request_id"]]
        received_s = request["received_s"] - outcome.started_monotonic_s
        answered_s = request["answered_s"] - outcome.started_monotonic_s
        moments = [row["scheduled_s"], row["sent_s"], received_s, answered_s, row["done_s"]]
        error_s = outcome.workers["clock_error_s"]
        for before_s, after_s in pairwise(moments):
            assert before_s <= after_s + error_s


def test_two_workers_send_what_one_would_and_every_row_comes_home(serve, load):
    server, arrivals, progress = serve(service_s=0.02), OpenLoop(60, max_in_flight=40), []
    outcome, rows = load(
        server.url, arrivals, duration_s=1.5, warmup_s=0.5, seed=3, on_progress=progress.append
    )
    rows.sort(key=lambda row: row["index"])
    assert [row["index"] for row in rows] == list(range(len(rows)))
    moments_s = [row["scheduled_s"] for row in rows]
    assert moments_s == pytest.approx(arrivals.schedule(2.0, 3), abs=1e-6)
    assert [row["worker"] for row in rows] == [str(row["index"] % 2) for row in rows]
    assert_true(rows, outcome, server)
    workload = Workload("a cat")
    assert [row["seed"] for row in rows] == [workload.request(row["index"])["seed"] for row in rows]
    assert (outcome.status, outcome.censored) == ("finished", 0)
    assert outcome.scheduled == outcome.finished == len(rows)
    assert (outcome.window_start_s, outcome.window_end_s) == (0.5, 2.0)
    measured = [row for row in rows if row["phase"] == "measure"]
    lags_s = sorted(row["sent_s"] - row["scheduled_s"] for row in measured)
    assert lags_s[0] <= outcome.send_lag_p99_s <= lags_s[-1] + 1e-9
    assert progress[-1].done == len(rows)
    workers = outcome.workers
    assert workers["lost"] == []
    assert [one["requests"] for one in workers["each"]] == [-(-len(rows) // 2), len(rows) // 2]
    assert {one["clock_offset_s"] for one in workers["each"]} == {0.0}, "they read one clock"
    assert workers["clock_error_s"] > 0


def test_users_are_split_a_number_of_requests_is_kept_and_an_interrupt_keeps_all(serve, load):
    server = serve(service_s=0.02)
    outcome, rows = load(server.url, ClosedLoop(3), requests=11, warmup_s=0.2)
    assert sum(row["phase"] == "measure" for row in rows) == 11
    assert_true(rows, outcome, server)
    first = [row["worker"] for row in sorted(rows, key=lambda row: row["scheduled_s"])[:3]]
    assert sorted(first) == ["0", "0", "1"]
    assert len({row["index"] for row in rows}) == len(rows)
    assert outcome.window_end_s == max(row["done_s"] for row in rows)

    def interrupt(progress):
        if progress.done:
            raise KeyboardInterrupt

    with pytest.raises(LoadInterrupted) as caught:
        load(
            server.url,
            ClosedLoop(4),
            prompts=["a cat", "hang"],
            duration_s=60,
            on_progress=interrupt,
        )
    outcome = caught.value.outcome
    assert (outcome.status, outcome.censored) == ("interrupted", 4)


def test_a_killed_worker_ends_the_run_and_its_rows_are_kept(serve, tmp_path):
    server, killed = serve(service_s=0.02), []

    def kill_one(progress):
        if progress.done > 20 and not killed:
            killed.append(master_of_run().children()[0])
            killed[0].kill()

    options = {"duration_s": 120, "results": tmp_path, "on_progress": kill_one}
    run = run_load(server.url, ClosedLoop(4), Workload("a cat"), workers=2, **options)
    assert is_gone(killed[0].pid)
    outcome = run.record["outcome"]
    assert outcome["wall_s"] < 60, "the plan would take 120 s"
    [words] = outcome["workers"]["lost"]
    assert "after the start: its process ended with code -9" in words
    summary = run.summary()
    assert (summary["valid"], summary["invalid_reason"]) == (False, words)
    checks = run.checks().set_index("check")
    assert checks.loc["workers lost", "passed"] is False
    assert checks.loc["clocks", "value"] > 0
    assert {"0", "1"} == set(run.requests["worker"])
    seen = {request["request_id"] for request in server.seen()}
    assert set(run.requests["request_id"]) <= seen
    assert load_run(run.path).requests["worker"].equals(run.requests["worker"])
    assert run.spec["workers"] == 2
    assert "workers" not in run.record["point"]


# ---- workers elsewhere

AHEAD = """
import sys, time
real = time.monotonic
time.monotonic = lambda: real() + 1000.0
from benchlib.load.worker_process import main
main()
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def start():
    """`start(arguments of python, order)` starts a process that is gone at the end."""
    processes = []

    def run(arguments, **order):
        pipes = dict.fromkeys(("stdin", "stderr"), subprocess.PIPE)
        process = subprocess.Popen([sys.executable, *arguments], **pipes)
        processes.append(process)
        order = {"master": "127.0.0.1", "token": "", "headers": {}} | order
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
        return process

    yield run
    for process in processes:
        with process:
            process.kill()


def test_workers_elsewhere_join_by_the_command_line_and_their_clocks_are_aligned(
    serve, load, start, monkeypatch, capfd
):
    monkeypatch.setenv(TOKEN_VARIABLE, "a secret")
    port, server, arrivals = free_port(), serve(service_s=0.02), OpenLoop(40)
    command = ["-m", "benchlib", "load-worker", "--master", "127.0.0.1", "--port", str(port)]
    listed = start([*command, "--once"])
    ahead = start(["-c", AHEAD], port=port, token="a secret")
    outside = ExternalWorkers(2, port=port)
    outcome, rows = load(server.url, arrivals, workers=outside, duration_s=1, seed=4)
    assert (listed.wait(30), ahead.wait(30)) == (0, 0)
    assert f"Waiting for 2 of: {' '.join(['python', *command])}" in capfd.readouterr().out
    moments_s = sorted(row["scheduled_s"] for row in rows)
    assert moments_s == pytest.approx(arrivals.schedule(1, 4), abs=1e-6)
    assert_true(rows, outcome, server)
    offsets_s = sorted(one["clock_offset_s"] for one in outcome.workers["each"])
    errors_s = [one["clock_error_s"] for one in outcome.workers["each"]]
    assert offsets_s[0] == 0.0
    assert offsets_s[1] == pytest.approx(1000.0, abs=max(errors_s))
    assert max(errors_s) == outcome.workers["clock_error_s"] < 1


def test_a_worker_of_another_python_is_refused_in_words(load, start):
    port = free_port()
    other = own_versions() | {"Python": "3.99"}
    code = f"""
from benchlib.load import worker_process
worker_process.own_versions = lambda: {other}
worker_process.main()
"""
    worker = start(["-c", code], port=port)
    with pytest.raises(GeneratorError, match=r"the worker has Python 3\.99 \(the run has"):
        load(URL, ClosedLoop(2), requests=1, workers=ExternalWorkers(port=port))
    assert worker.wait(30) == 2
    assert b"The run refused this worker: the worker has Python 3.99" in worker.stderr.read()


def test_workers_that_do_not_come_end_the_wait(load):
    outside = ExternalWorkers(2, port=free_port(), wait_s=0.2)
    with pytest.raises(GeneratorError, match=r"0 of 2 workers came within 0\.2 s"):
        load(URL, ClosedLoop(2), requests=1, workers=outside)


def test_the_workers_end_with_a_killed_master(serve, load, tmp_path):
    server, family = serve(service_s=0.02), []

    def kill_master(progress):
        if progress.done and not family:
            master = master_of_run()
            family.extend(master.children())
            os.kill(master.pid, signal.SIGKILL)

    with pytest.raises(GeneratorError, match="code -9"):
        load(server.url, ClosedLoop(2), duration_s=60, on_progress=kill_master)
    assert len(family) == 2
    wait_until(lambda: all(is_gone(worker.pid) for worker in family))
    assert read_rows(tmp_path / "requests.jsonl")
