"""How every figure looks and what it says: style, title, caption, alt text, and how it is saved.

Ignorant of what is drawn (the rooms' plots.py, run_plots.py) and of where runs are stored. Figures
are made without pyplot, so nothing depends on a backend and nothing stays open.
"""

from __future__ import annotations

import base64
import html
import inspect
import io
import math
import os
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, cast

import numpy as np
from matplotlib import pyplot, rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from scipy.optimize import isotonic_regression

from benchlib.server_timing import PARTS
from benchlib.study import latency
from benchlib.study.busy import UNWATCHED, busy_words, cores_of, is_unwatched, taken_words
from benchlib.study.latency import Record
from benchlib.study.wording import counted
from benchlib.study.wording import number as number
from benchlib.study.wording import words as words

if TYPE_CHECKING:
    from PIL.Image import Image

PathLike = str | os.PathLike[str]

# Colours that colour-blind people can tell apart: Okabe & Ito, "Color Universal Design" (2008).
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, RED, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#6B6B6B"
DARK_ORANGE, DARK_SKY, DARK_GREEN = "#8A5F00", "#1A6A99", "#00694D"
DARK_YELLOW, DARK_RED, DARK_PURPLE = "#6B6200", "#A34600", "#8F3F6B"
_INKS = {
    ORANGE: DARK_ORANGE,
    SKY: DARK_SKY,
    GREEN: DARK_GREEN,
    YELLOW: DARK_YELLOW,
    RED: DARK_RED,
    PURPLE: DARK_PURPLE,
}

LATENCY = "latency (from request to image), s"
_STYLES_IN_ORDER = (  # name, colour, hatch
    ("waiting in the queue", ORANGE, "//"),
    ("waiting for other images", YELLOW, ".."),
    ("encoding the prompt", SKY, ""),
    ("denoising", BLUE, ""),
    ("decoding the image", GREEN, "\\\\"),
    ("writing the image file", PURPLE, "xx"),
    ("in the server, other", "#D0D0D0", ""),
    ("network and client", GREY, ""),
)
PART_STYLES = dict(zip((*PARTS, latency.OTHER, latency.REST), _STYLES_IN_ORDER, strict=True))
"""How each part of a request's latency is drawn."""

_CAPTION_LETTERS = 130  # of the caption, which fit the width of a figure
_CAPTION_LINE = 10.5  # points
_TICKS: Any = {"nbins": 8, "steps": [1, 2, 5, 10]}  # 0, 5, 10 rather than 0.0, 2.5, 5.0
_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "grid.alpha": 0.3,
    "hatch.linewidth": 0.4,
    "legend.frameon": False,
    "svg.hashsalt": "benchlib",  # the same picture gives the same file
}
_NO_DATA = "no data"
_SMALL_PRINT = "small print"
_ROOM_SHARE = 0.92  # of the room for small print: letters are wider at the 200 dots of a PNG
_LEGEND_SHARE = 0.9  # of the figure's width: the rest is the y-axis's

Arguments = ParamSpec("Arguments")
Drawn = TypeVar("Drawn")


def styled(draw: Callable[Arguments, Drawn]) -> Callable[Arguments, Drawn]:
    """Gives a plot function the style of all figures, and a clear word for a call that is wrong.

    A plot takes its data by name. A wrong call raises TypeError that shows a right one.
    """
    signature = inspect.signature(draw)

    @wraps(draw)
    def in_style(*args: Arguments.args, **options: Arguments.kwargs) -> Drawn:
        try:
            signature.bind(*args, **options)
        except TypeError as error:
            raise TypeError(f"{error}; {_right_call(draw.__name__, signature, args)}") from None
        with rc_context(_STYLE):
            return draw(*args, **options)

    return in_style


def _right_call(name: str, signature: inspect.Signature, args: tuple[Any, ...]) -> str:
    """How to call a plot, in words; of a run, the shorter call where there is one."""
    parameters = signature.parameters.values()
    needed = [part.name for part in parameters if part.default is part.empty]
    call = f"call bl.plots.{name}({', '.join(f'{part}=...' for part in needed)})"
    own_plots = getattr(args[0], "plot", None) if args else None
    return f"{call}, or run.plot.{name}()" if hasattr(own_plots, name) else call


@dataclass(frozen=True)
class Picture:
    """A PNG that a notebook shows as HTML, `width` pixels wide, with its alt text.

    nbconvert and JupyterLab give an image/png no alt text. `png` is None where there is nothing to
    draw: then the notebook shows the words alone, which say why.
    """

    alt: str
    png: bytes | None = field(repr=False)
    width: int = field(default=800, repr=False)

    def _repr_html_(self) -> str:
        alt = html.escape(self.alt)
        if self.png is None:
            return f"<p>{alt}</p>"
        data = base64.b64encode(self.png).decode()
        return f'<img width="{self.width}" alt="{alt}" src="data:image/png;base64,{data}">'


@styled
def save(ax: Axes, path: PathLike) -> tuple[Path, ...]:
    """Writes the figure of `ax` to `path`.png and `path`.svg, and returns both paths.

    The alt text becomes the files' Description. The PNG has 200 dots per inch. A figure without
    data (see no_data) is not written, and no path is returned. A figure that was written there
    earlier is removed: it would be taken for this one.
    """
    figure = cast(Figure, ax.figure)
    target = Path(path)
    # with_suffix would cut the ".9" off a name such as "p99.9".
    png = target.with_name(f"{target.name}.png")
    svg = target.with_name(f"{target.name}.svg")
    if _is_empty(ax):
        png.unlink(missing_ok=True)
        svg.unlink(missing_ok=True)
        return ()
    target.parent.mkdir(parents=True, exist_ok=True)
    _keep_words_inside(figure)
    title = " ".join(ax.get_title("left").split())
    metadata = {"Title": title, "Description": _alt(figure)}
    figure.savefig(png, dpi=200, metadata=metadata)
    figure.savefig(svg, dpi=200, metadata={**metadata, "Date": None})
    return png, svg


@styled
def show(ax: Axes, path: PathLike | None = None) -> Picture:
    """Returns the figure of `ax` for the notebook; with a `path` it saves it as save() does.

    Of a figure without data it returns the words alone.
    """
    figure = cast(Figure, ax.figure)
    data = None
    if path is not None:
        files = save(ax, path)
        data = files[0].read_bytes() if files else None
    elif not _is_empty(ax):
        file = io.BytesIO()
        _keep_words_inside(figure)
        figure.savefig(file, format="png", dpi=200)
        data = file.getvalue()
    pyplot.close(figure)  # or the notebook would show a figure of pyplot's twice
    return Picture(_alt(figure), data)


def _keep_words_inside(figure: Figure) -> None:
    """Wraps each title, and each line of small print, that leaves the figure at its right.

    Both begin at the left of their axes. Only the finished layout shows how far a legend beside the
    axes, and the names of bars, have moved them.
    """
    # 1) The small print. In the layout, its long lines would make the axes narrow.
    prints = [text for text in figure.findobj(Annotation) if text.get_gid() == _SMALL_PRINT]
    for text in prints:
        text.set_in_layout(False)
    figure.draw_without_rendering()
    _wrap_small_print(figure, prints)
    for text in prints:
        text.set_in_layout(True)

    # 2) The titles. Small print moves with the axes, so that the layout takes two turns.
    figure.draw_without_rendering()
    figure.draw_without_rendering()
    for ax in figure.axes:
        title = ax.get_title("left")
        begins = ax.get_window_extent().x0
        for artist in ax.findobj(Text):
            ends = artist.get_window_extent().x1
            if artist.get_text() != title or not title or ends <= figure.bbox.x1:
                continue
            lines = title.split("\n")
            letters = max(len(line) for line in lines)
            fitting = int(letters * (figure.bbox.x1 - begins) / (ends - begins))
            artist.set_text(textwrap.fill(" ".join(lines), max(20, fitting)))


def _wrap_small_print(figure: Figure, prints: list[Annotation]) -> None:
    """Wraps lines that leave the figure, and moves what stands below them in the same axes."""
    added: dict[Any, int] = {}
    for text in prints:
        extent = text.get_window_extent()
        room = _ROOM_SHARE * (figure.bbox.x1 - extent.x0)
        lines = text.get_text().split("\n")
        if text.get_fontweight() == "bold":
            lines = [" ".join(lines)]  # one sentence, and wrapped for wider axes
        right, up = text.xyann
        text.xyann = (right, up - _CAPTION_LINE * added.get(text.axes, 0))
        if extent.width <= room:
            continue
        before = text.get_text().split("\n")
        longest = max(len(line) for line in before)
        letters = max(20, int(longest * room / extent.width))
        wrapped = [part for line in lines for part in textwrap.wrap(line, letters)]
        text.set_text("\n".join(wrapped))
        added[text.axes] = added.get(text.axes, 0) + len(wrapped) - len(before)
    most = max(added.values(), default=0)
    figure.set_figheight(figure.get_figheight() + most * _CAPTION_LINE / 72)


def picture(image: Image, *, alt: str) -> Picture:
    """A generated image for the notebook, no wider than a figure."""
    file = io.BytesIO()
    image.save(file, "png")
    png = file.getvalue()
    width = min(image.width, Picture.width)
    return Picture(alt, png, width)


def ink(colour: str) -> str:
    """The colour of words about marks of `colour`: letters on white need 4.5 to 1, marks do not.

    Source: W3C, "Web Content Accessibility Guidelines 2.2" (2023), success criterion 1.4.3.
    """
    return _INKS.get(colour, colour)


def ink_on(fill: str) -> str:
    """The colour of words inside a bar of the colour `fill`: black, or white on a dark one."""
    return "white" if fill in (BLUE, GREY, "black", *_INKS.values()) else "black"


def axes(ax: Axes | None, height: float = 4.6) -> Axes:
    """`ax`, or the axes of a new figure of 9 by `height` inches; with ticks at round numbers."""
    if ax is None:
        ax = Figure(figsize=(9, height), layout="constrained").subplots()
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(**_TICKS))
    return ax


def panel_below(ax: Axes) -> Axes:
    """Splits `ax`, which keeps the upper half, and returns a lower half with the same x-axis."""
    place = cast(SubplotSpec, ax.get_subplotspec()).subgridspec(2, 1)
    ax.set_subplotspec(place[0])
    ax.tick_params(labelbottom=False)
    lower: Axes = ax.figure.add_subplot(place[1], sharex=ax)
    lower.yaxis.set_major_locator(MaxNLocator(**_TICKS))
    return lower


def panels_below(ax: Axes, count: int, *, above: float) -> list[Axes]:
    """Returns `count` panels of equal height with one x-axis, in the place of `ax`.

    `ax` keeps the room above them, for the title: `above` times the height of a panel.
    """
    place = cast(SubplotSpec, ax.get_subplotspec())
    grid = place.subgridspec(count + 1, 1, height_ratios=[above, *[1] * count])
    ax.set_subplotspec(grid[0])
    panels: list[Axes] = []
    for row in range(1, count + 1):
        first = panels[0] if panels else None
        panels.append(ax.figure.add_subplot(grid[row], sharex=first))
    for panel in panels:
        panel.yaxis.set_major_locator(MaxNLocator(**_TICKS))
        panel.tick_params(labelbottom=panel is panels[-1])
    return panels


def whole_ticks(axis: Axis) -> None:
    """Sets ticks at whole numbers only, for counts."""
    axis.set_major_locator(MaxNLocator(**_TICKS, integer=True))


def ratio_axis(ax: Axes, name: Literal["x", "y"], below: str, above: str) -> None:
    """Makes an axis of ratios logarithmic, so that a half is as far from 1 as a double.

    `below` and `above` say what ratios below and above 1 are: "better", "worse". They stand at the
    axis's ends. The limits are those that the axis has now.
    """
    # 1) The scale, with ticks in plain numbers.
    if name == "x":
        axis: Axis = ax.xaxis
        ax.set_xscale("log")
        ticks = _ratio_ticks(*ax.get_xlim())
    else:
        axis = ax.yaxis
        ax.set_yscale("log")
        ticks = _ratio_ticks(*ax.get_ylim())
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,.6g}"))
    axis.set_minor_locator(NullLocator())

    # 2) Both ends in words: over an x-axis's plot, and within a y-axis's.
    style: dict[str, Any] = {"transform": ax.transAxes, "fontsize": "small", "color": GREY}
    if name == "x":
        ax.text(0, 1.01, f"← {below}", ha="left", va="bottom", **style)
        ax.text(1, 1.01, f"{above} →", ha="right", va="bottom", **style)
        return
    style["bbox"] = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1}
    ax.text(0.005, 0.985, f"↑ {above}", va="top", **style)
    ax.text(0.005, 0.015, f"↓ {below}", va="bottom", **style)


def _ratio_ticks(low: float, high: float) -> list[float]:
    """Returns readable ratios from `low` to `high`, at most about ten."""
    if high < 3 * low:
        ticks = MaxNLocator(**_TICKS).tick_values(low, high)
        return [float(tick) for tick in ticks if low <= tick <= high]
    digits: tuple[float, ...] = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
    if high > 10 * low:
        digits = (1.0, 2.0, 5.0)
    if high > 1000 * low:
        digits = (1.0,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    readable = [digit * 10.0**power for power in powers for digit in digits]
    return [tick for tick in readable if low <= tick <= high]


def _alt(figure: Figure) -> str:
    return " ".join(str(ax.get_label()) for ax in figure.axes)


def whisker_lengths(values: Any, intervals: Any) -> Any:
    """How far each interval reaches below and above its value: an array of shape (2, n).

    `intervals` holds a pair or None for each value. The length is NaN where there is no interval:
    matplotlib draws nothing for a NaN.
    """
    missing = (math.nan, math.nan)
    pairs = [missing if pair is None else pair for pair in intervals]
    middle = np.asarray(values, dtype=float)
    return np.abs(np.transpose(pairs) - middle)


def whiskers(
    ax: Axes,
    x: Any,
    y: Any,
    intervals: Any,
    *,
    horizontal: bool = False,
    colour: str = "black",
    marker: str = "none",
    markersize: float = 5,
) -> Any:
    """Draws an interval through each point, and returns how far each reaches above its value.

    Without an interval the length is 0. `intervals` holds a pair or None for each point: of `y`, or
    of `x` where the whiskers are `horizontal`. A `marker` draws the points as well.
    """
    style: dict[str, Any] = {"fmt": marker, "ecolor": colour, "capsize": 3}
    if marker != "none":
        style["color"] = colour
        style["markersize"] = markersize
    if horizontal:
        lengths = whisker_lengths(x, intervals)
        ax.errorbar(x, y, xerr=lengths, **style)
    else:
        lengths = whisker_lengths(y, intervals)
        ax.errorbar(x, y, yerr=lengths, **style)
    _, above = lengths
    return np.nan_to_num(above)


def bar_style(part: str) -> dict[str, Any]:
    """The fill of a bar for a part of the latency (a key of PART_STYLES), as keywords of ax.bar."""
    _, colour, hatch = PART_STYLES[part]
    return {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.3}


def label_point(
    ax: Axes, point: tuple[Any, Any], text: str, offset: tuple[float, float], **style: Any
) -> None:
    """Writes a small text `offset` points (right, up) from a point; `style` is ax.annotate's."""
    style = {"fontsize": "small"} | style
    ax.annotate(text, point, offset, textcoords="offset points", **style)


def legend_beside(ax: Axes, **options: Any) -> None:
    """Puts the legend to the right of the axes, at their top; `options` go to ax.legend."""
    ax.legend(
        loc="upper left",
        bbox_to_anchor=(1, 1),
        alignment="left",
        **options,
    )


def legend_above(ax: Axes, columns: int = 3, **options: Any) -> float:
    """Puts the legend between axes and title, and returns the `pad` that finish() needs.

    It has fewer than `columns` where it would leave the figure: then the axes would have to shrink.
    """
    entries, _ = ax.get_legend_handles_labels()
    whole = ax.figure.figure
    for count in range(columns, 0, -1):
        columns = count
        legend = ax.legend(
            loc="lower left",
            bbox_to_anchor=(-0.01, 0.99),
            ncols=columns,
            fontsize="small",
            **options,
        )
        if legend.get_window_extent().width < _LEGEND_SHARE * whole.bbox.width:
            break
    rows = math.ceil(len(entries) / columns)
    return 10 + 13 * rows


def study_of(record: Record, count: int, what: str) -> str:
    """The `source` of finish() for several runs: "study load, 12 runs"."""
    return f"study {record['study']}, {counted(count, what)}"


def no_data(ax: Axes, record: Record, subject: str, reason: str) -> Axes:
    """An empty plot that says why it is empty; it is never saved."""
    ax.set_gid(_NO_DATA)
    ax.text(
        0.5,
        0.5,
        f"no data: {reason}",
        transform=ax.transAxes,
        ha="center",
        va="center",
        fontsize="large",
    )
    ax.set(xticks=[], yticks=[])
    return finish(ax, record, f"{subject}: no data", f"There is no figure, as {reason}.")


def _is_empty(ax: Axes) -> bool:
    return ax.get_gid() == _NO_DATA


def label_at_right(ax: Axes, labels: list[tuple[float, str, str]]) -> None:
    """Writes each label (height, text, colour) to the right of the axes, where its line ends.

    Letters are darker than their line (see ink). Labels that would cover one another move apart, as
    little as they must, and a label moves down where its line leaves the axes at their top.
    """
    if not labels:
        return
    points = 72 * ax.get_window_extent().height / ax.figure.dpi
    line_height = 14 / points  # of a small line, with air, as a share of the axes
    left, _ = ax.get_xlim()
    share_of_axes = ax.transData - ax.transAxes  # the scale may be logarithmic
    lowest_first = sorted(labels)

    # 1) Where each should stand, and how far it must stand above the lowest
    wanted = []
    for height, _, _ in lowest_first:
        _, share = share_of_axes.transform((left, height))
        wanted.append(min(share, 1.0))
    halves = [line_height * len(text.split("\n")) / 2 for _, text, _ in lowest_first]
    apart = np.cumsum([0.0, *(one + next_ for one, next_ in pairwise(halves))])

    # 2) The places with the least squares of the moves, none below the axes
    places = np.maximum(isotonic_regression(wanted - apart).x, 0) + apart
    for place, (_, text, colour) in zip(places, lowest_first, strict=True):
        ax.text(
            1.01,
            place,
            text,
            color=ink(colour),
            transform=ax.transAxes,
            va="center",
            fontsize="small",
        )


def finish(
    ax: Axes,
    record: Record,
    finding: str,
    alt: str,
    *,
    pad: float = 8,
    source: str = "",
    lowest: Axes | None = None,
    busy: str | None = None,
) -> Axes:
    """Writes the title over `ax`, the caption under `lowest` (`ax` by default), and the alt text.

    `source` says where the data come from, unless that is the one run of `record`: "study load, 12
    runs". `busy` is what busy_sentence says of these runs; by default it is said of `record` alone.
    """
    # 1) The title, over the axes
    title = finding[0].upper() + finding[1:]
    if record["spec"]["target"]["model"] == "tiny":
        title = f"tiny model, not SDXL: {finding}"
    ax.set_title(_wrapped(title, ax), pad=pad)

    # 2) What was measured, in small print
    below = lowest or ax
    warning = busy or busy_words(record, one_of_many=bool(source))
    down = -7.0
    if warning:
        lines = textwrap.wrap(warning, _CAPTION_LETTERS)
        _small_print(below, "\n".join(lines), down, color="black", fontweight="bold")
        height = _CAPTION_LINE * len(lines)
        down -= height
        # Low figures have no room to spare.
        whole = ax.figure.figure
        whole.set_figheight(whole.get_figheight() + height / 72)
    _small_print(below, _caption(record, source), down, color=GREY)

    # 3) The alt text, which save() and show() find as the axes' label
    where = source or _run_of(record)
    where = where[0].upper() + where[1:]
    machine = " with ".join(filter(None, (_hardware(record), record["machine"]["gpu"])))
    said = f"{title}. {alt} {where} on {machine}."
    ax.set_label(f"{said} {warning}" if warning else said)
    return ax


def _small_print(ax: Axes, text: str, down: float, **style: Any) -> None:
    """Writes `text` under the label of the x-axis, `down` points (negative) from it."""
    ax.annotate(
        text,
        (0, 0),
        (0, down),
        ("axes fraction", ax.xaxis.label),
        "offset points",
        va="top",
        fontsize=7.5,
        gid=_SMALL_PRINT,
        **style,
    )


def _wrapped(title: str, ax: Axes) -> str:
    """The title in lines of similar length that fit the axes: no last word stands alone."""
    # A number keeps its unit, a bracket its word, and an interval its ends.
    unbroken = re.sub(
        r"(?<=[\d)]) (?=s\b|GiB|%|users?\b|images|W\b|°C|MHz|cores?\b)", "\u00a0", title
    )
    unbroken = re.sub(r"\((\S+) to (\S+)\)", "(\\1\u00a0to\u00a0\\2)", unbroken)
    points = 72 * ax.get_window_extent().width / ax.figure.dpi
    letters = int(0.18 * points)
    lines = 1 + len(unbroken) // letters
    even = len(unbroken) // lines + 8
    return textwrap.fill(unbroken, min(letters, even), break_on_hyphens=False)


def _caption(record: Record, source: str) -> str:
    """Three lines: the model and its requests, the machine, and where the data come from."""
    spec = record["spec"]
    machine = record["machine"]
    arrivals = "" if source else _arrivals(spec["arrivals"])
    others = None
    if not source and busy_words(record) is None:
        others = taken_words(record["outcome"] or {}, cores_of(record))
    if is_unwatched(record):
        others = UNWATCHED
    lines = (
        (_model(spec["target"]), _image(spec["workload"]), arrivals),
        (_hardware(record), machine["gpu"], others),
        (source or _run_of(record), machine["os"], _versions(record["packages"])),
    )
    written = [" · ".join(filter(None, line)) for line in lines]
    return "\n".join(written)


def _model(target: dict[str, Any]) -> str:
    """The model as it was loaded, or the URL of a server that says nothing of its model."""
    values = (target["model"], target["dtype"], target["device"])
    words_of_model = [str(value) for value in values if value]
    if not words_of_model:
        return str(target["url"])
    return " ".join(words_of_model)


def _image(workload: dict[str, Any]) -> str:
    """The size and the steps, where all images had the same; else nothing."""
    names = ("width", "height", "num_inference_steps")
    numbers: list[Any] = [workload.get(name) for name in names]
    if not all(isinstance(value, int) for value in numbers):
        return ""
    width, height, steps = numbers
    return f"{width}x{height} pixels, {counted(steps, 'step')}"


def _arrivals(arrivals: dict[str, Any]) -> str:
    named = [f"{key} {_short(value)}" for key, value in arrivals.items() if value]
    return ", ".join(named).removeprefix("kind ").replace("_", " ")


def _short(value: Any) -> Any:
    """A number of an arrival in few digits; anything else as it is."""
    return number(value) if isinstance(value, float) else value


def _hardware(record: Record) -> str:
    machine = record["machine"]
    memory_gib = machine["memory_gib"]
    memory = None if memory_gib is None else f"{number(memory_gib)} GiB"
    parts = (machine["cpu"], counted(machine["cores"], "core"), memory)
    return ", ".join(filter(None, parts))


def _versions(packages: dict[str, str]) -> str:
    names = ("python", "torch", "diffusers")
    # A version stays beside its name where the line is wrapped.
    shown = [f"{name}\u00a0{packages[name]}" for name in names if name in packages]
    return ", ".join(shown)


def _run_of(record: Record) -> str:
    return f"run {record['run']}"
