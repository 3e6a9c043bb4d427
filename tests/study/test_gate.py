"""The notebook that compares, run unattended on studies that are there: what it leaves, and the status it ends with."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat

from benchlib.study.store import create_run

ROOT = Path(__file__).parents[2]


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


def test_the_gate_ends_with_an_error_and_keeps_what_was_found(made: SimpleNamespace, tmp_path: Path) -> None:
    nights = [made_up(made, tmp_path / "results", f"night-{n}", took_s) for n, took_s in enumerate((1.0, 1.0, 1.5))]
    (tmp_path / "here").mkdir()
    command = [Path(sys.executable).parent / "papermill", ROOT / "notebooks/06_compare.ipynb", "out.ipynb"]
    options = ["--no-progress-bar", "-y", json.dumps({"studies": [str(night) for night in nights], "gate": True})]
    ran = subprocess.run([*command, *options], cwd=tmp_path / "here", capture_output=True, text=True)
    assert ran.returncode == 1
    assert "RuntimeError: night-2 against night-0: worse: closed-4: median latency 1.5 times" in ran.stderr
    last = nbformat.read(tmp_path / "here" / "out.ipynb", as_version=4).cells[-1]
    assert last.outputs[0].text.startswith("night-2 against night-0: worse"), "what was printed before is kept"
    assert json.loads((nights[-1] / "verdict.json").read_text())["verdict"] == "worse"
    figures = {path.name for path in (nights[-1] / "figures").iterdir()}
    assert figures == {"forest.png", "forest.svg", "nights.png", "nights.svg"}
