"""Statistics against numbers worked out by hand, and percentiles against their definition."""

import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchlib.server_timing import PARTS
from benchlib.study import latency, summary
from benchlib.study.latency import carried_percentiles, errors_by_kind, percentile
from benchlib.study.slo import Slo, goodput, promise_for
from benchlib.study.store import Run
from benchlib.study.summary import summarise
from benchlib.study.validity import checks
from benchmarks.interval_coverage import draw

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
def test_percentile_is_a_measured_value_that_enough_do_not_exceed(
    values: list[float], censored: int, q: float
) -> None:
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
    "total_s": 0.001,
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
        # ended inside the window: counts as throughput
        made.row(1, phase="warmup", scheduled_s=2.9, done_s=3.9),
        made.row(2),
        made.row(3, latency_s=2.0, done_s=6.0, queue_s=1.5, total_s=1.8),
        # ended after the window: does not count
        made.row(4, latency_s=3.0, done_s=24.0, queue_s=2.5, total_s=2.9),
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
    assert got["latency_mean_s"] == pytest.approx(2.0, rel=1e-3)
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


FAILED = REFUSED | {"http_status": 500, "error": "HTTP 500"}
CUT = {"http_status": None, "error": "ConnectionResetError: by peer"} | dict.fromkeys(["total_s"])


def test_an_error_after_a_good_status_is_named_by_its_words(made: SimpleNamespace) -> None:
    answers = {
        "timeout: no answer within 2 s": 200,
        "no answer: it is not JSON": 200,
        "HTTP 500: (broken)": 500,
        "HTTPParseError: Incomplete response.": 200,
        "ConnectionRefusedError: refused": None,
    }
    rows = [made.row(error=error, http_status=status) for error, status in answers.items()]
    assert errors_by_kind(made.requests(rows)) == {
        "timeout": 1,
        "no answer": 1,
        "HTTP 500": 1,
        "HTTPParseError": 1,
        "ConnectionRefusedError": 1,
    }


@pytest.mark.parametrize(
    ("bad", "most_failed", "reason"),
    [
        ([FAILED], None, None),
        ([FAILED, CUT], None, "2 % of 100 requests failed, and the limit is 1 % "),
        ([FAILED, CUT], 0.02, None),
        ([REFUSED] * 34, None, None),
        ([REFUSED | {"total_s": None}] * 2, None, "(HTTP 503: 2)"),
        ([CENSORED] * 30, 0.0, None),
        ([FAILED], 0.0, "1 % of 100 requests failed, and the limit is 0 % (HTTP 500: 1)"),
    ],
)
def test_a_run_is_valid_only_with_few_failures(
    made: SimpleNamespace, bad: list[Any], most_failed: float | None, reason: str | None
) -> None:
    rows = [made.row(index) for index in range(100 - len(bad))]
    rows += [made.row(99, **changes) for changes in bad]
    record = made.record(spec={} if most_failed is None else {"most_failed": most_failed})
    got = summarise(record, made.requests(rows), made.telemetry(0))
    assert got["valid"] is (reason is None), got["invalid_reason"]
    assert reason is None or reason in got["invalid_reason"]
    refused = sum(row.get("http_status") == 503 and row["total_s"] is not None for row in bad)
    assert got["refused"] == refused


@pytest.mark.parametrize(
    ("rows", "changes", "reason"),
    [
        ([], {}, "no request was scheduled"),
        ([REFUSED], {}, "none of 1 request got an image (HTTP 503: 1)"),
        ([{}], {"status": "interrupted", "error": "by the user"}, "interrupted: by the user"),
        ([{}], {"status": "running", "outcome": None}, "killed"),
    ],
)
def test_a_run_that_can_not_be_believed_says_why(
    made: SimpleNamespace, rows: list[Any], changes: dict[str, Any], reason: str
) -> None:
    got = summarise(
        made.record(**changes), made.requests([made.row(**row) for row in rows]), made.telemetry(0)
    )
    assert got["valid"] is False
    assert reason in got["invalid_reason"]


def test_errors_are_counted_by_kind(made: SimpleNamespace) -> None:
    timeout = {"http_status": None, "error": "timeout: no answer within 600 s"}
    rows = [
        made.row(0, **timeout),
        made.row(1, **timeout),
        made.row(2, **REFUSED),
        made.row(3, **CENSORED),
    ]
    assert errors_by_kind(made.requests(rows)) == {"timeout": 2, "HTTP 503": 1}


def test_parts_add_up_to_the_latency(made: SimpleNamespace) -> None:
    untold = {f"{part}_s": None for part in (*PARTS, "total")}
    rows = [
        made.row(0),
        made.row(1, encode_s=None, total_s=0.95),
        made.row(2, **untold),
        made.row(3, **REFUSED),
    ]
    parts = latency.breakdown(made.requests(rows))
    assert list(parts.columns) == [*PARTS, latency.OTHER, latency.REST]
    assert len(parts) == 2
    assert parts.sum(axis="columns").tolist() == pytest.approx([1.0, 1.0])
    assert parts[latency.REST].tolist() == pytest.approx([0.1, 0.05])
    assert math.isnan(parts["encode"].iloc[1])


def test_empty_frames_keep_working(made: SimpleNamespace) -> None:
    empty = made.requests([])
    assert isinstance(summarise(made.record(outcome=None), empty, made.telemetry(0)), pd.Series)
    assert latency.breakdown(empty).empty


# ---- intervals, steady state and validity


def test_independent_latencies_get_intervals(made: SimpleNamespace) -> None:
    got = summarise(*made.run(np.random.default_rng(0).gamma(100, 0.01, 600)))
    assert got["state"] == "steady"
    assert got["latency_interval_note"] is None
    for name in ("latency_p50_s", "latency_p95_s", "latency_mean_s", "throughput_images_per_s"):
        low, high = got[f"{name}_interval"]
        assert low <= got[name] <= high < 1.1 * low
    assert got["latency_p99.9_s_interval"] is None


def test_a_drifting_run_is_unstable_and_has_no_latency(made: SimpleNamespace) -> None:
    got = summarise(*made.run(np.linspace(0.1, 9, 200), gap_s=0.05))
    assert got["state"] == "unstable"
    assert "unstable" in got["latency_interval_note"]
    for name in ("latency_p50_s", "latency_p95_s", "latency_mean_s", "latency_p50_s_interval"):
        assert got[name] is None
    assert got["throughput_images_per_s"] > 0
    assert got["valid"] is True


def test_a_ramp_has_no_steady_state(made: SimpleNamespace) -> None:
    ramp = {
        "spec": {"arrivals": {"kind": "ramp", "start": 1, "end": 9, "over_s": 20.0, "of": "rate"}}
    }
    got = summarise(*made.run(np.linspace(0.1, 9, 200), **ramp))
    assert got["state"] is None
    assert got["latency_p50_s"] is not None
    assert "ramp" in got["latency_interval_note"]


OPEN = {"spec": {"arrivals": {"kind": "open_loop", "rate": 10.0}}}


@pytest.mark.parametrize(
    ("outcome", "changes", "reason"),
    [
        # the limit is 5 ms + 1 % of 1 s
        (
            {"send_lag_p99_s": 0.0149, "generator_cpu_cores": 0.5},
            OPEN,
            None,
        ),
        ({"send_lag_p99_s": 0.0151}, OPEN, "fell behind"),
        ({"send_lag_p99_s": 0.001, "generator_cpu_cores": 0.81}, OPEN, "0.81 cores"),
        # a closed loop waits by design
        (
            {"send_lag_p99_s": 9.0, "generator_cpu_cores": 2.0},
            {},
            None,
        ),
        ({"graphs_made": 0}, {}, None),
        ({"graphs_made": 2}, {}, "recorded 2 graphs during the run"),
    ],
)
def test_a_run_is_only_as_good_as_its_generator_and_its_servers_warm_up(
    made: SimpleNamespace, outcome: dict[str, Any], changes: dict[str, Any], reason: str | None
) -> None:
    got = summarise(*made.run([1.0] * 50, outcome=outcome, **changes))
    assert got["valid"] is (reason is None)
    assert reason is None or reason in got["invalid_reason"]


def test_goodput_counts_errors_and_late_answers_against_it(made: SimpleNamespace) -> None:
    rows = [
        made.row(0),
        made.row(1, latency_s=2.0),
        made.row(2, latency_s=2.1),
        made.row(3, **REFUSED),
    ]
    rows += [made.row(4, **CENSORED), made.row(5, phase="warmup")]
    assert goodput(made.requests(rows), made.record(), latency_s=2) == 2 / 20
    assert goodput(made.requests(rows), made.record(outcome=None), latency_s=2) is None


def test_energy_is_power_over_time() -> None:
    samples = pd.DataFrame(
        {"time_s": [0.0, 1.0, 2.0, 4.0], "gpu_power_w": [100.0, 200.0, 200.0, 0.0]}
    )
    assert summary.energy_j(samples, 0, 4) == 150 + 200 + 200
    assert summary.energy_j(samples, 0.5, 3) == pytest.approx(
        (150 + 200) / 2 * 0.5 + 200 + (200 + 100) / 2
    )
    assert summary.energy_j(samples, 1.2, 1.4) == pytest.approx(40)
    assert summary.energy_j(samples, 0, 4.9) == pytest.approx(550), (
        "to the last sample's power, for less than a second"
    )
    for start_s, end_s in ((-1.5, 4), (0, 5.5), (2, 2)):
        assert summary.energy_j(samples, start_s, end_s) is None
    assert summary.energy_j(samples.assign(gpu_power_w=float("nan")), 0, 4) is None


def test_energy_per_image_by_hand(made: SimpleNamespace) -> None:
    # the window is from 3 to 13 s; 96 images are done in it
    record, requests, _ = made.run([0.45] * 100)
    samples = made.telemetry(4).assign(
        time_s=[2.0, 3.0, 8.0, 14.0], gpu_power_w=[0.0, 100.0, 300.0, 300.0]
    )
    energy = 5 * (100 + 300) / 2 + 5 * 300
    assert summarise(record, requests, samples)["energy_per_image_j"] == pytest.approx(energy / 96)
    without_images = requests.assign(error="503: full")
    without_window = made.record(outcome=None)
    for case in (
        (record, requests, samples.drop(columns="gpu_power_w")),
        (record, requests, samples.assign(gpu_power_w=NAN)),
        (record, without_images, samples),
        (without_window, requests, samples),
    ):
        assert summarise(*case)["energy_per_image_j"] is None


# ---- promises


@pytest.mark.parametrize(
    ("text", "q", "latency_s"),
    [
        ("p95 < 2 s", 0.95, 2),
        ("99 % within 20 s", 0.99, 20),
        ("p99.9<=800ms", 0.999, 0.8),
        (" 90% within 1.5s", 0.9, 1.5),
    ],
)
def test_promises_are_read(text: str, q: float, latency_s: float) -> None:
    assert Slo.parse(text) == Slo(q, latency_s)


@pytest.mark.parametrize(
    "text",
    ["", "p95", "p95 < 2", "p100 < 2 s", "p0 < 2 s", "p95 > 2 s", "p95 < 0 s", "p9.5.1 < 2 s"],
)
def test_a_promise_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match='write "p95 < 2 s"'):
        Slo.parse(text)


@pytest.mark.parametrize(
    ("image_s", "promise"), [(1.053, "4.21"), (0.0001, "0.001"), (300, "1200")]
)
def test_the_usual_promise_is_four_images_alone(image_s, promise):
    assert promise_for(image_s) == f"p95 < {promise} s"


def test_promises_are_judged_by_what_the_sample_shows() -> None:
    slo, random = Slo(0.95, 2.0), np.random.default_rng(0)
    assert slo.judge([1.0] * 72) == "met"  # 0.95^72 is the first under 2.5 %
    assert slo.judge([1.0] * 71) == "not shown"
    assert slo.judge([]) == "not shown"
    # twice the capacity: nothing in time after the first sixteen
    backlog = 1.2 + 0.05 * np.arange(100)
    assert slo.judge(backlog) == "missed"
    assert Slo(0.5, 2.0).judge(backlog) == "not shown", (
        "a half may be late for long and be in time again"
    )
    assert slo.judge(random.permutation([1.0] * 80 + [NAN] * 20)) == "missed"
    assert slo.judge(random.permutation([1.0] * 95 + [3.0] * 5)) == "not shown"
    assert slo.judge(np.linspace(0.1, 1.9, 200)) == "not shown"  # the latency still grows
    queue = draw("M/D/1 0.8", 2000, random)
    assert Slo(0.95, float(np.quantile(queue, 0.97))).judge(queue) == "not shown"
    assert Slo(0.95, float(np.quantile(queue, 0.7))).judge(queue) == "missed"


# ---- checks


GOOD = {
    "in_flight_mean": 3.93,
    "send_lag_p99_s": 0.001,
    "generator_cpu_cores": 0.1,
    "max_in_flight_hits": 0,
    "nonfinite_images": 0,
}


@pytest.mark.parametrize("arrivals", [{}, OPEN])
def test_a_measurement_that_agrees_with_itself_passes(
    made: SimpleNamespace, arrivals: dict[str, Any]
) -> None:
    record, requests, telemetry = made.run([0.4] * 100, outcome=GOOD, **arrivals)
    requests["service_s"], requests["total_s"] = 0.09, 0.395
    telemetry["time_s"] += 3  # into the window
    run = Run(record, requests, telemetry, Path("results/study/run"))
    table = run.checks().set_index("check")
    assert table.equals(checks(record, requests, telemetry).set_index("check"))
    assert ("in flight limit" in table.index) == bool(arrivals)
    # 100 * 0.4 less the tails, in 10 s
    assert table.loc["Little's law", "value"] == pytest.approx(abs(3.94 - 3.93))
    assert table.loc["engine busy", "value"] == pytest.approx(0.097 * 9, abs=0.01)
    assert table["passed"].tolist() == [True] * len(table)


@pytest.mark.parametrize(
    ("check", "change"),
    [
        ("Little's law", {"in_flight_mean": 3.0}),
        ("engine busy", {"service_s": 0.2}),
        ("answer after server", {"total_s": 0.41}),
        ("network and client", {"total_s": 0.3}),
        ("send lag", {"send_lag_p99_s": 0.1}),
        ("generator, cores", {"generator_cpu_cores": 0.81}),
        ("in flight limit", {"max_in_flight_hits": 1}),
        ("images not finite", {"nonfinite_images": 1}),
    ],
)
def test_a_broken_measurement_fails_its_check(
    made: SimpleNamespace, check: str, change: dict[str, float]
) -> None:
    in_outcome = {name: value for name, value in change.items() if name in GOOD}
    record, requests, telemetry = made.run([0.4] * 100, outcome=GOOD | in_outcome, **OPEN)
    requests = requests.assign(
        **{"service_s": 0.09} | {k: v for k, v in change.items() if k not in in_outcome}
    )
    table = checks(record, requests, telemetry).set_index("check")["passed"]
    assert table[table == False].index.tolist() == [check]  # noqa: E712 - None is not False


def test_other_work_fails_its_check_and_leaves_the_run_valid(made: SimpleNamespace) -> None:
    record, requests, telemetry = made.run([0.4] * 100, outcome=GOOD)
    busy = telemetry.assign(time_s=[3.0, 3.2, 3.4], others_cpu_cores=0.4, steal_cores=0.3)
    table = checks(record, requests, busy).set_index("check")
    check = table.loc["other processes, cores"]
    assert (check["value"], check["limit"]) == (pytest.approx(0.7), 0.5)
    assert check["passed"] is False
    got = summarise(record, requests, busy)
    assert got["valid"] is True
    assert got["others_cpu_cores"] == pytest.approx(0.4)
    assert got["steal_cores"] == pytest.approx(0.3)
    assert got["suspect_reason"] == (
        "other processes took 0.4 of 2 cores and the hypervisor 0.3 (limit: 0.5)"
    )


def test_what_is_not_known_is_not_checked(made: SimpleNamespace) -> None:
    table = checks(made.record(outcome=None), made.requests([]), made.telemetry(0))
    assert table["passed"].tolist() == [None] * len(table)
