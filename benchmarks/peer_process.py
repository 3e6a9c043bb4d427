"""One side of `peers.py`: a model in a process of its own, which makes images as it is told.

    python benchmarks/peer_process.py --kind hf --recipe bf16 --model sdxl-random

Each line of standard input is a request in JSON; each line of standard output is its answer. The
first answer comes when the model is loaded. `benchlib` is imported from PYTHONPATH, so an older
commit can be a side, too. Ignorant of the other sides, and of who is faster.

| kind | what it is |
|---|---|
| ours | our pipeline with a recipe |
| stock | diffusers' own pipeline over the same weights, in the recipe's dtype |
| hf | the same, compiled as Hugging Face's guide says: UNet and decoder, channels-last, fused QKV |
"""

from __future__ import annotations

import time

BEGAN_S = time.perf_counter()

import argparse  # noqa: E402 - the imports are part of a start
import gc  # noqa: E402
import hashlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
from collections import Counter  # noqa: E402
from collections.abc import Callable  # noqa: E402
from typing import Any  # noqa: E402

import benchlib as bl  # noqa: E402

load_pipeline = bl.load_pipeline  # as a notebook: all that it needs is imported here

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchlib.serving.model.torch_thread import on_torch_thread  # noqa: E402

Make = Callable[[dict[str, Any]], list[Any]]
PROMPT = "a lighthouse at dusk"
PARTS: dict[str, float] = {}  # the stages of our latest images; others don't tell


def ours(pipe: Any) -> Make:
    """Makes images with our pipeline: one call for all of a request's images."""
    from benchlib.serving.schemas import GenerateRequest

    def make(asked: dict[str, Any]) -> list[Any]:
        requests = [
            GenerateRequest(
                prompt=PROMPT,
                num_inference_steps=asked["steps"],
                guidance_scale=asked["guidance"],
                seed=asked["seed"] + number,
                width=asked["side"],
                height=asked["side"],
            )
            for number in range(asked["n"])
        ]
        result = pipe.generate(requests)
        timings = result.timings
        PARTS.update(
            encode_s=timings.encode_s, denoise_s=timings.denoise_s, decode_s=timings.decode_s
        )
        images: list[Any] = result.images
        return images

    return make


def stock(pipe: Any) -> Make:
    """Makes images with diffusers' own pipeline."""
    pipe.set_progress_bar_config(disable=True)

    def make(asked: dict[str, Any]) -> list[Any]:
        seeds = range(asked["seed"], asked["seed"] + asked["n"])
        images: list[Any] = pipe(
            [PROMPT] * asked["n"],
            num_inference_steps=asked["steps"],
            guidance_scale=asked["guidance"],
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            width=asked["side"],
            height=asked["side"],
        ).images
        return images

    return make


def compile_as_guided(pipe: Any) -> None:
    """Compile a stock pipeline as the guide says.

    Source: https://huggingface.co/docs/diffusers/v0.34.0/optimization/fp16, with `reduce-overhead`.
    """
    pipe.fuse_qkv_projections()
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.vae.to(memory_format=torch.channels_last)
    pipe.unet = torch.compile(pipe.unet, mode="reduce-overhead", fullgraph=True)
    pipe.vae.decode = torch.compile(pipe.vae.decode, mode="reduce-overhead", fullgraph=True)


def load(options: argparse.Namespace) -> tuple[Make, Any]:
    """Returns what makes images, and our pipeline."""
    pipe = load_pipeline(options.model, device=options.device, recipe=options.recipe)
    if options.kind == "ours":
        return ours(pipe), pipe
    plain = pipe.diffusers
    if options.kind == "hf":
        compile_as_guided(plain)
    return stock(plain), pipe


def answer(asked: dict[str, Any], make: Make, pipe: Any) -> dict[str, Any]:
    """Carry out a request: make images, or list the kernels of a step."""
    if "kernels" in asked:
        return {"kernels": kernels(pipe, asked)}
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    began_s = time.perf_counter()
    images = make(asked)
    took_s = time.perf_counter() - began_s
    pixels = np.stack([np.asarray(image) for image in images])
    if asked.get("save"):
        np.save(asked["save"], pixels)
    peak_gib = None
    if torch.cuda.is_available():
        peak_gib = torch.cuda.max_memory_allocated() / 2**30
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()[:12]
    return {
        "seconds": took_s,
        "allocated_gib": peak_gib,
        "digest": digest,
        "parts": PARTS,
        "compile_s": compile_times(),
    }


def compile_times() -> dict[str, float]:
    """The seconds that torch's compiler has taken so far, by its own names; the longest first.

    They overlap: `_compile.compile_inner` is the whole, and `bytecode_tracing` dynamo's part.
    """
    if "torch._dynamo.utils" not in sys.modules:  # its import takes seconds
        return {}
    metrics = torch._dynamo.utils.compilation_time_metrics
    times_s = {name: sum(times) for name, times in metrics.items()}
    longest = sorted(times_s.items(), key=lambda one: -one[1])
    return {name: round(seconds, 3) for name, seconds in longest[:12]}


class Samples:
    """Where the torch thread is, from the load to the end of the first image.

    Its stack is looked at a hundred times a second. Under cProfile a first image took twice as long,
    and Python's share of it grew.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._total_s: Counter[str] = Counter()  # by function, with all that it calls
        self._own_s: Counter[str] = Counter()
        self._looked = on_torch_thread(threading.get_ident)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._main_loop, daemon=True)
        self._thread.start()

    def _main_loop(self) -> None:
        last_s = time.perf_counter()
        while not self._ended.wait(0.01):
            now_s = time.perf_counter()
            self._look(now_s - last_s)
            last_s = now_s

    def _look(self, seconds: float) -> None:
        frame = sys._current_frames().get(self._looked)
        names = []
        while frame is not None:
            code = frame.f_code
            names.append(f"{code.co_filename}:{code.co_firstlineno} {code.co_qualname}")
            frame = frame.f_back
        for name in set(names):
            self._total_s[name] += seconds
        self._own_s[names[0]] += seconds

    def write(self) -> None:
        """End, and write a line for each function: total and own seconds, the longest first."""
        self._ended.set()
        self._thread.join()
        with open(self._path, "w") as file:
            for name, total_s in self._total_s.most_common():
                print(f"{total_s:8.2f} {self._own_s[name]:8.2f} {name}", file=file)


def kernels(pipe: Any, asked: dict[str, Any]) -> list[tuple[str, int, float]]:
    """The kernels of a step of ours: shortened name, calls and milliseconds, the longest first."""
    from benchlib.serving.schemas import GenerateRequest

    side = asked["side"]
    request = GenerateRequest(prompt=PROMPT, num_inference_steps=4, width=side, height=side)

    def step() -> Any:
        works = pipe.encode([request] * asked["n"])
        pipe.step(works)
        with torch.profiler.profile() as profile:
            pipe.step(works)
        return profile.key_averages()

    on_gpu = torch.autograd.DeviceType.CUDA
    events = [event for event in on_torch_thread(step) if event.device_type == on_gpu]
    events.sort(key=lambda event: -event.self_device_time_total)
    longest = []
    for event in events[:60]:
        took_ms = event.self_device_time_total / 1000
        longest.append((event.key[:80], event.count, took_ms))
    return longest


def main() -> int:
    # 1) Load
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kind", choices=("ours", "stock", "hf"), default="ours")
    parser.add_argument("--recipe", default="fastest-exact")
    parser.add_argument("--model", default="sdxl-random")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--profile", help="a file for samples of the load and the first image")
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to standard error

    def tell(facts: dict[str, Any]) -> None:
        print(json.dumps(facts), file=answers, flush=True)

    from benchlib.machine import describe_packages

    imported_s = time.perf_counter() - BEGAN_S
    samples = Samples(options.profile) if options.profile else None
    make, pipe = load(options)
    loaded_s = time.perf_counter() - BEGAN_S
    tell(
        {
            "import_s": imported_s,
            "load_s": loaded_s - imported_s,
            "load_parts_s": pipe.spec.get("load_parts_s"),
            "artefacts": pipe.spec.get("artefacts"),
            "packages": describe_packages(),
        }
    )

    # 2) Do what is asked, until there is no more
    for line in sys.stdin:
        try:
            answered = answer(json.loads(line), make, pipe)
            if samples is not None:
                samples.write()
                samples = None
            tell(answered)
        except Exception as error:  # noqa: BLE001 - the other sides go on
            tell({"error": f"{type(error).__name__}: {str(error).strip()[:300]}"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
