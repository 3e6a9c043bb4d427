"""Plots on how requests share the model: what a batch costs, who waits for whom, and what sharing gains.

Knows the names of the policies and their look. Ignorant of how they decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.gridspec import SubplotSpec

from benchlib.rows import PARTS_IN_TIME
from benchlib.study import figure, latency
from benchlib.study.figure import number, whole_ticks

POLICY_STYLES: dict[str, dict[str, Any]] = {
    "serial": {"color": figure.GREY, "linestyle": ":", "marker": "o"},
    "dynamic": {"color": figure.RED, "linestyle": "--", "marker": "s"},
    "continuous": {"color": figure.BLUE, "linestyle": "-", "marker": "D"},
}


@figure.styled
def step_time_curve(
    *, step_times: Mapping[str, Any], record: dict[str, Any], ax: Axes | None = None
) -> Axes:
    """Images per second and, in a panel below, milliseconds per denoising step, against the guided requests in a batch.

    Of `step_times` (a server's spec has them), those of the showcase in `record` are drawn: each the least of a few
    calls, so without interval. Images are of its number of steps, all begun at once. The upper panel is returned; an
    `ax` that is given must be of a grid, as pyplot.subplots makes it.
    """
    upper = figure.axes(ax, height=6)
    showcase = record["spec"]["target"]["showcase"] or {"width": None, "height": None}
    if not (curves := step_times.get("{width}x{height}".format(**showcase))):
        return figure.no_data(
            upper, record, "what a batch costs", "the server measured no step times of its showcase"
        )
    lower, steps = figure.panel_below(upper), showcase["num_inference_steps"]
    batch, rows = (sorted(map(int, curves[part])) for part in ("encode_s", "step_s"))
    step_s = np.interp([2 * n for n in batch], rows, [curves["step_s"][str(n)] for n in rows])
    around_s = [curves["encode_s"][str(n)] + curves["decode_s"][str(n)] for n in batch]
    images_per_s = batch / (around_s + steps * step_s)
    no_gain_ms = 1000 * step_s[0] * np.array(batch)
    upper.plot(batch, images_per_s, "o-", color=figure.BLUE, linewidth=2)
    lower.plot(batch, 1000 * step_s, "o-", color=figure.BLUE, linewidth=2)
    lower.plot(batch, no_gain_ms, ":", color=figure.GREY)
    for panel, label in ((upper, f"images/s, of {steps} steps"), (lower, "one denoising step, ms")):
        panel.set(ylabel=label, ylim=(0, 1.1 * panel.get_ylim()[1]), xticks=batch)
    lower.set_xlabel("images in the batch, each with guidance (two rows in the UNet)")
    ends = [
        (1000 * step_s[-1], "measured", figure.BLUE),
        (no_gain_ms[-1], "if batches gained nothing", figure.GREY),
    ]
    figure.label_at_right(lower, ends)
    best = int(images_per_s.argmax())
    times = (
        f"{number(images_per_s[best] / images_per_s[0])} times the images/s of one image at a time"
    )
    finding = f"a batch of {batch[best]} makes {times}"
    if len(batch) == 1:
        finding = "only one image at a time was measured: what a batch would gain is not known"
    elif images_per_s[best] < 1.05 * images_per_s[0]:
        finding = f"batches gain next to nothing: at most {times}"
    of = "the least of up to six calls each, when the server started"
    alt = "Lines over the number of images in a batch: images per second above, the time of one step below."
    return figure.finish(upper, record, finding, alt, of=of, lowest=lower)


@figure.styled
def gantts(
    *,
    requests: Mapping[str, pd.DataFrame],
    record: dict[str, Any],
    lanes: int = 20,
    ax: Axes | None = None,
) -> Axes:
    """The first `lanes` measured requests under each policy, in panels one above the other: a lane each, from the
    moment of the request to the image.

    A server tells how long each part took, not when it was: waiting between the steps is drawn after them. The lane of
    a request without an image is empty.
    `requests` has a run's by its policy's name, each asked for the same at the same moments: a lane is one request in
    all panels, and time has one scale. `record` is that of any of the runs. The Axes around the panels is returned; an
    `ax` that is given must be of a grid, as pyplot.subplots makes it.
    """
    ax = figure.axes(ax, height=7.6)
    if not any(len(latency.latency_parts(frame)) for frame in requests.values()):
        return figure.no_data(
            ax, record, "when each image was made", "no image whose server told how its time went"
        )
    # `ax` keeps the room above the panels, for the title and one legend.
    ratios = [0.25, *[1] * len(requests)]
    place = cast(SubplotSpec, ax.get_subplotspec()).subgridspec(
        len(ratios), 1, height_ratios=ratios
    )
    ax.set_subplotspec(place[0])
    ax.set_axis_off()
    panels, keys, took_s, ends_s = (
        list[Axes](),
        dict[str, Any](),
        list[tuple[float, str]](),
        list[float](),
    )
    for row, (name, frame) in enumerate(requests.items(), 1):
        panels.append(
            panel := ax.figure.add_subplot(place[row], sharex=panels[0] if panels else None)
        )
        drawn = _draw_lanes(panel, frame, lanes)
        panel.set_title(f"{name}: {_took(drawn) if len(drawn) else 'no image'}", size=10)
        panel.set_ylabel("requests")
        panel.tick_params(labelbottom=row == len(requests))
        keys |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
        if len(drawn):
            took_s.append((drawn["latency_s"].mean(), name))
            ends_s += panel.get_xlim()
    panels[-1].set(xlim=(min(ends_s), max(ends_s)), xlabel="time since the start of each run, s")
    order = [name for name, *_ in figure.PART_STYLES.values() if name in keys]
    ax.legend(
        [keys[name] for name in order],
        order,
        loc="upper left",
        bbox_to_anchor=(-0.01, 1.2),
        ncols=4,
    )
    means = ", ".join(f"{number(mean)} s {name}" for mean, name in sorted(took_s))
    n = max(len(latency.in_window(frame).head(lanes)) for frame in requests.values())
    alt = f"A panel each for {', '.join(requests)}: a bar for each of {n} requests over time, coloured by part."
    of = f"study {record['study']}, a run of each"
    return figure.finish(
        ax, record, f"{n} requests took on average {means}", alt, of=of, lowest=panels[-1]
    )


@figure.styled
def latency_cdf(
    *, requests: Mapping[str, pd.DataFrame], record: dict[str, Any], ax: Axes | None = None
) -> Axes:
    """Which share of the measured requests had their image within so many seconds, a stair for each policy.

    `requests` has rows, of a run or of several together, by the policy's name; `record` is that of any of the runs. A
    request that got no image keeps its stair below 100 %.
    """
    ax = figure.axes(ax)
    ax.set(xlabel=figure.LATENCY, ylabel="share of the requests that had their image, %")
    series = {name: latency.latencies(frame) for name, frame in requests.items()}
    series = {name: latency_s for name, latency_s in series.items() if latency_s.notna().any()}
    if not series:
        return figure.no_data(ax, record, "how long requests took", "no request got an image")
    longest_s = max(latency_s.max() for latency_s in series.values())
    by_mean = sorted(series, key=lambda name: -series[name].mean())
    for place, name in enumerate(by_mean):  # the slowest first, its label lowest
        known, n = np.sort(series[name].dropna()), len(series[name])
        style = POLICY_STYLES[name]
        percent = 100 * np.arange(len(known) + 1) / n
        x = np.concatenate([[0], known, [1.03 * longest_s]])
        ax.step(x, [*percent, percent[-1]], where="post", linewidth=2, **style | {"marker": ""})
        height = min((25, 50, 75)[place % 3], 0.9 * percent[-1])  # on the stair's upright
        spot, label = (
            (known[int(height * n / 100)], height),
            f"{name}, mean {number(known.mean())} s",
        )
        ax.plot(*spot, style["marker"], color=style["color"])
        boxed: dict[str, Any] = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1}
        ax.annotate(
            label,
            spot,
            (8, 0),
            textcoords="offset points",
            va="center",
            color=style["color"],
            bbox=boxed,
        )
    ax.set(xlim=(0, 1.03 * longest_s), ylim=(0, 103))
    halves = [(name, latency.percentile(series[name], 0.5)) for name in reversed(by_mean)]
    told = ", ".join(f"{number(half)} s {name}" for name, half in halves if half is not None)
    finding = (
        f"half of the requests took at most {told}" if told else "too few requests for a median"
    )
    of = figure.study_of(record, sum(map(len, series.values())), "request")
    alt = f"A stair from 0 to 100 % over latency for each of {', '.join(series)}."
    return figure.finish(ax, record, finding, alt, of=of)


@figure.styled
def gain(
    *,
    gains: pd.DataFrame,
    record: dict[str, Any],
    predicted: pd.DataFrame | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Latency over that of serial batching at the same rate, with 95 % intervals: `gains` as of comparison.gains().

    Means are filled, 95th percentiles hollow. `predicted`, mean latencies by rate (its index, 1/s) and policy (a column
    each, "serial" among them), becomes thin lines. `record` is that of any of the runs.
    """
    ax = figure.axes(ax)
    ax.set(xlabel="requests sent, 1/s", ylabel="latency, in multiples of serial's")
    if not len(gains):
        return figure.no_data(ax, record, "gain by rate", "no two valid runs of the same requests")
    top = 1.15 * max(1.3, gains["ratio"].max())
    cut = any(pair is not None and pair[1] > top for pair in gains["interval"])
    most = end = gains["rate"].max()
    labels = []
    kinds = gains.groupby(["batching", "figure"], sort=True)
    for place, (kind, rows) in enumerate(kinds):
        name, latency = map(str, kind)
        style, is_mean = POLICY_STYLES[name], latency == "latency_mean_s"
        x = rows["rate"] + 0.01 * most * (place - (len(kinds) - 1) / 2)
        pairs = [
            pair or (ratio, ratio)
            for pair, ratio in zip(rows["interval"], rows["ratio"], strict=True)
        ]
        ax.vlines(
            x, *np.transpose(pairs), color=style["color"], linewidth=2 if is_mean else 1, alpha=0.7
        )
        ax.plot(
            x,
            rows["ratio"],
            **style,
            linewidth=1.2,
            markersize=7,
            markerfacecolor=None if is_mean else "white",
        )
        words = f"{name}, {'mean' if is_mean else '95 % took at most'}"
        labels.append((rows["ratio"].iloc[-1], words, style["color"]))
    if predicted is not None:
        end = max(end, predicted.index.max())
        for policy, ratios in (
            predicted.div(predicted["serial"], axis="index").drop(columns="serial").items()
        ):
            style = POLICY_STYLES[str(policy)] | {"marker": ""}
            ax.plot(ratios, **style, linewidth=0.8)
            labels.append(
                (ratios.iloc[-1], f"{policy}, mean, long run as predicted", style["color"])
            )
    ax.axhline(1, color="black", linewidth=1.2)
    ax.text(
        0.005, 1, "as serial", transform=ax.get_yaxis_transform(), va="bottom", fontsize="small"
    )
    ax.set(xlim=(0, 1.05 * end), ylim=(0, top))
    if cut:
        ax.set_ylabel("latency, in multiples of serial's (bars cut at the top)")
    figure.label_at_right(ax, labels)
    each: list[Any] = gains.to_dict("records")
    said = "; ".join(
        _gained(row) for row in each if row["rate"] == most and row["figure"] == "latency_mean_s"
    )
    finding = (
        f"at {number(most)} requests/s, {said}"
        if said
        else "no run carries a mean at the highest rate"
    )
    told = ". ".join(f"At {number(row['rate'])}/s {_gained(row)}" for row in each)
    pairs = gains["pairs"].max()
    bars = (
        f" at most {pairs} runs of each; bars: 95 % intervals"
        if pairs > 1
        else " one run of each, so no interval"
    )
    of = f"study {record['study']},{bars}"
    return figure.finish(ax, record, finding, f"Marks with bars, by rate. {told}.", of=of)


def _gained(row: Any) -> str:
    what = "mean latency" if row["figure"] == "latency_mean_s" else "p95"
    if row["verdict"] == "not shown":
        return f"a difference of {row['batching']}'s {what} from serial's is not shown"
    low, high = row["interval"]
    return f"{row['batching']}'s {what} is {number(row['ratio'])} times serial's ({number(low)} to {number(high)})"


def _draw_lanes(ax: Axes, requests: pd.DataFrame, lanes: int) -> pd.DataFrame:
    """Draws the first measured requests and returns those with an image, and `waited_s` of each."""
    first = latency.in_window(requests).head(lanes).reset_index(drop=True)
    parts = latency.latency_parts(first).fillna(0).clip(lower=0)
    drawn = first.loc[parts.index].assign(waited_s=parts["queue"] + parts["wait"])
    if not len(drawn):
        return drawn
    left = drawn["scheduled_s"].to_numpy()
    for part in (*PARTS_IN_TIME, latency.OTHER, latency.REST):
        if parts[part].sum() >= 0.005 * parts.sum(axis=None):
            name, colour, hatch = figure.PART_STYLES[part]
            style: dict[str, Any] = {
                "color": colour,
                "hatch": hatch,
                "edgecolor": "white",
                "linewidth": 0.3,
            }
            ax.barh(parts.index + 1, parts[part], 0.8, left, label=name, **style)
        left = left + parts[part].to_numpy()
    ax.set(ylim=(len(first) + 0.6, 0.4), xlim=(drawn["scheduled_s"].min(), left.max()))
    whole_ticks(ax.yaxis)
    return drawn


def _took(drawn: pd.DataFrame) -> str:
    waited = 100 * drawn["waited_s"].sum() / drawn["latency_s"].sum()
    return f"{number(drawn['latency_s'].mean())} s on average, {waited:.0f} % of it waiting"
