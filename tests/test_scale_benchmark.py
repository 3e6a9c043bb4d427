"""The benchmark of several GPUs: its windows by hand, what is due, and its table on planted rows."""

import base64
import hashlib
import json

import httpx
import numpy as np
import pandas as pd
import pytest

from benchmarks import scale
from benchmarks.scale import (
    Notes,
    count_others,
    digests_alone,
    due_parts,
    figures,
    images_by_window,
    kept_columns,
    over_the_other,
    p95_of_columns,
    rounds,
)
from benchmarks.seeded_images import Fetched, fetch_one

BODY = {"prompt": "a cat", "seed": 7}


def batches(cards, *, size=8, batch_s=8.0, count=10):
    """The rows of cards that make batch after batch, with users who ask again at once."""
    rows = []
    for card in range(cards):
        for number in range(count):
            done_s = (number + 1) * batch_s
            row = {
                "phase": "measure" if number else "warmup",
                "scheduled_s": number * batch_s,
                "done_s": done_s,
                "latency_s": batch_s,
                "queue_s": 0.0,
                "total_s": batch_s,
                "batch_size": float(size),
                "replica": str(card),
                "http_status": 200,
            }
            rows += [row] * size
    frame = pd.DataFrame(rows)
    frame["index"] = range(len(frame))
    return frame


def test_a_batch_counts_in_each_window_by_its_share():
    windows = images_by_window(batches(1))
    assert len(windows) == 64 // 6  # from the first measured batch to the last request
    assert windows == pytest.approx(np.ones(len(windows)))


def test_the_time_in_the_queue_makes_no_image():
    rows = batches(1).assign(queue_s=6.0)
    # Eight images in the last two seconds of each eight.
    windows = images_by_window(rows)
    assert windows.mean() == pytest.approx(1.0)
    assert windows.max() > 1.25 > 0.75 > windows.min()


def test_small_numbers_of_cards_run_beside_each_other():
    assert rounds([4, 1, 2]) == [[4], [1, 2]]
    assert rounds([1, 2, 4]) == [[1, 2], [4]]
    assert rounds([1, 2]) == [[1], [2]]


def test_a_part_that_has_ended_is_not_due_and_brings_what_it_needs(tmp_path):
    notes = Notes(tmp_path, None)
    assert due_parts(notes, ["tails"], 2, 4) == ["linear"]
    assert due_parts(notes, ["mixed", "kill"], 2, 2) == ["bytes", "linear", "kill", "mixed"]
    assert due_parts(notes, ["mixed", "kill"], 1, 1) == []
    assert due_parts(notes, ["files"], 1, 4) == due_parts(notes, ["files"], 2, 4) == []
    assert due_parts(notes, ["files"], 4, 4) == ["files"]
    notes.write("linear", 2, "images_per_s", 1.0)
    notes.write("bytes", 2, "digests", {"0": "a"})
    notes.write("kill", 2, "ended", 3.0)
    assert due_parts(Notes(tmp_path, None), ["mixed", "kill"], 2, 2) == ["mixed"]
    assert due_parts(Notes(tmp_path, None), ["kill"], 2, 4) == []


def test_a_part_without_time_says_so(tmp_path):
    notes = Notes(tmp_path, 10.0)
    assert notes.has_time("linear", 2, 5.0)
    assert not notes.has_time("mixed", 2, 50.0)
    assert notes.value("mixed", 2, "left out").endswith("50 s needed")


def planted(folder):
    """Notes of runs on 1, 2 and 4 cards, of which four are slower."""
    notes = Notes(folder, None)
    for gpus, batch_s in ((1, 8.0), (2, 8.0), (4, 10.0)):
        notes.write("linear", gpus, "ended", 1.0)
        notes.write_rows("linear", gpus, "equal", "a", kept_columns(batches(gpus, batch_s=batch_s)))
    random = np.random.default_rng(0)
    slow = batches(1, size=2, count=100).assign(latency_s=random.exponential(1.0, 200))
    quick = slow.assign(latency_s=0.7 * slow["latency_s"])
    notes.write_rows("mixed", 4, "round-robin", "a", kept_columns(slow))
    notes.write_rows("mixed", 4, "foretold", "cut off", kept_columns(slow))
    notes.write_rows("mixed", 4, "foretold", "b", kept_columns(quick))
    notes.write("bytes", 1, "digests", {"0": "a", "1": "b", "2": "c"})
    notes.write("bytes", 4, "digests", {"0": "a", "1": "c"})
    notes.write("kill", 4, "lost", 0)
    notes.write("poisson", 4, "p99_s", 21.0, n=500)
    with (folder / "scale.jsonl").open("a") as file:
        file.write('{"part": "cut o')
    return Notes(folder, None)


def test_the_table_by_hand(tmp_path):
    found = {(one.case, one.name): one for one in figures(planted(tmp_path))}
    expected = {
        ("1 cards", "images/s, equal requests"): (1.0, None),
        ("1 cards", "slowest tenth / median"): (1.0, None),
        ("2 cards", "share of linear"): (1.0, True),
        ("4 cards", "share of linear"): (0.8, False),
        ("4 cards", "Poisson at 95% of linear: p99, s"): (21.0, False),
        ("4 cards", "slowest tenth / median"): (1.0, True),
        ("4 cards", "mixed: p95 / round robin's, foretold"): (0.7, True),
        ("4 cards", "mixed: mean / round robin's, foretold"): (0.7, None),
        ("4 cards", "seeds with other bytes than on one card"): (1.0, False),
        ("4 cards", "kill: requests lost"): (0.0, True),
    }
    for key, (value, passed) in expected.items():
        assert (found[key].value, found[key].passed) == (pytest.approx(value), passed), key
    ratio = found["4 cards", "mixed: p95 / round robin's, foretold"]
    assert ratio.interval == pytest.approx((0.7, 0.7))  # the same arrivals are drawn for both
    assert ("1 cards", "share of linear") not in found
    assert ("4 cards", "mixed: p95 / round robin's, two-choices") not in found


def test_arrivals_that_only_one_run_has_are_left_out_of_a_ratio():
    rows = batches(1, size=1, count=120).assign(latency_s=np.arange(120.0) + 1)
    twice = rows.assign(latency_s=2 * rows["latency_s"])
    ratio, interval = over_the_other(p95_of_columns, twice, rows.iloc[::-1].iloc[10:])
    assert ratio == pytest.approx(2.0)
    assert interval == pytest.approx((2.0, 2.0))


def test_rows_are_kept_with_their_part_and_run(tmp_path):
    frame = batches(1).assign(prompt="a cat")
    Notes(tmp_path, None).write_rows("linear", 2, "equal", "one", kept_columns(frame))
    kept = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])
    assert (kept["part"], kept["gpus"], kept["run"], kept["replica"]) == ("linear", 2, "one", "0")
    assert "prompt" not in kept


def test_only_images_that_were_made_alone_have_comparable_bytes():
    alone = Fetched(1, 200, "a", "0", 0, 1.0)
    beside = Fetched(2, 200, "b", "0", 0, 1.5)
    lost = Fetched(3, 503, None, None, 0, None)
    assert digests_alone([alone, beside, lost]) == {"1": "a"}
    assert count_others({"1": "a", "2": "b", "4": "d"}, {"1": "a", "2": "c", "5": "e"}) == (1, 2)


def test_a_replica_is_known_by_its_command():
    assert scale.is_replica("ray::ServeReplica:benchlib-1-0:replica")
    assert not scale.is_replica("ray::ServeController")


def answering(status, **headers):
    def answer(_request):
        if status == 0:
            raise httpx.ConnectError("gone")
        content = {"data": [{"b64_json": base64.b64encode(b"png").decode()}]}
        return httpx.Response(status, json=content, headers=headers)

    return httpx.Client(base_url="http://none", transport=httpx.MockTransport(answer))


def test_what_came_of_a_seed():
    timing = 'total;dur=5, batch;desc="2.0", replica;desc="1", retry;desc="1"'
    with answering(200, **{"Server-Timing": timing}) as client:
        digest = hashlib.sha256(b"png").hexdigest()
        assert fetch_one(client, BODY) == Fetched(7, 200, digest, "1", 1, 2.0)
    with answering(503) as client:
        assert fetch_one(client, BODY) == Fetched(7, 503, None, None, 0, None)
    with answering(0) as client:
        assert fetch_one(client, BODY) == Fetched(7, 0, None, None, 0, None)
