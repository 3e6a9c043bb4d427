"""Plots of images made one at a time, for no row, one and many; titles state the finding."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from benchlib import plots
from benchlib.questions.anatomy import judge


def title(ax: Axes) -> str:
    return ax.get_title("left").replace("\u00a0", " ").replace("\n", " ")


@pytest.mark.parametrize("count", [0, 1, 300])
def test_plots_take_no_row_one_and_many(made: SimpleNamespace, count: int) -> None:
    record = made.run([1.0])[0] | {"networks": made.networks}
    images = made.images(images=max(count, 1)).iloc[: count and None if count != 1 else 1]
    for draw in (plots.stage_stack, plots.cost_line, plots.against_pixels):
        ax = draw(requests=images, record=record)
        assert title(ax).startswith("tiny model, not SDXL")
        assert (
            "no data" in "".join(text.get_text() for text in ax.texts).lower() + title(ax).lower()
        ) == (count == 0)
    telemetry = made.samples(np.full(count, 1.0))
    assert title(plots.memory_trend(telemetry=telemetry, record=record)).startswith(
        "tiny model, not SDXL"
    )
    parts = (
        judge.memory_parts(record, images, telemetry)
        if count
        else pd.DataFrame(columns=["kind", "part", "gib", "params"])
    )
    assert title(plots.memory_bars(parts=parts, record=record)).startswith("tiny model, not SDXL")


def test_a_size_is_marked_where_python_is_the_limit(made: SimpleNamespace) -> None:
    record = made.run([1.0])[0]
    images = made.images(launch_shares=(0.97, 0.4))
    ax = plots.cost_line(requests=images, record=record)
    labels = [text.get_text() for text in ax.texts if "a step" in text.get_text()]
    assert [label.partition(":")[0] for label in labels if "Python is the limit" in label] == [
        "64x64"
    ]
    assert "Python" not in title(ax)
    small = images[images["width"] == 64]
    assert title(plots.cost_line(requests=small, record=record)).endswith("Python is the limit")


def test_titles_state_what_was_found(made: SimpleNamespace) -> None:
    record = made.run([1.0])[0]
    images = made.images()
    assert "0.2" in title(plots.cost_line(requests=images, record=record))
    assert "cost at 128x128: not shown, too few images" in title(
        plots.cost_line(requests=made.images(1), record=record)
    )
    assert "denoising" in title(plots.stage_stack(requests=images, record=record)).lower()
    grown = made.samples(1 + np.arange(300) * 200 / 2**20)
    assert "leaks (200 to 200 KiB/image)" in title(
        plots.memory_trend(telemetry=grown, record=record)
    )
