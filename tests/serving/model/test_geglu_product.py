"""The product that gates itself, on Triton's interpreter beside float32; and its recipe, on plain torch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.models.attention import FeedForward
from peft import LoraConfig, inject_adapter_in_model
from torch import library

from benchlib.serving.model.gated_products import (
    GatedFeedForward,
    gate_in_products,
    geglu_product,
)
from benchlib.serving.model.loading import load_pipeline
from benchlib.serving.model.recipes import RECIPES, parse_recipes
from benchlib.serving.schemas import GenerateRequest
from benchlib.study.likeness import psnr_db

from .interpreted import run_on_interpreter

# Triton 3.9.0's interpreter multiplies the bits of bf16, so 16 bits are float16 here.
KERNEL = """
import torch
from torch.nn.functional import gelu
from benchlib.serving.model import geglu_product

generator = torch.Generator().manual_seed(0)

def draw(*shape):
    return torch.randn(*shape, generator=generator).half()

geglu_product.TALL = 32
shapes = ((64, 64, 32), (70, 48, 40), (1, 32, 16), (5, 8, 8), (200, 40, 72))
for rows, depth, width in shapes:
    # A row of more numbers makes the tokens neither contiguous nor aligned
    tokens, weight, bias = draw(rows, depth + 1)[:, 1:], draw(2 * width, depth), draw(2 * width)
    gated = torch.full((rows, width), torch.nan, dtype=torch.float16)
    beyond = torch.full((2, width), torch.nan, dtype=torch.float16)
    options = dict(wide=16, deep=32, warps=4, stages=2)
    geglu_product.geglu_product_into(gated, tokens, weight, bias, **options)
    value, gate = (tokens.double() @ weight.double().T + bias.double()).chunk(2, dim=1)
    wanted = value * gelu(gate)
    error = (gated.double() - wanted).abs()
    assert (error <= (2**-11 + 2.8e-4) * wanted.abs() + 1e-4).all(), (rows, depth, width, error.max())
print("all numbers are right")
"""


def test_the_kernel_agrees_with_float64_on_poisoned_outputs():
    run_on_interpreter(KERNEL, "all numbers are right")


@pytest.fixture(scope="module", autouse=True)
def _on_a_cpu():
    """Plain torch stands in for the kernel: float32 sums, rounded once."""

    @geglu_product.register_kernel("cpu")
    def _plain(tokens, weight, bias):
        value, gate = torch.nn.functional.linear(
            tokens.float(), weight.float(), bias.float()
        ).chunk(2, dim=-1)
        return (value * torch.nn.functional.gelu(gate)).to(tokens.dtype)


@pytest.fixture
def usable(monkeypatch):
    """The recipe, as on a card that has its kernel."""
    recipe = replace(RECIPES["geglu-product"], why_not=lambda *_: None)
    monkeypatch.setitem(RECIPES, "geglu-product", recipe)


def feed_forward(dtype=torch.bfloat16):
    torch.manual_seed(0)
    return FeedForward(64, mult=4).to(dtype).eval()


@torch.no_grad()
def test_it_is_nearer_to_float32_than_the_feed_forward_that_rounds_in_between():
    plain, ours = feed_forward(), feed_forward()
    gate_in_products(ours)
    assert type(ours) is GatedFeedForward
    assert ours.state_dict().keys() == plain.state_dict().keys()
    for shape in ((2, 64, 64), (2, 77, 64), (1, 3, 64), (128, 1, 64)):
        x = torch.randn(shape).bfloat16()
        exact = feed_forward().float()(x.float())
        before, after = ((one(x).float() - exact).norm() / exact.norm() for one in (plain, ours))
        assert ours(x).shape == exact.shape
        assert after < min(before, 0.004)


@torch.no_grad()
def test_it_is_one_operator_of_a_whole_graph():
    ours = feed_forward()
    gate_in_products(ours)
    x = torch.randn(2, 64, 64).bfloat16()
    operators = []

    def look(graph, _):
        operators.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch.compiler.reset()
    found = torch.compile(ours, backend=look, fullgraph=True, dynamic=False)(x)
    torch.compiler.reset()
    assert torch.equal(found, ours(x))
    assert [name for name in operators if "geglu_product" in name] == [
        "benchlib.geglu_product.default"
    ]
    library.opcheck(geglu_product, (x[0], ours.net[0].proj.weight, ours.net[0].proj.bias))


@torch.no_grad()
def test_a_layer_with_an_adapter_computes_as_before():
    plain, ours = (torch.nn.ModuleDict({"ff": feed_forward()}) for _ in range(2))
    gate_in_products(ours)
    x = torch.randn(2, 64, 64).bfloat16()
    alone = ours["ff"](x)
    for model in (plain, ours):
        torch.manual_seed(1)
        config = LoraConfig(r=4, target_modules=["ff.net.0.proj"], init_lora_weights=False)
        inject_adapter_in_model(config, model)
    assert torch.equal(ours["ff"](x), plain["ff"](x))
    assert not torch.allclose(ours["ff"](x), alone, atol=0.01)
    ours["ff"].net[0].proj.enable_adapters(False)
    assert torch.equal(ours["ff"](x), alone)


def test_weights_of_another_form_are_refused_in_words():
    for linear in (
        feed_forward(torch.float32),
        FeedForward(60).half(),
        FeedForward(64, bias=False),
    ):
        with pytest.raises(
            ValueError, match="recipe: 'geglu-product' computes feed-forwards in 16"
        ):
            gate_in_products(linear)


def test_what_does_not_go_together_is_refused_in_words(usable):  # noqa: ARG001
    for other in ("int8", "fp8"):
        with pytest.raises(ValueError, match=f"{other} and geglu-product each set the linears"):
            parse_recipes(f"bf16+geglu-product+{other}")
    parse_recipes("fastest-exact+geglu-product+text-once")


@pytest.mark.parametrize(
    ("card", "dtype", "words"),
    [
        (None, "bfloat16", "its kernel needs a CUDA GPU of compute capability 9.0"),
        ((8, 9), "bfloat16", "its kernel needs a CUDA GPU of compute capability 9.0"),
        ((12, 0), "bfloat16", "its kernel needs a CUDA GPU of compute capability 9.0"),
        ((9, 0), "float32", "it computes in 16 bits; add 'bf16'"),
        ((9, 0), "float16", "Triton is not installed; pip install triton"),
    ],
)
def test_a_card_without_the_kernel_is_told_in_words(monkeypatch, card, dtype, words):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: card)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=f"recipe: 'geglu-product' can't be used: {words}"):
        RECIPES["geglu-product"].check(torch.device("cuda" if card else "cpu"), dtype)


def test_its_images_are_the_16_bit_ones_and_the_stock_stays_stock(usable):  # noqa: ARG001
    request = GenerateRequest(prompt="a", num_inference_steps=4, width=64, height=64, seed=1)
    pipes = [
        load_pipeline("tiny", device="cpu", recipe=f"bf16{more}") for more in ("", "+geglu-product")
    ]
    images = [np.asarray(pipe.generate([request]).images[0]) for pipe in pipes]
    assert psnr_db(*images) > 30
    kinds = [
        {type(module) for module in network.modules() if isinstance(module, FeedForward)}
        for network in (pipes[1]._unet, pipes[1].diffusers.unet)
    ]
    assert kinds == [{GatedFeedForward}, {FeedForward}]
    assert pipes[1].spec["weights_gib"] == pytest.approx(pipes[0].spec["weights_gib"])
