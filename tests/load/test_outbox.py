"""The rows that wait in a worker: their batches, and the bounds on how many there may be."""

import json
from array import array

import pytest

from benchlib.load import outbox as outbox_module
from benchlib.load.arrivals import ClosedLoop
from benchlib.load.ledger import GaugeSample, Ledger
from benchlib.load.outbox import Outbox
from benchlib.load.plan import LoadPlan
from benchlib.load.workload import Workload


@pytest.fixture
def ledger():
    plan = LoadPlan("http://127.0.0.1:1", ClosedLoop(1), Workload(), duration_s=1)
    return Ledger(plan, lambda _: None)


def row(index, done_s=1.0):
    return {"index": index, "scheduled_s": float(index), "done_s": done_s}


def test_a_batch_has_the_rows_and_their_figures(ledger):
    outbox = Outbox()
    outbox.worker = "3"
    outbox.add(row(0))
    outbox.add(row(1, done_s=None))
    ledger.lags_s += [0.1, 0.2]
    ledger.gauge.append(GaugeSample(0.5, 2, 0.25))
    ledger.max_in_flight_hits = 4
    batch = outbox.batch(ledger)
    lines = [json.loads(line) for line in batch["lines"].splitlines()]
    assert lines == [row(0) | {"worker": "3"}, row(1, None) | {"worker": "3"}]
    assert array("d", batch["due_s"]).tolist() == [0.0, 1.0]
    done_s = array("d", batch["done_s"]).tolist()
    assert done_s[0] == 1.0
    assert done_s[1] != done_s[1], "NaN: it never ended"
    assert array("d", batch["lags_s"]).tolist() == [0.1, 0.2]
    assert (batch["gauge"], batch["max_in_flight_hits"]) == ([[0.5, 2, 0.25]], 4)
    assert (ledger.lags_s, ledger.gauge, len(outbox), outbox.sent) == ([], [], 0, 2)


def test_no_more_than_so_many_rows_are_on_their_way_or_wait(ledger, monkeypatch):
    monkeypatch.setattr(outbox_module, "MOST_ON_THEIR_WAY", 3)
    monkeypatch.setattr(outbox_module, "BATCH_ROWS", 3)
    monkeypatch.setattr(outbox_module, "MOST_WAITING", 5)
    outbox = Outbox()
    for index in range(5):
        outbox.add(row(index))
    with pytest.raises(RuntimeError, match="5 rows wait for the master, which takes none"):
        outbox.add(row(5))
    assert outbox.may_send()
    outbox.batch(ledger)
    assert (outbox.sent, len(outbox), outbox.may_send()) == (3, 2, False)
    outbox.confirmed = 1
    assert outbox.may_send()
    outbox.batch(ledger)
    assert not outbox.may_send(), "none is left"
