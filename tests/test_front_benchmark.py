"""The front's benchmark: its client, its figures and its ratios."""

from urllib.parse import urlsplit

import psutil
import pytest

from benchlib.serving.door_options import DoorOptions
from benchlib.serving.image_links import ImageLinks
from benchlib.serving.server import Server
from benchmarks.fakes.instant_engine import KINDS
from benchmarks.front import Side, figures_of, measure_side


@pytest.mark.parametrize("kind", KINDS)
def test_each_side_is_measured_with_real_requests(kind):
    server = Server(
        KINDS[kind], host="127.0.0.1", port=0, name="front", log_level="warning",
        door=DoorOptions(), links=ImageLinks(), limits=None,
    )  # fmt: skip
    with server.start():
        side = Side(urlsplit(server.url).port, psutil.Process())
        found = measure_side(side, duration_s=0.2)
    assert len(found) == 4
    assert all(value > 0 for value in found.values())
    median_ms, p99_ms = found["one at a time, median ms"], found["one at a time, p99 ms"]
    assert median_ms <= p99_ms


def test_the_fleet_has_limits_and_ratios_round_by_round():
    found = {
        ("engine", "requests/s"): [1000.0, 500.0],
        ("fleet", "requests/s"): [500.0, 450.0],
        ("engine", "one at a time, median ms"): [1.0, 2.0],
        ("fleet", "one at a time, median ms"): [2.0, 2.0],
        ("replicas", "requests/s"): [600.0, 600.0],
        ("bare", "requests/s"): [300.0, 400.0],
    }
    figures = {(one.case, one.name): one for one in figures_of(found)}
    assert figures["fleet", "requests/s"].passed is False
    assert figures["fleet", "one at a time, median ms"].passed is True
    assert figures["engine", "requests/s"].passed is None
    assert figures["fleet / engine", "requests/s"].values == [0.5, 0.9]
    assert figures["fleet / engine", "one at a time, median ms"].values == [2.0, 1.0]
    assert figures["replicas", "requests/s"].passed is True
    assert figures["bare", "requests/s"].passed is None
    assert figures["replicas / bare", "requests/s"].values == [2.0, 1.5]
