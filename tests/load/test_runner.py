"""The real Locust child against a server that records each request."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
from itertools import pairwise

import psutil
import pytest

from benchlib.load.arrivals import ClosedLoop, OpenLoop, Ramp, Trace
from benchlib.load.plan import LoadPlan
from benchlib.load.run_progress import ProgressReader
from benchlib.load.runner import (
    GeneratorError,
    LoadInterrupted,
    Progress,
    generate_load,
)
from benchlib.load.workload import Workload

from .conftest import is_gone, read_rows, wait_until


@pytest.fixture
def load(tmp_path):
    """`load(url, users=1, **plan)` runs a plan, returns its outcome and rows, and leaves no process or file open."""

    def run(
        url,
        users=1,
        think_time_s=0.0,
        arrivals=None,
        prompts="a cat",
        workload=None,
        on_start=None,
        on_progress=None,
        **plan,
    ):
        rows_path = tmp_path / "requests.jsonl"
        rows_path.unlink(missing_ok=True)
        us = psutil.Process()
        before = us.num_fds(), us.children()
        try:
            plan = LoadPlan(
                url,
                arrivals or ClosedLoop(users, think_time_s),
                workload or Workload(prompts),
                **plan,
            )
            outcome = generate_load(plan, rows_path, on_start=on_start, on_progress=on_progress)
        finally:
            assert (us.num_fds(), us.children()) == before
        return outcome, read_rows(rows_path)

    return run


def test_every_request_has_one_row_and_it_is_true(serve, load):
    server = serve(service_s=0.02)
    started, progress = [], []
    outcome, rows = load(
        server.url,
        users=3,
        duration_s=1.0,
        warmup_s=0.5,
        on_start=lambda *arguments: started.append(arguments),
        on_progress=progress.append,
    )
    seen = {request["request_id"]: request for request in server.seen()}
    assert len(rows) == len(seen) == outcome.scheduled == outcome.finished
    assert sorted(row["index"] for row in rows) == list(range(len(rows)))
    workload = Workload("a cat")
    for row in rows:
        request = seen[row["request_id"]]
        assert request["body"] == workload.request(row["index"])
        assert (row["prompt"], row["seed"], row["width"]) == (
            "a cat",
            request["body"]["seed"],
            None,
        )
        received_s, answered_s = (
            request[name] - outcome.started_monotonic_s for name in ("received_s", "answered_s")
        )
        assert 0 <= row["scheduled_s"] <= row["sent_s"] < received_s < answered_s < row["done_s"]
        assert row["latency_s"] == row["done_s"] - row["scheduled_s"] >= 0.02
        assert row["phase"] == ("warmup" if row["scheduled_s"] < 0.5 else "measure")
        assert (row["http_status"], row["error"], row["service_s"], row["server_peak_gib"]) == (
            200,
            None,
            0.02,
            0.25,
        )
        assert row["batch_size"] == 1.5
        assert 0.02 <= row["total_s"] < row["latency_s"]
        assert row["denoise_s"] is None
    first = sorted(rows, key=lambda row: row["index"])[:3]
    connections = {seen[row["request_id"]]["connection"] for row in first}
    assert len(connections) == 3, "all users start before one of them sends again"
    assert max(row["scheduled_s"] for row in rows) < 1.5
    assert (outcome.status, outcome.censored) == ("finished", 0)
    assert (outcome.window_start_s, outcome.window_end_s) == (0.5, 1.5)
    assert 1.4 < max(row["done_s"] for row in rows) <= outcome.wall_s
    assert outcome.generator_cpu_cores is None or 0 < outcome.generator_cpu_cores < 2
    assert started == [(outcome.started_monotonic_s, started[0][1])]
    assert started[0][1] != os.getpid()
    ok_s = sorted(row["latency_s"] for row in rows if row["phase"] == "measure")
    last = progress[-1]
    assert (last.done, last.errors, last.time_left_s) == (len(rows), 0, 0.0)
    assert ok_s[0] < last.median_latency_s < ok_s[-1]
    assert last.p95_latency_s == ok_s[-(-95 * len(ok_s) // 100) - 1]
    images = sum(row["done_s"] >= 0.5 for row in rows)
    assert last.images_per_s == pytest.approx(images / (last.elapsed_s - 0.5))
    assert len(progress) <= 2 + last.elapsed_s / 0.5
    assert len({request["connection"] for request in seen.values()}) == 3, "connections are kept"


@pytest.mark.parametrize(
    ("images", "failures", "p95_s"),
    [(19, 0, None), (20, 0, 19), (39, 1, 38), (19, 1, 19), (18, 2, None)],
)
def test_progress_gives_a_p95_where_so_many_requests_carry_one(images, failures, p95_s):
    row = {"phase": "measure", "done_s": 1.0, "error": None}
    rows = [row | {"latency_s": float(took)} for took in range(images, 0, -1)]
    rows += [row | {"latency_s": 0.1, "error": "HTTP 503"}] * failures
    plan = LoadPlan("http://localhost", ClosedLoop(2), Workload("a cat"), duration_s=60)
    progress = ProgressReader(
        plan, io.BytesIO(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    ).progress(2.0)
    assert (progress.done, progress.errors, progress.images_per_s) == (
        images + failures,
        failures,
        images / 2,
    )
    assert progress.p95_latency_s == p95_s


def test_a_user_thinks_between_an_answer_and_its_next_request(serve, load):
    outcome, rows = load(serve().url, users=2, think_time_s=0.5, requests=8)
    due_s = sorted(row["scheduled_s"] for row in rows)
    done_s = sorted(row["done_s"] for row in rows)
    assert len(rows) == 8
    ready_s = [0, 0, *(done + 0.5 for done in done_s[:6])]
    assert all(ready <= due for ready, due in zip(ready_s, due_s, strict=True)), (
        "a request is due at its user's turn"
    )
    assert due_s == pytest.approx(ready_s, abs=0.4), "not as late as another time of thought"
    late_s = max(due - ready for ready, due in zip(ready_s, due_s, strict=True))
    assert outcome.send_lag_p99_s >= late_s, "a late turn counts as lag"
    assert all(row["sent_s"] >= row["scheduled_s"] for row in rows)


def test_a_number_of_requests_is_kept_exactly_after_the_warmup(serve, load):
    server = serve(service_s=0.02)
    outcome, rows = load(server.url, users=4, requests=10, warmup_s=0.2, think_time_s=0.01)
    measured = [row for row in rows if row["phase"] == "measure"]
    assert len(measured) == 10
    assert len(rows) == len(server.seen()) > 10
    assert outcome.window_end_s == max(row["done_s"] for row in measured)


def test_users_who_think_do_not_hold_up_the_end(serve, load):
    outcome, rows = load(serve().url, users=3, requests=3, think_time_s=60)
    assert len(rows) == 3
    assert outcome.wall_s < 60
    outcome, _ = load(serve().url, users=2, duration_s=0.3, think_time_s=60)
    assert outcome.wall_s < 60
    assert outcome.window_end_s == 0.3


def test_whichever_of_duration_and_requests_comes_first_ends_the_run(serve, load):
    url = serve(service_s=0.05).url
    outcome, rows = load(url, requests=3, duration_s=30)
    assert len(rows) == 3
    assert outcome.window_end_s == rows[-1]["done_s"]
    outcome, _ = load(url, requests=10_000, duration_s=0.2)
    assert outcome.window_end_s == 0.2
    assert outcome.scheduled < 10


def test_what_is_in_flight_at_the_end_is_waited_for(serve, load):
    outcome, rows = load(serve(service_s=0.6).url, users=2, duration_s=0.2)
    assert [row["error"] for row in rows] == [None, None]
    assert outcome.window_end_s == 0.2
    assert outcome.wall_s > 0.6


def test_max_s_cuts_the_run_and_censors_what_is_in_flight(serve, load):
    server = serve()
    outcome, rows = load(server.url, users=3, prompts="hang", duration_s=60, max_s=0.4)
    assert len(rows) == len(server.seen()) == outcome.scheduled == outcome.censored == 3
    for row in rows:
        assert row["error"] == "censored: the run reached its max_s of 0.4 s"
        assert row["done_s"] is row["latency_s"] is row["http_status"] is None
        assert row["sent_s"] >= 0
    assert (outcome.status, outcome.finished) == ("finished", 0)
    assert 0.4 <= outcome.window_end_s == outcome.wall_s < 60


def test_a_run_cut_in_its_warmup_has_no_window(serve, load):
    outcome, rows = load(serve(service_s=0.01).url, requests=5, warmup_s=30, max_s=0.3)
    assert {row["phase"] for row in rows} == {"warmup"}
    assert outcome.window_end_s == outcome.window_start_s == 30


def test_open_arrivals_are_sent_on_time_whatever_the_server_does(serve, load):
    server, arrivals = serve(), OpenLoop(50)
    outcome, rows = load(
        server.url,
        arrivals=arrivals,
        prompts=["hang"],
        duration_s=1,
        warmup_s=0.5,
        timeout_s=3,
        seed=3,
    )
    rows.sort(key=lambda row: row["index"])
    assert [row["scheduled_s"] for row in rows] == pytest.approx(
        arrivals.schedule(1.5, 3), abs=1e-6
    )
    assert [row["index"] for row in rows] == list(range(len(rows)))
    assert len(server.seen()) == outcome.scheduled == outcome.finished == len(rows) > 40
    for row in rows:
        assert row["sent_s"] >= row["scheduled_s"]
        assert row["latency_s"] == row["done_s"] - row["scheduled_s"] >= 3
        assert row["phase"] == ("warmup" if row["scheduled_s"] < 0.5 else "measure")
        assert row["error"] == "timeout: no answer within 3 s"
    measured = [row for row in rows if row["phase"] == "measure"]
    assert (outcome.window_start_s, outcome.window_end_s, outcome.max_in_flight_hits) == (
        0.5,
        1.5,
        0,
    )
    assert outcome.in_flight_max == len(rows), "none had ended when the last became due"
    assert len(rows) - len(measured) <= outcome.in_flight_mean <= len(rows)
    lags_s = sorted(row["sent_s"] - row["scheduled_s"] for row in measured)
    assert lags_s[0] < outcome.send_lag_p99_s <= lags_s[-1]


def test_open_arrivals_end_with_their_number_too(serve, load):
    outcome, rows = load(
        serve(service_s=0.3).url, arrivals=OpenLoop(100, "constant"), requests=20, warmup_s=0.1
    )
    assert sum(row["phase"] == "measure" for row in rows) == 20
    assert 29 <= len(rows) <= 31
    assert outcome.window_end_s == max(row["done_s"] for row in rows)


def test_what_max_in_flight_holds_back_is_sent_late_and_counted(serve, load):
    server, arrivals = serve(service_s=0.4), OpenLoop(100, "constant", max_in_flight=2)
    outcome, rows = load(server.url, arrivals=arrivals, requests=8)
    assert [row["error"] for row in rows] == [None] * 8
    assert outcome.max_in_flight_hits == 6
    assert len({request["connection"] for request in server.seen()}) == 2
    assert outcome.in_flight_max == 8
    assert outcome.send_lag_p99_s == max(row["sent_s"] - row["scheduled_s"] for row in rows) > 1
    outcome, rows = load(server.url, arrivals=arrivals, prompts="hang", requests=8, max_s=0.5)
    assert outcome.censored == 8
    assert sum(row["sent_s"] is None for row in rows) == 6
    assert outcome.send_lag_p99_s > 0.4, "those never sent count with the time that they waited"


def test_an_error_in_a_spawned_request_ends_the_run(serve):
    plan = LoadPlan(serve().url, OpenLoop(50), Workload("a cat"), duration_s=60)
    with pytest.raises(GeneratorError, match="ended without a row"):
        generate_load(
            plan, "/dev/full" if os.path.exists("/dev/full") else pytest.skip("no /dev/full here")
        )


def test_a_trace_says_when_and_what_and_when_the_run_ends(serve, load):
    server = serve(service_s=0.2)
    requests = [{"prompt": "a dog", "width": 64}, {}, {"prompt": None, "num_inference_steps": 3}]
    outcome, rows = load(server.url, arrivals=Trace([0, 0.1, 0.3], requests), warmup_s=0.05)
    assert [row["scheduled_s"] for row in rows] == pytest.approx([0, 0.1, 0.3], abs=1e-6)
    assert [row["prompt"] for row in rows] == ["a dog", "a cat", "a cat"]
    sizes = [(row["width"], row["height"], row["num_inference_steps"]) for row in rows]
    assert sizes == [(64, None, None), (None, None, None), (None, None, 3)]
    assert (outcome.scheduled, outcome.window_end_s) == (3, rows[-1]["done_s"])
    outcome, _ = load(server.url, arrivals=Trace([0, 0.1]), requests=10)
    assert outcome.scheduled == 2, "there are no more"
    assert 0.3 < outcome.window_end_s < 60


def test_users_of_a_ramp_come_and_go(serve, load):
    server = serve(service_s=0.02)
    outcome, rows = load(server.url, arrivals=Ramp(1, 3, over_s=1.0, stairs=2), duration_s=1.0)
    assert 0 <= rows[0]["scheduled_s"] <= outcome.send_lag_p99_s, "ready at once"
    early = [row for row in rows if row["scheduled_s"] < 0.5]
    assert all(before["done_s"] <= after["scheduled_s"] for before, after in pairwise(early)), (
        "one user"
    )
    assert outcome.in_flight_max == 3
    outcome, rows = load(server.url, arrivals=Ramp(2, 0, over_s=0.4), duration_s=10)
    last_ready_s = max(row["scheduled_s"] for row in rows) - outcome.send_lag_p99_s
    assert 0 < last_ready_s < 0.4


def test_a_rate_may_ramp(serve, load):
    ramp = Ramp(10, 100, over_s=1.0, of="rate")
    _, rows = load(serve().url, arrivals=ramp, duration_s=1.0)
    assert sorted(row["scheduled_s"] for row in rows) == pytest.approx(
        ramp.schedule(1.0, 0), abs=1e-6
    )


def test_all_that_goes_wrong_is_a_row_with_its_reason(serve, load):
    server = serve()
    errors = {
        "busy": (503, 'HTTP 503: {"detail": "the queue is full"}'),
        "binary": (500, "HTTP 500: \ufffd\ufffd broken"),
        "redirect": (307, "HTTP 307: "),
        "text": (200, "no answer: it is not JSON"),
        "drop": (None, "HTTPConnectionClosed: connection closed."),
        "half": (200, "HTTPParseError: Incomplete response."),
        "drip": (200, "timeout: no answer within 2 s"),
        "hang": (None, "timeout: no answer within 2 s"),
    }
    outcome, rows = load(server.url, users=8, prompts=list(errors), requests=60, timeout_s=2)
    assert {row["prompt"] for row in rows} == set(errors)
    for row in rows:
        assert (row["http_status"], row["error"]) == errors[row["prompt"]]
        assert row["done_s"] - row["scheduled_s"] == row["latency_s"] > 0
        assert (row["queue_s"] is not None) == (row["prompt"] == "busy")
        assert row["service_s"] is None
    seen = [request["request_id"] for request in server.seen()]
    assert sorted(seen) == sorted(row["request_id"] for row in rows), "each was sent once"
    assert outcome.finished == 60


def test_an_answer_that_comes_too_late_ends_its_request_at_the_timeout(serve, load):
    _, rows = load(serve(service_s=0.5).url, prompts=["a cat", "hang"], requests=6, timeout_s=0.3)
    for row in rows:
        assert row["error"] == "timeout: no answer within 0.3 s"
        assert row["done_s"] - row["sent_s"] <= 0.3


def test_a_server_that_closes_idle_connections_costs_no_request(serve, load):
    server = serve(keep_alive_s=0.05)
    _, rows = load(server.url, think_time_s=0.2, requests=5)
    assert [row["error"] for row in rows] == [None] * 5
    assert len({request["connection"] for request in server.seen()}) == len(server.seen()) == 5


def test_a_server_that_is_not_there_is_a_row_too(load):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        _, rows = load(f"http://127.0.0.1:{nobody.getsockname()[1]}", requests=3)
    assert [row["http_status"] for row in rows] == [None] * 3
    assert all("ConnectionRefusedError" in row["error"] and row["latency_s"] > 0 for row in rows)


def test_nothing_in_the_surroundings_changes_the_plan(serve, load, tmp_path, monkeypatch):
    server = serve()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "locust.conf").write_text("users = 50\nhost = http://127.0.0.1:1\n")
    (tmp_path / "locust.py").write_text("raise SystemExit('not this one')")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "LOCUST_HOST", "BENCHLIB_WORKLOAD_WIDTH"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("LOCUST_SKIP_MONKEY_PATCH", "1")
    _, rows = load(server.url + "/", users=2, requests=4)
    assert [row["error"] for row in rows] == [None] * 4
    assert len(server.seen()) == 4


def test_a_child_that_is_killed_raises_and_leaves_its_rows(serve, load, tmp_path):
    server = serve(service_s=0.02)
    children = []

    def kill_after_some(progress: Progress):
        if progress.done:
            os.kill(children[0], signal.SIGKILL)

    with pytest.raises(GeneratorError, match="code -9"):
        load(
            server.url,
            duration_s=60,
            on_start=lambda _, pid: children.append(pid),
            on_progress=kill_after_some,
        )
    rows = read_rows(tmp_path / "requests.jsonl")
    assert 0 <= len(server.seen()) - len(rows) <= 1


@pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="a disk that is always full is a Linux thing"
)
def test_an_error_inside_the_child_ends_the_run_with_its_traceback(serve):
    plan = LoadPlan(serve().url, ClosedLoop(2), Workload("a cat"), duration_s=60)
    with pytest.raises(GeneratorError, match=r"(?s)No space left on device.*ended without a row"):
        generate_load(plan, "/dev/full")


def test_an_error_in_a_callback_ends_the_child(serve, load, tmp_path):
    def fail(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        load(serve().url, prompts="hang", duration_s=60, on_progress=fail)
    assert [row["error"] for row in read_rows(tmp_path / "requests.jsonl")] == [
        "censored: the process that started the run has died"
    ]


PARENT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a shell starts with &
from benchlib.load.plan import LoadPlan
from benchlib.load.runner import *
from benchlib.load.arrivals import ClosedLoop
from benchlib.load.workload import Workload
url, rows_path = sys.argv[1:]
plan = LoadPlan(url, ClosedLoop(2), Workload(["a cat", "hang"]), duration_s=60)
try:
    generate_load(plan, rows_path, on_start=lambda _, pid: print(pid, flush=True))
except LoadInterrupted as interrupt:
    print(repr(interrupt.outcome), flush=True)
    raise
"""


@pytest.fixture
def parent(serve, tmp_path):
    """A process, in its own group, that has two requests in flight; its child's pid, rows and server."""
    server, rows_path = serve(), tmp_path / "requests.jsonl"
    command = [sys.executable, "-c", PARENT, server.url, str(rows_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        child_pid = int(process.stdout.readline())
        wait_until(lambda: sum(request["answered_s"] is None for request in server.seen()) == 2)
        yield process, child_pid, rows_path, server
        if process.poll() is None:
            process.kill()


def test_an_interrupt_of_the_whole_group_ends_the_run_and_keeps_the_rows(parent):
    process, child_pid, rows_path, server = parent
    os.killpg(process.pid, signal.SIGINT)
    said = process.stdout.readline().decode()
    assert process.wait(30) != 0, "the plan would take 60 s"
    assert is_gone(child_pid)
    assert "status='interrupted'" in said
    rows = read_rows(rows_path)
    assert len(rows) == len(server.seen())
    assert [row["error"] for row in rows if row["done_s"] is None] == ["censored: interrupted"] * 2


def test_the_child_ends_with_a_killed_parent_and_keeps_the_rows(parent):
    process, child_pid, rows_path, server = parent
    process.kill()
    wait_until(lambda: is_gone(child_pid))
    rows = read_rows(rows_path)
    assert len(rows) == len(server.seen())
    assert [row["error"] for row in rows if row["done_s"] is None] == [
        "censored: the process that started the run has died"
    ] * 2


def test_an_interrupt_before_the_start_leaves_nothing(load, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("benchlib.load.runner._messages", interrupt)
    with pytest.raises(LoadInterrupted) as caught:
        load("http://127.0.0.1:1", requests=1)
    assert caught.value.outcome is None


def test_importing_the_runner_imports_no_locust():
    code = "import sys, benchlib.load.runner; print(json.dumps(sorted(sys.modules)))".replace(
        "import sys", "import json, sys"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert not {"locust", "gevent", "geventhttpclient", "torch", "pandas", "numpy"} & set(
        json.loads(printed)
    )


def test_a_connection_is_alive_until_something_comes_whatever_its_number():
    code = """
import resource, socket
from benchlib.load.connections import is_alive
resource.setrlimit(resource.RLIMIT_NOFILE, (1200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
ours, theirs = socket.socketpair()
many = [ours.dup() for _ in range(1100)]
assert many[-1].fileno() > 1024
assert is_alive(many[-1])
theirs.close()
assert not is_alive(many[-1])
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_openais_api_is_asked_in_its_own_words_and_the_rows_are_as_ever(serve, load):
    server = serve(service_s=0.02)
    sizes = Workload(
        "a cat", width=[64, 128], height=96, num_inference_steps=4, negative_prompt="", seed=1
    )
    _, rows = load(server.url, users=2, requests=20, workload=sizes, api="openai")
    seen = {request["request_id"]: request for request in server.seen()}
    assert {request["path"] for request in seen.values()} == {"/v1/images/generations"}
    assert len(rows) == len(seen) == 20
    for row in rows:
        requested = sizes.request(row["index"])
        assert {name: row[name] for name in requested} == requested
        size = {
            "size": f"{requested.pop('width')}x{requested.pop('height')}",
            "n": 1,
            "response_format": "b64_json",
        }
        assert seen[row["request_id"]]["body"] == requested | size
        assert (row["http_status"], row["error"], row["batch_size"]) == (200, None, 1.5)
        assert 0.02 <= row["total_s"] < row["latency_s"]
        assert row["service_s"] is row["server_peak_gib"] is None
    sizes = {(row["width"], row["height"], row["num_inference_steps"]) for row in rows}
    assert sizes == {(64, 96, 4), (128, 96, 4)}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"api": "grpc"},
            "api must be one of 'benchmark', 'openai', 'vllm-omni', 'sglang', got 'grpc'",
        ),
        (
            {"api": "openai", "workload": Workload(width=64)},
            "give both width and height, or neither",
        ),
        (
            {"api": "openai", "arrivals": Trace([0, 1], [{}, {"height": 64}])},
            "give both width and height, or neither",
        ),
    ],
)
def test_an_api_that_cannot_be_asked_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        LoadPlan(
            **{"url": "http://a", "arrivals": ClosedLoop(1), "workload": Workload(), "requests": 1}
            | fields
        )
