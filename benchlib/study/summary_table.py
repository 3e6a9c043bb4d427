"""A study's summary.csv: one row for each run, renewed without reading the runs whose row is there.

Knows the file and which runs it lacks. Ignorant of what the figures in it mean (summary.py).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from benchlib.study.folders import run_folders, write_aside
from benchlib.study.store import Run, load_run

Cells: TypeAlias = dict[str, str]
"""A row as text, each cell as it stands in the file."""


def table_row(run: Run) -> dict[str, Any]:
    """The run's row: name, start, status, label, model, single values of the arrivals, figures."""
    row: dict[str, Any] = {
        "run": run.record["run"],
        "started_at": run.record["started_at"],
        "status": run.record["status"],
        "label": run.spec["label"],
        "model": run.spec["target"]["model"],
    }
    # A trace's lists are no columns; its field `requests` would hide the number of requests.
    arrivals = run.spec["arrivals"].items()
    row |= {name: value for name, value in arrivals if isinstance(value, str | int | float)}
    for name, figure in run.summary().items():
        row[str(name)] = figure
    return row


def renew_summary(folder: Path, runs: Sequence[Run] = ()) -> Path:
    """Renews summary.csv of the study in `folder` and returns its path.

    `runs` get new rows. Another run is read only if it has no row, as its writer was killed before
    it wrote one, or if another version wrote the table. The row of a run that can't be read stays
    as it is, and the row of a deleted run goes. The caller holds the study's lock (`lock_study`).
    """
    path = folder / "summary.csv"
    table = _read(path)
    is_own = not runs or _has_figures_of(runs[0], table)

    # 1) Keep the rows of runs that are still there, and read the runs that have no row.
    rows: list[Cells] = []
    without_row = list(runs)
    renewed = {run.path.name for run in runs}
    for entry in run_folders(folder):
        former = table.get(entry.name)
        if entry.name in renewed:
            continue
        if former is not None and is_own:
            rows.append(former)
            continue
        try:
            without_row.append(load_run(entry))
        except ValueError:  # load_study warns of it
            if former is not None:
                rows.append(former)

    # 2) Write all rows, the oldest run first.
    rows += _as_text(without_row)
    rows.sort(key=lambda row: (row["started_at"], row["run"]))
    write_aside(path, lambda aside: _write(aside, rows))
    return path


def _has_figures_of(run: Run, table: dict[str, Cells]) -> bool:
    figures = set(run.summary().index)
    return all(figures <= row.keys() for row in table.values())


def _read(path: Path) -> dict[str, Cells]:
    """The rows by the run's name; {} where there is no such file."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, restval="")
            if not {"run", "started_at"} <= set(reader.fieldnames or ()):
                return {}
            return {row["run"]: row for row in reader}
    except (OSError, ValueError):
        return {}


def _as_text(runs: Sequence[Run]) -> list[Cells]:
    import pandas as pd

    frame = pd.DataFrame([table_row(run) for run in runs])
    text = frame.to_csv(index=False)
    return list(csv.DictReader(io.StringIO(text)))


def _write(path: Path, rows: Sequence[Cells]) -> None:
    columns: dict[str, None] = {}  # in the order in which they first come
    for row in rows:
        columns |= dict.fromkeys(row)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
