"""The figures that `gpu.py` measured, as a table beside published figures, and as pictures.

Knows the kept lines, the limits, and the published figures with their sources. Ignorant of the
measurement.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchlib.study import figure as style
from benchlib.study.wording import number
from benchmarks.figures import Figure

BATCHES = (1, 2, 4, 8, 16)
# The arithmetic of an image of 1024x1024 in 20 guided steps, as the sum of:
#   40 rows of the UNet    6.76 TFLOP each
#   one decode             10.5 TFLOP
LIMIT_TFLOP = 281.0
PEAK_TFLOP_PER_S = 790.0  # of a dense bf16 product, as measured on such GPUs
KINDS = {  # the kinds of kernels, by parts of their names
    "attention": ("sdpa", "fmha", "flash"),
    "convolutions": ("fprop", "conv2d", "implicit_gemm"),
    "linears": ("nvjet", "gemm", "cutlass", "cublas", "geglu_product"),
    "fused norms and the like": ("triton",),
}
REST = "the rest, and gaps"
_HF = "HF diffusion-fast, A100, real weights"
LADDER = {  # the rungs of `latency`, and a published time in seconds for 30 steps at 1024x1024
    "fp32": (_HF, 7.36),
    "bf16": (_HF, 3.32),
    "bf16, channels-last, fused-qkv": None,
    "bf16, cuDNN tuned": None,
    "bf16, CUDA graphs": None,
    "bf16, CUDA graphs, cuDNN attention": None,
    "compiled": (_HF, 2.54),
    "best": ("TensorRT, H100, real weights", 1.47),
    "best, cuDNN attention": None,
    "best, int8": (_HF, 2.43),
    "best, fp8": None,
}
NAMES = {  # of the rungs, for readers
    "bf16, channels-last, fused-qkv": "bf16, channels last, fused QKV",
    "bf16, cuDNN tuned": "the same, cuDNN tuned",
    "bf16, CUDA graphs": "the same, CUDA graphs",
    "bf16, CUDA graphs, cuDNN attention": "the same, cuDNN attention",
    "compiled": "bf16, all compiled",
    "best": "CUDA graphs of compiled blocks\n(fastest-exact)",
    "best, cuDNN attention": "the same, cuDNN attention",
    "best, int8": "fastest-exact, int8 linears",
    "best, fp8": "fastest-exact, fp8 linears",
}
# The rungs that keep bf16's image.
EXACT_RUNGS = (
    "best",
    "best, cuDNN attention",
    "bf16, CUDA graphs",
    "bf16, CUDA graphs, cuDNN attention",
    "compiled",
)
# The best published figures of a card. MLPerf's server keeps p99 within 20 s.
MLPERF = "MLPerf v5.1 closed, H100, TheStage fp8, real weights"
MLPERF_RATE = 2.263
MLPERF_SERVER = "MLPerf v5.1 closed, H200, TensorRT fp8: 2.30/s at p99 10.7 s"
PROMISE_S = 20.0


def read(folder: Path) -> list[dict[str, Any]]:
    """All kept lines. A last line that was cut off is left out."""
    lines = []
    for path in sorted(folder.glob("*.jsonl")):
        whole = path.read_text().rpartition("\n")[0]
        lines += [json.loads(line) for line in whole.splitlines()]
    return lines


class Lines:
    """The kept lines that have a value.

    Lines with a compilation during the measurement are left out.
    """

    def __init__(self, lines: list[dict[str, Any]]) -> None:
        self._lines = [
            line for line in lines if line["value"] is not None and not line.get("recompiled")
        ]

    def values(self, part: str, case: str, what: str, **same: Any) -> list[float]:
        """The values of all lines that agree in every argument."""
        wanted = {"part": part, "case": case, "what": what} | same
        return [line["value"] for line in self._lines if wanted.items() <= line.items()]

    def cases(self, part: str, what: str) -> list[str]:
        """The cases that have such a line, in their order."""
        found = [
            line["case"] for line in self._lines if (line["part"], line["what"]) == (part, what)
        ]
        return list(dict.fromkeys(found))

    def image_s(self, case: str, steps: int) -> list[float]:
        """Seconds of one image by itself."""
        return self.values("latency", case, "image_s", n=1, steps=steps)

    def images_per_s(self, case: str) -> list[float]:
        """Images per second in the batch size that makes the most."""
        best: list[float] = []
        for n in BATCHES:
            rates = [1 / s for s in self.values("throughput", case, "image_s", n=n)]
            if rates and (not best or statistics.median(rates) > statistics.median(best)):
                best = rates
        return best

    def best_rung(self) -> str:
        """The exact rung of the ladder that is fastest for an image of 20 steps."""
        rungs = [case for case in EXACT_RUNGS if self.image_s(case, 20)]
        return min(
            rungs,
            key=lambda case: statistics.median(self.image_s(case, 20)),
            default="best",
        )

    def psnr_db(self) -> dict[str, list[float]]:
        """PSNR to fp32's images, by "part, case"."""
        found: dict[str, list[float]] = {}
        for line in self._lines:
            if line["what"] == "psnr_db":
                found.setdefault(f"{line['part']}, {line['case']}", []).append(line["value"])
        return found


def ratios(numerators: list[float], denominators: list[float]) -> list[float]:
    """The ratio of each pair; numbers without a partner are left out."""
    pairs = zip(numerators, denominators, strict=False)
    return [numerator / denominator for numerator, denominator in pairs]


def row(name: str, values: list[float], published: str = "", **limits: float) -> tuple[str, Figure]:
    """A row of the table: a published figure in words, and ours with its limits `low` and `high`."""
    missing = None if values else "not measured"
    return published, Figure("gpu", name, values, **limits, not_measured=missing)


def figures(lines: list[dict[str, Any]]) -> list[tuple[str, Figure]]:
    """The rows of the table."""
    kept = Lines(lines)
    return [
        *_one_image(kept),
        *_offline(kept),
        *_under_load(kept),
        *_ladder_rows(kept),
        *_mixed_steps(kept),
        *_overhead(kept),
        *_memory(kept),
        *_likeness(kept),
        *_peers(kept),
        *_starts(kept),
    ]


def _one_image(kept: Lines) -> list[tuple[str, Figure]]:
    best = kept.best_rung()
    published = "TensorRT, H100, real weights: 1.47 s"
    return [
        row(f"one image, 20 steps, {best}: s", kept.image_s(best, 20), high=0.9),
        row(f"one image, 30 steps, {best}: s", kept.image_s(best, 30), published, high=1.3),
    ]


def _offline(kept: Lines) -> list[tuple[str, Figure]]:
    compiled = kept.images_per_s("compiled")
    limit = "60 % of the arithmetic's limit: 1.7"
    return [
        row("offline, compiled bf16: images/s", compiled, limit, low=1.7),
        row(
            "offline, fp8: images/s",
            kept.images_per_s("fp8"),
            f"{MLPERF}: {MLPERF_RATE}",
            low=MLPERF_RATE,
        ),
        row("offline, int8: images/s", kept.images_per_s("int8")),
        row("offline, eager bf16: images/s", kept.images_per_s("eager")),
    ]


def _under_load(kept: Lines) -> list[tuple[str, Figure]]:
    rows = []
    for per_s in (1.6, 1.2, 0.8):
        name = f"server, {per_s}/s: p99, s"
        p99_s = kept.values("serving", f"poisson {per_s}/s", "latency_p99_s")
        if per_s == 1.6:
            rows.append(row(name, p99_s, MLPERF_SERVER, high=PROMISE_S))
        else:
            rows.append(row(name, p99_s))
    kept_s = kept.values("promise", "promise", "latency_p99_s")
    rows.append(row("server, 0.95 of full batches: p99, s", kept_s, MLPERF_SERVER, high=PROMISE_S))
    return rows


def _ladder_rows(kept: Lines) -> list[tuple[str, Figure]]:
    rows = []
    for case, theirs in LADDER.items():
        published = f"{theirs[0]}: {theirs[1]} s" if theirs else ""
        rows.append(row(f"ladder, {case}, 30 steps: s", kept.image_s(case, 30), published))
    return rows


def _mixed_steps(kept: Lines) -> list[tuple[str, Figure]]:
    continuous = kept.values("serving", "mixed, continuous", "mean_s")
    serial = kept.values("serving", "mixed, serial", "mean_s")
    simulated_continuous = kept.values("serving", "mixed, continuous", "predicted_mean_s")
    simulated_serial = kept.values("serving", "mixed, serial", "predicted_mean_s")
    of_simulated = ratios(continuous, simulated_continuous)
    return [
        row("mixed: continuous over serial, mean latency", ratios(continuous, serial), high=1.0),
        row("mixed: the same as simulated", ratios(simulated_continuous, simulated_serial)),
        row("mixed: continuous over simulated", of_simulated, low=0.85, high=1.15),
        row("mixed: serial over simulated", ratios(serial, simulated_serial)),
    ]


def _overhead(kept: Lines) -> list[tuple[str, Figure]]:
    bare_s = kept.values("serving", "overhead", "bare")
    rows = []
    for name in ("engine", "server"):
        found_s = kept.values("serving", "overhead", name)
        rows.append(row(f"{name} over bare pipeline", ratios(found_s, bare_s), high=1.01))
    return rows


def _memory(kept: Lines) -> list[tuple[str, Figure]]:
    allocated = kept.values("latency", "best", "allocated_gib")
    return [
        row("peak allocated, best: GiB", allocated, f"{_HF}: 8.8 GB", high=8.2),
        row("peak allocated, bf16: GiB", kept.values("latency", "bf16", "allocated_gib")),
        row("peak reserved, best: GiB", kept.values("latency", "best", "reserved_gib")),
    ]


def _likeness(kept: Lines) -> list[tuple[str, Figure]]:
    """The rows of PSNR. A recipe that keeps the image must reach plain bf16's PSNR less 1 dB."""
    psnr_db = kept.psnr_db()
    limits = {}
    for name, values in psnr_db.items():
        if name.endswith(", bf16"):
            limits = {"low": statistics.median(values) - 1}
            break
    rows = []
    for name, values in psnr_db.items():
        changes_the_image = name.endswith(("fp8", "int8"))
        held_to = {} if changes_the_image else limits
        rows.append(row(f"PSNR to fp32: {name}: dB", values, **held_to))
    return rows


def _peers(kept: Lines) -> list[tuple[str, Figure]]:
    """One image of 20 steps by each side in turn, and how many times as long as ours it takes."""
    times_s = {
        case: kept.values("peers", case, "image_s", n=1) for case in kept.cases("peers", "image_s")
    }
    ours_s = times_s.get("ours", [])
    rows = [row(f"peers, {case}, one image: s", found) for case, found in times_s.items()]
    for case, found in times_s.items():
        if case != "ours":
            low = {"low": 1.25} if case == "hf compiled" else {}
            rows.append(row(f"peers, {case} over ours", ratios(found, ours_s), **low))
    return rows


def _starts(kept: Lines) -> list[tuple[str, Figure]]:
    cold_s = kept.values("starts", "ours, cold", "ready_s")
    warm_s = kept.values("starts", "ours, warm", "ready_s")
    return [
        row("from nothing to the first image, first start: s", cold_s),
        row("from nothing to the first image, second start: s", warm_s),
        row("second start over first", ratios(warm_s, cold_s), high=0.25),
    ]


def verdict(figure: Figure, ends: Sequence[float]) -> str:
    """ "ok" if the limits hold for all values between `ends`, "MISS" if for none, else "not shown"."""
    if not figure.values or figure.passed is None:
        return ""
    least = min(ends, default=figure.values[0])
    most = max(ends, default=figure.values[0])
    low = -math.inf if figure.low is None else figure.low
    high = math.inf if figure.high is None else figure.high
    if low <= least and most <= high:
        return "ok"
    if most < low or least > high:
        return "MISS"
    return "not shown"


def table(folder: Path) -> str:
    """The table as text, then the step times, the left-out cases and the lines with a compilation."""
    lines = read(folder)
    text = [
        f"{'':10}{'figure':58}{'ours':>10}  {'n':>3} {'spread':22}{'limits':14}published, not by us"
    ]
    text += [_table_line(published, figure) for published, figure in figures(lines)]
    text.append(
        "spread: the 95 % interval of the median from six repetitions on, else the least and the most"
    )
    step_s: dict[tuple[str, int], list[float]] = {}
    for line in lines:
        if line["part"] == "throughput" and line["what"] == "step_s":
            step_s.setdefault((line["case"], line["n"]), []).append(line["value"])
    for (case, n), values in sorted(step_s.items()):
        text.append(f"step, {case}, batch {n}: {statistics.median(values):.4g} s")
    for line in lines:
        if line["what"] == "pictures":
            text.append(f"pictures, {line['case']} beside bf16: {line['value']}, {line['reason']}")
    for line in lines:
        if line["what"] == "left out":
            text.append(f"left out: {line['part']}, {line['case']}: {line['value']}")
    for line in lines:
        if line.get("recompiled"):
            text.append(f"compiled while measured: {line['part']}, {line['case']}, {line['what']}")
    return "\n".join(text)


def _table_line(published: str, figure: Figure) -> str:
    ours = "-" if figure.value is None else f"{figure.value:.4g}"
    ends: tuple[float, ...] = ()
    if figure.interval:
        ends = figure.interval
    elif len(figure.values) > 1:
        ends = (min(figure.values), max(figure.values))
    spread = " to ".join(f"{end:.4g}" for end in ends)
    limits = []
    if figure.low is not None:
        limits.append(f">= {figure.low:.4g}")
    if figure.high is not None:
        limits.append(f"<= {figure.high:.4g}")
    passed = verdict(figure, ends)
    measured = f"{passed:10}{figure.name:58}{ours:>10}  {len(figure.values):3} {spread:22}"
    return f"{measured}{', '.join(limits):14}{published}"


@style.styled
def draw(folder: Path) -> list[Path]:
    """Draws the kept figures: the ladder, images per second, a step's parts. Returns the files."""
    lines = read(folder)
    found = {figure.name: figure for _, figure in figures(lines) if figure.values}
    machine = next(line["value"] for line in lines if line["what"] == "machine")
    target = {"model": machine["model"], "dtype": None, "device": None, "url": None}
    record = {"spec": {"target": target, "workload": {}, "arrivals": {}}, **machine}
    pictures = {
        "ladder": _ladder(found, record),
        "throughput": _rates(found, record),
        "kernels": _kernels(lines, record),
    }
    files: list[Path] = []
    for name, ax in pictures.items():
        if ax is not None:
            files += style.save(ax, folder / "figures" / name)
    return files


def _value(figure: Figure) -> float:
    return figure.value or 0.0


def _interval(figure: Figure) -> tuple[float, float]:
    return figure.interval or (min(figure.values), max(figure.values))


def _listed(values: dict[str, float], unit: str) -> str:
    """The names with their values, for alt text."""
    return "; ".join(f"{name} {number(value)} {unit}" for name, value in values.items())


def _bars(ax: Any, names: Sequence[str], shown: Sequence[Figure], colours: Sequence[str]) -> None:
    """Draws a bar with an interval and a number for each figure, the first at the top."""
    values = [_value(figure) for figure in shown]
    intervals = [_interval(figure) for figure in shown]
    ax.barh(
        range(len(shown)),
        values,
        0.55,
        xerr=style.whisker_lengths(values, intervals),
        color=colours,
        capsize=3,
        ecolor="black",
    )
    for place, (value, (_, high)) in enumerate(zip(values, intervals, strict=True)):
        ax.text(high, place, f"  {number(value)}", va="center", fontsize="small")
    ax.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6))
    ax.grid(visible=False, axis="y")


def _ladder(found: dict[str, Figure], record: dict[str, Any]) -> Any:
    """The plot of one image's time by rung, beside published times; None without a measured rung."""
    # 1) Take the rungs that were measured
    rungs: dict[str, Figure] = {}
    for case in LADDER:
        name = f"ladder, {case}, 30 steps: s"
        if name in found:
            rungs[case] = found[name]
    if not rungs:
        return None

    # 2) Draw
    ax = style.axes(None, height=1.9 + 0.5 * len(rungs))
    names = [NAMES.get(case, case) for case in rungs]
    _bars(ax, names, list(rungs.values()), [style.BLUE] * len(rungs))
    for place, case in enumerate(rungs):
        published = LADDER[case]
        if published:
            source, time_s = published
            words = f"   {source}: {time_s} s"
            ax.plot(time_s, place + 0.5, "D", color=style.ORANGE, markersize=5, clip_on=False)
            ax.text(time_s, place + 0.5, words, va="center", fontsize=7.5)
    ax.set_xlabel(
        "time of one image of 30 guided steps, s (orange: published by others, not equals)"
    )
    longest_s = max(_interval(figure)[1] for figure in rungs.values())
    ax.set_xlim(0, 1.25 * longest_s)

    # 3) Say what it shows
    times_s = {case: _value(figure) for case, figure in rungs.items()}
    fastest = min(times_s, key=times_s.__getitem__)
    slowest = max(times_s, key=times_s.__getitem__)
    best = f"{number(times_s[fastest])} s at best"
    worst = f"{number(times_s[slowest])} s in {slowest}"
    finding = f"a 1024x1024 image of 30 steps takes {best}, and {worst}"
    alt = f"Bars: {_listed(times_s, 's')}."
    return style.finish(ax, record, finding, alt, source="benchmarks/gpu.py, part latency")


def _rates(found: dict[str, Figure], record: dict[str, Any]) -> Any:
    """The plot of images per second by kind of arithmetic, beside two limits; None without a kind."""
    # 1) Take the kinds that were measured
    kinds: dict[str, Figure] = {}
    for kind in ("eager bf16", "compiled bf16", "int8", "fp8"):
        name = f"offline, {kind}: images/s"
        if name in found:
            kinds[kind] = found[name]
    if not kinds:
        return None

    # 2) Draw
    ax = style.axes(None, height=2.9 + 0.4 * len(kinds))
    colours = [style.BLUE if "bf16" in kind else style.ORANGE for kind in kinds]
    _bars(ax, list(kinds), list(kinds.values()), colours)
    limit = PEAK_TFLOP_PER_S / LIMIT_TFLOP
    theirs = MLPERF.replace(", TheStage", ",\nTheStage")
    limit_words = f"the bf16 arithmetic's limit: {limit:.2f}"
    _mark(ax, limit, limit_words, style.GREY, side="left")
    _mark(ax, MLPERF_RATE, f"published: {MLPERF_RATE}\n{theirs}", style.ORANGE, side="right")
    ax.set(
        xlabel="images (1024x1024, 20 guided steps) a second, in full batches without a server",
        xlim=(0, 1.3 * limit),
    )

    # 3) Say what it shows
    best = kinds.get("compiled bf16") or next(iter(kinds.values()))
    share = 100 * _value(best) / limit
    finding = f"{number(_value(best))} images/s in bf16, {share:.0f} % of the arithmetic's limit"
    if "fp8" in kinds:
        finding += f"; {number(_value(kinds['fp8']))} with fp8 linears"
    rates = {kind: _value(figure) for kind, figure in kinds.items()}
    alt = f"Bars: {_listed(rates, 'images/s')}."
    source = "benchmarks/gpu.py, part throughput"
    return style.finish(ax, record, finding, alt, pad=44, source=source)


def _mark(ax: Any, x: float, words: str, colour: str, *, side: str) -> None:
    """Draws a dashed line at `x` with words over it."""
    ax.axvline(x, color=colour, linestyle="--", linewidth=1.2)
    ax.text(x, -0.62, f" {words} ", fontsize=7.5, ha=side, va="bottom")


def _kernels(lines: Sequence[dict[str, Any]], record: dict[str, Any]) -> Any:
    """The plot of a step's parts, ms per image, in each recipe's largest batch; None without any."""
    # 1) Add up the kernels of each recipe by kind
    profiles = {}
    for line in lines:
        if line["what"] == "kernels" and line["value"]:
            profiles[line["case"]] = line
    if not profiles:
        return None
    parts_ms = {case: _by_kind(line, lines) for case, line in profiles.items()}

    # 2) Draw one kind after the other, each at the right of the one before
    ax = style.axes(None, height=2.4 + 0.5 * len(profiles))
    colours = [style.PURPLE, style.GREEN, style.BLUE, style.SKY, style.GREY]
    left = np.zeros(len(profiles))
    for kind, colour in zip([*KINDS, REST], colours, strict=True):
        widths = np.array([parts[kind] for parts in parts_ms.values()])
        ax.barh(range(len(profiles)), widths, 0.6, left, color=colour, label=kind)
        _label_inside(ax, left, widths, style.ink_on(colour))
        left = left + widths
    names = [f"{case}, {line['n']} images" for case, line in profiles.items()]
    ax.set(yticks=range(len(profiles)), yticklabels=names, ylim=(len(profiles) - 0.4, -0.6))
    ax.set_xlabel("time of one step, ms an image")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    ax.grid(visible=False, axis="y")

    # 3) Say what it shows
    first = next(iter(parts_ms))
    total_ms = sum(parts_ms[first].values())
    largest = sorted(parts_ms[first].items(), key=lambda part: -part[1])[:3]
    shares = ", ".join(f"{100 * ms / total_ms:.0f} % in {kind}" for kind, ms in largest)
    finding = f"a step at 1024x1024, {first} in bf16, spends {shares}"
    described = []
    for case, parts in parts_ms.items():
        words = ", ".join(f"{kind} {number(ms)} ms" for kind, ms in parts.items())
        described.append(f"{case}: {words}")
    alt = f"Bars: {'; '.join(described)}."
    return style.finish(ax, record, finding, alt, source="benchmarks/gpu.py, part throughput")


def _label_inside(ax: Any, left: Any, widths: Any, ink: str) -> None:
    """Writes the width into each bar that is wide enough for it."""
    narrowest = 0.03 * left.max(initial=10.0)
    for place, (start, width) in enumerate(zip(left, widths, strict=True)):
        if width > narrowest:
            ax.text(
                start + width / 2,
                place,
                number(width),
                ha="center",
                va="center",
                fontsize="small",
                color=ink,
            )


def _by_kind(line: dict[str, Any], lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """A step's milliseconds per image by KINDS; REST is the measured step less these kernels."""
    same = {"part": line["part"], "case": line["case"], "what": "step_s", "n": line["n"]}
    step_s = statistics.median(one["value"] for one in lines if same.items() <= one.items())
    parts_ms = dict.fromkeys(KINDS, 0.0)
    for name, _, ms in line["value"]:
        for kind, words in KINDS.items():
            if any(word in name for word in words):
                parts_ms[kind] += ms / line["n"]
                break
    rest_ms = 1000 * step_s / line["n"] - sum(parts_ms.values())
    return parts_ms | {REST: rest_ms}
