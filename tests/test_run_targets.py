"""run_load on servers behind a password and behind TLS."""

import base64
import html
import json
import threading
from contextlib import contextmanager
from urllib.parse import quote

import pytest
import uvicorn

from benchlib import ClosedLoop, Workload, run_load
from benchlib.load.bearer import KEY_VARIABLE
from benchlib.report import write_report
from benchlib.serving.connection_limits import ConnectionLimits
from benchlib.serving.server import serve
from benchmarks.fakes.fake_pipeline import FakePipeline

from .load.conftest import wait_until
from .serving.test_tls import certificate_in

pytestmark = pytest.mark.usefixtures("idle_machine")


def test_a_user_and_a_password_in_a_url_reach_no_file(fake, tmp_path, capsys):
    url = fake.url.replace("http://", "http://lena:s3cret%21@")
    run = run_load(url, ClosedLoop(1), requests=2, study="shy", results=tmp_path)
    assert run.spec["target"]["url"] == fake.url
    assert run.summary()["ok"] == 2
    header = fake.seen()[-1]["authorization"]
    assert base64.b64decode(header.removeprefix("Basic ")) == b"lena:s3cret!"
    with pytest.raises(ValueError, match="url must be like") as refused:
        run_load("ftp://lena:s3cret@host", ClosedLoop(1), requests=1, results=tmp_path)
    write_report(tmp_path)
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    said = "".join(capsys.readouterr()) + str(refused.value) + repr(run) + run._repr_html_()
    for text in (*kept, said.encode()):
        assert b"lena" not in text
        assert b"s3cret" not in text


KEY = 'k3y/of"this+test<b>'
SPELLINGS = [KEY, json.dumps(KEY)[1:-1], quote(KEY, safe=""), html.escape(KEY), "k3y"]
SMALL = Workload(num_inference_steps=2, width=64, height=64)


def assert_nowhere(*texts, folder):
    """The key is in no file below `folder`, and in none of `texts`, in any spelling."""
    kept = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert kept
    for text in (*kept, *(text.encode() for text in texts)):
        assert not [spelling for spelling in SPELLINGS if spelling.encode() in text]


def shown(run):
    table = run.requests.to_string() + run.summary().to_string()
    return (repr(run), run._repr_html_(), str(run.record), table)


@pytest.mark.parametrize("api", ["benchmark", "openai"])
def test_a_servers_key_is_sent_and_reaches_no_file(tmp_path, capfd, caplog, api):
    with serve(FakePipeline(), name="locked", api_key=KEY, access_log=True) as server:
        options = {"requests": 2, "study": "shy", "results": tmp_path, "api": api}
        run = run_load(server, ClosedLoop(1), SMALL, **options)
        with pytest.raises(ValueError, match="warmup_s") as refused:
            run_load(server, ClosedLoop(1), SMALL, warmup_s=-1, **options)
    assert run.summary()["ok"] == 2
    write_report(tmp_path)
    said = "".join(capfd.readouterr())
    assert '"status": 200' in said  # the access log
    assert_nowhere(said, caplog.text, str(refused.value), *shown(run), folder=tmp_path)


async def repeat_key(scope, receive, send):
    """An ASGI app that refuses each request and repeats its key, in every spelling."""
    while (await receive()).get("more_body"):
        pass
    [given] = [value for name, value in scope["headers"] if name == b"authorization"]
    key = given.decode().removeprefix("Bearer ")
    assert key == KEY
    padding = "x" * 280  # the words that are kept end within the key
    spellings = [key, json.dumps(key), quote(key, safe=""), html.escape(key), padding, key]
    await send({"type": "http.response.start", "status": 401, "headers": []})
    await send({"type": "http.response.body", "body": " ".join(spellings).encode()})


def test_a_key_for_a_url_comes_from_the_environment_and_reaches_no_file(
    tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with listening(repeat_key) as url:
        run = run_load(url, ClosedLoop(1), requests=2, study="shy", results=tmp_path)
    assert run.requests["http_status"].tolist() == [401, 401]
    assert run.requests["error"].iloc[0].startswith("HTTP 401: (the key) ")
    write_report(tmp_path)
    assert_nowhere("".join(capfd.readouterr()), *shown(run), folder=tmp_path)
    monkeypatch.setenv(KEY_VARIABLE, KEY + " k3y")
    with pytest.raises(ValueError, match="no space") as refused:
        run_load(url, ClosedLoop(1), requests=1, results=tmp_path)
    assert_nowhere(str(refused.value), folder=tmp_path)


def test_without_a_key_a_locked_server_makes_no_image(tmp_path):
    with serve(FakePipeline(), name="locked", api_key=KEY) as server:
        run = run_load(server.url, ClosedLoop(1), SMALL, requests=2, results=tmp_path)
    assert run.requests["http_status"].tolist() == [401, 401]


async def make_image(scope, receive, send):
    """An ASGI app that answers each request with 200 and the time that an image took."""
    assert scope["type"] == "http"
    while (await receive()).get("more_body"):
        pass
    head = {"status": 200, "headers": [(b"content-type", b"application/json")]}
    await send({"type": "http.response.start", **head})
    await send({"type": "http.response.body", "body": b'{"time_s": 0.0}'})


@contextmanager
def listening(app, **options):
    """The URL of a real server of `app`."""
    config = uvicorn.Config(app, port=0, lifespan="off", log_level="error", **options)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started)
    [listener] = server.servers
    scheme = "https" if options else "http"
    try:
        yield f"{scheme}://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def certificate(tmp_path):
    """uvicorn's options for a certificate that nobody vouches for."""
    return certificate_in(tmp_path)


@pytest.fixture
def tls_url(certificate):
    """The URL of a real server with a certificate that nobody vouches for."""
    with listening(make_image, **certificate) as url:
        yield url


def test_a_certificate_that_nobody_vouches_for_is_refused_unless_asked(tls_url, tmp_path):
    options = {"requests": 2, "study": "tls", "results": tmp_path}
    refused = run_load(tls_url, ClosedLoop(1), **options)
    assert "none of 2 requests got an image" in refused.summary()["invalid_reason"]
    assert "certificate" in refused.requests["error"].iloc[0].lower()
    taken = run_load(tls_url, ClosedLoop(1), verify=False, **options)
    assert taken.summary()["ok"] == 2
    assert (refused.spec["verify"], taken.spec["verify"]) == (True, False)
    with pytest.raises(ValueError, match="verify must be True or False"):
        run_load(tls_url, ClosedLoop(1), verify="no", **options)


def test_a_server_of_ours_speaks_https(certificate, tmp_path):
    with serve(FakePipeline(), name="tls", api_key=KEY, **certificate) as server:
        options = {"requests": 2, "study": "tls", "results": tmp_path}
        refused = run_load(server, ClosedLoop(1), SMALL, **options)
        taken = run_load(server, ClosedLoop(1), SMALL, verify=False, **options)
    assert "certificate" in refused.requests["error"].iloc[0].lower()
    assert taken.summary()["ok"] == 2
    assert taken.spec["target"]["url"].startswith("https://127.0.0.1:")


def test_more_users_than_connections_are_told_before_and_named_after(tmp_path):
    """Each row that failed says which limit it met. Two images last until the first row failed."""
    small = ConnectionLimits(max_connections=2)
    pipe = FakePipeline()

    def a_row_failed():
        return any('"error":"' in rows.read_text() for rows in tmp_path.rglob("requests.jsonl"))

    def open_then():
        wait_until(a_row_failed)
        pipe.gate.set()

    with serve(pipe, name="crowded", limits=small, sizes=[(64, 64)]) as server:
        pipe.gate.clear()
        threading.Thread(target=open_then, daemon=True).start()
        with pytest.warns(RuntimeWarning, match="6 users need as many .* max_connections is 2"):
            run = run_load(server, ClosedLoop(6), SMALL, requests=30, results=tmp_path)
        few = run_load(server, ClosedLoop(2), SMALL, requests=2, results=tmp_path)
    errors = run.requests["error"].dropna()
    assert len(errors)
    assert all("this server's max_connections is 2" in error for error in errors)
    assert few.summary()["ok"] == 2


def test_the_record_says_what_was_in_force_at_the_door(tmp_path):
    limits = ConnectionLimits(max_connections=50, headers_s=7)
    options = {"deadline_s": 9.0, "max_per_client": 3, "max_queue_s": 70, "on_nonfinite": "allow"}
    with serve(FakePipeline(), name="door", limits=limits, **options) as server:
        run = run_load(server, ClosedLoop(1), SMALL, requests=1, results=tmp_path)
    target = json.loads((run.path / "run.json").read_text())["spec"]["target"]
    assert {name: target[name] for name in options} == options
    assert target["max_pixel_steps"] == 60 * 1024 * 1024
    assert target["limits"] == limits.model_dump()
