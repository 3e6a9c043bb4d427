"""The kernel that adds and norms rows, on Triton's interpreter beside float64; and its recipe."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import library

from benchlib.serving.model.loading import load_pipeline
from benchlib.serving.model.normed_blocks import (
    NormedBlock,
    add_norm_rows,
    norm_in_one_pass,
    norm_rows,
)
from benchlib.serving.model.recipes import RECIPES, parse_recipes
from benchlib.serving.schemas import GenerateRequest
from benchlib.study.likeness import psnr_db

from .interpreted import run_on_interpreter

# The interpreter cuts numbers off to bf16, so 16 bits are float16 here.
KERNEL = """
import torch
from benchlib.serving.model.norm_rows import norm_rows_into

generator = torch.Generator().manual_seed(0)

def draw(*shape):
    return torch.randn(*shape, generator=generator).half()

for rows, width in ((3, 8), (5, 20), (4, 640), (3, 1280)):
    x, more, weight, bias = draw(rows, width), draw(rows, width), draw(width), draw(width)
    x[0] = 0.0
    x[1] += 300.0  # a mean far from 0
    sum_of_two = (x.float() + more.float()).half()
    for added, of in ((None, x), (more, sum_of_two)):
        total, normed = (torch.full((rows, width), torch.nan).half() for _ in range(2))
        where = {} if added is None else {"more": added, "total": total}
        norm_rows_into(normed, x, (weight, bias, 1e-5), **where)
        parts = (part.double() for part in (weight, bias))
        wanted = torch.nn.functional.layer_norm(of.double(), (width,), *parts, 1e-5)
        error = (normed.double() - wanted).abs()
        assert (error <= 2**-11 * wanted.abs() + 2e-4).all(), (rows, width, error.max())
        assert added is None or torch.equal(total, sum_of_two)
print("all rows are right")
"""


def test_the_kernel_agrees_with_float64_on_poisoned_outputs():
    run_on_interpreter(KERNEL, "all rows are right")


@pytest.fixture(scope="module", autouse=True)
def _on_a_cpu():
    """torch's own norm stands in for the kernel."""

    @norm_rows.register_kernel("cpu")
    def _norm(x, weight, bias, eps):
        return torch.nn.functional.layer_norm(x, x.shape[1:], weight, bias, eps)

    @add_norm_rows.register_kernel("cpu")
    def _add_norm(x, more, weight, bias, eps):
        total = x + more
        return total, torch.nn.functional.layer_norm(total, x.shape[1:], weight, bias, eps)


def make_block(dtype=torch.bfloat16, **options):
    torch.manual_seed(0)
    options = {"cross_attention_dim": 32, "activation_fn": "geglu"} | options
    return BasicTransformerBlock(64, 4, 16, **options).to(dtype).eval()


@torch.no_grad()
def test_a_block_keeps_its_bits_and_is_one_graph():
    plain, ours = make_block(), make_block()
    norm_in_one_pass(ours)
    assert type(ours) is NormedBlock
    x, text = torch.randn(2, 24, 64).bfloat16(), torch.randn(2, 7, 32).bfloat16()
    mask = torch.zeros(2, 1, 7).bfloat16()
    mask[:, :, 5:] = -10000.0
    for options in ({}, {"encoder_attention_mask": mask, "timestep": None}):
        found = ours(x, encoder_hidden_states=text, **options)
        assert torch.equal(found, plain(x, encoder_hidden_states=text, **options))
    whole = torch.compile(ours, backend="eager", fullgraph=True, dynamic=False)
    assert torch.equal(whole(x, encoder_hidden_states=text), ours(x, encoder_hidden_states=text))
    torch.compiler.reset()
    affine = (ours.norm1.weight, ours.norm1.bias, 1e-5)
    library.opcheck(norm_rows, (x[0], *affine))
    library.opcheck(add_norm_rows, (x[0], x[1], *affine))


def test_other_blocks_are_refused_in_words():
    others = (make_block(torch.float32), make_block(only_cross_attention=True))
    for other in others:
        with pytest.raises(ValueError, match="recipe: 'norm-rows' knows SDXL's transformers in 16"):
            norm_in_one_pass(other)
    for fp8 in ("fp8-rows", "fp8-geglu"):
        with pytest.raises(ValueError, match=f"{fp8} and norm-rows each set the kernels between"):
            parse_recipes(f"bf16+fp8+{fp8}+norm-rows")


@pytest.mark.parametrize(
    ("device", "dtype", "words"),
    [
        ("cpu", "bfloat16", "its kernel needs a CUDA GPU; leave it out"),
        ("cuda", "float32", "its kernel computes in 16 bits; add 'bf16'"),
        ("cuda", "float16", "Triton is not installed; pip install triton"),
    ],
)
def test_a_machine_without_the_kernel_is_told_in_words(monkeypatch, device, dtype, words):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=f"recipe: 'norm-rows' can't be used: {words}"):
        RECIPES["norm-rows"].check(torch.device(device), dtype)


@pytest.mark.parametrize("more", ["", "+channels-last+fused-qkv+text-once"])
def test_its_images_are_the_16_bit_ones_and_the_stock_stays_stock(monkeypatch, more):
    recipe = replace(RECIPES["norm-rows"], why_not=lambda *_: None)
    monkeypatch.setitem(RECIPES, "norm-rows", recipe)
    request = GenerateRequest(prompt="a", num_inference_steps=4, width=64, height=64, seed=1)
    recipes = (f"bf16{more}", f"bf16+norm-rows{more}")
    pipes = [load_pipeline("tiny", device="cpu", recipe=recipe) for recipe in recipes]
    images = [np.asarray(pipe.generate([request]).images[0]) for pipe in pipes]
    assert psnr_db(*images) > 60
    kinds = [
        {
            isinstance(one, NormedBlock)
            for one in net.modules()
            if isinstance(one, BasicTransformerBlock)
        }
        for net in (pipes[1]._unet, pipes[1].diffusers.unet)
    ]
    assert kinds == [{True}, {False}]
