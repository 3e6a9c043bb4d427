"""Reads the answer that an executed notebook printed, and keeps all answers in answers.json.

Knows that a notebook's last code cell prints its answer, and that `make workbook` puts the executed
notebook into its study's folder. Ignorant of what an answer says, and of how it was found.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchlib.study.busy import TAKEN, busy_sentence
from benchlib.study.store import read_records

FIGURES = ("throughput_images_per_s", "latency_p50_s", "latency_p95_s", *TAKEN)
"""The columns of summary.csv that answers.json repeats for each run."""


def read_answer(study: Path) -> str | None:
    """The text that the last code cell of the study's executed notebook printed.

    None where no notebook ran into this folder, where it stopped before its last cell, and where
    the file is no notebook.
    """
    try:
        return printed_answer(_executed_notebook(study))
    except (ValueError, KeyError, TypeError):
        return None


def read_failure(study: Path) -> str | None:
    """The error that stopped the study's executed notebook, in a line; None where nothing did."""
    try:
        return printed_failure(_executed_notebook(study))
    except (ValueError, KeyError, TypeError):
        return None


def _executed_notebook(study: Path) -> dict[str, Any]:
    """The notebook that ran into the study's folder, or one without a cell."""
    paths = sorted(study.glob(f"[0-9][0-9]_{study.name}.ipynb"))
    if not paths:
        return {"cells": []}
    notebook: dict[str, Any] = json.loads(paths[-1].read_bytes())
    return notebook


def printed_answer(notebook: dict[str, Any]) -> str | None:
    """The text that the last code cell printed; None where it printed none."""
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    text = "".join(_printed(code[-1])) if code else ""
    return text.strip() or None


def printed_failure(notebook: dict[str, Any]) -> str | None:
    """The last error of the notebook's cells: "ValueError: users must be 1 or more"."""
    failure = None
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                failure = f"{output['ename']}: {output['evalue']}"
    return failure


def _printed(cell: dict[str, Any]) -> Iterator[str]:
    for output in cell["outputs"]:
        if output.get("name") == "stdout":
            yield "".join(output["text"])


def write_answers(results: Path, questions: dict[str, str]) -> None:
    """Writes answers.json into `results`, with an entry for each of `questions` that has a study.

    Each entry has the question, the answer (null where unknown), and each run of summary.csv with
    its validity and unrounded FIGURES. `busy` is a sentence where other work ran beside the runs.
    The last run's record gives the date, model and machine.
    """
    entries = []
    for name, question in questions.items():
        study = results / name
        if not study.is_dir():
            continue
        entry: dict[str, Any] = {
            "study": name,
            "question": question,
            "answer": read_answer(study),
        }
        entry |= _last_record(study)
        runs = _runs(study)
        entry["busy"] = busy_sentence(runs)
        entry["runs"] = runs
        entries.append(entry)
    kept = {"answers": entries}
    text = json.dumps(kept, indent=1, ensure_ascii=False)
    path = results / "answers.json"
    path.write_text(text + "\n", encoding="utf-8", errors="replace")


def read_headlines(results: Path) -> dict[str, str]:
    """The first line of each answer of answers.json that is known, by study.

    Where other work ran beside the runs, this is said after it.
    """
    path = results / "answers.json"
    kept = json.loads(path.read_bytes())
    headlines = {}
    for entry in kept["answers"]:
        if entry["answer"]:
            first, *_ = entry["answer"].splitlines()
            headlines[entry["study"]] = " ".join(filter(None, [first, entry["busy"]]))
    return headlines


def _last_record(study: Path) -> dict[str, Any]:
    """When the last run began, its model or URL, and its machine; each None where unknown."""
    records = read_records(study)
    if not records:
        return dict.fromkeys(("started_at", "model", "machine"))
    _, newest = records[-1]
    target = newest["spec"]["target"]
    return {
        "started_at": newest["started_at"],
        "model": target["model"] or target["url"],
        "machine": newest["machine"],
    }


def _runs(study: Path) -> list[dict[str, Any]]:
    """The runs of summary.csv; none where the table is missing or damaged."""
    path = study / "summary.csv"
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            return [_figures(row) for row in rows]
    except ValueError:
        return []


def _figures(row: dict[str, str]) -> dict[str, Any]:
    run: dict[str, Any] = {
        "run": row.get("run"),
        "valid": row.get("valid") == "True",
        "invalid_reason": row.get("invalid_reason") or None,
        "suspect_reason": row.get("suspect_reason") or None,
    }
    for name in FIGURES:
        value = row.get(name)
        run[name] = float(value) if value else None
    return run
