"""Statistics against numbers worked out by hand, and percentiles against their definition."""

import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchlib.study import statistics
from benchlib.study.statistics import carried_percentiles, percentile, summarise

NAN = math.nan


@pytest.mark.parametrize(
    ("values", "q", "expected"),
    [
        ([15, 20, 35, 40, 50], 0.3, 20),  # rank 1.5, so the 2nd
        ([50, 15, 40, 20, 35], 0.4, 20),  # rank 2 exactly, in any order
        ([15, 20, 35, 40, 50], 0.5, 35),
        (range(1, 101), 0.95, 95),
        (range(1, 101), 0.99, 99),
        (range(1, 11), 0.9, 9),  # n(1-q) is 1 exactly, which floats would miss
        ([1, 2], 0.5, 1),
        ([1], 0.5, None),  # n(1-q) < 1
        (range(1, 20), 0.95, None),
        (range(1, 21), 0.95, 19),
        ([], 0.5, None),
        ([1, 2, 3, NAN], 0.5, 2),
        ([NAN, 1, 2, 3], 0.75, 3),
        ([1, NAN, NAN, NAN], 0.5, None),  # the rank falls among those that never ended
    ],
)
def test_percentile_by_hand(values: list[float], q: float, expected: float | None) -> None:
    assert percentile(values, q) == expected


@pytest.mark.parametrize("q", [0, 1, -0.1, 95])
def test_percentile_refuses_what_is_no_share(q: float) -> None:
    with pytest.raises(ValueError, match="q must be between 0 and 1"):
        percentile([1, 2, 3], q)


@given(
    values=st.lists(st.floats(0, 1e6), min_size=1, max_size=200),
    censored=st.integers(0, 50),
    q=st.sampled_from([0.5, 0.9, 0.95, 0.99]),
)
def test_percentile_is_a_measured_value_that_enough_do_not_exceed(values: list[float], censored: int, q: float) -> None:
    n = len(values) + censored
    found = percentile(values + [NAN] * censored, q)
    if found is None:
        assert n * (1 - q) < 1 + 1e-9 or len(values) < n * q + 1e-9
    else:
        assert found in values
        assert sum(value <= found for value in values) >= n * q - 1e-9
        assert sum(value < found for value in values) < n * q + 1e-9


@given(values=st.lists(st.floats(0, 1e6), min_size=20, max_size=300))
def test_percentiles_do_not_cross(values: list[float]) -> None:
    found = [percentile(values, q) for q in carried_percentiles(len(values))]
    assert len(found) >= 3
    assert all(a is not None and b is not None and a <= b for a, b in pairwise(found))


def test_carried_percentiles() -> None:
    assert carried_percentiles(1) == ()
    assert carried_percentiles(2) == (0.5,)
    assert carried_percentiles(19) == (0.5, 0.9)
    assert carried_percentiles(20) == (0.5, 0.9, 0.95)
    assert carried_percentiles(999) == (0.5, 0.9, 0.95, 0.99)
    assert carried_percentiles(1000) == (0.5, 0.9, 0.95, 0.99, 0.999)


REFUSED: dict[str, Any] = {
    "http_status": 503,
    "error": "503: full",
    "queue_s": None,
    "total_s": None,
    "latency_s": 0.01,
    "done_s": 4.01,
}
CENSORED: dict[str, Any] = {
    "http_status": None,
    "error": "censored: the run was cut",
    "done_s": None,
    "latency_s": None,
    "queue_s": None,
    "total_s": None,
}


def test_summary_by_hand(made: SimpleNamespace) -> None:
    rows = [
        made.row(0, phase="warmup", scheduled_s=1.0, done_s=2.0),
        made.row(1, phase="warmup", scheduled_s=2.9, done_s=3.9),  # done inside the window: counts as throughput
        made.row(2),
        made.row(3, latency_s=2.0, done_s=6.0, queue_s=1.5, total_s=1.8),
        made.row(4, latency_s=3.0, done_s=24.0, queue_s=2.5, total_s=2.9),  # done after it: does not
        made.row(5, **REFUSED),
        made.row(6, **REFUSED),
        made.row(7, **CENSORED),
    ]
    telemetry = made.telemetry(3)
    telemetry["rss_gib"] = [0.5, 0.9, 0.7]
    got = summarise(made.record(), made.requests(rows), telemetry)
    assert (got["requests"], got["ok"], got["failed"], got["censored"]) == (6, 3, 2, 1)
    assert got["throughput_images_per_s"] == pytest.approx(3 / 20)
    assert got["latency_p50_s"] == 3.0  # the third of six, of which three never gave an image
    assert got["latency_p90_s"] is None
    assert got["latency_mean_s"] == pytest.approx(2.0)
    assert got["latency_max_s"] == 3.0
    assert got["queue_share"] == pytest.approx(4.5 / 6)
    assert got["denoise_mean_s"] == pytest.approx(0.25)
    assert got["network_and_client_median_s"] == pytest.approx(0.1)
    assert got["rss_peak_gib"] == 0.9
    assert got["cuda_allocated_peak_gib"] is None
    assert got["generator_cpu_cores"] == 0.07
    assert got["errors"] == {"HTTP 503": 2}
    assert got["valid"] is True
    assert got["invalid_reason"] is None
    assert got["latency_p50_s_interval"] is None
    assert "independent runs" in got["latency_interval_note"]


def test_refusing_quickly_does_not_look_fast(made: SimpleNamespace) -> None:
    rows = [made.row(i) for i in range(90)] + [made.row(i, **REFUSED) for i in range(90, 100)]
    got = summarise(made.record(), made.requests(rows), made.telemetry(0))
    assert got["latency_p90_s"] == 1.0
    assert got["latency_p95_s"] is None


@pytest.mark.parametrize(
    ("rows", "changes", "reason"),
    [
        ([], {}, "no request was scheduled"),
        ([REFUSED], {}, "none of 1 requests"),
        ([{}], {"status": "interrupted", "error": "by the user"}, "interrupted: by the user"),
        ([{}], {"status": "running", "outcome": None}, "killed"),
    ],
)
def test_a_run_that_can_not_be_believed_says_why(
    made: SimpleNamespace, rows: list[Any], changes: dict[str, Any], reason: str
) -> None:
    got = summarise(made.record(**changes), made.requests([made.row(**row) for row in rows]), made.telemetry(0))
    assert got["valid"] is False
    assert reason in got["invalid_reason"]


def test_errors_are_counted_by_kind(made: SimpleNamespace) -> None:
    timeout = {"http_status": None, "error": "timeout: no answer within 600 s"}
    rows = [made.row(0, **timeout), made.row(1, **timeout), made.row(2, **REFUSED), made.row(3, **CENSORED)]
    assert statistics.errors_by_kind(made.requests(rows)) == {"timeout": 2, "HTTP 503": 1}


def test_parts_add_up_to_the_latency(made: SimpleNamespace) -> None:
    untold = {f"{part}_s": None for part in (*statistics.PARTS, "total")}
    rows = [made.row(0), made.row(1, encode_s=None, total_s=0.95), made.row(2, **untold), made.row(3, **REFUSED)]
    parts = statistics.latency_parts(made.requests(rows))
    assert list(parts.columns) == [*statistics.PARTS, statistics.OTHER, statistics.REST]
    assert len(parts) == 2
    assert parts.sum(axis="columns").tolist() == pytest.approx([1.0, 1.0])
    assert parts[statistics.REST].tolist() == pytest.approx([0.1, 0.05])
    assert math.isnan(parts["encode"].iloc[1])


def test_empty_frames_keep_working(made: SimpleNamespace) -> None:
    empty = made.requests([])
    assert isinstance(summarise(made.record(outcome=None), empty, made.telemetry(0)), pd.Series)
    assert statistics.latency_parts(empty).empty
