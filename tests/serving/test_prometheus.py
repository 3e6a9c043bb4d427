"""The page at /metrics, read as Prometheus reads it."""

import socket

import httpx
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from benchlib.serving.connection_limits import ConnectionLimits
from benchlib.serving.server import serve
from benchmarks.fakes.fake_pipeline import FakePipeline
from tests.serving.test_server import SMALL, fake_server, in_background, wait_until


def samples(client):
    """{(sample, its one label's value or None): number}"""
    page = client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=")
    families = list(text_string_to_metric_families(page.text))
    return {
        (
            sample.name,
            next((value for key, value in sample.labels.items() if key != "le"), None),
        ): sample.value
        for family in families
        for sample in family.samples
        if sample.labels.get("le", "+Inf") == "+Inf"
    }


def test_images_latency_batches_busy_time_and_memory_are_counted():
    pipeline = FakePipeline()
    with fake_server(pipeline, batching="serial") as client:
        before = samples(client)
        for _ in range(3):
            client.post("/benchmark/generate", json=SMALL).raise_for_status()
        client.post(
            "/v1/images/generations", json={"prompt": "a", "n": 2, "num_inference_steps": 4}
        ).raise_for_status()
        after = samples(client)
    assert ("benchlib_images_total", "/benchmark/generate") not in before
    assert after["benchlib_images_total", "/benchmark/generate"] == 3
    assert after["benchlib_images_total", "/v1/images/generations"] == 2
    assert after["benchlib_request_latency_seconds_count", "/benchmark/generate"] == 3
    assert after["benchlib_request_latency_seconds_count", "/v1/images/generations"] == 1
    assert 0 < after["benchlib_request_latency_seconds_sum", "/benchmark/generate"] < 30
    assert after["benchlib_batch_size_count", None] == 3 * SMALL["num_inference_steps"] + 2 * 4
    assert after["benchlib_busy_seconds_total", None] > before["benchlib_busy_seconds_total", None]
    assert after["benchlib_adapter_switches_total", None] == 0
    assert after["benchlib_queue_length", None] == after["benchlib_running_batch", None] == 0
    assert after["benchlib_memory_bytes", "rss"] > 2**20
    assert ("benchlib_memory_bytes", "cuda_allocated") in after or not torch.cuda.is_initialized()
    reasons = [
        key
        for key in before
        if key[0] in ("benchlib_refusals_total", "benchlib_cancellations_total")
    ]
    assert {reason for _, reason in reasons} == {
        "queue_full", "wait_too_long", "client_share", "too_large", "loading", "stopping", "deadline", "client_gone",
        "too_many_connections",
    }  # fmt: skip
    assert all(after[key] == 0 for key in reasons)


def test_waiting_and_running_requests_are_shown_and_a_full_queue_is_counted():
    pipeline = FakePipeline()
    with fake_server(pipeline, max_queue=2) as client:
        pipeline.gate.clear()
        pipeline.stepping.clear()
        jobs = [in_background(client, "first")]
        assert pipeline.stepping.wait(10)
        jobs += [in_background(client, name) for name in ("second", "third")]
        wait_until(lambda: samples(client)["benchlib_queue_length", None] == 2)
        assert samples(client)["benchlib_running_batch", None] == 1
        assert client.post("/benchmark/generate", json=SMALL).status_code == 503
        assert samples(client)["benchlib_refusals_total", "queue_full"] == 1
        pipeline.gate.set()
        assert [job.result(10).status_code for job in jobs] == [200] * 3
        assert samples(client)["benchlib_queue_length", None] == 0


def test_deadlines_and_clients_that_went_are_counted():
    pipeline = FakePipeline()
    with fake_server(pipeline, deadline_s=1.0) as client:
        pipeline.gate.clear()
        with pytest.raises(httpx.ReadTimeout):
            client.post("/benchmark/generate", json=SMALL, timeout=0.2)
        wait_until(lambda: samples(client)["benchlib_cancellations_total", "client_gone"] == 1)
        assert client.post("/benchmark/generate", json=SMALL).status_code == 504
        assert samples(client)["benchlib_cancellations_total", "deadline"] == 1
        pipeline.gate.set()


def test_what_is_too_large_or_fails_is_counted():
    pipeline = FakePipeline()
    pipeline.fail_on = {
        "bad": ZeroDivisionError(),
        "huge": torch.OutOfMemoryError("CUDA out of memory"),
    }
    with fake_server(pipeline, max_pixel_steps=64 * 64 * 3) as client:
        bodies = [SMALL | {"prompt": prompt} for prompt in ("bad", "huge")] + [
            SMALL | {"num_inference_steps": 4}
        ]
        assert [client.post("/benchmark/generate", json=body).status_code for body in bodies] == [
            500,
            507,
            422,
        ]
        counts = samples(client)
    assert counts["benchlib_refusals_total", "too_large"] == 2
    assert counts["benchlib_failures_total", None] == 1


def test_two_servers_count_apart():
    with serve(FakePipeline(), name="one") as one, serve(FakePipeline(), name="two") as two:
        httpx.post(f"{one.url}/benchmark/generate", json=SMALL).raise_for_status()
        pages = [httpx.get(f"{server.url}/metrics").text for server in (one, two)]
    counted = 'benchlib_images_total{route="/benchmark/generate"} 1.0'
    assert [counted in page for page in pages] == [True, False]


def test_bad_requests_are_counted_by_the_field_or_the_fault():
    generate = "/benchmark/generate"
    images = "/v1/images/generations"
    json_type = {"Content-Type": "application/json"}
    with fake_server(FakePipeline()) as client:
        client.post(generate, json=SMALL | {"width": 65})
        client.post(generate, json=SMALL | {"made up by a client": 1})
        client.post(generate, json=SMALL | {"another name": 1})
        client.post(generate, content="{", headers=json_type)
        client.post(generate, content="x" * (2**20 + 1), headers=json_type)
        client.post(images, json={"prompt": "a", "n": 11})
        client.post(images, json={"prompt": "a", "model": "another"})
        client.get(generate)
        client.get("/nothing")
        client.get("/images/nothing.png")
        page = client.get("/metrics").text
    counts = {
        (sample.labels["status"], sample.labels["reason"]): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "benchlib_client_errors_total"
    }
    assert counts == {
        ("401", "missing_api_key"): 0, ("401", "invalid_api_key"): 0, ("422", "width"): 1,
        ("422", "unknown_field"): 2, ("422", "body"): 1, ("413", "body_too_large"): 1,
        ("400", "n"): 1, ("404", "model_not_found"): 1, ("405", "method"): 1, ("404", "not_found"): 2,
    }  # fmt: skip


def test_slow_clients_and_too_many_headers_are_counted():
    limits = ConnectionLimits(headers_s=0.4)
    with fake_server(FakePipeline(), limits=limits) as client:
        many = {f"X-{number}": "a" for number in range(101)}
        assert client.get("/health", headers=many).status_code == 431
        with socket.create_connection((client.base_url.host, client.base_url.port)) as slow:
            slow.sendall(b"GET /health HTTP/1.1\r\n")
            answer = b"".join(iter(lambda: slow.recv(65536), b""))
        assert b" 408 " in answer
        page = client.get("/metrics").text
    assert 'client_errors_total{reason="headers_too_large",status="431"} 1.0' in page
    assert 'client_errors_total{reason="too_slow",status="408"} 1.0' in page
