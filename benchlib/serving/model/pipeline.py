"""The pipeline: SDXL as encode, denoising steps and decode, each timed, for one image or a batch.

Knows diffusers' text-to-image algorithm (StableDiffusionXLPipeline.__call__ in
diffusers/pipelines/stable_diffusion_xl/pipeline_stable_diffusion_xl.py) and reproduces its images
to the bit. Ignorant of queues and HTTP. `generate` may be called from any thread. `encode`, `step`
and `decode` are called on the torch thread (torch_thread.py): from another thread, they would slow
down both threads.
"""

from __future__ import annotations

import copy
import gc
import secrets
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from PIL.Image import Image, fromarray
from torch import Tensor

from benchlib.cell_view import CellView, ShownInCell
from benchlib.collector import collector_paused
from benchlib.machine import available_memory_gib
from benchlib.serving.model.adapters import Adapters, LoraPlan
from benchlib.serving.model.denoise import Batch, Work
from benchlib.serving.model.device_clock import DeviceClock
from benchlib.serving.model.finite import places_not_finite, sums_of
from benchlib.serving.model.kept_artefacts import ARTEFACTS, describe
from benchlib.serving.model.memory import (
    PeakMemory,
    decode_peak_gib,
    peak_memory,
    reset_peak_memory,
)
from benchlib.serving.model.model_spec import describe_model
from benchlib.serving.model.model_views import view_of_pipeline
from benchlib.serving.model.optimisations import graphs_made
from benchlib.serving.model.prompts import embed_guidance, embed_prompts
from benchlib.serving.model.recipes import Recipe, apply_recipes
from benchlib.serving.model.results import GenerateResult, Timings
from benchlib.serving.model.schedulers import Schedules, step_options
from benchlib.serving.model.torch_thread import long_torch_call
from benchlib.serving.model.vaes import unscaled
from benchlib.serving.schemas import MAX_SEED, GenerateRequest, unfit_sides


class SDXLPipeline(ShownInCell):
    """An SDXL pipeline that is driven step by step. `load_pipeline` (loading.py) makes it.

    A request writes nothing to the pipeline. Noise is drawn in float32 on the CPU, whatever the
    device and dtype. So a seed means the same image everywhere, up to the device's arithmetic.
    """

    def __init__(
        self,
        pipe: StableDiffusionXLPipeline,
        *,
        spec: dict[str, Any],
        recipes: tuple[Recipe, ...] = (),
        scheduler: str | None = None,
        loras: LoraPlan | None = None,
    ) -> None:
        self._pipe = pipe
        self.device = pipe.unet.device
        self._clock = DeviceClock(self.device)
        self.schedules = Schedules(pipe.scheduler, self.device, chosen=scheduler)
        pipe.scheduler = self.schedules.default()
        self._batch: Batch | None = None  # the batch of the latest step
        # A compiled or recorded network must be warmed for each shape before it serves.
        self.compiled = any(recipe.sets in ("compiler", "launches") for recipe in recipes)
        self._compiles = any(recipe.sets == "compiler" for recipe in recipes)
        self._graphs_kept = 0
        self._computed: set[tuple[str, torch.Size]] = set()

        networks = apply_recipes(pipe, recipes, apart=bool(loras and loras.by_request))
        self._unet = networks.unet
        self.adapters = Adapters(pipe, networks.unet, loras)
        if networks.records_texts:
            self.adapters.record_texts(networks.recorder)
        self._vae = networks.vae
        # A float16 VAE overflows, so the stock call casts the VAE to float32 and back around each
        # decode. Here the VAE is cast once, and `diffusers` gets a float16 copy.
        self._stock_vae = pipe.vae
        self._upcast = self._vae.dtype == torch.float16 and bool(self._vae.config.force_upcast)
        if self._upcast:
            self._vae.float()
            pipe.vae = None
        in_use = {"unet": self._unet, "vae": self._vae}
        if "recipes" in spec:
            used = [name for name in spec["recipes"] if name not in networks.left_out]
            spec = spec | {"recipes": used}
        self.spec = spec | describe_model(pipe, spec, in_use, self._stock_vae)
        if self._compiles:
            self.spec["artefacts"] = describe(ARTEFACTS.restore(self.device))

    def _view(self) -> CellView:
        return view_of_pipeline(self.spec)

    @cached_property
    def diffusers(self) -> StableDiffusionXLPipeline:
        """A stock StableDiffusionXLPipeline over the same weights (see `apply_recipes`)."""
        if self._upcast:
            self._pipe.vae = copy.deepcopy(self._stock_vae).half()
        return self._pipe

    def encode(self, requests: Sequence[GenerateRequest]) -> list[Work]:
        """Return a work for each request; all share a call, and have one adapter.

        Raises RuntimeError after `close`, and ValueError for a size that the model can't make.
        """
        started_s = self._clock.now()
        works = self._encode(requests)
        elapsed_s = self._clock.now() - started_s
        for work in works:
            work.encode_s = elapsed_s
        return works

    @torch.inference_mode()
    def _encode(self, requests: Sequence[GenerateRequest]) -> list[Work]:
        """As `encode`, but a GPU is not waited for."""
        if self._pipe is None:
            raise RuntimeError("the pipeline is closed; load it again")
        for request in requests:
            for side, words in unfit_sides(request, self.spec["size_multiple"]).items():
                raise ValueError(f"{side}: {words}")
        self.adapters.use(requests[0].lora)
        embeddings = embed_prompts(self.adapters.pipe, requests)
        pairs = zip(requests, embeddings, strict=True)
        return [self._make_work(request, *embedding) for request, embedding in pairs]

    def _make_work(self, request: GenerateRequest, text: Tensor, pooled: Tensor) -> Work:
        seed = request.seed
        if seed is None:
            seed = secrets.randbelow(MAX_SEED + 1)
        generator = torch.Generator("cpu").manual_seed(seed)
        # The noise is drawn in float32 and then rounded, as torch 2.13 does. torch 2.11 draws other
        # numbers in 16 bits.
        channels = self._pipe.unet.config.in_channels
        scale = self._pipe.vae_scale_factor
        shape = (1, channels, request.height // scale, request.width // scale)
        noise = torch.randn(shape, generator=generator, dtype=torch.float32)
        sampler = (request.scheduler, request.num_inference_steps)
        schedule = self.schedules.find(*sampler)
        scheduler = self.schedules.make_scheduler(*sampler, seed)
        size = (request.height, request.width)
        return Work(
            request=request,
            seed=seed,
            schedule=schedule,
            scheduler=scheduler,
            step_options=step_options(scheduler, generator),
            generator=generator,
            latents=noise.to(self.device, text.dtype) * schedule.init_noise_sigma,
            text=text,
            pooled=pooled,
            time_ids=torch.tensor([[*size, 0, 0, *size]], dtype=text.dtype, device=self.device),
            guidance_embedding=embed_guidance(self._pipe, request, text.dtype),
        )

    def step(self, works: Sequence[Work], *, rows: int | None = None) -> float:
        """Move each work one step on, in one call of the UNet; returns the seconds.

        All works have one size and one adapter. `rows` pads the UNet's batch to that many rows, for
        a model that was compiled for it. After an error no work has moved, and the call may be repeated with
        fewer works. A work that its own scheduler fails gets a `failure`, and the others move.
        """
        started_s = self._clock.now()
        launch_s = self._move(works, rows)
        elapsed_s = self._clock.now() - started_s
        for work in works:
            work.step_s.append(elapsed_s)
            work.launch_s += launch_s
            work.batch_rows += len(works)
        return elapsed_s

    @torch.inference_mode()
    def _move(self, works: Sequence[Work], rows: int | None = None) -> float:
        """As `step`, but a GPU is not waited for. Returns the seconds of the UNet's call."""
        self.adapters.use(works[0].request.lora)
        batch = self._batch
        if batch is None or not batch.holds(works, rows):
            batch = Batch(works, rows=rows, device=self.device)
        self._batch = None  # a batch that fails is not used again
        latents, timesteps = batch.inputs()
        options = {}
        if batch.guidance_embedding is not None:
            options["timestep_cond"] = batch.guidance_embedding
        called_s = time.monotonic()
        with self._patience("unet", latents):
            noise = self._unet(
                latents,
                timesteps,
                encoder_hidden_states=batch.text,
                added_cond_kwargs={"text_embeds": batch.pooled, "time_ids": batch.time_ids},
                return_dict=False,
                **options,
            )[0]
        launch_s = time.monotonic() - called_s
        batch.advance(noise)
        if not any(work.failure for work in works):
            self._batch = batch
        return launch_s

    def _patience(self, network: str, latents: Tensor) -> AbstractContextManager[None]:
        """A block for a network's call: the first one with a shape may compile for a long time."""
        call = (network, latents.shape)
        if not self.compiled or call in self._computed:
            return nullcontext()
        self._computed.add(call)
        return collector_paused()

    def decode(self, works: Sequence[Work]) -> list[Image]:
        """Turn the latents of finished works, all of one size, into PIL images."""
        started_s = self._clock.now()
        images = self._decode(works)
        elapsed_s = self._clock.now() - started_s
        for work in works:
            work.decode_s = elapsed_s
        return images

    @torch.inference_mode()
    def _decode(self, works: Sequence[Work]) -> list[Image]:
        """As `decode`, but what a GPU did before is not waited for until all is launched."""
        latents = torch.cat([work.latents for work in works]).to(self._vae.dtype)
        latents = unscaled(latents, self._vae.config)
        with self._patience("vae", latents):
            pixels = self._vae.decode(latents, return_dict=False)[0]
        sums = sums_of(latents, pixels)
        if self._pipe.watermark is not None:
            pixels = self._pipe.watermark.apply_watermark(pixels)
        pixels = self._pipe.image_processor.postprocess(pixels, output_type="pt")
        images = self._pictures(pixels)
        # Read after the images, so that a GPU is waited for once.
        for work, place in zip(works, places_not_finite(sums.tolist()), strict=True):
            work.not_finite = place
        return images

    def _pictures(self, pixels: Tensor) -> list[Image]:
        # Rounding on the device gives the stock call's values and copies a quarter of the bytes.
        levels = (pixels.float() * 255).round().to(torch.uint8)
        levels = levels.permute(0, 2, 3, 1).contiguous()  # PIL needs 3 ms for other layouts
        # A copy that does not block goes to pinned memory, and only CUDA is waited for below
        is_cuda = self.device.type == "cuda"
        arrays = levels.to("cpu", non_blocking=is_cuda).numpy()
        if is_cuda:
            torch.cuda.current_stream(self.device).synchronize()
        return [fromarray(array) for array in arrays]

    def generate(self, request: GenerateRequest | Sequence[GenerateRequest]) -> GenerateResult:
        """Make one image for each request. Several requests share their denoising steps.

        Raises ValueError if sizes or adapters differ or a scheduler refuses the number of steps,
        and `torch.OutOfMemoryError` if the device has too little memory.
        """
        requests = [request] if isinstance(request, GenerateRequest) else list(request)
        kinds = {(one.width, one.height, one.lora) for one in requests}
        if len(kinds) != 1:
            raise ValueError(
                "request: a batch needs at least one request, and all of one width, height and "
                "lora; split it"
            )
        return long_torch_call(f"{self.spec['model']}: making images", self._generate, requests)

    def _generate(self, requests: list[GenerateRequest]) -> GenerateResult:
        self.reset_peak_memory()
        # 1) Compute. The host runs ahead of a GPU from the prompts to the pixels
        marks = [self._clock.mark()]
        works = unfinished = self._encode(requests)
        marks.append(self._clock.mark())
        while unfinished:
            self._move(unfinished)
            marks.append(self._clock.mark())
            for work in works:
                if work.failure is not None:
                    raise work.failure
            unfinished = [work for work in works if not work.finished]
        images = self._decode(works)
        marks.append(self._clock.mark())

        # 2) Read the times
        self._clock.now()
        encode_s, *step_s, decode_s = self._clock.between(marks)
        denoise_s = sum(step_s)
        total_s = encode_s + denoise_s + decode_s
        timings = Timings(encode_s, denoise_s, decode_s, total_s, tuple(step_s))
        self.keep_artefacts()
        return GenerateResult(images, [work.seed for work in works], timings, self.peak_memory())

    def predict_s(self, width: int, height: int, num_inference_steps: int) -> float:
        """Predicted seconds of one image, from a timed encode, two steps or more, and a decode."""
        few = self.schedules.nearest_steps(2)
        request = GenerateRequest(prompt="a", num_inference_steps=few, width=width, height=height)
        timings = self.generate(request).timings
        steps = self.schedules.nearest_steps(num_inference_steps)
        calls = self.schedules.find(None, steps).calls
        denoise_s = timings.step_s[-1] * calls
        return timings.encode_s + denoise_s + timings.decode_s

    def fits(self, width: int, height: int, images: int = 1) -> bool:
        """Whether `images` images at once should fit: an estimate on a CPU, True elsewhere."""
        if self.device.type != "cpu":
            return True
        return decode_peak_gib(self._vae, width, height, images) <= available_memory_gib()

    def keep_artefacts(self) -> None:
        """Keep what was compiled since the last call, for the next start."""
        if self._compiles and graphs_made() != self._graphs_kept:
            self._graphs_kept = graphs_made()
            ARTEFACTS.keep(self.device)

    def close(self) -> None:
        """Free the model's memory; the pipeline can't compute any more. May be called again."""
        self.keep_artefacts()
        self._pipe = self._unet = self._vae = self._stock_vae = self._batch = None
        self.adapters.close()
        self.__dict__.pop("diffusers", None)
        gc.collect()  # torch's Module.compile leaves reference cycles
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def reset_peak_memory(self) -> None:
        """Start a new peak of memory."""
        reset_peak_memory(self.device)

    def peak_memory(self) -> PeakMemory:
        """The peak of memory since the last reset, in GiB."""
        return peak_memory(self.device)
