"""Images taken apart: hand-checked figures, planted growth, and plots that draw them."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes

from benchlib import plots
from benchlib.questions.anatomy import judge
from benchlib.study import intervals


def title(ax: Axes) -> str:
    return ax.get_title("left").replace("\u00a0", " ").replace("\n", " ")


# Draper & Smith's formulas by hand: x = 1..5, y = 2, 4, 5, 4, 5 has slope 0.6, intercept 2.2, residual sum of squares
# 2.4, so s² = 0.8; the slope's standard error is sqrt(0.8 / 10), the intercept's sqrt(0.8 (1/5 + 9/10));
# t(0.975, 3) = 3.182.
def test_a_line_by_hand() -> None:
    found = intervals.line([1, 2, 3, 4, 5], [2, 4, 5, 4, 5])
    assert found is not None
    fixed, around_fixed, slope, around_slope = found
    assert (fixed, slope) == (pytest.approx(2.2), pytest.approx(0.6))
    assert around_slope == pytest.approx(
        (0.6 - 3.18245 * 0.08**0.5, 0.6 + 3.18245 * 0.08**0.5), abs=1e-4
    )
    assert around_fixed == pytest.approx(
        (2.2 - 3.18245 * 0.88**0.5, 2.2 + 3.18245 * 0.88**0.5), abs=1e-4
    )


@given(
    st.floats(-10, 10),
    st.floats(-10, 10),
    st.lists(st.integers(1, 100), min_size=2, max_size=30, unique=True),
)
def test_points_on_a_line_give_it_back(fixed: float, slope: float, xs: list[int]) -> None:
    found = intervals.line(xs, [fixed + slope * x for x in xs])
    assert found is not None
    assert (found[0], found[2]) == (pytest.approx(fixed, abs=1e-6), pytest.approx(slope, abs=1e-6))
    assert (found[1] is None) == (len(xs) < 5)


def test_there_is_no_line_through_one_number_of_steps() -> None:
    assert intervals.line([], []) is None
    assert intervals.line([4, 4, 4], [1, 2, 3]) is None


def test_cost_lines_are_of_each_size(made: SimpleNamespace) -> None:
    found = judge.cost_lines(made.images())
    assert found["width"].tolist() == [64, 128]
    assert found["per_step_s"].tolist() == pytest.approx([0.1, 0.2], abs=1e-3)
    assert found["fixed_s"].tolist() == pytest.approx([0.2, 0.2], abs=2e-3)
    low, high = found["per_step_s_interval"][0]
    assert low < 0.1 < high


def test_memory_is_told_apart(made: SimpleNamespace) -> None:
    record = made.run([1.0])[0] | {"networks": made.networks}
    parts = judge.memory_parts(record, made.images(), made.samples([0.9, 0.9, 0.95])).set_index(
        ["kind", "part"]
    )["gib"]
    assert parts["network"].to_dict() == {"unet": 0.5, "vae": 0.25}
    assert parts["activations"].to_dict() == pytest.approx(
        {"encode": 0.1, "denoise": 0.2, "decode": 0.3}
    )
    assert parts["held"].to_dict() == {"rss": 0.95}, "no GPU, none drawn"


def test_the_peaks_stage_is_named_where_it_stands_out(made: SimpleNamespace) -> None:
    images = made.images()
    assert judge.peak_stage(images) == ("decode", pytest.approx(1.2), "128x128")
    noisy = images.assign(decode_peak_gib=images["decode_peak_gib"] + np.tile([-0.3, 0.3], 15))
    assert (judge.peak_stage(noisy) or ("?",))[0] is None
    assert judge.peak_stage(images[:0]) is None


def test_growth_is_found_where_it_is_planted_and_a_level_shift_is_none(
    made: SimpleNamespace,
) -> None:
    rng = np.random.default_rng(5)
    noise_gib = rng.normal(0, 20 / 2**20, 300)
    leak = judge.memory_growth(made.samples(1 + np.arange(300) * 200 / 2**20 + noise_gib)).iloc[0]
    assert leak["kib_per_image"] == pytest.approx(200, rel=0.05)
    assert leak["verdict"].startswith("leaks (")
    shift = judge.memory_growth(made.samples(1 + (np.arange(300) > 150) * 0.01 + noise_gib)).iloc[0]
    assert shift["verdict"].startswith("is not shown to leak")
    still = judge.memory_growth(made.samples(np.full(300, 1.0))).iloc[0]
    assert still["verdict"].startswith("does not leak")
    assert judge.memory_growth(made.samples(np.full(39, 1.0))).empty


CLEAN = {  # memory of 300 images without a leak, KiB
    "level": lambda _: 0,
    "steps": lambda rng: (
        (np.arange(300) >= rng.integers(0, 300, (3, 1))).T @ rng.exponential(512, 3)
    ),
    "wandering": lambda rng: np.cumsum(rng.normal(0, 20, 300)),
    "filling": lambda _: 8192 * (1 - np.exp(-np.arange(300) / 30)),
    "slowly filling": lambda _: 8192 * (1 - np.exp(-np.arange(300) / 60)),
}


@pytest.mark.parametrize(
    ("kind", "caught"), [(kind, 0.8 if kind == "steps" else 0.99) for kind in CLEAN]
)
def test_growth_is_told_from_what_clean_memory_does(kind: str, caught: float) -> None:
    """LEAK_KIB's figures, with 10 KiB an image for the leak."""
    rng = np.random.default_rng(3)
    clean = [4 * rng.normal(0, 5, 300).round() + CLEAN[kind](rng) for _ in range(200)]
    for leak_kib, least, most in ((0, 0, 0.01), (10, caught, 1)):
        lows = [
            (intervals.growth(kib + leak_kib * np.arange(300)) or (0, None))[1] for kib in clean
        ]
        growing = np.mean([low is not None and low[0] > judge.LEAK_KIB for low in lows])
        assert least <= growing <= most, growing


def test_memory_that_wanders_is_rarely_called_growing() -> None:
    """A random walk has no trend: a 95 % interval lies above 0 in 2.5 % of such walks, and for so few a little more."""
    rng = np.random.default_rng(11)
    walks = np.cumsum(rng.normal(0, 50, (400, 300)), axis=1)
    lows = [(intervals.growth(walk) or (0, None))[1] for walk in walks]
    wrong = sum(low is not None and low[0] > 0 for low in lows)
    assert wrong / 400 < 0.04, wrong


def test_the_share_of_the_limit_by_hand() -> None:
    calls = pd.DataFrame(
        [{"part": judge.MATMUL, "dtype": "float32", "flop": 2e9, "time_s": t} for t in (0.01, 0.02)]
        + [
            {"part": "UNet step", "dtype": "float32", "flop": 1e9, "time_s": t}
            for t in (0.01, 0.01, 0.01, 0.02, 0.02)
        ]
    )
    (row,) = judge.arithmetic_share(calls).to_dict("records")
    assert (row["tflop"], row["time_s"], row["limit_tflop_per_s"]) == pytest.approx(
        (0.001, 0.01, 0.2)
    )
    assert row["share"] == pytest.approx(0.4)
    low, high = row["share_interval"]
    assert low < 0.4 < high


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


def test_titles_state_what_was_found(made: SimpleNamespace) -> None:
    record = made.run([1.0])[0]
    images = made.images()
    assert "0.2" in title(plots.cost_line(requests=images, record=record))
    assert "128x128: costs not shown, too few images" in title(
        plots.cost_line(requests=made.images(1), record=record)
    )
    assert "denoising" in title(plots.stage_stack(requests=images, record=record)).lower()
    grown = made.samples(1 + np.arange(300) * 200 / 2**20)
    assert "leaks (200 to 200 KiB/image)" in title(
        plots.memory_trend(telemetry=grown, record=record)
    )
