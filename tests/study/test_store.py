"""The store: names, formats, round trips, and what a kill leaves behind."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchlib import ClosedLoop, OpenLoop, Ramp, Trace
from benchlib.rows import ROW_DTYPES
from benchlib.study import folders, store
from benchlib.study.folders import lock_study, results_dir, run_words
from benchlib.study.store import create_run, load_run, load_study, read_records, read_rows
from benchlib.study.summary_table import renew_summary


def append(path: Path, *rows: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_results_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCHLIB_RESULTS", raising=False)
    ours, deep, other = tmp_path / "ours", tmp_path / "ours/inner/notebooks", tmp_path / "other"
    deep.mkdir(parents=True)
    other.mkdir()
    (ours / "pyproject.toml").write_text('[project]\nname = "benchlib"\n')
    (ours / "inner/pyproject.toml").write_text('[project]\nname = "somebody-else"\n')
    (deep / "pyproject.toml").write_text("this is = no [toml")
    monkeypatch.chdir(deep)
    assert results_dir() == ours / "results"
    monkeypatch.chdir(other)
    assert results_dir() == other / "results"
    monkeypatch.setenv("BENCHLIB_RESULTS", str(tmp_path / "chosen"))
    assert results_dir() == tmp_path / "chosen"
    assert results_dir("here") == other / "here"


def test_a_run_from_start_to_end(tmp_path: Path, made: SimpleNamespace) -> None:
    folder = create_run(tmp_path, "quickstart", made.record(status="finished", outcome={}))
    assert folder.path.parent == tmp_path / "quickstart"
    assert folder.path.name.endswith("-closed-4")
    going_on = load_run(folder.path)
    assert going_on.record["status"] == "running"
    assert going_on.record["outcome"] is None
    assert going_on.requests.empty
    append(
        folder.rows_path,
        made.row(0),
        made.row(1, seed=2**63 - 1, negative_prompt="ü ☃ 🎨", error=None),
    )
    finished = folder.finish("finished", made.record()["outcome"], made.telemetry(5))
    assert finished.figures == tmp_path / "quickstart/figures"
    stored = load_run(str(folder.path))
    assert stored.record == finished.record == json.loads((folder.path / "run.json").read_text())
    assert stored.record["status"] == "finished"
    assert stored.spec["seed"] == 0
    pd.testing.assert_frame_equal(stored.requests, finished.requests)
    pd.testing.assert_frame_equal(stored.requests, read_rows(folder.rows_path))
    pd.testing.assert_frame_equal(stored.telemetry, made.telemetry(5))
    assert stored.requests["seed"].tolist() == [0, 2**63 - 1]
    assert stored.summary()["requests"] == 2
    assert sorted(file.name for file in folder.path.iterdir()) == [
        "requests.jsonl",
        "requests.parquet",
        "run.json",
        "telemetry.parquet",
    ]


def test_names(tmp_path: Path, made: SimpleNamespace) -> None:
    for bad in ("", "../up", "a/b", ".hidden", "two words", "x" * 81):
        with pytest.raises(ValueError, match="study names a folder"):
            create_run(tmp_path, bad, made.record())
    with pytest.raises(ValueError, match="label names a folder"):
        create_run(tmp_path, "s", made.record(spec={"label": "no/slash"}))
    assert not list(tmp_path.iterdir())
    assert create_run(tmp_path, "s", made.record(spec={"label": "fp16_v1.2"})).path.name.endswith(
        "-fp16_v1.2"
    )
    arrivals = {"kind": "open_loop", "arrivals": "poisson", "rate": 1.5, "max_in_flight": 1000}
    assert create_run(tmp_path, "s", made.record(spec={"arrivals": arrivals})).path.name.endswith(
        "-open-1.5"
    )
    searched = arrivals | {"rate": 4.79801478}
    for end in ("-open-4.8", "-open-4.8-2"):
        folder = create_run(tmp_path, "names", made.record(spec={"arrivals": searched}))
        assert folder.path.name.endswith(end)
    assert run_words({"label": None, "arrivals": searched}, digits=9) == "open-4.79801478"
    assert run_words({"label": None, "arrivals": {"kind": "closed_loop", "users": 1500}}) == (
        "closed-1500"
    )


def test_a_clock_that_is_set_back_changes_no_order(
    tmp_path: Path, made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = iter([12, 9, 9, 13, 14])

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2026, 11, 23, next(hours), 30, tzinfo=tz)

    monkeypatch.setattr(folders, "datetime", Clock)
    made_in_turn = [create_run(tmp_path, "s", made.record()) for _ in range(4)]
    names = [folder.path.name for folder in made_in_turn]
    assert [name[9:15] for name in names] == ["123000", "123001", "123002", "133000"]
    assert [run.path.name for run in load_study(tmp_path / "s").runs] == names
    assert [path.name for path, _ in read_records(tmp_path / "s")] == names
    (tmp_path / "s/20991399-999999-is-no-moment").mkdir()
    assert create_run(tmp_path, "s", made.record()).path.name.startswith("20261123-143000")


def test_status_is_one_of_three(tmp_path: Path, made: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="status"):
        create_run(tmp_path, "s", made.record()).finish("done", None, made.telemetry(0))


CREATE = """
import json, sys
from pathlib import Path
from benchlib.study.store import create_run
record = json.loads(sys.argv[2])
print(*[create_run(Path(sys.argv[1]), "s", record).path for _ in range(30)], sep="\\n")
"""


def test_two_processes_never_share_a_run(tmp_path: Path, made: SimpleNamespace) -> None:
    command = [sys.executable, "-c", CREATE, str(tmp_path), json.dumps(made.record())]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    names = [name for process in both for name in process.communicate()[0].split()]
    assert len(set(names)) == len(names) == 60
    assert len(load_study(tmp_path / "s").runs) == 60


@pytest.mark.parametrize("rows", [0, 1])
def test_dtypes_hold_for_nulls_and_for_nothing(tmp_path: Path, rows: int) -> None:
    path = tmp_path / "requests.jsonl"
    path.touch()
    append(path, *[dict.fromkeys(ROW_DTYPES)] * rows)
    frame = read_rows(path)
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == ROW_DTYPES
    frame.to_parquet(tmp_path / "requests.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "requests.parquet"), frame)


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = {
    "Int64": st.integers(0, 2**63 - 1),
    "float64": st.floats(allow_nan=False, allow_infinity=False),
    "string": TEXT,
}


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
@given(
    rows=st.lists(
        st.fixed_dictionaries({n: st.none() | VALUES[d] for n, d in ROW_DTYPES.items()}), max_size=5
    )
)
def test_rows_survive_unchanged(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "requests.jsonl"
    path.touch()
    append(path, *rows)
    frame = read_rows(path)
    back = [
        {name: None if pd.isna(value) else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]
    assert back == rows
    frame.to_parquet(path.with_suffix(".parquet"))
    pd.testing.assert_frame_equal(pd.read_parquet(path.with_suffix(".parquet")), frame)


def test_only_a_torn_last_line_is_forgiven(tmp_path: Path, made: SimpleNamespace) -> None:
    path = tmp_path / "requests.jsonl"
    append(path, made.row(0), made.row(1, prompt="☃"))
    whole = path.read_bytes()
    second = whole.index(b"\n") + 1
    for cut in [*range(second, len(whole) - 1, 9), len(whole) - 1]:
        path.write_bytes(whole[:cut])
        assert len(read_rows(path)) == (2 if cut == len(whole) - 1 else 1)
    for damaged in (b'{"index": 1,\n', b"\n", b"[]\n", b"\xff\n"):
        path.write_bytes(whole[:second] + damaged + whole[second:])
        with pytest.raises(ValueError, match="line 2 is damaged"):
            read_rows(path)
    path.write_bytes(b'{"index": 1, "colour": "red"}\n')
    with pytest.raises(ValueError, match="unknown fields: colour"):
        read_rows(path)


WRITE = """
import json, os, sys
from pathlib import Path
from benchlib.study.store import create_run
folder = create_run(Path(sys.argv[1]), "s", json.loads(sys.argv[2]))
rows = os.open(folder.rows_path, os.O_WRONLY | os.O_APPEND)
for index in range(10**6):
    os.write(rows, (json.dumps({"index": index}) + "\\n").encode())
    os.write(1, f"{index}\\n".encode())
"""


def test_a_kill_loses_no_row_whose_write_returned(tmp_path: Path, made: SimpleNamespace) -> None:
    command = [sys.executable, "-c", WRITE, str(tmp_path), json.dumps(made.record())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        written = [int(writer.stdout.readline()) for _ in range(200)]
        writer.send_signal(signal.SIGKILL)
        written += [
            int(line)
            for line in writer.stdout.read().splitlines(keepends=True)
            if line.endswith("\n")
        ]
    (run,) = load_study(tmp_path / "s").runs
    assert run.record["status"] == "running"
    assert run.requests["index"].tolist()[: len(written)] == written
    assert run.telemetry.empty
    assert "killed" in run.summary()["invalid_reason"]


FINISH = """
import json, os, sys
from pathlib import Path
import pandas as pd
from benchlib.study.store import create_run
from benchlib.telemetry import COLUMNS
record, telemetry = json.loads(sys.argv[2]), pd.DataFrame(columns=list(COLUMNS), dtype="float64")
while True:
    folder = create_run(Path(sys.argv[1]), "s", record)
    folder.rows_path.write_text('{"index": 7}\\n' * 50)
    folder.finish("finished", None, telemetry)
    os.write(1, b"finished\\n")
"""


def test_a_kill_loses_no_finished_run(tmp_path: Path, made: SimpleNamespace) -> None:
    for attempt in range(3):
        results = tmp_path / str(attempt)
        command = [sys.executable, "-c", FINISH, str(results), json.dumps(made.record())]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(0.05 + 0.013 * attempt)
            writer.send_signal(signal.SIGKILL)
            reported = 1 + writer.stdout.read().count("finished\n")
        finished = [
            run for run in load_study(results / "s").runs if run.record["status"] == "finished"
        ]
        assert len(finished) - reported in (0, 1)
        assert all(run.requests["index"].tolist() == [7] * 50 for run in finished)


def test_readers_never_see_half_a_record(tmp_path: Path, made: SimpleNamespace) -> None:
    folder = create_run(tmp_path, "s", made.record())
    statuses, stop = set(), threading.Event()

    def read() -> None:
        while not stop.is_set():
            statuses.add(load_run(folder.path).record["status"])

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        folder.finish("interrupted", None, made.telemetry(3), error="by the user")
    time.sleep(0.05)
    stop.set()
    reader.join()
    assert statuses <= {"running", "interrupted"}
    assert load_run(folder.path).record["error"] == "by the user"


def test_newer_and_damaged_runs_are_named(tmp_path: Path, made: SimpleNamespace) -> None:
    good, newer, damaged = (create_run(tmp_path, "s", made.record()) for _ in range(3))
    newer.record["format_version"] = 2
    newer.write_record()
    (damaged.path / "run.json").write_text('{"format_ver')
    (tmp_path / "s/figures").mkdir()
    (tmp_path / "s/killed-while-being-made").mkdir()
    with pytest.raises(
        ValueError, match=rf"{newer.path.name}.*its format 2 is newer .* upgrade benchlib"
    ):
        load_run(newer.path)
    with pytest.raises(ValueError, match=rf"{damaged.path.name} can't be read as a run"):
        load_run(damaged.path)
    with pytest.warns(UserWarning, match="left out of the study") as warned:
        study = load_study(tmp_path / "s")
    assert [
        newer.path.name in str(warned[0].message),
        damaged.path.name in str(warned[1].message),
    ] == [True, True]
    assert [run.path for run in study.runs] == [good.path]


@pytest.mark.parametrize("field", ["run", "started_at", "status", "spec"])
def test_a_record_that_lacks_a_field_does_not_block_its_study(
    field: str, tmp_path: Path, made: SimpleNamespace
) -> None:
    good, lacking = (create_run(tmp_path, "s", made.record()) for _ in range(2))
    del lacking.record[field]
    lacking.write_record()
    with pytest.raises(ValueError, match=rf"{lacking.path.name} .* lacks {field}"):
        load_run(lacking.path)
    with pytest.warns(UserWarning, match=f"lacks {field}"):
        assert [run.path for run in load_study(tmp_path / "s").runs] == [good.path]
    assert [path for path, _ in read_records(tmp_path / "s")] == [good.path]
    rows = renew_summary(tmp_path / "s").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["run", good.path.name]


def test_a_folder_without_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run"):
        load_study(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        load_study(tmp_path / "absent")


def test_study(tmp_path: Path, made: SimpleNamespace) -> None:
    names = []
    for users in (1, 2):
        arrivals = {"kind": "closed_loop", "users": users, "think_time_s": 0.0}
        folder = create_run(tmp_path, "s", made.record(spec={"arrivals": arrivals}))
        append(folder.rows_path, *[made.row(index) for index in range(users)])
        folder.finish("finished", made.record()["outcome"], made.telemetry(2))
        names.append(folder.path.name)
    create_run(tmp_path, "s", made.record())  # a run that is going on
    study = load_study(tmp_path / "s")
    assert study.requests["run"].tolist() == [names[0], names[1], names[1]]
    assert {name: str(dtype) for name, dtype in study.requests.dtypes.items()} == {
        "run": "string"
    } | ROW_DTYPES
    assert study.summary["run"].tolist()[:2] == names
    assert study.summary["users"].tolist() == [1, 2, 4]
    assert study.summary["requests"].tolist() == [1, 2, 0]
    written = renew_summary(study.path)
    assert written == tmp_path / "s/summary.csv"
    assert pd.read_csv(written)["throughput_images_per_s"].tolist()[:2] == [0.05, 0.1]
    assert not [name for name in os.listdir(tmp_path / "s") if name.startswith(".")]


ARRIVALS = {
    "closed_loop": ClosedLoop(2),
    "open_loop": OpenLoop(1.5),
    "ramp": Ramp(1, 5, over_s=3.0),
    "trace": Trace([0.1, 0.2], [{"width": 64}, {"width": 128}]),
}
LISTS = ("times_s", "requests")


def test_each_kind_of_arrivals_is_columns_beside_the_figures(
    tmp_path: Path, made: SimpleNamespace
) -> None:
    for arrivals in ARRIVALS.values():
        create_run(tmp_path, "s", made.record(spec={"arrivals": arrivals.to_dict()}))
    runs = load_study(tmp_path / "s").runs
    figures = set(runs[0].summary().index)
    for run in runs:
        (row,) = store.Study(tmp_path, (run,)).summary.to_dict("records")
        scalars = {
            name: value
            for name, value in ARRIVALS[row["kind"]].to_dict().items()
            if name not in LISTS
        }
        assert not scalars.keys() & figures, "no name means both a request and a figure"
        assert {name: row.get(name) for name in scalars} == scalars
        assert (row["requests"], "times_s" in row) == (0, False)


def test_a_writer_that_was_killed_leaves_no_half_summary(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    for name in (".summary.csv.4194305", "summary.csv"):
        (tmp_path / "s" / name).touch()
    with lock_study(tmp_path, "s"):
        pass
    assert sorted(os.listdir(tmp_path / "s")) == [".lock", "summary.csv"]


def keep_run(results: Path, made: SimpleNamespace, users: int) -> store.Run:
    """Make and keep one finished run; its row of the summary is not yet written."""
    arrivals = {"kind": "closed_loop", "users": users, "think_time_s": 0.0}
    record = made.record(spec={"arrivals": arrivals}, started_at=f"2026-11-23T16:45:0{users}")
    folder = create_run(results, "s", record)
    append(folder.rows_path, *[made.row(index) for index in range(users)])
    return folder.finish("finished", made.record()["outcome"], made.telemetry(2))


@pytest.fixture
def files_read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A list that gets the name of each file whenever it is read."""
    read: list[Path] = []

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def watched(path: Any, *arguments: Any, **options: Any) -> Any:
            read.append(Path(path))
            return original(path, *arguments, **options)

        monkeypatch.setattr(owner, name, watched)

    for owner, name in ((Path, "read_bytes"), (Path, "read_text"), (pd, "read_parquet")):
        watch(owner, name)
    return read


def rows_of(path: Path) -> list[tuple[str, int]]:
    """The run and the number of users of each row of summary.csv."""
    table = pd.read_csv(path)
    return list(zip(table["run"], table["users"], strict=True))


def test_a_further_run_reads_no_earlier_one(
    tmp_path: Path, made: SimpleNamespace, files_read: list[Path]
) -> None:
    runs = []
    for users in (1, 2, 3):
        runs.append(keep_run(tmp_path, made, users))
        files_read.clear()
        path = renew_summary(tmp_path / "s", [runs[-1]])
        assert files_read == [], "neither a record nor rows"
    expected = load_study(tmp_path / "s").summary.to_csv(index=False)
    assert path.read_text() == expected, "as if all had been read"
    renew_summary(tmp_path / "s")
    assert path.read_text() == expected


def test_a_run_whose_writer_was_killed_before_its_row_gets_one_later(
    tmp_path: Path, made: SimpleNamespace, files_read: list[Path]
) -> None:
    first = keep_run(tmp_path, made, 1)
    renew_summary(tmp_path / "s", [first])
    killed = keep_run(tmp_path, made, 2)
    record = made.record(started_at="2026-11-23T16:45:02.5")
    dead = create_run(tmp_path, "s", record)  # killed while it ran
    last = keep_run(tmp_path, made, 3)
    files_read.clear()
    path = renew_summary(tmp_path / "s", [last])
    assert {file.parent for file in files_read} == {killed.path, dead.path}
    names = [run.path.name for run in (first, killed, dead, last)]
    assert rows_of(path) == list(zip(names, (1, 2, 4, 3), strict=True))
    files_read.clear()
    renew_summary(tmp_path / "s", [last])
    assert files_read == []
    assert [name for name, _ in rows_of(path)] == names


def test_the_row_of_a_deleted_run_goes_and_a_damaged_run_has_none(
    tmp_path: Path, made: SimpleNamespace
) -> None:
    runs = [keep_run(tmp_path, made, users) for users in (1, 2, 3)]
    renew_summary(tmp_path / "s", runs)
    shutil.rmtree(runs[0].path)
    damaged = keep_run(tmp_path, made, 4)
    (damaged.path / "run.json").write_text("{")
    path = renew_summary(tmp_path / "s")
    assert [users for _, users in rows_of(path)] == [2, 3]


@pytest.mark.parametrize("left", ["", "run,status\nx,finished\n", None])
def test_a_summary_of_an_earlier_version_is_made_anew(
    tmp_path: Path, made: SimpleNamespace, left: str | None
) -> None:
    runs = [keep_run(tmp_path, made, users) for users in (1, 2)]
    path = renew_summary(tmp_path / "s", runs)
    expected = path.read_text()
    if left is None:
        pd.read_csv(path).drop(columns="latency_p95_s").to_csv(path, index=False)
    else:
        path.write_text(left)
    renew_summary(tmp_path / "s", [runs[1]])
    assert path.read_text() == expected


KEEP = """
import json, sys
from pathlib import Path
import pandas as pd
from benchlib.study.folders import lock_study
from benchlib.study.store import create_run
from benchlib.study.summary_table import renew_summary
from benchlib.telemetry import COLUMNS
kept = 0
while kept < 5:
    try:
        with lock_study(Path(sys.argv[1]), "s") as folder:
            run = create_run(folder.parent, "s", json.loads(sys.argv[2]))
            samples = pd.DataFrame(columns=list(COLUMNS), dtype="float64")
            renew_summary(folder, [run.finish("finished", None, samples)])
            kept += 1
    except RuntimeError:
        pass
"""


def test_two_writers_in_turn_keep_each_others_rows(tmp_path: Path, made: SimpleNamespace) -> None:
    command = [sys.executable, "-c", KEEP, str(tmp_path), json.dumps(made.record())]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    table = pd.read_csv(tmp_path / "s/summary.csv")
    assert table["run"].tolist() == load_study(tmp_path / "s").summary["run"].tolist()
    assert len(table) == 10


def test_a_column_that_rows_no_longer_have_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    append(path, {"index": 0, "request_class": "64x64x4"})
    assert list(read_rows(path).columns) == list(ROW_DTYPES)


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOSPC, "the disk was full"), (errno.EIO, "[Errno 5] Input/output error")],
)
def test_a_run_on_a_full_disk_says_so_in_room_that_was_kept(
    number: int,
    reason: str,
    tmp_path: Path,
    made: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = create_run(tmp_path, "s", made.record())
    append(folder.rows_path, made.row(0), made.row(1))
    spare = folder.path / ".spare"
    assert spare.stat().st_size >= 8 * (folder.path / "run.json").stat().st_size
    write_aside = folders.write_aside

    def on_a_full_disk(path: Path, write: Any) -> None:
        if path.suffix == ".parquet":
            raise OSError(number, os.strerror(number))
        assert not spare.exists(), "the record has its room"
        write_aside(path, write)

    monkeypatch.setattr(store, "write_aside", on_a_full_disk)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        folder.finish("finished", {}, made.telemetry(2), "a long traceback")
    run = load_run(folder.path)
    assert run.record["status"] == "failed"
    assert run.record["error"] == f"{reason}; its rows up to then are in requests.jsonl"
    assert len(run.requests) == 2


def test_what_can_not_be_written_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        folders.write_aside(tmp_path / "file", fail)
    assert not list(tmp_path.iterdir())


def test_a_study_has_one_writer_at_a_time(tmp_path: Path) -> None:
    with lock_study(tmp_path, "s") as folder:
        assert folder == tmp_path / "s"
        with (
            pytest.raises(RuntimeError, match=rf"'s' .* by process {os.getpid()}:"),
            lock_study(tmp_path, "s"),
        ):
            pass
        with lock_study(tmp_path, "another"):
            pass
    assert os.listdir(folder) == [".lock"]
    with (
        lock_study(tmp_path, "s"),
        pytest.raises(ValueError, match="study names a folder"),
        lock_study(tmp_path, ".."),
    ):
        pass


HOLD = """
import sys, time
from pathlib import Path
from benchlib.study.folders import lock_study
with lock_study(Path(sys.argv[1]), "s"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_kill_frees_the_study(tmp_path: Path) -> None:
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with (
                pytest.raises(RuntimeError, match=rf"process {holder.pid}: wait for it"),
                lock_study(tmp_path, "s"),
            ):
                pass
            holder.kill()
    with lock_study(tmp_path, "s"):
        pass


TAKE = """
import sys
from pathlib import Path
from benchlib.study.folders import lock_study
taken = 0
while taken < 200:
    try:
        with lock_study(Path(sys.argv[1]), "s") as folder:
            (folder / "inside").mkdir()  # fails where another is in there too
            (folder / "inside").rmdir()
            taken += 1
    except RuntimeError:
        pass
"""


def test_processes_that_take_turns_never_meet(tmp_path: Path) -> None:
    rivals = [subprocess.Popen([sys.executable, "-c", TAKE, str(tmp_path)]) for _ in range(3)]
    assert [rival.wait() for rival in rivals] == [0, 0, 0]


def test_a_study_without_runs_has_empty_frames(tmp_path: Path) -> None:
    nothing = store.Study(tmp_path, ())
    assert {name: str(dtype) for name, dtype in nothing.requests.dtypes.items()} == {
        "run": "string"
    } | ROW_DTYPES
    assert nothing.summary.empty
