"""Replicas in real processes of Ray Serve: the same images, losses that lose nothing, a clean end."""

import os
import signal
import threading
import time
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

pytest.importorskip("ray")

from benchlib.serving.model.model_errors import ModelError
from benchlib.serving.server import serve

SIDE = 64
STEPS = 6


def ask(server, seed, *, steps=STEPS):
    """The answer to a request for one image, by OpenAI's API."""
    body = {
        "prompt": "a lighthouse at dusk",
        "seed": seed,
        "num_inference_steps": steps,
        "size": f"{SIDE}x{SIDE}",
    }
    return httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=240)


def image_of(answer):
    assert answer.status_code == 200, answer.text
    return b64decode(answer.json()["data"][0]["b64_json"])


def ask_all(server, seeds):
    """The answers for `seeds`, all asked for at once."""
    with ThreadPoolExecutor(len(seeds)) as pool:
        return list(pool.map(lambda seed: ask(server, seed), seeds))


def replica_of(answer):
    return answer.headers["Server-Timing"].partition('replica;desc="')[2][:1]


def replica_processes():
    """The processes of replicas that this process has begun."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "ServeReplica" in " ".join(child.cmdline())]


@pytest.fixture(scope="module")
def threads_before():
    return {thread.name for thread in threading.enumerate()}


@pytest.fixture(scope="module")
def server(threads_before):
    with serve("tiny", replicas=2, device="cpu", name="replicas") as server:
        yield server


@pytest.fixture(scope="module")
def expected(tiny):
    """The images of the seeds, from an engine in this process."""
    with serve(tiny, name="alone") as alone:
        return {seed: image_of(ask(alone, seed)) for seed in range(8)}


def test_two_replicas_make_the_images_of_one_engine(server, expected):
    answers = ask_all(server, range(8))
    assert [image_of(answer) for answer in answers] == list(expected.values())
    assert {replica_of(answer) for answer in answers} == {"0", "1"}
    assert [answer.headers["X-Seed"] for answer in answers] == [str(seed) for seed in range(8)]
