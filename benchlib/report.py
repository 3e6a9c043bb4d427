"""One web page of all that is in a results folder: results/index.html, which opens from disk without a network.

Knows the layout of the studies' folders and reads records, summary.csv, verdict.json and the figures' own alt texts.
Ignorant of rows and of how any figure is reckoned or drawn.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from benchlib.study.store import results_dir

HEADLINES = (
    "forest",
    "nights",
    "decision",
    "hockey_stick",
    "gain",
    "load_curve",
    "latency_distribution",
)
"""The figures that are shown first; the others come by name, MOST at most."""
MOST = 5

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light dark; --text: #1a1a1a; --page: #fff; --card: #f4f4f4; --quiet: #595959; --bad: #b00020; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --text: #eee; --page: #161616; --card: #242424; --quiet: #b0b0b0; --bad: #ff8a80; }} a {{ color: #8ab4f8; }}
}}
body {{ margin: 0 auto; padding: 1rem; max-width: 78rem; font: 1rem/1.5 system-ui, sans-serif; color: var(--text);
  background: var(--page); overflow-wrap: anywhere; }}
article {{ background: var(--card); border-radius: .5rem; padding: 1rem; margin: 1rem 0; }}
h2, p {{ margin: 0 0 .4rem; }} h2 {{ font-size: 1.2rem; }} small, .quiet {{ color: var(--quiet); }}
.bad {{ color: var(--bad); font-weight: 600; }} .tiny {{ font-weight: 600; }}
.figures {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); gap: .6rem; }}
.figures img {{ width: 100%; height: auto; background: #fff; border-radius: .25rem; display: block; }}
</style></head><body><h1>{title}</h1>
<p class="quiet">{count}, the newest first.</p>
{studies}
</body></html>
"""


def write_report(results: str | os.PathLike[str] | None = None) -> Path:
    """Writes index.html into `results` (see `store.results_dir`) and returns its path.

    A study that can't be read is listed as broken, with the reason. Raises ValueError where there is no such folder.
    """
    results = results_dir(results)
    if not results.is_dir():
        raise ValueError(f"results: {results} is no folder; name the one that runs write to")
    folders = (
        path for path in results.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    cards = sorted((_card(folder) for folder in folders), key=lambda card: card[0], reverse=True)
    count = f"{len(cards)} {'study' if len(cards) == 1 else 'studies'}"
    page = _PAGE.format(
        title="Results of benchlib", count=count, studies="\n".join(html for _, html in cards)
    )
    path = results / "index.html"
    path.write_text(page, encoding="utf-8", errors="replace")
    return path


def _card(folder: Path) -> tuple[str, str]:
    """When the study was last measured, "" where that is not known, and its part of the page."""
    started = ""
    try:
        records = sorted(_records(folder), key=lambda record: str(record["started_at"]))
        if not records:
            raise ValueError("it holds no run")
        started, parts = str(records[-1]["started_at"]), [*_about(folder, records)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        parts = [
            _p(
                f"broken: {error if isinstance(error, ValueError | OSError) else repr(error)}",
                "bad",
            )
        ]
    lines = [
        f"<article><h2>{escape(folder.name)}</h2>",
        *parts,
        *_figures(folder),
        *_links(folder),
        "</article>",
    ]
    return started, "\n".join(lines)


def _p(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def _records(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("*/run.json")):
        try:
            yield json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path.relative_to(folder)} is damaged: {error}") from error


def _about(folder: Path, records: list[dict[str, Any]]) -> Iterator[str]:
    """What was measured, when, where, and what came of it."""
    last = records[-1]
    models = dict.fromkeys(
        record["spec"]["target"]["model"] or record["spec"]["target"]["url"] for record in records
    )
    machine = last["machine"]
    hardware = [machine["cpu"], f"{machine['cores']} cores", machine["gpu"]]
    yield _p(
        " · ".join(
            str(part)
            for part in [last["started_at"][:16].replace("T", " ") + " UTC", *hardware]
            if part
        )
    )
    if "tiny" in models:
        yield _p("tiny model, not SDXL", "tiny")
    if others := [str(model) for model in models if model != "tiny"]:
        yield _p(f"model {', '.join(others)}")
    with (folder / "summary.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    valid = sum(row["valid"] == "True" for row in rows)
    yield _p(f"{valid} of {len(records)} runs valid", "" if valid == len(records) else "bad")
    if len(rows) < len(records):
        yield _p("a run without a line in summary.csv is going on, or was killed", "bad")
    yield from (
        _p(reason, "bad")
        for reason in dict.fromkeys(row["invalid_reason"] for row in rows)
        if reason
    )
    if (path := folder / "verdict.json").exists():
        verdict = json.loads(path.read_bytes())
        yield _p(
            str(verdict["answer"]), "bad" if verdict["verdict"] in ("worse", "invalid") else ""
        )


def _figures(folder: Path) -> Iterator[str]:
    ranks = {name: rank for rank, name in enumerate(HEADLINES)}
    paths = sorted(
        (folder / "figures").glob("*.png"),
        key=lambda path: (ranks.get(path.stem, len(ranks)), path.name),
    )
    yield '<div class="figures">'
    for path in paths[:MOST]:
        try:
            with Image.open(path) as image:
                (width, height), alt = image.size, image.info.get("Description", path.stem)
        except (
            OSError,
            SyntaxError,
        ) as error:  # what Pillow raises for a file that is no picture, or a damaged one
            yield _p(f"{path.name} can't be read: {error}", "bad")
            continue
        url, size = _url(folder, path), f'width="{width}" height="{height}"'
        yield f'<a href="{url}"><img loading="lazy" src="{url}" {size} alt="{escape(str(alt))}"></a>'
    yield "</div>"


def _links(folder: Path) -> Iterator[str]:
    """To what a reader may want to open: executed notebooks, the table, all figures, and the runs."""
    found = [
        *sorted(folder.glob("*.html")),
        *(folder / name for name in ("summary.csv", "figures")),
    ]
    shown = [
        f'<a href="{_url(folder, path)}">{escape(path.name)}</a>' for path in found if path.exists()
    ]
    yield f"<p>{' · '.join(shown)}</p>"
    if runs := [path.parent for path in sorted(folder.glob("*/run.json"), reverse=True)]:
        items = "".join(
            f'<li><a href="{_url(folder, run)}/">{escape(run.name)}</a></li>' for run in runs
        )
        yield f"<details><summary>{len(runs)} run{'s' * (len(runs) > 1)}</summary><ul>{items}</ul></details>"


def _url(folder: Path, path: Path) -> str:
    return quote(path.relative_to(folder.parent).as_posix())
