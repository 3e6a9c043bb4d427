"""The plot of the frontier: its lines, the promise, its words, and what is not foretold."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from matplotlib.axes import Axes

from benchlib import plots
from benchlib.questions.batching.frontier import COLUMNS, Frontier
from benchlib.study.store import Run


def frontier(*names: str, **changes: Any) -> Frontier:
    rows = []
    for place, name in enumerate(names, start=1):
        for rate, took_s in ((0.5, 0.5), (1.0, 1.0), (1.4, 20.0)):
            rows.append((name, rate * place, took_s, (0.9 * took_s, 1.1 * took_s)))
    known = {
        "slo": "p95 < 1 s",
        "rows": pd.DataFrame(rows, columns=COLUMNS),
        "capacities": {name: (float(place), None) for place, name in enumerate(names, start=1)},
        "images": dict.fromkeys(names, 60),
    }
    return Frontier(**(known | changes))


def title(ax: Axes) -> str:
    return " ".join(ax.get_title("left").split()).replace("\u00a0", " ")


def words(ax: Axes) -> set[str]:
    return {text.get_text() for text in ax.texts}


def test_a_line_for_each_policy_and_the_promise(made: SimpleNamespace) -> None:
    ax = plots.frontier(foretold=frontier("serial", "continuous"), record=made.record())
    assert title(ax).endswith("foretold images/s within p95 < 1 s: 2 continuous, 1 serial")
    assert "promised:\np95 < 1 s" in words(ax)
    legend = ax.get_legend()
    assert legend is not None
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["continuous: 2 images/s", "serial: 1 image/s"], "the most first"
    assert ax.get_ylim() == (0, 3), "a line leaves the axes at three times the promise"
    assert ax.get_xlim()[0] == 0
    assert "foretold from 120 images" in "".join(words(ax))
    assert "continuous 0.5 s at 1/s" in str(ax.get_label())


def test_recipes_have_lines_too(made: SimpleNamespace) -> None:
    ax = plots.frontier(foretold=frontier("baseline", "bf16"), record=made.record())
    lines = [line for line in ax.lines if len(line.get_xdata()) == 3]
    assert len({line.get_color() for line in lines}) == 2


def test_what_is_not_foretold_is_said(made: SimpleNamespace) -> None:
    refusals = {"dynamic": "18 images show too little"}
    part = plots.frontier(foretold=frontier("serial", refusals=refusals), record=made.record())
    assert title(part).endswith("1 serial; nothing is foretold of dynamic")
    unknown = frontier("serial", capacities={"serial": (None, None)})
    ax = plots.frontier(foretold=unknown, record=made.record())
    assert "how many images/s keep p95 < 1 s is not shown" in title(ax)
    empty = Frontier(None, pd.DataFrame([], columns=COLUMNS), refusals=refusals)
    nothing = plots.frontier(foretold=empty, record=made.record())
    assert "dynamic: 18 images show too little" in str(nothing.get_label())
    assert plots.show(nothing).png is None


@pytest.mark.parametrize(("requests", "marks"), [(39, 0), (60, 1)])
def test_a_run_is_a_mark_if_it_carries_the_percentile(
    made: SimpleNamespace, requests: int, marks: int
) -> None:
    arrivals = {"kind": "open_loop", "rate": 10}
    took_s = [0.4 + 0.1 * (i % 3) for i in range(requests)]
    frames = made.run(took_s, spec={"arrivals": arrivals})
    run = Run(*frames, Path("results/batching/run"))
    ax = plots.frontier(foretold=frontier("serial"), record=made.record(), runs=[run])
    assert ("small marks: 1 run" in "".join(words(ax))) == bool(marks)
    legend = ax.get_legend()
    assert legend is not None
    names = [text.get_text() for text in legend.get_texts()]
    assert ("hollow: a run of 40 requests or more" in names) == bool(marks)
