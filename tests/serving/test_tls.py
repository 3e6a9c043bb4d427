"""HTTPS by uvicorn, with a certificate that is made for the test."""

import asyncio
import ssl

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from benchlib.__main__ import main
from benchlib.serving.handshakes import limit_handshakes
from benchlib.serving.server import serve
from benchlib.serving.standalone import Settings, app_from
from benchmarks.fakes.fake_pipeline import FakePipeline
from tests.serving.test_connection_limits import (
    ASK_LARGE,
    LargePipeline,
    connect,
    limits,
    read_all,
    wait_for_close,
)
from tests.serving.test_server import SMALL


def certificate_in(folder, authority=None):
    """The options of a server whose certificate is for 127.0.0.1; its files are in `folder`."""
    certificate = (authority or trustme.CA()).issue_cert("127.0.0.1", "localhost")
    key, chain = folder / "key.pem", folder / "chain.pem"
    certificate.private_key_pem.write_to_path(key)
    for part in certificate.cert_chain_pems:
        part.write_to_path(chain, append=True)
    return {"ssl_keyfile": str(key), "ssl_certfile": str(chain)}


@pytest.fixture
def authority():
    return trustme.CA()


@pytest.fixture
def trusting(authority):
    """What a client needs in order to trust the authority."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_serve_speaks_https(tmp_path, authority, trusting):
    with serve(FakePipeline(), name="tls", **certificate_in(tmp_path, authority)) as server:
        assert server.url.startswith("https://127.0.0.1:")
        url = f"{server.url}/benchmark/generate"
        assert httpx.post(url, json=SMALL, verify=trusting, timeout=60).status_code == 200
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.post(url, json=SMALL)
        images = {"prompt": "a", "size": "64x64", "num_inference_steps": 1}
        answer = httpx.post(f"{server.url}/v1/images/generations", json=images, verify=trusting)
        link = answer.json()["data"][0]["url"]
        assert link.startswith(server.url)
        assert httpx.get(link, verify=trusting).status_code == 200


def test_a_client_that_reads_nothing_over_https_is_cut_off(tmp_path, authority, trusting):
    options = certificate_in(tmp_path, authority)
    lasting = limits(unread_s=0.3)
    with serve(LargePipeline(), name="tls", limits=lasting, **options) as server:
        plain = connect(server, SO_RCVBUF=2**16)
        client = trusting.wrap_socket(plain, server_hostname="127.0.0.1")
        client.sendall(ASK_LARGE)
        client.recv(1)  # the answer has begun
        wait_for_close(server, 0)
        client.close()


@pytest.mark.parametrize("hello", [b"", b"\x16\x03\x01"])
def test_a_handshake_that_does_not_end_is_closed(tmp_path, hello):
    """asyncio's own limit of 60 s is longer than the socket's patience here."""
    options = certificate_in(tmp_path)
    with serve(FakePipeline(), name="tls", limits=limits(headers_s=0.3), **options) as server:
        client = connect(server, hello)
        client.settimeout(45)
        assert read_all(client) == b""


def test_a_loop_makes_other_servers_as_before():
    async def look():
        loop = asyncio.get_running_loop()
        undo = limit_handshakes(loop, 1.0)
        plain = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        plain.close()
        undo()
        return loop.create_server

    assert asyncio.run(look()).__name__ == "create_server"


def test_a_certificate_that_cannot_be_used_is_named(tmp_path, capsys):
    options = certificate_in(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    encrypted = tmp_path / "encrypted.pem"
    key = serialization.load_pem_private_key((tmp_path / "key.pem").read_bytes(), None)
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    for fault in (
        {"ssl_certfile": "/nowhere.pem"},
        {"ssl_certfile": options["ssl_keyfile"]},
        options | {"ssl_keyfile": certificate_in(other)["ssl_keyfile"]},
        options | {"ssl_keyfile": str(encrypted)},
    ):
        with pytest.raises(ValueError, match="ssl_certfile, ssl_keyfile: "):
            serve(FakePipeline(), name="tls", **fault)
    with pytest.raises(SystemExit, match="2"):
        main(["serve", "--ssl-certfile", "/nowhere.pem"])
    assert "'/nowhere.pem' and None are no certificate" in capsys.readouterr().err


def test_the_app_alone_cannot_take_a_certificate():
    with pytest.raises(ValueError, match="give uvicorn itself --ssl-certfile"):
        app_from(Settings(ssl_certfile="chain.pem"))
