"""Several GPUs behind one address, for real: images/s, tails, mixed steps, a kill, equal bytes.

    python -m benchmarks.scale --gpus 1,2,4 --model sdxl-random --results results/reference-scale
    python -m benchmarks.scale --part mixed --gpus 4 --results results/reference-scale
    python -m benchmarks.scale --quick                    # two replicas of `tiny` on the CPU
    python -m benchmarks.scale --table --results results/reference-scale

| part   | load                                                       | shows                          |
|--------|------------------------------------------------------------|--------------------------------|
| linear | closed loop, eight users a card, equal requests            | images/s over one card's       |
| tails  | the same run                                               | slowest tenth over the median  |
| mixed  | Poisson at 80 % of capacity, 10 to 50 steps, same arrivals | p95 over round robin's         |
| bytes  | the same seeds, one request a card at a time               | equal files on 1, 2 and 4      |
| files  | as linear, but the images are sent as PNG                  | what encoding takes of the host |
| kill   | the same seeds, two a card, and a replica is killed on the way | nothing lost, equal files  |

Figures go to <results>/scale.jsonl as soon as they are measured, and the rows of all requests to
<results>/rows.jsonl. A part that has ended for a number of GPUs is not measured again. With
`--budget` no part begins that would take longer than what is left of those seconds.

One card's images/s are those of a server with one replica, started by the same call. A server with
one card and one with two run beside each other, and are loaded one after the other.

Knows servers and load from outside; ignorant of how requests are routed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

import benchlib as bl
from benchlib.machine import describe_git, describe_machine, describe_packages
from benchlib.serving.replicas.routing import ROUTINGS
from benchmarks.figures import Figure, print_table
from benchmarks.seeded_images import Fetched, fetch_all

if TYPE_CHECKING:
    import pandas as pd

PARTS = ("linear", "tails", "bytes", "mixed", "files", "kill")
USERS = 8  # a card
EQUAL_STEPS = 20
MIXED_STEPS = tuple(range(10, 51, 5))
LOAD = 0.8
LINEAR = (0.97, None)
SLOWEST_TENTH = (None, 1.15)
OVER_ROUND_ROBIN = (None, 0.75)
FILES_ON = (1, 4)  # cards
NEEDED = (("mixed", "linear", "images_per_s"), ("kill", "bytes", "digests"))
GAP_S = 0.1
FEWEST = 8  # rows that have a percentile
KILL_AFTER = 0.25  # of a pass over the seeds


@dataclass(frozen=True)
class Lengths:
    """Seconds and numbers of the parts. `start_s` is how long a server may take to start."""

    warmup_s: float = 6.0
    equal_s: float = 30.0
    mixed_s: float = 45.0
    files_s: float = 12.0
    seeds: int = 24
    back_s: float = 60.0
    start_s: float = 60.0
    equal_steps: int = EQUAL_STEPS
    mixed_steps: tuple[int, ...] = MIXED_STEPS


QUICK = Lengths(
    warmup_s=0.5,
    equal_s=5.0,
    mixed_s=4.0,
    files_s=1.0,
    seeds=8,
    back_s=60.0,
    start_s=0.0,
    equal_steps=4,
    mixed_steps=(2, 4, 8),
)


class Notes:
    """The figures of all parts, in a file that is written line by line."""

    def __init__(self, folder: Path, budget_s: float | None) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.end_s = None if budget_s is None else time.monotonic() + budget_s
        self.lines = read_lines(folder / "scale.jsonl")

    def write(self, part: str, gpus: int, what: str, value: Any, **more: Any) -> None:
        """Keep a figure, and print it."""
        line = {"part": part, "gpus": gpus, "what": what, "value": value, **more}
        self.lines.append(line)
        with (self.folder / "scale.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if what != "machine":
            print(f"{part} on {gpus}: {what} {value} {more or ''}", flush=True)

    def write_rows(self, part: str, gpus: int, case: str, rows: pd.DataFrame) -> None:
        """Keep the rows of a run."""
        with (self.folder / "rows.jsonl").open("a", encoding="utf-8") as file:
            for row in json.loads(rows.to_json(orient="records")):
                mark = {"part": part, "gpus": gpus, "case": case}
                file.write(json.dumps(mark | row) + "\n")

    def has_ended(self, part: str, gpus: int) -> bool:
        """Whether `part` has been measured on so many cards."""
        return any(
            line["part"] == part and line["gpus"] == gpus and line["what"] == "ended"
            for line in self.lines
        )

    def has_time(self, part: str, gpus: int, seconds: float) -> bool:
        """Whether `seconds` are left. If not, a line says so."""
        if self.end_s is None:
            return True
        left_s = self.end_s - time.monotonic()
        if left_s >= seconds:
            return True
        words = f"{left_s:.0f} s left, {seconds:.0f} s needed"
        self.write(part, gpus, "left out", words)
        return False

    def value(self, part: str, gpus: int, what: str) -> Any:
        """The latest value of a figure, or None."""
        found = None
        for line in self.lines:
            if (line["part"], line["gpus"], line["what"]) == (part, gpus, what):
                found = line["value"]
        return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; one that was cut off is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


# -- what the host does ----------------------------------------------------------------------------


class HostShare:
    """CPU seconds of the front, the load generator, the replicas, and the rest of Ray, in cores.

    The front is this process, with the little that this benchmark does.
    """

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._before = _cpu_s_by_kind()

    def cores(self) -> dict[str, float]:
        """The cores that each kind has taken since the beginning."""
        seconds = time.monotonic() - self._began_s
        after = _cpu_s_by_kind()
        shares = {}
        for kind, cpu_s in after.items():
            shares[kind] = max(0.0, cpu_s - self._before.get(kind, 0.0)) / seconds
        return shares


def _cpu_s_by_kind() -> dict[str, float]:
    times = psutil.Process().cpu_times()
    by_kind = {"front": times.user + times.system, "replicas": 0.0, "ray": 0.0}
    # A child that has ended counts here: the load generator's process.
    by_kind["generator"] = times.children_user + times.children_system
    for process in psutil.Process().children(recursive=True):
        try:
            command = " ".join(process.cmdline())
            cpu = process.cpu_times()
        except psutil.Error:
            continue
        kind = "replicas" if is_replica(command) else "ray"
        by_kind[kind] += cpu.user + cpu.system
    return by_kind


def is_replica(command: str) -> bool:
    """Whether a process with this command line is a replica of Ray Serve."""
    return "ServeReplica" in command


def replica_processes() -> dict[int, str]:
    """The processes of all replicas that this process has started: their command lines."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if is_replica(command):
            found[process.pid] = command
    return found


# -- parts -----------------------------------------------------------------------------------------


class Bench:
    """One server with some replicas, and what is measured on it."""

    def __init__(
        self,
        notes: Notes,
        lengths: Lengths,
        server: bl.Server,
        gpus: int,
        routings: Sequence[str],
        results: str,
    ) -> None:
        self.notes = notes
        self.lengths = lengths
        self.server = server
        self.gpus = gpus
        self.routings = routings
        self.results = results  # of whole runs

    def run(self, part: str, case: str, arrivals: Any, workload: bl.Workload, **more: Any) -> Any:
        """Make a run; keep its rows, and what the host did meanwhile."""
        share = HostShare()
        run = bl.run_load(
            self.server,
            arrivals,
            workload,
            study=f"scale-{part}-{self.gpus}",
            label=case,
            results=self.results,
            on_progress=lambda _: None,
            **more,
        )
        cores = share.cores()
        self.notes.write_rows(part, self.gpus, case, kept_columns(run.requests))
        self.notes.write(part, self.gpus, "host_cores", cores, case=case)
        failed = int((run.requests["http_status"] != 200).sum())
        self.notes.write(part, self.gpus, "failed", failed, case=case, of=len(run.requests))
        return run

    def equal(self) -> bool:
        """Equal requests in a closed loop: images/s and the slowest tenth."""
        lengths = self.lengths
        run = self.run(
            "linear",
            "equal",
            bl.ClosedLoop(users=USERS * self.gpus),
            bl.Workload(num_inference_steps=lengths.equal_steps),
            duration_s=lengths.equal_s,
            warmup_s=lengths.warmup_s,
        )
        rows = answered(run.requests)
        latency_s = measured_latencies(rows)
        rate = rate_of(rows, lengths.warmup_s)
        if rate == 0.0 or len(latency_s) < FEWEST:
            self.notes.write("linear", self.gpus, "too few", len(latency_s))
            return False
        self.notes.write("linear", self.gpus, "images_per_s", rate)
        tails = {
            "median_s": float(np.median(latency_s)),
            "p90_s": float(np.quantile(latency_s, 0.9)),
            "max_s": float(latency_s.max()),
        }
        slowest = tails["p90_s"] / tails["median_s"]
        self.notes.write("tails", self.gpus, "slowest_tenth", slowest, **tails)
        if "replica" in rows:
            counts = rows["replica"].astype(str).value_counts().to_dict()
            self.notes.write("linear", self.gpus, "images_by_replica", counts)
        return True

    def mixed(self) -> bool:
        """Mixed steps in an open loop under both routers, with the same arrivals."""
        measured = self.notes.value("linear", self.gpus, "images_per_s")
        if measured is None:
            self.notes.write("mixed", self.gpus, "left out", "the capacity is unknown")
            return False
        rate = self._mixed_rate(measured)
        self.notes.write("mixed", self.gpus, "rate_per_s", rate)
        p95_s = {}
        for routing in self.routings:
            route_by(self.server, routing)
            run = self.run(
                "mixed",
                routing,
                bl.OpenLoop(rate),
                bl.Workload(num_inference_steps=list(self.lengths.mixed_steps)),
                duration_s=self.lengths.mixed_s,
                warmup_s=self.lengths.warmup_s,
            )
            latency_s = measured_latencies(answered(run.requests))
            if len(latency_s) < FEWEST:
                self.notes.write("mixed", self.gpus, "too few", len(latency_s), case=routing)
                continue
            p95_s[routing] = float(np.quantile(latency_s, 0.95))
            self.notes.write(
                "mixed",
                self.gpus,
                "p95_s",
                p95_s[routing],
                case=routing,
                mean_s=float(latency_s.mean()),
                n=len(latency_s),
            )
        route_by(self.server, "foretold")
        if {"foretold", "round-robin"} <= p95_s.keys():
            ratio = p95_s["foretold"] / p95_s["round-robin"]
            self.notes.write("mixed", self.gpus, "p95_over_round_robin", ratio)
        return len(p95_s) == len(self.routings)

    def _mixed_rate(self, measured: float) -> float:
        """LOAD of what the cards make of mixed requests, from what they made of equal ones.

        A batch of eight with the mean of the mixed steps takes so many times as long, by the
        server's own step times.
        """
        times = next(iter(self.server.spec["step_times"].values()))
        step_s = list(times["step_s"].values())[-1]
        calls_s = list(times["encode_s"].values())[-1] + list(times["decode_s"].values())[-1]
        equal_s = calls_s + self.lengths.equal_steps * step_s
        mixed_s = calls_s + statistics.mean(self.lengths.mixed_steps) * step_s
        return float(LOAD * measured * equal_s / mixed_s)

    def bytes(self) -> bool:
        """The files of some seeds, one request a card at a time."""
        fetched = self._fetch("bytes", workers=self.gpus)
        digests = {str(one.seed): one.digest for one in fetched}
        self.notes.write("bytes", self.gpus, "digests", digests)
        batches = sorted({one.batch_size for one in fetched if one.batch_size is not None})
        self.notes.write("bytes", self.gpus, "batch_sizes", batches)
        return all(one.status == 200 for one in fetched)

    def files(self) -> bool:
        """Equal requests in a closed loop, whose images are written as files and sent."""
        run = self.run(
            "files",
            "files",
            bl.ClosedLoop(users=USERS * self.gpus),
            bl.Workload(num_inference_steps=self.lengths.equal_steps),
            duration_s=self.lengths.files_s,
            api="openai",
        )
        rate = rate_of(answered(run.requests), 0.0)
        if rate:
            self.notes.write("files", self.gpus, "images_per_s", rate)
        return bool(rate)

    def kill(self) -> bool:
        """The same seeds again, and a replica is killed on the way."""
        # 1) Kill one while all are busy
        killed: list[int] = []
        victim = min(replica_processes())

        def after(done: int, count: int) -> None:
            if not killed and done >= KILL_AFTER * count:
                killed.append(victim)
                os.kill(victim, signal.SIGKILL)
                print(f"killed replica process {victim}", flush=True)

        before = self.notes.value("bytes", self.gpus, "digests") or {}
        fetched = self._fetch("kill", workers=2 * self.gpus, on_done=after)
        killed_s = time.monotonic()

        # 2) What came of it. Arithmetic in a batch may round otherwise than alone.
        lost = [one for one in fetched if one.status != 200]
        alone = [one for one in fetched if one.batch_size == 1]
        other = [one for one in alone if before.get(str(one.seed)) != one.digest]
        retried = [one.seed for one in fetched if one.retries]
        self.notes.write("kill", self.gpus, "killed", len(killed))
        self.notes.write("kill", self.gpus, "lost", len(lost), of=len(fetched))
        self.notes.write("kill", self.gpus, "retried", len(retried), seeds=retried)
        self.notes.write("kill", self.gpus, "other_bytes", len(other), of=len(alone))

        # 3) How long until it is back
        while time.monotonic() < killed_s + self.lengths.back_s:
            if self._ready_replicas() == self.gpus:
                seconds = time.monotonic() - killed_s
                self.notes.write("kill", self.gpus, "back_after_s", seconds)
                return True
            time.sleep(0.5)
        self.notes.write("kill", self.gpus, "not_back_after_s", self.lengths.back_s)
        return True

    def _fetch(
        self, part: str, *, workers: int, on_done: Callable[[int, int], None] | None = None
    ) -> list[Fetched]:
        showcase = self.server.spec["showcase"]
        body = {
            "prompt": "a lighthouse at dusk",
            "size": f"{showcase['width']}x{showcase['height']}",
            "num_inference_steps": self.lengths.equal_steps,
        }
        seeds = range(self.lengths.seeds)
        share = HostShare()
        fetched = fetch_all(self.server.url, body, seeds, workers=workers, on_done=on_done)
        self.notes.write(part, self.gpus, "host_cores", share.cores(), case="seeds")
        return fetched

    def _ready_replicas(self) -> int | None:
        import httpx

        answer = httpx.get(f"{self.server.url}/ready", timeout=10.0)
        found: int | None = answer.json().get("ready_replicas")
        return found


def kept_columns(rows: pd.DataFrame) -> pd.DataFrame:
    """The columns of a run's rows that are kept."""
    wanted = [
        "index", "phase", "scheduled_s", "sent_s", "done_s", "latency_s", "http_status", "error",
        "num_inference_steps", "seed", "queue_s", "encode_s", "denoise_s", "wait_s", "decode_s",
        "image_s", "total_s", "batch_size", "replica", "retries",
    ]  # fmt: skip
    return rows[[name for name in wanted if name in rows]]


def answered(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that have an image."""
    return rows[rows["http_status"] == 200].sort_values("done_s")


def measured_latencies(rows: pd.DataFrame) -> Any:
    """The latencies of the rows after the warm-up."""
    return rows[rows["phase"] == "measure"]["latency_s"].to_numpy()


def rate_of(rows: pd.DataFrame, warmup_s: float) -> float:
    """Images/s, card by card and summed.

    A card answers a batch at once, so a window's edges may hold one batch more or less. So each
    card's rate is taken from the end of its first batch after the warm-up to the end of its last
    before the users stop. A batch's answers are less than GAP_S apart. 0 if there are too few.
    """
    total = 0.0
    last_sent_s = rows["scheduled_s"].max()
    cards = rows.groupby("replica") if "replica" in rows and rows["replica"].notna().any() else None
    groups = [rows] if cards is None else [group for _, group in cards]
    for group in groups:
        done_s = group["done_s"].to_numpy()
        done_s = np.sort(done_s[(done_s >= warmup_s) & (done_s <= last_sent_s + GAP_S)])
        if len(done_s) < 2:
            continue
        batch_ends = np.flatnonzero(np.diff(done_s) > GAP_S)
        first = int(batch_ends[0]) if len(batch_ends) else 0
        images = len(done_s) - 1 - first
        seconds = done_s[-1] - done_s[first]
        if images and seconds > GAP_S:
            total += images / seconds
    return float(total)


def route_by(server: bl.Server, routing: str) -> None:
    """Let the running server's front decide by another router."""
    server._engine.route_by(routing)  # type: ignore[union-attr]


# -- all together ----------------------------------------------------------------------------------


def measure(notes: Notes, options: argparse.Namespace) -> None:
    """Measure the chosen parts on each number of cards."""
    lengths = QUICK if options.quick else Lengths()
    most = max(options.gpus)
    for together in rounds(options.gpus):
        due = {count: due_parts(notes, options.part, count, most) for count in together}
        due = {count: parts for count, parts in due.items() if parts}
        if not due or not notes.has_time("start", max(due), lengths.start_s):
            continue
        with serving(notes, options, list(due)) as servers, TemporaryDirectory() as results:
            for part, count in product(PARTS, due):
                if part in due[count]:
                    server = servers[count]
                    run_part(part, Bench(notes, lengths, server, count, options.routings, results))


def rounds(counts: Sequence[int]) -> list[list[int]]:
    """The numbers of cards whose servers run beside each other, in the order of `counts`.

    The largest is alone: it may take all cards, and there a replica is killed.
    """
    small = [count for count in counts if count < max(counts)]
    found: list[list[int]] = []
    for count in counts:
        if count not in small:
            found.append([count])
        elif small not in found:
            found.append(small)
    return found


def due_parts(notes: Notes, chosen: Sequence[str], gpus: int, most: int) -> list[str]:
    """The parts that are still to be measured on `gpus` of `most` cards, in their order."""
    due = []
    for part in PARTS:
        is_chosen = part in chosen or (part == "linear" and "tails" in chosen)
        if part == "mixed" and gpus == 1:
            is_chosen = False
        if part == "kill" and (gpus == 1 or gpus < most):
            is_chosen = False
        if part == "files" and gpus not in FILES_ON:
            is_chosen = False
        if part != "tails" and is_chosen and not notes.has_ended(part, gpus):
            due.append(part)
    # What 80 % of the capacity is, and which bytes are right, come from these.
    for part, first, figure in NEEDED:
        if part in due and first not in due and notes.value(first, gpus, figure) is None:
            due.insert(0, first)
    return due


def run_part(part: str, bench: Bench) -> None:
    """Measure a part on one server, if there is time."""
    lengths = bench.lengths
    needed_s = {
        "linear": lengths.warmup_s + lengths.equal_s + 12.0,
        "mixed": len(bench.routings) * (lengths.warmup_s + lengths.mixed_s + 15.0),
        "bytes": lengths.seeds * 1.0 / bench.gpus,
        "files": lengths.files_s + 10.0,
        "kill": 30.0,
    }
    actions = {
        "linear": bench.equal,
        "mixed": bench.mixed,
        "bytes": bench.bytes,
        "files": bench.files,
        "kill": bench.kill,
    }
    if bench.notes.has_time(part, bench.gpus, needed_s[part]):
        began_s = time.monotonic()
        if actions[part]():
            bench.notes.write(part, bench.gpus, "ended", time.monotonic() - began_s)


@contextmanager
def serving(
    notes: Notes, options: argparse.Namespace, counts: Sequence[int]
) -> Iterator[Mapping[int, bl.Server]]:
    """A server for each of `counts`. They start at the same time."""
    more: dict[str, Any] = {"recipe": options.recipe} if options.recipe else {}
    if options.buckets:
        more["batch_buckets"] = options.buckets

    def start(count: int) -> bl.Server:
        began_s = time.monotonic()
        server = bl.serve(
            options.model,
            replicas=count,
            name=f"scale-{count}",
            device=options.device,
            max_queue=1000,
            max_queue_s=None,
            **more,
        )
        notes.write("start", count, "startup_s", time.monotonic() - began_s)
        return server

    with ExitStack() as stack, ThreadPoolExecutor(len(counts)) as pool:
        started = {count: pool.submit(start, count) for count in counts}
        servers = {count: stack.enter_context(one.result()) for count, one in started.items()}
        spec = servers[counts[0]].spec
        about = {
            "machine": describe_machine(spec["device"]),
            "packages": describe_packages(),
            "git": describe_git(Path(__file__).parent),
            "spec": {name: spec.get(name) for name in ("model", "recipe", "dtype", "step_times")},
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
        }
        notes.write("start", max(counts), "machine", about)
        yield servers


# -- what came out ---------------------------------------------------------------------------------


def figures(notes: Notes) -> list[Figure]:
    """The figures of all parts with their limits."""
    found: list[Figure] = []

    def add(case: str, name: str, value: Any, low: Any = None, high: Any = None) -> None:
        if value is not None:
            found.append(Figure.once(case, name, float(value), low, high))

    alone = notes.value("linear", 1, "images_per_s")
    for gpus in sorted({line["gpus"] for line in notes.lines}):
        case = f"{gpus} cards"
        rate = notes.value("linear", gpus, "images_per_s")
        add(case, "images/s, equal requests", rate)
        if alone and rate and gpus > 1:
            add(case, "share of linear", rate / (gpus * alone), *LINEAR)
        tails = SLOWEST_TENTH if gpus > 1 else (None, None)
        add(case, "slowest tenth / median", notes.value("tails", gpus, "slowest_tenth"), *tails)
        ratio = notes.value("mixed", gpus, "p95_over_round_robin")
        add(case, "mixed: p95 / round robin's", ratio, *OVER_ROUND_ROBIN)
        add(case, "images/s, with files", notes.value("files", gpus, "images_per_s"))
        add(case, "seeds with other bytes than on one card", other_bytes(notes, gpus), 0, 0)
        add(case, "kill: requests lost", notes.value("kill", gpus, "lost"), 0, 0)
        add(case, "kill: requests made again", notes.value("kill", gpus, "retried"))
        add(case, "kill: seeds with other bytes", notes.value("kill", gpus, "other_bytes"), 0, 0)
        add(case, "kill: seconds until it is back", notes.value("kill", gpus, "back_after_s"))
    return found


def other_bytes(notes: Notes, gpus: int) -> int | None:
    """How many seeds have other bytes than on one card; None if either was not measured."""
    alone = notes.value("bytes", 1, "digests")
    here = notes.value("bytes", gpus, "digests")
    if gpus == 1 or alone is None or here is None:
        return None
    return sum(here.get(seed) != digest for seed, digest in alone.items())


def whole_numbers(text: str) -> list[int]:
    """The numbers in a text such as "1,2,4"."""
    return [int(number) for number in text.split(",")]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--gpus", type=whole_numbers, help="such as 1,2,4, the default")
    parser.add_argument("--model", default="sdxl-random")
    parser.add_argument("--recipe", help="the model's own if left out")
    parser.add_argument("--buckets", type=whole_numbers, help="batch_buckets, such as 2,4,8,16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--routings", nargs="+", choices=ROUTINGS, default=ROUTINGS[:2])
    parser.add_argument("--budget", type=float, help="seconds for all parts together")
    parser.add_argument("--quick", action="store_true", help="tiny on the CPU, two replicas")
    parser.add_argument("--table", action="store_true", help="print what was measured")
    options = parser.parse_args(arguments)
    if options.quick:
        options.model = "tiny"
        options.device = "cpu"
    options.gpus = options.gpus or ([1, 2] if options.quick else [1, 2, 4])
    notes = Notes(options.results, options.budget)
    if not options.table:
        measure(notes, options)
    found = figures(notes)
    print_table(found)
    return 0 if all(figure.passed is not False for figure in found) else 1


if __name__ == "__main__":
    sys.exit(main())
