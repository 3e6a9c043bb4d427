"""A Ray that can't be joined, in words. No Ray is started."""

import socket

import pytest

pytest.importorskip("ray")

import ray

from benchlib.serving.replicas.ray_session import RaySession, shutdown_refused, told_in_words


def test_nobody_at_the_address_is_told_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        words = rf"no Ray could be joined at '{address}' \(.*refused\); it must run there"
        with pytest.raises(ConnectionError, match=words), told_in_words(address, "2.60.0"):
            pytest.fail("Ray would have tried for minutes")


def test_another_version_of_ray_is_told():
    words = r"'auto' \(Version mismatch: Ray: 2.9.0\); .* of version 2.60.0"
    with pytest.raises(ConnectionError, match=words), told_in_words("auto", "2.60.0"):
        raise RuntimeError("Version mismatch:\n    Ray: 2.9.0\n")


def test_who_listens_is_left_to_ray():
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        with told_in_words(f"{host}:{port}", "2.60.0"):
            pass


def test_only_while_there_are_servers_ray_may_not_be_shut_down():
    with shutdown_refused(), pytest.raises(RuntimeError, match=r"^ray.shutdown\(\): servers"):
        ray.shutdown()
    assert not ray.is_initialized()
    ray.shutdown()


def test_a_head_that_has_died_is_not_called():
    session = RaySession("auto")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        session._gcs_address = f"127.0.0.1:{free.getsockname()[1]}"
        assert not session._serves()
    with socket.create_server(("127.0.0.1", 0)) as server:
        session._gcs_address = f"127.0.0.1:{server.getsockname()[1]}"
        assert not session._serves()  # whoever comes in its place knows nothing of this process
