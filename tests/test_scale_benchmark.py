"""The benchmark of several GPUs: its rate by hand, what is due, and its table on planted lines."""

import base64
import hashlib
import json

import httpx
import pandas as pd
import pytest

from benchmarks import scale
from benchmarks.scale import Notes, due_parts, figures, kept_columns, rate_of, rounds
from benchmarks.seeded_images import Fetched, fetch_one

BODY = {"prompt": "a cat", "seed": 7}


def rows(done_s, replica="0", scheduled_s=0.0):
    return pd.DataFrame(
        {"done_s": done_s, "replica": replica, "scheduled_s": scheduled_s, "http_status": 200}
    )


def test_a_cards_rate_is_from_the_end_of_a_batch_to_the_end_of_another():
    batches = [1.0, 1.01, 5.0, 5.01, 9.0, 9.01, 13.0, 13.01]
    both = pd.concat([rows(batches, "0", 13.0), rows([2.0, 6.0, 10.0], "1", 13.0)])
    assert rate_of(both, warmup_s=0.5) == pytest.approx(6 / 12 + 2 / 8)
    # The first batch is warm-up, and the last was asked for after the users' end.
    assert rate_of(rows(batches, "0", 9.0), warmup_s=4.0) == pytest.approx(2 / 4, rel=0.01)
    assert rate_of(rows([3.0], "0"), 0.0) == 0.0


def test_small_numbers_of_cards_run_beside_each_other():
    assert rounds([4, 1, 2]) == [[4], [1, 2]]
    assert rounds([1, 2, 4]) == [[1, 2], [4]]
    assert rounds([1, 2]) == [[1], [2]]


def test_a_part_that_has_ended_is_not_due_and_brings_what_it_needs(tmp_path):
    notes = Notes(tmp_path, None)
    assert due_parts(notes, ["tails"], 2, 4) == ["linear"]
    assert due_parts(notes, ["mixed", "kill"], 2, 2) == ["bytes", "linear", "mixed", "kill"]
    assert due_parts(notes, ["mixed", "kill"], 1, 1) == []
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


def test_the_table_by_hand(tmp_path):
    notes = Notes(tmp_path, None)
    for gpus, rate in ((1, 1.0), (2, 1.98), (4, 3.6)):
        notes.write("linear", gpus, "images_per_s", rate)
        notes.write("tails", gpus, "slowest_tenth", 1.1)
    notes.write("mixed", 4, "p95_over_round_robin", 0.7)
    notes.write("bytes", 1, "digests", {"0": "a", "1": "b"})
    notes.write("bytes", 4, "digests", {"0": "a", "1": "c"})
    notes.write("kill", 4, "lost", 0)
    with (tmp_path / "scale.jsonl").open("a") as file:
        file.write('{"part": "cut o')
    found = {(one.case, one.name): one for one in figures(Notes(tmp_path, None))}
    expected = {
        ("1 cards", "images/s, equal requests"): (1.0, None),
        ("1 cards", "slowest tenth / median"): (1.1, None),
        ("2 cards", "share of linear"): (0.99, True),
        ("4 cards", "share of linear"): (0.9, False),
        ("4 cards", "slowest tenth / median"): (1.1, True),
        ("4 cards", "mixed: p95 / round robin's"): (0.7, True),
        ("4 cards", "seeds with other bytes than on one card"): (1.0, False),
        ("4 cards", "kill: requests lost"): (0.0, True),
    }
    for key, (value, passed) in expected.items():
        assert (found[key].value, found[key].passed) == (pytest.approx(value), passed), key
    assert ("1 cards", "share of linear") not in found


def test_rows_are_kept_with_their_part(tmp_path):
    frame = rows([1.0], "1").assign(prompt="a cat")
    Notes(tmp_path, None).write_rows("linear", 2, "equal", kept_columns(frame))
    kept = json.loads((tmp_path / "rows.jsonl").read_text())
    assert (kept["part"], kept["gpus"], kept["replica"]) == ("linear", 2, "1")
    assert "prompt" not in kept


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
