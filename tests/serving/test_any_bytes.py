"""Whatever bytes a client sends as method, path, headers and body, it gets a declared answer.

test_schemathesis.py keeps to requests that a description can make. This file does not.
"""

import http.client
import json
from contextlib import closing
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchlib.serving.server import serve
from benchmarks.fakes.fake_pipeline import FakePipeline

TIMEOUT_S = 60  # an answer that takes longer is a hang
EXAMPLES = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

IMAGE_ROUTES = ["/benchmark/generate", "/v1/images/generations"]
ROUTES = st.sampled_from(
    [
        *IMAGE_ROUTES,
        "/v1/models",
        "/v1/models/fake",
        "/images/name.png",
        "/health",
        "/ready",
        "/metrics",
        "/docs",
        "/openapi.json",
    ]
)
VISIBLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=30)
PATHS = ROUTES | st.tuples(ROUTES, VISIBLE).map("".join) | VISIBLE.map("/".__add__)
METHODS = st.sampled_from(["POST", "GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])

# 1) Headers: those that the server reads, and any other
READ = st.sampled_from(
    [
        "Content-Type",
        "Content-Encoding",
        "X-Request-ID",
        "X-Forwarded-Prefix",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "X-Forwarded-For",
        "Host",
        "Authorization",
        "Accept",
        "Cookie",
        "Range",
        "Upgrade",
    ]
)
NAMES = READ | st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,15}", fullmatch=True)
TYPES = [
    "application/json",
    "application/json; charset=utf-16",
    "text/plain",
    "multipart/form-data",
]
VALUES = st.sampled_from(TYPES) | st.text(
    st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=200
).map(str.strip)
FRAMING = {"content-length", "transfer-encoding", "expect", "connection", "upgrade"}
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=6).map(
    lambda pairs: [pair for pair in pairs if pair[0].lower() not in FRAMING]
)

# 2) Bodies: a good one, a good one with a value of any kind, one that was cut or changed, and noise
GOOD = {"prompt": "a cat", "num_inference_steps": 2, "width": 64, "height": 64, "seed": 1}
FIELDS = st.sampled_from([*GOOD, "n", "size", "lora", "scheduler", "response_format", "stream"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
ODD = st.dictionaries(FIELDS, JSON, max_size=3).map(lambda odd: json.dumps(GOOD | odd).encode())
WHOLE = json.dumps(GOOD).encode()
CUT = st.integers(0, len(WHOLE)).map(lambda end: WHOLE[:end])
CHANGED = st.tuples(st.integers(0, len(WHOLE) - 1), st.binary(max_size=4)).map(
    lambda change: WHOLE[: change[0]] + change[1] + WHOLE[change[0] + 1 :]
)
BODIES = st.just(WHOLE) | ODD | ODD | CUT | CHANGED | st.binary(max_size=200)


@pytest.fixture(scope="module")
def server():
    with serve(FakePipeline(), name="any bytes", max_pixel_steps=512 * 512 * 20) as server:
        yield server


def send(server, method, path, headers, body):
    """The answer's status, headers and body."""
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=TIMEOUT_S)
    with closing(connection):
        names = {name.lower() for name, _ in headers}
        connection.putrequest(method, path, skip_host="host" in names, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value.encode("latin-1"))
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


def check(server, method, path, headers, body):
    status, answered, content = send(server, method, path, headers, body)
    # httptools refuses what is no HTTP before it reaches the app, in words and with no id.
    if content == b'{"detail": "this is no HTTP"}':
        assert status == 400
        return
    assert status in {200, 307, 400, 404, 405, 413, 422, 501}, content
    assert answered["X-Request-ID"]
    assert len(answered["X-Request-ID"]) <= 128
    if method == "HEAD":
        assert content == b""
    elif status >= 400:
        error = json.loads(content)
        assert "error" in error or {"detail", "request_id"} == set(error)
    assert b"Traceback" not in content


def send_many(server, requests, number):
    """Send `number` checked requests, drawn as (method, path, headers, body)."""

    @settings(EXAMPLES, max_examples=number)
    @given(requests)
    def send_one(request):
        check(server, *request)

    send_one()
    assert httpx.get(f"{server.url}/health").status_code == 200


ANY = st.tuples(METHODS, PATHS, HEADERS, BODIES)
IN_JSON = HEADERS.map(lambda pairs: [("Content-Type", "application/json"), *pairs])
FOR_AN_IMAGE = st.tuples(st.just("POST"), st.sampled_from(IMAGE_ROUTES), IN_JSON, BODIES)


@pytest.mark.parametrize("requests", [ANY, FOR_AN_IMAGE], ids=["any", "for an image"])
def test_each_answer_is_declared(server, requests):
    send_many(server, requests, 150)


@pytest.mark.slow
@pytest.mark.parametrize("requests", [ANY, FOR_AN_IMAGE], ids=["any", "for an image"])
def test_thousands_of_answers_are_declared(server, requests):
    send_many(server, requests, 2500)
