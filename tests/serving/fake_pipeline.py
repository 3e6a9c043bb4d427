"""A pipeline without a model: each step waits until the test lets it go on. For what the engine and the app decide."""

import threading

from PIL import Image

from benchlib.serving.pipeline import PeakMemory, Work


class FakePipeline:
    """Steps take as long as the test holds `gate` clear. `calls` lists what was done, as (call, prompt)."""

    def __init__(self):
        self.gate = threading.Event()
        self.gate.set()
        self.stepping = threading.Event()  # set while or after a step has begun
        self.calls = []
        self.spec = {
            "model": "fake", "device": "cpu", "dtype": "float32", "recipe": "baseline", "model_params": 7,
            "weights_gib": 0.0, "memory_before_load_gib": 0.0, "torch_threads": 1,
            "showcase": {"width": 64, "height": 64, "num_inference_steps": 2},
        }  # fmt: skip
        self.fail_on = {}  # prompt -> exception, raised at its first step

    def generate(self, request):
        self.calls.append(("generate", request.prompt))

    def encode(self, request):
        self.calls.append(("encode", request.prompt))
        timesteps = list(range(request.num_inference_steps))
        return Work(
            request=request, seed=request.seed or 0, scheduler=None, timesteps=timesteps, latents=None, text=None,
            pooled=None, time_ids=None, step_options={}, encode_s=0.001,
        )  # fmt: skip

    def step(self, batch):
        self.stepping.set()
        assert self.gate.wait(30)
        for work in batch:
            self.calls.append(("step", work.request.prompt))
            if work.request.prompt in self.fail_on:
                raise self.fail_on[work.request.prompt]
            work.steps_done += 1
            work.step_s.append(0.001)
            work.batch_rows += len(batch)

    def decode(self, batch):
        self.calls += [("decode", work.request.prompt) for work in batch]
        for work in batch:
            work.decode_s = 0.001
        return [Image.new("RGB", (8, 8)) for _ in batch]

    def reset_peak_memory(self):
        pass

    def peak_memory(self):
        return PeakMemory(rss_gib=0.5)
