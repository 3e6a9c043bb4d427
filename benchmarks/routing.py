"""Where should the front send a request? Three routers on a virtual clock, with a GPU's step times.

    python -m benchmarks.routing [--gpu h100] [--quick] [--seeds 20] [--results FOLDER]
    python -m benchmarks.routing --speed

| case       | requests                                | load                                       |
|------------|-----------------------------------------|--------------------------------------------|
| equal      | 20 steps each                           | closed loop, eight users a card            |
| mixed 80%  | 10 to 50 steps, each as likely          | Poisson, 80 % of what the cards can do     |
| mixed ...% | the same                                | the same at 60, 90 and 120 % (an overload) |

The routers are foretold finish (ours), round robin, and Ray Serve's power of two choices by count.
All of them get the same arrivals. One card's rate is that of the same users with one card.
"moved freely" is no router, but a mark to compare with: see benchmarks/moved_freely.py.

The figures and their limits, each over the seeds with a 95 % interval of the mean:

| figure             | is                                                      | limit for ours          |
|--------------------|---------------------------------------------------------|-------------------------|
| linear share       | images/s over as many times one card's                  | at least 0.97           |
| slowest tenth      | the 90th percentile of latency over the median          | at most 1.15            |
| p95 ratio          | of latency, over round robin's, from two cards on       | at most 0.75 at 80 %    |
|                    |                                                         | at most 1 at all others |
| mean ratio         | the same of the mean                                    | at most 1               |

The exit status is 1 if a mean of ours is beyond its limit. With --results it writes a CSV and a
picture. With --speed it prints how long a decision takes, with 8 cards and 8 requests inside each.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchlib.serving.engine.policies import Task
from benchlib.serving.engine.step_times import StepTimesBySize
from benchlib.serving.replicas.foretold_replica import ForetoldReplica
from benchlib.serving.replicas.routing import ROUTINGS, Router, router_named
from benchlib.study import figure as style
from benchlib.study.intervals import runs_interval
from benchmarks.moved_freely import latencies_s, pair_speed
from benchmarks.simulated_fleet import Asked, closed_loop, open_loop

CARDS = (1, 2, 4, 8)
USERS = 8  # a card
MOVED = "moved freely"
SIZE = (1024, 1024)
EQUAL_STEPS = 20
MIXED_STEPS = (10, 50)
LOADS = (0.6, 0.8, 0.9, 1.2)
LIMITS = {
    ("equal", "linear share"): (0.97, None),
    ("equal", "slowest tenth"): (None, 1.15),
    ("mixed 80%", "p95 ratio"): (None, 0.75),
}
NO_WORSE = (None, 1.0)  # of all other ratios

# sdxl-random at 1024x1024. H200: recipe fastest-exact, of the spec of
# results/reference-h200/ten-minutes/at-1.1/20261127-112341-alone/run.json.
# H100: of results/reference-scale/scale.jsonl, whose recipe is told there.
STEP_TIMES = {
    "h200": {
        "step_s": {
            "1": 0.0305001,
            "2": 0.0305001,
            "3": 0.0565205,
            "4": 0.0565205,
            "5": 0.1164819,
            "8": 0.1164819,
            "9": 0.2133657,
            "16": 0.2133657,
        },
        "encode_s": {"1": 0.0233843, "2": 0.0233843, "4": 0.0238185, "8": 0.0244674},
        "decode_s": {"1": 0.0282564, "2": 0.0541269, "4": 0.1067239, "8": 0.2226219},
    },
    "h100": {
        "step_s": {
            "1": 0.0436892,
            "2": 0.0436892,
            "3": 0.0788146,
            "4": 0.0788146,
            "5": 0.1526838,
            "8": 0.1526838,
            "9": 0.2940717,
            "16": 0.2940717,
        },
        "encode_s": {"1": 0.0228231, "2": 0.0228231, "4": 0.0259615, "8": 0.0413081},
        "decode_s": {"1": 0.1454829, "2": 0.2435214, "4": 0.4344262, "8": 0.8328840},
    },
}


def spec_of(step_times: dict[str, Any]) -> dict[str, Any]:
    """The spec of a card with continuous batching, up to eight together."""
    return {
        "batching": "continuous",
        "max_batch_size": 8,
        "max_wait_ms": 5.0,
        "step_times": {"1024x1024": step_times},
    }


SPECS = {gpu: spec_of(step_times) for gpu, step_times in STEP_TIMES.items()}


@dataclass(frozen=True)
class Row:
    """One figure of one case: its value with each seed, in their order."""

    case: str
    cards: int
    routing: str
    figure: str
    values: list[float]

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return statistics.mean(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The mean's interval; None with fewer than five seeds."""
        return runs_interval(self.values)

    @property
    def passed(self) -> bool | None:
        """Whether the mean keeps the limit; None where there is none."""
        none = NO_WORSE if self.figure.endswith("ratio") else (None, None)
        low, high = LIMITS.get((self.case, self.figure), none)
        if self.routing != "foretold" or (low is None and high is None):
            return None
        return (low is None or self.mean >= low) and (high is None or self.mean <= high)

    def __str__(self) -> str:
        interval = self.interval
        words = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "-"
        passed = {None: "", True: "ok", False: "FAIL"}[self.passed]
        return (
            f"{passed:5}{self.case:11}{self.cards:2} {self.routing:12} {self.figure:16}"
            f"{self.mean:8.3f}  {words}"
        )


def draw_equal(random: np.random.Generator, now_s: float) -> Asked:  # noqa: ARG001
    """A request like all others."""
    return Asked(SIZE, 2, EQUAL_STEPS, now_s)


def draw_mixed(random: np.random.Generator, now_s: float) -> Asked:
    """A request with any number of steps in MIXED_STEPS."""
    low, high = MIXED_STEPS
    return Asked(SIZE, 2, int(random.integers(low, high + 1)), now_s)


def closed_figures(
    gpu: str, cards: int, routing: str, images: int, seed: int
) -> tuple[float, float]:
    """The images/s of equal requests, and the slowest tenth over the median.

    The first two images of each user are warm-up.
    """
    users = USERS * cards
    router = router_named(routing, seed=seed)
    count = images * cards
    done = closed_loop(cards, SPECS[gpu], router, draw_equal, users=users, images=count, seed=seed)
    return _rate(done, 2 * users), _slowest_tenth(done[2 * users :])


def _rate(done: Sequence[Asked], warm_up: int) -> float:
    first_s = done[warm_up - 1].done_s
    last_s = done[-1].done_s
    assert first_s is not None
    assert last_s is not None
    return (len(done) - warm_up) / (last_s - first_s)


def _slowest_tenth(done: Iterable[Asked]) -> float:
    latencies = [asked.latency_s for asked in done]
    return float(np.quantile(latencies, 0.9) / np.median(latencies))


def mixed_capacity(gpu: str, images: int, seed: int) -> float:
    """The images/s of one card with mixed steps and USERS users in a closed loop."""
    router = router_named("foretold")
    done = closed_loop(1, SPECS[gpu], router, draw_mixed, users=USERS, images=images, seed=seed)
    return _rate(done, 2 * USERS)


def draw_arrivals(count: int, rate: float, seed: int) -> list[Asked]:
    """So many mixed requests, which come at random at `rate` a second."""
    random = np.random.default_rng((seed, 1))
    arrivals_s = random.exponential(1 / rate, count).cumsum()
    return [draw_mixed(random, float(arrived_s)) for arrived_s in arrivals_s]


def mixed_latencies_s(
    gpu: str, cards: int, routing: str, rate: float, images: int, seed: int
) -> list[float]:
    """The latencies of `images` times `cards` requests that come at `rate` for each card."""
    requests = draw_arrivals(images * cards, rate * cards, seed)
    open_loop(cards, SPECS[gpu], router_named(routing, seed=seed), requests, seed=seed)
    return [asked.latency_s for asked in requests]


def moved_latencies_s(gpu: str, cards: int, rate: float, images: int, seed: int) -> list[float]:
    """The same requests' latencies if they could move between cards freely."""
    requests = draw_arrivals(images * cards, rate * cards, seed)
    [times] = StepTimesBySize.from_spec(SPECS[gpu]["step_times"]).values()
    card = ForetoldReplica("0", SPECS[gpu])
    return latencies_s(
        [asked.arrived_s for asked in requests],
        [card.alone_s(asked) for asked in requests],
        cards,
        pair_speed(times, statistics.mean(MIXED_STEPS)),
    )


def measure(cards: Sequence[int], seeds: int, images: int, gpu: str = "h200") -> list[Row]:
    """All rows. `images` are for each card and seed."""
    rows: list[Row] = []

    def add(case: str, n: int, routing: str, figure: str, values: list[float]) -> None:
        rows.append(Row(case, n, routing, figure, values))
        print(rows[-1], flush=True)

    # 1) Equal requests
    numbers = range(seeds)
    alone = [closed_figures(gpu, 1, "foretold", images, seed)[0] for seed in numbers]
    for n in cards:
        for routing in ROUTINGS:
            found = [closed_figures(gpu, n, routing, images, seed) for seed in numbers]
            shares = [rate / (n * one) for (rate, _), one in zip(found, alone, strict=True)]
            add("equal", n, routing, "linear share", shares)
            add("equal", n, routing, "slowest tenth", [slowest for _, slowest in found])

    # 2) Mixed steps: the seconds, then what they are over round robin's
    capacity = statistics.mean(mixed_capacity(gpu, images, seed) for seed in numbers)
    for load, n in product(LOADS, cards):
        case = f"mixed {load:.0%}"
        rate = load * capacity
        latencies = {
            routing: [mixed_latencies_s(gpu, n, routing, rate, images, seed) for seed in numbers]
            for routing in ROUTINGS
        }
        if load < 1:
            latencies[MOVED] = [moved_latencies_s(gpu, n, rate, images, seed) for seed in numbers]
        p95_s = {routing: np.quantile(found, 0.95, axis=1) for routing, found in latencies.items()}
        mean_s = {routing: np.mean(found, axis=1) for routing, found in latencies.items()}
        for routing in latencies:
            add(case, n, routing, "p95_s", p95_s[routing].tolist())
            if n > 1 and routing != "round-robin":
                for figure, by_routing in (("p95 ratio", p95_s), ("mean ratio", mean_s)):
                    ratios = by_routing[routing] / by_routing["round-robin"]
                    add(case, n, routing, figure, ratios.tolist())
    return rows


def write_csv(rows: Iterable[Row], path: Path) -> None:
    """One line for each figure and seed."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "cards", "routing", "figure", "seed", "value"])
        for row in rows:
            for seed, value in enumerate(row.values):
                writer.writerow([row.case, row.cards, row.routing, row.figure, seed, value])


def read_csv(path: Path) -> list[Row]:
    """The rows that `write_csv` wrote."""
    values: dict[tuple[str, int, str, str], list[float]] = {}
    with path.open(encoding="utf-8") as file:
        for line in csv.DictReader(file):
            key = (line["case"], int(line["cards"]), line["routing"], line["figure"])
            values.setdefault(key, []).append(float(line["value"]))
    return [Row(*key, found) for key, found in values.items()]


STYLES = {  # colour and marker of each router
    "foretold": (style.BLUE, "o"),
    "round-robin": (style.RED, "s"),
    "two-choices": (style.GREEN, "D"),
    MOVED: (style.PURPLE, "^"),
}
PANELS = (  # the figure, its cases, and words
    ("linear share", ("equal",), "equal requests: images/s,\nas a share of linear"),
    ("slowest tenth", ("equal",), "equal requests: slowest tenth\nover the median"),
    ("p95 ratio", ("mixed 80%",), "mixed steps, 80 % of capacity:\np95 over round robin's"),
    ("p95 ratio", ("mixed 120%",), "mixed steps, 120 % of capacity:\np95 over round robin's"),
)


@style.styled
def draw(rows: Sequence[Row], path: Path) -> None:
    """Panels over the number of cards, a line for each router with intervals of the mean.

    A figure without a row has no panel.
    """
    from matplotlib.figure import Figure

    # 1) A panel for each figure.
    of_panels = [
        [row for row in rows if row.figure == name and row.case in cases]
        for name, cases, _ in PANELS
    ]
    shown = [pair for pair in zip(of_panels, PANELS, strict=True) if pair[0]]
    figure = Figure(figsize=(3.7 * len(shown), 4.2), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for ax, (drawn, (name, cases, title)) in zip(axes, shown, strict=True):
        for number, routing in enumerate((*ROUTINGS, MOVED)):
            found = [row for row in drawn if row.routing == routing]
            if not found:
                continue
            means = [row.mean for row in found]
            spans = [row.interval or (row.mean, row.mean) for row in found]
            below = [mean - low for mean, (low, _) in zip(means, spans, strict=True)]
            above = [high - mean for mean, (_, high) in zip(means, spans, strict=True)]
            cards = [row.cards * 1.03 ** (number - 1) for row in found]
            colour, marker = STYLES[routing]
            ax.errorbar(
                cards,
                means,
                (below, above),
                marker=marker,
                color=colour,
                label=routing,
                capsize=3,
            )
        for limit in LIMITS.get((cases[0], name), NO_WORSE):
            if limit is not None:
                ax.axhline(limit, color=style.GREY, linestyle="--")
        ax.set_xscale("log", base=2)
        ax.set_xticks(CARDS, [str(n) for n in CARDS])
        ax.set(title=title, xlabel="cards")
        ax.margins(y=0.16)  # room for the words at both ends
        ends = ("worse", "better") if name == "linear share" else ("better", "worse")
        style.ratio_axis(ax, "y", *ends)

    # 2) One legend for all, and words.
    routers = {}
    for ax in axes:
        handles, names = ax.get_legend_handles_labels()
        routers |= dict(zip(names, handles, strict=True))
    figure.legend(routers.values(), routers, loc="outside lower center", ncols=len(routers))
    words = "Simulated routers over the number of cards; dashed: the limit for foretold finish"
    figure.suptitle(words, fontsize="medium")
    figure.savefig(path, dpi=120, metadata={"Title": "routing", "Description": alt_text(rows)})


def alt_text(rows: Iterable[Row]) -> str:
    """The means of the picture in words."""
    shown = {(case, name) for name, cases, _ in PANELS for case in cases}
    parts = [
        f"{row.case}, {row.figure}, {row.cards} cards, {row.routing}: {row.mean:.3g}"
        for row in rows
        if (row.case, row.figure) in shown
    ]
    return "Panels over the number of cards. " + "; ".join(parts)


def decision_ms(step_times: dict[str, Any], inside: int, cards: int = 8, count: int = 500) -> float:
    """The mean milliseconds of a decision for one more request, and of one that leaves."""
    random = np.random.default_rng(0)
    spec = spec_of(step_times) | {"max_batch_size": inside + 1}
    replicas = [ForetoldReplica(str(number), spec) for number in range(cards)]
    router: Router = router_named("foretold")
    order: list[tuple[Task, ForetoldReplica]] = []
    for replica in replicas:
        for _ in range(inside):
            task = draw_mixed(random, 0.0)
            replica.enter(task, 0.0)
            order.append((task, replica))
    seconds = 0.0
    for number in range(count):
        now_s = number / 500
        newcomer = draw_mixed(random, now_s)
        began_s = time.perf_counter()
        sent = router.route((newcomer,), replicas, now_s).sent
        if order:
            task, replica = order.pop(0)
            replica.leave(task, now_s)
        seconds += time.perf_counter() - began_s
        order += sent
    return seconds / count * 1e3


def print_speed() -> None:
    """Print how long decisions take."""
    nothing_s = {curve: {"1": 0.0} for curve in ("step_s", "encode_s", "decode_s")}
    for name, times in (("0 ms", nothing_s), ("H200", STEP_TIMES["h200"])):
        for inside in (0, 4, 7):
            print(f"{name}, {inside} inside each: {decision_ms(times, inside):.3f} ms a request")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two cards, few images")
    parser.add_argument("--speed", action="store_true", help="time decisions instead")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--images", type=int, default=400, help="for each card and seed")
    parser.add_argument("--gpu", choices=STEP_TIMES, default="h200", help="whose step times")
    parser.add_argument("--cards", type=int, nargs="+", default=CARDS)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--draw", action="store_true", help="draw the CSV in --results again")
    options = parser.parse_args(arguments)
    if options.speed:
        print_speed()
        return 0
    if options.draw:
        path = options.results / f"routing-{options.gpu}.csv"
        draw(read_csv(path), path.with_suffix(".png"))
        return 0
    run: Callable[[], list[Row]] = partial(
        measure, options.cards, options.seeds, options.images, options.gpu
    )
    if options.quick:
        run = partial(measure, (1, 2), 2, 80, options.gpu)
    rows = run()
    if options.results:
        options.results.mkdir(parents=True, exist_ok=True)
        path = options.results / f"routing-{options.gpu}.csv"
        write_csv(rows, path)
        draw(rows, path.with_suffix(".png"))
    passed = all(row.passed is not False for row in rows)
    print(json.dumps({"passed": passed, "rows": [asdict(row) for row in rows]}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
