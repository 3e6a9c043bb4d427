"""The plots of settings on every size of data, and their words."""

import math

import numpy as np
import pytest

from benchlib import plots
from benchlib.questions.settings.judge import Decision, decide
from benchlib.study.picture_quality import Pair, picture_columns


def words(ax):
    legend = ax.get_legend()
    entries = [entry.get_text() for entry in legend.get_texts()] if legend else []
    texts = [text.get_text() for one in (ax, *ax.child_axes) for text in one.texts]
    return "\n".join([ax.get_title("left"), *texts, *entries]).replace("\u00a0", " ")


def title(ax):
    return " ".join(ax.get_title("left").replace("\u00a0", " ").split())


@pytest.fixture
def three(setting):
    return setting.frame(
        setting.row("baseline", 5.0, psnr_db=math.inf, ssim=1.0, pictures="same"),
        setting.row(
            "bf16",
            8.0,
            confirmed=True,
            exact=False,
            psnr_db=35.0,
            ssim=0.951,
            flip=0.12,
            pictures="changed",
        ),
        setting.row("compile", 7.0, confirmed=True, psnr_db=88.0, ssim=1.0, memory_gib=2.5),
    )


def pair(number, identical=False, ssim=0.9999, flip=0.001):
    """A pair whose picture is a grey square, the darker the less it is like the baseline's."""
    if identical:
        ssim, flip = 1.0, 0.0
    grey = np.full((16, 24, 3), int(200 * ssim**4), dtype=np.uint8)
    psnr_db = math.inf if identical else 40.0
    return Pair(f"prompt {number}", number + 1, identical, psnr_db, ssim, flip, picture=grey)


@pytest.fixture
def with_pairs(setting):
    """The baseline, a recipe that breaks one prompt of 10, and one whose pictures are the same."""
    same = [pair(number, identical=True) for number in range(10)]
    broken = [pair(number, ssim=0.6 if number == 7 else 0.999) for number in range(10)]
    return setting.frame(
        setting.row("vae-slicing", 6.0, **picture_columns(same)),
        setting.row("baseline", 5.0, **picture_columns(same)),
        setting.row("fp8", 8.0, exact=False, **picture_columns(broken)),
        setting.row("fp8", 9.0, batching="continuous", exact=False, **picture_columns(broken)),
    )


def draw(frame, made, limit_gib=4.0):
    decision = decide(frame, memory_limit_gib=limit_gib)
    return plots.decision(decision=decision, memory_limit_gib=limit_gib, record=made.record())


def test_the_ladder_draws_the_highest_capacity_first_and_its_likeness(three, made, tmp_path):
    ax = plots.ladder(settings=three, record=made.record())
    speed, alone, near = ax.child_axes
    assert [bar.get_width() for bar in speed.patches] == [8.0, 7.0, 5.0]
    hollow = [bar.get_facecolor()[:3] == (1.0, 1.0, 1.0) for bar in speed.patches]
    assert hollow == [False, False, True], "the baseline is only foretold"
    assert [label.get_text() for label in speed.get_yticklabels()] == [
        "bf16,\nserial ◆", "compile,\nserial ●", "baseline,\nserial ●",
    ]  # fmt: skip
    assert list(alone.lines[0].get_xdata()) == [0.2] * 3
    assert [line.get_xdata()[0] for line in near.lines] == pytest.approx(
        [35.0, 88.0, 1.15 * 1.05 * 88.0]
    ), "the same one stands past the end of the axis"
    assert [text.get_text().strip() for text in near.texts] == [
        "changed   \n   SSIM 0.951, FLIP 0.120",
        "indistinguishable   \n   SSIM 1.000, FLIP 0.001",
        "same",
    ]
    assert title(ax) == (
        "tiny model, not SDXL: bf16, serial keeps p95 < 2 s up to 8.00 images/s (7.76 to 8.24), "
        "the most of all"
    )
    wide = three.assign(capacity_images_per_s_interval=[(1.0, 20.0)] * len(three))
    unclear = plots.ladder(settings=wide, record=made.record())
    assert title(unclear).endswith("(1 to 20); not shown to be more than with compile, serial")
    png, svg = plots.save(ax, tmp_path / "ladder")
    assert png.stat().st_size > 10_000
    assert svg.exists()


def test_the_grid_has_the_baseline_first_and_the_most_changed_prompt_first(
    with_pairs, made, tmp_path
):
    ax = plots.picture_grid(settings=with_pairs, record=made.record())
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "baseline",
        "fp8\nCHANGED\n0 of 10 identical",
        "vae-slicing\nSAME\n10 of 10 identical",
    ]
    assert ax.get_xticklabels()[0].get_text() == "prompt 7"
    assert len(ax.get_images()) == 3 * 6
    thick = [frame for frame in ax.patches if frame.get_linewidth() > 1]
    assert [frame.get_xy() for frame in thick] == [(0, pytest.approx(1.2))]
    below = [text.get_text() for text in ax.texts]
    assert below[:6] == [""] * 6
    assert below[6] == "SSIM 0.600\nFLIP 0.001"
    assert below[17] == "identical"
    assert title(ax) == "tiny model, not SDXL: fp8 changes the picture"
    assert "fp8: changed; vae-slicing: same" in ax.get_label()
    png, _ = plots.save(ax, tmp_path / "grid")
    assert png.stat().st_size > 10_000


def test_the_grid_of_many_recipes_and_prompts_fits_a_page(setting, made, tmp_path):
    lists = {
        f"recipe-{number}": [pair(place, ssim=0.999 - number / 1000) for place in range(70)]
        for number in range(20)
    }
    rows = [setting.row(name, 5.0, **picture_columns(pairs)) for name, pairs in lists.items()]
    ax = plots.picture_grid(settings=setting.frame(*rows), record=made.record())
    assert title(ax) == "tiny model, not SDXL: 9 of 9 recipes change the picture"
    some = plots.picture_grid(settings=setting.frame(*rows[:12]), record=made.record())
    assert title(some).endswith("recipe-10 and recipe-11 change the picture")
    width, height = ax.figure.get_size_inches()
    assert height < 1.5 * width
    assert len(ax.get_images()) == 9 * 6
    plots.save(ax, tmp_path / "grid")


def test_the_grid_says_what_is_not_shown_or_that_there_is_nothing(setting, made):
    few = setting.row("fp8", 5.0, **picture_columns([pair(1), pair(2)]))
    frame = setting.frame(setting.row("baseline", 5.0, pairs=(pair(1), pair(2))), few)
    ax = plots.picture_grid(settings=frame, record=made.record())
    assert "of 1 recipe it is not shown what the picture loses" in title(ax)
    assert "NOT SHOWN" in ax.get_yticklabels()[1].get_text()
    nothing = plots.picture_grid(
        settings=setting.frame(setting.row("baseline", 5.0)), record=made.record()
    )
    assert "no data: no picture was made" in words(nothing)
    alone = plots.picture_grid(settings=frame[:1], record=made.record())
    assert "is not shown: only the baseline was tried" in title(alone)


def test_the_ladder_says_that_a_capacity_is_only_foretold(setting, made):
    frame = setting.frame(setting.row("a", 5.0), setting.row("b", 9.0))
    ax = plots.ladder(settings=frame, record=made.record())
    assert "b, serial should keep p95 < 2 s up to 9.0 images/s" in title(ax)
    assert "0 of them confirmed under load" in ax.get_label()


def test_the_decision_draws_each_setting_where_it_is(three, made, tmp_path):
    ax = draw(three, made)
    marks = [line for line in ax.lines if line.get_marker() in ("o", "D", "x")]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in marks] == [
        (2.0, 8.0),
        (2.5, 7.0),
        (2.0, 5.0),
    ]
    assert [line.get_marker() for line in marks] == ["D", "o", "o"]
    assert [line.get_markerfacecolor() == "white" for line in marks] == [False, False, True]
    assert "1  bf16, serial\n(pictures changed)" in words(ax)
    assert "nan" not in words(ax)
    assert title(ax) == (
        "tiny model, not SDXL: run bf16, serial: it keeps p95 < 2 s up to 8.00 images/s (7.76 to 8.24) "
        "with 2 GiB; 1.14 times (1.10 to 1.19) the capacity of the next"
    )
    assert ax.get_ylabel() == "images/s that keep p95 < 2 s"
    assert ax.get_xlabel() == "peak memory (process RSS), GiB"
    plots.save(ax, tmp_path / "decision")


def test_a_setting_that_is_ruled_out_is_a_cross_with_its_reason(three, made):
    ax = draw(three, made, limit_gib=2.2)
    marks = [line.get_marker() for line in ax.lines if line.get_marker() in ("o", "D", "x")]
    assert marks == ["D", "o", "x"]
    assert "3  compile, serial:\nneeds too much memory" in words(ax)


def test_a_limit_is_drawn_where_it_is_near_and_told_where_it_is_far(three, made):
    near, far = draw(three, made, 2.6), draw(three, made, 100.0)
    assert [line.get_xdata()[0] for line in near.lines if line.get_linestyle() == "--"] == [2.6]
    assert not [line for line in far.lines if line.get_linestyle() == "--"]
    assert "limit 100 GiB: far to the right" in words(far)
    assert "no memory limit" in words(draw(three, made, limit_gib=None))


def test_the_decision_says_what_is_not_shown(setting, made):
    ax = draw(setting.frame(setting.row("a", 5.0), setting.row("b", 4.0)), made)
    assert "it should keep p95 < 2 s up to 5.0 images/s (4.5 to 5.5) with 2 GiB" in title(ax)
    assert "not shown to beat b, serial: neither is confirmed under load" in title(ax)
    assert "no setting is left" in title(draw(setting.frame(setting.row("a", 5.0)), made, 1.0))


@pytest.mark.parametrize("rows", [0, 1, 10_000])
def test_any_number_of_settings_can_be_drawn(setting, made, rows, tmp_path):
    frame = setting.frame(*(setting.row(f"recipe-{n}", 5.0 + n / 1000) for n in range(rows)))
    if rows:
        decision = decide(frame, memory_limit_gib=4.0)
    else:
        decision = Decision(None, None, None, frame.assign(ruled_out=None), "p95 < 2 s", 1.0)
    for ax in (
        plots.ladder(settings=frame, record=made.record()),
        plots.decision(decision=decision, memory_limit_gib=4.0, record=made.record()),
    ):
        assert ("no data" in words(ax)) == (rows == 0)
        assert title(ax).startswith("tiny model, not SDXL: ")
        if rows < 2:
            plots.save(ax, tmp_path / "plot")


def test_settings_that_failed_are_no_data(setting, made):
    failed = {"memory_gib": None, "error": "no compiler"}
    frame = setting.frame(setting.row("a", None, **failed))
    for ax in (plots.ladder(settings=frame, record=made.record()), draw(frame, made)):
        assert "no data: no setting was measured" in words(ax)
