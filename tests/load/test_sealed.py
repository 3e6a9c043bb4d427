"""Seals open what the other side has sealed, once, and nothing else."""

import pytest

from benchlib.load import sealed
from benchlib.load.sealed import Seal, own_versions, version_fault


@pytest.fixture
def sides():
    return Seal(b"secret", "master"), Seal(b"secret", "worker")


def test_a_message_arrives_as_it_was_sent(sides):
    master, worker = sides
    message = {"kind": "rows", "lines": b"\x00\xff", "due_s": [1.5, 2.5], "why": None}
    assert worker.open(master.close(**message)) == message
    assert master.open(worker.close(kind="pong")) == {"kind": "pong"}


def test_what_another_secret_has_sealed_does_not_open(sides):
    master, _ = sides
    assert master.open(Seal(b"other", "worker").close(kind="hello")) is None


@pytest.mark.parametrize("wire", [None, [], "text", {}, {"packed": "a", "mac": "b"}, {"mac": b""}])
def test_what_is_no_sealed_message_does_not_open(sides, wire):
    assert sides[0].open(wire) is None


def test_a_message_that_was_changed_or_is_sent_again_or_back_does_not_open(sides):
    master, worker = sides
    wire = worker.close(kind="done", rows=3)
    changed = wire | {"packed": wire["packed"].replace(b"\x03", b"\x04")}
    assert changed != wire
    assert master.open(changed) is None
    assert master.open(wire)
    assert master.open(wire) is None
    assert worker.open(wire) is None


def test_a_session_has_a_secret_of_its_own(sides):
    master, worker = (side.of_session("one", "two") for side in sides)
    assert worker.open(master.close(kind="begin")) == {"kind": "begin"}
    assert worker.open(sides[0].close(kind="begin")) is None
    assert sides[1].of_session("one", "three").open(master.close(kind="begin")) is None


def test_other_versions_are_named_with_ours():
    assert version_fault(dict(own_versions())) is None
    ours = own_versions()["Python"]
    words = version_fault(own_versions() | {"Python": "2.7"})
    assert words == (
        f"the worker has Python 2.7 (the run has {ours}): install the same on both machines"
    )
    assert "benchlib None" in version_fault("garbage")


def test_a_package_that_runs_from_its_source_has_a_version_too(monkeypatch):
    monkeypatch.setattr(sealed, "version_of", lambda _: None)
    assert own_versions.__wrapped__()["benchlib"] == "from its source"


def test_the_code_of_the_load_generator_is_part_of_the_versions(monkeypatch, tmp_path):
    before = sealed._code_digest()
    package = tmp_path / "benchlib"
    (package / "load").mkdir(parents=True)
    (package / "load" / "sealed.py").write_text("other")
    (package / "rows.py").write_text("code")
    monkeypatch.setattr(sealed, "__file__", str(package / "load" / "sealed.py"))
    assert sealed._code_digest() != before
