"""Several GPUs behind one address, for real: images/s, tails, mixed steps, a kill, equal bytes.

    python -m benchmarks.scale --gpus 1,2,4 --model sdxl-random --results results/reference-scale
    python -m benchmarks.scale --part mixed --gpus 4 --results results/reference-scale
    python -m benchmarks.scale --quick --results folder   # two replicas of `tiny` on the CPU
    python -m benchmarks.scale --table --results results/reference-scale

| part   | load                                                       | shows                          |
|--------|------------------------------------------------------------|--------------------------------|
| linear | closed loop, eight users a card, equal requests            | images/s over one card's       |
| tails  | the same run                                               | slowest tenth over the median  |
| bytes  | the same seeds, one request a card at a time               | equal files on 1, 2 and 4      |
| kill   | the same seeds, two a card, and a replica is killed on the way | nothing lost, equal files  |
| mixed  | Poisson at 80 % of capacity, 10 to 50 steps, same arrivals | p95 over round robin's         |
| files  | as linear, but the images are sent as PNG                  | what encoding takes of the host |
| poisson | equal requests, Poisson at 95 % of the images/s of linear | p99, as MLPerf's server scenario |

Kill, files and poisson are measured on the largest number of cards alone. 20 s are MLPerf's own
limit for SDXL (github.com/mlcommons/inference_policies, inference_rules.adoc, v5.1).

Figures go to <results>/scale.jsonl as soon as they are measured, and the rows of all requests to
<results>/rows.jsonl, from which the table makes its intervals of 95 %. A part that has ended for a
number of GPUs is not measured again. With `--budget` no part begins that would take longer than what
is left of those seconds.

| interval of       | method                                                                         |
|-------------------|--------------------------------------------------------------------------------|
| share of linear   | images/s by windows of WINDOW_S, taken as independent; delta method, Student's t |
| slowest tenth     | bootstrap of blocks of eight images, in order of their ends                    |
| mixed p95 ratio   | bootstrap of blocks of MIXED_BLOCK arrivals, the same ones under both routers  |
| poisson p99       | none: so near the capacity, one run does not show what others would            |

One card's images/s are those of a server with one replica, started by the same call. On GPUs,
servers with fewer cards than the largest run and are measured beside each other, on cards of their own.

Knows servers and load from outside; ignorant of how requests are routed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import pandas as pd
import psutil

import benchlib as bl
from benchlib.machine import describe_git, describe_machine, describe_packages
from benchlib.serving.replicas.routing import ROUTINGS
from benchlib.study.intervals import runs_interval
from benchmarks.figures import Figure, print_table
from benchmarks.run_intervals import (
    FEWEST_WINDOWS,
    Floats,
    Whole,
    block_interval,
    made_by_window,
    ratio_of_means,
)
from benchmarks.seeded_images import Fetched, fetch_all

PARTS = ("linear", "tails", "bytes", "kill", "mixed", "files", "poisson")
ON_MOST = ("kill", "files", "poisson")  # on the largest number of cards alone
USERS = 8  # a card
EQUAL_STEPS = 20
MIXED_STEPS = tuple(range(10, 51, 5))
LOAD = 0.8
POISSON_LOAD = 0.95
P99_S = (None, 20.0)
LINEAR = (0.97, None)
SLOWEST_TENTH = (None, 1.15)
OVER_ROUND_ROBIN = (None, 0.75)
WINDOW_S = 6.0
MIXED_BLOCK = 22  # arrivals: those of some 8 s with four cards
NEEDED = (
    ("mixed", "linear", "images_per_s"),
    ("poisson", "linear", "images_per_s"),
    ("kill", "bytes", "digests"),
)
FEWEST = 8  # rows that have a percentile
KILL_AFTER = 0.25  # of a pass over the seeds


@dataclass(frozen=True)
class Lengths:
    """Seconds and numbers of the parts. `start_s` is how long a server may take to start.

    A router gets `mixed_images`, but no more than come in `mixed_s`.
    """

    warmup_s: float = 6.0
    equal_s: float = 60.0
    mixed_images: int = 112
    mixed_s: float = 60.0
    files_s: float = 12.0
    poisson_s: float = 180.0
    seeds: int = 16
    back_s: float = 60.0
    start_s: float = 60.0
    equal_steps: int = EQUAL_STEPS
    mixed_steps: tuple[int, ...] = MIXED_STEPS


QUICK = Lengths(
    warmup_s=0.5,
    equal_s=5.0,
    mixed_images=40,
    mixed_s=4.0,
    files_s=1.0,
    poisson_s=4.0,
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
        self._lock = threading.Lock()

    def write(self, part: str, gpus: int, what: str, value: Any, **more: Any) -> None:
        """Keep a figure, and print it."""
        line = {"part": part, "gpus": gpus, "what": what, "value": value, **more}
        with self._lock:
            self.lines.append(line)
            with (self.folder / "scale.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if what != "machine":
            print(f"{part} on {gpus}: {what} {value} {more or ''}", flush=True)

    def write_rows(self, part: str, gpus: int, case: str, run: str, rows: pd.DataFrame) -> None:
        """Keep the rows of a run, whose name is `run`."""
        mark = {"part": part, "gpus": gpus, "case": case, "run": run}
        with self._lock, (self.folder / "rows.jsonl").open("a", encoding="utf-8") as file:
            for row in json.loads(rows.to_json(orient="records")):
                file.write(json.dumps(mark | row) + "\n")

    def read_rows(self, part: str, gpus: int, case: str) -> pd.DataFrame:
        """The answered rows of the latest run of a case, in the order of their ends."""
        mark = {"part": part, "gpus": gpus, "case": case}
        every = read_lines(self.folder / "rows.jsonl")
        rows = [row for row in every if mark.items() <= row.items()]
        latest = rows[-1].get("run") if rows else None
        return answered(pd.DataFrame([row for row in rows if row.get("run") == latest]))

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

    def value(self, part: str, gpus: int, what: str, case: str | None = None) -> Any:
        """The latest value of a figure, or None."""
        found = None
        for line in self.lines:
            names = (line["part"], line["gpus"], line["what"], line.get("case"))
            if names == (part, gpus, what, case):
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
    """One server with some replicas, and what is measured on it.

    `beside` are the cards of the servers that are measured at the same time.
    """

    def __init__(
        self,
        notes: Notes,
        lengths: Lengths,
        server: bl.Server,
        gpus: int,
        routings: Sequence[str],
        results: str,
        beside: Sequence[int] = (),
    ) -> None:
        self.notes = notes
        self.lengths = lengths
        self.server = server
        self.gpus = gpus
        self.routings = routings
        self.results = results  # of whole runs
        self.beside = list(beside)

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
        rows = kept_columns(run.requests)
        self.notes.write_rows(part, self.gpus, case, run.path.name, rows)
        self.notes.write(part, self.gpus, "host_cores", cores, case=case, beside=self.beside)
        failed = int((run.requests["http_status"] != 200).sum())
        self.notes.write(part, self.gpus, "failed", failed, case=case, of=len(run.requests))
        return run

    def _are_enough(self, images: int, part: str, **more: Any) -> bool:
        """Whether so many images have a percentile. If not, a line says how many there are."""
        if images >= FEWEST:
            return True
        self.notes.write(part, self.gpus, "too few", images, **more)
        return False

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
        if not self._are_enough(len(latency_s), "linear"):
            return False
        batch = float(rows["batch_size"].mean())
        rate = float(images_by_window(rows).mean())
        self.notes.write("linear", self.gpus, "images_per_s", rate, mean_batch=batch)
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
        """Mixed steps in an open loop under each router, with the same arrivals."""
        measured = self.notes.value("linear", self.gpus, "images_per_s")
        if measured is None:
            self.notes.write("mixed", self.gpus, "left out", "the capacity is unknown")
            return False
        rate = self.notes.value("mixed", self.gpus, "rate_per_s")
        if rate is None:
            rate = self._mixed_rate(measured)
            self.notes.write("mixed", self.gpus, "rate_per_s", rate)
        for routing in self.routings:
            if self.notes.value("mixed", self.gpus, "p95_s", routing) is None:
                self._mixed(routing, rate)
        route_by(self.server, "foretold")
        found = [self.notes.value("mixed", self.gpus, "p95_s", one) for one in self.routings]
        return None not in found

    def _mixed(self, routing: str, rate: float) -> None:
        """Mixed steps under one router, if there is time."""
        lengths = self.lengths
        duration_s = min(lengths.mixed_images / rate, lengths.mixed_s)
        if not self.notes.has_time("mixed", self.gpus, lengths.warmup_s + duration_s + 8.0):
            return
        route_by(self.server, routing)
        run = self.run(
            "mixed",
            routing,
            bl.OpenLoop(rate),
            bl.Workload(num_inference_steps=list(lengths.mixed_steps)),
            duration_s=duration_s,
            warmup_s=lengths.warmup_s,
        )
        latency_s = measured_latencies(answered(run.requests))
        if not self._are_enough(len(latency_s), "mixed", case=routing):
            return
        self.notes.write(
            "mixed",
            self.gpus,
            "p95_s",
            float(np.quantile(latency_s, 0.95)),
            case=routing,
            mean_s=float(latency_s.mean()),
            n=len(latency_s),
        )

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
        self.notes.write("bytes", self.gpus, "digests", digests_alone(fetched))
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
        rows = answered(run.requests)
        if not self._are_enough(len(rows), "files"):
            return False
        self.notes.write("files", self.gpus, "images_per_s", float(images_by_window(rows).mean()))
        return True

    def poisson(self) -> bool:
        """Equal requests in an open loop near the capacity: the 99th percentile."""
        measured = self.notes.value("linear", self.gpus, "images_per_s")
        if measured is None:
            self.notes.write("poisson", self.gpus, "left out", "the capacity is unknown")
            return False
        run = self.run(
            "poisson",
            "poisson",
            bl.OpenLoop(POISSON_LOAD * measured),
            bl.Workload(num_inference_steps=self.lengths.equal_steps),
            duration_s=self.lengths.poisson_s,
            warmup_s=self.lengths.warmup_s,
        )
        rows = answered(run.requests)
        latency_s = measured_latencies(rows)
        if not self._are_enough(len(latency_s), "poisson"):
            return False
        self.notes.write(
            "poisson",
            self.gpus,
            "p99_s",
            float(np.quantile(latency_s, 0.99)),
            median_s=float(np.median(latency_s)),
            n=len(latency_s),
            sent_per_s=len(latency_s) / self.lengths.poisson_s,
            mean_batch=float(rows["batch_size"].mean()),
        )
        return True

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
        other, of = count_others(before, digests_alone(fetched))
        retried = [one.seed for one in fetched if one.retries]
        self.notes.write("kill", self.gpus, "killed", len(killed))
        self.notes.write("kill", self.gpus, "lost", len(lost), of=len(fetched))
        self.notes.write("kill", self.gpus, "retried", len(retried), seeds=retried)
        self.notes.write("kill", self.gpus, "other_bytes", other, of=of)

        # 3) How long until it is back
        while time.monotonic() < killed_s + self.lengths.back_s:
            if self.is_whole():
                seconds = time.monotonic() - killed_s
                self.notes.write("kill", self.gpus, "back_after_s", seconds)
                self._fetch_again(before)
                return True
            time.sleep(0.5)
        self.notes.write("kill", self.gpus, "not_back_after_s", self.lengths.back_s)
        return True

    def _fetch_again(self, before: Mapping[str, str]) -> None:
        """The seeds once more, each alone: a new process should make the same bytes, too."""
        again = self._fetch("kill", workers=self.gpus)
        other, of = count_others(before, digests_alone(again))
        replicas = sorted({str(one.replica) for one in again})
        self.notes.write(
            "kill", self.gpus, "other_bytes_when_back", other, of=of, replicas=replicas
        )

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
        self.notes.write(
            part, self.gpus, "host_cores", share.cores(), case="seeds", beside=self.beside
        )
        return fetched

    def is_whole(self) -> bool:
        """Whether all replicas serve."""
        answer = httpx.get(f"{self.server.url}/ready", timeout=10.0)
        return bool(answer.json().get("ready_replicas") == self.gpus)


def digests_alone(fetched: Iterable[Fetched]) -> dict[str, str]:
    """The digests of the images that were made alone: beside others arithmetic rounds otherwise."""
    return {
        str(one.seed): one.digest
        for one in fetched
        if one.batch_size == 1 and one.digest is not None
    }


def count_others(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[int, int]:
    """How many seeds have other digests, and how many are in both."""
    both = before.keys() & after.keys()
    return sum(before[seed] != after[seed] for seed in both), len(both)


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
    if not len(rows):
        return rows
    return rows[rows["http_status"] == 200].sort_values("done_s")


def measured_latencies(rows: pd.DataFrame) -> Any:
    """The latencies of the rows after the warm-up."""
    return rows[rows["phase"] == "measure"]["latency_s"].to_numpy()


def images_by_window(rows: pd.DataFrame) -> Floats:
    """The images/s of each window, from the end of the warm-up until the users stop."""
    measured = rows[rows["phase"] == "measure"]
    begin_s = float(measured["scheduled_s"].min())
    end_s = float(rows["scheduled_s"].max())
    windows = max(FEWEST_WINDOWS, int((end_s - begin_s) / WINDOW_S))
    done_s = rows["done_s"].to_numpy()
    begun_s = done_s - rows["total_s"].to_numpy() + rows["queue_s"].to_numpy()
    return made_by_window(begun_s, done_s, np.linspace(begin_s, end_s, windows + 1).tolist())


def slowest_tenth(latency_s: Floats) -> float:
    """The 90th percentile over the median."""
    return float(np.quantile(latency_s, 0.9) / np.median(latency_s))


def over_the_other(
    statistic: Callable[[Floats], Floats], top: pd.DataFrame, bottom: pd.DataFrame
) -> tuple[float, tuple[float, float] | None]:
    """A statistic of a run's latencies over that of another with the same arrivals; its interval.

    `statistic` gets one column for each run, and gives one number for each.
    """
    both = []
    for rows in (top, bottom):
        measured = rows[rows["phase"] == "measure"]
        both.append(measured.set_index("index")["latency_s"])
    pairs = pd.concat(both, axis=1, join="inner").sort_index().to_numpy()

    def ratio(places: Whole) -> float:
        of_top, of_bottom = statistic(pairs[places])
        return float(of_top / of_bottom)

    whole = ratio(np.arange(len(pairs)))
    return whole, block_interval(ratio, len(pairs), MIXED_BLOCK)


def p95_of_columns(latency_s: Floats) -> Floats:
    """The 95th percentile of each column."""
    found: Floats = np.quantile(latency_s, 0.95, axis=0)
    return found


def mean_of_columns(latency_s: Floats) -> Floats:
    """The mean of each column."""
    found: Floats = latency_s.mean(axis=0)
    return found


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
            measure_all(notes, lengths, options.routings, servers, due, results)


def measure_all(
    notes: Notes,
    lengths: Lengths,
    routings: Sequence[str],
    servers: Mapping[int, bl.Server],
    due: Mapping[int, Sequence[str]],
    results: str,
) -> None:
    """Measure the due parts of each server: beside each other on GPUs, else one after the other."""
    on_gpus = are_on_gpus(servers.values())

    def measure_one(count: int) -> None:
        beside = [other for other in due if on_gpus and other != count]
        bench = Bench(notes, lengths, servers[count], count, routings, results, beside)
        for part in due[count]:
            run_part(part, bench)

    with ThreadPoolExecutor(len(due) if on_gpus else 1) as pool:
        list(pool.map(measure_one, due))


def are_on_gpus(servers: Iterable[bl.Server]) -> bool:
    """Whether each replica of `servers` has a GPU of its own."""
    return all(str(server.spec["device"]).startswith("cuda") for server in servers)


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
        if part in ON_MOST and (gpus == 1 or gpus < most):
            is_chosen = False
        if part != "tails" and is_chosen and not notes.has_ended(part, gpus):
            due.append(part)
    # What 80 % of the capacity is, and which bytes are right, come from these.
    for part, first, figure in NEEDED:
        if part in due and first not in due and notes.value(first, gpus, figure) is None:
            due.insert(0, first)
    return due


def run_part(part: str, bench: Bench) -> None:
    """Measure a part on one server, if all replicas are there and there is time."""
    lengths = bench.lengths
    if not bench.is_whole():
        bench.notes.write(part, bench.gpus, "left out", "a replica is missing")
        return
    needed_s = {
        "linear": lengths.warmup_s + lengths.equal_s + 12.0,
        "mixed": 0.0,  # each router asks for its own time
        "bytes": lengths.seeds * 1.5 / bench.gpus,
        "files": lengths.files_s + 10.0,
        "kill": 30.0,
        "poisson": lengths.warmup_s + lengths.poisson_s + 25.0,
    }
    actions = {
        "linear": bench.equal,
        "mixed": bench.mixed,
        "bytes": bench.bytes,
        "files": bench.files,
        "kill": bench.kill,
        "poisson": bench.poisson,
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
            "gpus": gpu_words(),
            "packages": describe_packages(),
            "git": describe_git(Path(__file__).parent),
            "spec": {name: spec.get(name) for name in ("model", "recipe", "dtype", "step_times")},
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
        }
        notes.write("start", max(counts), "machine", about)
        yield servers


def gpu_words() -> list[str]:
    """A line for each GPU of this machine. The replicas use them, and not this process."""
    if shutil.which("nvidia-smi") is None:
        return []
    question = "--query-gpu=name,driver_version,power.limit,temperature.gpu,clocks.sm"
    command = ["nvidia-smi", question, "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.splitlines()


# -- what came out ---------------------------------------------------------------------------------


def figures(notes: Notes) -> list[Figure]:
    """The figures of all parts with their limits and intervals."""
    found: list[Figure] = []
    alone = notes.read_rows("linear", 1, "equal")
    for gpus in sorted({line["gpus"] for line in notes.lines}):
        equal = notes.read_rows("linear", gpus, "equal")
        if len(equal):
            found += equal_figures(gpus, equal, alone)
        found += mixed_figures(notes, gpus)
        found += poisson_figures(notes, gpus)
        found += other_figures(notes, gpus)
    return found


def equal_figures(gpus: int, rows: pd.DataFrame, alone: pd.DataFrame) -> list[Figure]:
    """Images/s, the share of linear, and the slowest tenth."""
    # 1) Images/s
    case = f"{gpus} cards"
    rates = images_by_window(rows)
    interval = runs_interval(rates.tolist())
    rate = float(rates.mean())
    found = [Figure.once(case, "images/s, equal requests", rate, own_interval=interval)]
    if gpus > 1 and len(alone):
        share, interval = ratio_of_means(rates, gpus * images_by_window(alone))
        found.append(Figure.once(case, "share of linear", share, *LINEAR, interval))

    # 2) The slowest tenth
    latency_s = measured_latencies(rows)

    def statistic(places: Whole) -> float:
        return slowest_tenth(latency_s[places])

    interval = block_interval(statistic, len(latency_s), USERS)
    limits = SLOWEST_TENTH if gpus > 1 else (None, None)
    name = "slowest tenth / median"
    found.append(Figure.once(case, name, slowest_tenth(latency_s), *limits, interval))
    return found


def mixed_figures(notes: Notes, gpus: int) -> list[Figure]:
    """The p95 and the mean of mixed requests under each router over round robin's."""
    found: list[Figure] = []
    bottom = notes.read_rows("mixed", gpus, "round-robin")
    for routing in ROUTINGS:
        top = notes.read_rows("mixed", gpus, routing)
        if routing == "round-robin" or not len(top) or not len(bottom):
            continue
        limits = OVER_ROUND_ROBIN if routing == "foretold" else (None, None)
        ratio, interval = over_the_other(p95_of_columns, top, bottom)
        name = f"mixed: p95 / round robin's, {routing}"
        found.append(Figure.once(f"{gpus} cards", name, ratio, *limits, interval))
        ratio, interval = over_the_other(mean_of_columns, top, bottom)
        name = f"mixed: mean / round robin's, {routing}"
        found.append(Figure.once(f"{gpus} cards", name, ratio, own_interval=interval))
    return found


def poisson_figures(notes: Notes, gpus: int) -> list[Figure]:
    """The 99th percentile of equal requests near the capacity."""
    p99_s = notes.value("poisson", gpus, "p99_s")
    if p99_s is None:
        return []
    name = f"Poisson at {POISSON_LOAD:.0%} of linear: p99, s"
    return [Figure.once(f"{gpus} cards", name, p99_s, *P99_S)]


def other_figures(notes: Notes, gpus: int) -> list[Figure]:
    """The figures of bytes, kill and files."""
    case = f"{gpus} cards"
    found: list[Figure] = []

    def add(name: str, value: Any, low: Any = None, high: Any = None) -> None:
        if value is not None:
            found.append(Figure.once(case, name, float(value), low, high))

    add("seeds with other bytes than on one card", other_bytes(notes, gpus), 0, 0)
    add("kill: requests lost", notes.value("kill", gpus, "lost"), 0, 0)
    add("kill: requests made again", notes.value("kill", gpus, "retried"))
    add("kill: seeds with other bytes", notes.value("kill", gpus, "other_bytes"), 0, 0)
    again = notes.value("kill", gpus, "other_bytes_when_back")
    add("kill: seeds with other bytes once it is back", again, 0, 0)
    add("kill: seconds until it is back", notes.value("kill", gpus, "back_after_s"))
    rows = notes.read_rows("files", gpus, "files")
    if len(rows):
        rates = images_by_window(rows)
        interval = runs_interval(rates.tolist())
        found.append(
            Figure.once(case, "images/s, with files", float(rates.mean()), own_interval=interval)
        )
    return found


def other_bytes(notes: Notes, gpus: int) -> int | None:
    """How many seeds have other bytes than on one card; None if either was not measured."""
    alone = notes.value("bytes", 1, "digests")
    here = notes.value("bytes", gpus, "digests")
    if gpus == 1 or alone is None or here is None:
        return None
    other, _ = count_others(alone, here)
    return other


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
    parser.add_argument("--routings", nargs="+", choices=ROUTINGS, default=ROUTINGS)
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
