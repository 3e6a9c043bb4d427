"""The decoder's attention by plain products, beside float64 and SDPA; and its recipe."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.attention_processor import Attention

from benchlib.serving.model import decoder_attention
from benchlib.serving.model.decoder_attention import (
    AttentionByProducts,
    attend,
    multiply_in_attention,
)
from benchlib.serving.model.loading import load_pipeline
from benchlib.serving.model.recipes import RECIPES, parse_recipes
from benchlib.serving.schemas import GenerateRequest
from benchlib.study.likeness import psnr_db

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def draw(*shape, dtype=torch.bfloat16, std=1.0):
    return (torch.randn(*shape) * std).to(dtype)


def sdpa(query, key, value):
    heads = (one[None, None] for one in (query, key, value))
    return torch.nn.functional.scaled_dot_product_attention(*heads)[0, 0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("std", [0.3, 1.0, 3.0])  # from nearly equal weights to a single one
def test_it_is_as_near_to_float64_as_sdpa(dtype, std):
    torch.manual_seed(0)
    query, key, value = (draw(300, 512, dtype=dtype, std=std) for _ in range(3))
    wanted = sdpa(query.double(), key.double(), value.double())
    ours, theirs = (
        (found.double() - wanted).square().mean().sqrt()
        for found in (attend(query, key, value, rows=128), sdpa(query, key, value))
    )
    assert attend(query, key, value).dtype == dtype
    assert ours <= theirs * 1.02


@pytest.mark.parametrize("rows", [1, 7, 30, 31, 100])
def test_slices_change_nothing(rows):
    torch.manual_seed(0)
    query, key, value = (draw(30, 16, dtype=torch.float32) for _ in range(3))
    query[0] *= 1000  # the exponential of a score this large has no number
    torch.testing.assert_close(attend(query, key, value, rows), sdpa(query, key, value))


def make_vae(width=288, **options):
    torch.manual_seed(0)
    levels = {"block_out_channels": (16, width), "layers_per_block": 1, "norm_num_groups": 8}
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    return AutoencoderKL(latent_channels=4, **levels, **blocks, **options).eval()


def by_products(vae):
    """How many attentions of a VAE use products."""
    modules = (module for module in vae.modules() if isinstance(module, Attention))
    return sum(isinstance(module.processor, AttentionByProducts) for module in modules)


@torch.no_grad()
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_vae_decodes_as_near_to_float64_as_before(monkeypatch, fused, layout, dtype):
    monkeypatch.setattr(attend, "__defaults__", (20,))  # the last slice of 77 rows is ragged
    plain = make_vae().to(dtype).to(memory_format=layout)
    exact = copy.deepcopy(plain).double()
    ours = copy.deepcopy(plain)
    if fused:
        ours.fuse_qkv_projections()
    multiply_in_attention(ours)
    assert (by_products(ours), by_products(plain)) == (2, 0)  # the encoder has one, too
    latents = draw(2, 4, 7, 11, dtype=dtype).to(memory_format=layout)
    wanted = exact.decode(latents.double()).sample
    errors = [(vae.decode(latents).sample.double() - wanted).norm() for vae in (ours, plain)]
    assert errors[0] <= errors[1] * 1.1


@torch.no_grad()
def test_a_tiled_vae_decodes_tiles_of_other_sizes():
    plain = make_vae(sample_size=16)
    plain.enable_tiling()
    ours = copy.deepcopy(plain)
    multiply_in_attention(ours)
    latents = draw(1, 4, 11, 9, dtype=torch.float32)
    torch.testing.assert_close(ours.decode(latents).sample, plain.decode(latents).sample)


def test_it_is_one_graph():
    attention = make_vae().decoder.mid_block.attentions[0].requires_grad_(requires_grad=False)
    attention.set_processor(AttentionByProducts())
    x = draw(1, 288, 5, 6, dtype=torch.float32)
    whole = torch.compile(attention, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(whole(x), attention(x))
    torch.compiler.reset()


def test_attentions_that_flash_kernels_fit_stay_and_so_does_a_vae_without():
    for other in (make_vae(256), make_vae(mid_block_add_attention=False), AutoencoderTiny()):
        multiply_in_attention(other)
        assert by_products(other) == 0


@pytest.mark.parametrize(
    ("device", "dtype", "words"),
    [
        ("cpu", "bfloat16", "its products need a CUDA GPU; leave it out"),
        ("cuda", "float32", "it computes in 16 bits; add 'bf16'"),
        ("cuda", "bfloat16", "this torch has no products of 16 bits in float32; install torch 2.8"),
    ],
)
def test_a_machine_without_the_product_is_told_in_words(monkeypatch, device, dtype, words):
    def lacks(*_, **__):
        raise TypeError("mm() got an unexpected keyword argument 'out_dtype'")

    monkeypatch.setattr("torch.zeros", lambda *_, **__: None)
    monkeypatch.setattr("benchlib.serving.model.optimisations.product", lacks)
    with pytest.raises(ValueError, match=f"recipe: 'decoder-products' can't be used: {words}"):
        RECIPES["decoder-products"].check(torch.device(device), dtype)


@pytest.mark.parametrize("more", ["", "+channels-last+fused-qkv+vae-slicing"])
def test_its_images_are_the_same_and_the_stock_stays_stock(monkeypatch, more):
    recipe = replace(RECIPES["decoder-products"], why_not=lambda *_: None)
    monkeypatch.setitem(RECIPES, "decoder-products", recipe)
    monkeypatch.setattr(decoder_attention, "WIDEST_HEAD", 0)  # the tiny model's head has 32
    request = GenerateRequest(prompt="a", num_inference_steps=4, width=64, height=128, seed=1)
    recipes = (f"bf16{more}", f"bf16+decoder-products{more}")
    assert RECIPES["decoder-products"] in parse_recipes(recipes[1])
    pipes = [load_pipeline("tiny", device="cpu", recipe=recipe) for recipe in recipes]
    images = [np.asarray(pipe.generate([request]).images[0]) for pipe in pipes]
    assert psnr_db(*images) > 45
    assert by_products(pipes[1]._vae) == 2
    assert by_products(pipes[1].diffusers.vae) == 0
