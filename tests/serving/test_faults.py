"""Faults inside a server, as its clients see them: real uvicorn, with the tiny or a fake model."""

import base64
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
import torch

from benchlib.load.arrivals import ClosedLoop
from benchlib.load.workload import Workload
from benchlib.run import run_load
from benchlib.serving.engine.faults import MOST_FAILED_CALLS
from benchlib.serving.openai_images import ImagesRequest
from benchlib.serving.server import serve
from benchmarks.fakes.fake_pipeline import FakePipeline
from tests.serving.test_prometheus import samples
from tests.serving.test_server import SMALL, fake_server, in_background

POLICIES = ["serial", "dynamic", "continuous"]
SMALL_V1 = {"prompt": "a", "size": "64x64", "num_inference_steps": 2}


def post(client, prompt="a"):
    return client.post("/benchmark/generate", json=SMALL | {"prompt": prompt})


def post_v1(client, prompt="a", **changes):
    return client.post("/v1/images/generations", json=SMALL_V1 | {"prompt": prompt} | changes)


# -- the end of the engine -------------------------------------------------------------------------


@contextmanager
def ended_server(pipeline):
    """A server with a request in the step and one in the queue, while its engine ends."""
    usual = pipeline.step

    def end(works, **options):
        seconds = usual(works, **options)
        if any(work.request.prompt == "deadly" for work in works):
            raise SystemExit("the device is gone")
        return seconds

    pipeline.step = end
    with (
        serve(pipeline, name="ending", batching="serial") as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        pipeline.gate.clear()
        pipeline.stepping.clear()
        inside = [in_background(client, "deadly")]
        assert pipeline.stepping.wait(10)
        inside.append(in_background(client, "waiting"))
        pipeline.gate.set()
        yield server, client, [answer.result(30) for answer in inside]
        pipeline.step = usual


def test_everybody_is_told_why_the_engine_has_ended(caplog):
    with ended_server(FakePipeline()) as (server, client, inside):
        reason = "the engine has ended: SystemExit: the device is gone; start the server again"
        for answer in [*inside, post(client)]:
            assert answer.status_code == 500
            assert answer.json()["detail"] == reason
        late = post_v1(client)
        assert late.status_code == 500
        assert late.json()["error"] == {
            "message": reason, "type": "server_error", "param": None, "code": "engine_ended",
        }  # fmt: skip
        health = client.get("/health")
        assert health.status_code == 503
        assert health.json() == {"status": "failed", "detail": reason}
        ready = client.get("/ready")
        assert ready.status_code == 503
        assert (ready.json()["status"], ready.json()["detail"]) == ("failed", reason)
        assert samples(client)["benchlib_failures_total", None] == 4
        assert samples(client)["benchlib_refusals_total", "stopping"] == 0
        assert samples(client)["benchlib_queue_length", None] == 0
        assert reason in repr(server)
    told = [record for record in caplog.records if reason in record.getMessage()]
    assert len(told) == 1


def test_a_server_whose_engine_has_ended_starts_again():
    pipeline = FakePipeline()
    with ended_server(pipeline) as (server, _, _):
        pipeline.fail_on.clear()
        assert server.start() is server
        assert httpx.post(f"{server.url}/benchmark/generate", json=SMALL).status_code == 200
        assert httpx.get(f"{server.url}/health").json() == {"status": "alive"}


def test_serving_again_under_the_name_replaces_a_server_whose_engine_has_ended():
    with (
        ended_server(FakePipeline()) as (former, _, _),
        serve(FakePipeline(), name="ending") as new,
    ):
        assert not former.started
        assert httpx.get(f"{new.url}/ready").status_code == 200


# -- a lost device ---------------------------------------------------------------------------------


def test_a_server_whose_calls_all_fail_is_alive_and_not_ready_until_a_step_succeeds():
    pipeline = FakePipeline()
    pipeline.fail_on["lost"] = RuntimeError("the device is lost")
    with fake_server(pipeline, batching="serial") as client:
        for _ in range(MOST_FAILED_CALLS):
            assert client.get("/ready").status_code == 200
            assert post(client, "lost").status_code == 500
        ready = client.get("/ready")
        assert ready.status_code == 503
        assert ready.json()["status"] == "failing"
        assert "the last error is RuntimeError: the device is lost" in ready.json()["detail"]
        assert client.get("/health").status_code == 200
        assert samples(client)["benchlib_failed_calls", None] == MOST_FAILED_CALLS
        assert post(client).status_code == 200, "it still takes requests"
        assert client.get("/ready").status_code == 200
        assert samples(client)["benchlib_failed_calls", None] == 0


# -- memory ----------------------------------------------------------------------------------------


def test_a_lack_of_memory_is_told_as_what_it_is():
    pipeline = FakePipeline()
    short = torch.OutOfMemoryError("CUDA out of memory")
    with fake_server(pipeline) as client:
        pipeline.encode_errors = [short]
        assert post(client).status_code == 200, "a second try went well"
        pipeline.fail_on["huge"] = short
        for answer in (post(client, "huge"), post(client, "huge")):
            kind = (answer.status_code, answer.headers.get("retry-after"))
            assert kind in [(503, "5"), (507, None)]
        assert post_v1(client).status_code == 200
        again = post_v1(client, "huge")
        assert again.status_code == 503
        assert again.headers["retry-after"] == "5"
        assert again.json()["error"]["code"] == "out_of_memory"
        assert "short of memory for 64x64, which it has made before" in again.text
        gone = post_v1(client, "huge")
        assert gone.status_code == 507
        assert gone.headers["x-should-retry"] == "false"
        counts = samples(client)
    assert counts["benchlib_out_of_memory_total", "encode"] == 1
    assert counts["benchlib_out_of_memory_total", "step"] == 8
    assert counts["benchlib_out_of_memory_total", "decode"] == 0


# -- one request's fault ---------------------------------------------------------------------------


@pytest.mark.parametrize("batching", POLICIES)
@pytest.mark.parametrize("part", ["encode", "step", "decode"])
def test_a_fault_ends_its_own_request_alone(batching, part, monkeypatch):
    pipeline = FakePipeline()
    usual = getattr(pipeline, part)

    def call(works, **options):
        if any(getattr(work, "request", work).prompt == "bad" for work in works):
            raise ZeroDivisionError(part)
        return usual(works, **options)

    monkeypatch.setattr(pipeline, part, call)
    with fake_server(pipeline, batching=batching, max_wait_ms=50) as client:
        prompts = ["good", "bad", "good", "good", "bad", "good"]
        answers = [in_background(client, prompt) for prompt in prompts]
        statuses = [answer.result(30).status_code for answer in answers]
        counts = samples(client)
    assert statuses == [200, 500, 200, 200, 500, 200]
    assert counts["benchlib_failures_total", None] == 2
    assert counts["benchlib_images_total", "/benchmark/generate"] == 4


@pytest.mark.parametrize("batching", POLICIES)
def test_a_file_that_can_not_be_written_ends_its_own_request_alone(tiny, batching, monkeypatch):
    usual = ImagesRequest.write_file

    def write_file(self, image):
        if self.prompt == "bad":
            raise OSError("encoder error")
        return usual(self, image)

    monkeypatch.setattr(ImagesRequest, "write_file", write_file)
    prompts = ["good", "bad", "fine"]
    with (
        serve(tiny, name="files", batching=batching, max_batch_size=1) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        seeds = {"seed": 1, "guidance_scale": 5}
        [good, fine] = [post_v1(client, name, **seeds).json()["data"] for name in ("good", "fine")]
        with ThreadPoolExecutor(3) as users:
            answers = list(users.map(lambda name: post_v1(client, name, **seeds), prompts))
    assert [answer.status_code for answer in answers] == [200, 500, 200]
    assert answers[0].json()["data"][0]["b64_json"] == good[0]["b64_json"]
    assert answers[2].json()["data"][0]["b64_json"] == fine[0]["b64_json"]
    assert base64.b64decode(good[0]["b64_json"]).startswith(b"\x89PNG")


# -- numbers that are none -------------------------------------------------------------------------


class Broken(FakePipeline):
    """Its images of the prompt "broken" come from latents that are NaN."""

    def decode(self, works):
        images = super().decode(works)
        for work in works:
            work.not_finite = "latents" if "broken" in work.request.prompt else None
        return images


def test_an_image_that_is_not_finite_is_a_500_that_says_so():
    with fake_server(Broken()) as client:
        plain = post(client, "broken")
        assert plain.status_code == 500
        assert "its latents are NaN or infinite" in plain.json()["detail"]
        openais = post_v1(client, "broken")
        assert openais.status_code == 500
        assert openais.json()["error"]["code"] == "nonfinite"
        assert openais.json()["error"]["message"] == plain.json()["detail"]
        for answer in (plain, openais):
            assert answer.headers["x-nonfinite"] == "latents"
            assert answer.headers["x-should-retry"] == "false"
        good = post(client)
        counts = samples(client)
    assert good.status_code == 200
    assert "x-nonfinite" not in good.headers
    assert counts["benchlib_nonfinite_images_total", "refused"] == 2
    assert counts["benchlib_nonfinite_images_total", "answered"] == 0
    assert counts["benchlib_failures_total", None] == 2


def test_an_image_that_is_not_finite_may_be_allowed_and_is_marked():
    with fake_server(Broken(), on_nonfinite="allow") as client:
        answers = [post(client, "broken"), post_v1(client, "broken", n=2), post(client)]
        counts = samples(client)
    assert [answer.status_code for answer in answers] == [200] * 3
    marks = [answer.headers.get("x-nonfinite") for answer in answers]
    assert marks == ["latents", "latents", None]
    assert counts["benchlib_nonfinite_images_total", "answered"] == 3
    assert counts["benchlib_nonfinite_images_total", "refused"] == 0


@pytest.mark.parametrize("on_nonfinite", ["allow", "error"])
def test_a_run_with_images_that_are_not_finite_is_not_valid_and_says_why(tmp_path, on_nonfinite):
    workload = Workload(["fine", "broken"], width=64, height=64, num_inference_steps=2)
    with serve(Broken(), name="measured", on_nonfinite=on_nonfinite) as server:
        run = run_load(server, ClosedLoop(users=1), workload, requests=20, results=tmp_path, seed=0)
    summary = run.summary()
    checks = run.checks().set_index("check")
    broken = checks.loc["images not finite"]
    assert not summary["valid"]
    assert broken["value"] > 0
    assert not broken["passed"]
    if on_nonfinite == "allow":
        assert "NaN or infinite" in summary["invalid_reason"]
        assert summary["ok"] == 20
    else:
        assert "HTTP 500" in summary["invalid_reason"]
