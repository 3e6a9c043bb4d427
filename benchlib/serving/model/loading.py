"""Loading: from the names of a model, a device, a dtype and recipes to a pipeline that computes.

Knows which devices and dtypes there are, and checks every argument before anything is loaded.
Ignorant of where weights come from (models.py) and of how images are made (pipeline.py).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache

# This comes first, because it imports the libraries with fewer looks at their files
from benchlib.serving.model.first_imports import fewer_looks

# isort: split
import torch

from benchlib.collector import collector_paused
from benchlib.serving.model.adapters import LoraPlan, fuse_adapters
from benchlib.serving.model.finite import require_finite_weights
from benchlib.serving.model.models import choose_model, load_model
from benchlib.serving.model.network_checks import require_runnable_scheduler
from benchlib.serving.model.pipeline import SDXLPipeline
from benchlib.serving.model.recipes import Recipe, parse_recipes, with_extras
from benchlib.serving.model.torch_thread import long_torch_call, on_torch_thread
from benchlib.serving.model.whole_process import warned_of_traces
from benchlib.serving.scheduler_names import check_scheduler
from benchlib.telemetry import process_memory_gib

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TINY_THREADS = 1
"""The layers of "tiny" are too small to be shared out.

Two threads took 1.1 times as long as one on two idle cores, and 20 to 50 times as long beside other
busy processes.
"""


def load_pipeline(
    model: str = "tiny",
    *,
    device: str = "auto",
    dtype: str = "auto",
    recipe: str = "baseline",
    scheduler: str | None = None,
    loras: Mapping[str, str] | None = None,
    fuse: str | None = None,
    seed: int = 0,
    torch_threads: int | None = None,
    unet: str | None = None,
    vae: str | None = None,
) -> SDXLPipeline:
    """Load a model and return its pipeline.

    `model` is "tiny", "sdxl", "sdxl-random", "auto", a hub id, a folder or a .safetensors file.

    `device="auto"` is CUDA where there is a GPU, else the CPU. `dtype="auto"` is the recipe's
    dtype, else float16 on CUDA and float32 elsewhere. `recipe` names optimisations, joined with "+"
    (recipes.py). `scheduler` is a sampler's name (docs/samplers.md), or None for the model's own.
    `seed` is the seed of the random models' weights. `torch_threads` sets torch's CPU threads for
    the whole process. None is torch's own number, but one thread for "tiny". `unet` and `vae`
    replace the model's own by one from a .safetensors file, a folder, or the hub (docs/models.md).

    `loras` are LoRA adapters by name, each a .safetensors file, a folder, a hub id, or "random" to
    try one out. A request names its adapter. `fuse="style:0.8"` adds an adapter to the weights
    instead, with its scale; "+" joins several. docs/lora.md has more.

    A load that takes 20 s or more prints so every 20 s. Raises ValueError for a bad argument and
    `ModelError` if the model can't be loaded. Both name the remedy.
    """
    parts = _Parts()
    memory_before_gib = process_memory_gib()
    with collector_paused(), fewer_looks():  # it imports the compiler
        recipes, target, dtype = resolve(recipe, device=device, dtype=dtype)
    parts.ends("check")
    if scheduler is not None:
        try:
            check_scheduler(scheduler)
        except ValueError as error:
            raise ValueError(f"scheduler: {error}") from None
    if torch_threads is not None and torch_threads < 1:
        raise ValueError(
            f"torch_threads: {torch_threads} is too few; use 1 or more, or None for the usual number"
        )
    plan = LoraPlan(loras, fuse, recipes)
    model, reason = choose_model(model, target)
    # A thread that has computed before keeps its own setting, so the torch thread itself sets it.
    usual_threads = _own_threads()  # asked before the first load changes it
    if model == "tiny":
        usual_threads = TINY_THREADS
    on_torch_thread(torch.set_num_threads, torch_threads or usual_threads)

    def load() -> SDXLPipeline:
        loaded = load_model(
            model, device=target, dtype=DTYPES[dtype], seed=seed, unet=unet, vae=vae
        )
        fuse_adapters(loaded.pipe, plan)
        parts.ends("networks")
        require_finite_weights(loaded.pipe, model)
        parts.ends("finite")
        spec = {
            "model": model,
            "model_reason": reason,
            "device": str(target),
            "dtype": dtype,
            "recipe": recipe,
            "recipes": [one.name for one in recipes],
            "scheduler": scheduler,
            "seed": seed,
            "torch_threads": torch.get_num_threads(),
            "memory_before_load_gib": memory_before_gib,
            **loaded.facts,
            **plan.spec(),
        }
        if scheduler is None:
            require_runnable_scheduler(loaded.pipe.scheduler, model)
        return SDXLPipeline(
            loaded.pipe, spec=spec, recipes=recipes, scheduler=scheduler, loras=plan
        )

    def load_and_look() -> SDXLPipeline:
        with warned_of_traces(), collector_paused():
            return load()

    pipeline = long_torch_call(f"{model}: loading the model", load_and_look)
    parts.ends("recipes")
    pipeline.spec["load_parts_s"] = parts.seconds
    pipeline.spec["load_s"] = sum(parts.seconds.values())
    return pipeline


class _Parts:
    """The seconds of each part of a load: checks, networks, the look at their weights, recipes.

    A GPU is waited for where the weights are looked at, so drawing them counts there.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began_s = time.monotonic()

    def ends(self, name: str) -> None:
        now_s = time.monotonic()
        self.seconds[name] = now_s - self._began_s
        self._began_s = now_s


def resolve(
    recipe: str, *, device: str = "auto", dtype: str = "auto"
) -> tuple[tuple[Recipe, ...], torch.device, str]:
    """The recipes, the device and the dtype that `load_pipeline` would use.

    Loads nothing. Raises ValueError where `load_pipeline` would.
    """
    recipes = parse_recipes(recipe)
    target = _device(device)
    if dtype == "auto":
        dtype = _usual_dtype(recipes, target)
    if dtype not in DTYPES:
        dtypes = ", ".join(repr(name) for name in DTYPES)
        raise ValueError(f"dtype: {dtype!r} is not known; use 'auto', {dtypes}")
    recipes = on_torch_thread(with_extras, recipe, recipes, target, dtype)

    def compiles(one: Recipe) -> bool:
        return one.sets == "compiler"

    # A compiler takes seconds to try, so it comes last.
    for one in sorted(recipes, key=compiles):
        on_torch_thread(one.check, target, dtype)
    return recipes, target, dtype


def _usual_dtype(recipes: tuple[Recipe, ...], device: torch.device) -> str:
    for one in recipes:
        if one.dtype is not None:
            return one.dtype
    return "float16" if device.type == "cuda" else "float32"


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"device: {name!r} is not known; use 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'"
        ) from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            seen = "1 CUDA device" if count == 1 else f"{count} CUDA devices"
            raise ValueError(f"device: {name!r} is not there: torch sees {seen}; use 'auto'")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device: 'mps' is not there; use 'auto'")
    return device


@cache
def _own_threads() -> int:
    """Torch's own number of threads, as it was before this module set any."""
    return on_torch_thread(torch.get_num_threads)
