"""What things cost here: kept between processes, apart by case, and never the end of a run."""

import json
import os
import subprocess
import sys

import pytest

from benchlib.costs import KEPT, Costs, machine_name


def test_the_median_of_the_latest_times_counts_and_outlives_the_process(tmp_path):
    costs = Costs(tmp_path, ["tiny", "cpu"])
    assert costs.median_s("start") is None
    for seconds in (90.0, 1.0, 2.0, 3.0, 4.0, 5.0):
        costs.record("start", seconds)
    assert costs.median_s("start") == 3.0, "the oldest one, 90 s, is forgotten"
    code = "from benchlib.costs import Costs; print(Costs(None, ['tiny', 'cpu']).median_s('start'))"
    environment = os.environ | {"BENCHLIB_RESULTS": str(tmp_path)}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert printed.stdout == "3.0\n"
    (kept,) = json.loads((tmp_path / "costs.json").read_text())["costs_s"].values()
    assert len(kept["start"]) == KEPT
    assert [path.name for path in tmp_path.iterdir()] == ["costs.json"]


def test_another_case_or_machine_has_costs_of_its_own(tmp_path, monkeypatch):
    Costs(tmp_path, ["tiny", "cpu"]).record("image", 0.5)
    sdxl = Costs(tmp_path, ["sdxl", "cpu"])
    assert sdxl.median_s("image") is None
    sdxl.record("image", 8.0)
    assert Costs(tmp_path, ["tiny", "cpu"]).median_s("image") == 0.5, "both are in the file"
    monkeypatch.setattr("benchlib.costs.machine_name", lambda: "another machine")
    assert Costs(tmp_path, ["tiny", "cpu"]).median_s("image") is None


def test_two_that_write_the_file_keep_each_others_cases(tmp_path):
    one = Costs(tmp_path, ["one"])
    other = Costs(tmp_path, ["other"])
    one.record("image", 1.0)
    other.record("image", 2.0)
    assert Costs(tmp_path, ["one"]).median_s("image") == 1.0


@pytest.mark.parametrize(
    "content",
    [
        b'{"benchlib_costs": 1, "costs_s": {"a": {"start": [1.0',
        b"\xff\xfe",
        b'{"rent": 900}',
        b'{"benchlib_costs": 2, "costs_s": {}}',
        b"[]",
        b'{"benchlib_costs": 1, "costs_s": {"a": {"start": ["soon"]}}}',
        b'{"benchlib_costs": 1, "costs_s": {"a": [1.0]}}',
        b'{"benchlib_costs": 1, "costs_s": {"a": {"start": [NaN]}}}',
    ],
)
def test_a_damaged_or_foreign_file_is_left_alone_in_words(tmp_path, capsys, content):
    path = tmp_path / "costs.json"
    path.write_bytes(content)
    costs = Costs(tmp_path, ["tiny"])
    costs.record("start", 2.0)
    costs.record("start", 4.0)
    assert costs.median_s("start") == 3.0, "this process goes on"
    assert path.read_bytes() == content
    printed = capsys.readouterr().out
    assert printed.count("costs.json can't be read (") == 1
    assert "Remove the file" in printed


def test_where_the_file_can_not_be_written_that_is_said_once(tmp_path, capsys):
    (tmp_path / "results").write_text("a file, where a folder is needed")
    costs = Costs(tmp_path / "results", ["tiny"])
    costs.record("start", 2.0)
    costs.record("start", 2.0)
    assert costs.median_s("start") == 2.0
    assert capsys.readouterr().out.count("costs.json can't be") == 1


def test_the_machine_is_named_by_its_cpu_and_cores():
    assert machine_name().partition(" cores")[0].rpartition(", ")[2].isdigit()
