"""Tries one recipe: its start, images made alone, the step times of its servers, and its memory.

Knows pipelines, servers, and how images become rows of a run. Ignorant of budgets and of other
recipes (measure.py), and of which setting is best (judge.py).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchlib import telemetry
from benchlib.load.arrivals import ClosedLoop
from benchlib.questions.settings.judge import PROCESS_MEMORY
from benchlib.questions.settings.pictures import Album, take_pictures
from benchlib.questions.settings.variants import parse_variant
from benchlib.serving.engine.options import EngineOptions
from benchlib.study.wording import counted

if TYPE_CHECKING:
    from PIL.Image import Image

    from benchlib.questions.settings.learned_metrics import LearnedMetrics
    from benchlib.run import Writer
    from benchlib.serving.model.memory import PeakMemory
    from benchlib.serving.model.pipeline import SDXLPipeline
    from benchlib.study.store import RunFolder

MOST_WARM = 4
"""No more images than this warm a recipe up."""
STABLE = 0.05
"""A recipe is warm once an image takes as long as the one before it, within this share."""


@dataclass(frozen=True)
class Asked:
    """What is asked of every recipe: the model, its device, and the images.

    An image has `steps` steps, or else `steps_share` of the model's own number, or else that
    number. `timed` images are made alone.
    """

    model: str
    device: str
    steps: int | None
    steps_share: float | None
    prompts: Sequence[str]
    timed: int

    def steps_of(self, pipe: SDXLPipeline) -> int:
        """The steps of each image."""
        own = int(pipe.spec["showcase"]["num_inference_steps"])
        if self.steps is not None:
            return self.steps
        if self.steps_share is not None:
            return max(1, int(self.steps_share * own))
        return own


@dataclass(frozen=True)
class Served:
    """What a server's start showed: its spec, with the step times, and what the start took.

    `compile_s` of `start_s` were spent on compiling or recording. `memory_gib` is the peak of its
    warm-up. `error` says why it did not start.
    """

    spec: Mapping[str, Any] = field(default_factory=dict)
    start_s: float = 0.0
    compile_s: float = 0.0
    memory_gib: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Tried:
    """What one recipe did. Times are in seconds.

    `load_s` and `first_s` are of loading, and of the first image. `memory_gib` is the peak while
    the images were made, of the memory `memory_of`. `served` is by the way to batch. `started` is
    "warm" if earlier processes had compiled for it, "cold" if none had, and None if torch compiles
    nothing.
    """

    steps: int
    load_s: float
    first_s: float
    compile_s: float
    album: Album
    memory_gib: float | None
    memory_of: str | None
    served: Mapping[str, Served]
    started: str | None = None

    def start_s(self, batching: str) -> float:
        """Seconds from nothing to a server that is ready, compiling included."""
        return self.load_s + self.first_s + self.served[batching].start_s

    def compiling_s(self, batching: str) -> float:
        """How many of these seconds were spent on compiling or recording."""
        return self.compile_s + self.served[batching].compile_s

    def peak_gib(self, batching: str) -> float | None:
        """The peak while images were made alone and this server warmed up."""
        peaks_gib = [self.memory_gib, self.served[batching].memory_gib]
        return max((gib for gib in peaks_gib if gib is not None), default=None)


def try_recipe(
    recipe: str,
    batchings: Sequence[str],
    asked: Asked,
    *,
    writer: Writer,
    images_s: float,
    baseline: Album | None = None,
    learned: LearnedMetrics | None = None,
) -> Tried:
    """Loads a recipe, makes images alone, and starts a server for each of `batchings`.

    First come images that are not counted, until they take equally long. All images are kept as
    rows of a run. The timed ones and the other pictures take `images_s` seconds, or as long as the
    timed ones do (see take_pictures). The servers share the one pipeline. The model is freed at the end, because memory
    may be too small for two.
    """
    from benchlib.serving.model.loading import load_pipeline

    began_s = time.monotonic()
    variant = parse_variant(recipe)
    with closing(load_pipeline(asked.model, recipe=variant.recipe, device=asked.device)) as pipe:
        load_s = time.monotonic() - began_s
        steps = variant.steps or asked.steps_of(pipe)

        # 1) Images alone: the first, some to warm up, and those that count.
        with _camera(pipe, steps, writer) as camera:
            first_s = _warm_up(camera, asked.prompts[0])
            camera.phase = "measure"
            album = take_pictures(
                camera.make,
                asked.prompts,
                timed=asked.timed,
                limit_s=images_s,
                baseline=baseline,
                learned=learned,
            )

        # 2) A server for each way to batch: its warm-up measures the step times.
        served = {batching: _try_server(pipe, batching) for batching in batchings}

    artefacts = pipe.spec.get("artefacts")
    started = None
    if artefacts is not None and artefacts["packs"] is not None:
        started = "warm" if artefacts["packs"] else "cold"
    compile_s = 0.0
    if pipe.compiled:
        compile_s = max(0.0, first_s - min(album.times_s))
    return Tried(
        steps=steps,
        load_s=load_s,
        first_s=first_s,
        compile_s=compile_s,
        album=album,
        memory_gib=camera.memory_gib,
        memory_of=_memory_of(pipe),
        served=served,
        started=started,
    )


def _warm_up(camera: Camera, prompt: str) -> float:
    """Makes images until one takes as long as the one before; returns the seconds of the first."""
    _, first_s = camera.make(prompt, 0)
    before_s = first_s
    for _ in range(MOST_WARM):
        _, took_s = camera.make(prompt, 0)
        if abs(took_s / before_s - 1) < STABLE:
            break
        before_s = took_s
    return first_s


def _try_server(pipe: SDXLPipeline, batching: str) -> Served:
    """Starts a server, and stops it once its warm-up has measured the step times."""
    from benchlib.serving.server import serve

    try:
        _free_cache(pipe)
        pipe.reset_peak_memory()
        began_s = time.monotonic()
        compile_s = _warm_buckets(pipe, batching)
        with serve(pipe, batching=batching, name="settings") as server:  # type: ignore[arg-type]
            start_s = time.monotonic() - began_s
            peak = pipe.peak_memory()
            return Served(dict(server.spec), start_s, compile_s, _gib(pipe, peak))
    except Exception as error:  # noqa: BLE001 - serving raises what it likes; the row says it
        return Served(error=f"{type(error).__name__}: {error}")


def _warm_buckets(pipe: SDXLPipeline, batching: str) -> float:
    """Compiles or records a model for each batch that a server will make; returns the seconds.

    The server's warm-up would do it as well, but it would not tell it from measuring.
    """
    from benchlib.serving.engine.faults import Faults
    from benchlib.serving.engine.model_calls import ModelCalls
    from benchlib.serving.engine.step_times import warm
    from benchlib.serving.model.torch_thread import long_torch_call

    if not pipe.compiled:
        return 0.0
    began_s = time.monotonic()
    options = EngineOptions(batching=batching)
    showcase = pipe.spec["showcase"]
    size = showcase["width"], showcase["height"]
    for rows in ModelCalls(pipe, options, Faults()).buckets:
        what = f"{pipe.spec['model']}: compiling the UNet for {counted(rows, 'row')}"
        long_torch_call(what, warm, pipe, size, rows)
    return time.monotonic() - began_s


# ---- memory


def _memory_of(pipe: SDXLPipeline) -> str | None:
    """Which memory a peak is of."""
    kinds = {"cuda": "GPU, reserved", "cpu": PROCESS_MEMORY}
    return kinds.get(pipe.device.type)


def _gib(pipe: SDXLPipeline, peak: PeakMemory) -> float | None:
    return peak.reserved_gib if pipe.device.type == "cuda" else peak.rss_gib


def _free_cache(pipe: SDXLPipeline) -> None:
    """Gives back what the allocator holds for nothing, or it would count for the next server."""
    if pipe.device.type == "cuda":
        import torch

        torch.cuda.empty_cache()


# ---- images alone, kept as a run


class Camera:
    """Makes images alone, appends a row for each to `folder`, and keeps the peak of memory."""

    def __init__(self, pipe: SDXLPipeline, images: Mapping[str, Any], folder: RunFolder) -> None:
        self.phase = "warmup"
        self.memory_gib: float | None = None
        self.window_start_s: float | None = None
        self._pipe = pipe
        self._images = images
        self._folder = folder
        self.began_s = time.monotonic()
        self._made = 0

    @property
    def now_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.began_s

    def make(self, prompt: str, seed: int) -> tuple[Image, float]:
        """The image of a prompt and a seed, and its seconds."""
        from benchlib.serving.schemas import GenerateRequest

        request = GenerateRequest(prompt=prompt, seed=seed, **self._images)
        sent_s = self.now_s
        if self.phase == "measure" and self.window_start_s is None:
            self.window_start_s = sent_s
        result = self._pipe.generate(request)

        # 1) The peak of memory
        gib = _gib(self._pipe, result.memory)
        if gib is not None:
            self.memory_gib = max(gib, self.memory_gib or 0.0)

        # 2) The row
        timings = result.timings
        row = {
            "index": self._made,
            "phase": self.phase,
            **request.model_dump(),
            "scheduled_s": sent_s,
            "sent_s": sent_s,
            "done_s": sent_s + timings.total_s,
            "latency_s": timings.total_s,
            "total_s": timings.total_s,
            "service_s": timings.total_s,
            "encode_s": timings.encode_s,
            "denoise_s": timings.denoise_s,
            "decode_s": timings.decode_s,
            "batch_size": 1.0,
            "server_peak_gib": gib,
        }
        with self._folder.rows_path.open("a", encoding="utf-8") as rows:
            rows.write(json.dumps(row) + "\n")
        self._made += 1
        [image] = result.images
        return image, timings.total_s


@contextmanager
def _camera(pipe: SDXLPipeline, steps: int, writer: Writer) -> Iterator[Camera]:
    """A camera whose run is kept however the block ends."""
    images = {**pipe.spec["showcase"], "num_inference_steps": steps}
    spec = {
        "arrivals": ClosedLoop(users=1).to_dict(),
        "workload": images,
        "label": "alone",
        "warmup_s": 0.0,
    }
    folder = writer.create(spec, pipe.spec)
    camera = Camera(pipe, images, folder)
    sampler = telemetry.Sampler(os.getpid(), device=pipe.spec["device"])
    sampler.zero_s = camera.began_s
    status = "failed"
    error: str | None = None
    try:
        sampler.start()
        yield camera
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
        raise
    finally:
        end_s = camera.now_s
        outcome = {
            "window_start_s": camera.window_start_s or end_s,
            "window_end_s": end_s,
            "wall_s": end_s,
        }
        sampler.stop()
        writer.keep(folder, status, outcome, sampler.frame, error)
