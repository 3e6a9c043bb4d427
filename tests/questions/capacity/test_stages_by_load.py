"""Where the time goes at each load: the bars, the words, and what is left out."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.axes import Axes

from benchlib import plots
from benchlib.study.store import Run, Study


def study(made: SimpleNamespace, *points: tuple[float, int, float], kind: str = "users") -> Study:
    """A run for each load, number of images, and seconds that each image waited."""
    runs = []
    for load, images, queue_s in points:
        arrivals = {"kind": "closed_loop" if kind == "users" else "open_loop", kind: load}
        took = [0.5 + queue_s] * images
        record, requests, telemetry = made.run(took, gap_s=1 / load, spec={"arrivals": arrivals})
        parts = {"encode_s": 0.1, "denoise_s": 0.3, "decode_s": 0.1, "queue_s": queue_s}
        runs.append(Run(record, requests.assign(**parts), telemetry, Path("results/load/run")))
    return Study(Path("results/load"), tuple(runs))


def draw(made: SimpleNamespace, *points: Any, kind: str = "users") -> Axes:
    of_loads = study(made, *points, kind=kind)
    return plots.stages_by_load(study=of_loads, record=made.record())


def title(ax: Axes) -> str:
    return " ".join(ax.get_title("left").split()).replace("\u00a0", " ")


def test_each_load_has_a_bar_of_its_parts(made: SimpleNamespace) -> None:
    ax = draw(made, (4, 60, 1.5), (1, 60, 0.0))
    heights = {bars.get_label(): [bar.get_height() for bar in bars] for bars in ax.containers}
    assert heights["waiting in the queue"] == pytest.approx([0.0, 1.5])
    assert heights["denoising"] == pytest.approx([0.3, 0.3])
    assert "network and client" not in heights
    assert title(ax) == (
        "tiny model, not SDXL: an image takes 0.5 s with 1 user, 0 % of it waiting; "
        "2 s with 4 users, 75 % of it waiting"
    )
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [
        "1\n(60 images)",
        "4\n(60 images)",
    ]
    assert ax.get_ylim()[0] == 0


def test_runs_of_one_load_are_one_bar_and_rates_are_loads_too(made: SimpleNamespace) -> None:
    ax = draw(made, (2.0, 30, 0.5), (2.0, 30, 1.5), kind="rate")
    assert "1.5 s with 2 requests/s, 67 % of it waiting" in title(ax)
    assert "60 images" in ax.get_xticklabels()[0].get_text()


@pytest.mark.parametrize("few", [1, 4])
def test_a_load_of_few_images_is_left_out_in_words(made: SimpleNamespace, few: int) -> None:
    ax = draw(made, (1, 60, 0.0), (8, few, 2.0))
    assert title(ax).endswith("0 % of it waiting; too few images with 8 users")
    assert all(len(bars) == 1 for bars in ax.containers)
    alone = draw(made, (8, few, 2.0))
    assert "no load has 5 images" in str(alone.get_label())
    assert plots.show(alone).png is None


def test_latency_that_kept_rising_is_said(made: SimpleNamespace) -> None:
    rising = study(made, (4, 100, 0.0))
    (run,) = rising.runs
    took = run.requests["scheduled_s"] / 3
    drifted = Run(run.record, run.requests.assign(latency_s=took), run.telemetry, run.path)
    ax = plots.stages_by_load(study=Study(rising.path, (drifted,)), record=run.record)
    assert any("and rising" in text.get_text() for text in ax.texts)
