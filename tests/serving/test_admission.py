"""Bounds on what a request costs, how long it would wait, and what a client may have inside."""

import httpx
import pytest

from benchlib.serving.engine.step_times import StepTimes
from benchlib.serving.server import serve
from benchmarks.fakes.fake_pipeline import FakePipeline
from tests.serving.test_prometheus import samples
from tests.serving.test_server import SMALL, fake_server, in_background

IMAGES = "/v1/images/generations"
ONE_SECOND_STEPS = StepTimes(step_s={2: 1.0}, encode_s={1: 0.0}, decode_s={1: 0.0})


def images(n, **more):
    return {"prompt": "a", "n": n, "size": "64x64", "num_inference_steps": 2, **more}


def test_the_pixel_steps_of_all_images_are_bounded():
    with fake_server(FakePipeline(), max_pixel_steps=64 * 64 * 2 * 3) as client:
        assert client.post(IMAGES, json=images(3)).status_code == 200
        refused = client.post(IMAGES, json=images(4))
        assert refused.status_code == 400
        error = refused.json()["error"]
        assert (error["param"], error["code"]) == ("n", "too_large")
        assert "x n is 32768, above this server's limit of 24576" in error["message"]
        assert samples(client)["benchlib_refusals_total", "too_large"] == 1


def test_by_default_a_request_is_bounded_by_its_device_and_the_server_says_so():
    largest = {"width": 2048, "height": 2048, "num_inference_steps": 150}
    with serve(FakePipeline(), name="usual") as server:
        url = f"{server.url}/benchmark/generate"
        assert httpx.post(url, json=SMALL | largest).status_code == 422
        assert httpx.post(url, json={"prompt": "a bare prompt"}, timeout=60).status_code == 200
        ten_large = images(10, size="512x512", num_inference_steps=20)
        answer = httpx.post(f"{server.url}{IMAGES}", json=ten_large, timeout=60)
        assert answer.status_code == 200
        expected = {"max_pixel_steps": 62_914_560, "max_queue_s": 1800.0, "max_per_client": None}
        assert expected.items() <= server.spec.items()
        assert httpx.get(f"{server.url}/ready").json()["spec"] == server.spec


def test_none_is_no_bound():
    largest = {"width": 2048, "height": 2048, "num_inference_steps": 150}
    with fake_server(FakePipeline(), max_pixel_steps=None) as client:
        assert client.post("/benchmark/generate", json=SMALL | largest).status_code == 200


@pytest.mark.parametrize("n", [5, 10])
def test_more_images_than_the_queue_holds_are_a_bad_request_also_when_it_is_empty(n):
    with fake_server(FakePipeline(), max_queue=4) as client:
        for _ in range(3):
            refused = client.post(IMAGES, json=images(n))
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == "n"
            assert "max_queue; ask for at most 4" in refused.json()["error"]["message"]
        assert client.post(IMAGES, json=images(4)).status_code == 200


def test_a_request_that_would_wait_too_long_is_refused_with_the_time_to_come_back():
    pipeline = FakePipeline()
    with fake_server(pipeline, batching="serial", max_queue_s=4) as client:
        from benchlib.serving import server

        engine = server._servers["fake"]._engine
        engine._step_times[64, 64] = ONE_SECOND_STEPS
        pipeline.gate.clear()
        pipeline.stepping.clear()
        # Alone it waits for nothing, however long it takes itself.
        first = in_background(client, "first", num_inference_steps=100)
        assert pipeline.stepping.wait(30)
        refused = client.post("/benchmark/generate", json=SMALL)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "96"
        assert "foretold as 100 s, above the limit of 4 s" in refused.json()["detail"]
        assert samples(client)["benchlib_refusals_total", "wait_too_long"] == 1
        pipeline.gate.set()
        assert first.result(60).status_code == 200
        assert client.post("/benchmark/generate", json=SMALL).status_code == 200


def test_without_a_bound_on_the_wait_a_request_waits():
    pipeline = FakePipeline()
    with fake_server(pipeline, batching="serial", max_queue_s=None) as client:
        from benchlib.serving import server

        server._servers["fake"]._engine._step_times[64, 64] = ONE_SECOND_STEPS
        pipeline.gate.clear()
        pipeline.stepping.clear()
        first = in_background(client, "first", num_inference_steps=150)
        assert pipeline.stepping.wait(30)
        second = in_background(client, "second")
        pipeline.gate.set()
        assert [job.result(60).status_code for job in (first, second)] == [200, 200]


def test_a_client_has_a_share_by_its_address():
    pipeline = FakePipeline()
    with fake_server(pipeline, max_per_client=2) as client:

        def send(address, n):
            headers = {"X-Forwarded-For": address}
            return client.post(IMAGES, json=images(n), headers=headers)

        pipeline.gate.clear()
        pipeline.stepping.clear()
        inside = in_background(client, "mine")  # from 127.0.0.1
        assert pipeline.stepping.wait(30)
        refused = send("127.0.0.1", 2)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "client_share"
        assert int(refused.headers["retry-after"]) >= 1
        assert samples(client)["benchlib_refusals_total", "client_share"] == 1
        assert send("10.0.0.7", 3).json()["error"]["param"] == "n"
        pipeline.gate.set()
        assert inside.result(60).status_code == 200
        assert send("127.0.0.1", 2).status_code == 200


@pytest.mark.parametrize(
    ("mine", "other", "status"),
    [
        ("2001:db8::1", "10.0.0.8", 200),
        ("2001:db8::1", "2001:db8::1", 429),
        ("2001:db8::1", "2001:db8::2", 429),
        ("2001:db8::1", "2001:db8:0:1::2", 200),
        ("::ffff:10.0.0.7", "::ffff:10.0.0.8", 200),
        ("::ffff:10.0.0.7", "10.0.0.7", 429),
    ],
)
def test_a_network_of_ipv6_is_one_client_and_an_address_of_ipv4(mine, other, status):
    pipeline = FakePipeline()
    with fake_server(pipeline, max_per_client=1) as client:
        pipeline.gate.clear()
        pipeline.stepping.clear()
        headers = {"X-Forwarded-For": mine}
        inside = in_background(client, "mine", headers=headers)
        assert pipeline.stepping.wait(30)
        others = in_background(client, "theirs", headers={"X-Forwarded-For": other})
        if status == 429:
            assert others.result(60).status_code == 429
        pipeline.gate.set()
        assert [job.result(60).status_code for job in (inside, others)] == [200, status]
