"""run_load on several servers as one target, and on servers that answer as vLLM-Omni and SGLang do.

The servers are real ones. Their answers have the shapes that the sources of vLLM-Omni 0.30.0 and
SGLang 0.5.23 write.
"""

import asyncio
import base64
import threading
from contextlib import ExitStack, contextmanager

import pandas as pd
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from benchlib import ClosedLoop, OpenLoop, Workload, run_load
from benchlib.load.bearer import HEADERS_VARIABLE, KEY_VARIABLE
from benchlib.report import write_report
from benchlib.serving.server import serve
from benchmarks.fakes.fake_pipeline import FakePipeline

from .load.conftest import wait_until

pytestmark = pytest.mark.usefixtures("idle_machine")
SMALL = Workload(num_inference_steps=2, width=64, height=64)
PIXELS = base64.b64encode(bytes(3000)).decode()
IMAGE = {"b64_json": PIXELS, "url": None, "revised_prompt": None}


def vllm_omni(*, profiled):
    """The answer of vLLM-Omni, which times its stages only where it is started so."""
    stages = {
        "StableDiffusionXLPipeline.text_encoder.forward": 0.0001,
        "StableDiffusionXLPipeline.diffuse": 0.0004,
        "StableDiffusionXLPipeline.vae.decode": 0.0002,
        "StableDiffusionXLPipeline.forward": 0.0008,
        "queue_wait_ms": 0.5,
        "stage_0_gen_ms": 0.9,
    }
    metrics = {"stage_durations": stages if profiled else None, "peak_memory_mb": 8192.0}
    return {
        "created": 1701234567, "data": [IMAGE], "output_format": "png", "size": "64x64",
        "cot_output": None, "metrics": metrics if profiled else metrics | {"peak_memory_mb": None},
    }  # fmt: skip


SGLANG = {
    "id": "a1", "created": 1701234567, "data": [IMAGE | {"file_path": None}],
    "peak_memory_mb": 8192.0, "inference_time_s": 0.0005,
}  # fmt: skip


class ImageServer:
    """An OpenAI-like images server; `seen` has each request's body and headers."""

    def __init__(self, answer, *, model="sdxl-base", dies_after=None):
        self.seen = []
        self.app = FastAPI()

        @self.app.get("/v1/models")
        async def models():
            return {"object": "list", "data": [{"id": model, "object": "model"}]}

        @self.app.post("/v1/images/generations")
        async def generations(request: Request):
            self.seen.append((await request.json(), request.headers))
            if dies_after is not None and len(self.seen) > dies_after:
                return JSONResponse({"detail": "the engine is dead"}, status_code=500)
            await asyncio.sleep(0.002)
            return answer


@contextmanager
def listening(*servers):
    """The URLs of the servers."""
    with ExitStack() as stack:
        yield [stack.enter_context(_listening(server.app)) for server in servers]


@contextmanager
def _listening(app):
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        [listener] = server.servers
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def test_requests_go_to_several_servers_in_turn(tmp_path):
    both = ImageServer(SGLANG), ImageServer(SGLANG)
    options = {"study": "two", "results": tmp_path, "api": "sglang"}
    with listening(*both) as urls:
        closed = run_load(urls, ClosedLoop(3), SMALL, requests=9, **options)
        opened = run_load(urls, OpenLoop(500), SMALL, requests=9, **options)
    for run in (closed, opened):
        rows = run.requests
        assert rows["target"].tolist() == [urls[index % 2] for index in rows["index"]]
        assert len(rows) == run.summary()["ok"] == 9
        assert (rows["sent_s"] <= rows["done_s"]).all()
        assert run.spec["target"]["url"] == f"{urls[0]} and 1 more"
        said = [{"url": url, "model": "sdxl-base", "spec": None} for url in urls]
        assert run.record["targets"] == said
    sent = sorted(body["seed"] for server in both for body, _ in server.seen)
    assert sent == sorted(2 * [SMALL.request(index)["seed"] for index in range(9)])
    assert [len(server.seen) for server in both] == [10, 8]


def test_the_rows_show_which_server_died(tmp_path):
    both = ImageServer(SGLANG), ImageServer(SGLANG, dies_after=2)
    with listening(*both) as urls:
        run = run_load(urls, ClosedLoop(1), SMALL, requests=10, results=tmp_path, api="sglang")
    rows = run.requests.sort_values("index")
    failed = rows[rows["error"].notna()]
    assert failed["index"].tolist() == [5, 7, 9]
    assert set(failed["target"]) == {urls[1]}
    reason = run.summary()["invalid_reason"]
    assert reason.startswith("30 % of 10 requests failed")
    assert reason.endswith(f"(HTTP 500: 3); {urls[1]}: 3 of 5")


def test_one_server_names_no_target(fake, tmp_path):
    run = run_load([fake.url], ClosedLoop(1), SMALL, requests=2, results=tmp_path)
    assert run.requests["target"].isna().all()
    assert run.spec["target"]["url"] == fake.url
    assert "targets" not in run.record


def test_each_server_must_be_up_and_of_one_model(fake, tmp_path):
    options = {"requests": 1, "results": tmp_path, "study": "refused"}
    servers = ImageServer(SGLANG), ImageServer(SGLANG, model="flux")
    with listening(*servers) as urls:
        words = rf"different models \({urls[0]} serves sdxl-base, {urls[1]} serves flux\)"
        with pytest.raises(ValueError, match=words):
            run_load(urls, ClosedLoop(1), SMALL, api="openai", **options)
        # A server that says nothing of its model is taken.
        run_load([urls[0], fake.url], ClosedLoop(1), SMALL, api="openai", **options)
    with pytest.raises(ValueError, match=rf"target {urls[0]} does not answer \(ConnectionRefused"):
        run_load([urls[0], fake.url], ClosedLoop(1), SMALL, api="openai", **options)
    assert [server.seen == [] for server in servers] == [False, True]


def test_our_own_servers_must_be_alike_and_take_the_key(tmp_path, monkeypatch):
    one, two, other = FakePipeline(), FakePipeline(), FakePipeline()
    other.spec = {**other.spec, "recipe": "fastest"}
    options = {"requests": 4, "results": tmp_path, "study": "own"}
    with (
        serve(one, name="one", api_key="k3y") as first,
        serve(two, name="two", api_key="k3y") as second,
        serve(other, name="other", api_key="k3y") as third,
    ):
        with pytest.raises(ValueError, match=rf"{first.url} wants a key \(HTTP 401\)"):
            run_load([first.url, second.url], ClosedLoop(1), SMALL, **options)
        monkeypatch.setenv(KEY_VARIABLE, "k3y")
        run = run_load([first.url, second.url], ClosedLoop(1), SMALL, **options)
        with pytest.raises(ValueError, match="the targets differ in recipe"):
            run_load([first.url, third.url], ClosedLoop(1), SMALL, **options)
    assert run.summary()["ok"] == 4
    assert run.requests["denoise_s"].notna().all()
    assert [one["spec"]["model"] for one in run.record["targets"]] == [one.spec["model"]] * 2


def test_what_other_servers_say_becomes_the_rows_server_parts(tmp_path):
    answers = {
        "vllm-omni": vllm_omni(profiled=True),
        "sglang": SGLANG,
    }
    servers = [ImageServer(answer) for answer in answers.values()]
    bare = ImageServer(vllm_omni(profiled=False))
    runs = {}
    with listening(*servers, bare) as urls:
        for api, url in [*zip(answers, urls, strict=False), ("vllm-omni", urls[2])]:
            large = Workload("a", width=4096, height=4100, num_inference_steps=200)
            options = {"requests": 2, "results": tmp_path, "study": "others", "api": api}
            runs[url] = run_load(url, ClosedLoop(1), large, **options)
    expected = [
        {
            "queue_s": 0.0005, "encode_s": 0.0001, "denoise_s": 0.0004, "decode_s": 0.0002,
            "service_s": 0.0008, "server_peak_gib": 8.0,
        },
        {"service_s": 0.0005, "server_peak_gib": 8.0},
        {},
    ]  # fmt: skip
    columns = [
        "queue_s",
        "encode_s",
        "denoise_s",
        "decode_s",
        "total_s",
        "service_s",
        "server_peak_gib",
    ]
    for run, values in zip(runs.values(), expected, strict=True):
        assert run.summary()["ok"] == 2
        for _, row in run.requests[columns].iterrows():
            assert {name: value for name, value in row.items() if not pd.isna(value)} == values
    body, _ = bare.seen[0]
    assert (body["size"], body["num_inference_steps"]) == ("4096x4100", 200)


def test_secret_headers_are_sent_and_reach_no_file(tmp_path, monkeypatch, capfd):
    server = ImageServer(SGLANG)
    monkeypatch.setenv(HEADERS_VARIABLE, '{"X-Api-Key": "an 0pen sesame"}')
    monkeypatch.setenv(KEY_VARIABLE, "k3y")
    with listening(server) as [url]:
        run = run_load(url, ClosedLoop(1), SMALL, requests=2, results=tmp_path, api="sglang")
        monkeypatch.setenv(HEADERS_VARIABLE, "an 0pen sesame")
        with pytest.raises(ValueError, match=HEADERS_VARIABLE) as refused:
            run_load(url, ClosedLoop(1), SMALL, requests=1, results=tmp_path)
    for _, headers in server.seen:
        assert headers["x-api-key"] == "an 0pen sesame"
        assert headers["authorization"] == "Bearer k3y"
    write_report(tmp_path)
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    said = str(refused.value) + "".join(capfd.readouterr()) + str(run.record)
    for text in (*kept, said.encode()):
        assert b"0pen sesame" not in text
        assert b"k3y" not in text
