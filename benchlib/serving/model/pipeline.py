"""The wrapper: one SDXL pipeline as encode -> denoise step -> decode, each timed, for one image or a batch.

Knows diffusers' text-to-image algorithm (StableDiffusionXLPipeline.__call__ in
diffusers/pipelines/stable_diffusion_xl/pipeline_stable_diffusion_xl.py) and reproduces its images to the bit. Ignorant
of queues and HTTP. `generate` may be called from any thread; whoever drives `encode`, `step` and `decode` does so on
the torch thread (torch_thread.py), as any other would slow down both.
"""

from __future__ import annotations

import copy
import gc
import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from PIL.Image import Image, fromarray

from benchlib.machine import available_memory_gib
from benchlib.serving.model.denoise import Batch, Schedule, Work, make_schedule
from benchlib.serving.model.memory import PeakMemory, held_gib, peak_memory, reset_peak_memory
from benchlib.serving.model.models import choose_model, load_diffusers
from benchlib.serving.model.recipes import Recipe, apply_recipes, parse_recipes
from benchlib.serving.model.torch_thread import on_torch_thread
from benchlib.serving.schemas import MAX_SEED, GenerateRequest
from benchlib.telemetry import GIB, process_memory_gib

# Every long prompt would be reported on stderr; that SDXL reads 77 tokens of a prompt is no news to a benchmark.
logging.getLogger(StableDiffusionXLPipeline.__module__).addFilter(
    lambda record: "truncated" not in record.getMessage()
)


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Timings:
    """Wall seconds of one `generate` call, the device synchronised before each reading."""

    encode_s: float
    denoise_s: float
    decode_s: float
    total_s: float
    step_s: tuple[float, ...]


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

    Nothing that a request sets is written to it. Noise is drawn on the CPU in float32 whatever the device and dtype, so
    a seed means the same image everywhere (up to their arithmetic).
    """

    def __init__(
        self,
        pipe: StableDiffusionXLPipeline,
        *,
        spec: dict[str, Any],
        recipes: tuple[Recipe, ...] = (),
    ) -> None:
        if pipe.unet.config.time_cond_proj_dim is not None:
            raise ValueError(
                "model: a UNet with embedded guidance (LCM) is not supported; give a plain SDXL model"
            )
        self._pipe = pipe
        self.device = pipe.unet.device
        self._schedules: dict[int, tuple[Schedule, Any]] = {}
        self._batch: Batch | None = None  # of the latest step
        self.compiled = any(
            recipe.sets in ("compiler", "launches") for recipe in recipes
        )  # so each shape is made ready
        networks = apply_recipes(pipe, recipes)
        self._unet, self._vae = networks.unet, networks.vae
        # An fp16 VAE overflows, so the stock call casts it up and back around each decode. Here it is cast once, and
        # `diffusers` gets a copy that was cast back.
        self._upcast = self._vae.dtype == torch.float16 and bool(self._vae.config.force_upcast)
        self._stock_vae = pipe.vae
        if self._upcast:
            self._vae.float()
            pipe.vae = None
        stock = (pipe.unet, pipe.text_encoder, pipe.text_encoder_2, self._stock_vae)
        held = {p for network in (*stock, self._unet, self._vae) for p in network.parameters()}
        encoders = {name: getattr(pipe, name) for name in ("text_encoder", "text_encoder_2")}
        at_work = {"unet": self._unet, **encoders, "vae": self._vae}
        side = pipe.unet.config.sample_size * pipe.vae_scale_factor
        self.spec = spec | {
            "networks": {name: _described(network) for name, network in at_work.items()},
            "model_params": sum(p.numel() for network in stock for p in network.parameters()),
            "weights_gib": held_gib(held),
            "showcase": {
                "width": side,
                "height": side,
                "num_inference_steps": 8 if spec["model"] == "tiny" else 20,
            },
        }

    @cached_property
    def diffusers(self) -> StableDiffusionXLPipeline:
        """A stock StableDiffusionXLPipeline over the same weights, behaving as stock; what recipes share with it:
        `apply_recipes`."""
        if self._upcast:
            self._pipe.vae = copy.deepcopy(self._stock_vae).half()
        return self._pipe

    @torch.inference_mode()
    def encode(self, requests: Sequence[GenerateRequest]) -> list[Work]:
        """Tokenise and encode the prompts of all requests together, draw each one's noise, lay out its timesteps."""
        started = self._clock()
        embedded = self._embed(requests)
        works = []
        for request in requests:
            text, pooled = embedded[request.prompt]
            if request.guidance_scale > 1:
                negative = self._negative(request)
                without = (
                    (torch.zeros_like(text), torch.zeros_like(pooled))
                    if negative is None
                    else embedded[negative]
                )
                text, pooled = torch.cat([without[0], text]), torch.cat([without[1], pooled])
            seed = secrets.randbelow(MAX_SEED + 1) if request.seed is None else request.seed
            generator = torch.Generator("cpu").manual_seed(seed)
            # In float32 and rounded, as torch 2.13's `randn` does by itself: 2.11's draws other numbers in 16 bits.
            noise = torch.randn(
                (1, self._pipe.unet.config.in_channels, request.height // 8, request.width // 8),
                generator=generator,
            ).to(self.device, text.dtype)
            schedule, scheduler = self._schedule(request.num_inference_steps)
            size = (request.height, request.width)
            work = Work(
                request=request,
                seed=seed,
                schedule=schedule,
                scheduler=scheduler,
                step_options=self._pipe.prepare_extra_step_kwargs(generator, 0.0)
                if scheduler
                else {},
                latents=noise * schedule.init_noise_sigma,
                text=text,
                pooled=pooled,
                time_ids=torch.tensor([[*size, 0, 0, *size]], dtype=text.dtype, device=self.device),
            )
            works.append(work)
        elapsed = self._clock() - started
        for work in works:
            work.encode_s = elapsed
        return works

    def _negative(self, request: GenerateRequest) -> str | None:
        """The text to steer away from. None stands for zeros in place of its embedding."""
        if request.negative_prompt is None and not self._pipe.config.force_zeros_for_empty_prompt:
            return ""
        return request.negative_prompt

    def _embed(
        self, requests: Sequence[GenerateRequest]
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Embedding (1, 77, features) and pooled embedding (1, features) of every text that is asked for.

        In one batch, but for a request that is alone: there the stock pipeline encodes one text at a time.
        """
        texts = [request.prompt for request in requests]
        negatives = [self._negative(request) for request in requests if request.guidance_scale > 1]
        texts = list(dict.fromkeys(texts + [text for text in negatives if text is not None]))
        together = [texts] if len(requests) > 1 else [[text] for text in texts]
        embedded: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for group in together:
            text, _, pooled, _ = self._pipe.encode_prompt(
                prompt=group, device=self.device, do_classifier_free_guidance=False
            )
            embedded |= dict(
                zip(group, zip(text.split(1), pooled.split(1), strict=True), strict=True)
            )
        return embedded

    def _schedule(self, steps: int) -> tuple[Schedule, Any]:
        """The schedule of so many steps, and a scheduler for one work where the schedule alone does not do."""
        if steps not in self._schedules:
            self._schedules[steps] = make_schedule(self._pipe.scheduler, steps, self.device)
        schedule, scheduler = self._schedules[steps]
        return schedule, copy.deepcopy(scheduler) if schedule.table is None else None

    @torch.inference_mode()
    def step(self, works: Sequence[Work], *, rows: int | None = None) -> float:
        """Move each work on by one denoising step of its own, in one UNet call; the seconds. All have the same size.

        `rows` pads the UNet's batch up to as many, for a model compiled for that. Where anything is raised, no work has
        moved, and the call can be repeated with fewer.
        """
        started = self._clock()
        batch = self._batch
        if batch is None or not batch.holds(works, rows):
            batch = Batch(works, rows=rows, device=self.device)
        self._batch = None  # one that failed is not taken up again

        def predict(latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            noise: torch.Tensor = self._unet(
                latents,
                timesteps,
                encoder_hidden_states=batch.text,
                added_cond_kwargs={"text_embeds": batch.pooled, "time_ids": batch.time_ids},
                return_dict=False,
            )[0]
            return noise

        batch.step(predict)
        self._batch = batch
        elapsed = self._clock() - started
        for work in works:
            work.step_s.append(elapsed)
            work.batch_rows += len(works)
        return elapsed

    @torch.inference_mode()
    def decode(self, batch: Sequence[Work]) -> list[Image]:
        """Turn the latents of finished works, all of one size, into PIL images."""
        started = self._clock()
        vae, config = self._vae, self._vae.config
        latents = torch.cat([work.latents for work in batch]).to(vae.dtype)
        if getattr(config, "latents_mean", None) is not None and config.latents_std is not None:
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
        pixels = self._pipe.image_processor.postprocess(pixels, output_type="pt")
        images = self._pictures(pixels)
        elapsed = self._clock() - started
        for work in batch:
            work.decode_s = elapsed
        return images

    def _pictures(self, pixels: torch.Tensor) -> list[Image]:
        # Rounded to bytes where they are: to the stock call's values, of a quarter of its bytes, and not on one core.
        values = (pixels.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return [fromarray(value) for value in values]

    def generate(self, request: GenerateRequest | Sequence[GenerateRequest]) -> GenerateResult:
        """Make one image a request; several requests of one size share each denoising step.

        Raises ValueError where the sizes differ, `torch.OutOfMemoryError` where the device has too little memory.
        """
        requests = [request] if isinstance(request, GenerateRequest) else list(request)
        if len({(r.width, r.height) for r in requests}) != 1:
            raise ValueError(
                "request: a batch needs at least one request, and all of one width and height; split it"
            )
        return on_torch_thread(self._generate, requests)

    def _generate(self, requests: list[GenerateRequest]) -> GenerateResult:
        self.reset_peak_memory()
        started = self._clock()
        works = self.encode(requests)
        step_s: list[float] = []
        while unfinished := [work for work in works if not work.finished]:
            step_s.append(self.step(unfinished))
        images = self.decode(works)
        return GenerateResult(
            images=images,
            seeds=[work.seed for work in works],
            timings=Timings(
                encode_s=works[0].encode_s,
                denoise_s=sum(step_s),
                decode_s=works[0].decode_s,
                total_s=self._clock() - started,
                step_s=tuple(step_s),
            ),
            memory=self.peak_memory(),
        )

    def predict_s(self, width: int, height: int, num_inference_steps: int) -> float:
        """Seconds that one image would take: encode, two steps and decode are timed, the rest is arithmetic."""
        timings = self.generate(
            GenerateRequest(prompt="a", num_inference_steps=2, width=width, height=height)
        ).timings
        return timings.encode_s + timings.step_s[-1] * num_inference_steps + timings.decode_s

    def fits(self, width: int, height: int, images: int = 1) -> bool:
        """Whether the memory that is free now should do for so many images at once. A guess on the CPU, else True.

        The peak is in the VAE's decoder, whose widest activations at full resolution have `block_out_channels[1]`
        channels; four of them are alive at a time (measured: 3.6 for 1024x1024).
        """
        if self.device.type != "cpu":
            return True
        if self._vae.use_slicing:
            images = 1
        if self._vae.use_tiling:
            width, height = (min(side, self._vae.tile_sample_min_size) for side in (width, height))
        widest: int = self._vae.config.block_out_channels[:2][-1]
        needed_bytes = images * width * height * 4 * widest * self._vae.dtype.itemsize
        return bool(needed_bytes / GIB <= available_memory_gib())

    def close(self) -> None:
        """Free the model's memory at once; the pipeline computes no more. May be called again."""
        self._pipe = self._unet = self._vae = self._stock_vae = self._batch = None
        self.__dict__.pop("diffusers", None)
        gc.collect()  # torch's Module.compile leaves reference cycles
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def reset_peak_memory(self) -> None:
        reset_peak_memory(self.device)

    def peak_memory(self) -> PeakMemory:
        return peak_memory(self.device)

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

    `device="auto"` is CUDA where there is one, else the CPU; `dtype="auto"` is float16 on CUDA, else float32, unless
    the recipe sets one. `recipe` names optimisations, joined with "+" (recipes.py). `seed` draws the weights of the
    random models. `torch_threads` sets the CPU threads of torch for the whole process. Raises ValueError for a bad
    argument and `ModelError` where the model can't be had, each naming the remedy.
    """
    before_gib = process_memory_gib()
    recipes, target, dtype = resolve(recipe, device=device, dtype=dtype)
    if torch_threads is not None:
        if torch_threads < 1:
            raise ValueError(
                f"torch_threads: {torch_threads} is too few; use 1 or more, or None for torch's own choice"
            )
        on_torch_thread(
            torch.set_num_threads, torch_threads
        )  # a thread that has computed keeps its number
    model, reason = choose_model(model, target)

    def load() -> SDXLPipeline:
        pipe = load_diffusers(model, device=target, dtype=DTYPES[dtype], seed=seed)
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
        return SDXLPipeline(pipe, spec=spec, recipes=recipes)

    return on_torch_thread(load)


def resolve(
    recipe: str, *, device: str = "auto", dtype: str = "auto"
) -> tuple[tuple[Recipe, ...], torch.device, str]:
    """The recipes, device and dtype that `load_pipeline` would use. Raises ValueError where it would, loading nothing
    before."""
    recipes, target = parse_recipes(recipe), _device(device)
    if dtype == "auto":
        usual = "float16" if target.type == "cuda" else "float32"
        dtype = next((one.dtype for one in recipes if one.dtype), usual)
    if dtype not in DTYPES:
        raise ValueError(
            f"dtype: {dtype!r} is not known; use 'auto', {', '.join(map(repr, DTYPES))}"
        )
    for one in sorted(
        recipes, key=lambda one: one.sets == "compiler"
    ):  # last, as it takes seconds to try
        on_torch_thread(one.check, target, dtype)
    return recipes, target, dtype


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"device: {name!r} is not known; use 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'"
        ) from error
    if device.type == "cuda" and (
        not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()
    ):
        raise ValueError(
            f"device: {name!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices; use 'auto'"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device: 'mps' is not there; use 'auto'")
    return device


def _described(network: torch.nn.Module) -> dict[str, Any]:
    """What a network holds: parameters, GiB of them, and the type of the largest."""
    parameters = list(network.parameters())
    return {
        "params": sum(p.numel() for p in parameters),
        "gib": held_gib(parameters),
        "dtype": str(max(parameters, key=torch.Tensor.numel).dtype).removeprefix("torch."),
    }
