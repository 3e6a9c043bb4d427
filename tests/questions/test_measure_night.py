"""One night: its options, what is said of invalid runs, and the nights that it is compared with."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from benchlib.questions import measure_night
from benchlib.questions.measure_night import night_fault, nights_to_compare, read_night_options
from benchlib.study.store import create_run, load_study

ROOT = Path(__file__).parents[2]
GIVEN = {"MODEL": "no-such-model", "USERS": "4", "DURATION_S": "300", "REPEAT": "2"}


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCHLIB_RESULTS", str(tmp_path / "nights"))
    return tmp_path / "nights"


def keep(made, results, night, *, status="finished", seed=0, cores=2, users=4):
    """Keeps a run of a night; one that is not finished is invalid."""
    arrivals = {"kind": "closed_loop", "users": users}
    record, requests, telemetry = made.run([1.0] * 40, gap_s=1.0, spec={"arrivals": arrivals})
    record["machine"] |= {"cores": cores}
    folder = create_run(results, night, record | {"point": {"seed": seed}})
    rows = json.loads(requests.to_json(orient="records"))
    folder.rows_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    error = None if status == "finished" else "OSError: no such model"
    folder.finish(status, record["outcome"], telemetry, error)


def nights(night):
    options = read_night_options(GIVEN | {"NIGHT": night})
    return [folder.name for folder in nights_to_compare(options)]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("NIGHT", "20 nov", "NIGHT must be a date such as 2026-11-20, got '20 nov'"),
        ("USERS", "0", "USERS must be a whole number of 1 or more, got 0"),
        ("USERS", "four", "USERS must be a whole number of 1 or more, got 'four'"),
        ("DURATION_S", "6s", "DURATION_S must be a finite number above 0, got '6s'"),
        ("DURATION_S", "nan", "DURATION_S must be a finite number above 0, got nan"),
        ("REPEAT", "1.5", "REPEAT must be a whole number of 1 or more, got '1.5'"),
        ("BENCHLIB_RESULTS", "/proc/x", "BENCHLIB_RESULTS must be a folder to write to, got "),
    ],
)
def test_a_bad_option_ends_the_script_with_one_sentence(tmp_path, name, value, words):
    ran = subprocess.run(
        [ROOT / "nightly.sh"],
        env=os.environ | {name: value},
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    (line,) = ran.stderr.splitlines()
    assert line.startswith(words)
    assert not (tmp_path / "nights/index.html").exists()


def test_the_baseline_is_the_first_valid_night(made, results, capsys):
    keep(made, results, "2026-11-20", status="failed")
    (results / "2026-11-21").mkdir()
    for night in ("2026-11-22", "2026-11-23", "2026-11-25"):
        keep(made, results, night)
    keep(made, results, "2026-11-24", status="failed")
    assert nights("2026-11-25") == ["2026-11-22", "2026-11-23", "2026-11-25"]
    said = capsys.readouterr().err
    assert "2026-11-20 is passed over: closed-4: the run failed: OSError" in said
    assert "2026-11-21 is passed over: path: " in said
    assert "2026-11-24 is passed over" in said
    assert nights("2026-11-23") == ["2026-11-22", "2026-11-23"]
    assert nights("2026-11-22") == []
    assert "this is the first valid night: nothing to compare with" in capsys.readouterr().err


def test_a_night_of_another_machine_or_load_in_between_is_passed_over(made, results, capsys):
    keep(made, results, "2026-11-20")
    keep(made, results, "2026-11-21", cores=1)
    keep(made, results, "2026-11-22", users=8)
    keep(made, results, "2026-11-23")
    assert nights("2026-11-23") == ["2026-11-20", "2026-11-23"]
    said = capsys.readouterr().err
    assert (
        "2026-11-21 is passed over: the runs differ in machine (machine: cores 2 and 1)\n" in said
    )
    assert "2026-11-22 is passed over: no load in common (closed-4 and closed-8)\n" in said


def test_a_night_of_another_machine_than_the_first_fails_and_says_what_to_do(made, results):
    keep(made, results, "2026-11-20")
    keep(made, results, "2026-11-21", cores=1)
    with pytest.raises(ValueError, match=r"2026-11-20: the runs differ in machine.*move the older"):
        nights("2026-11-21")


def test_at_most_fourteen_nights_are_compared(made, results):
    for day in range(1, 17):
        keep(made, results, f"2026-11-{day:02d}")
    assert nights("2026-11-16") == [f"2026-11-{day:02d}" for day in range(3, 17)]


def test_a_night_that_is_not_valid_is_not_compared(made, results):
    keep(made, results, "2026-11-20")
    with pytest.raises(ValueError, match="2026-11-21 is not compared, as nothing was measured"):
        nights("2026-11-21")
    keep(made, results, "2026-11-21", status="failed")
    with pytest.raises(
        ValueError,
        match=r"2026-11-21 is not compared, as it is invalid: closed-4.*remove .*2026-11-21 and",
    ):
        nights("2026-11-21")
    keep(made, results, "2026-11-21")
    assert nights("2026-11-21") == ["2026-11-20", "2026-11-21"], "it was repaired"


def test_a_night_without_a_valid_run_says_so_and_how_to_repair_it(made, results):
    for seed in (0, 1):
        keep(made, results, "2026-11-20", status="failed", seed=seed)
    assert night_fault(load_study(results / "2026-11-20")) == (
        "2026-11-20 is invalid, 0 of 2 runs are valid: the run failed: OSError: no such model. "
        "With the same options, NIGHT=2026-11-20 ./nightly.sh measures the others again"
    )
    keep(made, results, "2026-11-21")
    assert night_fault(load_study(results / "2026-11-21")) is None


def test_a_model_that_can_not_be_loaded_leaves_no_run(results, monkeypatch, capsys):
    for name, value in (GIVEN | {"NIGHT": "2026-11-20"}).items():
        monkeypatch.setenv(name, value)
    assert measure_night.run_command("measure") == 2
    said = capsys.readouterr().err
    assert said.startswith("MODEL can't be loaded: model: 'no-such-model' is none of 'tiny', ")
    assert list(results.iterdir()) == []


def test_a_night_without_a_valid_run_fails_and_is_measured_again(results, monkeypatch, capsys):
    """A run that ends at once has no request in its measuring window."""
    short = {"NIGHT": "2026-11-20", "MODEL": "tiny", "DURATION_S": "1e-6"}
    for name, value in (GIVEN | short).items():
        monkeypatch.setenv(name, value)
    for _ in range(2):
        assert measure_night.run_command("measure") == 1
        said = capsys.readouterr()
        assert "2026-11-20 is invalid, 0 of 2 runs are valid: " in said.err
        assert "1 point, 2 runs, 0 of them done" in said.out
    assert len(load_study(results / "2026-11-20").runs) == 4, "nothing measured is lost"
    assert measure_night.run_command("compare") == 1
    assert "2026-11-20 is not compared, as it is invalid" in capsys.readouterr().err
