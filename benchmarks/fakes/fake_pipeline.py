"""A pipeline without a model, for tests of the engine and the app.

A test decides when a step may go on.
"""

import math
import threading
from types import SimpleNamespace

import torch
from PIL import Image

from benchlib.serving.model.denoise import Work
from benchlib.serving.model.memory import PeakMemory
from benchlib.serving.model.schedulers import Schedule


class FakeSchedules:
    """Takes any number of steps, with one call of the UNet for each."""

    def count_calls(self, request):
        return request.num_inference_steps

    def knows_calls(self, request):  # noqa: ARG002
        return True

    def nearest_steps(self, wanted):
        return wanted


class FakePipeline:
    """A step waits while `gate` is clear. `calls` lists the calls as (call, prompt)."""

    compiled = False
    schedules = FakeSchedules()
    adapters = SimpleNamespace(names=())

    def __init__(self):
        self.gate = threading.Event()
        self.gate.set()
        self.stepping = threading.Event()  # set once a step has begun
        self.calls = []
        self.spec = {
            "model": "fake", "device": "cpu", "dtype": "float32", "recipe": "baseline", "model_params": 7,
            "weights_gib": 0.0, "memory_before_load_gib": 0.0, "torch_threads": 1,
            "showcase": {"width": 64, "height": 64, "num_inference_steps": 2},
        }  # fmt: skip
        self.fail_on = {}  # prompt -> exception, raised at its first step
        self.encode_errors = []  # each raised by one of the next calls of `encode`
        self.batches = []  # (works, padded rows) of each step
        # The most works in a step, in a decode, and the most pixels at once, before memory runs
        # out.
        self.most_steps = math.inf
        self.most_decodes = math.inf
        self.most_pixels = math.inf

    def fits(self, width, height, images=1):
        return images * width * height <= self.most_pixels

    def encode(self, requests):
        if self.encode_errors:
            raise self.encode_errors.pop()
        self.calls += [("encode", request.prompt) for request in requests]
        return [
            Work(
                request=request, seed=request.seed or 0, encode_s=0.001,
                scheduler=None, step_options={}, generator=None,
                schedule=Schedule(timesteps=range(request.num_inference_steps), init_noise_sigma=1.0),
                latents=None, text=None, pooled=None, time_ids=None,
            )
            for request in requests
        ]  # fmt: skip

    def step(self, works, *, rows=None):
        self.batches.append((len(works), rows))
        self.calls += [("step", work.request.prompt) for work in works]
        self.stepping.set()
        assert self.gate.wait(30)
        if len(works) > self.most_steps:
            raise torch.OutOfMemoryError("CUDA out of memory")
        for work in works:
            if work.request.prompt in self.fail_on:
                raise self.fail_on[work.request.prompt]
        for work in works:
            work.steps_done += 1
            work.step_s.append(0.001)
            work.batch_rows += len(works)
        return 0.001

    def decode(self, works):
        self.calls += [("decode", work.request.prompt) for work in works]
        if len(works) > self.most_decodes:
            raise torch.OutOfMemoryError("CUDA out of memory")
        for work in works:
            work.decode_s = 0.001
        return [Image.new("RGB", (8, 8)) for _ in works]

    def reset_peak_memory(self):
        pass

    def peak_memory(self):
        return PeakMemory(rss_gib=0.5)
