"""Plots on every size of data, their words and files, and the alt text that reaches a web page."""

import hashlib
import html
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import nbformat
import pandas as pd
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib import pyplot
from matplotlib.axes import Axes
from nbconvert import HTMLExporter
from PIL import Image

from benchlib import plots
from benchlib.study import figure
from benchlib.study.store import Run, Study
from benchlib.study.wording import agreeing

OF_REQUESTS = [plots.latency_over_time, plots.latency_distribution, plots.latency_parts]
TIMEOUT = {
    "error": "timeout",
    "http_status": None,
    "latency_s": 600.0,
    "done_s": 605.0,
    "total_s": None,
}


def rows_of(case: str, made: SimpleNamespace) -> list[dict[str, Any]]:
    cases = {
        "none": lambda: [],
        "one": lambda: [made.row()],
        "six": lambda: [made.row(i, scheduled_s=3.5 + i, latency_s=1 + i / 10) for i in range(6)],
        "many": lambda: made.simulate(10_000),
        "all failed": lambda: made.simulate(60, failed=1.0),
        "censored": lambda: made.simulate(90, failed=0.1, censored=4),
        "identical": lambda: [made.row(i) for i in range(40)],
        "hours": lambda: made.simulate(60, service_s=400.0),
        "timeouts": lambda: [made.row(i) for i in range(99)] + [made.row(99, **TIMEOUT)],
        "warm-up only": lambda: [made.row(0, phase="warmup")],
    }
    return cases[case]()


CASES = [
    "none",
    "one",
    "six",
    "many",
    "all failed",
    "censored",
    "identical",
    "hours",
    "timeouts",
    "warm-up only",
]


def texts(ax: Axes) -> str:
    legend = ax.get_legend()
    entries = [entry.get_text() for entry in legend.get_texts()] if legend else []
    return "\n".join(
        [ax.get_title("left"), *[text.get_text() for text in ax.texts], *entries]
    ).replace("\u00a0", " ")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("plot", OF_REQUESTS)
def test_every_plot_draws_every_case(
    plot: Any, case: str, made: SimpleNamespace, tmp_path: Path
) -> None:
    before = dict(mpl.rcParams)
    ax = plot(requests=made.requests(rows_of(case, made)), record=made.record())
    assert isinstance(ax, Axes)
    assert texts(ax).startswith("tiny model, not SDXL: ")
    is_empty = case == "none" or ax.get_xticks().size == 0
    assert ("no data" in texts(ax)) == is_empty
    files = plots.save(ax, tmp_path / "figure")
    if is_empty:
        assert files == ()
    else:
        png, svg = files
        assert svg.stat().st_size < 500_000
        assert png.stat().st_size > 10_000
    assert dict(mpl.rcParams) == before
    assert not pyplot.get_fignums()


@pytest.mark.parametrize("samples", [0, 1, 100, 20_000])
@pytest.mark.parametrize("gpu", [False, True])
def test_memory_draws_every_case(
    samples: int, gpu: bool, made: SimpleNamespace, tmp_path: Path
) -> None:
    target = {"model": "sdxl", "device": "cuda:0", "weights_gib": 6.46} if gpu else {}
    record = made.record(target=target)
    requests = made.requests(
        [made.row(i, server_peak_gib=peak) for i, peak in enumerate((8.0, 11.5, 9.0))]
    )
    ax = plots.memory_over_time(
        telemetry=made.telemetry(samples, gpu=gpu), requests=requests, record=record
    )
    plots.save(ax, tmp_path / "memory")
    if samples:
        assert ax.get_ylim()[0] == 0
        weights = "weights on the GPU: 6.46 GiB" if gpu else "weights add 0.013 GiB"
        assert f"the model's {weights}" in texts(ax)
        assert "process before the model, 0.61 GiB" in texts(ax)
        assert ("GPU, peak in use by an image, 11.5 GiB" in texts(ax)) == gpu
        assert ("GPU, reserved, at most 11.2 GiB" in texts(ax)) == gpu
    else:
        assert "no data: the server's process was not sampled" in texts(ax)


def summary_of(
    made: SimpleNamespace, points: list[tuple[float, float]], kind: str = "users"
) -> pd.DataFrame:
    """A study's summary with a throughput for each load; each image takes 0.2 or 0.3 s."""
    runs = []
    for load, images_per_s in points:
        arrivals = {"kind": "closed_loop" if kind == "users" else "open_loop", kind: load}
        took = [0.2 + 0.1 * (i * i % 3 == 1) for i in range(50)]
        record, requests, telemetry = made.run(
            took, gap_s=1 / images_per_s, spec={"arrivals": arrivals}
        )
        record["outcome"] |= {"window_end_s": record["outcome"]["window_end_s"] + 0.3}
        runs.append(Run(record, requests, telemetry, Path("results/study/run")))
    summary = Study(Path("results/study"), tuple(runs)).summary
    return summary.assign(throughput_images_per_s=[images_per_s for _, images_per_s in points])


@pytest.mark.parametrize(
    ("points", "kind", "finding"),
    [
        (
            [(1, 5), (2, 9.2), (4, 9.0)],
            "users",
            "throughput levels off at 9.1 images/s from 2 users on",
        ),
        (
            [(1, 5), (2, 8.9), (2, 9.5), (4, 9.0)],
            "users",
            "throughput levels off at 9.1 images/s from 2 users on",
        ),
        ([(4, 9), (1, 3), (2, 6)], "users", "throughput was at most 9 images/s, with 4 users"),
        # a throughput that is not seen to grow
        (
            [(1, 9), (2, 9.1)],
            "users",
            "throughput hardly grows from 1 user to 2 users: 9.05 images/s, within 5 %",
        ),
        ([(1, 5), (2, 9), (4, 7)], "users", "throughput was at most 9 images/s, with 2 users"),
        # loads that are too close to each other
        (
            [(1, 1), (8, 7.9), (8.1, 8)],
            "rate",
            "throughput was at most 8 images/s, with 8.1 requests/s",
        ),
        (
            [(2, 2), (8, 7.9), (10, 8)],
            "rate",
            "throughput levels off at 7.95 images/s from 8 requests/s on",
        ),
        ([(1, 5)], "users", "throughput was at most 5 images/s, with 1 user"),
    ],
)
def test_a_load_curve_says_no_more_than_it_shows(
    made: SimpleNamespace,
    points: list[tuple[float, float]],
    kind: str,
    finding: str,
    tmp_path: Path,
) -> None:
    ax = plots.load_curve(summary=summary_of(made, points, kind), record=made.record())
    upper, lower = ax.figure.axes
    assert ax is upper
    assert texts(upper).replace("\n", " ") == f"tiny model, not SDXL: {finding}"
    assert f"study quickstart, {len(points)} run" in texts(lower)
    assert "half within this" in texts(lower)
    assert "95 % within this" in texts(lower)
    assert upper.get_ylim()[0] == lower.get_ylim()[0] == 0
    png, _ = plots.save(ax, tmp_path / "figure")
    assert png.stat().st_size > 10_000


def test_a_load_curve_leaves_out_what_it_can_not_know(made: SimpleNamespace) -> None:
    summary = summary_of(made, [(1, 5), (2, 9), (4, 9)])
    unknown = {
        "latency_p50_s": None,
        "latency_p95_s": None,
        "state": "unstable",
        "latency_p50_s_interval": None,
    }
    drifted = summary.assign(**unknown)
    drifted["throughput_images_per_s_interval"] = [(4.0, 6.0), None, (8.0, 10.0)]
    upper, lower = plots.load_curve(summary=drifted, record=made.record()).figure.axes
    assert texts(lower).count("latency drifted") == 3
    bars = [segment for lines in upper.collections for segment in lines.get_segments()]
    assert [(bar[0][1], bar[1][1]) for bar in bars if len(bar)] == [(4, 6), (8, 10)]
    few = plots.load_curve(summary=drifted.assign(state=None), record=made.record()).figure.axes[1]
    assert "too few requests for a percentile" in texts(few)
    one_invalid = plots.load_curve(
        summary=summary.assign(valid=[True, False, True]), record=made.record()
    )
    assert "1 of 3 runs left out as not valid" in texts(one_invalid).replace("\n", " ")
    for none in (
        summary[:0],
        summary.assign(valid=False),
        summary.drop(columns="users"),
        pd.DataFrame(),
    ):
        assert "no data: no valid run at a known load" in texts(
            plots.load_curve(summary=none, record=made.record())
        )


def test_a_load_curve_makes_room_in_the_axes_that_it_is_given(made: SimpleNamespace) -> None:
    figure, panels = pyplot.subplots(1, 2)
    summary = summary_of(made, [(1, 5), (2, 9)])
    assert plots.load_curve(summary=summary, record=made.record(), ax=panels[0]) is panels[0]
    assert len(figure.axes) == 3
    assert not panels[1].has_data()
    pyplot.close(figure)


def test_titles_state_the_finding(made: SimpleNamespace) -> None:
    requests = made.requests([made.row(i, latency_s=(37 * i % 100 + 1) / 100) for i in range(100)])
    workload = {"width": 1024, "height": 512, "num_inference_steps": 20}
    record = made.record(target={"model": "sdxl"}, spec={"workload": workload})
    distribution = plots.latency_distribution(requests=requests, record=record)
    assert texts(distribution).startswith(
        "Half of 100 requests took at most 0.5 s, 95 % at most 0.95 s\n"
    )
    assert "99 % took at most 0.99 s" in texts(distribution)
    assert "99.9 %" not in texts(distribution)
    over_time = plots.latency_over_time(requests=requests, record=record)
    assert texts(over_time).startswith("After warm-up, each of 100 images took 0.01 to 1.00 s\n")
    assert "half took at most\n0.5 s (median)" in texts(over_time)
    assert "warm-up, not counted" in texts(over_time)
    alike = made.requests([made.row(i) for i in range(5)])
    parts = plots.latency_parts(requests=alike, record=record)
    said = texts(parts).replace("\n", " ")
    assert (
        "An image took 1 s on average: 50 % waiting in the queue and 25 % denoising (5 images)"
        in said
    )
    assert "encoding the prompt: 0.05 s, 5 %" in said
    for ax in (distribution, over_time, parts):
        assert (
            "sdxl float32 cpu · 1024x512 pixels, 20 steps · closed loop, users 4\nAMD EPYC 9B14, 2 cores"
            in texts(ax)
        )
        assert (
            "run 20261123-164512-closed-4 · Linux 6.1 · python 3.11.7, torch 2.13.0+cpu"
            in texts(ax)
        )


def test_the_small_print_has_the_rate_in_three_digits(made: SimpleNamespace) -> None:
    arrivals = {"kind": "open_loop", "rate": 0.752551851608725, "burstiness": 1.0}
    record = made.record(spec={"arrivals": arrivals})
    ax = plots.latency_parts(requests=made.requests([made.row()]), record=record)
    assert "open loop, rate 0.753, burstiness 1\n" in texts(ax)


def test_the_alt_text_names_the_gpu(made: SimpleNamespace) -> None:
    requests = made.requests([made.row()])
    record = made.record()
    on_a_cpu = plots.latency_parts(requests=requests, record=record)
    assert on_a_cpu.get_label().endswith(" 23.4 GiB.")
    record["machine"]["gpu"] = "NVIDIA H200"
    on_a_gpu = plots.latency_parts(requests=requests, record=record)
    assert on_a_gpu.get_label().endswith(" 23.4 GiB with NVIDIA H200.")


def test_a_run_that_drifted_is_given_no_percentile(made: SimpleNamespace) -> None:
    record, steady, _ = made.run([0.4 + 0.1 * (i % 3) for i in range(100)])
    drifting = made.run([0.1 + 0.05 * i for i in range(100)])[1]
    for plot, lines in (
        (plots.latency_over_time, "(median)"),
        (plots.latency_distribution, "% took at most"),
    ):
        shown = texts(plot(requests=drifting, record=record)).replace("\n", " ")
        assert shown.startswith(
            "tiny model, not SDXL: latency still drifted: no percentile is given"
        )
        assert lines not in shown
        assert lines in texts(plot(requests=steady, record=record))
        ramp = record["spec"] | {"arrivals": {"kind": "ramp"}}
        assert "drifted" not in texts(plot(requests=drifting, record=record | {"spec": ramp}))
    assert "; latency still drifted" in texts(
        plots.latency_parts(requests=drifting, record=record)
    ).replace("\n", " ")


@pytest.mark.parametrize(("n", "is_known"), [(25, False), (39, False), (40, True)])
def test_fewer_than_forty_requests_have_no_percentile(
    made: SimpleNamespace, n: int, is_known: bool
) -> None:
    record, requests, _ = made.run([0.4 + 0.1 * (i % 3) for i in range(n)])
    unknown = f"not known whether it settled ({n} requests, it takes 40)"
    over_time = plots.latency_over_time(requests=requests, record=record)
    distribution = plots.latency_distribution(requests=requests, record=record)
    for ax, claim in ((over_time, "(median)"), (distribution, "took at most")):
        said = texts(ax).replace("\n", " ")
        assert (unknown in said) == (not is_known)
        assert (claim in said) == is_known
    assert distribution.get_xlim()[0] == 0


@pytest.mark.parametrize("n", [1, 4])
def test_fewer_than_five_images_have_no_histogram_and_no_shares(
    made: SimpleNamespace, n: int, tmp_path: Path
) -> None:
    few = made.requests([made.row(i) for i in range(n)])
    distribution = plots.latency_distribution(requests=few, record=made.record())
    there = f"there {agreeing(n, 'is', 'are')} {n}"
    assert f"a histogram takes 5 images, {there}" in texts(distribution)
    assert plots.save(distribution, tmp_path / "distribution") == ()
    parts = plots.latency_parts(requests=few, record=made.record())
    said = texts(parts).replace("\n", " ")
    assert f"where the time went is not shown: it takes 5 images, {there}" in said
    assert "%" not in said
    assert len(plots.save(parts, tmp_path / "parts")) == 2


def test_an_empty_figure_is_words_and_no_file(made: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "figures" / "latency"
    requests = made.requests(made.simulate(60))
    full = plots.latency_over_time(requests=requests, record=made.record())
    assert plots.show(full, path).png is not None
    assert len(list(path.parent.iterdir())) == 2
    for where in (path, None):
        empty = plots.latency_over_time(requests=requests[:0], record=made.record())
        picture = plots.show(empty, where)
        assert picture.png is None
        assert "There is no figure, as no request was sent." in picture._repr_html_()
        assert "<img" not in picture._repr_html_()
    assert not list(path.parent.iterdir()), "the figure of an earlier run would be taken for it"
    nowhere = tmp_path / "none" / "latency"
    plots.show(plots.latency_over_time(requests=requests[:0], record=made.record()), nowhere)
    assert not nowhere.parent.exists()


def test_a_label_near_the_right_end_stays_within_the_axes(made: SimpleNamespace) -> None:
    requests = made.requests(made.simulate(90))
    ax = plots.latency_distribution(requests=requests, record=made.record())
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]
    right = ax.get_window_extent().x1
    labels = [text for text in ax.texts if "% took at most" in text.get_text()]
    assert labels
    assert all(text.get_window_extent().x1 <= right for text in labels)


def test_what_got_no_image_is_marked_and_said(made: SimpleNamespace) -> None:
    requests = made.requests(made.simulate(90, failed=0.1, censored=4))
    ax = plots.latency_over_time(requests=requests, record=made.record())
    assert "12 of 64 requests got no image" in texts(ax).replace("\n", " ")
    assert "failed" in texts(ax)
    assert "still waiting at the end" in texts(ax)
    timeouts = plots.latency_over_time(
        requests=made.requests(rows_of("timeouts", made)), record=made.record()
    )
    assert "top edge: even longer" in texts(timeouts)
    assert timeouts.get_ylim()[1] < 2


@pytest.mark.parametrize("plot", OF_REQUESTS)
def test_draws_on_given_axes_of_a_backend_it_does_not_choose(
    plot: Any, made: SimpleNamespace
) -> None:
    pyplot.switch_backend("svg")
    figure, panels = pyplot.subplots(1, 2)
    ax = plot(requests=made.requests([made.row()]), record=made.record(), ax=panels[1])
    assert ax is panels[1]
    assert not panels[0].has_data()
    pyplot.close(figure)


def test_the_same_data_gives_the_same_svg(made: SimpleNamespace, tmp_path: Path) -> None:
    requests = made.requests(made.simulate(50))
    digests = set()
    for name in ("a", "b"):
        _, svg = plots.save(
            plots.latency_parts(requests=requests, record=made.record()), tmp_path / name / "p99.9"
        )
        assert svg.name == "p99.9.svg"
        digests.add(hashlib.sha256(svg.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_alt_text_reaches_png_svg_and_the_web_page(made: SimpleNamespace, tmp_path: Path) -> None:
    figure, ax = pyplot.subplots()
    plots.memory_over_time(telemetry=made.telemetry(), record=made.record(), ax=ax)
    picture = plots.show(ax, tmp_path / "figures" / "memory")
    assert not pyplot.fignum_exists(figure.number)
    alt = picture.alt
    assert alt.startswith(
        "tiny model, not SDXL: the server's process held at most 1.01 GiB (120 samples); "
    )
    assert "process before the model, 0.61 GiB" in alt
    with Image.open(tmp_path / "figures/memory.png") as png:
        assert png.info["Description"] == alt
        assert png.info["dpi"][0] == pytest.approx(200, abs=0.1)
    assert html.escape(alt, quote=False) in (tmp_path / "figures/memory.svg").read_text()
    assert repr(alt) in repr(picture)

    data, metadata = DisplayFormatter().format(picture)
    output = nbformat.v4.new_output("execute_result", data, metadata=metadata, execution_count=1)
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("picture", outputs=[output])]
    )
    page, _ = HTMLExporter().from_notebook_node(notebook)
    assert (
        page.count(f'alt="{html.escape(alt)}"') == 1
        or page.count(f'alt="{html.escape(alt, quote=False)}"') == 1
    )
    assert "No description has been provided" not in page


def test_an_image_is_shown_at_its_size_and_with_its_alt_text() -> None:
    shown = plots.picture(Image.new("RGB", (1024, 512)), alt='a "red" fox')._repr_html_()
    assert shown.startswith(
        '<img width="800" alt="a &quot;red&quot; fox" src="data:image/png;base64,'
    )
    assert 'width="128"' in plots.picture(Image.new("RGB", (128, 128)), alt="a fox")._repr_html_()


def test_works_without_a_display(tmp_path: Path) -> None:
    code = (
        "from benchlib import plots; import sys; from matplotlib.figure import Figure;"
        "plots.save(Figure().subplots(), sys.argv[1]); print({'torch', 'IPython'} & {*sys.modules})"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "figure")]
    assert (
        subprocess.run(
            command, env={"MPLCONFIGDIR": str(tmp_path)}, capture_output=True, text=True, check=True
        ).stdout
        == "set()\n"
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.12345, "0.123"),
        (0.00049, "0"),
        (-0.00049, "0"),
        (-0.0016, "-0.002"),
        (999.4, "999"),
        (999.9, "1,000"),
        (1234.5, "1,234"),
    ],
)
def test_numbers_are_of_three_digits(value: float, words: str) -> None:
    assert figure.number(value) == words
