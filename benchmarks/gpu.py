"""Measures full-size SDXL on a GPU: the gain of each recipe, of batching, and the server's cost.

    python -m benchmarks.gpu --part latency --results results/gpu   # one part: under 9 minutes
    python -m benchmarks.gpu --results results/gpu                  # all parts
    python -m benchmarks.gpu --results results/gpu --table          # the table of the kept figures

Each figure is a line in <results>/<part>.jsonl as soon as it is measured. A part that is run again
skips its finished sections. If too little time is left for a section (`--budget`, in seconds), a
line says so.

Every shape is run before it is timed, and the device is synchronised before a clock is read.
Repetitions go through the variants in turn. A compilation during a measurement marks its line.
Figures are medians of their repetitions. From six repetitions on, they have the 95 % interval of a
median. Images are 1024x1024 in 20 guided steps unless a line says otherwise. `--model tiny --device
cpu --quick` shows that every part works, and measures nothing.

Knows recipes, engine and server from outside; ignorant of how anything is computed.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchlib.load.arrivals import OpenLoop
from benchlib.load.workload import Workload
from benchlib.machine import describe_git, describe_machine, describe_packages, describe_torch
from benchlib.questions.batching.forecast import predict_latency
from benchlib.questions.settings.pictures import (
    Album,
    own_prompts,
    pictures_needed,
    take_pictures,
)
from benchlib.run import run_load
from benchlib.serving.door_options import DoorOptions
from benchlib.serving.engine.engine import Engine
from benchlib.serving.engine.options import EngineOptions
from benchlib.serving.image_links import ImageLinks
from benchlib.serving.model.loading import load_pipeline, resolve
from benchlib.serving.model.optimisations import graphs_made
from benchlib.serving.model.pipeline import SDXLPipeline
from benchlib.serving.model.torch_thread import on_torch_thread
from benchlib.serving.schemas import GenerateRequest
from benchlib.serving.server import Server
from benchlib.study.latency import in_window
from benchlib.study.likeness import psnr_db, ssim
from benchlib.study.picture_quality import PAIRS_NEEDED, Pair, judge_pictures
from benchlib.telemetry import GIB
from benchmarks.gpu_table import draw, read, table
from benchmarks.peers import main as run_peers

EAGER = "bf16+channels-last+fused-qkv"
GRAPHS = f"{EAGER}+cudnn-tuned+cuda-graphs"
# Estimated seconds of loading and compiling one shape, by a word in the recipe's name.
COMPILE_S = {"regional": 90.0, "compile": 150.0, "fastest": 90.0}
SEEDS = (1, 2, 3)  # of the images that are compared
# Rows of the UNet, two for each guided request. On an H100, eight rows were no faster than four
# times two.
BUCKETS = (2, 16)
MIXED_STEPS = (10, 20, 30, 40, 50)


class Book:
    """The file of one part's figures, the time left, and the requests and models of the options."""

    def __init__(self, part: str, options: argparse.Namespace) -> None:
        self.part = part
        self.options = options
        self.folder = Path(options.results)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / f"{part}.jsonl"
        self.end_s = time.monotonic() + options.budget
        self.ended = set()
        for line in read(self.folder):
            if line["part"] == part and line["what"] == "ended":
                self.ended.add(line["case"])
        self.shape: dict[str, int] = {}
        if options.size is not None:
            self.shape = {"width": options.size, "height": options.size}

    def write(self, case: str, what: str, value: Any, **more: Any) -> None:
        """Keep a figure, and print it."""
        self.keep(case, what, value, **more)
        if what == "machine":
            return
        shown = f"{value:.4g}" if isinstance(value, float) else value
        words = f"{self.part}, {case}: {what} {shown}"
        if more:
            words += f" {more}"
        print(words, flush=True)

    def keep(self, case: str, what: str, value: Any, **more: Any) -> None:
        """Append a figure to the part's file."""
        line = {"part": self.part, "case": case, "what": what, "value": value}
        with self.path.open("a") as file:
            file.write(json.dumps(line | more) + "\n")

    @property
    def left_s(self) -> float:
        return self.end_s - time.monotonic()

    def begins(self, section: str, needs_s: float = 0.0) -> bool:
        """Whether `section` has not been measured and there is time for it."""
        if section in self.ended:
            return False
        if not self.options.quick and self.left_s < needs_s:
            self.write(section, "left out", f"{self.left_s:.0f} s left, {needs_s:.0f} s needed")
            return False
        return True

    def can(self, case: str, recipe: str) -> bool:
        """Whether `recipe` works here; if not, a line says why. A quick run compiles nothing."""
        compiles = "compile" in recipe or "fastest" in recipe
        if self.options.quick and compiles:
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
        """Leave out `case` after an error, and write a line with the reason. The other cases go on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever a compiler or a kernel raises
            self.write(case, "left out", f"{type(error).__name__}: {str(error).strip()[:300]}")

    def load(self, case: str, recipe: str) -> SDXLPipeline:
        began_s = time.monotonic()
        pipe = load_pipeline(self.options.model, device=self.options.device, recipe=recipe)
        if not self.shape:
            showcase = pipe.spec["showcase"]
            self.shape = {"width": showcase["width"], "height": showcase["height"]}
        self.write(case, "load_s", time.monotonic() - began_s, recipe=recipe)
        return pipe

    def requests(
        self, n: int = 1, *, steps: int = 20, seed: int = 1, prompt: str = "a lighthouse at dusk"
    ) -> list[GenerateRequest]:
        if self.options.quick:
            steps = min(steps, 3)
        first = GenerateRequest(
            prompt=prompt,
            num_inference_steps=steps,
            **self.shape,
        )
        return [first.model_copy(update={"seed": seed + number}) for number in range(n)]


def starts_s(recipe: str) -> float:
    """Estimated seconds to load and warm `recipe`."""
    for word, seconds in COMPILE_S.items():
        if word in recipe:
            return seconds
    return 20.0


def recompiled(graphs_before: int) -> dict[str, int]:
    """The mark of a line if its measurement compiled or recorded a graph, else nothing."""
    new = graphs_made() - graphs_before
    return {"recompiled": new} if new else {}


def timed(
    book: Book, pipe: SDXLPipeline, case: str, n: int = 1, *, steps: int = 20, seed: int = 1
) -> list[Any]:
    """Write the times of one batch; returns its images."""
    graphs_before = graphs_made()
    result = pipe.generate(book.requests(n, steps=steps, seed=seed))
    timings = result.timings
    book.write(
        case,
        "image_s",
        timings.total_s / n,
        n=n,
        steps=steps,
        encode=timings.encode_s,
        denoise=timings.denoise_s,
        decode=timings.decode_s,
        **recompiled(graphs_before),
    )
    for step_s in timings.step_s[1:]:
        book.keep(case, "step_s", step_s, n=n)
    return [np.asarray(image) for image in result.images]


def warm(book: Book, pipe: SDXLPipeline, case: str, n: int = 1) -> None:
    """Run a shape until it compiles and records no more graphs."""
    began_s = time.monotonic()
    for _ in range(2):
        pipe.generate(book.requests(n, steps=4))
    book.write(case, "warm_s", time.monotonic() - began_s, n=n)


@contextmanager
def peaks(book: Book, case: str) -> Iterator[None]:
    """Write the peak, in GiB, of the GPU memory that the block takes in addition."""
    if not torch.cuda.is_available() or book.options.device == "cpu":
        yield
        return
    gc.collect()
    torch.cuda.empty_cache()
    allocated_before = torch.cuda.memory_allocated()
    reserved_before = torch.cuda.memory_reserved()
    yield
    allocated = torch.cuda.max_memory_allocated() - allocated_before
    reserved = torch.cuda.max_memory_reserved() - reserved_before
    book.write(case, "allocated_gib", allocated / GIB)
    book.write(case, "reserved_gib", reserved / GIB)


def profiled(pipe: SDXLPipeline, requests: list[GenerateRequest]) -> Any:
    """The operators and kernels of a step, by torch's profiler."""

    # The profiler sees only the operators of its own thread, so it runs on the torch thread.
    def step() -> Any:
        works = pipe.encode(requests)
        pipe.step(works)
        with torch.profiler.profile() as profile:
            pipe.step(works)
        return profile.key_averages()

    return on_torch_thread(step)


def attention(pipe: SDXLPipeline, requests: list[GenerateRequest]) -> list[str]:
    """The names, shortened, of the operators and kernels that computed the attention in a step."""
    words = ("dot_product", "flash", "fmha", "sdpa")
    names = set()
    for event in profiled(pipe, requests):
        if any(word in event.key.lower() for word in words):
            names.add(event.key[:80])
    return sorted(names)


def kernels(pipe: SDXLPipeline, requests: list[GenerateRequest]) -> list[tuple[str, int, float]]:
    """The kernels that take most of a step: shortened name, calls, and milliseconds on the GPU."""
    on_gpu = torch.autograd.DeviceType.CUDA
    events = [event for event in profiled(pipe, requests) if event.device_type == on_gpu]
    events.sort(key=lambda event: -event.self_device_time_total)
    longest = []
    for event in events[:60]:
        took_ms = event.self_device_time_total / 1000
        longest.append((event.key[:70], event.count, took_ms))
    return longest


def write_likeness(book: Book, case: str, images: Sequence[Any]) -> None:
    """Write the likeness of the images of SEEDS to fp32's images, which the case "fp32" keeps."""
    path = book.folder / "reference.npz"
    if case == "fp32":
        np.savez_compressed(path, images=np.stack(images))
    elif path.is_file():
        references = np.load(path)["images"]
        for reference, image in zip(references, images, strict=True):
            book.write(case, "psnr_db", psnr_db(reference, image))
            book.write(case, "ssim", ssim(reference, image))


# -- the parts -------------------------------------------------------------------------------------


def latency(book: Book) -> None:
    """Measure the ladder at batch 1: first the eager rungs, then each compiled rung beside GRAPHS."""
    # 1) The rungs
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

    # 2) fp32 by itself, since all pipelines at once may not fit
    pipes: dict[str, SDXLPipeline] = {}
    if book.begins("fp32"):
        if rung(book, pipes, "fp32", "fp32"):
            turns(book, pipes)
            pipes.pop("fp32").close()
        book.write("fp32", "ended", True)

    # 3) Without a compiler
    if book.begins("ladder"):
        for case, recipe in eager.items():
            rung(book, pipes, case, recipe)
        turns(book, pipes)
        book.write("ladder", "ended", True)

    # 4) Compiled, each beside GRAPHS
    for case, recipe in compiled.items():
        if not book.begins(case, starts_s(recipe) + 30.0):
            continue
        if rung(book, pipes, case, recipe):
            turns(book, {name: pipes[name] for name in (graphs, case) if name in pipes})
            book.write(case, "ended", True)
            if case != "best":
                pipes.pop(case).close()


def rung(book: Book, pipes: dict[str, SDXLPipeline], case: str, recipe: str) -> bool:
    """Load, warm and try `recipe`, and put its pipeline into `pipes`. Returns whether it worked."""
    if book.can(case, recipe):
        with book.trying(case):
            with peaks(book, case):
                pipe = book.load(case, recipe)
                warm(book, pipe, case)
                if torch.cuda.is_available():
                    torch.cuda.reset_peak_memory_stats()
                images = [timed(book, pipe, case, seed=seed)[0] for seed in SEEDS]
            write_likeness(book, case, images)
            book.write(case, "attention", attention(pipe, book.requests()))
            pipes[case] = pipe
    return case in pipes


def turns(book: Book, pipes: dict[str, SDXLPipeline]) -> None:
    """Time each pipeline's image of 30 steps, in rounds back and forth.

    If there are at most two pipelines, an image of 20 steps is timed too. There are six rounds;
    fp32, which takes long, gets three.
    """
    rounds = 1 if book.options.quick else 6
    if "fp32" in pipes:
        rounds = min(rounds, 3)
    longest_s = 0.0
    for number in range(rounds):
        began_s = time.monotonic()
        if book.left_s < longest_s:
            break
        for case in back_and_forth(pipes, number):
            if len(pipes) <= 2 and case != "fp32":
                timed(book, pipes[case], case)
            timed(book, pipes[case], case, steps=30)
        longest_s = max(longest_s, time.monotonic() - began_s)


def back_and_forth(names: Iterable[str], number: int) -> list[str]:
    """The order of round `number`. Every second round goes backwards, so that drift hits all alike."""
    order = list(names)
    if number % 2 == 1:
        order.reverse()
    return order


def throughput(book: Book) -> None:
    """Measure images per second in full batches without a server, and step times by batch size."""
    exact = book.options.exact
    variants: dict[str, tuple[str, tuple[int, ...]]] = {
        "compiled": (exact, (8,)),
        "fp8": (f"{exact}+fp8", (8,)),
        "int8": (f"{exact}+int8", (8,)),
        "eager": (EAGER, (1, 2, 4, 8)),
    }
    if book.options.quick:
        variants["eager"] = (EAGER, (1, 2))
    for case, (recipe, batches) in variants.items():
        needs_s = starts_s(recipe) + 30.0 * len(batches)
        if book.begins(case, needs_s) and book.can(case, recipe):
            with book.trying(case):
                offline(book, case, recipe, batches)
            clear()


def offline(book: Book, case: str, recipe: str, batches: Sequence[int]) -> None:
    """Warm and time each batch before the next batch is compiled."""
    pipe = book.load(case, recipe)
    # 1) Time each batch
    needs_s = 0.0
    for n in batches:
        if n != batches[0] and book.left_s < needs_s:
            break
        began_s = time.monotonic()
        warm(book, pipe, case, n)
        repeat(book, pipe, case, n)
        needs_s = 1.5 * (time.monotonic() - began_s)
        book.write(case, "kernels", kernels(pipe, book.requests(n)), n=n)

    # 2) Compare the images of fp8 and int8; the ladder compares the others
    if case in ("fp8", "int8"):
        n = batches[0]
        images = pipe.generate(book.requests(n)).images[: len(SEEDS)]
        write_likeness(book, case, [np.asarray(image) for image in images])
    book.write(case, "ended", True)


def repeat(book: Book, pipe: SDXLPipeline, case: str, n: int) -> None:
    """Time a batch six times, or as often as 60 s allow."""
    repetitions = 1 if book.options.quick else 6
    began_s = time.monotonic()
    for number in range(repetitions):
        took_s = time.monotonic() - began_s
        if number > 0 and took_s / number * (number + 1) > 60.0:
            break
        timed(book, pipe, case, n)


def clear() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def serving(book: Book) -> None:
    """Measure the time that the engine and the server add, and their latency under load."""
    recipe = EAGER if book.options.quick else book.options.exact
    if not book.can("server", recipe):
        return
    pipe = book.load("server", recipe)

    own = engine(book, pipe, "continuous")
    with serve(own) as continuous:
        book.write("server", "step_times", continuous.spec["step_times"])
        if book.begins("overhead", 60.0):
            overhead(book, pipe, own, continuous)
        poisson(book, continuous, 1.6)
        mixed(book, {"continuous": continuous}, continuous.spec)
        with serve(engine(book, pipe, "serial")) as serial:
            mixed(book, {"serial": serial}, continuous.spec)
        if not book.options.quick:
            poisson(book, continuous, 1.2)
            poisson(book, continuous, 0.8)


def engine(book: Book, pipe: SDXLPipeline, batching: str) -> Engine:
    size = book.shape["width"], book.shape["height"]
    options = EngineOptions(batching=batching, batch_buckets=BUCKETS, max_queue=1000, sizes=[size])
    return Engine(pipe, options)


def serve(one: Engine) -> Server:
    return Server(
        lambda: one,
        host="127.0.0.1",
        port=0,
        name=one.options.batching,
        log_level="warning",
        door=DoorOptions(),
        links=ImageLinks(),
        limits=None,
    ).start()


def overhead(book: Book, pipe: SDXLPipeline, own: Engine, server: Server) -> None:
    """Time the same image from the pipeline, the engine and the server in turn, at the caller."""
    import httpx

    request = book.requests()[0]
    with httpx.Client(base_url=server.url, timeout=600) as client:
        body = request.model_dump()
        ways: dict[str, Callable[[], Any]] = {
            "bare": lambda: pipe.generate(request),  # on the torch thread, as the engine
            "engine": lambda: own.submit(request).future.result(),
            "server": lambda: client.post("/benchmark/generate", json=body).raise_for_status(),
        }
        rounds = 2 if book.options.quick else 15
        for number in range(rounds):
            for name in back_and_forth(ways, number):
                graphs_before = graphs_made()
                began_s = time.monotonic()
                ways[name]()
                took_s = time.monotonic() - began_s
                if number > 0:  # the first round is a warm-up
                    mark = recompiled(graphs_before)
                    book.write("overhead", name, took_s, round=number, **mark)
    book.write("overhead", "ended", True)


def promise(book: Book) -> None:
    """Measure a server's p99 at 0.95 of its own rate of full batches, for as long as there is time.

    MLPerf's SDXL allows 20 s. The server's /metrics is read during the run, and kept.
    """
    # 1) The rate of full batches
    recipe = EAGER if book.options.quick else book.options.exact
    most = BUCKETS[-1] // 2
    if not book.can("server", recipe) or not book.begins("promise", starts_s(recipe) + 60.0):
        return
    pipe = book.load("server", recipe)
    warm(book, pipe, "full batches", most)
    images_s = []
    for _ in range(2 if book.options.quick else 6):
        began_s = time.monotonic()
        timed(book, pipe, "full batches", most)
        images_s.append((time.monotonic() - began_s) / most)
    rate = 0.95 / statistics.median(images_s)
    book.write("full batches", "images_per_s", rate / 0.95)

    # 2) Poisson arrivals
    with serve(engine(book, pipe, "continuous")) as server, metrics_of(server, book):
        duration_s = max(30.0, min(600.0, book.left_s - 45.0))  # left out if that is too long
        poisson(book, server, rate, "promise", duration_s)


@contextmanager
def metrics_of(server: Server, book: Book) -> Iterator[None]:
    """Read /metrics every second meanwhile. Write the slowest answer; keep the last page in a file."""
    import httpx

    ended = threading.Event()
    took_s: list[float] = []

    def watch() -> None:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            while not ended.wait(0.2 if book.options.quick else 1.0):
                began_s = time.monotonic()
                page = client.get("/metrics").raise_for_status().text
                took_s.append(time.monotonic() - began_s)
                (book.folder / "metrics.txt").write_text(page)

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            yield
        finally:
            ended.set()
        watching.result()
    if took_s:
        book.write("metrics", "slowest_s", max(took_s), n=len(took_s))


def poisson(
    book: Book, server: Server, rate: float, case: str = "", duration_s: float = 70.0
) -> None:
    """Measure an open loop at `rate` requests per second.

    Seed 1 gives nearly the nominal number of requests. Of the first eight seeds it is nearest to
    1.6 per second over the whole run.
    """
    case = case or f"poisson {rate}/s"
    quick = book.options.quick
    if quick:
        duration_s = 2.0
    if not book.begins(case, duration_s + 30.0):
        return
    graphs_before = graphs_made()
    run = run_load(
        server,
        OpenLoop(rate),
        Workload(num_inference_steps=3 if quick else 20, **book.shape),
        study="poisson",
        results=book.folder,
        duration_s=duration_s,
        warmup_s=0.5 if quick else 5.0,
        seed=1,
        label=f"poisson-{rate:.3g}",
    )
    summary = run.summary()
    book.write(case, "asked_per_s", rate, duration_s=duration_s)
    rows = in_window(run.requests)
    book.write(case, "rate_per_s", len(rows) / duration_s)
    # A run that can't keep up has no p99, so the rows' own is written beside the summary's
    of_rows = {"n": len(rows), "images": int(rows["latency_s"].notna().sum())}
    book.write(case, "rows_p99_s", float(rows["latency_s"].quantile(0.99)), **of_rows)
    for name in ("throughput_images_per_s", "latency_p50_s", "latency_p95_s", "latency_p99_s"):
        book.write(
            case,
            name,
            summary.get(name),
            interval=summary.get(f"{name}_interval"),
            valid=bool(summary["valid"]),
            recompiled=graphs_made() - graphs_before,
        )
    book.write(case, "ended", True)


def mixed(book: Book, servers: dict[str, Server], spec: dict[str, Any]) -> None:
    """Measure requests of 10 to 50 steps at 80 % of serial's capacity, beside the prediction.

    The simulator predicts the same requests. Serial's capacity follows from the step times in
    `spec`.
    """
    # 1) The load
    steps = MIXED_STEPS
    duration_s = 60.0
    if book.options.quick:
        steps = (2, 3, 4)
        duration_s = 2.0
    (times,) = spec["step_times"].values()
    denoise_s = statistics.mean(steps) * times["step_s"]["2"]
    alone_s = times["encode_s"]["1"] + denoise_s + times["decode_s"]["1"]
    rate = 0.8 / alone_s

    # 2) Each server under this load
    for name, server in servers.items():
        case = f"mixed, {name}"
        if not book.begins(case, duration_s + 30.0):
            continue
        graphs_before = graphs_made()
        run = run_load(
            server,
            OpenLoop(rate),
            Workload(num_inference_steps=list(steps), **book.shape),
            study="mixed",
            results=book.folder,
            duration_s=duration_s,
            seed=1,
            label=f"mixed-{name}",
        )
        rows = in_window(run.requests)
        new_graphs = graphs_made() - graphs_before
        predicted_s = predict_latency(run.requests, spec, batching=name).loc[rows.index]
        mean_s = float(rows["latency_s"].mean())
        book.write(case, "mean_s", mean_s, n=len(rows), rate=rate, recompiled=new_graphs)
        book.write(case, "p95_s", float(rows["latency_s"].quantile(0.95)))
        book.write(case, "predicted_mean_s", float(predicted_s.mean()))
        book.write(case, "ended", True)


def faithful(book: Book) -> None:
    """Write the likeness of each recipe's images to fp32's at equal seeds.

    Cases that other parts have compared are left out.
    """
    # 1) The cases that are compared already
    compared = {line["case"] for line in read(book.folder) if line["what"] == "psnr_db"}
    if (book.folder / "reference.npz").is_file():
        compared.add("fp32")
    else:
        compared.discard("fp32")

    # 2) The others; fp32 is the first, since its images are the reference
    recipes = {
        "fp32": "fp32",
        "bf16": "bf16",
        "baseline": "baseline",
        "bf16+channels-last": "bf16+channels-last",
        "bf16+fused-qkv": "bf16+fused-qkv",
        "fp8": "bf16+fp8",
        "int8": "bf16+int8",
    }
    for case, recipe in recipes.items():
        if case not in compared and book.begins(case, 45.0) and book.can(case, recipe):
            with book.trying(case):
                pipe = book.load(case, recipe)
                results = [pipe.generate(book.requests(seed=seed)) for seed in SEEDS]
                write_likeness(book, case, [np.asarray(result.images[0]) for result in results])
                book.write(case, "ended", True)
                pipe.close()
            clear()


def pictures(book: Book) -> None:
    """Judge the pictures of each recipe beside plain bf16's, over a list of prompts.

    The verdict is that of notebook 05. A recipe that changes the algorithm is judged over all
    prompts, an exact one over the fewest with a verdict. bf16's pictures are made anew in each
    call: from their seeds, they are the same every time.
    """
    # 1) What is to be judged
    exact = book.options.exact
    recipes = {
        "fp32": "fp32",
        "bf16, CUDA graphs": GRAPHS,
        "best": exact,
        "fp8": f"{exact}+fp8",
        "int8": f"{exact}+int8",
        "VAE tiling": f"{EAGER}+vae-tiling",
    }
    changing = ("fp8", "int8", "VAE tiling")
    cases = [case for case in recipes if case not in book.ended]
    if not cases:
        return
    prompts = own_prompts()
    if book.options.quick:
        prompts = prompts[:PAIRS_NEEDED]

    # 2) The pictures of bf16, and of each other recipe
    baseline = album_of(book, "bf16", "bf16", prompts, limit_s=book.left_s / 2)
    image_s = statistics.mean(baseline.times_s)
    for case in cases:
        recipe = recipes[case]
        needed = pictures_needed(prompts, exact=case not in changing)
        needs_s = starts_s(recipe) + 1.5 * PAIRS_NEEDED * image_s
        if book.begins(case, needs_s) and book.can(case, recipe):
            with book.trying(case):
                options = {"limit_s": book.left_s, "baseline": baseline}
                album = album_of(book, case, recipe, prompts[:needed], **options)
                write_quality(book, case, album.pairs)
                book.write(case, "ended", True)
            clear()


def album_of(book: Book, case: str, recipe: str, prompts: Sequence[str], **options: Any) -> Album:
    """The pictures of a recipe; `options` go to `take_pictures`."""
    pipe = book.load(case, recipe)
    steps = 1 if book.options.quick else 20

    def make(prompt: str, seed: int) -> tuple[Any, float]:
        result = pipe.generate(book.requests(steps=steps, seed=seed, prompt=prompt))
        return result.images[0], result.timings.total_s

    try:
        return take_pictures(make, prompts, timed=2, **options)
    finally:
        pipe.close()


def write_quality(book: Book, case: str, pairs: Sequence[Pair]) -> None:
    """Write the verdict, the means with their intervals, and each pair."""
    quality = judge_pictures(pairs)
    book.write(
        case,
        "pictures",
        quality.verdict,
        reason=quality.reason,
        pairs=quality.pairs,
        identical=quality.identical,
    )
    for metric, mean in quality.means.items():
        if mean is not None and math.isfinite(mean):
            book.write(case, f"mean_{metric}", mean, interval=quality.intervals[metric])
    for pair in pairs:
        decibels = None if pair.identical else pair.psnr_db
        figures = {"psnr_db": decibels, "flip": pair.flip}
        book.keep(case, "pair_ssim", pair.ssim, prompt=pair.prompt, seed=pair.seed, **figures)


def peers(book: Book) -> None:
    """Measure our pipeline beside diffusers' own, plain and compiled, each in a process.

    `--side` adds others (`peers.py`), such as a server by its URL.
    """
    sides = ["stock=stock:bf16", "hf compiled=hf:bf16", f"ours=ours:{book.options.exact}"]
    if book.options.quick:
        sides = ["stock=stock:baseline", "ours=ours:baseline"]
    if book.begins("peers", 300.0):
        sides += book.options.side
        rounds = ["--rounds", "1" if book.options.quick else "6"]
        _run_peers(book, [f"--side={side}" for side in sides] + rounds)


def starts(book: Book) -> None:
    """Measure the seconds from nothing to the first image, with nothing kept and again."""
    recipe = "baseline" if book.options.quick else book.options.exact
    if book.begins("starts", 180.0):
        _run_peers(book, [f"--start=ours=ours:{recipe}"])


def _run_peers(book: Book, arguments: list[str]) -> None:
    request = book.requests()[0]
    usual = 128 if book.options.model == "tiny" else 1024
    size = book.options.size or usual
    arguments += ["--model", book.options.model, "--device", book.options.device]
    arguments += ["--size", str(size), "--budget", str(book.left_s)]
    arguments += ["--shape", f"1x{request.num_inference_steps}"]
    run_peers([str(book.path), *arguments])
    book.write(book.part, "ended", True)


PARTS = {
    "latency": latency,
    "throughput": throughput,
    "serving": serving,
    "promise": promise,
    "faithful": faithful,
    "pictures": pictures,
    "peers": peers,
    "starts": starts,
}


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
        "--table", action="store_true", help="print the table of kept figures, and measure nothing"
    )
    parser.add_argument(
        "--draw", action="store_true", help="draw the kept figures, and measure nothing"
    )
    parser.add_argument("--model", default="sdxl-random")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--exact", default="fastest-exact", help="the recipe that counts as the best exact one"
    )
    parser.add_argument(
        "--side", action="append", default=[], help="a further side of `peers`, as peers.py has it"
    )
    parser.add_argument("--size", type=int, help="pixels of a side; the model's own if not given")
    parser.add_argument("--budget", type=float, default=520.0, help="seconds for each part")
    parser.add_argument(
        "--quick", action="store_true", help="few steps and repetitions, nothing compiled"
    )
    options = parser.parse_args(arguments)

    # 1) Measure
    if not (options.table or options.draw):
        for part in options.part or PARTS:
            book = Book(part, options)
            device = str(resolve("baseline", device=options.device)[1])
            machine = {
                "machine": describe_machine(device),
                "torch": describe_torch(),
                "packages": describe_packages(),
            }
            machine["git"] = describe_git(Path(__file__).parent)
            chosen = {name: value for name, value in vars(options).items() if name != "results"}
            book.write("all", "machine", machine | chosen)
            PARTS[part](book)
            clear()

    # 2) Show
    if options.draw:
        draw(Path(options.results))
    print(table(Path(options.results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
