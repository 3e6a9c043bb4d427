"""The API key: without it there is no answer but /health's; on real uvicorn with a fake model."""

import json
import logging
import subprocess
import sys

import httpx
import openai
import pytest

from benchlib.serving.lock import warn_of_open_door
from benchlib.serving.server import serve
from benchmarks.fakes.fake_pipeline import FakePipeline
from tests.serving.test_server import SMALL

KEY = "k3y/of+this~test"
BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def server():
    with serve(FakePipeline(), name="locked", api_key=KEY) as server:
        yield server


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def routes(server):
    """(method, path) of every route of the app, and of two paths that are none."""
    schema = httpx.get(f"{server.url}/openapi.json", headers=BEARER).json()
    for path, methods in schema["paths"].items():
        for method in methods:
            yield method.upper(), path
    for path in (
        "/docs",
        "/redoc",
        "/openapi.json",
        "/nothing",
        "/v1/nothing",
        "/health/",
        "//health",
    ):
        yield "GET", path
    yield "POST", "/metrics"


def test_every_route_but_health_needs_the_key(server, client):
    found = list(routes(server))
    assert len(found) >= 14
    for method, path in found:
        answer = client.request(method, path)
        if path == "/health":
            assert answer.status_code == 200
            continue
        assert answer.status_code == 401, path
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.headers["x-request-id"]
        assert answer.headers["server-timing"]
    assert client.head("/health").status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        "Bearer",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY.upper()}",
        f"Basic {KEY}",
        KEY,
        f"Bearer x {KEY}",
        b"Bearer k\xe9y",
    ],
    ids=repr,
)
def test_a_wrong_key_is_refused_in_the_routes_own_shape(client, header):
    headers = {"Authorization": header, "X-Request-ID": "mine"}
    plain = client.post("/benchmark/generate", json=SMALL, headers=headers)
    assert plain.status_code == 401
    assert plain.json()["request_id"] == "mine"
    in_openais_shape = client.get("/v1/models", headers=headers)
    assert in_openais_shape.status_code == 401
    error = in_openais_shape.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] == "invalid_api_key"
    assert KEY not in plain.text + in_openais_shape.text


def test_with_the_key_all_is_as_ever(server, client):
    for scheme in ("Bearer", "bearer", "BEARER"):
        headers = {"Authorization": f"{scheme} {KEY}"}
        answer = client.post("/benchmark/generate", json=SMALL, headers=headers)
        assert answer.status_code == 200
    for path in ("/ready", "/metrics", "/docs", "/openapi.json", "/v1/models"):
        assert client.get(path, headers=BEARER).status_code == 200
    assert client.get("/nothing", headers=BEARER).status_code == 404
    assert server.spec["needs_key"] is True


def test_openais_client_sends_the_key_and_understands_a_refusal(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
        assert client.models.list().data[0].id == "fake"
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong") as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.models.list()
    assert caught.value.code == "invalid_api_key"


def test_a_link_to_an_image_opens_without_the_key_until_it_ends():
    body = {"prompt": "a", "size": "64x64", "num_inference_steps": 1, "response_format": "url"}
    options = {"api_key": KEY, "max_links": 10, "root_path": "/sdxl"}
    with serve(FakePipeline(), name="links", **options) as server:
        images = f"{server.url}/sdxl/v1/images/generations"

        def make(n):
            answer = httpx.post(images, json=body | {"n": n}, headers=BEARER, timeout=60)
            return [image["url"] for image in answer.json()["data"]]

        [link] = make(1)
        assert httpx.get(link).headers["content-type"] == "image/png"
        assert httpx.get(link + "x").status_code == 401
        assert httpx.get(link.replace("/images/", "/images//")).status_code == 401
        make(10)  # no place is left for the first
        assert httpx.get(link).status_code == 401
        assert httpx.get(link, headers=BEARER).status_code == 404


def test_refusals_are_counted_by_reason():
    with (
        serve(FakePipeline(), name="counted", api_key=KEY) as server,
        httpx.Client(base_url=server.url, headers=BEARER) as client,
    ):
        httpx.get(f"{server.url}/metrics")
        httpx.get(f"{server.url}/metrics", headers={"Authorization": "Bearer no"})
        page = client.get("/metrics").text
    for reason in ("missing_api_key", "invalid_api_key"):
        assert f'client_errors_total{{reason="{reason}",status="401"}} 1.0' in page


def test_the_key_is_in_nothing_that_the_server_shows(server, client, caplog):
    shown = [repr(server), str(vars(server)), json.dumps(server.spec), server._repr_html_()]
    for path in ("/ready", "/metrics", "/docs", "/openapi.json", "/v1/models", "/nothing"):
        answer = client.get(path, headers=BEARER)
        shown += [answer.text, str(answer.headers)]
    shown.append(caplog.text)
    assert not [text for text in shown if KEY in text]


def test_a_server_in_a_process_of_its_own_never_shows_its_key():
    bad = KEY + " and more"
    ended = subprocess.run(
        [sys.executable, "-m", "benchlib", "serve", "--model", "tiny"],
        env={"PATH": "", "BENCHLIB_API_KEY": bad},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ended.returncode == 2
    assert "api_key: " in ended.stderr
    assert KEY not in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("host", "key", "warned"),
    [
        ("0.0.0.0", None, True),
        ("::", None, True),
        ("192.168.1.7", None, True),
        ("gpu-3.example", None, True),
        ("0.0.0.0", KEY, False),
        ("127.0.0.1", None, False),
        ("127.8.8.8", None, False),
        ("[::1]", None, False),
        ("localhost", None, False),
    ],
)
def test_an_open_door_is_told_at_the_start(caplog, monkeypatch, host, key, warned):
    monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", True)
    with caplog.at_level("WARNING", "uvicorn.error"):
        warn_of_open_door(host, key)
    assert ("Set BENCHLIB_API_KEY" in caplog.text) == warned
    assert KEY not in caplog.text


def test_serve_tells_of_an_open_door(capfd):
    with serve(FakePipeline(), name="open", host="0.0.0.0"):
        pass
    assert "whoever reaches 0.0.0.0 over the network" in capfd.readouterr().err
    with serve(FakePipeline(), name="open", host="0.0.0.0", api_key=KEY):
        pass
    assert capfd.readouterr().err == ""
