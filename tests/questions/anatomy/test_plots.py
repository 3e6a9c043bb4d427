"""Plots of images made one at a time, for no row, one and many; titles state the finding."""

from types import SimpleNamespace
from typing import Any

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
    assert title(plots.cost_line(requests=small, record=record)).endswith(
        "Python is the limit, 15 images"
    )


def test_titles_state_what_was_found(made: SimpleNamespace) -> None:
    record = made.run([1.0])[0]
    images = made.images()
    assert "0.2" in title(plots.cost_line(requests=images, record=record))
    assert "denoising" in title(plots.stage_stack(requests=images, record=record)).lower()
    grown = made.samples(1 + np.arange(300) * 200 / 2**20)
    assert "leaks (200 KiB/image, of which 2 are allowed)" in title(
        plots.memory_trend(telemetry=grown, record=record)
    )


def words(ax: Axes) -> str:
    """All that a plot says but its numbers at the axes."""
    legends = [legend.get_texts() for panel in ax.figure.axes if (legend := panel.get_legend())]
    entries = [entry.get_text() for entries in legends for entry in entries]
    texts = [text.get_text() for panel in ax.figure.axes for text in panel.texts]
    return " ".join([title(ax), *texts, *entries])


def lines(ax: Axes) -> list[Any]:
    """The lines that are drawn through points, and not the points themselves."""
    drawn = [line for panel in ax.figure.axes for line in panel.lines]
    return [line for line in drawn if line.get_linestyle() != "None" and len(line.get_xdata()) > 1]


@pytest.mark.parametrize("images", [1, 4])
def test_fewer_than_five_images_claim_nothing(made: SimpleNamespace, images: int) -> None:
    record = made.record()
    of_one_step_count = made.images(images)
    of_one_step_count = of_one_step_count[of_one_step_count["num_inference_steps"] == 8]
    there = f"it takes 5 images, there {'is 1 image' if images == 1 else 'are 4 images'}"
    stack = plots.stage_stack(requests=made.images(images), record=record)
    assert f"which stage takes the time is not shown: {there} of each size" in title(stack)
    assert "%" not in words(stack)
    assert f"{images} image" in words(stack)
    pixels = plots.against_pixels(requests=made.images(images), record=record)
    assert f"what size costs is not shown: {there} of 8 steps and one size" in title(pixels)
    assert " times as long" not in title(pixels)
    few = of_one_step_count.assign(num_inference_steps=[2, 8] * images)
    cost = plots.cost_line(requests=few, record=record)
    assert lines(cost) == []
    assert f"cost at 128x128: not shown by {'1 image' if images == 1 else '4 images'}" in (
        title(cost)
    ) or "no line" in title(cost)


def test_a_line_through_means_takes_five_images_at_each(made: SimpleNamespace) -> None:
    few = plots.against_pixels(requests=made.images(1), record=made.record())
    assert lines(few) == []
    many = plots.against_pixels(requests=made.images(5), record=made.record())
    assert [len(line.get_xdata()) for line in lines(many)][:3] == [2, 2, 2]
    assert "(5 images), 1.8 times as long as at 64x64" in title(many)
    assert many.figure.axes[1].get_ylim()[0] == 0, "memory is read as a length"


def test_a_cost_that_is_not_shown_has_no_line_below_its_steps(made: SimpleNamespace) -> None:
    images = made.images()
    random = np.random.default_rng(5)
    noisy = images.assign(total_s=images["total_s"] + random.normal(0, 0.3, len(images)))
    at_128 = noisy[noisy["width"] == 128]
    ax = plots.cost_line(requests=at_128, record=made.record())
    assert "a fixed cost is not shown" in words(ax)
    (line,) = lines(ax)
    assert line.get_xdata().tolist() == [2, 8]
    assert ax.get_ylim()[0] == 0
    only_noise = at_128.assign(total_s=random.normal(2, 0.5, len(at_128)))
    flat = plots.cost_line(requests=only_noise, record=made.record())
    assert "the cost of a step is not shown" in words(flat)
    assert lines(flat) == []


@pytest.mark.parametrize(("samples", "drawn"), [(39, 0), (40, 1), (300, 1)])
def test_the_limit_of_a_leak_is_drawn_where_a_leak_can_be_told(
    made: SimpleNamespace, samples: int, drawn: int
) -> None:
    ax = plots.memory_trend(telemetry=made.samples(np.full(samples, 1.0)), record=made.record())
    limits = [line for line in ax.lines if line.get_linestyle() == ":"]
    assert len(limits) == drawn
    assert ("the limit: 2 KiB" in words(ax)) == bool(drawn)
    for line in limits:
        first, last = line.get_ydata()
        assert last - first == pytest.approx(2 * (samples - samples // 4) / 1024)


def test_disturbed_arithmetic_is_drawn_as_measured_and_not_claimed(made: SimpleNamespace) -> None:
    share = {
        "part": "UNet step",
        "dtype": "float32",
        "tflop_per_s": 0.004,
        "limit_tflop_per_s": 0.2,
        "share": 0.02,
        "share_interval": None,
        "disturbed": "other processes took 1.31 of 2 cores (limit: 0.5)",
    }
    ax = plots.arithmetic_bars(shares=pd.DataFrame([share]), record=made.record())
    assert title(ax) == (
        "tiny model, not SDXL: the arithmetic's share is not shown: other processes took 1.31 of 2 "
        "cores (limit: 0.5) while it was timed"
    )
    assert ax.patches[0].get_width() == pytest.approx(2)


@pytest.mark.parametrize(("share", "beside"), [(0.3, 30), (0.9, 100), (1.1, 110)])
def test_the_words_beside_a_bar_do_not_cross_the_limit(
    made: SimpleNamespace, share: float, beside: float
) -> None:
    row = {
        "part": "VAE decode",
        "dtype": "float32",
        "tflop_per_s": 0.1 * share,
        "limit_tflop_per_s": 0.1,
        "share": share,
        "share_interval": None,
    }
    ax = plots.arithmetic_bars(shares=pd.DataFrame([row]), record=made.record())
    [rates] = [text for text in ax.texts if "GFLOP/s" in text.get_text()]
    assert rates.xy[0] == pytest.approx(beside)


def test_what_a_stage_adds_takes_five_images_and_says_how_many(made: SimpleNamespace) -> None:
    record = made.record(networks=made.networks)
    images, samples = made.images(), made.samples([0.9, 0.9])
    all_parts = judge.memory_parts(record, images, samples)
    enough = plots.memory_bars(parts=all_parts, record=record)
    assert f"GiB ({len(images)} images)" in title(enough)
    few_parts = judge.memory_parts(record, images[:4], samples)
    few = plots.memory_bars(parts=few_parts, record=record)
    assert "what a stage adds is not shown: it takes 5 images, there are 4" in title(few)
    assert not any("added while" in name.get_text() for name in few.get_yticklabels())
