"""What the server and the load generator survive: kills, faults, odd requests, stops, idle sockets.

    python -m benchmarks.chaos FOLDER           all parts, in less than 10 minutes on two cores
    python -m benchmarks.chaos FOLDER --quick   a few of everything
    python -m benchmarks.chaos FOLDER --parts sweep child

Each part is a process of its own. Parts whose figures are counts run beside each other, in lanes;
those that read clocks run alone, afterwards. FOLDER gets `chaos.json` and what each part printed.
The exit status is 1 if a limit is broken. Knows the parts' commands. Ignorant of what they do.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.figures import Figure
from benchmarks.held_lines import read_figures, report

ROOT = Path(__file__).parents[1]
LIMIT_S = 900.0
LOOKS_EVERY_S = 0.1
# The interrupts and SIGTERMs that came. All wait for them by looking: a handler that raised, or took
# a lock, could leave a thread pool's lock held for ever.
SIGNALS: list[int] = []
RANDOM_REQUESTS = ("tests/serving/test_schemathesis.py", "tests/serving/test_any_bytes.py")


@dataclass(frozen=True)
class Part:
    """One command. `read(folder)` gives its figures once it has ended.

    In a command, FOLDER stands for the folder.
    """

    name: str
    command: tuple[str, ...]
    read: Callable[[Path], list[Figure]]

    def run(self, folder: Path) -> list[Figure]:
        """Carry out the part, and return its figures; one that can't be read is a broken line."""
        began_s = time.monotonic()
        command = [word.replace("FOLDER", str(folder)) for word in self.command]
        with (folder / f"{self.name}.log").open("w") as log:
            run_in_group([sys.executable, "-m", *command], log.fileno())
        took_s = time.monotonic() - began_s
        print(f"{self.name}: {took_s:.0f} s", file=sys.stderr, flush=True)
        try:
            return self.read(folder)
        except (OSError, ValueError, KeyError, ElementTree.ParseError) as error:
            reason = f"{type(error).__name__}: {error}"
            return [Figure(self.name, "has ended", [], low=1, not_measured=reason)]


def run_in_group(command: Sequence[str], output: int) -> None:
    """Run a command for at most LIMIT_S, or until a signal, and kill what has not ended then."""
    if SIGNALS:
        return
    end_s = time.monotonic() + LIMIT_S
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    ) as process:
        while process.poll() is None:
            time.sleep(LOOKS_EVERY_S)
            if SIGNALS or time.monotonic() > end_s:
                kill_with_children(process.pid)
                process.wait()


def kill_with_children(pid: int) -> None:
    """Kill a process, its group, and those below it that have sessions of their own."""
    below = []
    with suppress(psutil.NoSuchProcess):
        below = psutil.Process(pid).children(recursive=True)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    for process in below:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def end_parts(number: int, _frame: object) -> None:
    """End all parts, and then this process: the parts have sessions of their own."""
    SIGNALS.append(number)


def module(name: str, *arguments: str) -> Part:
    """A benchmark of ours, which leaves FOLDER/NAME.json."""
    return Part(name, arguments, lambda folder: read_figures(folder / f"{name}.json"))


def tests(name: str, *arguments: str) -> Part:
    """Tests: none may fail, and one must have run."""
    options = ("-p", "no:cacheprovider", "-o", "timeout=900", f"--junitxml=FOLDER/{name}.xml")

    def read(folder: Path) -> list[Figure]:
        [suite] = ElementTree.parse(folder / f"{name}.xml").getroot().iter("testsuite")
        failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
        passed = int(suite.attrib["tests"]) - failed - int(suite.attrib["skipped"])
        return [
            Figure.once(name, "tests that failed", failed, 0, 0),
            Figure.once(name, "tests that passed", passed, low=1),
        ]

    return Part(name, ("pytest", *arguments, *options), read)


def lanes(*, quick: bool) -> list[list[Part]]:
    """Lanes of parts that count, and last the parts that need the machine for themselves."""

    def kills(kind: str, count: int) -> Part:
        most = "2" if quick else str(count)
        return module(kind, "benchmarks.kills", kind, "FOLDER", "--kills", most)

    asks = "100" if quick else "1000"
    block = "25" if quick else "100"
    cases = "not slow" if quick else "slow"
    servers = [kills("server", 30)]
    requests = [
        module("soak", "benchmarks.soak", "FOLDER", "--quick", asks, "--block", block),
        tests("requests", *RANDOM_REQUESTS, "-m", cases),
    ]
    load = [
        kills("sweep", 50),
        kills("child", 30),
        kills("parent", 30),
    ]
    alone = [
        module("strangers", "benchmarks.strangers", "FOLDER", *(["--quick"] if quick else [])),
        module("stops", "benchmarks.stops", "FOLDER", "--quick"),
    ]
    return [servers, requests, load, alone]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where chaos.json and the parts' output go")
    parser.add_argument("--quick", action="store_true", help="a few of everything")
    parser.add_argument("--parts", nargs="+", help="these parts alone")
    chosen = parser.parse_args()
    folder = chosen.folder.resolve() / "parts"
    folder.mkdir(parents=True, exist_ok=True)

    # 1) Choose; what an earlier call left must not be taken for today's
    chosen_lanes = []
    names = []
    for lane in lanes(quick=chosen.quick):
        chosen_lanes.append([one for one in lane if not chosen.parts or one.name in chosen.parts])
        names += [one.name for one in lane]
    unknown = set(chosen.parts or ()) - set(names)
    if unknown:
        parser.error(f"--parts: {', '.join(sorted(unknown))}: none of {', '.join(names)}")
    for path in folder.iterdir():
        path.unlink()

    # 2) Run
    began_s = time.monotonic()

    def run_lane(lane: list[Part]) -> list[Figure]:
        return [figure for part in lane for figure in part.run(folder)]

    *beside, alone = chosen_lanes
    with ThreadPoolExecutor(len(beside)) as threads:
        futures = [threads.submit(run_lane, lane) for lane in beside]
        # This thread must wake up now and then: Python handles signals here alone.
        while not all(future.done() for future in futures):
            time.sleep(LOOKS_EVERY_S)
        figures = [figure for future in futures for figure in future.result()]
    figures += run_lane(alone)
    if SIGNALS:
        return 128 + SIGNALS[0]
    took_s = time.monotonic() - began_s
    if not chosen.parts:
        figures.append(Figure.once("all", "seconds", took_s, high=600))
    return report("chaos", figures, chosen.folder, {"quick": chosen.quick})


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end_parts)
    sys.exit(main())
