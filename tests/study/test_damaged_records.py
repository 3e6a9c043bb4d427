"""Records that a hand or another version changed: each costs itself alone, and is named."""

import copy
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchlib.study.busy import record_of
from benchlib.study.record_shape import check_shape
from benchlib.study.run_plots import latency_over_time
from benchlib.study.store import Run, create_run, load_run, load_study, read_records
from benchlib.study.summary_table import renew_summary

OTHERS: list[Any] = [
    None, True, -5, 0, 1.5, 1e308, "splendid", "", [], {}, [1], {"a": 1}, "2026-01-01", -1e9
]  # fmt: skip


def make_study(folder: Path, made: SimpleNamespace) -> tuple[Run, Run]:
    """A study of two runs that are whole."""
    runs = []
    for users in (1, 2):
        arrivals = {"kind": "closed_loop", "users": users, "think_time_s": 0.0}
        record, requests, telemetry = made.run([1.0] * 60, spec={"arrivals": arrivals})
        run = create_run(folder, "s", record)
        rows = requests.astype(object).where(requests.notna(), None).to_dict("records")
        run.rows_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        runs.append(run.finish("finished", record["outcome"], telemetry))
    first, second = runs
    return first, second


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every field of a record, the inner ones included."""
    found = [path] if path else []
    if isinstance(value, dict):
        for name, inner in value.items():
            found += paths_of(inner, (*path, name))
    return found


def changed(record: dict[str, Any], path: tuple[Any, ...], to: Any) -> dict[str, Any]:
    """A copy with another value at `path`, or without that field for the text "(gone)"."""
    copied = copy.deepcopy(record)
    *outer, last = path
    place = copied
    for name in outer:
        place = place[name]
    if to == "(gone)":
        del place[last]
    else:
        place[last] = to
    return copied


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, made: SimpleNamespace) -> tuple[Run, Run]:
    return make_study(tmp_path_factory.mktemp("results"), made)


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_changed_record_costs_itself_alone(study: tuple[Run, Run], data: st.DataObject) -> None:
    good, other = study
    path = data.draw(st.sampled_from(paths_of(other.record)))
    to = data.draw(st.sampled_from(["(gone)", *OTHERS]))
    written = other.path / "run.json"
    whole = written.read_text()
    try:
        written.write_text(json.dumps(changed(other.record, path, to)))
        check_what_reads(good, other)
    finally:
        written.write_text(whole)


# What a file may hold after a fault of a disk or of a hand: other bytes, fewer, or none that make sense.
TROUBLE = [
    b"",
    b"[" * 3_000,
    b"9" * 5_000,
    b"9" * 400,
    b"NaN",
    b"null",
    b'"\\ud800"',
    b"\x00",
    b"\n",
]
PLACES = st.tuples(
    st.floats(0, 1), st.integers(0, 40), st.sampled_from(TROUBLE) | st.binary(max_size=4)
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=PLACES, name=st.sampled_from(["run.json", "requests.jsonl"]))
def test_changed_bytes_cost_their_record_alone(
    study: tuple[Run, Run], place: tuple[float, int, bytes], name: str
) -> None:
    good, other = study
    path = other.path / name
    parquet = other.path / "requests.parquet"  # the rows' lines count only where this is gone
    whole, rows = path.read_bytes(), parquet.read_bytes()
    where, length, to = place
    start = int(where * len(whole))
    try:
        path.write_bytes(whole[:start] + to + whole[start + length :])
        if name == "requests.jsonl":
            parquet.unlink()
        check_what_reads(good, other, whole_rows=name == "run.json")
    finally:
        path.write_bytes(whole)
        parquet.write_bytes(rows)


def check_what_reads(good: Run, other: Run, *, whole_rows: bool = True) -> None:
    """Everything that reads a study: it works for each run that it takes, and names the others."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read = load_study(good.path.parent)
    names = {run.path.name for run in read.runs}
    assert good.path.name in names
    if other.path.name not in names:
        assert any(other.path.name in str(warning.message) for warning in caught)
    assert len(read.summary) == len(read.judge("p95 < 2 s")) == len(read.runs)
    for run in read.runs:
        run.checks()
        run._view()
    read._view()
    record_of(read.runs)
    recorded = {path.name for path, _ in read_records(good.path.parent)}
    assert recorded == names if whole_rows else recorded >= names
    table = pd.read_csv(renew_summary(good.path.parent, read.runs))
    assert len(table) >= len(names)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_figure_can_be_drawn_of_each_record_that_is_taken(
    study: tuple[Run, Run], data: st.DataObject
) -> None:
    run, _ = study
    path = data.draw(st.sampled_from(paths_of(run.record)))
    record = changed(run.record, path, data.draw(st.sampled_from(["(gone)", *OTHERS])))
    try:
        check_shape(record)
    except ValueError:
        return
    axes = latency_over_time(requests=run.requests, record=record)
    plt.close(axes.figure)


@pytest.mark.parametrize("value", ["9" * 400, '{"a": 1}', "[1]", '"splendid"', "[" * 3_000])
def test_a_row_that_no_table_takes_costs_its_run_alone(
    tmp_path: Path, made: SimpleNamespace, value: str
) -> None:
    good, other = make_study(tmp_path, made)
    rows = other.path / "requests.jsonl"
    rows.write_text(rows.read_text().replace('"latency_s": 1.0', f'"latency_s": {value}', 1))
    (other.path / "requests.parquet").unlink()
    with pytest.warns(UserWarning, match=rf"left out.*{other.path.name}"):
        read = load_study(good.path.parent)
    assert [run.path for run in read.runs] == [good.path]


@pytest.mark.parametrize("damage", [b"", b"PAR1 cut", None])
def test_whole_lines_stand_in_for_damaged_parquet(
    tmp_path: Path, made: SimpleNamespace, damage: bytes | None
) -> None:
    run, _ = make_study(tmp_path, made)
    for name in ("requests", "telemetry"):
        path = run.path / f"{name}.parquet"
        path.write_bytes(path.read_bytes()[:-40] if damage is None else damage)
    with pytest.warns(UserWarning, match="is damaged") as warned:
        again = load_run(run.path)
    assert [Path(str(one.message).split()[0]).name for one in warned] == [
        "requests.parquet", "telemetry.parquet",
    ]  # fmt: skip
    pd.testing.assert_frame_equal(again.requests, run.requests)
    assert again.telemetry.empty
    (run.path / "requests.jsonl").unlink()
    with pytest.raises(ValueError, match=rf"{run.path.name} can't be read as a run"):
        load_run(run.path)


def test_the_row_of_a_run_that_cannot_be_read_stays(tmp_path: Path, made: SimpleNamespace) -> None:
    newer, own = make_study(tmp_path, made)
    table = renew_summary(own.path.parent, [newer, own])
    frame = pd.read_csv(table, dtype=str).drop(columns="latency_p95_s").assign(new_figure="7")
    frame.to_csv(table, index=False)
    newer.record["format_version"] = 2
    (newer.path / "run.json").write_text(json.dumps(newer.record))
    renewed = pd.read_csv(renew_summary(own.path.parent, [own]), dtype=str).set_index("run")
    assert list(renewed.index) == [newer.path.name, own.path.name]
    assert renewed.loc[newer.path.name, "new_figure"] == "7"
    assert renewed.loc[own.path.name, "latency_p95_s"] == "1.0"
