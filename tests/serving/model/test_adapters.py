"""LoRA adapters: the images of fresh stock pipelines, whatever was on before; and what is refused."""

from functools import cache

import pytest
import torch
from safetensors.torch import save_file

from benchlib.serving.model.loading import load_pipeline
from benchlib.serving.model.models import load_diffusers
from benchlib.serving.schemas import GenerateRequest

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
WITH_CONVOLUTIONS = (
    *ATTENTION,
    "proj_in",
    "ff.net.2",
    "conv1",
    "conv_shortcut",
    "downsamplers.0.conv",
)
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def stock():
    pipe = load_diffusers("tiny", device=torch.device("cpu"), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@cache
def networks():
    pipe = stock()
    return {name: getattr(pipe, name) for name in ("unet", "text_encoder", "text_encoder_2")}


def matrices(network, ends, *, seed, rank=4):
    """(module's name, down, up) of random weights, which change the image much."""
    generator = torch.Generator().manual_seed(seed)
    for name, module in networks()[network].named_modules():
        if name.endswith(ends) and isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            weight = module.weight
            down = torch.randn((rank, *weight.shape[1:]), generator=generator)
            up = torch.randn((len(weight), rank, *[1] * (weight.ndim - 2)), generator=generator)
            yield name, down / weight[0].numel() ** 0.5, up * 0.3


def peft_format(network, ends, *, seed, rank=4):
    tensors = {}
    for name, down, up in matrices(network, ends, seed=seed, rank=rank):
        tensors[f"{network}.{name}.lora_A.weight"] = down
        tensors[f"{network}.{name}.lora_B.weight"] = up
    return tensors


def diffusers_format(network, ends, *, seed):
    tensors = {}
    for name, down, up in matrices(network, ends, seed=seed):
        tensors[f"{network}.{name}.lora.down.weight"] = down
        tensors[f"{network}.{name}.lora.up.weight"] = up
    return tensors


def kohya_format(seed, *, alpha=2.0):
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
    tensors = {}
    for network, prefix in prefixes.items():
        ends = WITH_CONVOLUTIONS if network == "unet" else TEXT
        for name, down, up in matrices(network, ends, seed=seed):
            if network == "text_encoder" and not name.startswith("text_model."):
                name = f"text_model.{name}"  # as older transformers did
            key = f"{prefix}_{name.replace('.', '_')}"
            tensors[f"{key}.lora_down.weight"] = down
            tensors[f"{key}.lora_up.weight"] = up
            tensors[f"{key}.alpha"] = torch.tensor(alpha)
    return tensors


def with_magnitudes(tensors):
    """A DoRA in peft's format."""
    magnitudes = {}
    for key in tensors:
        if key.endswith(".lora_B.weight"):
            name = key.removeprefix("unet.").removesuffix(".lora_B.weight")
            weight = networks()["unet"].get_submodule(name).weight
            own = weight.norm(dim=1) * 1.1
            magnitudes[key.replace("lora_B", "lora_magnitude_vector")] = own
    return tensors | magnitudes


FILES = {
    "peft": lambda: peft_format("unet", ATTENTION, seed=1),
    "diffusers": lambda: diffusers_format("unet", ATTENTION, seed=2),
    "kohya, LoCon, text encoders, alpha": lambda: kohya_format(3),
    "text encoders": lambda: (
        peft_format("text_encoder", TEXT, seed=4) | peft_format("text_encoder_2", TEXT, seed=4)
    ),
    "convolutions": lambda: peft_format("unet", WITH_CONVOLUTIONS, seed=5, rank=8),
    "DoRA": lambda: with_magnitudes(peft_format("unet", ATTENTION, seed=6)),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    paths = {}
    for number, (kind, make) in enumerate(FILES.items()):
        paths[kind] = str(folder / f"{number}.safetensors")
        save_file({key: tensor.contiguous() for key, tensor in make().items()}, paths[kind])
    return paths


def request(lora=None, *, seed=7, prompt="a lighthouse", negative_prompt=None):
    return GenerateRequest(
        prompt=prompt,
        negative_prompt=negative_prompt,
        num_inference_steps=2,
        width=64,
        height=64,
        seed=seed,
        lora=lora,
    )


def stock_image(pipe, asked):
    return pipe(
        asked.prompt,
        negative_prompt=asked.negative_prompt,
        num_inference_steps=asked.num_inference_steps,
        guidance_scale=asked.guidance_scale,
        width=asked.width,
        height=asked.height,
        generator=torch.Generator().manual_seed(asked.seed),
    ).images[0]


def fresh_image(path, scale, asked):
    """The image of a stock pipeline that has done nothing else."""
    pipe = stock()
    if path is not None:
        pipe.load_lora_weights(path, adapter_name="only")
        pipe.set_adapters("only", scale)
    return stock_image(pipe, asked)


def same(one, other):
    return one.tobytes() == other.tobytes()


@pytest.mark.parametrize("kind", FILES)
def test_the_image_of_each_format_is_the_stock_pipelines(files, kind):
    pipe = load_pipeline("tiny", device="cpu", loras={"style": files[kind]})
    for scale in (1.0, -0.5):
        asked = request(f"style:{scale}", negative_prompt="blur")
        assert same(pipe.generate(asked).images[0], fresh_image(files[kind], scale, asked))
