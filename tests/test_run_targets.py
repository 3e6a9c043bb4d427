"""run_load on servers behind a password and behind TLS."""

import base64
import threading

import pytest
import trustme
import uvicorn

from benchlib import ClosedLoop, run_load
from benchlib.report import write_report

from .load.conftest import wait_until

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


async def make_image(scope, receive, send):
    """An ASGI app that answers each request with 200 and the time that an image took."""
    assert scope["type"] == "http"
    while (await receive()).get("more_body"):
        pass
    head = {"status": 200, "headers": [(b"content-type", b"application/json")]}
    await send({"type": "http.response.start", **head})
    await send({"type": "http.response.body", "body": b'{"time_s": 0.0}'})


@pytest.fixture
def tls_url(tmp_path):
    """The URL of a real server with a certificate that nobody vouches for."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    key, chain = tmp_path / "key.pem", tmp_path / "chain.pem"
    certificate.private_key_pem.write_to_path(key)
    for part in certificate.cert_chain_pems:
        part.write_to_path(chain, append=True)
    config = uvicorn.Config(
        make_image, port=0, lifespan="off", ssl_keyfile=key, ssl_certfile=chain, log_level="error"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started)
    [listening] = server.servers
    yield f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


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
