"""What `serve` makes of its arguments before Ray starts: how many replicas, on what."""

import importlib.util
import logging

import pytest

pytest.importorskip("ray")

from benchlib.serving.engine.options import EngineOptions
from benchlib.serving.replicas import ray_fleet
from benchlib.serving.replicas.ray_fleet import make_ray_fleet, threads_for
from benchlib.serving.server import serve


def make(monkeypatch, *, gpus, **options):
    monkeypatch.setattr(ray_fleet, "visible_gpus", lambda address: gpus)  # noqa: ARG005
    replicas = options.pop("replicas")
    address = options.pop("address", None)
    return make_ray_fleet("tiny", EngineOptions(), options, replicas=replicas, address=address)


def test_auto_is_every_gpu(monkeypatch):
    assert len(make(monkeypatch, gpus=4, replicas="auto").replicas) == 4


def test_auto_without_a_gpu_is_one_replica_and_says_so(monkeypatch, caplog):
    with caplog.at_level(logging.WARNING):
        assert len(make(monkeypatch, gpus=0, replicas="auto").replicas) == 1
    assert "there is no GPU" in caplog.text


@pytest.mark.parametrize(
    ("recipe", "gpus", "is_warned"),
    [
        ("bf16+cudnn-tuned", 2, True),
        ("fastest-exact+cudnn-tuned", 2, True),
        ("fastest-exact", 2, False),
        ("bf16+cuda-graphs", 2, False),
        ("bf16+cudnn-tuned", 1, False),
    ],
)
def test_replicas_that_choose_their_own_kernels_are_told_of(
    monkeypatch, caplog, recipe, gpus, is_warned
):
    with caplog.at_level(logging.WARNING):
        make(monkeypatch, gpus=gpus, replicas="auto", recipe=recipe)
    assert ("a seed's bytes may differ between replicas" in caplog.text) == is_warned


def test_too_few_gpus_are_named(monkeypatch, caplog):
    with pytest.raises(ValueError, match=r"replicas: 3 need a GPU each, and there are 2"):
        make(monkeypatch, gpus=2, replicas=3)
    assert len(make(monkeypatch, gpus=2, replicas=3, device="cpu").replicas) == 3
    assert not caplog.text
    # A cluster may grow.
    assert len(make(monkeypatch, gpus=2, replicas=3, address="auto").replicas) == 3
    assert "3 need a GPU each, and the cluster has 2; the others wait" in caplog.text


def test_a_single_gpu_can_not_be_chosen(monkeypatch):
    with pytest.raises(ValueError, match=r"device: .* not 'cuda:1'"):
        make(monkeypatch, gpus=2, replicas=2, device="cuda:1")


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # noqa: ARG005
    with pytest.raises(ImportError, match=r"pip install 'benchlib\[ray\]'"):
        serve("tiny", replicas=2)


def test_the_cores_are_shared_unless_the_environment_says_otherwise(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads_for(2) is None
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads_for(10_000) == 1
    assert threads_for(1) >= 1
