"""Each plot as a picture, compared with a baseline that a person has looked at.

After an intended change, run `pytest tests/test_pictures.py --mpl-generate-path=tests/baseline` and
look.
"""

import math
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.testing.compare import compare_images
from matplotlib.text import Text
from matplotlib.transforms import Affine2D

from benchlib import plots
from benchlib.questions.anatomy.judge import memory_parts
from benchlib.questions.batching.frontier import Frontier
from benchlib.questions.batching.judge import FORETOLD_COLUMNS, ForetoldGains
from benchlib.questions.settings.judge import decide
from benchlib.study import figure as style
from benchlib.study.picture_quality import Pair, picture_columns
from benchlib.study.store import Run, Study
from tests.questions.scale.made_days import make_outlook

DPI = 50
SLO = "p95 < 1 s"


def rows(made: SimpleNamespace) -> dict[str, Any]:
    return {
        "requests": made.requests(made.simulate(90, failed=0.05, censored=2)),
        "record": made.record(),
    }


def rush(made: SimpleNamespace) -> dict[str, Any]:
    run = rows(made)
    return {
        "requests": {"serial": run["requests"], "continuous": run["requests"][10:]},
        "record": run["record"],
    }


def memory(made: SimpleNamespace) -> dict[str, Any]:
    target = {"model": "sdxl", "device": "cuda:0", "weights_gib": 6.46}
    requests = made.requests([made.row(server_peak_gib=11.5)])
    return {
        "telemetry": made.telemetry(gpu=True),
        "requests": requests,
        "record": made.record(target=target),
    }


def machine(made: SimpleNamespace) -> dict[str, Any]:
    """A run that keeps a GPU at work; nothing was sampled of other processes."""
    run = rows(made)
    run["requests"]["sent_s"] = run["requests"]["scheduled_s"]
    telemetry = made.telemetry(60, gpu=True).assign(others_cpu_cores=np.nan)
    return run | {"telemetry": telemetry}


def loads(made: SimpleNamespace, kind: str, *points: tuple[float, float]) -> Study:
    """A run of 250 images for each load and its spread: an image takes 0.4 s and up to the spread.

    At the last load the images take ever longer."""
    runs, random = [], np.random.default_rng(4)
    for load, more_s in points:
        took = (
            0.4 + random.uniform(0, more_s, 250)
            if (load, more_s) != points[-1]
            else 0.4 + 0.01 * np.arange(250)
        )
        arrivals = {"kind": "open_loop" if kind == "rate" else "closed_loop", kind: load}
        record, requests, telemetry = made.run(took, gap_s=1 / load, spec={"arrivals": arrivals})
        requests["queue_s"] = (requests["latency_s"] - 0.4).clip(lower=0)
        runs.append(Run(record, requests, telemetry, Path("results/load/run")))
    return Study(Path("results/load"), tuple(runs))


def rates(made: SimpleNamespace) -> dict[str, Any]:
    study = loads(made, "rate", (1, 0.2), (2, 0.3), (3, 0.62), (4, 1.2), (5, 0))
    return {"summary": study.judge(SLO), "record": study.runs[0].record}


def users(made: SimpleNamespace) -> dict[str, Any]:
    study = loads(made, "users", (1, 0.1), (2, 0.4), (4, 1.0), (8, 2.0), (16, 0))
    return {"summary": study.summary, "record": study.runs[0].record}


def stages(made: SimpleNamespace) -> dict[str, Any]:
    """A study of 1 to 16 users, whose queue grows, and never ends growing with 16."""
    study = loads(made, "users", (1, 0.1), (2, 0.4), (4, 1.0), (8, 2.0), (16, 0))
    return {"study": study, "record": study.runs[0].record}


def foretold_rates(made: SimpleNamespace) -> dict[str, Any]:
    """A foretold curve, three runs at a rate, and what was foretold for their arrivals."""
    study = loads(made, "rate", (2, 0.3), (3, 0.62), (3.6, 1.2), (5, 0))
    rate = np.array([0.2, 1, 2, 2.6, 3, 3.4, 3.8, 4.2])
    promised_s = 0.4 + 0.25 * rate / (4.5 - rate)
    in_time = np.clip(1.6 - 0.2 * promised_s**2 - 0.5 * promised_s, 0, 1)
    curve = pd.DataFrame({"rate": rate, "stable": True, "promised_s": promised_s})
    curve["goodput_images_per_s"] = rate * in_time
    for name in ("promised_s", "goodput_images_per_s"):
        curve[f"{name}_interval"] = [(0.95 * value, 1.06 * value) for value in curve[name]]
    return {
        "summary": study.judge(SLO)[:3],
        "record": study.runs[0].record,
        "predicted": curve,
    }


def foretold_stick(made: SimpleNamespace) -> dict[str, Any]:
    foretold_s = [(0.6, 0.72), (0.9, 1.1), (1.4, 1.7)]
    own = pd.DataFrame({"offered_images_per_s": [2, 3, 3.6], "foretold_s": foretold_s})
    own = own.assign(verdict="confirmed", judges="latest")
    return foretold_rates(made) | {"comparison": own}


def foretold_users(made: SimpleNamespace) -> dict[str, Any]:
    study = loads(made, "users", (2, 0.4), (8, 2.0), (16, 0))
    users = np.arange(1, 9)
    images_per_s = 5.5 * users / (1.2 + users)
    predicted = pd.DataFrame({"users": users, "images_per_s": images_per_s})
    predicted["p50_s"] = users / images_per_s
    predicted["p95_s"] = 1.4 * predicted["p50_s"]
    return {
        "summary": study.summary[:2],
        "record": study.runs[0].record,
        "predicted": predicted,
    }


def apart(made: SimpleNamespace) -> dict[str, Any]:
    """Images taken apart, each a little slower and larger than the one before."""
    images = made.images().assign(
        total_s=lambda frame: frame["total_s"] * np.linspace(0.95, 1.05, len(frame))
    )
    images["decode_peak_gib"] += np.linspace(0, 0.02, len(images))
    return {"requests": images, "record": made.record(networks=made.networks)}


def parts(made: SimpleNamespace) -> dict[str, Any]:
    run = apart(made)
    return {
        "parts": memory_parts(run["record"], run["requests"], made.samples([0.9, 0.95])),
        "record": run["record"],
    }


def shares(made: SimpleNamespace) -> dict[str, Any]:
    known = {"dtype": "float32", "limit_tflop_per_s": 0.2}
    steps = known | {
        "part": "UNet step",
        "tflop_per_s": 0.08,
        "share": 0.4,
        "share_interval": (0.35, 0.45),
    }
    decodes = known | {
        "part": "VAE decode",
        "tflop_per_s": 0.15,
        "share": 0.75,
        "share_interval": (0.6, 0.9),
    }
    return {"shares": pd.DataFrame([steps, decodes]), "record": made.record()}


def trend(made: SimpleNamespace) -> dict[str, Any]:
    rss_gib = 0.9 + (4096 * (1 - np.exp(-np.arange(300) / 30)) + 20 * np.arange(300)) / 2**20
    return {"telemetry": made.samples(rss_gib), "record": made.record()}


def curve(made: SimpleNamespace) -> dict[str, Any]:
    around = {"1": 0.1, "2": 0.2, "4": 0.4, "8": 0.8}
    step_s = {"1": 0.03, "2": 0.05, "4": 0.07, "8": 0.1, "16": 0.19}
    showcase = {"width": 128, "height": 128, "num_inference_steps": 10}
    step_times = {"128x128": {"step_s": step_s, "encode_s": around, "decode_s": around}}
    return {"step_times": step_times, "record": made.record(target={"showcase": showcase})}


def gains(made: SimpleNamespace) -> dict[str, Any]:
    rows = [
        (2.0, "continuous", "latency_mean_s", 3, 0.9, (0.5, 1.6), "not shown"),
        (4.0, "continuous", "latency_mean_s", 3, 0.4, (0.3, 0.6), "lower"),
        (2.0, "dynamic", "latency_mean_s", 3, 1.2, (1.1, 1.3), "higher"),
        (4.0, "dynamic", "latency_mean_s", 1, 0.8, None, "not shown"),
    ]
    columns = ["rate", "batching", "figure", "pairs", "ratio", "interval", "verdict"]
    predicted = pd.DataFrame(
        {"serial": [1.0, 2.0], "continuous": [0.9, 0.7], "dynamic": [1.2, 1.7]}, index=[1.0, 4.5]
    )
    foretold = pd.DataFrame(
        [
            (1.0, "continuous", "latency_mean_s", 0.95, (0.8, 1.1), "not shown", 45),
            (2.0, "continuous", "latency_mean_s", 0.8, (0.7, 0.9), "lower", 45),
            (4.0, "continuous", "latency_mean_s", 0.45, (0.35, 0.6), "lower", 45),
        ],
        columns=FORETOLD_COLUMNS,
    )
    return {
        "gains": pd.DataFrame(rows, columns=columns),
        "predicted": predicted,
        "foretold": ForetoldGains(foretold, {"dynamic": "18 images show too little"}),
        "record": made.record(),
    }


def policies_by_throughput(made: SimpleNamespace) -> dict[str, Any]:
    """Two policies that keep up to 2 and 4 images/s; of the third nothing is foretold."""
    rows = []
    for name, most in (("serial", 2.0), ("continuous", 4.0)):
        for share in (0.2, 0.5, 0.7, 0.82, 0.92):
            took_s = 0.4 + 0.3 * share / (1 - share)
            rows.append((name, share * most, took_s, (0.9 * took_s, 1.1 * took_s)))
    capacities = {"serial": (1.33, (1.25, 1.4)), "continuous": (2.67, (2.5, 2.8))}
    foretold = Frontier(
        "p95 < 1 s",
        pd.DataFrame(rows, columns=["name", "images_per_s", "promised_s", "promised_s_interval"]),
        capacities,
        {"serial": 60, "continuous": 60},
        {"dynamic": "18 images show too little"},
    )
    return {"foretold": foretold, "record": made.record()}


def tried(made: SimpleNamespace) -> dict[str, Any]:
    rows = [
        made.setting("baseline", 5.0, psnr_db=math.inf, pictures="same"),
        made.setting("channels-last", 5.4, psnr_db=90.0, memory_gib=2.1),
        made.setting("int8", 7.5, exact=False, psnr_db=31.0, ssim=0.93, memory_gib=2.9),
        made.setting("bf16", 8.0, confirmed=True, psnr_db=35.0, ssim=0.991, memory_gib=1.5),
        made.setting("compile", 6.6, confirmed=True, psnr_db=88.0, memory_gib=2.4),
    ]
    return {"settings": pd.DataFrame(rows, dtype=object), "record": made.record()}


def spent(made: SimpleNamespace) -> dict[str, Any]:
    """The settings of `tried`, of which the confirmed ones have an energy."""
    run = tried(made)
    joules = [900.0 if is_confirmed else None for is_confirmed in run["settings"]["confirmed"]]
    run["settings"]["energy_per_image_j"] = joules
    return run


def grid(made: SimpleNamespace) -> dict[str, Any]:
    """Three recipes and eight prompts; the last recipe breaks two prompts."""
    y, x = np.mgrid[0:48, 0:64] / 64
    rows = []
    for recipe, worst in (("baseline", 1.0), ("bf16", 0.998), ("fp8", 0.7)):
        pairs = []
        for number in range(8):
            likeness = worst if number in (2, 5) else (1 + worst) / 2
            waves = 0.5 + 0.4 * np.sin((3 + number) * x + 9 * y / likeness)
            picture = (255 * np.stack([waves, waves * y, 1 - waves], -1)).astype(np.uint8)
            prompt = f"prompt number {number}"
            pair = Pair(prompt, number + 1, worst == 1, 40.0, likeness, 0.01, picture=picture)
            pairs.append(pair)
        rows.append(made.setting(recipe, 5.0, **picture_columns(pairs)))
    return {"settings": pd.DataFrame(rows, dtype=object), "record": made.record()}


def decided(made: SimpleNamespace) -> dict[str, Any]:
    run = tried(made)
    return {
        "decision": decide(run["settings"], memory_limit_gib=2.6),
        "record": run["record"],
    }


def nightly(made: SimpleNamespace) -> dict[str, Any]:
    rows = [
        {"study": f"night-{night}", "load": load, "figure": "latency_p95_s", "ratio": ratio, "low": ratio - 0.02,
         "high": ratio + 0.03, "verdict": "slower" if ratio > 1.1 else "no difference"}
        for night, ratio in ((1, 1.01), (2, 0.98), (3, 1.2)) for load in ("closed-4", "closed-8")
    ]  # fmt: skip
    return {"table": pd.DataFrame(rows), "record": made.record()}


def compared(made: SimpleNamespace) -> dict[str, Any]:
    figures = {
        "service_s": 1.03,
        "latency_p50_s": 1.04,
        "throughput_images_per_s": 0.97,
        "memory": 1.0,
    }
    rows = [
        {"study": "night-1", "load": "closed-4", "figure": figure, "ratio": ratio, "low": ratio - width,
         "high": ratio + width, "verdict": "slower" if figure == "service_s" else "inconclusive"}
        for (figure, ratio), width in zip(figures.items(), (0.006, 0.05, 0.05, 0.06), strict=True)
    ]  # fmt: skip
    return {"table": pd.DataFrame(rows), "record": made.record()}


def days(made: SimpleNamespace) -> dict[str, Any]:
    return {"outlook": make_outlook(price_per_hour=2.0), "record": made.record()}


PICTURES: dict[
    str, tuple[Callable[..., Axes], Callable[[SimpleNamespace], dict[str, Any]], dict[str, Any]]
] = {
    "latency_over_time": (plots.latency_over_time, rows, {}),
    "latency_distribution": (plots.latency_distribution, rows, {}),
    "latency_parts": (plots.latency_parts, rows, {}),
    "gantts": (plots.gantts, rush, {}),
    "machine_over_time": (plots.machine_over_time, machine, {}),
    "memory_over_time": (plots.memory_over_time, memory, {}),
    "load_curve": (plots.load_curve, users, {}),
    "foretold_load_curve": (plots.load_curve, foretold_users, {}),
    "queue_share": (plots.queue_share, users, {}),
    "hockey_stick": (plots.hockey_stick, rates, {"slo": SLO, "capacity": (2.6, 3.4)}),
    "foretold_hockey_stick": (
        plots.hockey_stick,
        foretold_stick,
        {"slo": SLO, "capacity": (3.0, 3.25)},
    ),
    "goodput_curve": (plots.goodput_curve, rates, {"slo": SLO}),
    "foretold_goodput": (plots.goodput_curve, foretold_rates, {"slo": SLO}),
    "stages_by_load": (plots.stages_by_load, stages, {}),
    "stage_stack": (plots.stage_stack, apart, {}),
    "cost_line": (plots.cost_line, apart, {}),
    "against_pixels": (plots.against_pixels, apart, {}),
    "memory_bars": (plots.memory_bars, parts, {}),
    "arithmetic_bars": (plots.arithmetic_bars, shares, {}),
    "memory_trend": (plots.memory_trend, trend, {}),
    "step_time_curve": (plots.step_time_curve, curve, {}),
    "latency_cdf": (plots.latency_cdf, rush, {}),
    "gain": (plots.gain, gains, {}),
    "frontier": (plots.frontier, policies_by_throughput, {}),
    "ladder": (plots.ladder, tried, {}),
    "costs": (plots.costs, spent, {"price_per_hour": 2.5}),
    "machine_time": (plots.costs, tried, {}),
    "picture_grid": (plots.picture_grid, grid, {}),
    "decision": (plots.decision, decided, {"memory_limit_gib": 2.6}),
    "forest": (plots.forest, nightly, {"against": "night-0"}),
    "forest_services": (plots.forest, compared, {"against": "night-0"}),
    "nights": (plots.nights, nightly, {"studies": [f"night-{night}" for night in range(4)]}),
    "promise_over_day": (plots.promise_over_day, days, {}),
    "cost_against_promise": (plots.cost_against_promise, days, {}),
}


def panels(figure: Figure) -> list[Axes]:
    return [
        panel for ax in figure.axes for panel in (ax, *ax.child_axes) if isinstance(panel, Axes)
    ]


def draw(name: str, made: SimpleNamespace) -> Figure:
    """The plot's marks alone, at a fixed place.

    Letters differ from one build of FreeType to the next, and move everything else."""
    plot, data, options = PICTURES[name]
    figure = plot(**data(made), **options).figure
    assert isinstance(figure, Figure)
    figure.set_layout_engine("none")
    for ax in panels(figure):
        ax.tick_params(which="both", labelbottom=False, labelleft=False)
    for words in [*figure.findobj(Text), *figure.findobj(Legend)]:
        words.set_visible(False)
    return figure


@pytest.mark.mpl_image_compare(savefig_kwargs={"dpi": DPI, "metadata": {"Software": None}})
@pytest.mark.parametrize("name", PICTURES)
def test_picture(name: str, made: SimpleNamespace) -> Figure:
    return draw(name, made)


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("change", ["gone", "moved"])
def test_a_line_or_bar_that_is_gone_or_moved_is_another_picture(
    name: str, change: str, made: SimpleNamespace, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    figure = draw(name, made)
    marks = [
        [*ax.patches, *(line for line in ax.lines if len(line.get_xdata()))]
        for ax in panels(figure)
    ]
    first = next(of_panel for of_panel in marks if of_panel)
    wide = [one for one in first if one.get_window_extent().width > 0.02 * figure.bbox.width]
    mark = (wide or first)[-1]
    if change == "gone":
        mark.set_visible(False)
    else:
        mark.set_transform(
            mark.get_transform() + Affine2D().translate(0, 0.02 * figure.bbox.height)
        )
    figure.savefig(tmp_path / "changed.png", dpi=DPI)
    baseline = Path(__file__).parent / f"baseline/test_picture_{name}.png"
    tolerance = float(pytestconfig.getini("mpl-default-tolerance"))
    assert compare_images(str(baseline), str(tmp_path / "changed.png"), tol=tolerance) is not None


def brightness(colour: Any) -> float:
    """Relative luminance from 0 (black) to 1 (white): WCAG 2.2, "relative luminance"."""
    channels = np.asarray(colour, dtype=float)
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: Any, other: Any) -> float:
    """The contrast ratio of two colours, from 1 to 21: WCAG 2.2, "contrast ratio"."""
    dark, light = sorted([brightness(one), brightness(other)])
    return (light + 0.05) / (dark + 0.05)


def faint_words(figure: Figure) -> dict[str, float]:
    """The words whose contrast to what lies behind them is below 4.5, with that contrast.

    What lies behind them is each colour of at least a sixth of the pixels there."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    words = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    inks = [to_rgb(text.get_color()) for text in words]
    places = [text.get_window_extent() for text in words]
    figure.set_layout_engine("none")
    for text in words:
        text.set_color("none")
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[::-1, :, :3]
    height, width, _ = pixels.shape
    faint = {}
    for text, place, ink in zip(words, places, inks, strict=True):
        rows = slice(max(0, int(place.y0)), min(height, int(place.y1)))
        columns = slice(max(0, int(place.x0)), min(width, int(place.x1)))
        behind = pixels[rows, columns].reshape(-1, 3)
        if not len(behind):
            continue  # the tick lies beyond the end of its axis
        colours, counts = np.unique(behind, axis=0, return_counts=True)
        large = colours[counts >= min(counts.max(), len(behind) / 6)]
        least = min(contrast(ink, colour / 255) for colour in large)
        if least < 4.5:
            faint[text.get_text()] = least
    return faint


def overlapping_words(figure: Figure) -> list[tuple[str, str]]:
    """The pairs of words that cover each other by more than a sixth of a small letter's height."""
    FigureCanvasAgg(figure).draw()
    beyond = ticks_beyond(figure)
    words = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    words = [text for text in words if text not in beyond]
    places = [Text.get_window_extent(text).padded(-0.012 * figure.dpi) for text in words]
    return [
        (one.get_text(), other.get_text())
        for (one, place), (other, there) in combinations(zip(words, places, strict=True), 2)
        if place.overlaps(there) and one is not other
    ]


def ticks_beyond(figure: Figure) -> set[Any]:
    """The names of ticks that are not drawn: their axis has ended before, or is off."""
    beyond = set()
    for ax in panels(figure):
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            air = 1e-6 * (high - low)
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not ax.axison or not low - air <= tick.get_loc() <= high + air:
                    beyond |= {tick.label1, tick.label2}
    return beyond


def title_ends(figure: Figure) -> list[float]:
    """Where each title ends, as a share of the figure's width."""
    FigureCanvasAgg(figure).draw()
    titles = [text for ax in figure.axes for text in ax.get_children() if is_title(ax, text)]
    return [text.get_window_extent().x1 / figure.bbox.x1 for text in titles]


def is_title(ax: Axes, artist: Any) -> bool:
    return isinstance(artist, Text) and artist.get_text() == ax.get_title("left") != ""


@pytest.mark.parametrize("name", PICTURES)
def test_each_title_ends_within_its_figure_and_all_words_stand_out_and_apart(
    name: str, made: SimpleNamespace
) -> None:
    plot, data, options = PICTURES[name]
    figure = plot(**data(made), **options).figure
    assert isinstance(figure, Figure)
    style.show(figure.axes[0])
    ends = title_ends(figure)
    assert ends
    assert max(ends) <= 1
    assert overlapping_words(figure) == []
    assert faint_words(figure) == {}


def test_a_title_beside_a_wide_legend_is_wrapped_sooner(made: SimpleNamespace) -> None:
    """On a GPU the legend of the networks is so wide that the title once left the figure."""
    assert _end_beside_a_wide_legend(made) <= 1


@style.styled
def _end_beside_a_wide_legend(made: SimpleNamespace) -> float:
    ax = style.axes(None)
    for name in ("unet: 4.78 GiB, 2,567 M parameters", "text_encoder: 0.229 GiB, 123 M parameters"):
        ax.bar(0, 1, label=name)
    ax.set_yticks([0], ["a bar whose long name narrows the axes from the left"])
    style.legend_beside(ax, title="the networks of the model, with all of their parameters")
    title = "The model's networks take 6.62 GiB; decoding the image adds the most, 4.77 GiB"
    style.finish(ax, made.record(target={"model": "sdxl"}), title, "Bars.")
    style.show(ax)
    figure = ax.figure
    assert isinstance(figure, Figure)
    (end,) = title_ends(figure)
    return end


def test_policies_are_named_outside_the_axes_where_no_name_covers_a_mark(
    made: SimpleNamespace,
) -> None:
    by_throughput = plots.frontier(**policies_by_throughput(made))
    by_latency = plots.latency_cdf(**rush(made))
    for ax in (by_throughput, by_latency):
        legend = ax.get_legend()
        assert legend is not None
        ax.figure.draw_without_rendering()  # type: ignore[union-attr]
        assert not legend.get_window_extent().overlaps(ax.get_window_extent().padded(-2))
        names = [text.get_text() for text in legend.get_texts()]
        assert any(name.startswith("continuous") for name in names)
        inside = [text.get_text() for text in ax.texts]
        assert not any("continuous" in words for words in inside)


def test_an_identical_picture_stands_past_the_end_of_its_axis(made: SimpleNamespace) -> None:
    *_, likeness = plots.ladder(**tried(made)).child_axes
    names = [label.get_text() for label in likeness.get_xticklabels()]
    assert names[-1] == "same"
    last, before = likeness.get_xticks()[[-1, -2]]
    assert last > 1.05 * before
    marks = [float(line.get_xdata()[0]) for line in likeness.lines if line.get_marker() == "o"]
    assert max(marks) == last


def test_every_plot_has_a_picture() -> None:
    """So the tests of faint words, of overlaps and of titles see each plot."""
    drawn = {plot for plot, _, _ in PICTURES.values()}
    others = {"Picture", "picture", "save", "show"}
    assert {name for name in plots.__all__ if getattr(plots, name) not in drawn} == others


def test_words_that_cover_each_other_are_found() -> None:
    figure = Figure(figsize=(4, 2))
    figure.text(0.1, 0.5, "one")
    figure.text(0.12, 0.5, "on another")
    figure.text(0.1, 0.9, "far from both")
    assert overlapping_words(figure) == [("one", "on another")]


def test_faint_words_are_found() -> None:
    figure = Figure(figsize=(4, 2))
    figure.text(0.1, 0.8, "orange on white", color=style.ORANGE)
    figure.text(0.1, 0.5, "its ink on white", color=style.ink(style.ORANGE))
    figure.text(0.1, 0.2, "white on sky", color="white", backgroundcolor=style.SKY)
    figure.text(0.6, 0.2, "black on sky", color=style.ink_on(style.SKY), backgroundcolor=style.SKY)
    assert faint_words(figure).keys() == {"orange on white", "white on sky"}
