"""The wrapper: one SDXL pipeline as encode -> denoise step -> decode, each timed, for one image or a batch.

Knows diffusers' text-to-image algorithm (StableDiffusionXLPipeline.__call__ in
diffusers/pipelines/stable_diffusion_xl/pipeline_stable_diffusion_xl.py) and reproduces its images to the bit. Ignorant
of queues and HTTP. `generate` may be called from any thread; whoever drives `encode`, `step` and `decode` does so on
the torch thread (compute.py), as any other would slow down both.
"""

from __future__ import annotations

import copy
import logging
import resource
import secrets
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils.torch_utils import randn_tensor
from PIL.Image import Image

from benchlib.serving.compute import compute
from benchlib.serving.models import choose_model, load_diffusers
from benchlib.serving.schemas import MAX_SEED, GenerateRequest
from benchlib.telemetry import process_memory_gib

# Every long prompt would be reported on stderr; that SDXL reads 77 tokens of a prompt is no news to a benchmark.
logging.getLogger(StableDiffusionXLPipeline.__module__).addFilter(lambda record: "truncated" not in record.getMessage())


@dataclass
class Work:
    """One image on its way: made by `encode`, moved by `step`, ended by `decode`. All that a request sets lives here.

    The times are undivided wall seconds of the calls it took part in; `batch_rows` sums their sizes over the steps.
    """

    request: GenerateRequest
    seed: int
    scheduler: Any
    timesteps: torch.Tensor  # (steps,)
    step_options: dict[str, Any]  # what this scheduler's step takes beside the tensors, the generator for one
    latents: torch.Tensor  # (1, channels, height/8, width/8)
    text: torch.Tensor  # (rows, 77, features): 2 rows under guidance (unconditional first), else 1
    pooled: torch.Tensor  # (rows, features)
    time_ids: torch.Tensor  # (rows, 6)
    steps_done: int = 0
    encode_s: float = 0.0
    step_s: list[float] = field(default_factory=list)
    decode_s: float = 0.0
    batch_rows: int = 0

    @property
    def finished(self) -> bool:
        """Every denoising step is done; what is left is to decode."""
        return self.steps_done == len(self.timesteps)

    @property
    def denoise_s(self) -> float:
        return sum(self.step_s)

    @property
    def service_s(self) -> float:
        """Seconds of engine work, queueing left out: the `time_s` of the HTTP answer."""
        return self.encode_s + self.denoise_s + self.decode_s


@dataclass(frozen=True)
class Timings:
    """Wall seconds of one `generate` call, the device synchronised before each reading."""

    encode_s: float
    denoise_s: float
    decode_s: float
    total_s: float
    step_s: tuple[float, ...]


@dataclass(frozen=True)
class PeakMemory:
    """The most memory in use since the last reset, in GiB. `rss_gib` is the whole process's. Unknown is None."""

    allocated_gib: float | None = None
    reserved_gib: float | None = None
    rss_gib: float | None = None

    @property
    def headline_gib(self) -> float | None:
        return self.rss_gib if self.allocated_gib is None else self.allocated_gib


@dataclass(frozen=True)
class GenerateResult:
    """What `generate` made: PIL images in the order of the requests, the seeds used, the times and the memory peak."""

    images: list[Image]
    seeds: list[int]
    timings: Timings
    memory: PeakMemory

    @property
    def peak_memory_gib(self) -> float | None:
        """CUDA: allocator peak. CPU: process peak RSS. None where the device tells neither."""
        return self.memory.headline_gib


class SDXLPipeline:
    """An SDXL pipeline that can be driven a step at a time. Made by `load_pipeline`.

    Nothing that a request sets is written to it. Noise is drawn on the CPU whatever the device, so a seed means the
    same image everywhere (up to the device's arithmetic).
    """

    def __init__(self, pipe: StableDiffusionXLPipeline, *, spec: dict[str, Any]) -> None:
        if pipe.unet.config.time_cond_proj_dim is not None:
            raise ValueError("model: a UNet with embedded guidance (LCM) is not supported; give a plain SDXL model")
        self._pipe = pipe
        self.device = pipe.unet.device
        # An fp16 VAE overflows, so the stock call casts it up and back around each decode. Here it is cast once, into a
        # VAE of our own; `diffusers` gets its own back.
        self._upcast = pipe.vae.dtype == torch.float16 and bool(pipe.vae.config.force_upcast)
        self._vae = copy.deepcopy(pipe.vae).float() if self._upcast else pipe.vae
        if self._upcast:
            pipe.vae = None
        networks = (pipe.unet, pipe.text_encoder, pipe.text_encoder_2, self._vae)
        parameters = [p for network in networks for p in network.parameters()]
        side = pipe.unet.config.sample_size * pipe.vae_scale_factor
        self.spec = spec | {
            "model_params": sum(p.numel() for p in parameters),
            "weights_gib": sum(p.numel() * p.element_size() for p in parameters) / 2**30,
            "showcase": {"width": side, "height": side, "num_inference_steps": 8 if spec["model"] == "tiny" else 20},
        }

    @cached_property
    def diffusers(self) -> StableDiffusionXLPipeline:
        """A stock StableDiffusionXLPipeline over the same weights, behaving as stock."""
        if self._upcast:
            self._pipe.vae = copy.deepcopy(self._vae).half()
        return self._pipe

    @torch.inference_mode()
    def encode(self, request: GenerateRequest) -> Work:
        """Tokenise and encode the prompts, draw the noise, lay out the timesteps."""
        started = self._clock()
        pipe = self._pipe
        guided = request.guidance_scale > 1
        text, negative_text, pooled, negative_pooled = pipe.encode_prompt(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            device=self.device,
            do_classifier_free_guidance=guided,
        )
        size = (request.height, request.width)
        time_ids = torch.tensor([[*size, 0, 0, *size]], dtype=text.dtype)
        if guided:
            text = torch.cat([negative_text, text])
            pooled = torch.cat([negative_pooled, pooled])
            time_ids = torch.cat([time_ids, time_ids])
        scheduler = copy.deepcopy(pipe.scheduler)
        scheduler.set_timesteps(request.num_inference_steps, device=self.device)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        seed = secrets.randbelow(MAX_SEED + 1) if request.seed is None else request.seed
        generator = torch.Generator("cpu").manual_seed(seed)
        noise = randn_tensor(
            (1, pipe.unet.config.in_channels, request.height // 8, request.width // 8),
            generator=generator,
            device=self.device,
            dtype=text.dtype,
        )
        work = Work(
            request=request,
            seed=seed,
            scheduler=scheduler,
            timesteps=scheduler.timesteps,
            step_options=pipe.prepare_extra_step_kwargs(generator, 0.0),
            latents=noise * scheduler.init_noise_sigma,
            text=text,
            pooled=pooled,
            time_ids=time_ids.to(self.device),
        )
        work.encode_s = self._clock() - started
        return work

    @torch.inference_mode()
    def step(self, batch: Sequence[Work]) -> None:
        """Move each work of `batch` on by one denoising step of its own, in one UNet call. All have the same size."""
        started = self._clock()
        rows: list[torch.Tensor] = []
        timesteps: list[torch.Tensor] = []
        for work in batch:
            t = work.timesteps[work.steps_done]
            latents = torch.cat([work.latents] * len(work.text)) if len(work.text) > 1 else work.latents
            rows.append(work.scheduler.scale_model_input(latents, t))
            timesteps.append(t.expand(len(latents)))
        predictions = self._pipe.unet(
            torch.cat(rows),
            torch.cat(timesteps),
            encoder_hidden_states=torch.cat([work.text for work in batch]),
            added_cond_kwargs={
                "text_embeds": torch.cat([work.pooled for work in batch]),
                "time_ids": torch.cat([work.time_ids for work in batch]),
            },
            return_dict=False,
        )[0].split([len(work.text) for work in batch])
        for work, noise in zip(batch, predictions, strict=True):
            if len(noise) > 1:
                unconditional, conditional = noise.chunk(2)
                noise = unconditional + work.request.guidance_scale * (conditional - unconditional)
            t = work.timesteps[work.steps_done]
            work.latents = work.scheduler.step(noise, t, work.latents, **work.step_options, return_dict=False)[0].to(
                work.latents.dtype
            )
        elapsed = self._clock() - started
        for work in batch:
            work.steps_done += 1
            work.step_s.append(elapsed)
            work.batch_rows += len(batch)

    @torch.inference_mode()
    def decode(self, batch: Sequence[Work]) -> list[Image]:
        """Turn the latents of finished works, all of one size, into PIL images."""
        started = self._clock()
        vae, config = self._vae, self._vae.config
        latents = torch.cat([work.latents for work in batch]).to(vae.dtype)
        if config.latents_mean is not None and config.latents_std is not None:
            mean, std = (
                torch.tensor(values, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1)
                for values in (config.latents_mean, config.latents_std)
            )
            latents = latents * std / config.scaling_factor + mean
        else:
            latents = latents / config.scaling_factor
        pixels = vae.decode(latents, return_dict=False)[0]
        if self._pipe.watermark is not None:
            pixels = self._pipe.watermark.apply_watermark(pixels)
        images: list[Image] = self._pipe.image_processor.postprocess(pixels, output_type="pil")
        elapsed = self._clock() - started
        for work in batch:
            work.decode_s = elapsed
        return images

    def generate(self, request: GenerateRequest | Sequence[GenerateRequest]) -> GenerateResult:
        """Make one image a request; several requests of one size share each denoising step.

        Raises ValueError where the sizes differ, `torch.OutOfMemoryError` where the device has too little memory.
        """
        requests = [request] if isinstance(request, GenerateRequest) else list(request)
        if len({(r.width, r.height) for r in requests}) != 1:
            raise ValueError("request: a batch needs at least one request, and all of one width and height; split it")
        return compute(self._generate, requests)

    def _generate(self, requests: list[GenerateRequest]) -> GenerateResult:
        self.reset_peak_memory()
        started = self._clock()
        works = [self.encode(r) for r in requests]
        step_s: list[float] = []
        while unfinished := [work for work in works if not work.finished]:
            self.step(unfinished)
            step_s.append(unfinished[0].step_s[-1])
        images = self.decode(works)
        return GenerateResult(
            images=images,
            seeds=[work.seed for work in works],
            timings=Timings(
                encode_s=sum(work.encode_s for work in works),
                denoise_s=sum(step_s),
                decode_s=works[0].decode_s,
                total_s=self._clock() - started,
                step_s=tuple(step_s),
            ),
            memory=self.peak_memory(),
        )

    def predict_s(self, width: int, height: int, num_inference_steps: int) -> float:
        """Seconds that one image would take: encode, two steps and decode are timed, the rest is arithmetic."""
        timings = self.generate(GenerateRequest(prompt="a", num_inference_steps=2, width=width, height=height)).timings
        return timings.encode_s + timings.step_s[-1] * num_inference_steps + timings.decode_s

    def reset_peak_memory(self) -> None:
        """Start a new peak. Without Linux's /proc the RSS peak can't be reset and stays that of the process's life."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.device.type == "cpu":
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # proc(5): 5 resets the peak resident set size

    def peak_memory(self) -> PeakMemory:
        if self.device.type == "cuda":
            return PeakMemory(
                allocated_gib=torch.cuda.max_memory_allocated(self.device) / 2**30,
                reserved_gib=torch.cuda.max_memory_reserved(self.device) / 2**30,
            )
        return PeakMemory(rss_gib=_peak_rss_gib()) if self.device.type == "cpu" else PeakMemory()

    def _clock(self) -> float:
        """Monotonic seconds, read once the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return time.monotonic()


def load_pipeline(
    model: str = "tiny",
    *,
    device: str = "auto",
    dtype: str = "auto",
    recipe: str = "baseline",
    seed: int = 0,
    torch_threads: int | None = None,
) -> SDXLPipeline:
    """Load `model` ("tiny", "sdxl", "sdxl-random", "auto", a hub id, a folder or a .safetensors file).

    `device="auto"` is CUDA where there is one, else the CPU; `dtype="auto"` is float16 on CUDA, else float32. `seed`
    draws the weights of the random models. `torch_threads` sets the CPU threads of torch for the whole process. Raises
    ValueError for a bad argument and `ModelError` where the model can't be had, each naming the remedy.
    """
    before_gib = process_memory_gib()
    if recipe != "baseline":
        raise ValueError(f"recipe: {recipe!r} is not known; use 'baseline'")
    target = _device(device)
    dtypes = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if dtype == "auto":
        dtype = "float16" if target.type == "cuda" else "float32"
    if dtype not in dtypes:
        raise ValueError(f"dtype: {dtype!r} is not known; use 'auto', {', '.join(map(repr, dtypes))}")
    if torch_threads is not None:
        if torch_threads < 1:
            raise ValueError(
                f"torch_threads: {torch_threads} is too few; use 1 or more, or None for torch's own choice"
            )
        torch.set_num_threads(torch_threads)
    model, reason = choose_model(model, target)

    def load() -> SDXLPipeline:
        pipe = load_diffusers(model, device=target, dtype=dtypes[dtype], seed=seed)
        spec = {
            "model": model,
            "model_reason": reason,
            "device": str(target),
            "dtype": dtype,
            "recipe": recipe,
            "seed": seed,
            "torch_threads": torch.get_num_threads(),
            "memory_before_load_gib": before_gib,
        }
        return SDXLPipeline(pipe, spec=spec)

    return compute(load)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: {name!r} is not known; use 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'") from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ValueError(
            f"device: {name!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices; use 'auto'"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device: 'mps' is not there; use 'auto'")
    return device


def _peak_rss_gib() -> float:
    """Peak resident set of this process: VmHWM of /proc (resettable), else getrusage's (of its whole life)."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024) / 2**30  # getrusage(2): bytes on macOS, else KiB
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 2**30
