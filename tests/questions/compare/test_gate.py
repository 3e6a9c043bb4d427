"""The notebook that compares, run on existing studies: its files, and its exit status."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest

from benchlib.questions.measure_night import night_fault
from benchlib.study.store import create_run, load_study

ROOT = Path(__file__).parents[3]


def made_up(made: SimpleNamespace, results: Path, study: str, latency_s: float) -> Path:
    """A study of three runs on disk, 1 % apart."""
    for number in range(3):
        took_s = latency_s * (1 + 0.01 * number)
        record, requests, telemetry = made.run([took_s] * 40, gap_s=took_s)
        folder = create_run(results, study, record)
        rows = plain(requests)
        folder.rows_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        folder.finish("finished", record["outcome"], telemetry)
    return results / study


def plain(requests: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(requests.to_json(orient="records"))
    return rows


def test_the_gate_ends_with_an_error_and_keeps_what_was_found(
    made: SimpleNamespace, tmp_path: Path
) -> None:
    nights = [
        made_up(made, tmp_path / "results", f"night-{n}", took_s)
        for n, took_s in enumerate((1.0, 1.0, 1.5))
    ]
    (tmp_path / "here").mkdir()
    command = [
        Path(sys.executable).parent / "papermill",
        ROOT / "notebooks/06_compare.ipynb",
        "out.ipynb",
    ]
    options = [
        "--no-progress-bar",
        "-y",
        json.dumps({"studies": [str(night) for night in nights], "gate": True}),
    ]
    ran = subprocess.run(
        [*command, *options], cwd=tmp_path / "here", capture_output=True, text=True
    )
    assert ran.returncode == 1
    assert (
        "RuntimeError: night-2 against night-0: worse: closed-4: median latency 1.50 times"
        in ran.stderr
    )
    last = nbformat.read(tmp_path / "here" / "out.ipynb", as_version=4).cells[-1]
    assert last.outputs[0].text.startswith("night-2 against night-0: worse"), (
        "what was printed before is kept"
    )
    assert json.loads((nights[-1] / "verdict.json").read_text())["verdict"] == "worse"
    figures = {path.name for path in (nights[-1] / "figures").iterdir()}
    assert figures == {"forest.png", "forest.svg", "nights.png", "nights.svg"}


@pytest.mark.slow
def test_two_nights_are_measured_and_compared(tmp_path: Path) -> None:
    settings = {
        "MODEL": "tiny",
        "USERS": "2",
        "DURATION_S": "3",
        "REPEAT": "2",
        "BENCHLIB_RESULTS": str(tmp_path),
    }
    for night in ("2026-01-01", "2026-01-02"):
        ran = subprocess.run(
            [ROOT / "nightly.sh"],
            cwd=tmp_path,
            env=os.environ | settings | {"NIGHT": night},
            capture_output=True,
            text=True,
        )
        # A busy machine may make a run invalid; such a night is not compared.
        fault = night_fault(load_study(tmp_path / night))
        verdict = tmp_path / night / "verdict.json"
        if fault is None and verdict.exists():
            found = json.loads(verdict.read_text())
            assert (found["study"], found["against"]) == ("2026-01-02", "2026-01-01")
            assert ran.returncode == (found["verdict"] == "worse"), ran.stderr
            assert (tmp_path / night / "06_compare.html").exists()
        else:
            assert ran.returncode == (fault is not None), ran.stderr
            assert "2026-01-01 is passed over" in ran.stderr or night == "2026-01-01" or fault
        assert len(list((tmp_path / night).glob("*/run.json"))) == 2
    assert "2026-01-02" in (tmp_path / "index.html").read_text()
