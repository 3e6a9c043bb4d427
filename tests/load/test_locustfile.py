"""The plain `locust` command line and web page, on the same fake server."""

import csv
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

import benchlib.load
from benchlib.load.workload import Workload

from .conftest import wait_until

LOCUST = [
    sys.executable,
    "-m",
    "locust",
    "-f",
    str(Path(benchlib.load.__file__).with_name("locustfile.py")),
]
WORKLOAD = {"BENCHLIB_WORKLOAD_NUM_INFERENCE_STEPS": "2,4", "BENCHLIB_WORKLOAD_SEED": "5"}


def bodies(requests):
    return Counter(json.dumps(request, sort_keys=True) for request in requests)


def test_the_command_line_sends_what_run_load_sends_and_its_csv_counts_it(serve, tmp_path):
    server = serve(service_s=0.02)
    options = f"--headless --host {server.url}/ -u 10 -r 2 -t 9s --csv fastapi_bench --json".split()
    ran = subprocess.run(
        [*LOCUST, *options], cwd=tmp_path, env=os.environ | WORKLOAD, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    seen = server.seen()
    (counted,) = json.loads(ran.stdout)
    assert 0 <= len(seen) - counted["num_requests"] <= 10, "all but those in flight at the end"
    with open(tmp_path / "fastapi_bench_stats.csv", newline="") as file:
        written = {line["Name"]: line for line in csv.DictReader(file)}["Aggregated"]
    # Locust writes its CSV once a second, and not at the end.
    last_s = max(request["received_s"] for request in seen)
    sure = sum(request["received_s"] < last_s - 6 for request in seen)
    assert sure <= int(written["Request Count"]) <= len(seen)
    assert written["Failure Count"] == "0"
    assert len(seen) > 100
    expected = [
        Workload(num_inference_steps=[2, 4], seed=5).request(index) for index in range(len(seen))
    ]
    assert bodies(request["body"] for request in seen) == bodies(expected)


def test_host_left_out_means_our_own_port_and_a_failure_says_the_servers_words(serve, tmp_path):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 8000))
        except OSError:
            pytest.skip("port 8000, the default to test, is taken on this machine")
    server = serve(service_s=0.02, port=8000)
    (tmp_path / "own.txt").write_text("busy\n")
    env = {"BENCHLIB_WORKLOAD_PROMPTS": str(tmp_path / "own.txt")}
    with subprocess.Popen(
        [*LOCUST, "--headless", "-u", "2"],
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        wait_until(
            lambda: sum(request["answered_s"] is not None for request in server.seen()) > 3,
            within_s=30,
        )
        process.terminate()
        said = process.stdout.read().decode()
    assert process.returncode == 1
    assert {request["body"]["prompt"] for request in server.seen()} == {"busy"}
    assert 'HTTP 503: {"detail": "the queue is full"}' in said


def answers(url, data=None):
    try:
        with urllib.request.urlopen(url, data) as answer:
            return answer.status == 200
    except urllib.error.URLError:
        return False


@contextmanager
def web_page(*options, cwd):
    """Locust with its web page; its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*LOCUST, "--web-host", "127.0.0.1", "--web-port", str(port), *options]
    with subprocess.Popen(
        command, cwd=cwd, env=os.environ | WORKLOAD, stderr=subprocess.DEVNULL
    ) as process:
        try:
            wait_until(lambda: answers(f"http://127.0.0.1:{port}/"), within_s=30)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def test_the_web_page_starts_the_same_requests_from_zero_each_time(serve, tmp_path):
    server = serve(service_s=0.02)
    first = json.dumps(Workload(num_inference_steps=[2, 4], seed=5).request(0), sort_keys=True)
    with web_page("--host", server.url, cwd=tmp_path) as page:
        for times in (1, 2):
            assert answers(f"{page}/swarm", data=b"user_count=2&spawn_rate=2")
            wait_until(
                lambda times=times: (
                    bodies(request["body"] for request in server.seen())[first] == times
                )
            )
            assert answers(f"{page}/stop", data=b"")
