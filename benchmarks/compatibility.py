"""Which kinds of SDXL, samplers and LoRAs give stock diffusers' image, and which are refused.

    python -m benchmarks.compatibility                    # prints the table, in float32
    python -m benchmarks.compatibility --dtype bfloat16   # the same in another number format
    python -m benchmarks.compatibility --device cuda      # on a GPU; there rounding may differ
    python -m benchmarks.compatibility --write            # all three, into docs/compatibility.md

Each case is a small model with random weights, made in code. Its image must be that of a fresh stock
pipeline, to the bit, or the load must be refused in words. Where stock itself gives another image
than the model's author meant, the case names the stock pipeline that does it right. Exits 1 if a case
is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    EDMEulerScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from benchlib.serving.model import single_files
from benchlib.serving.model.loading import load_pipeline
from benchlib.serving.model.model_errors import ModelError
from benchlib.serving.model.schedulers import build_scheduler
from benchlib.serving.model.single_files import SDXL_HUB_ID
from benchlib.serving.model.torch_thread import on_torch_thread
from benchlib.serving.scheduler_names import SCHEDULERS
from benchlib.serving.schemas import GenerateRequest
from tests.serving.model import small_models as small
from tests.serving.model import test_adapters as adapters

PAGE = Path(__file__).parents[1] / "docs/compatibility.md"
DTYPES = ("float32", "float16", "bfloat16")
STEPS = 6
EQUAL = "equal to stock"
BETTER = "better than stock"
REFUSED = "refused"
NEAR = "stock but for rounding"
WRONG = "WRONG"
MOST_ROUNDING = 3
"""On a GPU, pixels that differ by more than this of 255 are another image."""

Stock = Callable[[Path, torch.dtype], StableDiffusionXLPipeline]


@dataclass(frozen=True)
class Model:
    """How a kind of model is written into a folder, and the stock pipeline that gives its image.

    `write` returns the arguments of `load_pipeline`. `stock` is None for a model that must be
    refused. `better`: stock as users call it gives another image, or none.
    """

    write: Callable[[Path], dict[str, str]]
    stock: Stock | None = None
    better: bool = False


@dataclass(frozen=True)
class Case:
    """A kind of model, a sampler by name, and a LoRA with the way in which it is used."""

    model: str
    sampler: str | None = None
    lora: str | None = None
    use: str | None = None  # "by request", "fused" or "scale 0"


# -- kinds of models -------------------------------------------------------------------------------


@cache
def plain() -> StableDiffusionXLPipeline:
    return small.small_pipeline()


def folder_of(pipe: StableDiffusionXLPipeline, **options: Any) -> Callable[[Path], dict[str, str]]:
    def write(folder: Path) -> dict[str, str]:
        pipe.save_pretrained(folder / "model", **options)
        return {"model": str(folder / "model")}

    return write


def changed_folder(change: Callable[[Path], None]) -> Callable[[Path], dict[str, str]]:
    """A folder of the plain model, changed by a function."""

    def write(folder: Path) -> dict[str, str]:
        plain().save_pretrained(folder / "model")
        change(folder / "model")
        return {"model": str(folder / "model")}

    return write


def stock_folder(variant: str | None = None) -> Stock:
    def load(folder: Path, dtype: torch.dtype) -> StableDiffusionXLPipeline:
        return StableDiffusionXLPipeline.from_pretrained(
            folder / "model", dtype=dtype, variant=variant, local_files_only=True
        )

    return load


def single_file(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = dict,
    dtype: torch.dtype | None = None,
) -> Callable[[Path], dict[str, str]]:
    """A single file of the plain model in the original layout, its weights changed by a function."""

    def write(folder: Path) -> dict[str, str]:
        weights = change(small.original_weights(plain()))
        return {"model": str(small.save(weights, folder / "model.safetensors", dtype))}

    return write


def stock_file(**scheduler: Any) -> Stock:
    """Stock on a single file, with these options of the scheduler set by hand."""

    def load(folder: Path, dtype: torch.dtype) -> StableDiffusionXLPipeline:
        pipe = StableDiffusionXLPipeline.from_single_file(
            folder / "model.safetensors", config=str(base_folder()), dtype=dtype
        )
        own = pipe.scheduler
        pipe.scheduler = type(own).from_config(own.config, **scheduler)
        return pipe

    return load


def stock_cosxl(folder: Path, dtype: torch.dtype) -> StableDiffusionXLPipeline:
    pipe = stock_file()(folder, dtype)
    pipe.scheduler = EDMEulerScheduler(
        sigma_max=120.0,
        sigma_min=torch.tensor(0.002).item(),
        sigma_data=1.0,
        sigma_schedule="exponential",
        prediction_type="v_prediction",
    )
    return pipe


def with_unet(
    unet: UNet2DConditionModel, name: str
) -> tuple[Callable[[Path], dict[str, str]], Stock]:
    """The plain model with another UNet in a file, and stock with that UNet."""

    def write(folder: Path) -> dict[str, str]:
        plain().save_pretrained(folder / "model")
        path = small.save(unet.state_dict(), folder / name)
        return {"model": str(folder / "model"), "unet": str(path)}

    def stock(folder: Path, dtype: torch.dtype) -> StableDiffusionXLPipeline:
        pipe = stock_folder()(folder, dtype)
        own = UNet2DConditionModel.from_config(unet.config)
        own.load_state_dict(unet.state_dict())
        pipe.unet = own.to(dtype).eval()
        return pipe

    return write, stock


def with_vae(
    vae: AutoencoderKL | AutoencoderTiny,
    name: str,
    *,
    config: Mapping[str, Any] | None = None,
    usual: Mapping[str, Any] | None = None,
    upcast: bool | None = None,
) -> tuple[Callable[[Path], dict[str, str]], Stock]:
    """The plain model with another VAE, in a file or a folder by its name, and stock with that VAE.

    `config` changes the folder's configuration, and `usual` that of the model's own VAE. `upcast`
    is what stock must be told of a file.
    """

    def write(folder: Path) -> dict[str, str]:
        plain().save_pretrained(folder / "model")
        small.change_json(folder / "model/vae/config.json", **usual or {})
        if name.endswith(".safetensors"):
            small.save(vae.state_dict(), folder / name)
        else:
            vae.save_pretrained(folder / name)
            small.change_json(folder / name / "config.json", **config or {})
        return {"model": str(folder / "model"), "vae": str(folder / name)}

    def stock(folder: Path, dtype: torch.dtype) -> StableDiffusionXLPipeline:
        changes = dict(usual or {}) | dict(config or {})
        if upcast is not None:
            changes["force_upcast"] = upcast
        own = type(vae).from_config(dict(vae.config) | changes)
        own.load_state_dict(vae.state_dict())
        return StableDiffusionXLPipeline.from_pretrained(
            folder / "model", vae=own.to(dtype).eval(), dtype=dtype, local_files_only=True
        )

    return write, stock


def with_scheduler(name: str, **config: Any) -> Callable[[Path], None]:
    """Changes a folder's scheduler, as its author would."""

    def change(folder: Path) -> None:
        small.change_json(folder / "model_index.json", scheduler=["diffusers", name])
        file = folder / "scheduler/scheduler_config.json"
        small.change_json(file, _class_name=name, **config)

    return change


def another_vae(**config: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        shutil.rmtree(folder / "vae")
        AutoencoderKL(**config).save_pretrained(folder / "vae")

    return change


def without_first_encoder(folder: Path) -> None:
    """As diffusers allows it: both the encoder and its tokenizer are null in model_index.json."""
    for part in ("text_encoder", "tokenizer", "unet"):
        shutil.rmtree(folder / part)
    small.change_json(
        folder / "model_index.json", text_encoder=[None, None], tokenizer=[None, None]
    )
    narrow = small.SMALL["unet"] | {"cross_attention_dim": 96}
    torch.manual_seed(0)
    UNet2DConditionModel(**narrow).save_pretrained(folder / "unet")


def stale_index(folder: Path) -> None:
    """Saved in shards and later whole: the index of the shards is still there."""
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(
        '{"metadata": {}, "weight_map": {"conv_in.weight": "gone-00001-of-00002.safetensors"}}'
    )


def with_weights(
    part: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> Callable[[Path], None]:
    """Changes the weights of one network of a folder."""

    def rewrite(folder: Path) -> None:
        [path] = (folder / part).glob("*.safetensors")
        save_file(change(load_file(path)), path, metadata={"format": "pt"})

    return rewrite


def in_fp8(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        key: value.to(torch.float8_e4m3fn) if value.ndim > 1 else value
        for key, value in weights.items()
    }


def in_scaled_fp8(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return in_fp8(weights) | {"conv_in.scale_weight": torch.tensor([0.5])}


def compiled_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"_orig_mod.{key}": value for key, value in weights.items()}


def in_4_bits(folder: Path) -> None:
    method = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    small.change_json(folder / "unet/config.json", quantization_config=method)


def fewer_layers_in_config(folder: Path) -> None:
    deeper = small.small_pipeline(unet={"transformer_layers_per_block": [1, 1, 2]})
    shutil.rmtree(folder / "unet")
    deeper.unet.save_pretrained(folder / "unet")
    small.change_json(folder / "unet/config.json", transformer_layers_per_block=[1, 1, 1])


def without_merges(folder: Path) -> None:
    (folder / "tokenizer/tokenizer.json").unlink()
    (folder / "tokenizer/vocab.json").write_text(json.dumps(plain().tokenizer.get_vocab()))


def another_class(name: str) -> Callable[[Path], None]:
    return lambda folder: small.change_json(folder / "model_index.json", _class_name=name)


def cut(folder: Path) -> dict[str, str]:
    written = single_file()(folder)
    path = Path(written["model"])
    path.write_bytes(path.read_bytes()[:200_000])
    return written


UNET_KEY = "model.diffusion_model."
CONV_IN = f"{UNET_KEY}input_blocks.0.0.weight"


def only(prefix: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda weights: {key: value for key, value in weights.items() if key.startswith(prefix)}


def without(prefix: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda weights: {
        key: value for key, value in weights.items() if not key.startswith(prefix)
    }


def marked(*keys: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda weights: weights | {key: torch.tensor([]) for key in keys}


def of_cosxl(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    levels = {"sigma_max": 120.0, "sigma_min": 0.002}
    return weights | {f"edm_vpred.{name}": torch.tensor(value) for name, value in levels.items()}


def nine_channels(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    first = weights[CONV_IN]
    return weights | {CONV_IN: torch.cat([first, first, first[:, :1]], dim=1)}


def lora_keys(_: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    half = torch.zeros(4, 4)
    name = "lora_unet_mid_block_attentions_0_proj_in"
    return {f"{name}.lora_up.weight": half, f"{name}.lora_down.weight": half}


@cache
def base_folder() -> Path:
    """The folder whose configuration single files take."""
    folder = Path(tempfile.mkdtemp()) / "base"
    plain().save_pretrained(folder)
    return folder


@cache
def models() -> dict[str, Model]:
    """Every kind of model by its name in the table."""
    other_unet = small.small_pipeline(seed=1).unet
    other_vae = small.small_pipeline(seed=1).vae
    wide_vae = small.small_pipeline(seed=1, vae={"latent_channels": 16}).vae
    tiny_vae = AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4
    ).eval()
    lcm = small.small_pipeline(seed=2, unet={"time_cond_proj_dim": 32}).unet
    smaller = small.small_pipeline(seed=3, unet={"transformer_layers_per_block": [1, 1, 2]})
    positions = {"max_position_embeddings": 248}
    long = small.small_pipeline(text_encoder=positions, text_encoder_2=positions)
    long.tokenizer.model_max_length = long.tokenizer_2.model_max_length = 248
    v_options = {"prediction_type": "v_prediction"}
    zero_snr = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scale = {"scaling_factor": plain().vae.config.scaling_factor}
    two_levels = {
        "block_out_channels": (32, 64),
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
    }
    five_levels = {
        "block_out_channels": (32,) * 5,
        "down_block_types": ["DownEncoderBlock2D"] * 5,
        "up_block_types": ["UpDecoderBlock2D"] * 5,
    }
    return {
        # 1) Folders
        "folder": Model(folder_of(plain()), stock_folder()),
        "folder in shards": Model(folder_of(plain(), max_shard_size="400KB"), stock_folder()),
        'only the variant "fp16"': Model(
            folder_of(plain(), variant="fp16"), stock_folder("fp16"), better=True
        ),
        'the variant "fp16" in shards': Model(
            folder_of(plain(), variant="fp16", max_shard_size="200KB"),
            stock_folder("fp16"),
            better=True,
        ),
        "stale index beside a whole file": Model(
            changed_folder(stale_index), lambda _, dtype: plain_in(dtype), better=True
        ),
        "smaller UNet (as SSD-1B)": Model(folder_of(smaller), stock_folder()),
        "no first text encoder": Model(changed_folder(without_first_encoder), stock_folder()),
        "VAE of 2 levels": Model(changed_folder(another_vae(**two_levels)), stock_folder()),
        "VAE of 5 levels": Model(changed_folder(another_vae(**five_levels)), stock_folder()),
        "v-prediction": Model(
            changed_folder(with_scheduler("EulerDiscreteScheduler", **v_options, **zero_snr)),
            stock_folder(),
        ),
        "Turbo: Euler a, trailing": Model(
            changed_folder(
                with_scheduler("EulerAncestralDiscreteScheduler", timestep_spacing="trailing")
            ),
            stock_folder(),
        ),
        "LCM's scheduler": Model(changed_folder(with_scheduler("LCMScheduler")), stock_folder()),
        "DPM++ SDE Karras": Model(
            changed_folder(
                with_scheduler(
                    "DPMSolverSDEScheduler", use_karras_sigmas=True, noise_sampler_seed=7
                )
            ),
            stock_folder(),
        ),
        "texts of 248 tokens (Long-CLIP)": Model(folder_of(long), stock_folder()),
        "UNet of a folder in fp8": Model(
            changed_folder(with_weights("unet", in_fp8)), stock_folder()
        ),
        "force_zeros_for_empty_prompt: false": Model(
            changed_folder(
                lambda folder: small.change_json(
                    folder / "model_index.json", force_zeros_for_empty_prompt=False
                )
            ),
            stock_folder(),
        ),
        # 2) Single files
        "file": Model(single_file(), stock_file()),
        "file in float16": Model(single_file(dtype=torch.float16), stock_file()),
        "file, v and zero SNR": Model(
            single_file(marked("v_pred", "ztsnr")), stock_file(**v_options, **zero_snr), better=True
        ),
        "file, v": Model(single_file(marked("v_pred")), stock_file(**v_options), better=True),
        "file, CosXL": Model(single_file(of_cosxl), stock_cosxl, better=True),
        # 3) Another UNet
        "UNet in a file": Model(*with_unet(other_unet, "unet.safetensors")),
        "UNet of an LCM": Model(*with_unet(lcm, "lcm.safetensors")),
        # 4) Another VAE
        "VAE in a file": Model(*with_vae(other_vae, "vae.safetensors")),
        "VAE in a folder": Model(*with_vae(other_vae, "alone")),
        "VAE fp16-fix in a file": Model(
            *with_vae(other_vae, "sdxl-vae-fp16-fix.safetensors", upcast=False)
        ),
        "VAE fp16-fix in a folder": Model(
            *with_vae(other_vae, "alone", config={"force_upcast": False})
        ),
        "own VAE of 2 levels": Model(
            *with_vae(AutoencoderKL(**two_levels, **scale).eval(), "alone")
        ),
        "own VAE of 5 levels": Model(
            *with_vae(AutoencoderKL(**five_levels, **scale).eval(), "alone")
        ),
        "tiny autoencoder in a folder": Model(*with_vae(tiny_vae, "alone")),
        "VAE and model of one other scaling_factor": Model(
            *with_vae(
                other_vae, "alone", config={"scaling_factor": 0.5}, usual={"scaling_factor": 0.5}
            )
        ),
        "VAE of another scaling_factor": Model(
            with_vae(other_vae, "alone", config={"scaling_factor": 0.18215})[0]
        ),
        "VAE of other latents_mean": Model(
            with_vae(other_vae, "alone", config={"latents_mean": [1.0] * 4})[0]
        ),
        "VAE of 16 channels in a file": Model(with_vae(wide_vae, "vae.safetensors")[0]),
        "VAE of 16 channels in a folder": Model(with_vae(wide_vae, "alone")[0]),
        "tiny autoencoder in a file": Model(with_vae(tiny_vae, "taesdxl.safetensors")[0]),
        # 5) What is no SDXL text-to-image model
        "refiner's folder": Model(
            changed_folder(another_class("StableDiffusionXLImg2ImgPipeline"))
        ),
        "inpainting folder": Model(
            changed_folder(another_class("StableDiffusionXLInpaintPipeline"))
        ),
        "Stable Diffusion 1's folder": Model(
            changed_folder(another_class("StableDiffusionPipeline"))
        ),
        "folder in scaled fp8": Model(changed_folder(with_weights("unet", in_scaled_fp8))),
        "folder in 4 bits (bitsandbytes)": Model(changed_folder(in_4_bits)),
        "folder with torch.compile's names": Model(
            changed_folder(with_weights("text_encoder", compiled_names))
        ),
        "folder with more layers than its config": Model(changed_folder(fewer_layers_in_config)),
        "tokenizer without merges.txt": Model(changed_folder(without_merges)),
        "inpainting file": Model(single_file(nine_channels)),
        "file of a UNet alone": Model(single_file(only(UNET_KEY))),
        "file of a VAE alone": Model(single_file(only("first_stage_model."))),
        "file without a VAE": Model(single_file(without("first_stage_model."))),
        "file without text encoders": Model(single_file(without("conditioner."))),
        "file of a LoRA": Model(single_file(lora_keys)),
        "cut file": Model(cut),
    }


def plain_in(dtype: torch.dtype) -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline.from_pretrained(base_folder(), dtype=dtype)


# -- LoRAs -----------------------------------------------------------------------------------------


@cache
def lora_files() -> dict[str, str]:
    """A file for each format of a LoRA, for the model `tiny`."""
    folder = Path(tempfile.mkdtemp())
    files = {}
    for number, (kind, make) in enumerate(adapters.FILES.items()):
        path = folder / f"{number}.safetensors"
        files[kind] = str(small.save(make(), path))
    return files


# -- cases -----------------------------------------------------------------------------------------


def all_cases() -> list[Case]:
    """Every case of the table: models, samplers, LoRAs, and some of them together."""
    cases = [Case(model) for model in models()]
    cases += [Case("folder", sampler) for sampler in SCHEDULERS]
    cases += [
        Case("tiny", None, lora, use) for lora in adapters.FILES for use in ("by request", "fused")
    ]
    cases += [
        Case("tiny", None, "peft", "scale 0"),
        Case("tiny", "dpmpp-2m-karras", "peft", "by request"),
        Case("tiny", "lcm", "kohya, LoCon, text encoders, alpha", "fused"),
        Case("no first text encoder", "dpmpp-2m-karras"),
        Case("VAE of 2 levels", "euler-a"),
        Case("v-prediction", "dpmpp-2m-karras"),
        Case("file, v and zero SNR", "euler-a"),
        Case("UNet of an LCM", "lcm"),
        Case("Turbo: Euler a, trailing", "dpmpp-sde-karras"),
        Case('only the variant "fp16"', "unipc"),
    ]
    return cases


def request_of(case: Case) -> GenerateRequest:
    name = "only:0" if case.use == "scale 0" else "only"
    return GenerateRequest(
        prompt="a lighthouse",
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        width=64,
        height=64,
        seed=1,
        lora=None if case.lora is None or case.use == "fused" else name,
    )


def our_pixels(
    case: Case, options: dict[str, str], dtype: str, device: str
) -> np.ndarray[Any, Any]:
    """The image of our pipeline. Raises ValueError or `ModelError` where it is refused."""
    more: dict[str, Any] = {}
    if case.lora is not None:
        more["loras"] = {"only": lora_files()[case.lora]}
    if case.use == "fused":
        more["fuse"] = "only"
    pipe = load_pipeline(
        **options, dtype=dtype, device=device, torch_threads=1, scheduler=case.sampler, **more
    )
    try:
        [image] = pipe.generate(request_of(case)).images
        return np.asarray(image)
    finally:
        pipe.close()


def stock_pixels(case: Case, folder: Path, dtype: str, device: str) -> np.ndarray[Any, Any]:
    """The image of a stock pipeline that has done nothing else."""
    number_format = getattr(torch, dtype)
    if case.model == "tiny":
        pipe = adapters.stock().to(number_format)
    else:
        stock = models()[case.model].stock
        assert stock is not None
        pipe = stock(folder, number_format)
    _copy_weights(pipe)
    if case.sampler is not None:
        pipe.scheduler = build_scheduler(case.sampler, pipe.scheduler.config)
    if case.lora is not None:
        pipe.load_lora_weights(lora_files()[case.lora], adapter_name="only")
        pipe.set_adapters("only", 0.0 if case.use == "scale 0" else 1.0)
        if case.use == "fused":
            pipe.fuse_lora()
            pipe.unload_lora_weights()
    if hasattr(pipe.scheduler.config, "noise_sampler_seed"):
        seed = pipe.scheduler.config.noise_sampler_seed
        own = pipe.scheduler
        pipe.scheduler = type(own).from_config(
            own.config, noise_sampler_seed=1 if seed is None else seed
        )
    return small.stock_pixels(pipe.to(device), num_inference_steps=STEPS)


def _copy_weights(pipe: StableDiffusionXLPipeline) -> None:
    """Stock's weights stay mapped from the file, at any address; sums depend on the alignment."""
    for network in pipe.components.values():
        if isinstance(network, torch.nn.Module):
            for parameter in network.parameters():
                parameter.data = parameter.data.clone()


# -- verdicts --------------------------------------------------------------------------------------


def judge(case: Case, dtype: str, device: str) -> tuple[str, str]:
    """The verdict on a case, and the words of a refusal or of what is wrong."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = models().get(case.model)
        options = {"model": "tiny"} if model is None else model.write(folder)
        try:
            ours = our_pixels(case, options, dtype, device)
        except (ModelError, ValueError) as error:
            words = " ".join(str(error).replace(name, "...").split())
            is_meant = model is not None and model.stock is None
            return (REFUSED if is_meant else WRONG), words
        if model is not None and model.stock is None:
            return WRONG, "it was loaded"
        theirs = stock_pixels(case, folder, dtype, device)
        if not np.array_equal(ours, theirs):
            difference = np.abs(ours.astype(int) - theirs.astype(int)).max()
            is_rounding = device != "cpu" and difference <= MOST_ROUNDING
            return (NEAR if is_rounding else WRONG), f"pixels differ by up to {difference}"
        return (BETTER if model is not None and model.better else EQUAL), ""


def judged(cases: Sequence[Case], dtype: str, device: str) -> Iterator[tuple[Case, str, str]]:
    for case in cases:
        try:
            verdict, words = judge_on_one_thread(case, dtype, device)
        except Exception as error:  # noqa: BLE001 - a traceback is a wrong case, too
            verdict, words = WRONG, f"{type(error).__name__}: {error}"
        yield case, verdict, words


def judge_on_one_thread(case: Case, dtype: str, device: str) -> tuple[str, str]:
    """Stock and we compute on one thread, with one torch thread: sums are in one order."""
    on_torch_thread(torch.set_num_threads, 1)
    return judge(case, dtype, device)


def name_of(case: Case) -> tuple[str, str, str]:
    lora = "" if case.lora is None else f"{case.lora}, {case.use}"
    return case.model, case.sampler or "its own", lora


def main() -> int:
    # 1) What is asked
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=DTYPES, action="append")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--only", help="cases whose name holds this text")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    asked = parser.parse_args()
    if asked.write and asked.device != "cpu":
        parser.error("--write: the page is of the CPU; leave out --device")
    dtypes = DTYPES if asked.write else asked.dtype or DTYPES[:1]
    cases = [case for case in all_cases() if (asked.only or "") in " ".join(name_of(case))]
    keep_quiet()

    # 2) The verdicts
    found: dict[Case, dict[str, tuple[str, str]]] = {case: {} for case in cases}
    for dtype in dtypes:
        for case, verdict, words in judged(cases, dtype, asked.device):
            found[case][dtype] = verdict, words
            print(dtype, *name_of(case), verdict, words, sep=" | ", flush=True)

    # 3) The table
    if asked.write:
        PAGE.write_text(page(found))
    verdicts = [verdict for by_dtype in found.values() for verdict, _ in by_dtype.values()]
    for verdict in dict.fromkeys(verdicts):
        print(f"{verdict}: {verdicts.count(verdict)} of {len(verdicts)}")
    return 1 if WRONG in verdicts else 0


def keep_quiet() -> None:
    """Single files find the base model's configuration, and the libraries don't talk."""
    cache_folder = Path(tempfile.mkdtemp())
    small.put_into_hub_cache(cache_folder, SDXL_HUB_ID, base_folder())
    constants.HF_HUB_CACHE = str(cache_folder)
    single_files.SDXL = small.SMALL
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    warnings.simplefilter("ignore")


def page(found: dict[Case, dict[str, tuple[str, str]]]) -> str:
    """docs/compatibility.md, under the links that it has on top."""
    links, _, _ = PAGE.read_text().partition("\n\n") if PAGE.exists() else ("", "", "")
    lines = [
        links,
        "",
        "# Which models, samplers and LoRAs work",
        "",
        "`python -m benchmarks.compatibility --write` makes this page. Each case is a small model with",
        "random weights. *Equal to stock*: the image is that of a fresh stock pipeline, to the bit.",
        "*Better than stock*: stock, called in the usual way, gives another image or none; the image",
        "is that of a stock pipeline which is told what the model is. *Refused*: in the words below.",
        "Weights in shards, LoRAs and samplers by name are [explained](models.md) on their own pages.",
        "",
        f"{len(found)} cases, on a CPU with one thread, {STEPS} steps of 64x64 pixels.",
        "",
        f"| model | sampler | LoRA | {' | '.join(DTYPES)} |",
        f"|---|---|---|{'---|' * len(DTYPES)}",
    ]
    refusals = {}
    for case, by_dtype in found.items():
        verdicts = [by_dtype[dtype][0] for dtype in DTYPES]
        lines.append(f"| {' | '.join([*name_of(case), *verdicts])} |")
        verdict, words = by_dtype[DTYPES[0]]
        if verdict == REFUSED:
            refusals[case.model] = words
    lines += ["", "## The words of a refusal", "", "| model | words |", "|---|---|"]
    lines += [f"| {model} | {words.replace('|', '/')} |" for model, words in refusals.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
