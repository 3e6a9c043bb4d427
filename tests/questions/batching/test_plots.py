"""The plots of batching on every size of data, and their words."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes

from benchlib import plots
from benchlib.questions.batching.judge import FORETOLD_COLUMNS, ForetoldGains
from benchlib.study.wording import counted

SHOWCASE = {"showcase": {"width": 128, "height": 128, "num_inference_steps": 10}}


def texts(ax: Axes) -> str:
    legend = ax.get_legend()
    entries = [entry.get_text() for entry in legend.get_texts()] if legend else []
    lines = [ax.get_title("left"), *[text.get_text() for text in ax.texts], *entries]
    return " ".join(" ".join(lines).replace("\u00a0", " ").split())


def curves(step_s: dict[int, float]) -> dict[str, Any]:
    """Of so many guided requests at once; encoding and decoding take 0.1 s an image each."""
    around = {str(n): 0.1 * n for n in step_s}
    return {
        "step_s": {"1": 0.01} | {str(2 * n): s for n, s in step_s.items()},
        "encode_s": around,
        "decode_s": around,
    }


@pytest.mark.parametrize(
    ("step_s", "finding"),
    [
        (
            {1: 0.08, 2: 0.08, 4: 0.08},
            "a batch of 4 makes 2.5 times the images/s of one image at a time",
        ),
        (
            {1: 0.08, 2: 0.08, 4: 0.4},
            "a batch of 2 makes 1.67 times the images/s of one image at a time",
        ),
        (
            {1: 0.08, 2: 0.155},
            "batches gain next to nothing: at most 1.03 times the images/s of one image at a time",
        ),
        ({1: 0.08}, "only one image at a time was measured: what a batch would gain is not known"),
    ],
)
def test_a_step_time_curve_says_what_a_batch_gains(
    made: SimpleNamespace, step_s: Any, finding: str
) -> None:
    ax = plots.step_time_curve(
        step_times={"128x128": curves(step_s)}, record=made.record(target=SHOWCASE)
    )
    upper, lower = ax.figure.axes
    assert texts(ax).startswith(f"tiny model, not SDXL: {finding}")
    assert upper.lines[0].get_ydata().tolist() == pytest.approx(
        [n / (0.2 * n + 10 * s) for n, s in step_s.items()]
    )
    assert lower.lines[0].get_ydata().tolist() == pytest.approx([1000 * s for s in step_s.values()])
    assert lower.lines[1].get_ydata().tolist() == pytest.approx([80 * n for n in step_s]), (
        "if it gained nothing"
    )
    assert lower.get_xticks().tolist() == [*step_s]
    assert "if batches gained nothing" in texts(lower)
    assert "when the server started" in texts(lower)


def test_a_step_time_curve_is_of_the_showcase_and_of_nothing_else(made: SimpleNamespace) -> None:
    step_times = {"128x128": curves({1: 0.1, 2: 0.1}), "512x512": curves({1: 0.4, 2: 0.8})}
    ax = plots.step_time_curve(step_times=step_times, record=made.record(target=SHOWCASE))
    assert len(ax.lines) == 1
    for none, record in (({}, made.record(target=SHOWCASE)), (step_times, made.record())):
        assert "no data" in texts(plots.step_time_curve(step_times=none, record=record))


def policies(made: SimpleNamespace, n: int) -> dict[str, pd.DataFrame]:
    """Requests that come one second apart.

    Serial took 2 s each, dynamic 1 s and continuous 0.5 s. All but 0.45 s of that is queueing.
    """
    frames = {}
    for name, s in (("serial", 2.0), ("dynamic", 1.0), ("continuous", 0.5)):
        took = {"latency_s": s, "queue_s": s - 0.45, "total_s": s - 0.05}
        frames[name] = made.requests(
            [made.row(i, scheduled_s=4.0 + i, done_s=4.0 + i + s, **took) for i in range(n)]
        )
    return frames


@pytest.mark.parametrize("n", [5, 60, 10_000])
def test_gantts_hold_the_same_requests_on_one_scale(
    made: SimpleNamespace, n: int, tmp_path: Path
) -> None:
    ax = plots.gantts(requests=policies(made, n), record=made.record())
    panels = ax.figure.axes[1:]
    drawn = min(n, 20)
    finding = (
        f"{counted(drawn, 'request')} took on average 0.5 s continuous, 1 s dynamic, 2 s serial"
    )
    assert texts(ax).startswith(f"tiny model, not SDXL: {finding}")
    assert [panel.get_title("left").split(":")[0] for panel in panels] == [
        "serial",
        "dynamic",
        "continuous",
    ]
    assert panels[0].get_title("left") == "serial: 2 s on average, 78 % of it waiting"
    assert (
        len({panel.get_xlim() for panel in panels})
        == len({panel.get_ylim() for panel in panels})
        == 1
    )
    assert panels[0].get_xlim() == pytest.approx((0, 1.01 * (drawn - 1 + 2.0)))
    assert {len(bars) for panel in panels for bars in panel.containers} == {drawn}
    assert "waiting in the queue" in texts(ax)
    assert not any(panel.get_legend() for panel in panels)
    png, svg = plots.save(ax, tmp_path / "figure")
    assert png.stat().st_size > 10_000
    assert svg.stat().st_size < 500_000


@pytest.mark.parametrize("n", [1, 2, 4])
def test_gantts_of_fewer_than_five_images_have_no_mean(made: SimpleNamespace, n: int) -> None:
    ax = plots.gantts(requests=policies(made, n), record=made.record())
    finding = f"how long {counted(n, 'request')} took is not shown: a mean takes 5 images"
    assert finding in texts(ax)
    for panel in ax.figure.axes[1:]:
        assert panel.get_title("left").endswith(f"{counted(n, 'image')}, too few for a mean")


def test_bars_stand_one_after_the_other_from_the_moment_of_the_request(
    made: SimpleNamespace,
) -> None:
    frame = made.requests([made.row(0, scheduled_s=9.0), made.row(1, scheduled_s=4.0)])
    panel = plots.gantts(requests={"serial": frame}, record=made.record()).figure.axes[1]
    bars = {
        bars.get_label(): [(bar.get_x(), bar.get_width()) for bar in bars]
        for bars in panel.containers
    }
    assert "waiting for other images" not in bars
    assert bars["waiting in the queue"] == [(0.0, 0.5), (5.0, 0.5)]
    assert [left for left, _ in bars["denoising"]] == pytest.approx([0.55, 5.55])
    assert [left + width for left, width in bars["network and client"]] == pytest.approx([1.0, 6.0])


def test_a_request_without_an_image_leaves_its_lane_empty(made: SimpleNamespace) -> None:
    frames = policies(made, 3)
    failed = {"error": "503", "done_s": 5.1, "total_s": None, "latency_s": 0.1}
    frames["dynamic"] = made.requests(
        [made.row(0), made.row(1, scheduled_s=5.0, **failed), made.row(2, scheduled_s=6.0)]
    )
    frames["continuous"] = made.requests([made.row(0, **failed)])
    ax = plots.gantts(requests=frames, record=made.record())
    lanes = [
        {round(bar.get_y() + 0.4) for bars in panel.containers for bar in bars}
        for panel in ax.figure.axes[1:]
    ]
    assert lanes == [{1, 2, 3}, {1, 3}, set()]
    assert ax.figure.axes[3].get_title("left") == "continuous: no image"
    for none in ({}, {"serial": made.requests([])}, {"serial": frames["continuous"]}):
        assert "no data" in texts(plots.gantts(requests=none, record=made.record()))


@pytest.mark.parametrize("n", [20, 60, 10_000])
def test_a_cdf_has_a_stair_for_each_policy(made: SimpleNamespace, n: int, tmp_path: Path) -> None:
    ax = plots.latency_cdf(requests=policies(made, n), record=made.record())
    told = "half of the requests took at most 0.5 s continuous, 1 s dynamic, 2 s serial"
    assert texts(ax).startswith(f"tiny model, not SDXL: {told}")
    for name, mean in (("serial", 2), ("dynamic", 1), ("continuous", 0.5)):
        assert f"{name}, mean {mean} s" in texts(ax)
    stairs = [line for line in ax.lines if len(line.get_xdata()) > 1]
    assert len({line.get_linestyle() for line in stairs}) == 3
    assert [line.get_ydata()[-1] for line in stairs] == [100, 100, 100]
    assert stairs[0].get_xdata()[1] == stairs[0].get_xdata()[-2] == 2
    plots.save(ax, tmp_path / "figure")


def test_a_cdf_counts_those_that_got_no_image(made: SimpleNamespace) -> None:
    frame = made.requests([made.row(i, error="503" if i < 60 else None) for i in range(80)])
    ax = plots.latency_cdf(requests={"serial": frame, "dynamic": frame[:0]}, record=made.record())
    assert ax.lines[0].get_ydata()[-1] == 25
    assert "fewer than half of the requests got an image" in texts(ax)
    for none in ({}, {"serial": frame[:60]}):
        assert "no data" in texts(plots.latency_cdf(requests=none, record=made.record()))


@pytest.mark.parametrize("n", [1, 3, 19])
def test_a_stair_takes_twenty_requests(made: SimpleNamespace, n: int, tmp_path: Path) -> None:
    few = policies(made, n)
    ax = plots.latency_cdf(requests=few, record=made.record())
    counts = f"{n} of serial, {n} of dynamic, {n} of continuous"
    assert f"no data: a stair takes 20 requests, and a policy has fewer: {counts}" in texts(ax)
    assert not ax.lines
    assert plots.save(ax, tmp_path / "figure") == ()
    one = {"continuous": policies(made, 60)["continuous"], "serial": few["serial"]}
    drawn = plots.latency_cdf(requests=one, record=made.record())
    stairs = [line for line in drawn.lines if len(line.get_xdata()) > 1]
    assert len(stairs) == 1
    assert f"0.5 s continuous; too few requests for a stair: {n} of serial" in texts(drawn)


def gains(*rows: tuple[Any, ...]) -> pd.DataFrame:
    return pd.DataFrame(
        rows, columns=["rate", "batching", "figure", "pairs", "ratio", "interval", "verdict"]
    )


def test_a_gain_is_said_only_where_it_is_shown(made: SimpleNamespace, tmp_path: Path) -> None:
    frame = gains(
        (2.0, "continuous", "latency_mean_s", 3, 0.9, (0.5, 1.6), "not shown"),
        (4.0, "continuous", "latency_mean_s", 3, 0.4, (0.3, 0.6), "lower"),
        (2.0, "dynamic", "latency_mean_s", 3, 1.2, (1.1, 1.3), "higher"),
        (4.0, "dynamic", "latency_mean_s", 3, 0.8, (0.1, 9.0), "not shown"),
        (4.0, "continuous", "latency_p95_s", 1, 0.45, None, "not shown"),
    )
    ax = plots.gain(gains=frame, record=made.record())
    said = "continuous's mean latency is 0.4 times serial's (0.3 to 0.6); a difference of dynamic's mean latency from"
    assert texts(ax).startswith(
        f"tiny model, not SDXL: at 4 requests/s, {said} serial's is not shown"
    )
    assert {
        "◆ continuous, mean, short runs",
        "▲ continuous, 95 % took at most, short runs",
        "■ dynamic, mean, short runs",
    } <= {t.get_text() for t in ax.texts}
    bars = [[tuple(end[1] for end in bar) for bar in one.get_segments()] for one in ax.collections]
    assert bars == [[(0.5, 1.6), (0.3, 0.6)], [(0.45, 0.45)], [(1.1, 1.3), (0.1, 9.0)]]
    assert "cut at the edge" in ax.get_ylabel()
    assert ax.get_ylim()[1] < 2
    plots.save(ax, tmp_path / "figure")
    ratios = {"serial": [1.0, 2.0], "continuous": [1.0, 900.0], "dynamic": [1.1, 1.0]}
    predicted = pd.DataFrame(ratios, index=[0.5, 5.0])
    both = plots.gain(gains=frame, predicted=predicted, record=made.record())
    assert both.lines[-2].get_ydata().tolist() == [1.1, 0.5]
    assert "dynamic, mean by warm-up's step times" in texts(both)
    assert both.get_xlim()[1] > 5
    plots.save(both, tmp_path / "predicted")  # a label far above the axes would leave them no room
    one = plots.gain(gains=frame[4:], record=made.record())
    assert "no run carries a mean at the highest rate" in texts(one)
    assert "cut" not in one.get_ylabel()
    assert "no data" in texts(plots.gain(gains=gains(), record=made.record()))
    endless = predicted.assign(dynamic=[1.1, np.inf], continuous=np.inf)
    ended = plots.gain(gains=frame, predicted=endless, record=made.record())
    assert ended.lines[-2].get_xdata().tolist() == [0.5], "the line ends with what is finite"
    assert "continuous, mean by warm-up's step times" not in texts(ended)
    plots.save(ended, tmp_path / "ended")
    lines = plots.gain(gains=gains(), predicted=predicted, record=made.record())
    assert "no two valid runs of the same requests; the lines are predicted" in texts(lines)
    assert lines.lines[0].get_ydata().tolist() == [1.0, 450.0]
    plots.save(lines, tmp_path / "lines")


def test_a_foretold_gain_is_a_line_with_a_band(made: SimpleNamespace, tmp_path: Path) -> None:
    measured = gains((4.0, "continuous", "latency_mean_s", 3, 0.8, (0.3, 1.6), "not shown"))
    rows = [
        (2.0, "continuous", "latency_mean_s", 0.9, (0.7, 1.1), "not shown", 45),
        (2.0, "continuous", "latency_p95_s", 0.8, (0.6, 1.0), "not shown", 45),
        (4.0, "continuous", "latency_mean_s", 0.6, (0.5, 0.7), "lower", 45),
        (5.0, "continuous", "latency_mean_s", 0.0, (0.0, 0.7), "lower", 45),
    ]
    foretold = ForetoldGains(pd.DataFrame(rows, columns=FORETOLD_COLUMNS), {})
    ratios = {"serial": [1.0, 2.0], "continuous": [1.0, 1.0], "dynamic": [1.1, 1.0]}
    predicted = pd.DataFrame(ratios, index=[0.5, 5.0])
    options = {"foretold": foretold, "predicted": predicted, "record": made.record()}
    ax = plots.gain(gains=measured, **options)
    said = "foretold for the long run at 4 requests/s, continuous's mean latency is 0.6 times serial's (0.5 to 0.7)"
    assert texts(ax).startswith(f"tiny model, not SDXL: {said}")
    assert ax.lines[2].get_xydata().tolist() == [[2.0, 0.9], [4.0, 0.6]], "it ends with serial"
    assert ax.lines[1].get_markerfacecolor() == "white", "a difference is not shown"
    assert "hollow marks: a difference is not shown" in ax.get_xlabel()
    assert "bands: 95 %, of 45 images" in texts(ax)
    labels = {text.get_text() for text in ax.texts}
    assert {"continuous, mean in the long run", "◆ continuous, mean, short runs"} <= labels
    assert "dynamic, mean by warm-up's step times" in labels, "nothing is foretold of it"
    assert "continuous, mean by warm-up's step times" not in labels
    assert "Foretold: At 4/s continuous's mean latency is 0.6 times" in ax.get_label()
    plots.save(ax, tmp_path / "both")
    alone = plots.gain(gains=gains(), **options)
    assert texts(alone).startswith(f"tiny model, not SDXL: {said}")
    plots.save(alone, tmp_path / "alone")


def test_all_draw_on_the_axes_that_they_are_given(made: SimpleNamespace) -> None:
    frames, record = policies(made, 5), made.record(target=SHOWCASE)
    step_times = {"128x128": curves({1: 0.1, 2: 0.1})}
    row = (2.0, "dynamic", "latency_mean_s", 3, 0.9, (0.5, 1.6), "not shown")
    for plot, data in (
        (plots.step_time_curve, {"step_times": step_times}),
        (plots.gantts, {"requests": frames}),
        (plots.latency_cdf, {"requests": frames}),
        (plots.gain, {"gains": gains(row)}),
    ):
        figure, panels = pyplot.subplots(1, 2)
        assert plot(**data, record=record, ax=panels[0]) is panels[0]
        assert not panels[1].has_data()
        assert len(panels[0].get_label()) > 80
        pyplot.close(figure)
