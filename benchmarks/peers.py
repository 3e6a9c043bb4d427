"""Our pipeline beside its peers, each in a process of its own, in turns on one card.

    python -m benchmarks.peers lines.jsonl --side stock=stock:bf16 --side hf=hf:bf16 \\
        --side ours=ours:fastest-exact --shape 1x20 --shape 8x20
    python -m benchmarks.peers lines.jsonl --start ours=ours:fastest-exact

A side is NAME=KIND:RECIPE (`peer_process.py` has the kinds), with @FOLDER for the code of another
commit. `url=url:http://host:8000/v1` is a server of OpenAI's images API, such as vLLM-Omni's or
SGLang's. A shape is IMAGESxSTEPS, with `g0` for no guidance, and `@NAME,NAME` for some sides alone.

All sides are loaded and warmed at once. Then each round goes through them, every second round
backwards. Each figure is a line of JSON as soon as it is measured. `--start` times a first start with
nothing kept, and a second one in which only BENCHLIB_CACHE is the same. Both have the packages'
bytecode, as pip writes it at an install. Its parts are the imports,
the load (`load_parts_s`, loading.py), the stages of the first image, and what of it was compiling.

Knows processes and rounds. Ignorant of what makes a side fast.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

HERE = Path(__file__).parent
OF_A_LOAD = ("import_s", "load_s", "load_parts_s", "artefacts")
IMPORTS = "import benchlib, torch._inductor.compile_fx; benchlib.load_pipeline"
WRITES_BYTECODE = {"PYTHONDONTWRITEBYTECODE": ""}
OF_AN_IMAGE = ("parts", "compile_s", "digest", "error")


@dataclass(frozen=True)
class Side:
    """A side: its name, kind and recipe, and the folder of its code. A URL has its address there."""

    name: str
    kind: str
    recipe: str
    folder: str

    @classmethod
    def parse(cls, text: str) -> Side:
        """Reads NAME=KIND:RECIPE@FOLDER. Raises ValueError, also for a folder without our code."""
        found = re.fullmatch(r"([^=]+)=(ours|stock|hf|url):([^@]+)(?:@(.+))?", text)
        if found is None:
            raise ValueError(f"side: {text!r} is not NAME=KIND:RECIPE, or NAME=KIND:RECIPE@FOLDER")
        name, kind, recipe, folder = found.groups()
        # Python would import the code of today instead, and nobody would notice
        if folder and not Path(folder, "benchlib").is_dir():
            raise ValueError(f"side: {text!r} has no folder benchlib in {folder}")
        return cls(name, kind, recipe, folder or str(HERE.parent))


@dataclass(frozen=True)
class Shape:
    """What is made at once: so many images, of so many steps, with guidance or without.

    `sides` are the names of those that make it; all sides if it is empty.
    """

    n: int
    steps: int
    guidance: float
    sides: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Reads IMAGESxSTEPS, IMAGESxSTEPSg0 and IMAGESxSTEPS@NAME,NAME. Raises ValueError."""
        found = re.fullmatch(r"(\d+)x(\d+)(g0)?(?:@(.+))?", text)
        if found is None:
            raise ValueError(f"shape: {text!r} is not IMAGESxSTEPS, such as 1x20 or 1x4g0")
        images, steps, unguided, names = found.groups()
        sides = tuple(names.split(",")) if names else ()
        return cls(int(images), int(steps), 0.0 if unguided else 7.5, sides)

    def asked(self, side: int, seed: int = 1) -> dict[str, Any]:
        parts = {"n": self.n, "steps": self.steps, "guidance": self.guidance}
        return parts | {"side": side, "seed": seed}


class Peer(Protocol):
    """A loaded side. `ask` returns its answer, which may be an error in words."""

    facts: dict[str, Any]

    def ask(self, asked: dict[str, Any]) -> dict[str, Any]: ...


class ProcessPeer:
    """A side in a process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.facts = self._answer()

    def ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return {"error": "the process has ended"}
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            return {"error": "the process has ended"}
        facts: dict[str, Any] = json.loads(line)
        return facts


class UrlPeer:
    """A server of OpenAI's images API. Its options beyond OpenAI's are vLLM-Omni's."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.facts: dict[str, Any] = {}

    def ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        import httpx

        body = {
            "prompt": "a lighthouse at dusk",
            "n": asked["n"],
            "size": f"{asked['side']}x{asked['side']}",
            "num_inference_steps": asked["steps"],
            "guidance_scale": asked["guidance"],
            "seed": asked["seed"],
            "response_format": "b64_json",
        }
        began_s = time.perf_counter()
        try:
            reply = httpx.post(f"{self._url}/images/generations", json=body, timeout=600)
            reply.raise_for_status()
        except httpx.HTTPError as error:
            return {"error": f"{type(error).__name__}: {error}"}
        return {"seconds": time.perf_counter() - began_s}


@contextmanager
def started(
    side: Side,
    options: argparse.Namespace,
    changes: dict[str, str] | None = None,
    *more: str,
) -> Iterator[Peer]:
    """Loads a side, and ends it after the block.

    `changes` are changes of the environment, and `more` are further arguments of its process.
    """
    if side.kind == "url":
        yield UrlPeer(side.recipe)
        return
    command = [sys.executable, str(HERE / "peer_process.py")]
    command += ["--kind", side.kind, "--recipe", side.recipe]
    command += ["--model", options.model, "--device", options.device, *more]
    environment = environment_of(side) | (changes or {})
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield ProcessPeer(process)
        finally:
            process.kill()


def environment_of(side: Side) -> dict[str, str]:
    """The environment in which Python imports the code of a side."""
    rest = os.environ.get("PYTHONPATH", "")
    return os.environ | {"PYTHONPATH": f"{side.folder}:{rest}"}


def write_bytecode(side: Side) -> None:
    """Let Python write the bytecode of what a start imports. Raises CalledProcessError."""
    environment = environment_of(side) | WRITES_BYTECODE
    subprocess.run([sys.executable, "-c", IMPORTS], env=environment, check=True)


class Lines:
    """The file of all figures."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, part: str, case: str, what: str, value: Any, **more: Any) -> None:
        line = {"part": part, "case": case, "what": what, "value": value} | more
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        shown = f"{value:.4f}" if isinstance(value, float) else str(value)[:160]
        print(f"{part}, {case}: {what} {shown} {more or ''}", flush=True)


def compare(sides: Sequence[Side], options: argparse.Namespace, lines: Lines) -> None:
    """Loads all sides, and times each shape in rounds."""
    end_s = time.monotonic() + options.budget
    with ExitStack() as stack:
        # 1) Load all at once
        def start(side: Side) -> Peer:
            return stack.enter_context(started(side, options))

        with ThreadPoolExecutor(len(sides)) as threads:
            loaded = dict(zip(sides, threads.map(start, sides), strict=True))
        peers: dict[str, Peer] = {}
        for side, peer in loaded.items():
            lines.write("peers", side.name, "loaded", peer.facts, recipe=side.recipe)
            if "error" not in peer.facts:
                peers[side.name] = peer

        # 2) Each shape: warm at once, then in turns
        for shape in options.shape:
            if time.monotonic() > end_s:
                lines.write("peers", "all", "left out", "no time is left", n=shape.n)
                continue
            asked = {name: peers[name] for name in shape.sides or peers if name in peers}
            if asked:
                able = warmed(asked, shape, options, lines)
                rounds(able, shape, options, lines, end_s)

        # 3) The kernels of a step
        for name in options.kernels:
            for n in sorted({shape.n for shape in options.shape}):
                if name in peers and time.monotonic() < end_s:
                    question = {"kernels": True, "n": n, "side": options.size}
                    found = peers[name].ask(question).get("kernels")
                    lines.write("peers", name, "kernels", found, n=n)


def warmed(
    peers: dict[str, Peer], shape: Shape, options: argparse.Namespace, lines: Lines
) -> dict[str, Peer]:
    """Runs a shape on all sides at once; returns those that can make it. Compares their images."""
    with tempfile.TemporaryDirectory() as folder:

        def warm(name: str) -> dict[str, Any]:
            began_s = time.perf_counter()
            asked = shape.asked(options.size)
            for number in range(options.warm):
                last = {"save": f"{folder}/{name}.npy"} if number == options.warm - 1 else {}
                answer = peers[name].ask(asked | last)
                if "error" in answer:
                    return answer
            return answer | {"warm_s": time.perf_counter() - began_s}

        with ThreadPoolExecutor(len(peers)) as threads:
            answers = dict(zip(peers, threads.map(warm, peers), strict=True))
        images = {name: np.load(f"{folder}/{name}.npy") for name in peers if _saved(folder, name)}
    able = {}
    for name, answer in answers.items():
        if "error" in answer:
            lines.write("peers", name, "left out", answer["error"], n=shape.n)
            continue
        able[name] = peers[name]
        same = {"n": shape.n, "steps": shape.steps, "guidance": shape.guidance}
        lines.write("peers", name, "warm_s", answer["warm_s"], **same)
        lines.write("peers", name, "allocated_gib", answer.get("allocated_gib"), **same)
        lines.write("peers", name, "digest", answer.get("digest"), **same)
    first = next((name for name in able if name in images), None)
    for name, pixels in images.items():
        if name != first and first is not None:
            lines.write("peers", name, "psnr_db", _psnr_db(images[first], pixels), to=first)
    return able


def rounds(
    peers: dict[str, Peer],
    shape: Shape,
    options: argparse.Namespace,
    lines: Lines,
    end_s: float,
) -> None:
    """Times a shape on each side in turn."""
    same = {"n": shape.n, "steps": shape.steps, "guidance": shape.guidance}
    times_s: dict[str, list[float]] = {name: [] for name in peers}
    for number in range(options.rounds):
        order = list(peers) if number % 2 == 0 else list(reversed(peers))
        for name in order:
            if time.monotonic() > end_s:
                break
            answer = peers[name].ask(shape.asked(options.size))
            if "error" in answer:
                lines.write("peers", name, "left out", answer["error"], **same)
                continue
            times_s[name].append(answer["seconds"] / shape.n)
            parts = answer.get("parts") or {}
            image_s = answer["seconds"] / shape.n
            lines.write("peers", name, "image_s", image_s, round=number, **same, **parts)
    for name, found in times_s.items():
        if found:
            lines.write("peers", name, "median_image_s", statistics.median(found), **same)


def time_starts(side: Side, options: argparse.Namespace, lines: Lines) -> None:
    """Times starts up to the first image: a cold one, and one with what it has kept.

    With `--profile` a third one, as warm, writes where its time went, by function. The folder for
    temporary files has one path, as on a machine, and is emptied for each.
    """
    write_bytecode(side)
    with tempfile.TemporaryDirectory() as unkept, tempfile.TemporaryDirectory() as place:
        kept = options.kept or unkept
        temporary = Path(place) / "temporary"
        cases: dict[str, list[str]] = {"cold": [], "warm": []}
        if options.profile:
            Path(options.profile).mkdir(parents=True, exist_ok=True)
            cases["profiled"] = ["--profile", f"{options.profile}/{side.name}.txt"]
        for case, more in cases.items():
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            changes = {"TMPDIR": str(temporary), "BENCHLIB_CACHE": kept} | WRITES_BYTECODE
            began_s = time.monotonic()
            with started(side, options, changes, *more) as peer:
                facts = peer.facts
                answer = peer.ask(options.shape[0].asked(options.size))
                took_s = time.monotonic() - began_s
                second = peer.ask(options.shape[0].asked(options.size))
            parts = {key: facts.get(key) for key in OF_A_LOAD}
            parts |= {"first_s": answer.get("seconds"), "second_s": second.get("seconds")}
            parts |= {key: answer.get(key) for key in OF_AN_IMAGE}
            lines.write("starts", f"{side.name}, {case}", "ready_s", took_s, **parts)


def _saved(folder: str, name: str) -> bool:
    return Path(f"{folder}/{name}.npy").is_file()


def _psnr_db(one: Any, other: Any) -> float | None:
    """The peak signal-to-noise ratio of 8-bit pixels; None if they are equal or not comparable."""
    if one.shape != other.shape:
        return None
    error = float(np.square(one.astype(np.float64) - other).mean())
    return None if error == 0 else float(10 * np.log10(255**2 / error))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lines", type=Path, help="the file that gets a line for each figure")
    parser.add_argument("--side", type=Side.parse, action="append", default=[])
    parser.add_argument("--start", type=Side.parse, action="append", default=[])
    parser.add_argument("--shape", type=Shape.parse, action="append", default=[])
    parser.add_argument(
        "--kept", help="the BENCHLIB_CACHE of the starts; one of their own if not given"
    )
    parser.add_argument("--profile", help="a folder for a profile of each side's third start")
    parser.add_argument("--kernels", action="append", default=[], help="a side; its step's kernels")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--warm", type=int, default=3, help="calls of a shape that are not counted")
    parser.add_argument("--budget", type=float, default=500.0, help="seconds, after the starts")
    parser.add_argument("--model", default="sdxl-random")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", type=int, default=1024, help="pixels of a side")
    options = parser.parse_args(arguments)
    options.shape = options.shape or [Shape(1, 20, 7.5)]
    lines = Lines(options.lines)
    for side in options.start:
        time_starts(side, options, lines)
    if options.side:
        compare(options.side, options, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
