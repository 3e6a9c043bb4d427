"""The values that a row takes from the answer of any server."""

import json
import math

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from benchlib.load.image_answers import said_by_benchmark
from benchlib.rows import ROW_DTYPES, Call, make_row

# Other work may slow the machine down.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@UNHURRIED
@given(st.text())
def test_nonsense_never_raises_and_makes_a_row_of_json(text):
    call = Call(0, "x", {"prompt": "a", "seed": 1}, due_s=5.0, sent_s=5.0, done_s=6.0)
    said = said_by_benchmark(text.encode("utf-8", "replace"))
    row = make_row(call, started_s=4.0, warmup_s=0.0, server_timing=text, said=said)
    assert json.loads(json.dumps(row, allow_nan=False)) == row


PIECES = st.sampled_from(
    [
        "queue",
        "total",
        "batch",
        ";dur=",
        ";desc=",
        '"',
        "\\",
        ",",
        "=",
        ";",
        "1e400",
        "-1",
        "nan",
        "5",
    ]
)
HEADERS = st.lists(PIECES | st.text(max_size=3), max_size=20).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([10**400, 1e308]),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
ANSWERS = st.dictionaries(st.sampled_from(["time_s", "mem_gb", "detail"]), VALUES).map(json.dumps)


@UNHURRIED
@given(HEADERS, ANSWERS.map(str.encode) | st.binary(max_size=40))
@example("", b"[" * 100_000)
@example("", b'{"time_s":' + b"9" * 5_000 + b"}")
@example('"' * 30_000, b"")
@example('a;dur="\\' * 20_000, b"")
def test_an_answer_of_any_server_makes_a_row(header, body):
    call = Call(0, "x", {"prompt": "a"}, due_s=5.0, sent_s=5.0, done_s=6.0)
    said = said_by_benchmark(body)
    row = make_row(call, started_s=4.0, warmup_s=0.0, server_timing=header, said=said)
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    for name, value in row.items():
        if name.endswith(("_s", "_gib", "_size")) and value is not None:
            assert value >= 0


def test_a_row_says_all_that_is_known_and_none_for_the_rest():
    body = {"prompt": "a", "width": 64, "seed": 9}
    call = Call(3, "id", body, due_s=101.0, sent_s=101.25, done_s=104.0, target="http://a")
    timing = (
        'queue;dur=500, total;dur=2750, batch;desc="1.5", denoise;dur=nan, encode;dur=-1, decode'
    )
    row = make_row(
        call,
        started_s=100.0,
        warmup_s=1.0,
        http_status=200,
        server_timing=timing,
        said={"service_s": 2, "server_peak_gib": "?", "queue_s": 9.0, "encode_s": 0.25},
    )
    expected = {
        "index": 3, "request_id": "id", "phase": "measure", "scheduled_s": 1.0, "sent_s": 1.25, "done_s": 4.0,
        "latency_s": 3.0, "http_status": 200, "prompt": "a", "width": 64, "seed": 9,
        "queue_s": 0.5, "total_s": 2.75, "batch_size": 1.5, "service_s": 2.0, "encode_s": 0.25,
        "target": "http://a",
    }  # fmt: skip
    assert row == dict.fromkeys(row) | expected
    assert " ".join(row) == (
        "index request_id phase scheduled_s sent_s done_s latency_s http_status error prompt negative_prompt "
        "num_inference_steps guidance_scale width height seed lora scheduler queue_s wait_s encode_s "
        "denoise_s decode_s image_s total_s batch_size service_s server_peak_gib target"
    )


def test_the_columns_of_a_row_are_those_that_are_kept_in_their_order():
    row = make_row(Call(0, "x", {}, due_s=0.0), started_s=0.0, warmup_s=0.0)
    assert [*row] == [*ROW_DTYPES][: len(row)]
    assert [*ROW_DTYPES][len(row) :] == [
        "encode_peak_gib",
        "denoise_peak_gib",
        "decode_peak_gib",
        "launch_s",
        "replica",
        "retries",
        "worker",
    ]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('replica;desc="1"', {"replica": "1", "retries": 0}),
        ('replica;desc="a b", retry;desc="2"', {"replica": "a b", "retries": 2}),
        ('replica;desc="1", retry;desc="1e300"', {"replica": "1"}),
        ('replica;desc="1", retry;desc="often"', {"replica": "1"}),
        ('retry;desc="1"', {}),
        ("replica", {}),
    ],
)
def test_a_row_names_the_replica_and_how_often_another_was_lost(header, expected):
    row = make_row(Call(0, "x", {}, due_s=0.0), started_s=0.0, warmup_s=0.0, server_timing=header)
    assert {name: row[name] for name in ("replica", "retries") if name in row} == expected


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("queue;dur=1e18, total;dur=900", {}),
        ("queue;dur=10, total;dur=3001", {}),
        ("total;dur=900", {"service_s": 1e9}),
    ],
)
def test_a_server_that_claims_more_time_than_there_was_is_not_believed(header, said):
    def row_of(header, said):
        call = Call(0, "x", {}, due_s=0.0, sent_s=5.0, done_s=6.0)
        return make_row(call, started_s=0.0, warmup_s=0.0, server_timing=header, said=said)

    row = row_of(header, said)
    assert [row["queue_s"], row["total_s"], row["service_s"]] == [None, None, None]
    near = row_of("queue;dur=10, total;dur=1100", {"service_s": 1.05})
    assert [near["queue_s"], near["total_s"], near["service_s"]] == [0.01, 1.1, 1.05]


@pytest.mark.parametrize(
    "body",
    [
        "[]",
        "5",
        '{"time_s": true}',
        '{"time_s": NaN}',
        '{"time_s": [1]}',
        f'{{"time_s": {"9" * 400}}}',
    ],
)
def test_a_body_without_values(body):
    call = Call(0, "x", {"prompt": "a"}, due_s=0.0, sent_s=0.0)
    said = said_by_benchmark(body.encode())
    row = make_row(call, started_s=0.0, warmup_s=math.inf, said=said)
    assert row["service_s"] is row["latency_s"] is None
    assert row["phase"] == "warmup"
