"""Writes one web page of a whole results folder: results/index.html.

The page opens from disk, without a network. Knows the layout of the studies' folders, and reads
records, summary.csv, verdict.json and the figures' own alt texts. Ignorant of rows, of how any
figure is computed or drawn, and of how the page looks (report.html).
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment
from PIL import Image

from benchlib.study.folders import results_dir

HEADLINES = (
    "forest",
    "nights",
    "decision",
    "hockey_stick",
    "gain",
    "load_curve",
    "latency_distribution",
)
"""The figures that are shown first; the others follow by name. At most MOST are shown."""
MOST = 5


@dataclass(frozen=True)
class Line:
    """A paragraph; `kind` is "bad", "tiny" or "" for a plain one."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Thumbnail:
    """A figure's file, its size in pixels and its own alt text."""

    url: str
    width: int
    height: int
    alt: str


@dataclass(frozen=True)
class Link:
    url: str
    text: str


@dataclass
class Card:
    """One study on the page. `started` is when its last run began, "" where that is unknown."""

    name: str
    started: str = ""
    lines: list[Line] = field(default_factory=list)
    pictures: list[Thumbnail] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    runs: list[Link] = field(default_factory=list)


def write_report(results: str | os.PathLike[str] | None = None) -> Path:
    """Writes index.html into `results` (see `folders.results_dir`) and returns its path.

    A study that can't be read is listed as broken, with the reason. Raises ValueError where there
    is no such folder.
    """
    results = results_dir(results)
    if not results.is_dir():
        raise ValueError(f"results: {results} is not a folder; name the folder that runs write to")
    folders = [path for path in results.iterdir() if path.is_dir()]
    cards = [_card(folder) for folder in folders if not folder.name.startswith(".")]
    cards.sort(key=lambda card: card.started, reverse=True)

    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True)
    page = environment.from_string(template).render(title="Results of benchlib", cards=cards)
    path = results / "index.html"
    path.write_text(page, encoding="utf-8", errors="replace")
    return path


def _card(folder: Path) -> Card:
    card = Card(folder.name)
    try:
        records = list(_records(folder))
        if not records:
            raise ValueError("it holds no run")
        records.sort(key=_started)
        card.started = _started(records[-1])
        card.lines += _where_and_what(records)
        card.lines += _validity(folder, len(records))
        card.lines += _verdict_lines(folder)
    except (OSError, ValueError) as error:
        card.lines = [Line(f"broken: {error}", "bad")]
    except (KeyError, TypeError, AttributeError) as error:
        card.lines = [Line(f"broken: {error!r}", "bad")]
    _add_pictures(card, folder)
    _add_links(card, folder)
    return card


def _started(record: dict[str, Any]) -> str:
    return str(record["started_at"])


def _records(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("*/run.json")):
        try:
            yield json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path.relative_to(folder)} is damaged: {error}") from error


def _where_and_what(records: list[dict[str, Any]]) -> list[Line]:
    """Lines that name the last run's time and machine, and the models of all runs."""
    # 1) The last run.
    last = records[-1]
    machine = last["machine"]
    moment = last["started_at"][:16].replace("T", " ")
    parts = [f"{moment} UTC", machine["cpu"], f"{machine['cores']} cores"]
    if machine["gpu"]:
        parts.append(machine["gpu"])
    lines = [Line(" · ".join(part for part in parts if part))]

    # 2) All models, each once.
    models: dict[str, None] = {}
    for record in records:
        target = record["spec"]["target"]
        name = target["model"] or target["url"]
        models[str(name)] = None
    if "tiny" in models:
        lines.append(Line("tiny model, not SDXL", "tiny"))
    others = [model for model in models if model != "tiny"]
    if others:
        lines.append(Line(f"model {', '.join(others)}"))
    return lines


def _validity(folder: Path, runs: int) -> list[Line]:
    """Lines that say how many of the study's runs are valid, and why the others are not."""
    with (folder / "summary.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    valid = sum(row["valid"] == "True" for row in rows)
    lines = [Line(f"{valid} of {runs} runs valid", "" if valid == runs else "bad")]
    if len(rows) < runs:
        reason = "a run without a line in summary.csv is going on, or was killed"
        lines.append(Line(reason, "bad"))
    reasons = dict.fromkeys(row["invalid_reason"] for row in rows)
    lines += [Line(reason, "bad") for reason in reasons if reason]
    return lines


def _verdict_lines(folder: Path) -> list[Line]:
    """The answer of a comparison, where there is one."""
    path = folder / "verdict.json"
    if not path.exists():
        return []
    verdict = json.loads(path.read_bytes())
    is_bad = verdict["verdict"] in ("worse", "invalid")
    return [Line(str(verdict["answer"]), "bad" if is_bad else "")]


def _add_pictures(card: Card, folder: Path) -> None:
    """Adds the first MOST figures, and a line for each that can't be read."""
    paths = list((folder / "figures").glob("*.png"))
    paths.sort(key=_rank)
    for path in paths[:MOST]:
        try:
            with Image.open(path) as image:
                width, height = image.size
                alt = str(image.info.get("Description", path.stem))
        except (OSError, SyntaxError) as error:  # no picture, or a damaged one
            card.lines.append(Line(f"{path.name} can't be read: {error}", "bad"))
            continue
        thumbnail = Thumbnail(_url(path, folder), width, height, alt)
        card.pictures.append(thumbnail)


def _rank(path: Path) -> tuple[int, str]:
    """The sort key of a figure: HEADLINES in their order, then the others by name."""
    is_headline = path.stem in HEADLINES
    rank = HEADLINES.index(path.stem) if is_headline else len(HEADLINES)
    return rank, path.name


def _add_links(card: Card, folder: Path) -> None:
    """Adds links to the executed notebooks, the table, the folder of figures, and each run."""
    paths = sorted(folder.glob("*.html"))
    paths += [folder / "summary.csv", folder / "figures"]
    for path in paths:
        if path.exists():
            card.links.append(Link(_url(path, folder), path.name))
    for record_path in sorted(folder.glob("*/run.json"), reverse=True):
        run = record_path.parent
        card.runs.append(Link(_url(run, folder), run.name))


def _url(path: Path, study: Path) -> str:
    """The address of a file of `study` from the page, which lies beside the study's folder."""
    relative = path.relative_to(study.parent)
    return quote(relative.as_posix())
