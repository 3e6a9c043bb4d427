"""Writes one web page of a whole results folder: results/index.html.

The questions of the notebooks come first, in their order, then the other studies, the newest first.
The reference studies, which come with the project, are folded away at the end.

answers.json, beside the page, holds the questions with their answers for programs.

The page opens from disk, without a network. Knows the layout of the studies' folders, and reads
records, summary.csv, verdict.json and the figures' own alt texts. Ignorant of rows, of how any
figure is computed or drawn, and of how the page looks (report.html).
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment
from PIL import Image

from benchlib.answers import read_answer, read_failure, write_answers
from benchlib.study.busy import busy_sentence
from benchlib.study.folders import results_dir
from benchlib.study.store import scan_records
from benchlib.study.wording import counted, number

HEADLINES = (
    "forest",
    "nights",
    "decision",
    "ladder",
    "hockey_stick",
    "frontier",
    "gain",
    "promise_over_day",
    "latency_over_time",
    "cost_line",
    "load_curve",
    "latency_distribution",
)
"""The figures that come first; the others follow by name. The first is shown large."""
KEY_FIGURES = {
    "throughput_images_per_s": "images/s",
    "latency_p50_s": "half within, s",
    "latency_p95_s": "95 % within, s",
    "rss_peak_gib": "process, GiB",
    "cuda_reserved_peak_gib": "GPU, GiB",
}
"""The columns of summary.csv that a card shows, and what a reader calls them."""
MOST_RUNS = 6
"""So many runs a card has with their figures; the table has all."""
QUESTIONS = {
    "quickstart": "Does it work here?",
    "time_and_memory": "Where do an image's time and memory go?",
    "load": "How many people can it serve?",
    "batching": "Is batching worth it here?",
    "settings": "Which settings should I run?",
    "compare": "Did it get worse?",
    "scale": "How many GPUs, and what will a day cost?",
}
"""The question of each notebook, by the name of its study and in the notebooks' order."""
AUXILIARY = ("compare-first", "compare-again", "compare-slower", "compare-warm-up")
"""The studies that notebook 06 makes only to compare them."""
COMPARES = "compare"
COMPARED = "compare-slower"
"""The study of notebook 06 has no run of its own: its figures lie with the newest it compared."""
ABOUT = "about.txt"
"""A line in a reference's folder that has no table: when and on which machine it was measured."""
REFERENCE = "reference-"
"""How the names of the folders begin that come with the project."""


@dataclass(frozen=True)
class Line:
    """A paragraph; `kind` is "answer", "rest" of it, "bad", "tiny" or "" for a plain one."""

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


@dataclass(frozen=True)
class KeyFigures:
    """The figures of the last runs, as text. `more` runs are in the table alone."""

    head: list[str]
    rows: list[list[str]]
    more: int = 0


@dataclass
class Card:
    """One study on the page. `started` is when its last run began, "" where that is unknown.

    `anchor` is where a link of a notebook leads.
    """

    name: str
    title: str = ""
    started: str = ""
    anchor: str = ""
    lines: list[Line] = field(default_factory=list)
    figures: KeyFigures | None = None
    pictures: list[Thumbnail] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    runs: list[Link] = field(default_factory=list)


@dataclass(frozen=True)
class Section:
    """Cards under one heading; a reader unfolds those that few need."""

    title: str
    cards: list[Card]
    is_folded: bool = False


def write_report(results: str | os.PathLike[str] | None = None) -> Path:
    """Writes index.html and answers.json into `results`; returns the path of the page.

    A study that can't be read is listed as broken, with the reason. Raises ValueError where there
    is no such folder.
    """
    results = results_dir(results)
    if not results.is_dir():
        raise ValueError(f"results: {results} is not a folder; name the folder that runs write to")
    sections = [section for section in _sections(results) if section.cards]
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True)
    page = environment.from_string(template).render(title="Results of benchlib", sections=sections)
    path = results / "index.html"
    path.write_text(page, encoding="utf-8", errors="replace")
    write_answers(results, QUESTIONS)
    return path


def _sections(results: Path) -> Iterator[Section]:
    """The questions, other studies, those that only serve a comparison, and the references."""
    # 1) The folders of each section
    folders = [path for path in results.iterdir() if path.is_dir()]
    own: dict[str, Path] = {}
    references = []
    for folder in sorted(folders):
        if folder.name.startswith(REFERENCE):
            references.append(folder)
        elif not folder.name.startswith("."):
            own[folder.name] = folder

    # 2) The cards of the studies that were made here
    questions = [_card(own.pop(name), results) for name in QUESTIONS if name in own]
    for card in questions:
        card.title = QUESTIONS[card.name]
        if card.name == COMPARES:
            _show_what_it_compared(card, results)
        _put_answer_on_top(card, results)
    auxiliary = [_card(own.pop(name), results) for name in AUXILIARY if name in own]
    others = [_card(folder, results) for folder in own.values()]
    others.sort(key=lambda card: card.started, reverse=True)
    yield Section("The questions, in the notebooks' order", questions)
    yield Section("Other studies, the newest first", others)
    yield Section("Made to be compared by notebook 06", auxiliary, is_folded=True)

    # 3) Those of the references
    for folder in references:
        where = folder.name.removeprefix(REFERENCE).upper()
        cards = _reference_cards(folder, results)
        yield Section(f"Measured elsewhere, as a reference: {where}", cards, is_folded=True)


def _reference_cards(folder: Path, results: Path) -> list[Card]:
    """A card for each study of a reference, which may have kept its pictures or its runs alone."""
    places = {path.parent for path in folder.rglob("figures")}
    places |= {path.parent.parent for path in folder.rglob("run.json")}
    cards = []
    for place in sorted(places):
        name = place.relative_to(folder).as_posix()
        card = Card(folder.name if name == "." else name)
        card.title = QUESTIONS.get(name, "")
        try:
            _describe_reference(card, place)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            card.lines = [Line(f"its summary.csv can't be read: {error!r}", "bad")]
        _add_pictures(card, place, results)
        if not card.lines:
            # The words of the first picture with any name the machine, which no table does here.
            told = [picture.alt for picture in card.pictures if " " in picture.alt]
            card.lines += [Line(alt) for alt in told[:1]]
        _add_links(card, place, results)
        cards.append(card)
    order = list(QUESTIONS)
    cards.sort(key=lambda card: order.index(card.name) if card.title else len(order))
    return cards


def _describe_reference(card: Card, place: Path) -> None:
    """Adds what the kept table says of runs that were not kept: date, model, validity, figures."""
    card.lines += _verdict_lines(place)
    about = place / ABOUT
    if about.exists():
        card.lines.append(Line(about.read_text(encoding="utf-8").strip()))
    if not (place / "summary.csv").exists():
        return
    rows = _summary_rows(place)
    moment = max(row["started_at"] for row in rows)
    models = dict.fromkeys(row["model"] or "a server elsewhere" for row in rows)
    card.lines.append(Line(f"{_minute(moment)} · {_machine_words(place)}".rstrip(" ·")))
    card.lines += _model_lines(list(models))
    card.lines += _validity(rows, len(rows))
    card.figures = _key_figures(rows)


def _machine_words(place: Path) -> str:
    """The machine of a reference, from any of its runs that were kept, here or beside it."""
    for folder in (place, *place.parents):
        for path in sorted(folder.glob("**/run.json")):
            return _hardware(json.loads(path.read_bytes())["machine"])
        if folder.name.startswith(REFERENCE):
            break
    return ""


def _card(folder: Path, results: Path) -> Card:
    card = Card(folder.name, anchor=folder.name)
    try:
        found, unreadable = scan_records(folder)
        records = [record for _, record in found]
        if records:
            card.started = _started(records[-1])
            card.lines += _where_and_what(records)
            rows = [row for row in _summary_rows(folder) if row["run"] not in unreadable]
            card.lines += _validity(rows, len(records))
            card.lines += _verdict_lines(folder)
            card.figures = _key_figures(rows)
            card.lines += [
                Line(f"left out: {run}: {reason}", "bad") for run, reason in unreadable.items()
            ]
        elif unreadable:
            raise ValueError("; ".join(map(": ".join, unreadable.items())))
        elif any(folder.glob("figures/*.png")):
            card.lines.append(Line("pictures alone: the runs are not in this folder"))
        else:
            raise ValueError("it holds no run")
    except (OSError, ValueError) as error:
        card.lines = [Line(f"broken: {error}", "bad")]
    except (KeyError, TypeError, AttributeError) as error:
        card.lines = [Line(f"broken: {error!r}", "bad")]
    _add_pictures(card, folder, results)
    _add_links(card, folder, results)
    return card


def _show_what_it_compared(card: Card, results: Path) -> None:
    """Adds the figures of the studies that notebook 06 made, if its answer is about them."""
    answer = read_answer(results / card.name)
    if card.runs or answer is None:
        return
    card.lines = [Line("Its runs and figures are with the studies that it compared.")]
    if answer.startswith(f"{COMPARED} against "):
        _add_pictures(card, results / COMPARED, results)


def _put_answer_on_top(card: Card, results: Path) -> None:
    """Puts the notebook's answer before the other lines, one of which may say the same."""
    failure = read_failure(results / card.name)
    if failure is not None:
        card.lines.insert(0, Line(f"The notebook stopped: {failure}", "bad"))
    answer = read_answer(results / card.name)
    if answer is None or any(line.text == answer for line in card.lines):
        return
    first, _, rest = answer.partition("\n")
    card.lines.insert(0, Line(first, "answer"))
    if rest:
        card.lines.insert(1, Line(rest, "rest"))


def _started(record: dict[str, Any]) -> str:
    return str(record["started_at"])


def _where_and_what(records: list[dict[str, Any]]) -> list[Line]:
    """Lines that name the last run's time and machine, and the models of all runs."""
    # 1) The last run.
    last = records[-1]
    lines = [Line(f"{_minute(last['started_at'])} · {_hardware(last['machine'])}")]

    # 2) All models, each once.
    models: dict[str, None] = {}
    for record in records:
        target = record["spec"]["target"]
        name = target["model"] or target["url"]
        models[str(name)] = None
    return lines + _model_lines(list(models))


def _minute(moment: str) -> str:
    return f"{moment[:16].replace('T', ' ')} UTC"


def _hardware(machine: dict[str, Any]) -> str:
    parts = [machine["cpu"], counted(machine["cores"], "core"), machine["gpu"]]
    return " · ".join(part for part in parts if part)


def _model_lines(models: list[str]) -> list[Line]:
    """Lines that name the models; the tiny one is no SDXL."""
    lines = []
    if "tiny" in models:
        lines.append(Line("tiny model, not SDXL", "tiny"))
    others = [model for model in models if model != "tiny"]
    if others:
        lines.append(Line(f"model {', '.join(others)}"))
    return lines


def _summary_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "summary.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _key_figures(rows: list[dict[str, str]]) -> KeyFigures | None:
    """The figures of the last runs, without columns that no run has."""
    shown = rows[-MOST_RUNS:]
    columns = [name for name in KEY_FIGURES if any(row.get(name) for row in shown)]
    if not columns:
        return None
    body = []
    for row in shown:
        figures = [_figure(row.get(column)) for column in columns]
        body.append([_run_words(row), *figures, _trust_words(row)])
    names = [KEY_FIGURES[column] for column in columns]
    head = ["run", *names, "valid"]
    return KeyFigures(head, body, len(rows) - len(shown))


def _run_words(row: dict[str, str]) -> str:
    """A run's name without its time: "20261126-210929-users-1" is "users-1".

    Older runs have a rate of nine digits in their names.
    """
    *_, name = row["run"].split("-", 2)
    return re.sub(r"(?<=-)\d+\.\d{3,}", lambda rate: number(float(rate[0])), name)


def _trust_words(row: dict[str, str]) -> str:
    """Whether the run's figures may be trusted: the times of a suspect run may be too long."""
    if row["valid"] != "True":
        return "no"
    return "yes, but busy" if row.get("suspect_reason") else "yes"


def _figure(text: str | None) -> str:
    return number(float(text)) if text else ""


def _validity(rows: list[dict[str, str]], runs: int) -> list[Line]:
    """Lines that say how many of the study's runs are valid, why not, and if others ran beside."""
    valid = sum(row["valid"] == "True" for row in rows)
    lines = [Line(f"{valid} of {counted(runs, 'run')} valid", "" if valid == runs else "bad")]
    if len(rows) < runs:
        reason = "a run without a line in summary.csv is going on, or was killed"
        lines.append(Line(reason, "bad"))
    reasons = dict.fromkeys(row["invalid_reason"] for row in rows)
    lines += [Line(reason, "bad") for reason in reasons if reason]
    busy = busy_sentence(rows)
    if busy is not None:
        lines.append(Line(busy, "bad"))
    return lines


def _verdict_lines(folder: Path) -> list[Line]:
    """The answer of a comparison, where there is one."""
    path = folder / "verdict.json"
    if not path.exists():
        return []
    verdict = json.loads(path.read_bytes())
    is_bad = verdict["verdict"] in ("worse", "invalid")
    return [Line(str(verdict["answer"]), "bad" if is_bad else "")]


def _add_pictures(card: Card, folder: Path, results: Path) -> None:
    """Adds the figures, and a line for each that can't be read."""
    paths = list((folder / "figures").glob("*.png"))
    paths.sort(key=_rank)
    for path in paths:
        try:
            with Image.open(path) as image:
                width, height = image.size
                alt = str(image.info.get("Description", path.stem))
        except (OSError, SyntaxError) as error:  # no picture, or a damaged one
            card.lines.append(Line(f"{path.name} can't be read: {error}", "bad"))
            continue
        thumbnail = Thumbnail(_url(path, results), width, height, alt)
        card.pictures.append(thumbnail)


def _rank(path: Path) -> tuple[int, str]:
    """The sort key of a figure: HEADLINES in their order, then the others by name."""
    is_headline = path.stem in HEADLINES
    rank = HEADLINES.index(path.stem) if is_headline else len(HEADLINES)
    return rank, path.name


def _add_links(card: Card, folder: Path, results: Path) -> None:
    """Adds links to the executed notebooks, their logs, the table, and each run's record.

    Not to folders: many web servers show no list of one.
    """
    paths = sorted(folder.glob("*.html"), key=lambda path: len(path.name))
    for ending in ("log", "jsonl"):
        paths += sorted(folder.glob(f"*.{ending}"))
    paths.append(folder / "summary.csv")
    for path in paths:
        if path.exists():
            card.links.append(Link(_url(path, results), path.name))
    for record in sorted(folder.glob("*/run.json"), reverse=True):
        card.runs.append(Link(_url(record, results), record.parent.name))


def _url(path: Path, results: Path) -> str:
    """The address of a file or folder from the page, which lies in `results`."""
    relative = path.relative_to(results)
    return quote(relative.as_posix())
