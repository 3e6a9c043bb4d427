"""Images made one at a time: figures checked by hand, planted growth, and the answer in words."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchlib.questions.anatomy import judge
from benchlib.study import intervals
from benchlib.study.store import Run


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
    peak = judge.peak_stage(noisy)
    assert peak is not None
    assert peak.stage is None
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
    """A random walk has no trend.

    A 95 % interval lies above 0 in 2.5 % of such walks, and in a little more of so few walks.
    """
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
    assert row["disturbed"] is None
    (beside,) = judge.arithmetic_share(calls, disturbed="others took 1.3 cores").to_dict("records")
    assert beside["share"] == row["share"], "the number stays as it was measured"
    assert beside["share_interval"] is None
    assert judge._share_sentence(beside) == (
        "UNet step: its share of this machine's fastest matrix product is not shown, as others took "
        "1.3 cores meanwhile."
    )


def answer(made: SimpleNamespace, images: pd.DataFrame, rss_gib: Any) -> str:
    record = made.run([1.0])[0]
    run = Run(record, images, made.samples([1.0]), Path("results/time_and_memory/one"))
    watched = Run(record, images, made.samples(rss_gib), Path("results/time_and_memory/two"))
    share = {"part": "UNet step", "dtype": "float32", "share": 0.4, "share_interval": (0.35, 0.45)}
    return str(judge.judge_images(run, shares=pd.DataFrame([share]), watched=watched))


def test_the_answer_in_words(made: SimpleNamespace) -> None:
    lines = answer(made, made.images(), np.full(300, 1.0)).splitlines()
    assert lines == [
        "The largest image, 128x128 with 8 steps, takes 1.8 s: encoding the prompt 3 %, denoising "
        "89 %, decoding the image 8 %.",
        "Cost at 64x64: 0.100 s a step (0.100 to 0.100), plus 0.200 s (0.199 to 0.201).",
        "Cost at 128x128: 0.200 s a step (0.200 to 0.200), plus 0.200 s (0.199 to 0.201).",
        "Peak memory: 1.2 GiB, at 128x128, while decoding the image.",
        "UNet step: 40 % (35 to 45) of this machine's fastest matrix product.",
        "Leak: the process (RSS) does not leak (0 KiB/image, of which 2 are allowed).",
        "Numbers in brackets are 95 % intervals.",
        "Rows, records and figures are in results/time_and_memory",
    ]


def test_the_answer_names_no_stage_where_the_images_are_too_few(made: SimpleNamespace) -> None:
    first, *_ = answer(made, made.images(2), [1.0]).splitlines()
    assert first == (
        "The largest image, 128x128 with 8 steps, takes 1.8 s (2 images); "
        "which stage takes the time is not shown, it takes 5."
    )


def test_where_python_is_the_limit_the_answer_says_so_and_what_to_do(made: SimpleNamespace) -> None:
    images = made.images(launch_shares=(0.97, 0.4))
    lines = answer(made, images, [1.0]).splitlines()
    assert lines[3:5] == [
        "At 64x64 Python is the limit, not the GPU. Starting a step's work takes 97.0 % (96.9 to 97.0) of "
        'the step. The recipe "cuda-graphs" starts it in one call: 05_settings measures what that '
        "gains.",
        "At 128x128 the GPU is the limit, not Python. Starting a step's work takes 40.0 % (39.9 to 40.0) "
        "of the step.",
    ]
    between = judge.launch_shares(made.images(launch_shares=(judge.PYTHON_SHARE, 0.4)))
    assert between["limit"].tolist() == ["not shown", "GPU"]
    few = judge.launch_shares(made.images(1)[:2].assign(launch_s=0.0))
    assert few["limit"].tolist() == ["not shown"]
    words = judge.limit_words(few.iloc[0].to_dict())
    assert words.startswith("Whether Python or the GPU is the limit at 64x64 is not shown. ")


def test_on_a_cpu_no_launch_is_known(made: SimpleNamespace) -> None:
    assert judge.launch_shares(made.images()).empty
    assert "limit" not in answer(made, made.images(), [1.0])


def test_the_answer_says_what_is_not_shown(made: SimpleNamespace) -> None:
    few = answer(made, made.images(1), [1.0])
    assert (
        "What a step costs: not shown by 3 images, it takes 5. A larger budget_min makes more."
        in few
    )
    assert "Peak memory: 1.2 GiB, at 128x128, in which stage is not shown." in few
    assert "Leak: not shown, as it takes at least 40 images." in few
    images = made.images()
    of_four_steps = images[images["num_inference_steps"] == 4]
    assert "not shown, as it takes two numbers of steps." in answer(made, of_four_steps, [1.0])
    none = answer(made, made.images()[:0], [1.0])
    assert none.startswith("No image was made.\nPeak memory: not known here.\n")


def test_a_cost_whose_interval_reaches_down_to_0_is_not_shown() -> None:
    cost = {
        "per_step_s": 0.1,
        "per_step_s_interval": (0.09, 0.11),
        "fixed_s": 0.01,
        "fixed_s_interval": (-0.01, 0.03),
    }
    assert judge.cost_words(cost) == "0.10 s a step (0.09 to 0.11), a fixed cost is not shown"
    unclear = cost | {"per_step_s_interval": (-0.1, 0.3), "fixed_s_interval": (0.005, 0.015)}
    words = "the cost of a step is not shown, plus 0.010 s (0.005 to 0.015)"
    assert judge.cost_words(unclear) == words


def test_the_answer_says_that_the_machine_was_busy(made: SimpleNamespace) -> None:
    record = made.run([1.0] * 10)[0]
    run = Run(record, made.images(), made.samples([1.0]), Path("results/time_and_memory/one"))
    beside = made.busy(run)
    said = str(judge.judge_images(beside, shares=pd.DataFrame(), watched=run))
    assert said.splitlines()[1].startswith("The machine was busy in 1 of 2 runs: other processes ")
