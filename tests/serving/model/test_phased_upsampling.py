"""Upsampling in phases beside diffusers' own upsampler in float64; and its recipe."""

import copy

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.upsampling import Upsample2D
from peft import LoraConfig, inject_adapter_in_model

from benchlib.serving.model.loading import load_pipeline
from benchlib.serving.model.optimisations import (
    BLOCKS,
    TRANSFORMERS,
    Networks,
    phased_upsampling,
)
from benchlib.serving.model.phased_upsampling import (
    PhasedUpsample2D,
    phase_weights,
    upsample_in_phases,
)
from benchlib.serving.model.random_models import TINY
from benchlib.serving.schemas import GenerateRequest
from benchlib.study.likeness import psnr_db

ROUNDING = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 0.004, torch.float16: 5e-4}


def upsampler(**options):
    torch.manual_seed(0)
    return Upsample2D(**{"channels": 24, "use_conv": True, "out_channels": 16} | options).eval()


def phased(plain):
    ours = copy.deepcopy(plain)
    upsample_in_phases(ours)
    assert type(ours) is PhasedUpsample2D
    return ours


def relative_error(found, wanted):
    return ((found.double() - wanted).norm() / wanted.norm()).item()


@torch.no_grad()
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"name": "Conv2d_0"}])
def test_it_is_the_plain_upsampler_to_rounding(dtype, layout, options):
    plain = upsampler(**options).to(dtype).to(memory_format=layout)
    ours, exact = phased(plain), copy.deepcopy(plain).double()
    for size in ((1, 1), (1, 5), (2, 1), (7, 4), (16, 16)):
        x = torch.randn(2, 24, *size).to(dtype).to(memory_format=layout)
        found, wanted = ours(x), exact(x.double())
        assert (found.shape, found.dtype) == (wanted.shape, dtype)
        assert found.is_contiguous(memory_format=layout)
        # Each border pixel by itself: a wrong one must not hide among the others
        assert relative_error(found, wanted) < ROUNDING[dtype]
        assert (found - wanted).abs().max() < 4 * ROUNDING[dtype]
        assert torch.equal(ours(x, output_size=wanted.shape[-2:]), found)


@torch.no_grad()
def test_in_bf16_it_errs_at_most_half_again_as_much_as_the_plain_one():
    plain = Upsample2D(256, use_conv=True).bfloat16()
    ours, exact = phased(plain), copy.deepcopy(plain).double()
    x = torch.randn(2, 256, 15, 16).bfloat16()
    wanted = exact(x.double())
    assert relative_error(ours(x), wanted) < 1.5 * relative_error(plain(x), wanted)


def test_the_kernels_of_the_phases_by_hand():
    weight = torch.tensor([[1.0, 2, 4], [8, 16, 32], [64, 128, 256]]).view(1, 1, 3, 3)
    assert phase_weights(weight).flatten(1).tolist() == [
        [1, 2 + 4, 8 + 64, 16 + 32 + 128 + 256],
        [1 + 2, 4, 8 + 16 + 64 + 128, 32 + 256],
        [1 + 8, 2 + 4 + 16 + 32, 64, 128 + 256],
        [1 + 2 + 8 + 16, 4 + 32, 64 + 128, 256],
    ]
    # 1 + 2**-8 + 2**-8 would stay 1 if bfloat16 rounded after each sum
    halves = torch.zeros(1, 1, 3, 3)
    halves[0, 0, 0] = torch.tensor([1, 2**-8, 0])
    halves[0, 0, 1, 0] = 2**-8
    assert phase_weights(halves.bfloat16()).max() == 1 + 2**-7


@torch.no_grad()
def test_another_size_than_the_double_takes_the_plain_path():
    plain = upsampler()
    x = torch.randn(2, 24, 6, 5)
    for size in ((11, 10), (12, 9), (13, 11)):
        assert torch.equal(phased(plain)(x, size), plain(x, output_size=size))
    assert not torch.equal(phased(plain)(x), plain(x)), "sums come in another order"


@torch.no_grad()
def test_adapters_are_heard_and_fused_ones_too():
    plain = torch.nn.ModuleDict({"up": upsampler()})
    ours = copy.deepcopy(plain)
    upsample_in_phases(ours)
    x = torch.randn(2, 24, 6, 5)
    alone = ours["up"](x)
    for model in (plain, ours):
        torch.manual_seed(1)
        config = LoraConfig(r=4, target_modules=["up.conv"], init_lora_weights=False)
        inject_adapter_in_model(config, model)
    adapted = plain["up"](x)
    assert not torch.allclose(adapted, alone, atol=0.01)

    # 1) On and off
    layer = ours["up"].conv
    assert torch.equal(ours["up"](x), adapted)
    layer.enable_adapters(False)
    assert torch.equal(ours["up"](x), alone)
    layer.enable_adapters(True)

    # 2) Merged, still as peft's layer, and at last as a plain convolution
    layer.merge()
    assert torch.allclose(ours["up"](x), adapted, atol=1e-5)
    layer.enable_adapters(False)
    assert torch.allclose(ours["up"](x), alone, atol=1e-5), "peft takes it out of the weights"
    layer.enable_adapters(True)
    layer.merge()
    ours["up"].conv = layer.get_base_layer()
    found = ours["up"](x)
    assert torch.allclose(found, adapted, atol=1e-5)
    plain["up"].conv = ours["up"].conv
    assert not torch.equal(found, plain["up"](x)), "it computes in phases"


@torch.no_grad()
@pytest.mark.parametrize("regions", [TRANSFORMERS, BLOCKS])
def test_it_is_one_graph_and_a_region_of_the_compilers(regions):
    ours = phased(upsampler())
    assert isinstance(ours, regions)
    torch.compiler.reset()
    whole = torch.compile(ours, backend="eager", fullgraph=True, dynamic=False)
    for size in ((6, 5), (8, 8)):
        x = torch.randn(2, 24, *size)
        assert torch.equal(whole(x), ours(x))
        assert torch.equal(whole(x, (2 * size[0], 2 * size[1])), ours(x))
    torch.compiler.reset()


def test_upsamplers_of_another_form_stay_as_they_are():
    others = [
        upsampler(use_conv=False),
        upsampler(use_conv_transpose=True),
        upsampler(interpolate=False),
        upsampler(kernel_size=5, padding=2),
        upsampler(padding=0),
        upsampler(norm_type="ln_norm", eps=1e-5, elementwise_affine=True),
    ]
    upsample_in_phases(torch.nn.ModuleList([*others, upsampler()]))
    assert {type(other) for other in others} == {Upsample2D}
    with pytest.raises(
        ValueError, match="recipe: 'phased-upsampling' knows upsamplers that double"
    ):
        upsample_in_phases(*others)


def test_the_last_upsampler_of_a_decoder_stays_since_memory_peaks_behind_it():
    networks = Networks(UNet2DConditionModel(**TINY["unet"]), AutoencoderKL(**TINY["vae"]))
    phased_upsampling(networks)
    levels = len(TINY["vae"]["block_out_channels"])
    assert set(kinds_in(networks.unet)) == {PhasedUpsample2D}
    assert kinds_in(networks.vae) == [PhasedUpsample2D] * (levels - 2) + [Upsample2D]


def kinds_in(network):
    return [type(module) for module in network.modules() if isinstance(module, Upsample2D)]


@pytest.mark.parametrize("more", ["", "+channels-last+fused-qkv+vae-tiling", "+bf16"])
def test_its_images_are_the_plain_ones_and_the_stock_stays_stock(more):
    usual = more.removeprefix("+") or "baseline"
    pipes = [
        load_pipeline("tiny", device="cpu", recipe=recipe)
        for recipe in (usual, f"phased-upsampling{more}")
    ]
    # 16 does not divide the sides of the second size, so the UNet asks for odd sizes
    for side in ({"width": 64, "height": 64}, {"width": 104, "height": 88}):
        request = GenerateRequest(prompt="a", num_inference_steps=4, seed=1, **side)
        images = [np.asarray(pipe.generate([request]).images[0]) for pipe in pipes]
        assert psnr_db(*images) > (30 if "bf16" in more else 60)
    ours, stock = pipes[1], pipes[1].diffusers
    assert PhasedUpsample2D in kinds_in(ours._unet)
    assert PhasedUpsample2D in kinds_in(ours._vae)
    assert set(kinds_in(stock.unet)) == set(kinds_in(stock.vae)) == {Upsample2D}
    assert pipes[1].spec["weights_gib"] == pytest.approx(pipes[0].spec["weights_gib"])
    assert pipes[1].spec["model_params"] == pipes[0].spec["model_params"]
