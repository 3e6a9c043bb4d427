"""The product that adds a residual, on Triton's interpreter beside float64; and its recipe."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from peft import LoraConfig, inject_adapter_in_model
from torch import library
from torch.nn.functional import gelu, layer_norm, linear

from benchlib.serving.model.gated_products import gate_in_products, geglu_product
from benchlib.serving.model.loading import load_pipeline
from benchlib.serving.model.normed_blocks import (
    NormedBlock,
    add_norm_rows,
    norm_in_one_pass,
    norm_rows,
)
from benchlib.serving.model.optimisations import TRANSFORMERS, compiled
from benchlib.serving.model.recipes import RECIPES, apply_recipes, parse_recipes
from benchlib.serving.model.summed_products import (
    SummedBlock,
    sum_in_products,
    sum_product,
    summed,
)
from benchlib.serving.model.text_once import read_texts_once
from benchlib.serving.schemas import GenerateRequest
from benchlib.study.likeness import psnr_db

from .interpreted import run_on_interpreter
from .small_models import small_pipeline

# The interpreter cuts numbers off to bf16, so 16 bits are float16 here.
KERNEL = """
import torch
from benchlib.serving.model.sum_product import sum_product_into

generator = torch.Generator().manual_seed(0)

def draw(*shape):
    return torch.randn(*shape, generator=generator).half()

shapes = ((64, 64, 32), (70, 48, 40), (1, 32, 16), (5, 8, 8), (200, 40, 72))
for rows, depth, width in shapes:
    for parts in (1, 2, 4):
        # A row of more numbers makes the tokens neither contiguous nor aligned
        tokens, weight, bias = draw(rows, depth + 1)[:, 1:], draw(width, depth), draw(width)
        more = 30 * draw(rows, width)
        total = torch.full((rows + 2, width), torch.nan, dtype=torch.float16)
        options = dict(tall=32, wide=32, deep=32, warps=4, stages=2, parts=parts)
        sum_product_into(total[:rows], more, tokens, weight, bias, **options)
        wanted = more.double() + tokens.double() @ weight.double().T + bias.double()
        error = (total[:rows].double() - wanted).abs()
        assert (error <= 2**-11 * wanted.abs() + 1e-4).all(), (rows, depth, width, error.max())
        assert total[rows:].isnan().all(), "nothing is written beyond the rows"
print("all numbers are right")
"""


def test_the_kernel_agrees_with_float64_on_poisoned_outputs():
    run_on_interpreter(KERNEL, "all numbers are right")


@pytest.fixture(scope="module", autouse=True)
def _on_a_cpu():
    """Plain torch stands in for the kernels: float32 sums, rounded once."""

    @sum_product.register_kernel("cpu")
    def _sum(more, tokens, weight, bias):
        total = more.float() + linear(tokens.float(), weight.float(), bias.float())
        return total.to(more.dtype)

    @geglu_product.register_kernel("cpu")
    def _gate(tokens, weight, bias):
        value, gate = linear(tokens.float(), weight.float(), bias.float()).chunk(2, dim=-1)
        return (value * gelu(gate)).to(tokens.dtype)

    @norm_rows.register_kernel("cpu")
    def _norm(x, weight, bias, eps):
        return layer_norm(x, x.shape[1:], weight, bias, eps)

    @add_norm_rows.register_kernel("cpu")
    def _add_norm(x, more, weight, bias, eps):
        return x + more, layer_norm(x + more, x.shape[1:], weight, bias, eps)


@pytest.fixture
def usable(monkeypatch):
    """The recipes, as on a card that has their kernels."""
    for name in ("geglu-product", "norm-rows", "summed-products"):
        recipe = replace(RECIPES[name], why_not=lambda *_: None)
        monkeypatch.setitem(RECIPES, name, recipe)


def make_block(dtype=torch.bfloat16, **options):
    torch.manual_seed(0)
    options = {"cross_attention_dim": 32, "activation_fn": "geglu"} | options
    return BasicTransformerBlock(64, 4, 16, **options).to(dtype).eval()


def summed_block(**options):
    block = make_block(**options)
    norm_in_one_pass(block)
    sum_in_products(block)
    return block


def drawn():
    """Tokens of an image, tokens of a text, and a mask that hides two of them."""
    torch.manual_seed(1)
    mask = torch.zeros(2, 1, 7).bfloat16()
    mask[:, :, 5:] = -10000.0
    return torch.randn(2, 24, 64).bfloat16(), torch.randn(2, 7, 32).bfloat16(), mask


@torch.no_grad()
@pytest.mark.parametrize("gates", [False, True])
def test_a_block_is_as_near_to_float32_as_one_that_rounds_in_between(gates):
    plain, ours = make_block(), summed_block()
    if gates:
        gate_in_products(ours)
    assert type(ours) is SummedBlock
    assert list(ours.state_dict()) == list(plain.state_dict())
    x, text, mask = drawn()
    for more in ({}, {"encoder_attention_mask": mask}):
        wide = {name: tensor.float() for name, tensor in more.items()}
        exact = make_block(torch.float32)
        exact.load_state_dict({name: part.float() for name, part in plain.state_dict().items()})
        wanted = exact(x.float(), encoder_hidden_states=text.float(), **wide)
        before, after = (
            ((one(x, encoder_hidden_states=text, **more).float() - wanted).norm() / wanted.norm())
            for one in (plain, ours)
        )
        assert after < 1.1 * before < 0.01


@torch.no_grad()
def test_a_sum_that_is_rounded_once_is_nearer_to_float32():
    torch.manual_seed(0)
    layer = torch.nn.Linear(256, 64)
    x, tokens = torch.randn(2, 24, 64), torch.randn(2, 24, 256)
    half = torch.nn.Linear(256, 64).bfloat16()
    half.load_state_dict(layer.state_dict())
    x, tokens = x.bfloat16(), tokens.bfloat16()
    wanted = x.float() + linear(tokens.float(), half.weight.float(), half.bias.float())
    before, after = (
        (found.float() - wanted).norm() for found in (x + half(tokens), summed(x, half, tokens))
    )
    assert after < 0.9 * before


@torch.no_grad()
def test_a_block_is_one_graph_with_three_sums_and_no_pass_that_adds():
    ours = summed_block()
    x, text, _ = drawn()
    operators = []

    def look(graph, _):
        operators.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch.compiler.reset()
    found = torch.compile(ours, backend=look, fullgraph=True, dynamic=False)(
        x, encoder_hidden_states=text
    )
    torch.compiler.reset()
    assert torch.equal(found, ours(x, encoder_hidden_states=text))
    assert operators.count("benchlib.sum_product.default") == 3
    assert not [name for name in operators if "add" in name]
    layer = ours.ff.net[2]
    tokens = torch.randn(24, 256).bfloat16()
    library.opcheck(sum_product, (x[0], tokens, layer.weight, layer.bias))


@pytest.mark.parametrize("layer", ["attn1.to_out.0", "attn2.to_out.0", "ff.net.2"])
@torch.no_grad()
def test_a_layer_with_an_adapter_computes_as_before(layer):
    plain, ours = (torch.nn.ModuleDict({"block": make_block()}) for _ in range(2))
    norm_in_one_pass(ours)
    sum_in_products(ours)
    x, text, _ = drawn()
    alone = ours["block"](x, encoder_hidden_states=text)
    for model in (plain, ours):
        torch.manual_seed(1)
        config = LoraConfig(r=4, target_modules=[layer], init_lora_weights=False)
        inject_adapter_in_model(config, model)
    found, wanted = (one["block"](x, encoder_hidden_states=text) for one in (ours, plain))
    assert (found.float() - wanted.float()).norm() < 0.01 * wanted.float().norm()
    assert not torch.allclose(found, alone, atol=0.05)
    adapted = ours["block"].get_submodule(layer)
    adapted.enable_adapters(False)
    assert torch.equal(ours["block"](x, encoder_hidden_states=text), alone)


def test_a_transformer_compiled_as_a_whole_is_that_of_its_blocks(usable, monkeypatch):  # noqa: ARG001
    """The graphs that torch gets run as they are, so the answer keeps its bits."""
    pipe = small_pipeline(unet={"transformer_layers_per_block": [1, 1, 3]}).to(torch.bfloat16)
    recipes = "bf16+channels-last+fused-qkv+geglu-product+norm-rows+summed-products"
    one = apply_recipes(pipe, parse_recipes(recipes))
    wanted = noise_of(one)
    compiles = torch.compile

    def as_they_are(graph, _):
        return graph.forward

    monkeypatch.setattr(
        torch, "compile", lambda call, **_: compiles(call, backend=as_they_are, dynamic=False)
    )
    torch.compiler.reset()
    compiled(one, regions=TRANSFORMERS)
    one.unet = read_texts_once(one.unet)
    assert torch.equal(noise_of(one), wanted)
    torch.compiler.reset()


@torch.inference_mode()
def noise_of(networks):
    """The answer of a UNet of `small_pipeline` to one text."""
    torch.manual_seed(0)
    added = {"text_embeds": torch.randn(2, 96).bfloat16(), "time_ids": torch.ones(2, 6)}
    return networks.unet(
        torch.randn(2, 4, 8, 8).bfloat16(),
        torch.ones(2),
        encoder_hidden_states=torch.randn(2, 77, 160).bfloat16(),
        added_cond_kwargs=added,
        return_dict=False,
    )[0]


def test_what_it_can_not_change_is_refused_in_words():
    with pytest.raises(ValueError, match="recipe: 'summed-products' changes blocks of 'norm-rows'"):
        sum_in_products(make_block())
    integers, without_bias, odd = make_block(), make_block(), make_block()
    other_attention = make_block()
    norm_in_one_pass(integers)
    norm_in_one_pass(without_bias)
    norm_in_one_pass(odd)
    norm_in_one_pass(other_attention)
    weight = integers.ff.net[2].weight
    integers.ff.net[2].weight = torch.nn.Parameter(weight.to(torch.int8), requires_grad=False)
    without_bias.attn1.to_out[0].bias = None
    odd.ff.net[2] = torch.nn.Linear(250, 64).bfloat16()
    other_attention.attn2.set_processor(lambda *_: None)
    for block in (integers, without_bias, odd, other_attention):
        with pytest.raises(ValueError, match="recipe: 'summed-products' adds to products in 16"):
            sum_in_products(block)
        assert type(block) is NormedBlock


@pytest.mark.parametrize(
    ("card", "dtype", "words"),
    [
        (None, "bfloat16", "its kernel needs a CUDA GPU of compute capability 9.0"),
        ((8, 9), "bfloat16", "its kernel needs a CUDA GPU of compute capability 9.0"),
        ((9, 0), "float32", "its kernel computes in 16 bits; add 'bf16'"),
    ],
)
def test_a_card_without_the_kernel_is_told_in_words(monkeypatch, card, dtype, words):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: card)
    with pytest.raises(ValueError, match=f"recipe: 'summed-products' can't be used: {words}"):
        RECIPES["summed-products"].check(torch.device("cuda" if card else "cpu"), dtype)


@pytest.mark.parametrize("more", ["", "+geglu-product+channels-last+text-once"])
def test_its_images_are_the_16_bit_ones_also_with_an_adapter(usable, more):  # noqa: ARG001
    asked = {"prompt": "a", "num_inference_steps": 4, "width": 64, "height": 64, "seed": 1}
    images = {}
    for recipe in (f"bf16{more}", f"bf16+norm-rows+summed-products{more}"):
        pipe = load_pipeline("tiny", device="cpu", recipe=recipe, loras={"style": "random"})
        for lora in (None, "style", "style:0.5"):
            request = GenerateRequest(**asked, lora=lora)
            images[recipe, lora] = np.asarray(pipe.generate([request]).images[0])
    (plain, ours) = dict.fromkeys(recipe for recipe, _ in images)
    for lora in (None, "style", "style:0.5"):
        assert psnr_db(images[plain, lora], images[ours, lora]) > 35, lora
    assert psnr_db(images[ours, None], images[ours, "style"]) < 35
    has_them = [
        any(isinstance(module, SummedBlock) for module in unet.modules())
        for unet in (pipe._unet, pipe.diffusers.unet)
    ]
    assert has_them == [True, False]
