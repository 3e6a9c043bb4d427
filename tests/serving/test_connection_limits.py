"""Clients that send half, send nothing, read nothing or are too many: real sockets, real uvicorn."""

import http.client
import os
import socket
import threading
from contextlib import contextmanager, suppress

import httpx
import pytest
from PIL import Image
from pydantic import ValidationError

from benchlib.serving import connection_limits, seldom_log
from benchlib.serving.connection_limits import (
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    ConnectionLimits,
)
from benchlib.serving.server import serve
from benchmarks.fakes.fake_pipeline import FakePipeline
from tests.load.conftest import wait_until

SMALL = b'{"prompt": "a", "num_inference_steps": 1, "width": 64, "height": 64}'
HEAD = b"POST /benchmark/generate HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(SMALL) + SMALL
HEALTH = b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n"
FOREVER_S = 10_000


def limits(**changes):
    """Limits that no test reaches, but for `changes`."""
    never = dict.fromkeys(("headers_s", "body_s", "keep_alive_s", "unread_s"), FOREVER_S)
    return ConnectionLimits(**never | changes)


@contextmanager
def serving(pipeline=None, **changes):
    with serve(pipeline or FakePipeline(), name="limits", limits=limits(**changes)) as server:
        yield server


def connect(server, *sends, **options):
    port = int(server.url.rsplit(":", 1)[1])
    client = socket.socket()
    for option, value in options.items():
        client.setsockopt(socket.SOL_SOCKET, getattr(socket, option), value)
    client.settimeout(60)  # for a test that would hang
    client.connect(("127.0.0.1", port))
    for data in sends:
        client.sendall(data)
    return client


def read_all(client):
    """What the server sends until it closes. A reset is an end too."""
    received = b""
    with suppress(ConnectionResetError):
        while data := client.recv(2**20):
            received += data
    client.close()
    return received


def read_answer(client):
    """The head of one answer of a connection that goes on."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += client.recv(2**16)
    return received


def check_alive(server):
    assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200


# -- time ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "limit", "answer"),
    [
        (b"", "headers_s", b""),
        (b"\r\n\r\n", "headers_s", b""),
        (b"GET /hea", "headers_s", b"HTTP/1.1 408 Request Timeout"),
        (HEALTH[:-2], "headers_s", b"HTTP/1.1 408 Request Timeout"),
        (WHOLE[:-1], "body_s", b"HTTP/1.1 408 Request Timeout"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{", "body_s", b"HTTP/1.1 408"),
        (HEALTH, "keep_alive_s", b"HTTP/1.1 200 OK"),
        (HEALTH + b"\r\n\r\n", "keep_alive_s", None),
        (HEALTH + HEALTH[:20], "headers_s", b"HTTP/1.1 200 OK"),
        (WHOLE + WHOLE[:-1], "body_s", b"HTTP/1.1 200 OK"),
    ],
)
def test_a_client_that_is_too_late_is_closed(sent, limit, answer):
    changes = {limit: 0.2}
    if answer is None:  # empty lines begin the wait for headers
        changes["headers_s"] = 0.2
        answer = b"HTTP/1.1 200 OK"
    with serving(**changes) as server:
        received = read_all(connect(server, sent))
        check_alive(server)
    assert received.startswith(answer)
    if not answer:
        assert received == b""
    if answer == b"HTTP/1.1 200 OK" and sent not in (HEALTH, HEALTH + b"\r\n\r\n"):
        assert b"HTTP/1.1 408 Request Timeout" in received


@pytest.mark.parametrize(
    ("begin", "drip", "limit"),
    [
        (b"", b"\r\n", "headers_s"),
        (b"GET / HTTP/1.1\r\n", b"A: b\r\n", "headers_s"),
        (WHOLE[: len(WHOLE) - len(SMALL)], b" ", "body_s"),
    ],
)
def test_dripping_earns_no_more_time(begin, drip, limit):
    with serving(**{limit: 0.2}) as server:
        client = connect(server, begin)
        closed = threading.Event()

        def send_drops():
            while not closed.wait(0.02):
                try:
                    client.send(drip)
                except OSError:
                    return

        thread = threading.Thread(target=send_drops)
        thread.start()
        read_all(client)
        closed.set()
        thread.join()
        check_alive(server)


def test_a_request_that_waits_for_its_image_has_no_limit_here():
    pipeline = FakePipeline()
    with serving(pipeline, headers_s=0.2, body_s=0.2, keep_alive_s=0.2) as server:
        pipeline.gate.clear()
        pipeline.stepping.clear()
        client = connect(server, WHOLE)
        assert pipeline.stepping.wait(30)
        strangers = [connect(server), connect(server, HEALTH)]
        for stranger in strangers:
            read_all(stranger)
        pipeline.gate.set()
        assert read_all(client).startswith(b"HTTP/1.1 200 OK")


# -- answers that nobody reads ---------------------------------------------------------------------


class LargePipeline(FakePipeline):
    """Its images are noise, so that the answers have 10 MB. The kernel keeps at most some 4."""

    image = Image.frombytes("RGB", (1600, 1600), os.urandom(1600 * 1600 * 3))

    def decode(self, works):
        super().decode(works)
        return [self.image for _ in works]


LARGE = b'{"prompt": "a", "num_inference_steps": 1, "response_format": "b64_json"}'
ASK_LARGE = (
    b"POST /v1/images/generations HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n" % len(LARGE)
) + LARGE


def open_connections(server):
    return server._uvicorn.server_state.connections


def wait_for_close(server, count):
    """Wait until the server has `count` connections. pytest's own limit ends a wait in vain."""
    pause = threading.Event()
    while len(open_connections(server)) > count:
        pause.wait(0.01)


def test_a_client_that_reads_nothing_is_cut_off():
    with serving(LargePipeline(), unread_s=0.3) as server:
        client = connect(server, ASK_LARGE, SO_RCVBUF=2**16)
        client.recv(1)  # the answer has begun
        wait_for_close(server, 0)
        received = read_all(client)
        check_alive(server)
    assert len(received) < 8_000_000


def test_unread_answers_have_a_bound_on_memory():
    with serving(LargePipeline(), unread_gib=12_000_000 / 2**30) as server:
        first = connect(server, ASK_LARGE, SO_RCVBUF=2**16)
        first.recv(1)
        second = connect(server, ASK_LARGE, SO_RCVBUF=2**16)
        second.recv(1)
        wait_for_close(server, 1)
        # The later one has its answer still.
        answer = b"H"
        length = None
        while length is None or len(answer) < length:
            answer += second.recv(2**20)
            head, found, _ = answer.partition(b"\r\n\r\n")
            if found:
                size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                length = len(head) + 4 + size
        assert answer.startswith(b"HTTP/1.1 200 OK")
        second.close()
        first.close()


# -- too much and too many -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        b"".join(b"A%d: b\r\n" % n for n in range(MAX_HEADERS)) + b"\r\n",
        b"A: %s\r\n\r\n" % (b"b" * MAX_HEADER_BYTES),
        b"A: " + b"b" * 2**24,
        b"A: b\r\n" * 2**17,
    ],
    ids=["many", "long", "endless", "many and endless"],
)
def test_too_many_headers_are_refused(headers):
    with serving() as server:
        client = connect(server)
        sender = threading.Thread(target=_send, args=(client, HEALTH[:-2] + headers))
        sender.start()
        received = read_all(client)
        sender.join()
        check_alive(server)
    assert received.startswith(b"HTTP/1.1 431 Request Header Fields Too Large")


def _send(client, data):
    with suppress(OSError):
        client.sendall(data)


def test_as_many_headers_as_allowed_are_read():
    many = b"".join(b"A%d: b\r\n" % n for n in range(MAX_HEADERS - 2))
    with serving() as server:
        client = connect(server, HEALTH[:-2] + many + b"\r\n")
        assert read_answer(client).startswith(b"HTTP/1.1 200 OK")
        client.close()


@pytest.mark.parametrize("trailer", [b"0\r\nA: " + b"b" * 2**20, b"1;" + b"x" * 2**20])
def test_what_surrounds_a_body_in_chunks_has_a_bound(trailer):
    with serving() as server:
        client = connect(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        sender = threading.Thread(target=_send, args=(client, trailer))
        sender.start()
        received = read_all(client)
        sender.join()
        check_alive(server)
    assert received == b"" or received.startswith(b"HTTP/1.1 431")


def test_a_body_is_refused_by_its_announced_length():
    with serving(body_s=0.2) as server:
        client = connect(server, HEAD + b"Content-Length: 10000000000000\r\n\r\n")
        assert read_answer(client).startswith(b"HTTP/1.1 413")
        read_all(client)  # it closes, because the body does not come
        client = connect(
            server, HEAD + b"Expect: 100-continue\r\nContent-Length: 10000000000000\r\n\r\n"
        )
        assert read_answer(client).startswith(b"HTTP/1.1 413")
        client.close()


def test_one_connection_too_many_closes_the_one_that_is_idle_for_longest():
    with serving(max_connections=3) as server:
        idle = connect(server)
        asked = connect(server, HEALTH)
        read_answer(asked)
        expects = HEAD + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n"
        half = connect(server, expects)
        assert read_answer(half).startswith(b"HTTP/1.1 100 Continue")
        idle_too = connect(server)
        assert read_all(idle) == b""
        asked.sendall(HEALTH)  # it has been idle for less time now
        read_answer(asked)
        check_alive(server)
        assert read_all(half).startswith(b"HTTP/1.1 503 Service Unavailable")
        read_answer_of_next = connect(server, HEALTH)
        read_answer(read_answer_of_next)
        for client in (asked, idle_too, read_answer_of_next):
            client.close()


@pytest.fixture
def log_lines(monkeypatch):
    """The lines of uvicorn's log, which it keeps from pytest's own handler."""
    lines = []
    monkeypatch.setattr(seldom_log.log, "handle", lambda record: lines.append(record.getMessage()))
    return lines


def told_of_the_limit(received, count):
    words = f"too many connections: this server's max_connections is {count}"
    return b"HTTP/1.1 503 Service Unavailable" in received and words.encode() in received


def metric(server, line):
    """A figure of /metrics, such as `benchlib_images_total{route="/v1"}`."""
    page = httpx.get(f"{server.url}/metrics", timeout=60).text
    [found] = [one for one in page.splitlines() if one.startswith(f"{line} ")]
    return float(found.split()[-1])


def test_an_idle_client_that_has_to_leave_may_have_one_more_answer(log_lines):
    """It may just be sending its next request."""
    with serving(max_connections=2) as server:
        clients = [connect(server, HEALTH) for _ in range(2)]
        for client in clients:
            read_answer(client)
        for _ in range(5):
            clients.append(connect(server, HEALTH))
            read_answer(clients[-1])
        for client in clients[:5]:
            client.sendall(HEALTH)
            assert read_all(client).endswith(b'{"status":"alive"}')
        closed = metric(server, 'benchlib_closed_connections_total{limit="max_connections"}')
        for client in clients[5:]:
            client.close()
    assert closed >= 5
    assert log_lines == [
        "Connections closed or refused, as 2 are the most (max_connections). "
        "Since the last such line: 1"
    ]


def test_clients_that_have_to_leave_and_stay_are_few(monkeypatch):
    monkeypatch.setattr(connection_limits, "MOST_LINGERING", 2)
    with serving(max_connections=4) as server:
        clients = []
        for _ in range(20):
            clients.append(connect(server, HEALTH))
            read_answer(clients[-1])
        wait_for_close(server, 4 + 2)
        for client in clients:
            client.close()


def test_requests_inside_are_never_closed_for_others():
    pipeline = FakePipeline()
    with serving(pipeline, max_connections=2) as server:
        pipeline.gate.clear()
        pipeline.stepping.clear()
        inside = [connect(server, WHOLE) for _ in range(2)]
        assert pipeline.stepping.wait(30)
        refused = connect(server, HEALTH)
        received = read_all(refused)
        assert told_of_the_limit(received, 2)
        assert b"retry-after: 1" in received
        pipeline.gate.set()
        for client in inside:
            assert read_answer(client).startswith(b"HTTP/1.1 200 OK")
            client.close()


def test_bad_limits_are_named():
    with pytest.raises(ValidationError, match="headers_s"):
        ConnectionLimits(headers_s=0)
    with pytest.raises(ValidationError, match="max_connections"):
        ConnectionLimits(max_connections=0)
    assert ConnectionLimits(max_connections=7).connections == 7
    assert 1 <= ConnectionLimits().connections <= 4096


# -- broken requests -------------------------------------------------------------------------------


def test_broken_requests_are_counted_and_logged_once(log_lines):
    with serving() as server:
        for sent in [b"\x16\x03\x01 hello\r\n\r\n", b"GET\r\n\r\n", b"\0" * 100] * 2:
            received = read_all(connect(server, sent))
            assert received.startswith(b"HTTP/1.1 400 Bad Request")
            assert b"this is no HTTP" in received
        count = metric(server, 'benchlib_client_errors_total{reason="not_http",status="400"}')
    assert count == 6
    assert log_lines == ["Requests that are no HTTP got 400. Since the last such line: 1"]


def test_a_line_tells_of_what_came_since_the_last(log_lines, monkeypatch):
    line = seldom_log.SeldomLine("so many: %d")
    for _ in range(3):
        line.note()
    monkeypatch.setattr(seldom_log, "EVERY_S", 0.0)
    line.note()
    assert log_lines == ["so many: 1", "so many: 3"]


# -- clients that close their side -----------------------------------------------------------------


def test_a_client_that_sends_no_more_gets_its_answer():
    pipeline = FakePipeline()
    with serving(pipeline) as server:
        pipeline.gate.clear()
        pipeline.stepping.clear()
        client = connect(server, WHOLE)
        assert pipeline.stepping.wait(30)
        client.shutdown(socket.SHUT_WR)
        # What an HTTP client passes over; asyncio has seen the end by now.
        assert client.recv(2**16) == b"HTTP/1.1 100 Continue\r\n\r\n"
        pipeline.gate.set()
        received = read_all(client)
    assert received.startswith(b"HTTP/1.1 200 OK")
    assert b"connection: close" in received.lower()
    assert b'"time_s"' in received


def test_python_s_own_client_passes_over_the_probe():
    pipeline = FakePipeline()
    with serving(pipeline) as server:
        pipeline.gate.clear()
        pipeline.stepping.clear()
        client = http.client.HTTPConnection("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
        client.request("POST", "/benchmark/generate", SMALL, {"Content-Type": "application/json"})
        assert pipeline.stepping.wait(30)
        client.sock.shutdown(socket.SHUT_WR)
        pipeline.gate.set()
        answer = client.getresponse()
        assert answer.status == 200
        assert answer.read()
        client.close()


def test_a_client_that_has_left_loses_its_work():
    """The same FIN comes; the reset that follows tells them apart."""
    pipeline = FakePipeline()
    with serving(pipeline) as server:
        pipeline.gate.clear()
        pipeline.stepping.clear()
        connect(server, WHOLE).close()
        assert pipeline.stepping.wait(30)
        wait_for_close(server, 0)
        pipeline.gate.set()
        wait_until(
            lambda: metric(server, 'benchlib_cancellations_total{reason="client_gone"}') == 1
        )


@pytest.mark.parametrize("sent", [b"", HEALTH, WHOLE[:-1], WHOLE.replace(b"1.1", b"1.0")])
def test_a_client_that_closes_its_side_without_a_wait_is_closed(sent):
    pipeline = FakePipeline()
    with serving(pipeline) as server:
        client = connect(server, sent)
        if sent == HEALTH:
            read_answer(client)
        client.shutdown(socket.SHUT_WR)
        assert b"100 Continue" not in read_all(client)
        check_alive(server)


# -- other protocols -------------------------------------------------------------------------------


def test_a_client_that_offers_another_protocol_is_answered_in_this_one():
    # So does Java's own client with its first request.
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    length = b"Content-Length: %d\r\n\r\n" % len(SMALL)
    with serving() as server:
        for packets in ([HEAD + offer + length + SMALL], [HEAD + offer + length, SMALL]):
            client = connect(server)
            for packet in packets:
                client.sendall(packet)
            assert read_answer(client).startswith(b"HTTP/1.1 200 OK")
            client.sendall(WHOLE)
            assert b"HTTP/1.1 200 OK" in read_answer(client)
            client.close()
