"""The soak: half an hour of mixed requests with planted faults, and every one accounted for.

    python -m benchmarks.soak FOLDER               three policies, 10 minutes each
    python -m benchmarks.soak FOLDER --minutes 3   a shorter one; the number of images is not judged

Each policy has a server process of its own, whose model is the smallest SDXL that we can make. Eight
users send what `soak_plan.py` says. The users' record, the server's record and /metrics must agree
by id. Each image must have the bytes of the same image made alone, before the soak.

The first minute is warm-up, and begins with every kind of fault: torch and the C library take memory
for each new shape and path, and keep it. What the process holds is read while it is idle: after that
minute, and at the end. FOLDER gets `soak.json`. The exit status is 1 if a limit is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from benchmarks.fakes.faulty_pipeline import WORDS
from benchmarks.figures import Figure
from benchmarks.held_lines import report
from benchmarks.soak_plan import BLOCK, RARE, Ask, Plan
from benchmarks.soak_server_process import Held, ServerProcess, server_process
from benchmarks.soak_users import Seen, Users

POLICIES = ("serial", "dynamic", "continuous")
USERS = 8
MINUTES = 30.0
FIRST_S = 60.0
IMAGES_WANTED = 20_000
DENSE = 25  # asks in a block of the warm-up
ERROR_LINE = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Disconnect)\b.*", re.MULTILINE)


@dataclass(frozen=True)
class Stretch:
    """A stretch of the soak: it ends after so many seconds, or after so many asks."""

    seconds: float = float("inf")
    asks: int | None = None


@dataclass(frozen=True)
class Soaked:
    """What one policy's soak left on all sides. `held` was read after each stretch."""

    policy: str
    warm_up: list[Seen]
    seen: list[Seen]
    held: tuple[Held, Held]
    record: list[dict[str, Any]]
    metrics: dict[tuple[str, str], float]

    @property
    def all_seen(self) -> list[Seen]:
        return [*self.warm_up, *self.seen]


def soak(
    server: ServerProcess, policy: str, stretches: tuple[Stretch, Stretch], asks: Iterator[Ask]
) -> Soaked:
    """Send two stretches of `asks` to one policy's server."""
    seen = []
    held: list[Held] = []
    for number, stretch in enumerate(stretches):
        name = f"{policy}-{number}"
        users = Users(server.urls[policy], server.truth, name=name, count=USERS)
        send(users, asks, stretch)
        server.wait_idle(policy)
        held.append(server.held(at_most=held[0] if held else None))
        seen.append(users.seen)
    metrics = server.metrics(policy)
    return Soaked(policy, *seen, (held[0], held[1]), server.record(policy), metrics)


def send(users: Users, asks: Iterator[Ask], stretch: Stretch) -> None:
    """Let the users send the next asks for one stretch, and wait for the last answer."""
    end_s = time.monotonic() + stretch.seconds
    asyncio.run(users.run(islice(asks, stretch.asks), lambda: time.monotonic() < end_s))


# -- what is judged --------------------------------------------------------------------------------


def judge_counts(soaked: Soaked) -> list[Figure]:
    """The figures that no other work on the machine can change: ids, statuses and bytes."""
    case = soaked.policy
    by_id = {seen.request_id: seen for seen in soaked.all_seen}
    recorded = {line["id"]: line["status"] for line in soaked.record}
    double = len(soaked.record) - len(recorded)
    # Who left may have left before the server read a byte.
    may_be_unread = {name for name, seen in by_id.items() if seen.ask.kind == "left"}
    on_one_side = (by_id.keys() ^ recorded.keys()) - may_be_unread
    disagreements = [
        name
        for name, seen in by_id.items()
        if seen.status is not None and recorded.get(name, seen.status) != seen.status
    ]
    unexpected = [seen for seen in soaked.all_seen if not seen.expected]
    for seen in unexpected[:10]:
        words = f"{seen.ask.kind}: {seen.status}, {seen.wrong} wrong images, {seen.problem}"
        print(f"{case}: {seen.request_id}: {words}", file=sys.stderr)
    return [
        Figure.once(case, "ids on one side only, or twice", len(on_one_side) + double, 0, 0),
        Figure.once(case, "ids whose status differs between the sides", len(disagreements), 0, 0),
        Figure.once(case, "requests that /metrics counts otherwise", miscounted(soaked), 0, 0),
        Figure.once(case, "answers that are not right", len(unexpected), 0, 0),
    ]


def miscounted(soaked: Soaked) -> float:
    """By how many requests or images /metrics differs from the server's record by id, in all."""
    # 1) The record, with the number of images that the users' record knows
    images_of = {seen.request_id: len(seen.ask.seeds) for seen in soaked.all_seen}
    statuses: Counter[int | None] = Counter()
    images: Counter[str] = Counter()
    for line in soaked.record:
        statuses[line["status"]] += 1
        if line["status"] == 200:
            images[line["path"]] += images_of.get(line["id"], 0)

    # 2) /metrics
    counted: Counter[str] = Counter()
    for (name, _), value in soaked.metrics.items():
        counted[name] += value
    metrics = soaked.metrics
    unserved = counted["benchlib_refusals_total"] + counted["benchlib_failures_total"]
    client_errors = sum(statuses[status] for status in range(400, 499))
    pairs = [
        (counted["benchlib_client_errors_total"], client_errors),
        (unserved, sum(statuses[status] for status in (429, 500, 503, 507))),
        (metrics["benchlib_cancellations_total", "deadline"], statuses[504]),
        (metrics["benchlib_cancellations_total", "client_gone"], statuses[499]),
    ]
    for path, count in images.items():
        pairs.append((metrics["benchlib_images_total", path], count))
    return sum(abs(counted - recorded) for counted, recorded in pairs)


def judge_growth(soaked: Soaked) -> list[Figure]:
    """The figures that need a quiet machine and a long soak."""
    case = soaked.policy
    first, last = soaked.held
    rss = 100 * (last.rss_gib / first.rss_gib - 1)
    well = without_fault(soaked.seen)
    without = 100 * sum(seen.status != 200 for seen in well) / len(well)
    return [
        Figure.once(case, "memory (RSS) gained after the first minute, %", rss, high=2),
        Figure.once(case, "threads gained", last.threads - first.threads, high=0),
        Figure.once(case, "open files gained", last.files - first.files, high=0),
        Figure.once(case, "p50 of the last tenth against the first's, %", drift(well), -5, 5),
        Figure.once(case, "requests without a fault that got no image, %", without, high=1),
    ]


def without_fault(seen: list[Seen]) -> list[Seen]:
    """What users saw who did nothing odd."""
    return [one for one in seen if one.ask.kind == "plain"]


def drift(well: list[Seen]) -> float:
    """By how many per cent the median latency of the last tenth is above the first tenth's."""
    first, *_, last = medians_of_tenths(well)
    return 100 * (last / first - 1)


def medians_of_tenths(well: list[Seen]) -> list[float]:
    """The median latency, in seconds, of the requests sent in each tenth of the time."""
    start_s = min(seen.at_s for seen in well)
    whole_s = max(seen.at_s for seen in well) - start_s
    tenths: list[list[float]] = [[] for _ in range(10)]
    for seen in well:
        tenth = min(9, int(10 * (seen.at_s - start_s) / whole_s))
        tenths[tenth].append(seen.took_s)
    return [statistics.median(tenth) for tenth in tenths]


def judge_process(case: str, said: dict[str, Any], log: str) -> list[Figure]:
    """What a server's process says at its end: wrong images, and errors that nobody planted."""
    errors = [line for line in ERROR_LINE.findall(log) if WORDS not in line]
    for line in errors[:10]:
        print(f"{case}: {line}", file=sys.stderr)
    return [
        Figure.once(case, "images of other bytes than the same image alone", said["wrong"], 0, 0),
        Figure.once(case, "errors in the log that were not planted", len(errors), 0, 0),
    ]


# -- whole soaks -----------------------------------------------------------------------------------


def quick(folder: Path, *, asks: int, block: int) -> list[Figure]:
    """One process with all three policies, `asks` asks each; only what can be counted is judged.

    A smaller `block` has a larger share of faults.
    """
    figures = []
    with server_process(folder, POLICIES) as server:
        for policy in POLICIES:
            stretches = (Stretch(asks=asks // 4), Stretch(asks=asks - asks // 4))
            asks_of_policy = Plan(seed=0, block=block).asks()
            figures += judge_counts(soak(server, policy, stretches, asks_of_policy))
        said = server.stop()
        figures += judge_process("all policies", said, server.log())
    return [*figures, Figure.once("all policies", "images made", said["made"])]


def whole(folder: Path, *, minutes: float) -> tuple[list[Figure], dict[str, Any]]:
    """A process for each policy, one after the other; the figures, and what else was seen."""
    figures = []
    notes = {}
    made = 0
    for policy in POLICIES:
        with server_process(folder / policy, [policy]) as server:
            rest_s = 60 * minutes / len(POLICIES) - FIRST_S
            every_fault = Plan(seed=1, block=DENSE).first(DENSE * (len(RARE) + 1))
            asks = chain(every_fault, Plan(seed=0).asks())
            soaked = soak(server, policy, (Stretch(FIRST_S), Stretch(rest_s)), asks)
            said = server.stop()
            made += said["made"]
            figures += judge_counts(soaked)
            figures += judge_growth(soaked)
            figures += judge_process(policy, said, server.log())
        kinds = Counter((seen.ask.kind, seen.status) for seen in soaked.all_seen)
        notes[policy] = {
            "images": said["made"],
            "held": [vars(held) for held in soaked.held],
            "p50_of_each_tenth_s": medians_of_tenths(without_fault(soaked.seen)),
            "answers": {f"{kind} {status}": count for (kind, status), count in kinds.items()},
        }
    low = IMAGES_WANTED if minutes >= MINUTES else None
    figures.insert(0, Figure.once("all policies", "images made", made, low))
    return figures, notes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where soak.json and the servers' logs go")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="the length, in all")
    parser.add_argument("--quick", type=int, metavar="ASKS", help="so many asks a policy instead")
    parser.add_argument("--block", type=int, default=BLOCK, help="asks that hold 15 faults")
    chosen = parser.parse_args()
    notes: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        if chosen.quick:
            figures = quick(Path(scratch), asks=chosen.quick, block=chosen.block)
        else:
            figures, notes = whole(Path(scratch), minutes=chosen.minutes)
    return report("soak", figures, chosen.folder, notes)


if __name__ == "__main__":
    sys.exit(main())
