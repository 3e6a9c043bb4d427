"""A fake server for each test, and helpers that read rows and watch processes."""

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

FAKE_SERVER = Path(__file__).parents[2] / "benchmarks/fakes/fake_server.py"


class FakeServerProcess:
    """The fake server in a process of its own, ended by `close`."""

    def __init__(self, **options):
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        self.process = subprocess.Popen(
            [sys.executable, str(FAKE_SERVER), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}"

    def seen(self):
        """The requests that the server got, in order of arrival."""
        with urllib.request.urlopen(f"{self.url}/requests") as answer:
            return json.load(answer)

    def close(self):
        with self.process:
            self.process.stdin.close()


@pytest.fixture
def serve():
    """`serve(service_s=0.02, ...)` starts a fake server."""
    servers = []

    def start(**options):
        servers.append(FakeServerProcess(**options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def read_rows(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def wait_until(condition, within_s=30.0):
    """Poll `condition` until it is true; fail the test if that takes too long."""
    end_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end_s, "what the test waits for did not happen"
        time.sleep(0.01)


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
