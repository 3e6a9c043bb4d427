"""Links to images, by OpenAI's client on real uvicorn; what is kept, and for how long."""

import base64
import io
import time
from contextlib import contextmanager
from types import SimpleNamespace

import httpx
import openai
import pytest
from PIL import Image

from benchlib.serving import image_links
from benchlib.serving.image_links import LEAST_LINKS_GIB, ImageLinks
from benchlib.serving.server import serve
from benchmarks.fakes.fake_pipeline import FakePipeline

STEPS = {"num_inference_steps": 1}


@contextmanager
def client_of(**options):
    with (
        serve(FakePipeline(), name="links", **options) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def client():
    with client_of() as client:
        yield client


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_link_leads_to_the_image(client, kind):
    options = {"response_format": "url", "output_format": kind, "n": 2}
    answer = client.images.generate(prompt="a", size="64x64", extra_body=STEPS, **options)
    links = [image.url for image in answer.data]
    assert [image.b64_json for image in answer.data] == [None, None]
    assert len({*links}) == 2
    for link in links:
        file = httpx.get(link)
        assert file.headers["content-type"] == f"image/{kind}"
        assert 500 < int(file.headers["cache-control"].rpartition("=")[2]) <= 600
        assert Image.open(io.BytesIO(file.content)).format == kind.upper()
        assert len(link.rpartition("/")[2]) > 32


def test_what_langchains_wrapper_sends_is_answered(client):
    """langchain_community's DallEAPIWrapper leaves response_format out, and reads `url`."""
    answer = client.images.generate(
        prompt="a", n=1, size="1024x1024", model="fake", quality="standard"
    )
    [image] = answer.data
    assert httpx.get(image.url).content == base64.b64decode(image.b64_json)


def test_what_other_clients_send_is_taken(client):
    """The fields of OpenAI's images that this server lacks change nothing."""
    more = {
        "background": "transparent", "moderation": "low", "quality": "hd", "style": "vivid",
        "user": "u", "size": "auto", "output_format": "png", "partial_images": 0,
    }  # fmt: skip
    plain = client.images.generate(prompt="a", response_format="b64_json", extra_body=STEPS)
    asked = client.images.generate(
        prompt="a", response_format="b64_json", extra_body=STEPS | more | {"input_fidelity": "low"}
    )
    assert asked.data[0].b64_json == plain.data[0].b64_json
    assert asked.data[0].url is None


def test_a_link_is_as_the_proxys_client_sees_it(client):
    forwarded = {
        "X-Forwarded-Host": "images.example:8443, inner",
        "X-Forwarded-Proto": "https, http",
        "X-Forwarded-Prefix": "/sdxl",
    }
    answer = client.images.generate(prompt="a", extra_body=STEPS, extra_headers=forwarded)
    assert answer.data[0].url.startswith("https://images.example:8443/sdxl/images/")
    bad = {"X-Forwarded-Host": "evil.example/x?", "X-Forwarded-Proto": "javascript"}
    answer = client.images.generate(prompt="a", extra_body=STEPS, extra_headers=bad)
    host = str(client.base_url).removesuffix("/v1/")
    assert answer.data[0].url.startswith(f"{host}/images/")


def test_a_link_that_is_over_says_so(client, monkeypatch):
    link = client.images.generate(prompt="a", extra_body=STEPS).data[0].url
    assert httpx.get(link).status_code == 200
    later = SimpleNamespace(monotonic=lambda: time.monotonic() + 601)
    monkeypatch.setattr(image_links, "time", later)
    over = httpx.get(link)
    assert over.status_code == 404
    assert "A link lasts 10 min" in over.json()["detail"]


def test_the_oldest_go_first_by_number():
    links = ImageLinks(max_links=10)
    names = [links.add(b"123", "png") for _ in range(12)]
    kept = [links.find(name) is not None for name in names]
    assert kept == [False] * 2 + [True] * 10
    assert links.held_bytes == 30


def test_the_oldest_go_first_by_bytes():
    links = ImageLinks(links_gib=LEAST_LINKS_GIB)
    third = bytes(links.max_bytes // 3)
    names = [links.add(third, "png") for _ in range(4)]
    assert [links.find(name) is not None for name in names] == [False, True, True, True]
    assert links.held_bytes <= links.max_bytes
    links.drop_all()
    assert links.held_bytes == 0


def test_the_metrics_count_what_is_kept(client):
    answer = client.images.generate(prompt="a", response_format="url", extra_body=STEPS)
    size = len(httpx.get(answer.data[0].url).content)
    page = httpx.get(str(client.base_url.join("/metrics"))).text
    [line] = [line for line in page.splitlines() if line.startswith("benchlib_link_bytes ")]
    assert float(line.split()[1]) >= size


@pytest.mark.parametrize("field", [{"link_s": 0}, {"max_links": 9}, {"links_gib": 0.1}])
def test_a_bad_bound_is_named(field):
    [name] = field
    with pytest.raises(ValueError, match=f"^{name}: "):
        serve(FakePipeline(), **field)
