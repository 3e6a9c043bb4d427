"""The server as its clients see it: real uvicorn and real HTTP, with the tiny or a fake model."""

import asyncio
import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
import torch
from uvicorn.lifespan.on import LifespanOn

from benchlib.__main__ import main
from benchlib.serving.engine.options import EngineOptions
from benchlib.serving.model.models import ModelError
from benchlib.serving.model.torch_thread import on_torch_thread
from benchlib.serving.server import serve
from benchlib.serving.standalone import Settings, engine_from
from benchmarks.fakes.fake_pipeline import FakePipeline

SMALL = {"prompt": "a lighthouse", "num_inference_steps": 3, "width": 64, "height": 64}
ANSWER = [
    "prompt", "time_s", "mem_gb", "num_inference_steps", "guidance_scale", "width", "height", "model_params",
]  # fmt: skip


@pytest.fixture(scope="module")
def server(tiny):
    with serve(tiny, name="module", max_batch_size=2) as server:  # a larger one gets ready later
        yield server


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@contextmanager
def fake_server(pipeline, **options):
    with (
        serve(pipeline, name="fake", **options) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        try:
            yield client
        finally:
            pipeline.gate.set()


def server_timing(response):
    """Server-Timing as {name: seconds}, and the mean batch size."""
    parts = dict(re.findall(r"(\w+);dur=([\d.]+)", response.headers["server-timing"]))
    batch = re.search(r'batch;desc="([^"]+)"', response.headers["server-timing"])
    return {name: float(ms) / 1000 for name, ms in parts.items()}, batch and float(batch[1])


# -- the contract ----------------------------------------------------------------------------------


def test_the_answer_has_exactly_the_agreed_fields(client, tiny):
    response = client.post(
        "/benchmark/generate", json=SMALL | {"guidance_scale": 5, "negative_prompt": "blurry"}
    )
    assert response.status_code == 200
    answer = response.json()
    assert list(answer) == ANSWER
    stock = tiny.diffusers
    networks = (stock.unet, stock.vae, stock.text_encoder, stock.text_encoder_2)
    parameters = [p for network in networks for p in network.parameters()]
    assert {key: answer[key] for key in ANSWER if key not in ("time_s", "mem_gb")} == {
        "prompt": "a lighthouse", "num_inference_steps": 3, "guidance_scale": 5.0, "width": 64, "height": 64,
        "model_params": sum(p.numel() for p in parameters),
    }  # fmt: skip
    assert 0 < answer["time_s"] < response.elapsed.total_seconds()
    assert answer["mem_gb"] > tiny.spec["weights_gib"]


def test_server_timing_adds_up_and_agrees_with_the_answer(client):
    for _ in range(5):
        response = client.post("/benchmark/generate", json=SMALL)
        parts, batch = server_timing(response)
        assert list(parts) == ["queue", "encode", "denoise", "decode", "image", "wait", "total"]
        total = parts.pop("total")
        assert sum(parts.values()) == pytest.approx(total, rel=0.01, abs=0.001)
        assert parts["encode"] + parts["denoise"] + parts["decode"] == pytest.approx(
            response.json()["time_s"], abs=1e-6
        )
        assert 0 <= parts["wait"] < total / 2
        assert parts["image"] == 0
        assert batch == 1.0
        assert total < response.elapsed.total_seconds()


@pytest.mark.parametrize("batching", ["serial", "continuous"])
def test_queueing_and_work_are_timed_apart(tiny, batching):
    with (
        serve(tiny, name="queued", batching=batching, max_batch_size=2) as server,
        ThreadPoolExecutor(4) as pool,
    ):
        url = f"{server.url}/benchmark/generate"
        responses = list(pool.map(lambda _: httpx.post(url, json=SMALL, timeout=60), range(4)))
    parts = [server_timing(response)[0] for response in responses]
    for part, response in zip(parts, responses, strict=True):
        assert min(part.values()) >= 0
        assert part["total"] == pytest.approx(
            sum(part.values()) - part["total"], rel=0.01, abs=0.001
        )
        work_s = part["encode"] + part["denoise"] + part["decode"]
        assert work_s == pytest.approx(response.json()["time_s"], abs=1e-6)
        assert part["total"] < response.elapsed.total_seconds()
    if batching == "serial":
        assert max(part["queue"] for part in parts) > 2 * min(
            response.json()["time_s"] for response in responses
        )


def test_a_seed_is_used_returned_and_repeatable(client):
    drawn = client.post("/benchmark/generate", json=SMALL).headers["x-seed"]
    assert drawn != client.post("/benchmark/generate", json=SMALL).headers["x-seed"]
    assert client.post("/benchmark/generate", json=SMALL | {"seed": 2**63 - 1}).headers[
        "x-seed"
    ] == str(2**63 - 1)


def test_the_image_that_is_served_is_the_stock_pipelines(client, tiny):
    """The engine's image equals the caller's to the bit, because both compute on the same thread."""
    images_of_server = []
    original = tiny.decode
    tiny.decode = lambda batch: images_of_server.extend(images := original(batch)) or images
    try:
        client.post("/benchmark/generate", json=SMALL | {"seed": 3}).raise_for_status()
    finally:
        del tiny.decode
    tiny.diffusers.set_progress_bar_config(disable=True)
    stock = on_torch_thread(
        tiny.diffusers,
        SMALL["prompt"],
        num_inference_steps=3,
        guidance_scale=7.5,
        width=64,
        height=64,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    np.testing.assert_array_equal(np.asarray(images_of_server[-1]), np.asarray(stock))


def test_request_ids_are_taken_or_made(client):
    assert (
        client.get("/health", headers={"X-Request-ID": "mine-1"}).headers["x-request-id"]
        == "mine-1"
    )
    drawn_id = client.get("/health").headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{32}", drawn_id)
    assert (
        client.get("/health", headers={"X-Request-ID": "x" * 500}).headers["x-request-id"]
        != "x" * 500
    )


def test_health_ready_and_docs(client, server):
    assert client.get("/health").json() == {"status": "alive"}
    ready = {"status": "ready", "detail": None, "spec": server.spec}
    several = {"replicas": None, "ready_replicas": None}  # there is one
    assert client.get("/ready").json() == ready | several
    assert "swagger" in client.get("/docs").text.lower()
    assert client.get("/openapi.json").json()["paths"].keys() == {
        "/benchmark/generate", "/v1/images/generations", "/v1/models", "/v1/models/{model}",
        "/images/{name}", "/health", "/ready", "/metrics",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ("{}", ["prompt"]),
        ('{"prompt": ""}', ["prompt"]),
        ('{"prompt": null}', ["prompt"]),
        (json.dumps({"prompt": "x" * 4001}), ["prompt"]),
        (r'{"prompt": "\ud800"}', ["prompt"]),
        (r'{"prompt": "a", "negative_prompt": "\udfff"}', ["negative_prompt"]),
        (
            '{"prompt": "a", "num_inference_steps": 0, "width": 65}',
            ["num_inference_steps", "width"],
        ),
        ('{"prompt": "a", "num_inference_steps": 151}', ["num_inference_steps"]),
        ('{"prompt": "a", "num_inference_steps": "8"}', ["num_inference_steps"]),
        ('{"prompt": "a", "num_inference_steps": 8.5}', ["num_inference_steps"]),
        ('{"prompt": "a", "guidance_scale": NaN}', ["guidance_scale"]),
        ('{"prompt": "a", "guidance_scale": Infinity}', ["guidance_scale"]),
        ('{"prompt": "a", "guidance_scale": 1e999}', ["guidance_scale"]),
        ('{"prompt": "a", "guidance_scale": -0.1}', ["guidance_scale"]),
        ('{"prompt": "a", "guidance_scale": 30.5}', ["guidance_scale"]),
        ('{"prompt": "a", "width": 56, "height": 2056}', ["width", "height"]),
        ('{"prompt": "a", "seed": -1}', ["seed"]),
        ('{"prompt": "a", "seed": 9223372036854775808}', ["seed"]),
        ('{"prompt": "a", "seed": true}', ["seed"]),
        ('{"prompt": "a", "colour": "red"}', ["colour"]),
        ('{"prompt": "a", "seed": ' + "1" * 5000 + "}", ["body"]),
        ("[" * 50_000, ["body"]),
        ("{", ["body"]),
        ("", ["body"]),
        ("[]", ["body"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_input_is_422_and_names_the_field(client, body, fields):
    response = client.post(
        "/benchmark/generate", content=body, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 422, response.text
    named = [
        next((part for part in problem["loc"][1:] if isinstance(part, str)), "body")
        for problem in response.json()["detail"]
    ]
    assert named == fields
    assert response.headers["x-request-id"] == response.json()["request_id"]
    parts, _ = server_timing(response)
    assert parts.keys() == {"queue", "total"}


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_413(server, chunked):
    large = b'{"prompt": "' + b"x" * 2**20 + b'"}'
    content = iter([large[: 2**19], large[2**19 :]]) if chunked else large
    response = httpx.post(
        f"{server.url}/benchmark/generate",
        content=content,
        headers={"Content-Type": "application/json"},
    )
    assert response.status_code == 413
    assert "1048576" in response.json()["detail"]


def test_pixel_steps_are_bounded():
    with fake_server(FakePipeline(), max_pixel_steps=64 * 64 * 3) as client:
        assert client.post("/benchmark/generate", json=SMALL).status_code == 200
        response = client.post("/benchmark/generate", json=SMALL | {"num_inference_steps": 4})
    assert response.status_code == 422
    assert [p["loc"][1] for p in response.json()["detail"]] == [
        "width",
        "height",
        "num_inference_steps",
    ]


# -- under pressure --------------------------------------------------------------------------------


def in_background(client, prompt, headers=None, **body):
    return ThreadPoolExecutor(1).submit(
        client.post, "/benchmark/generate", json=SMALL | {"prompt": prompt} | body, headers=headers
    )


def wait_until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def test_a_full_queue_is_503_with_retry_after():
    pipeline = FakePipeline()
    with fake_server(pipeline, max_queue=1) as client:
        pipeline.gate.clear()
        pipeline.stepping.clear()
        first = in_background(client, "first")
        assert pipeline.stepping.wait(10)
        # Two requests for the one place in the queue.
        rivals = [in_background(client, name) for name in ("second", "third")]
        [answered] = wait(rivals, 10, FIRST_COMPLETED).done
        refused = answered.result()
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert server_timing(refused)[0].keys() == {"queue", "total"}
        pipeline.gate.set()
        assert [job.result(10).status_code for job in (first, *rivals) if job is not answered] == [
            200,
            200,
        ]


def test_a_passed_deadline_is_504_at_once_and_the_work_is_dropped():
    pipeline = FakePipeline()
    with fake_server(pipeline, deadline_s=0.3, batching="serial") as client:
        pipeline.gate.clear()
        started = time.monotonic()
        running, waiting = (
            in_background(client, "running", num_inference_steps=50),
            in_background(client, "waiting"),
        )
        responses = [running.result(10), waiting.result(10)]
        assert 0.3 <= time.monotonic() - started < 5
        assert [r.status_code for r in responses] == [504, 504]
        assert all("0.3 s" in r.json()["detail"] for r in responses)
        pipeline.gate.set()
        wait_until(lambda: client.post("/benchmark/generate", json=SMALL).status_code == 200)
    steps = [prompt for call, prompt in pipeline.calls if call == "step"]
    assert steps.count("running") + steps.count("waiting") <= 1


def test_a_deadline_passes_while_a_batch_is_gathered():
    with serve(
        FakePipeline(), name="fake", batching="dynamic", max_wait_ms=60_000, deadline_s=0.1
    ) as server:
        response = httpx.post(f"{server.url}/benchmark/generate", json=SMALL, timeout=30)
        assert response.status_code == 504
        assert server._engine.waiting == 0


def test_a_client_that_has_gone_is_dropped_at_the_next_step():
    pipeline = FakePipeline()
    with fake_server(pipeline) as client:
        pipeline.gate.clear()
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{client.base_url}/benchmark/generate",
                json=SMALL | {"num_inference_steps": 50},
                timeout=0.3,
            )
        time.sleep(0.2)  # the connection's end reaches the server
        pipeline.gate.set()
        assert (
            client.post("/benchmark/generate", json=SMALL | {"prompt": "next"}).status_code == 200
        )
    assert pipeline.calls.count(("step", SMALL["prompt"])) == 1


def test_errors_inside_keep_the_server_alive_and_name_the_request():
    pipeline = FakePipeline()
    pipeline.fail_on = {
        "bad": ZeroDivisionError("secret detail"),
        "huge": torch.OutOfMemoryError("CUDA out of memory"),
    }
    with fake_server(pipeline) as client:
        bad = client.post(
            "/benchmark/generate", json=SMALL | {"prompt": "bad"}, headers={"X-Request-ID": "b-1"}
        )
        huge = client.post("/benchmark/generate", json=SMALL | {"prompt": "huge"})
        good = client.post("/benchmark/generate", json=SMALL)
    assert (bad.status_code, huge.status_code, good.status_code) == (500, 507, 200)
    assert "b-1" in bad.json()["detail"]
    assert "secret" not in bad.text
    assert server_timing(bad)[0].keys() == {"queue", "total"}


def test_the_event_loop_answers_while_the_engine_works():
    pipeline = FakePipeline()
    with fake_server(pipeline) as client:
        pipeline.gate.clear()
        pipeline.stepping.clear()
        busy = in_background(client, "busy")
        assert pipeline.stepping.wait(10)
        assert client.get("/health", timeout=5).status_code == 200
        pipeline.gate.set()
        assert busy.result(10).status_code == 200


# -- start, stop, restart --------------------------------------------------------------------------


def test_serving_again_under_a_name_replaces_that_server_only():
    with serve(FakePipeline(), name="kept") as kept:
        first = serve(FakePipeline(), name="cell")
        port = int(first.url.rsplit(":", 1)[1])
        second = serve(FakePipeline(), name="cell", port=port)
        try:
            assert not first.started
            with pytest.raises(RuntimeError, match="stopped"):
                _ = first.url
            assert httpx.get(f"{second.url}/ready").status_code == 200
            assert httpx.get(f"{kept.url}/ready").status_code == 200
        finally:
            second.stop()


def test_stop_and_start_again(tiny):
    server = serve(tiny, name="again", batching="serial")
    assert "tiny on cpu at http://127.0.0.1:" in repr(server)
    server.stop()
    server.stop()
    assert "stopped" in repr(server)
    server.start()
    assert server.start() is server
    assert httpx.get(f"{server.url}/ready").status_code == 200
    server.stop()


def test_leaving_frees_port_threads_and_an_owned_model():
    before = set(threading.enumerate())
    references = []
    with serve("tiny", name="owned", device="cpu", batching="serial") as server:
        references.append(weakref.ref(server._engine._calls.pipeline))
        port = int(server.url.rsplit(":", 1)[1])
        assert server.spec["model"] == "tiny"
        assert server.pid == os.getpid()
        httpx.post(f"{server.url}/benchmark/generate", json=SMALL, timeout=60).raise_for_status()
    gc.collect()
    assert references[0]() is None
    assert {t for t in threading.enumerate() if t.name.startswith("benchlib")} <= before
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_leaving_drains_what_is_being_answered():
    pipeline = FakePipeline()
    server = serve(pipeline, name="drained")
    pipeline.gate.clear()
    pipeline.stepping.clear()
    with httpx.Client(base_url=server.url, timeout=30) as client:
        inside = in_background(client, "inside")
        assert pipeline.stepping.wait(10)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        time.sleep(0.2)
        assert stopping.is_alive()
        pipeline.gate.set()
        assert inside.result(10).status_code == 200
    stopping.join(10)
    assert not stopping.is_alive()


def test_a_server_that_has_started_takes_connections_at_once(monkeypatch):
    """uvicorn accepts some time after the app has started. The engine starts later still."""
    app_started = LifespanOn.startup

    async def late(self):
        await app_started(self)
        await asyncio.sleep(0.3)

    monkeypatch.setattr(LifespanOn, "startup", late)
    with serve(FakePipeline(), name="late") as server:
        port = int(server.url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK")


def test_a_taken_port_is_reported_and_nothing_is_left(tiny):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            OSError, match=f"host and port: 127.0.0.1:{port} can't be bound.*port=0"
        ):
            serve(tiny, name="taken", port=port)
    assert not [t for t in threading.enumerate() if t.name == "benchlib-server-taken"]


def test_a_failed_start_raises_the_reason_and_leaves_nothing():
    with pytest.raises(ModelError, match="'nothing' is none of"):
        serve("nothing", name="failed")
    assert not [t for t in threading.enumerate() if t.name.startswith("benchlib-server-failed")]


def test_bad_options_are_named(tiny):
    with pytest.raises(ValueError, match="dtype: a loaded pipeline has its own"):
        serve(tiny, dtype="float16")
    with pytest.raises(ValueError, match=r"batching: .*, not 'magic'"):
        serve(tiny, batching="magic")


# -- stand-alone -----------------------------------------------------------------------------------


@contextmanager
def stand_alone(*command, **environment):
    """A server process. Yields its URL, and checks at the end that SIGINT stops it in order."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = []
    try:
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"running on (http://\S+)", line):
                yield found[1], lines
                process.send_signal(signal.SIGINT)
                lines += process.stderr.readlines()
                assert process.wait(120) == 0, "".join(lines)
                return
        pytest.fail(f"the server did not start: {''.join(lines)}")
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def wait_ready(url):
    """Wait for /ready and return its statuses.

    The port is bound before the model is loaded, so /health answers at once.
    """
    assert httpx.get(f"{url}/health").status_code == 200
    seen = []
    with httpx.Client(base_url=url) as client:
        while 200 not in seen:
            seen.append(client.get("/ready").status_code)
            time.sleep(0.1)  # the server needs the core
    return seen


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return str(probe.getsockname()[1])


def test_python_m_benchlib_serve():
    with stand_alone(
        "benchlib",
        "serve",
        "--model",
        "auto",
        "--port",
        free_port(),
        "--batching",
        "serial",
        CUDA_VISIBLE_DEVICES="",
    ) as (
        url,
        lines,
    ):
        early = httpx.post(f"{url}/benchmark/generate", json=SMALL)
        assert early.status_code == 503
        assert "loading" in early.json()["detail"]
        not_ready = httpx.get(f"{url}/ready").json()
        assert not_ready["spec"] is None
        assert not_ready["detail"].startswith(("loading the model", "measuring"))
        assert 503 in wait_ready(url)
        assert (
            httpx.post(f"{url}/benchmark/generate", json=SMALL, timeout=60).json()["prompt"]
            == "a lighthouse"
        )
    text = "".join(lines)
    assert "Serving tiny on cpu in float32: there is no CUDA GPU" in text
    assert re.search(r"An image of 1024x1024 at 20 steps will take at least [\d.,]+ s here", text)


def test_plain_uvicorn_takes_its_settings_from_the_environment():
    arguments = [
        "uvicorn",
        "benchlib.serving.app:app",
        "--host",
        "127.0.0.1",
        "--port",
        free_port(),
    ]
    settings = {"MODEL": "tiny", "MAX_PIXEL_STEPS": "20000", "BATCHING": "serial"}
    variables = {f"BENCHLIB_{name}": value for name, value in settings.items()}
    with stand_alone(*arguments, **variables) as (url, _):
        wait_ready(url)
        assert httpx.post(f"{url}/benchmark/generate", json=SMALL, timeout=60).status_code == 200
        assert (
            httpx.post(
                f"{url}/benchmark/generate", json=SMALL | {"width": 512}, timeout=60
            ).status_code
            == 422
        )


def test_the_engine_is_made_as_the_environment_says(monkeypatch):
    said = {
        "BATCHING": "dynamic", "MAX_BATCH_SIZE": "3", "MAX_WAIT_MS": "12.5", "BATCH_BUCKETS": "1,2,4",
        "SIZES": "64x64,128x96", "MAX_QUEUE": "5", "ON_NONFINITE": "allow",
    }  # fmt: skip
    for name, value in said.items():
        monkeypatch.setenv(f"BENCHLIB_{name}", value)
    options_given = []
    monkeypatch.setattr(
        "benchlib.serving.standalone.Engine", lambda _, options: options_given.append(options)
    )
    engine_from(Settings())
    expected = EngineOptions(
        batching="dynamic",
        max_batch_size=3,
        max_wait_ms=12.5,
        batch_buckets=(1, 2, 4),
        sizes=((64, 64), (128, 96)),
        max_queue=5,
        on_nonfinite="allow",
    )
    assert options_given == [expected]
    assert type(options_given[0]) is EngineOptions


def test_adapters_come_from_the_environment_and_from_the_command_line(monkeypatch):
    given = []
    monkeypatch.setattr(
        "benchlib.serving.standalone.serve_alone", lambda settings, **_: given.append(settings) or 0
    )
    assert (
        main(["serve", "--lora", "a=a.safetensors", "--lora", "b=random", "--fuse", "a:0.5"]) == 0
    )
    assert given[0].loras == {"a": "a.safetensors", "b": "random"}
    assert given[0].fuse == "a:0.5"
    monkeypatch.setenv("BENCHLIB_LORAS", "a=x/y,b=random")
    assert Settings().loras == {"a": "x/y", "b": "random"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lora", "a"], "'a' names no file; write name=path"),
        (["--lora", "a=x", "--lora", "a=y"], "'a' is there twice"),
        (["--sizes", "64"], "sizes.0.1: Field required"),
        (["--batch-buckets", "1,two"], "batch_buckets.1: Input should be a valid integer"),
        (["--max-queue", "none"], "max_queue: Input should be a valid integer"),
        (
            ["--batching", "magic"],
            "batching: Input should be 'serial', 'dynamic' or 'continuous', not 'magic'",
        ),
    ],
)
def test_a_bad_option_of_a_stand_alone_server_is_named(arguments, words, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["serve", "--port", "0", *arguments])
    assert words in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_stand_alone_server_that_cannot_start_says_why():
    command = ["benchlib", "serve", "--port", "0", "--lora", "a=/nowhere.safetensors"]
    process = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, timeout=300, check=False
    )
    assert process.returncode == 1, process.stderr
    last = process.stderr.strip().splitlines()[-1]
    assert "there is no file or folder '/nowhere.safet" in last
