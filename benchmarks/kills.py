"""SIGKILL at random moments: what was finished, and each row whose write returned, must be there.

    python -m benchmarks.kills sweep FOLDER --kills 50 --seed 0

kills one of four: a sweep, a server under load, the load generator's child, or the process that
called `run_load`. The moments come from the seed. Whatever the moment, the counts must hold, so a
busy machine can make this slow but not wrong. Knows processes, and the folders of results.
Ignorant of what the model computes.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

import benchlib as bl
from benchlib.load.runner import GeneratorError
from benchlib.rows import ROW_DTYPES
from benchlib.study.folders import lock_study
from benchlib.study.store import Run
from benchmarks.figures import Figure
from benchmarks.held_lines import report
from benchmarks.soak_server_process import server_process
from benchmarks.truth import server as fake_server

ENDS_WITHIN_S = 120.0
USERS = 4
STUDY = "s"

SWEEP = """
import sys
from benchlib import ClosedLoop, Workload, sweep
url, results = sys.argv[1:]
points = [
    {"target": url, "arrivals": ClosedLoop(users), "workload": Workload(width=[64, 128], seed=users), "requests": 4}
    for users in (1, 2)
]
sweep(points, study="s", repeat=2, results=results, on_progress=lambda _: None)
"""
RUNS_OF_A_SWEEP = 4

LOAD = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a shell starts with &
from benchlib import ClosedLoop, Workload, run_load
url, results, users = sys.argv[1:]
workload = Workload("a cat", width=64, height=64, num_inference_steps=2)
arrivals = ClosedLoop(int(users), think_time_s=0.05)
try:
    run_load(url, arrivals, workload, duration_s=900, study="s", results=results)
except KeyboardInterrupt:
    pass
"""


# -- sweeps ----------------------------------------------------------------------------------------


def kill_sweeps(folder: Path, *, kills: int, seed: int) -> list[Figure]:
    """Kill sweeps, call each again until it is done, and compare it with one that was not killed."""
    draw = random.Random(seed)
    killed = lost = other = number = 0
    with fake_server(service_s=0.02, lanes=1) as url:
        truth = finish_sweep(url, folder / "whole")
        while killed < kills:
            number += 1
            results = folder / str(number)
            finished = 0
            while finished < RUNS_OF_A_SWEEP and killed < kills:
                killed += kill_one_sweep(url, results, draw)
                runs = len(frames_without_times(results))
                lost += max(0, finished - runs)
                finished = runs
            other += not same_frames(finish_sweep(url, results), truth)
            with lock_study(results, STUDY):  # nobody has kept the study's lock
                pass
    return [
        Figure.once("sweep", "kills", killed, low=kills),
        Figure.once("sweep", "finished runs that were lost", lost, 0, 0),
        Figure.once("sweep", "sweeps that ended with other rows than one unkilled", other, 0, 0),
    ]


def sweep_process(url: str, results: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SWEEP, url, str(results)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish_sweep(url: str, results: Path) -> dict[str, pd.DataFrame]:
    """Let a sweep run to its end; return its runs. Raises CalledProcessError if it fails."""
    with sweep_process(url, results) as process:
        process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, "a sweep")
    return frames_without_times(results)


def kill_one_sweep(url: str, results: Path, draw: random.Random) -> bool:
    """Kill a sweep within 3 s of its first line. Half of the time its child is killed as well.

    Returns False if it was done before.
    """
    with sweep_process(url, results) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0, 3))
            return False
        children = psutil.Process(process.pid).children()
        process.kill()
        if draw.random() < 0.5:
            kill_all(children)
    wait_gone(children)
    return True


def frames_without_times(results: Path) -> dict[str, pd.DataFrame]:
    """The rows of each finished run, by its point, without times and ids."""
    if not list(results.glob(f"{STUDY}/*/run.json")):
        return {}
    left_out = ["request_id", *(name for name in ROW_DTYPES if name.endswith("_s"))]
    frames = {}
    for run in bl.load_study(results / STUDY).runs:
        if run.record["status"] == "finished":
            point = json.dumps(run.record["point"], sort_keys=True)
            if point in frames:
                raise ValueError(f"{run.path}: the point has been measured twice")
            rows = run.requests.drop(columns=left_out)
            frames[point] = rows.sort_values("index", ignore_index=True)
    return frames


def same_frames(some: dict[str, pd.DataFrame], others: dict[str, pd.DataFrame]) -> bool:
    return some.keys() == others.keys() and all(some[key].equals(others[key]) for key in some)


# -- a server under load ---------------------------------------------------------------------------


def kill_servers(folder: Path, *, kills: int, seed: int) -> list[Figure]:
    """Kill our server under load and start it again on its port; one generator runs all the time."""
    draw = random.Random(seed)
    record: list[dict[str, Any]] = []
    port = 0

    # 1) Lives of a server, each ended within a second of its first image
    with ExitStack() as stack:
        for life in range(kills + 1):
            process = server_process(folder / str(life), ["continuous"], port=port, bare=True)
            with process as server:
                if life == 0:
                    url = server.urls["continuous"]
                    port = int(url.rpartition(":")[2])
                    load = stack.enter_context(load_process(url, folder))
                wait_until(lambda server=server: has_served(server.record("continuous")))
                time.sleep(draw.uniform(0, 1))
                if life < kills:
                    server.process.kill()
                else:
                    load.send_signal(signal.SIGINT)
                    load.wait(ENDS_WITHIN_S)
            record += server.record("continuous")
    [run] = bl.load_study(folder / STUDY).runs

    # 2) The generator's rows against what the servers wrote down before they answered
    finished = {line["id"] for line in record if line["status"] == 200}
    statuses = rows_by_id(run)
    with_image = {name for name, status in statuses.items() if status == 200}
    without_row = len({line["id"] for line in record} - statuses.keys())
    not_made = len(with_image - finished)
    cut_off = len(finished - with_image)
    return [
        Figure.once("server", "kills under load", kills, low=kills),
        Figure.once("server", "requests that it saw and that have no row", without_row, 0, 0),
        Figure.once("server", "rows with an image that it did not make", not_made, 0, 0),
        Figure.once("server", "answers on their way at a kill", cut_off, high=USERS * kills),
        Figure.once("server", "rows", len(statuses), low=len(finished)),
    ]


def has_served(record: Iterable[dict[str, Any]]) -> bool:
    return any(line["status"] == 200 for line in record)


@contextmanager
def load_process(url: str, results: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process inside `run_load`, which would take a quarter of an hour. It is killed at the end."""
    command = [sys.executable, "-c", LOAD, url, str(results), str(USERS)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet) as process:
        try:
            yield process
        finally:
            process.kill()


def rows_by_id(run: Run) -> dict[str, int | None]:
    """The HTTP status of each request of a run. Raises ValueError for an id with two rows."""
    ids = run.requests["request_id"].tolist()
    if len(set(ids)) != len(ids):
        raise ValueError(f"{run.path}: a request has two rows")
    statuses = (
        run.requests["http_status"]
        .astype("object")
        .where(run.requests["http_status"].notna(), None)
    )
    return dict(zip(ids, statuses.tolist(), strict=True))


# -- the load generator ----------------------------------------------------------------------------


def kill_children(folder: Path, *, kills: int, seed: int) -> list[Figure]:
    """Kill the child that sends the requests: `run_load` raises, and the rows are there."""
    draw = random.Random(seed)
    unraised = 0
    reported = 0
    with fake_server(service_s=0.01) as url:
        for _ in range(kills):
            told = [0]
            killer = threading.Thread(target=kill_generator_of, args=(psutil.Process(), draw))
            killer.start()
            try:
                bl.run_load(
                    url,
                    bl.ClosedLoop(USERS),
                    bl.Workload("a cat"),
                    duration_s=3600,
                    study=STUDY,
                    results=folder,
                    on_progress=lambda progress, told=told: told.append(progress.done),
                )
                unraised += 1
            except GeneratorError:
                reported += max(told)
            killer.join()
        seen = requests_seen(url)
    runs = bl.load_study(folder / STUDY).runs
    return [
        Figure.once("child", "kills", len(runs), kills, kills),
        Figure.once("child", "runs that raised nothing", unraised, 0, 0),
        Figure.once("child", "runs that are not marked as failed", unmarked(runs, "failed"), 0, 0),
        *judge_rows("child", runs, seen, at_least=reported, in_flight=USERS * kills),
    ]


def kill_generator_of(parent: psutil.Process, draw: random.Random) -> None:
    """Wait for the load generator of this process, and kill it within 3 s."""
    generators: list[psutil.Process] = []

    def find() -> bool:
        generators[:] = generators_of(parent)
        return bool(generators)

    wait_until(find)
    time.sleep(draw.uniform(0, 3))
    kill_all(generators)


def kill_parents(folder: Path, *, kills: int, seed: int) -> list[Figure]:
    """Kill the process that called `run_load`: its child writes the last rows and ends."""
    draw = random.Random(seed)
    with fake_server(service_s=0.01) as url:
        finished = twenty_requests(url, folder)
        for _ in range(kills):
            with load_process(url, folder) as parent:
                wait_until(lambda parent=parent: generators_of(psutil.Process(parent.pid)))
                generators = generators_of(psutil.Process(parent.pid))
                time.sleep(draw.uniform(0, 3))
                parent.kill()
            wait_gone(generators)
        last = twenty_requests(url, folder)
        seen = requests_seen(url)
    runs = bl.load_study(folder / STUDY).runs
    killed = [run for run in runs if run.path not in (finished.path, last.path)]
    kept = sum(run.requests.equals(finished.requests) for run in runs if run.path == finished.path)
    return [
        Figure.once("parent", "kills", len(killed), kills, kills),
        Figure.once("parent", "finished runs that were lost", 1 - kept, 0, 0),
        Figure.once("parent", "runs that are not marked as cut off", unmarked(killed, "running"), 0, 0),
        *judge_rows("parent", runs, seen, at_least=40, in_flight=0),
    ]  # fmt: skip


def twenty_requests(url: str, results: Path) -> bl.Run:
    """A run of twenty requests, which nobody kills."""
    quiet = {"on_progress": lambda _: None}
    return bl.run_load(url, bl.ClosedLoop(2), requests=20, study=STUDY, results=results, **quiet)


def judge_rows(
    case: str, runs: Iterable[Run], seen: set[str], *, at_least: int, in_flight: int
) -> list[Figure]:
    """Rows against the requests that the server saw; `in_flight` may have been cut off in all.

    `at_least` rows were told to be there. A request without an answer may not have been seen.
    """
    statuses: dict[str, int | None] = {}
    for run in runs:
        statuses |= rows_by_id(run)
    answered = {name for name, status in statuses.items() if status is not None}
    lost = max(0, at_least - len(statuses))
    unknown = len(answered - seen)
    cut_off = len(seen - statuses.keys())
    return [
        Figure.once(case, "rows that were told of and are not there", lost, 0, 0),
        Figure.once(case, "rows of an answer that the server does not know", unknown, 0, 0),
        Figure.once(case, "requests at a kill, without a row", cut_off, high=in_flight),
        Figure.once(case, "rows", len(statuses), low=1),
    ]


def unmarked(runs: Iterable[Run], status: str) -> int:
    return sum(run.record["status"] != status for run in runs)


# -- processes -------------------------------------------------------------------------------------


def requests_seen(url: str) -> set[str]:
    """The ids of all requests that the fake server got."""
    with urllib.request.urlopen(f"{url}/requests") as answer:
        return {request["request_id"] for request in json.load(answer)}


def generators_of(parent: psutil.Process) -> list[psutil.Process]:
    """The load generators that `parent` has started."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in parent.children():
            with suppress(psutil.NoSuchProcess):
                if "benchlib.load.child" in child.cmdline():
                    found.append(child)
    return found


def kill_all(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def is_gone(process: psutil.Process) -> bool:
    """Whether a process has ended. One that nobody has waited for is a zombie, and has ended."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_gone(processes: Iterable[psutil.Process]) -> None:
    """Return once all have ended. Raises TimeoutError."""
    for process in processes:
        wait_until(lambda process=process: is_gone(process))


def wait_until(condition: Callable[[], object]) -> None:
    """Return once `condition()` is true. Raises TimeoutError after ENDS_WITHIN_S."""
    end_s = time.monotonic() + ENDS_WITHIN_S
    while not condition():
        if time.monotonic() > end_s:
            raise TimeoutError(f"what was waited for did not happen within {ENDS_WITHIN_S:g} s")
        time.sleep(0.01)


KINDS = {
    "sweep": kill_sweeps,
    "server": kill_servers,
    "child": kill_children,
    "parent": kill_parents,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folder", type=Path, help="where KIND.json goes")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        figures = KINDS[chosen.kind](Path(scratch), kills=chosen.kills, seed=chosen.seed)
    return report(chosen.kind, figures, chosen.folder, {"seed": chosen.seed})


if __name__ == "__main__":
    sys.exit(main())
