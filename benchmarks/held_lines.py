"""The end of `make chaos` and `make soak`: a table of what was reached, and a record of it.

Knows figures and files. Ignorant of what was done to reach them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchlib.machine import describe_machine
from benchmarks.figures import Figure


def report(name: str, figures: list[Figure], folder: Path, notes: dict[str, Any]) -> int:
    """Print the table, write FOLDER/NAME.json, and return the exit status: 1 if a line broke."""
    for line in table(figures):
        print(line)
    broken = [figure for figure in figures if figure.passed is False]
    record = {
        "name": name,
        "ended_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "load_average": os.getloadavg(),
        "passed": not broken,
        "figures": [figure.to_dict() for figure in figures],
        **notes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{len(broken)} of {len(figures)} lines are not held. The record: {path}")
    return 1 if broken else 0


def read_figures(path: Path) -> list[Figure]:
    """The figures of a record that `report` wrote."""
    names = [field.name for field in fields(Figure)]
    record = json.loads(path.read_text())
    return [Figure(**{name: one[name] for name in names}) for one in record["figures"]]


def table(figures: Iterable[Figure]) -> list[str]:
    """The lines of a Markdown table: what, what is to reach, what was seen, if it is held."""
    lines = ["| what | to reach | seen | held |", "|---|---|---|---|"]
    for figure in figures:
        seen = "not measured" if figure.value is None else f"{figure.value:.4g}"
        held = {None: "", True: "yes", False: "NO"}[figure.passed]
        lines.append(f"| {figure.case}: {figure.name} | {to_reach(figure)} | {seen} | {held} |")
    return lines


def to_reach(figure: Figure) -> str:
    """The limits of a figure, in words."""
    low, high = figure.low, figure.high
    if low is None and high is None:
        return ""
    if low is None:
        return f"at most {high:g}"
    if high is None:
        return f"at least {low:g}"
    if low == high:
        return f"{low:g}"
    return f"{low:g} to {high:g}"
