"""Which refusals OpenAI's client sends again: its own code decides, on real uvicorn."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import openai
import pytest

from benchlib.serving.engine.engine import Engine
from benchlib.serving.engine.jobs import DoesNotFit, Refused
from benchlib.serving.server import serve
from benchmarks.fakes.fake_pipeline import FakePipeline

SMALL = {"prompt": "a", "size": "64x64", "extra_body": {"num_inference_steps": 1}}


@contextmanager
def client_of(pipeline, *, retries=1, **options):
    """OpenAI's client, and the list of the statuses that it was answered."""
    statuses = []

    def note(response):
        statuses.append(response.status_code)
        if response.status_code == 503:
            pipeline.gate.set()

    with (
        serve(pipeline, name="retries", **options) as server,
        openai.DefaultHttpxClient(event_hooks={"response": [note]}) as http,
        openai.OpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=retries, http_client=http
        ) as client,
    ):
        try:
            yield client, statuses
        finally:
            pipeline.gate.set()


def test_a_full_queue_is_asked_again_and_answers_then():
    pipeline = FakePipeline()
    with (
        client_of(pipeline, retries=5, max_queue=1) as (client, statuses),
        ThreadPoolExecutor(2) as others,
    ):
        pipeline.gate.clear()
        pipeline.stepping.clear()
        first = others.submit(client.images.generate, **SMALL)
        assert pipeline.stepping.wait(10)
        rivals = [others.submit(client.images.generate, **SMALL)]
        answer = client.images.generate(**SMALL)
        for one in (first, *rivals):
            one.result(60)
    assert answer.data
    assert statuses.count(200) == 3
    assert statuses.count(503) >= 1


def test_a_long_wait_is_told_in_words_and_capped_in_the_header(monkeypatch):
    def refuse(*_, **__):
        raise Refused("the queue is full (64 wait)", retry_after_s=999.5)

    with client_of(FakePipeline(), retries=0) as (client, _):
        monkeypatch.setattr(Engine, "submit", refuse)
        with pytest.raises(openai.InternalServerError) as raised:
            client.images.generate(**SMALL)
        response = raised.value.response
        assert response.headers["retry-after"] == "120"
        assert "try again in about 1000 s" in raised.value.message
        assert client._should_retry(response)
        response.headers["retry-after"] = "121"  # what the cap is for
        assert not client._should_retry(response)


def test_what_would_fail_again_is_not_sent_again():
    pipeline = FakePipeline()
    with client_of(pipeline, retries=2, deadline_s=0.3) as (client, statuses):
        pipeline.gate.clear()
        with pytest.raises(openai.InternalServerError):
            client.images.generate(**SMALL)
        assert statuses == [504]
        pipeline.gate.set()


@pytest.mark.parametrize(("error", "header"), [(DoesNotFit("no"), "false"), (ValueError(), None)])
def test_memory_that_lacks_says_not_to_retry(monkeypatch, error, header):
    def refuse(*_, **__):
        raise error

    with client_of(FakePipeline()) as (client, _):
        monkeypatch.setattr(Engine, "submit", refuse)
        answer = httpx.post(str(client.base_url.join("/benchmark/generate")), json={"prompt": "a"})
        assert answer.headers.get("x-should-retry") == header
