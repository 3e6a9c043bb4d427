"""What `gpu.py` has measured, as a table beside what others published, and as pictures.

Knows the lines that are kept, the limits, and the published figures with what they are of. Ignorant of how anything was
measured.
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
from benchmarks.figures import Figure

BATCHES = (1, 2, 4, 8, 16)
LIMIT_TFLOP = (
    281.0  # of an image of 1024x1024 in 20 guided steps: a UNet forward is 6.76, a decode 10.5
)
PEAK_TFLOP_PER_S = 790.0  # of a dense bf16 product, as measured on such GPUs
KINDS = {  # of kernels, by parts of their names
    "attention": ("sdpa", "fmha", "flash"),
    "convolutions": ("fprop", "conv2d", "implicit_gemm"),
    "linears": ("nvjet", "gemm", "cutlass", "cublas"),
    "fused norms and the like": ("triton",),
}
REST = "the rest, and gaps"
_HF = "HF diffusion-fast, A100, real weights"
LADDER = {  # rungs of `latency`: what others published of theirs, in seconds for 30 steps at 1024x1024
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
NAMES = {  # as a reader knows them
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
MLPERF = "MLPerf v5.1 closed, H200, TensorRT fp8, real weights"


def read(folder: Path) -> list[dict[str, Any]]:
    """All lines that are kept; one that was cut off is left out."""
    lines = []
    for path in sorted(folder.glob("*.jsonl")):
        whole = path.read_text().rpartition("\n")[0]
        lines += [json.loads(line) for line in whole.splitlines()]
    return lines


def figures(lines: list[dict[str, Any]]) -> list[tuple[str, Figure]]:
    """Each row of the table: what others published, and our figure with its limit. A compilation spoils its line."""

    def values(part: str, case: str, what: str, **same: Any) -> list[float]:
        return [
            line["value"]
            for line in lines
            if (line["part"], line["case"], line["what"]) == (part, case, what)
            and all(line.get(name) == value for name, value in same.items())
            and not line.get("recompiled")
            and line["value"] is not None
        ]

    def of(
        name: str, found: list[float], published: str = "", **limits: float
    ) -> tuple[str, Figure]:
        return published, Figure(
            "gpu", name, found, **limits, not_measured=None if found else "not measured"
        )

    def image(case: str, steps: int) -> list[float]:
        return values("latency", case, "image_s", n=1, steps=steps)

    def rate(case: str) -> list[float]:
        """Of the batch with the most images a second."""
        by_batch = [values("throughput", case, "image_s", n=n) for n in BATCHES]
        rates = [[1 / s for s in batch] for batch in by_batch if batch]
        return max(rates, key=statistics.median, default=[])

    def ratio(name: str) -> list[float]:
        bare = values("serving", "overhead", "bare")
        return [
            one / two for one, two in zip(values("serving", "overhead", name), bare, strict=False)
        ]

    def held(one: list[float], two: list[float]) -> list[float]:
        return [a / b for a, b in zip(one, two, strict=False)]

    bests = (
        "best",
        "best, cuDNN attention",
        "bf16, CUDA graphs",
        "bf16, CUDA graphs, cuDNN attention",
        "compiled",
    )
    best = min(
        (case for case in bests if image(case, 20)),
        key=lambda c: statistics.median(image(c, 20)),
        default="best",
    )
    rows = [
        of(f"one image, 20 steps, {best}: s", image(best, 20), high=0.9),
        of(
            f"one image, 30 steps, {best}: s",
            image(best, 30),
            "TensorRT, H100, real weights: 1.47 s",
            high=1.3,
        ),
        of(
            "offline, compiled bf16: images/s",
            rate("compiled"),
            "60 % of the arithmetic's limit: 1.7",
            low=1.7,
        ),
        of("offline, fp8: images/s", rate("fp8"), f"{MLPERF}: 2.40", low=2.4),
        of("offline, int8: images/s", rate("int8")),
        of("offline, eager bf16: images/s", rate("eager")),
    ]
    for per_s in (1.6, 1.2, 0.8):
        published = f"{MLPERF}: 2.30/s at p99 10.7 s" if per_s == 1.6 else ""
        limit = {"high": 10.0} if per_s == 1.6 else {}
        rows.append(of(f"server, {per_s}/s: p99, s", values("serving", f"poisson {per_s}/s", "latency_p99_s"),
                       published, **limit))  # fmt: skip
    for case, theirs in LADDER.items():
        published = f"{theirs[0]}: {theirs[1]} s" if theirs else ""
        rows.append(of(f"ladder, {case}, 30 steps: s", image(case, 30), published))
    mean = {
        name: values("serving", f"mixed, {name}", "mean_s") for name in ("continuous", "serial")
    }
    told = {name: values("serving", f"mixed, {name}", "predicted_mean_s") for name in mean}
    rows += [
        of("mixed: continuous over serial, mean latency", held(mean["continuous"], mean["serial"]), high=1.0),
        of("mixed: the same as simulated", held(told["continuous"], told["serial"])),
        of("mixed: continuous over simulated", held(mean["continuous"], told["continuous"]), low=0.85, high=1.15),
        of("mixed: serial over simulated", held(mean["serial"], told["serial"])),
        of("engine over bare pipeline", ratio("engine"), high=1.01),
        of("server over bare pipeline", ratio("server"), high=1.01),
        of("peak allocated, best: GiB", values("latency", "best", "allocated_gib"),
           f"{_HF}: 8.8 GB", high=8.2),
        of("peak allocated, bf16: GiB", values("latency", "bf16", "allocated_gib")),
        of("peak reserved, best: GiB", values("latency", "best", "reserved_gib")),
    ]  # fmt: skip
    psnr: dict[str, list[float]] = {}
    for line in lines:
        if line["what"] == "psnr_db":
            psnr.setdefault(f"{line['part']}, {line['case']}", []).append(line["value"])
    plain = next((found for name, found in psnr.items() if name.endswith(", bf16")), None)
    limit = {} if plain is None else {"low": statistics.median(plain) - 1}
    changes = ("fp8", "int8")
    rows += [of(f"PSNR to fp32: {name}: dB", found, **({} if name.endswith(changes) else limit))
             for name, found in psnr.items()]  # fmt: skip
    return rows


def verdict(figure: Figure, ends: Sequence[float]) -> str:
    """Whether the limits hold for all that the figure may be: "ok", "MISS", or else "not shown"."""
    if not figure.values or figure.passed is None:
        return ""
    least, most = min(ends, default=figure.values[0]), max(ends, default=figure.values[0])
    low, high = (
        -math.inf if figure.low is None else figure.low,
        math.inf if figure.high is None else figure.high,
    )
    if low <= least and most <= high:
        return "ok"
    return "MISS" if most < low or least > high else "not shown"


def table(folder: Path) -> str:
    lines = read(folder)
    said = [
        f"{'':10}{'figure':58}{'ours':>10}  {'n':>3} {'spread':22}{'limits':14}published, not by us"
    ]
    for published, figure in figures(lines):
        ours = "-" if figure.value is None else f"{figure.value:.4g}"
        ends = figure.interval or (
            (min(figure.values), max(figure.values)) if len(figure.values) > 1 else ()
        )
        passed = verdict(figure, ends)
        spread = " to ".join(f"{end:.4g}" for end in ends)
        bounds = [
            f"{sign} {end:.4g}"
            for sign, end in ((">=", figure.low), ("<=", figure.high))
            if end is not None
        ]
        count = len(figure.values)
        said.append(
            f"{passed:10}{figure.name:58}{ours:>10}  {count:3} {spread:22}{', '.join(bounds):14}{published}"
        )
    said.append(
        "spread: the 95 % interval of the median from six repetitions on, else the least and the most"
    )
    curves: dict[tuple[str, int], list[float]] = {}
    for line in lines:
        if (line["part"], line["what"]) == ("throughput", "step_s"):
            curves.setdefault((line["case"], line["n"]), []).append(line["value"])
    said += [
        f"step, {case}, batch {n}: {statistics.median(values):.4g} s"
        for (case, n), values in sorted(curves.items())
    ]
    said += [
        f"left out: {x['part']}, {x['case']}: {x['value']}"
        for x in lines
        if x["what"] == "left out"
    ]
    said += [
        f"compiled while measured: {x['part']}, {x['case']}, {x['what']}"
        for x in lines
        if x.get("recompiled")
    ]
    return "\n".join(said)


@style.styled
def draw(folder: Path) -> list[Path]:
    """Pictures of what is kept in `folder`: the ladder, images a second, and where a step's time goes."""
    lines = read(folder)
    found = {figure.name: figure for _, figure in figures(lines) if figure.values}
    machine = next(line["value"] for line in lines if line["what"] == "machine")
    record = {
        "spec": {
            "target": {"model": machine["model"], "dtype": None, "device": None, "url": None},
            "workload": {},
            "arrivals": {},
        },
        **machine,
    }
    made = [_ladder(found, record), _rates(found, record), _kernels(lines, record)]
    return [
        path
        for name, ax in made
        if ax is not None
        for path in style.save(ax, folder / "figures" / name)
    ]


def _interval(figure: Figure) -> tuple[float, float]:
    return figure.interval or (min(figure.values), max(figure.values))


def _bars(ax: Any, names: Sequence[str], shown: Sequence[Figure], colours: Sequence[str]) -> None:
    values = [figure.value or 0.0 for figure in shown]
    ends = [_interval(figure) for figure in shown]
    whiskers = style.beyond(values, ends)
    ax.barh(
        range(len(shown)), values, 0.55, xerr=whiskers, color=colours, capsize=3, ecolor="black"
    )
    for place, (value, (_, high)) in enumerate(zip(values, ends, strict=True)):
        ax.text(high, place, f"  {style.number(value)}", va="center", fontsize="small")
    ax.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6))
    ax.grid(visible=False, axis="y")


def _ladder(found: dict[str, Figure], record: dict[str, Any]) -> tuple[str, Any]:
    rungs = {
        case: found[name] for case in LADDER if (name := f"ladder, {case}, 30 steps: s") in found
    }
    if not rungs:
        return "ladder", None
    ax = style.axes(None, height=1.9 + 0.5 * len(rungs))
    _bars(
        ax,
        [NAMES.get(case, case) for case in rungs],
        list(rungs.values()),
        [style.BLUE] * len(rungs),
    )
    for place, case in enumerate(rungs):
        if theirs := LADDER[case]:
            ax.plot(theirs[1], place + 0.5, "D", color=style.ORANGE, markersize=5, clip_on=False)
            ax.text(
                theirs[1], place + 0.5, f"   {theirs[0]}: {theirs[1]} s", va="center", fontsize=7.5
            )
    ax.set_xlabel(
        "time of one image of 30 guided steps, s (orange: published by others, not equals)"
    )
    ax.set_xlim(0, 1.25 * max(_interval(one)[1] for one in rungs.values()))
    least, most = (pick(rungs, key=lambda case: rungs[case].value or 0.0) for pick in (min, max))
    times = [style.number(rungs[case].value or 0.0) for case in (least, most)]
    finding = (
        f"a 1024x1024 image of 30 steps takes {times[0]} s at best, and {times[1]} s in {most}"
    )
    alt = "Bars: " + "; ".join(
        f"{case} {style.number(one.value or 0.0)} s" for case, one in rungs.items()
    )
    return "ladder", style.finish(
        ax, record, finding, f"{alt}.", of="benchmarks/gpu.py, part latency"
    )


def _rates(found: dict[str, Figure], record: dict[str, Any]) -> tuple[str, Any]:
    kinds = {kind: found[name] for kind in ("eager bf16", "compiled bf16", "int8", "fp8")
             if (name := f"offline, {kind}: images/s") in found}  # fmt: skip
    if not kinds:
        return "throughput", None
    ax = style.axes(None, height=2.9 + 0.4 * len(kinds))
    _bars(
        ax,
        list(kinds),
        list(kinds.values()),
        [style.BLUE if "bf16" in kind else style.ORANGE for kind in kinds],
    )
    limit = PEAK_TFLOP_PER_S / LIMIT_TFLOP
    theirs = MLPERF.replace(", TensorRT", ",\nTensorRT")
    for at, words, colour in (
        (limit, f"the bf16 arithmetic's limit: {limit:.2f}", style.GREY),
        (2.4, f"published: 2.40\n{theirs}", style.ORANGE),
    ):
        ax.axvline(at, color=colour, linestyle="--", linewidth=1.2)
        ax.text(
            at,
            -0.62,
            f" {words} ",
            fontsize=7.5,
            ha="left" if at == limit else "right",
            va="bottom",
        )
    ax.set(
        xlabel="images (1024x1024, 20 guided steps) a second, in full batches without a server",
        xlim=(0, 1.3 * limit),
    )
    best = kinds.get("compiled bf16") or next(iter(kinds.values()))
    share = 100 * (best.value or 0.0) / limit
    finding = f"{style.number(best.value or 0.0)} images/s in bf16, {share:.0f} % of the arithmetic's limit"
    if "fp8" in kinds:
        finding += f"; {style.number(kinds['fp8'].value or 0.0)} with fp8 linears"
    alt = "Bars: " + "; ".join(
        f"{kind} {style.number(one.value or 0.0)} images/s" for kind, one in kinds.items()
    )
    of = "benchmarks/gpu.py, part throughput"
    return "throughput", style.finish(ax, record, finding, f"{alt}.", pad=44, of=of)


def _kernels(lines: Sequence[dict[str, Any]], record: dict[str, Any]) -> tuple[str, Any]:
    """Of the largest batch of each recipe, in milliseconds an image; what is not in the kernels kept is the rest."""
    told = {line["case"]: line for line in lines if line["what"] == "kernels" and line["value"]}
    if not told:
        return "kernels", None
    ax = style.axes(None, height=2.4 + 0.5 * len(told))
    colours = [style.PURPLE, style.GREEN, style.BLUE, style.SKY, style.GREY]
    sums = {case: _by_kind(line, lines) for case, line in told.items()}
    left = np.zeros(len(told))
    for kind, colour in zip([*KINDS, REST], colours, strict=True):
        ms = np.array([one[kind] for one in sums.values()])
        ax.barh(range(len(told)), ms, 0.6, left, color=colour, label=kind)
        for place, (start, width) in enumerate(zip(left, ms, strict=True)):
            if width > 0.03 * left.max(initial=10.0):
                ax.text(
                    start + width / 2,
                    place,
                    style.number(width),
                    ha="center",
                    va="center",
                    fontsize="small",
                    color="white",
                )
        left = left + ms
    ax.set(
        yticks=range(len(told)),
        yticklabels=[f"{case}, {line['n']} images" for case, line in told.items()],
    )
    ax.set(ylim=(len(told) - 0.4, -0.6), xlabel="time of one step, ms an image")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    ax.grid(visible=False, axis="y")
    first = next(iter(sums))
    shares = sorted(
        ((ms / sum(sums[first].values()), kind) for kind, ms in sums[first].items()), reverse=True
    )
    finding = f"a step at 1024x1024, {first} in bf16, spends " + ", ".join(
        f"{100 * share:.0f} % in {kind}" for share, kind in shares[:3]
    )
    alt = "Bars: " + "; ".join(
        f"{case}: " + ", ".join(f"{k} {style.number(v)} ms" for k, v in one.items())
        for case, one in sums.items()
    )
    of = "benchmarks/gpu.py, part throughput"
    return "kernels", style.finish(ax, record, finding, f"{alt}.", of=of)


def _by_kind(line: dict[str, Any], lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    same = {"part": line["part"], "case": line["case"], "what": "step_s", "n": line["n"]}
    step_s = statistics.median(one["value"] for one in lines if same.items() <= one.items())
    sums = dict.fromkeys([*KINDS, REST], 0.0)
    for name, _, ms in line["value"]:
        sums[
            next(
                (kind for kind, words in KINDS.items() if any(word in name for word in words)), REST
            )
        ] += ms / line["n"]
    return sums | {REST: 1000 * step_s / line["n"] - sum(sums[kind] for kind in KINDS)}
