"""What holds for every request: a proxy's prefix, and HEAD; on real uvicorn with a fake model."""

import socket
import threading
from contextlib import contextmanager

import httpx
import pytest

from benchlib.serving.app import create_app
from benchlib.serving.engine.engine import Engine
from benchlib.serving.server import make_uvicorn, serve
from benchmarks.fakes.fake_pipeline import FakePipeline

SMALL = {"prompt": "a", "size": "64x64", "num_inference_steps": 1, "response_format": "url"}


@contextmanager
def by_uvicorn(root_path):
    """The app on uvicorn, as `uvicorn benchlib.serving.app:app --root-path` starts it."""
    engine = Engine(FakePipeline())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        options = {"root_path": root_path, "log_level": "error"}
        server = make_uvicorn(create_app(engine), **options)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        engine.settled.wait()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def by_serve(root_path):
    with serve(FakePipeline(), name="prefix", root_path=root_path) as server:
        yield server.url


@contextmanager
def untold(_):
    with serve(FakePipeline(), name="prefix") as server:
        yield server.url


FORWARDED = {"X-Forwarded-Prefix": "/sdxl"}


@pytest.mark.parametrize(
    ("start", "root_path", "headers"),
    [
        (by_uvicorn, "/sdxl", {}),
        (by_uvicorn, "/sdxl/", {}),
        (by_uvicorn, "sdxl", {}),
        (by_serve, "/sdxl", {}),
        (untold, "", FORWARDED),
    ],
)
@pytest.mark.parametrize("left_on", ["", "/sdxl"], ids=["stripped", "left on"])
def test_behind_a_proxys_prefix_all_is_as_ever(start, root_path, headers, left_on):
    with start(root_path) as url, httpx.Client(base_url=url, headers=headers) as client:
        # 1) Errors have OpenAI's shape
        images = f"{left_on}/v1/images/generations"
        bad = client.post(images, json=SMALL | {"n": 0})
        assert (bad.status_code, bad.json()["error"]["param"]) == (400, "n")
        assert client.get(f"{left_on}/v1/nothing").json().keys() == {"error"}
        assert client.get(f"{left_on}/nothing").json().keys() == {"detail", "request_id"}

        # 2) Links have the prefix, and lead to the image on both ways
        link = client.post(images, json=SMALL).json()["data"][0]["url"]
        assert link.startswith(f"{url}/sdxl/images/")
        assert client.get(link).headers["content-type"] == "image/png"
        assert client.get(link.replace("/sdxl", left_on)).status_code == 200

        # 3) The route's label has none
        page = client.get(f"{left_on}/metrics").text
        assert 'benchlib_images_total{route="/v1/images/generations"} 1.0' in page

        # 4) The page of docs finds the schema, which names the prefix
        assert "url: '/sdxl/openapi.json'" in client.get(f"{left_on}/docs").text
        schema = client.get(f"{left_on}/openapi.json").json()
        assert schema["servers"] == [{"url": "/sdxl"}]
        assert "/v1/models" in schema["paths"]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/v1/models"])
def test_a_prefix_that_is_one_of_our_own_folders(path):
    with by_serve("/v1") as url:
        answer = httpx.get(url + path)
        assert answer.status_code == (200 if path == "/v1/models" else 404)


@pytest.mark.parametrize("prefix", ["/a b", "//evil.example", "x", "/a/../b?", "/\u00fc"])
def test_a_prefix_that_is_none_is_ignored(prefix):
    with untold("") as url:
        answer = httpx.get(f"{url}/docs", headers={b"X-Forwarded-Prefix": prefix.encode()})
        assert "url: '/openapi.json'" in answer.text


def test_head_is_get_without_a_body():
    with untold("") as url, httpx.Client(base_url=url) as client:
        for path in ("/health", "/ready", "/metrics", "/docs", "/v1/models", "/nothing"):
            head = client.head(path)
            get = client.get(path)
            assert head.status_code == get.status_code
            assert head.headers["content-type"] == get.headers["content-type"]
            assert head.content == b""
            if path != "/metrics":
                assert head.headers["content-length"] == get.headers["content-length"]
        assert client.head("/benchmark/generate").status_code == 405


def test_after_head_the_connection_goes_on():
    """A body after a HEAD's answer would be read as the next answer."""
    with untold("") as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            request = "{} /health HTTP/1.1\r\nHost: x\r\n{}\r\n"
            connection.sendall(request.format("HEAD", "").encode())
            connection.sendall(request.format("GET", "Connection: close\r\n").encode())
            answers = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answers.count(b"HTTP/1.1 200 OK") == 2
    assert answers.count(b'{"status":"alive"}') == 1
