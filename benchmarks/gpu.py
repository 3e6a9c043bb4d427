"""Measures full-size SDXL on a GPU: what each recipe is worth, and what batching and the server make of it.

    python -m benchmarks.gpu --part latency --results results/gpu      # one part; each takes under 9 minutes
    python -m benchmarks.gpu --results results/gpu                     # all parts
    python -m benchmarks.gpu --results results/gpu --table             # the table, from what is kept

Each figure is a line in <results>/<part>.jsonl as soon as it is measured. A section of a part that was ended is skipped
when the part is run again, and one for which no time is left (`--budget`, in seconds) is left out, with a line that
says so. Every shape is run before it is timed, the device is synchronised before a clock is read, repetitions go
through the variants in turn, and a compilation during a measurement marks its line. Figures are medians of their
repetitions with the 95 % interval of a median (from six on). Images are 1024x1024 in 20 guided steps if nothing else is
said. `--model tiny --device cpu --quick` shows that all works, and measures nothing. Knows recipes, engine and server
from outside; ignorant of how anything is computed.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchlib.load.arrivals import OpenLoop
from benchlib.load.workload import Workload
from benchlib.machine import describe_git, describe_machine, describe_packages, describe_torch
from benchlib.questions.batching.forecast import predict_latency
from benchlib.run import run_load
from benchlib.serving.engine.engine import Engine
from benchlib.serving.engine.options import EngineOptions
from benchlib.serving.model.loading import load_pipeline, resolve
from benchlib.serving.model.optimisations import graphs_made
from benchlib.serving.model.pipeline import SDXLPipeline
from benchlib.serving.model.torch_thread import on_torch_thread
from benchlib.serving.schemas import GenerateRequest
from benchlib.serving.server import Server
from benchlib.study.latency import in_window
from benchlib.study.likeness import psnr_db, ssim
from benchmarks.gpu_table import draw, read, table

EAGER = "bf16+channels-last+fused-qkv"
GRAPHS = f"{EAGER}+cudnn-tuned+cuda-graphs"
COMPILE_S = {
    "regional": 90.0,
    "compile": 150.0,
    "fastest": 90.0,
}  # to load and compile one shape, at a guess
SEEDS = (1, 2, 3)  # of the images that are compared
BUCKETS = (
    2,
    16,
)  # rows: two for each guided request; on an H100 eight rows were no faster than four times two
MIXED = (10, 20, 30, 40, 50)


class Book:
    """What is measured: a file of lines for a part, how long may be measured, and how much is asked for."""

    def __init__(self, part: str, options: argparse.Namespace) -> None:
        self.part, self.options = part, options
        self.folder = Path(options.results)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / f"{part}.jsonl"
        self.end_s = time.monotonic() + options.budget
        self.ended = {
            line["case"]
            for line in read(self.folder)
            if (line["part"], line["what"]) == (part, "ended")
        }
        side = {} if options.size is None else {"width": options.size, "height": options.size}
        self.shape: dict[str, int] = side

    def write(self, case: str, what: str, value: Any, **more: Any) -> None:
        line = {"part": self.part, "case": case, "what": what, "value": value} | more
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if what != "machine":
            shown = f"{value:.4g}" if isinstance(value, float) else value
            print(f"{self.part}, {case}: {what} {shown}" + (f" {more}" if more else ""), flush=True)

    @property
    def left_s(self) -> float:
        return self.end_s - time.monotonic()

    def begins(self, section: str, needs_s: float = 0.0) -> bool:
        """Whether `section` is to be measured: it was not, and there is time."""
        if section in self.ended:
            return False
        if not self.options.quick and self.left_s < needs_s:
            self.write(section, "left out", f"{self.left_s:.0f} s left, {needs_s:.0f} s needed")
            return False
        return True

    def can(self, case: str, recipe: str) -> bool:
        """Whether `recipe` applies here; if not, a line says why. A quick run compiles nothing."""
        if self.options.quick and any(word in recipe for word in ("compile", "fastest")):
            self.write(case, "left out", "a quick run compiles nothing")
            return False
        try:
            resolve(recipe, device=self.options.device)
        except ValueError as error:
            self.write(case, "left out", str(error))
            return False
        return True

    @contextmanager
    def trying(self, case: str) -> Iterator[None]:
        """What fails within leaves out `case`, with its reason, and the others go on: the machine may be lent."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever a compiler or a kernel raises
            self.write(case, "left out", f"{type(error).__name__}: {str(error).strip()[:300]}")

    def load(self, case: str, recipe: str) -> SDXLPipeline:
        began_s = time.monotonic()
        pipe = load_pipeline(self.options.model, device=self.options.device, recipe=recipe)
        self.shape = self.shape or {
            name: pipe.spec["showcase"][name] for name in ("width", "height")
        }
        self.write(case, "load_s", time.monotonic() - began_s, recipe=recipe)
        return pipe

    def requests(self, n: int = 1, *, steps: int = 20, seed: int = 1) -> list[GenerateRequest]:
        steps = min(steps, 3) if self.options.quick else steps
        prompt = "a lighthouse at dusk"
        return [
            GenerateRequest(prompt=prompt, num_inference_steps=steps, seed=seed + i, **self.shape)
            for i in range(n)
        ]


def starts_s(recipe: str) -> float:
    """Seconds to load and warm, with which to decide whether there is time."""
    return next((seconds for word, seconds in COMPILE_S.items() if word in recipe), 20.0)


def timed(
    book: Book, pipe: SDXLPipeline, case: str, n: int = 1, *, steps: int = 20, seed: int = 1
) -> list[Any]:
    """Write what one batch took; its images."""
    before = graphs_made()
    result = pipe.generate(book.requests(n, steps=steps, seed=seed))
    more = {"recompiled": graphs_made() - before} if graphs_made() > before else {}
    timings = result.timings
    parts = {name: getattr(timings, f"{name}_s") for name in ("encode", "denoise", "decode")}
    book.write(case, "image_s", timings.total_s / n, n=n, steps=steps, **parts, **more)
    for step_s in timings.step_s[1:]:
        book_step(book, case, step_s, n)
    return [np.asarray(image) for image in result.images]


def book_step(book: Book, case: str, step_s: float, n: int) -> None:
    line = {"part": book.part, "case": case, "what": "step_s", "value": step_s, "n": n}
    with book.path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def warm(book: Book, pipe: SDXLPipeline, case: str, n: int = 1) -> None:
    """Run a shape until it neither compiles nor captures a graph any more."""
    began_s = time.monotonic()
    for _ in range(2):
        pipe.generate(book.requests(n, steps=4))
    book.write(case, "warm_s", time.monotonic() - began_s, n=n)


@contextmanager
def peaks(book: Book, case: str) -> Iterator[None]:
    """Write the most GPU memory, in GiB, that was taken within, less what others had before."""
    if not torch.cuda.is_available() or book.options.device == "cpu":
        yield
        return
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    yield
    book.write(case, "allocated_gib", (torch.cuda.max_memory_allocated() - before[0]) / 2**30)
    book.write(case, "reserved_gib", (torch.cuda.max_memory_reserved() - before[1]) / 2**30)


def profiled(pipe: SDXLPipeline, requests: list[GenerateRequest]) -> Any:
    """Operators and kernels of a step, as torch's profiler tells them."""

    def step() -> Any:  # a profiler sees the operators of its own thread alone
        works = pipe.encode(requests)
        pipe.step(works)
        with torch.profiler.profile() as profile:
            pipe.step(works)
        return profile.key_averages()

    return on_torch_thread(step)


def attention(pipe: SDXLPipeline, requests: list[GenerateRequest]) -> list[str]:
    """What computed the attention in a step: operators' and kernels' names, shortened."""
    words = ("dot_product", "flash", "fmha", "sdpa")
    return sorted(
        {e.key[:80] for e in profiled(pipe, requests) if any(w in e.key.lower() for w in words)}
    )


def kernels(pipe: SDXLPipeline, requests: list[GenerateRequest]) -> list[tuple[str, int, float]]:
    """The kernels that take most of a step: name, shortened, calls, and milliseconds on the GPU."""
    events = [
        e for e in profiled(pipe, requests) if e.device_type == torch.autograd.DeviceType.CUDA
    ]
    events.sort(key=lambda event: -event.self_device_time_total)
    return [
        (event.key[:70], event.count, event.self_device_time_total / 1000) for event in events[:60]
    ]


def liken(book: Book, case: str, images: Sequence[Any]) -> None:
    """Write how near images of SEEDS are to those in fp32, which the case "fp32" leaves in a file."""
    path = book.folder / "reference.npz"
    if case == "fp32":
        np.savez_compressed(path, images=np.stack(images))
    elif path.is_file():
        for one, two in zip(np.load(path)["images"], images, strict=True):
            book.write(case, "psnr_db", psnr_db(one, two))
            book.write(case, "ssim", ssim(one, two))


# -- the parts --------------------------------------------------------------------------------------------------------


def latency(book: Book) -> None:
    """The ladder at batch 1: first what need not be compiled, in turn; then each compiled rung in turn with GRAPHS."""
    exact = book.options.exact
    graphs = "bf16, CUDA graphs"
    eager = {
        "bf16": "bf16",
        "bf16, channels-last, fused-qkv": EAGER,
        "bf16, cuDNN tuned": f"{EAGER}+cudnn-tuned",
        graphs: GRAPHS,
        "bf16, CUDA graphs, cuDNN attention": f"{GRAPHS}+sdpa-cudnn",
    }
    compiled = {
        "best": exact,
        "best, fp8": f"{exact}+fp8",
        "best, int8": f"{exact}+int8",
        "compiled": f"{EAGER}+compile",
        "best, cuDNN attention": f"{exact}+sdpa-cudnn",
    }
    pipes: dict[str, SDXLPipeline] = {}
    if book.begins("fp32"):
        if rung(book, pipes, "fp32", "fp32"):
            turns(book, pipes)
            del pipes["fp32"]  # all at once may not fit
        book.write("fp32", "ended", True)
    if book.begins("ladder"):
        for case, recipe in eager.items():
            rung(book, pipes, case, recipe)
        turns(book, pipes)
        book.write("ladder", "ended", True)
    for case, recipe in compiled.items():
        if book.begins(case, starts_s(recipe) + 30.0) and rung(book, pipes, case, recipe):
            turns(book, {name: pipes[name] for name in (graphs, case) if name in pipes})
            book.write(case, "ended", True)
            if case != "best":
                del pipes[case]


def rung(book: Book, pipes: dict[str, SDXLPipeline], case: str, recipe: str) -> bool:
    """Load, warm and try `recipe`, and put it into `pipes`; whether that went well."""
    if book.can(case, recipe):
        with book.trying(case):
            with peaks(book, case):
                pipe = book.load(case, recipe)
                warm(book, pipe, case)
                if torch.cuda.is_available():
                    torch.cuda.reset_peak_memory_stats()
                images = [timed(book, pipe, case, seed=seed)[0] for seed in SEEDS]
            liken(book, case, images)
            book.write(case, "attention", attention(pipe, book.requests()))
            pipes[case] = pipe
    return case in pipes


def turns(book: Book, pipes: dict[str, SDXLPipeline]) -> None:
    """An image of 30 steps each, back and forth, and one of 20 where few take part; fp32, which takes long, thrice."""
    longest_s = 0.0
    for number in range(1 if book.options.quick else 6):
        began_s = time.monotonic()
        if book.left_s < longest_s or ("fp32" in pipes and number > 2):
            break
        for case in list(pipes)[:: 1 if number % 2 == 0 else -1]:
            if len(pipes) <= 2 and case != "fp32":
                timed(book, pipes[case], case)
            timed(book, pipes[case], case, steps=30)
        longest_s = max(longest_s, time.monotonic() - began_s)


def throughput(book: Book) -> None:
    """Images a second with nothing but batches, and what a step takes by the batch."""
    exact = book.options.exact
    variants = {
        "compiled": (exact, (8,)),
        "fp8": (f"{exact}+fp8", (8,)),
        "int8": (f"{exact}+int8", (8,)),
        "eager": (EAGER, (1, 2) if book.options.quick else (1, 2, 4, 8)),
    }
    for case, (recipe, batches) in variants.items():
        if book.begins(case, starts_s(recipe) + 30.0 * len(batches)) and book.can(case, recipe):
            with book.trying(case):
                offline(book, case, recipe, batches)
            clear()


def offline(book: Book, case: str, recipe: str, batches: Sequence[int]) -> None:
    """Each batch is warmed and timed before the next one is compiled: six times where that takes a minute at most."""
    pipe = book.load(case, recipe)
    took_s = 0.0
    for n in batches:
        if n != batches[0] and book.left_s < took_s:
            break
        began_s = time.monotonic()
        warm(book, pipe, case, n)
        timed_s = time.monotonic()
        for number in range(1 if book.options.quick else 6):
            if number and (time.monotonic() - timed_s) * (number + 1) / number > 60.0:
                break
            timed(book, pipe, case, n)
        took_s = 1.5 * (time.monotonic() - began_s)
        book.write(case, "kernels", kernels(pipe, book.requests(n)), n=n)
    if case in ("fp8", "int8"):  # what changes the image; of the others the ladder tells
        n = batches[0]
        made = pipe.generate(book.requests(n)).images
        liken(book, case, [np.asarray(image) for image in made[: len(SEEDS)]])
    book.write(case, "ended", True)


def clear() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def serving(book: Book) -> None:
    """One model behind the engine and the server: what these add, and what they do under load."""
    recipe = EAGER if book.options.quick else book.options.exact
    if not book.can("server", recipe):
        return
    pipe = book.load("server", recipe)

    def engine(batching: str) -> Engine:
        size = book.shape["width"], book.shape["height"]
        options = EngineOptions(
            batching=batching, batch_buckets=BUCKETS, max_queue=1000, sizes=[size]
        )
        return Engine(pipe, options)

    def server(one: Engine) -> Server:
        return Server(
            lambda: one, host="127.0.0.1", port=0, name=one.batching, log_level="warning"
        ).start()

    own = engine("continuous")
    with server(own) as continuous:
        book.write("server", "step_times", continuous.spec["step_times"])
        if book.begins("overhead", 60.0):
            overhead(book, pipe, own, continuous)
        poisson(book, continuous, 1.6)
        mixed(book, {"continuous": continuous}, continuous.spec)
        with server(engine("serial")) as serial:
            mixed(book, {"serial": serial}, continuous.spec)
        for rate in () if book.options.quick else (1.2, 0.8):
            poisson(book, continuous, rate)


def overhead(book: Book, pipe: SDXLPipeline, own: Engine, server: Server) -> None:
    """The same image from the pipeline, the engine and the server, in turn: wall seconds as the caller sees them."""
    import httpx

    request = book.requests()[0]
    with httpx.Client(base_url=server.url, timeout=600) as client:
        body = request.model_dump()
        ways: dict[str, Callable[[], Any]] = {
            "bare": lambda: pipe.generate(request),  # on the torch thread, as the engine
            "engine": lambda: own.submit(request).future.result(),
            "server": lambda: client.post("/benchmark/generate", json=body).raise_for_status(),
        }
        for number in range(2 if book.options.quick else 15):
            for name in list(ways)[:: 1 if number % 2 == 0 else -1]:
                began_s, before = time.monotonic(), graphs_made()
                ways[name]()
                took_s = time.monotonic() - began_s
                if number:  # the first is a warm-up
                    more = {"recompiled": graphs_made() - before} if graphs_made() > before else {}
                    book.write("overhead", name, took_s, round=number, **more)
    book.write("overhead", "ended", True)


def poisson(book: Book, server: Server, rate: float) -> None:
    """Open loop at `rate` requests a second; p99 is a request's that was measured. Of the seeds 0 to 7, 1 is the one
    whose requests come nearest to 1.6 a second in these 70 s."""
    case, quick = f"poisson {rate}/s", book.options.quick
    duration_s = 2.0 if quick else 70.0
    if not book.begins(case, duration_s + 30.0):
        return
    before = graphs_made()
    run = run_load(
        server, OpenLoop(rate), Workload(num_inference_steps=3 if quick else 20, **book.shape), study="poisson",
        results=book.folder, duration_s=duration_s, warmup_s=0.5 if quick else 5.0, seed=1, label=f"poisson-{rate}",
    )  # fmt: skip
    told = run.summary()
    book.write(case, "rate_per_s", len(in_window(run.requests)) / duration_s)
    for name in ("throughput_images_per_s", "latency_p50_s", "latency_p95_s", "latency_p99_s"):
        more = {"interval": told.get(f"{name}_interval"), "valid": bool(told["valid"])}
        book.write(case, name, told.get(name), **more, recompiled=graphs_made() - before)
    book.write(case, "ended", True)


def mixed(book: Book, servers: dict[str, Server], spec: dict[str, Any]) -> None:
    """10 to 50 steps at 80 % of what serial can do by its step times, beside the simulator's prediction on the same."""
    quick = book.options.quick
    steps, duration_s = ((2, 3, 4), 2.0) if quick else (MIXED, 60.0)
    (times,) = spec["step_times"].values()
    alone_s = (
        times["encode_s"]["1"]
        + statistics.mean(steps) * times["step_s"]["2"]
        + times["decode_s"]["1"]
    )
    for name, server in servers.items():
        case = f"mixed, {name}"
        if not book.begins(case, duration_s + 30.0):
            continue
        before = graphs_made()
        run = run_load(
            server, OpenLoop(0.8 / alone_s), Workload(num_inference_steps=list(steps), **book.shape), study="mixed",
            results=book.folder, duration_s=duration_s, seed=1, label=f"mixed-{name}",
        )  # fmt: skip
        rows = in_window(run.requests)
        predicted = predict_latency(run.requests, spec, batching=name).loc[rows.index]
        more = {"n": len(rows), "rate": 0.8 / alone_s, "recompiled": graphs_made() - before}
        book.write(case, "mean_s", float(rows["latency_s"].mean()), **more)
        book.write(case, "p95_s", float(rows["latency_s"].quantile(0.95)))
        book.write(case, "predicted_mean_s", float(predicted.mean()))
        book.write(case, "ended", True)


def faithful(book: Book) -> None:
    """How near each recipe's images are to fp32's at equal seeds; those that other parts have told are left out."""
    known = {line["case"] for line in read(book.folder) if line["what"] == "psnr_db"}
    if not (book.folder / "reference.npz").is_file():
        known.discard("fp32")
    else:
        known.add("fp32")
    recipes = {
        name: name for name in ("fp32", "bf16", "baseline", "bf16+channels-last", "bf16+fused-qkv")
    }
    recipes |= {"fp8": "bf16+fp8", "int8": "bf16+int8"}
    for case, recipe in recipes.items():
        if case not in known and book.begins(case, 45.0) and book.can(case, recipe):
            with book.trying(case):
                pipe = book.load(case, recipe)
                made = [pipe.generate(book.requests(seed=seed)) for seed in SEEDS]
                liken(book, case, [np.asarray(one.images[0]) for one in made])
                book.write(case, "ended", True)
                del pipe
            clear()


PARTS = {"latency": latency, "throughput": throughput, "serving": serving, "faithful": faithful}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--part", action="append", choices=PARTS, help="one part, or more; all if not given"
    )
    parser.add_argument(
        "--results", default="results/gpu", help="the folder that keeps the figures"
    )
    parser.add_argument(
        "--table", action="store_true", help="print the table of what is kept, and measure nothing"
    )
    parser.add_argument(
        "--draw", action="store_true", help="draw what is kept into its folder, and measure nothing"
    )
    parser.add_argument("--model", default="sdxl-random")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--exact", default="fastest-exact", help="the recipe that counts as the best exact one"
    )
    parser.add_argument("--size", type=int, help="pixels of a side; the model's own if not given")
    parser.add_argument("--budget", type=float, default=520.0, help="seconds for each part")
    parser.add_argument(
        "--quick", action="store_true", help="few steps and repetitions, nothing compiled"
    )
    options = parser.parse_args(arguments)
    if not (options.table or options.draw):
        for part in options.part or PARTS:
            book = Book(part, options)
            device = str(resolve("baseline", device=options.device)[1])
            machine = {
                "machine": describe_machine(device),
                "torch": describe_torch(),
                "packages": describe_packages(),
            }
            asked = {name: value for name, value in vars(options).items() if name != "results"}
            book.write(
                "all", "machine", machine | {"git": describe_git(Path(__file__).parent), **asked}
            )
            PARTS[part](book)
            clear()
    if options.draw:
        draw(Path(options.results))
    print(table(Path(options.results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
