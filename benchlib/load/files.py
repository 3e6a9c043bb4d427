"""Reads prompts and traces from .txt, .csv and .jsonl files. Ignorant of which values are good."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

# A number may be too large for a float, JSON too deep, a cell of a table too long.
BAD_LINE = (ValueError, KeyError, TypeError, OverflowError, RecursionError, csv.Error)
"""What a line of another form raises."""


def read_prompts(path: Path) -> list[Any]:
    """The prompts of a .txt (one a line), .csv (column `prompt`) or .jsonl file (key `prompt`).

    Raises ValueError that names the file, also where there is no prompt in it.
    """
    if path.suffix not in (".txt", ".csv", ".jsonl"):
        raise ValueError(f"{path}: prompts are read from .txt, .csv or .jsonl files")
    try:
        with _opened(path) as file:
            prompts = _prompts_in(file, path.suffix)
    except BAD_LINE as error:
        if path.suffix == ".csv":
            raise ValueError(f"{path}: {error}") from error
        like = '{"prompt": "..."}'
        raise ValueError(f"{path}: each line must be like {like} in UTF-8: {error!r}") from error
    if not prompts:
        raise ValueError(f"{path}: there is no prompt in it")
    return prompts


def _prompts_in(file: IO[str], suffix: str) -> list[Any]:
    if suffix == ".csv":
        table = csv.DictReader(file)
        columns = table.fieldnames or []
        if "prompt" not in columns:
            raise ValueError(f"it has no column prompt; it has {', '.join(columns) or 'none'}")
        return [row["prompt"] for row in table]
    if suffix == ".jsonl":
        return [row["prompt"] for row in _json_lines(file)]
    lines = [line.strip() for line in file]
    return [line for line in lines if line]


def read_trace(path: Path, fields: Iterable[str]) -> tuple[list[float], list[dict[str, Any]]]:
    """The moments (`time_s`, seconds) and, for each, the request's `fields` that are not empty.

    Reads a .csv, its columns named in the first line, or else a .jsonl file, an object a line.
    Raises one of BAD_LINE for a line of another form.
    """
    times_s: list[float] = []
    requests: list[dict[str, Any]] = []
    with _opened(path) as file:
        for row in _rows_in(file, path.suffix):
            times_s.append(float(row["time_s"]))
            request = {}
            for name in fields:
                if row.get(name) not in (None, ""):
                    request[name] = row[name]
            requests.append(request)
    return times_s, requests


def _rows_in(file: IO[str], suffix: str) -> Iterable[dict[str, Any]]:
    return csv.DictReader(file) if suffix == ".csv" else _json_lines(file)


def _opened(path: Path) -> IO[str]:
    return path.open(encoding="utf-8-sig", newline="")


def _json_lines(file: IO[str]) -> Iterator[dict[str, Any]]:
    for line in file:
        if line.strip():
            yield json.loads(line)
