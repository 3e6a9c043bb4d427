"""Replicas in real processes of Ray Serve: the same images, losses that lose nothing, a clean end.

The servers take one image at a time: beside others, an image differs by rounding.
"""

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

ray = pytest.importorskip("ray")

from benchlib.serving.model.model_errors import ModelError  # noqa: E402
from benchlib.serving.server import serve  # noqa: E402

STEPS = 6
MANY_STEPS = 30
FOLDERS = Path(tempfile.gettempdir())


def ask(url, seed, *, steps=STEPS):
    """The answer to a request for one image, by OpenAI's API."""
    body = {
        "prompt": "a lighthouse at dusk",
        "seed": seed,
        "num_inference_steps": steps,
        "size": "64x64",
    }
    return httpx.post(f"{url}/v1/images/generations", json=body, timeout=240)


def ask_all(url, seeds, *, steps=STEPS):
    """The answers for `seeds`, all asked for at once."""
    with ThreadPoolExecutor(len(seeds)) as pool:
        return list(pool.map(lambda seed: ask(url, seed, steps=steps), seeds))


def images_of(answers):
    assert {answer.status_code for answer in answers} == {200}, [one.text[:200] for one in answers]
    return [b64decode(answer.json()["data"][0]["b64_json"]) for answer in answers]


def described(answer, name):
    """What an answer's Server-Timing says of `name`, or None."""
    found = re.search(rf'{name};desc="([^"]*)"', answer.headers["Server-Timing"])
    return None if found is None else found[1]


def process_of(name):
    """The process of the replica `name`, among those that this process has begun."""
    for child in psutil.Process().children(recursive=True):
        if re.search(rf"ServeReplica:benchlib-\w+-{name}:", " ".join(child.cmdline())):
            return child
    raise AssertionError(f"replica {name} has no process")


def wait_for(condition):
    """Return once `condition()` holds; the test's own timeout is the limit."""
    while not condition():
        time.sleep(0.02)


def readiness(url):
    return httpx.get(f"{url}/ready", timeout=60)


@pytest.fixture(scope="module")
def before():
    """The threads, the folders and the variables before there was a Ray."""
    return set(threading.enumerate()), set(FOLDERS.glob("benchlib-ray-*")), dict(os.environ)


@pytest.fixture(scope="module")
def server(before):  # noqa: ARG001 - it must have looked before
    with serve("tiny", replicas=2, device="cpu", batching="serial", name="replicas") as server:
        yield server


def test_two_replicas_make_the_images_of_one_engine(server, tiny):
    seeds = range(8)
    answers = ask_all(server.url, seeds)
    with serve(tiny, batching="serial", name="alone") as alone:
        expected = images_of(ask_all(alone.url, seeds))
    assert images_of(answers) == expected
    assert {described(answer, "replica") for answer in answers} == {"0", "1"}
    assert [answer.headers["X-Seed"] for answer in answers] == [str(seed) for seed in seeds]
    cost = httpx.post(
        f"{server.url}/benchmark/generate",
        json={"prompt": "a", "width": 64, "height": 64, "num_inference_steps": 2},
        timeout=240,
    )
    assert cost.json()["time_s"] > 0
    assert cost.json()["mem_gb"] > 0


def test_the_server_tells_of_both_replicas(server):
    ready = readiness(server.url).json()
    assert (ready["status"], ready["ready_replicas"], ready["replicas"]) == ("ready", 2, 2)
    by_replica = server.spec["step_times_by_replica"]
    assert list(by_replica) == ["0", "1"]
    assert server.spec["step_times"] in by_replica.values()
    assert server.spec["replicas"] == 2
    metrics = httpx.get(f"{server.url}/metrics").text
    for name in "01":
        assert f'benchlib_replica_ready{{replica="{name}"}} 1.0' in metrics


def test_a_bad_field_is_refused_as_ever(server):
    refused = httpx.post(
        f"{server.url}/benchmark/generate",
        json={"prompt": "a", "scheduler": "dpmpp-sde", "num_inference_steps": 1, "width": 100},
        timeout=240,
    )
    assert refused.status_code == 422
    assert "width" in refused.text


def test_a_killed_replica_loses_nothing_and_comes_back(server):
    seeds = range(8)
    expected = images_of(ask_all(server.url, seeds, steps=MANY_STEPS))
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(ask_all, server.url, seeds, steps=MANY_STEPS)
        inside = 'benchlib_replica_inside{replica="1"} 0.0'
        wait_for(lambda: inside not in httpx.get(f"{server.url}/metrics").text)
        process_of("1").kill()
        answers = asked.result()
    assert images_of(answers) == expected
    assert "1" in {described(answer, "retry") for answer in answers}
    assert readiness(server.url).status_code == 200
    wait_for(lambda: readiness(server.url).json()["ready_replicas"] == 2)
    metrics = httpx.get(f"{server.url}/metrics").text
    assert 'benchlib_replica_restarts_total{replica="1"} 1.0' in metrics


def test_a_start_that_fails_raises_its_own_reason_and_harms_no_other(server):
    with pytest.raises(ModelError, match="nowhere"):
        serve("./nowhere.safetensors", replicas=1, device="cpu", name="bad")
    assert readiness(server.url).json()["ready_replicas"] == 2


def test_ray_is_not_shut_down_under_a_server(server):
    with pytest.raises(RuntimeError, match="servers with replicas use this Ray; call stop"):
        ray.shutdown()
    images_of([ask(server.url, 1)])


def test_nothing_stays_after_a_stop(server, before):
    processes = psutil.Process().children(recursive=True)
    assert len(processes) > 5
    server.stop()
    threads, folders, variables = before
    assert not [process for process in processes if process.is_running()]
    assert not ray.is_initialized()
    assert set(FOLDERS.glob("benchlib-ray-*")) == folders
    left = {thread.name for thread in set(threading.enumerate()) - threads}
    assert not {name for name in left if "ray" in name.lower() or "replica" in name}
    assert {name for name in os.environ if name not in variables} <= {"RAY_CLIENT_MODE"}


# ---- what takes minutes

SCRIPT = """
import os, signal, sys
import psutil
from benchlib.serving.server import serve

server = serve("tiny", replicas=1, device="cpu")
print(*[child.pid for child in psutil.Process().children(recursive=True)], flush=True)
sys.stdin.readline()
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("ending", "status"),
    [("exit", 0), ("SIGTERM", 143), ("SIGINT", -signal.SIGINT), ("SIGKILL", -signal.SIGKILL)],
)
def test_nothing_stays_after_a_script(ending, status):
    script = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    pids = [int(pid) for pid in script.stdout.readline().split()]
    assert len(pids) > 5
    if ending == "exit":
        said, noise = script.communicate("\n")
    else:
        script.send_signal(signal.Signals[ending])
        said, noise = script.communicate()
    assert script.returncode == status, noise
    assert said == ""
    if ending in ("exit", "SIGTERM"):
        assert noise == ""
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    if ending != "SIGKILL":
        assert not list(FOLDERS.glob(f"benchlib-ray-{script.pid}-*"))


OWN_RAY = """
import ray
from benchlib.serving.server import serve

ray.init(num_cpus=1, include_dashboard=False)
with serve("tiny", replicas=1, device="cpu"):
    pass
print("Ray goes on:", ray.is_initialized(), flush=True)
ray.shutdown()
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_in_the_users_own_ray_nothing_is_printed_that_looks_like_a_failure():
    script = subprocess.run(
        [sys.executable, "-c", OWN_RAY], capture_output=True, text=True, check=True
    )
    said = script.stdout + script.stderr
    assert "Ray goes on: True" in said
    assert not re.search("Traceback|ERROR|failed", said), said


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kills_at_random_moments_lose_nothing():
    moments = random.Random(0)
    seeds = range(16)
    with serve("tiny", replicas=2, device="cpu", batching="serial", name="often") as server:
        expected = images_of(ask_all(server.url, seeds, steps=MANY_STEPS))
        for _ in range(30):
            with ThreadPoolExecutor() as pool:
                asked = pool.submit(ask_all, server.url, seeds, steps=MANY_STEPS)
                time.sleep(moments.uniform(0, 3))
                process_of(moments.choice("01")).kill()
                assert images_of(asked.result()) == expected
            wait_for(lambda: readiness(server.url).json()["ready_replicas"] == 2)
