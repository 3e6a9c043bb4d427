"""Products that add to the residual in place, and what it is owed; their recipe."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import Transformer2DModel
from diffusers.models.attention import BasicTransformerBlock
from peft import LoraConfig, inject_adapter_in_model
from torch import library
from torch._inductor.utils import run_and_get_code
from torch.nn.functional import gelu, linear

from benchlib.serving.model.gated_products import gate_in_products, geglu_product
from benchlib.serving.model.loading import load_pipeline
from benchlib.serving.model.normed_blocks import (
    NormedBlock,
    norm_in_one_pass,
)
from benchlib.serving.model.optimisations import (
    BLOCKS,
    TRANSFORMERS,
)
from benchlib.serving.model.recipes import RECIPES
from benchlib.serving.model.summed_products import SummedBlock, add_product_, sum_in_products
from benchlib.serving.schemas import GenerateRequest
from benchlib.study.likeness import psnr_db

from .changed_blocks import graphs_by_depth, make_block, norm_on_a_cpu, operators_of


@pytest.fixture(scope="module", autouse=True)
def _on_a_cpu():
    """Plain torch stands in for the kernels. torch's product in place is that of its CPU."""

    @geglu_product.register_kernel("cpu")
    def _gate(tokens, weight, bias):
        value, gate = linear(tokens.float(), weight.float(), bias.float()).chunk(2, dim=-1)
        return (value * gelu(gate)).to(tokens.dtype)

    norm_on_a_cpu()


@pytest.fixture
def usable(monkeypatch):
    """The recipes, as on a card that has their kernels."""
    for name in ("geglu-product", "norm-rows", "summed-products"):
        recipe = replace(RECIPES[name], why_not=lambda *_: None)
        monkeypatch.setitem(RECIPES, name, recipe)


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


def error_of(found, wanted):
    return float((found.float() - wanted).norm() / wanted.norm())


def widened(make, plain, **options):
    """`plain` in float32."""
    exact = make(dtype=torch.float32, **options)
    exact.load_state_dict({name: part.float() for name, part in plain.state_dict().items()})
    return exact


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
        wanted = widened(make_block, plain)(x.float(), encoder_hidden_states=text.float(), **wide)
        before, after = (
            error_of(one(x, encoder_hidden_states=text, **more), wanted) for one in (plain, ours)
        )
        assert after < 1.2 * before < 0.012, "what is owed is paid by a rounding more"


def make_transformer(layers=3, dtype=torch.bfloat16, **options):
    """A transformer whose biases are as large as its products."""
    torch.manual_seed(0)
    options = {"cross_attention_dim": 32, "norm_num_groups": 8} | options
    transformer = Transformer2DModel(4, 16, 64, num_layers=layers, **options)
    for name, part in transformer.named_parameters():
        if name.endswith(("to_out.0.bias", "net.2.bias")):
            torch.nn.init.normal_(part)
    return transformer.to(dtype).eval()


def summed_transformer(**options):
    ours = make_transformer(**options)
    norm_in_one_pass(ours)
    sum_in_products(ours)
    return ours


def drawn_image():
    torch.manual_seed(1)
    return torch.randn(2, 64, 4, 4).bfloat16(), torch.randn(2, 7, 32).bfloat16()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("by_linear", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
@torch.no_grad()
def test_a_chain_is_as_near_to_float32_and_changes_no_input(layers, by_linear, layout):
    options = {"layers": layers, "use_linear_projection": by_linear}
    plain, ours = make_transformer(**options), summed_transformer(**options)
    assert list(ours.state_dict()) == list(plain.state_dict())
    exact = widened(make_transformer, plain, **options)
    image, text = drawn_image()
    image = image.contiguous(memory_format=layout)
    kept = image.clone()
    for net in (plain, ours):
        net.to(memory_format=layout)
    wanted = exact(image.float(), text.float(), return_dict=False)[0]
    before, after, again = (
        error_of(net(image, text, return_dict=False)[0], wanted) for net in (plain, ours, ours)
    )
    assert after == again
    assert after < 1.1 * before < 0.02
    assert torch.equal(image, kept)


@torch.no_grad()
def test_what_each_norm_is_owed_is_the_sum_of_the_biases_so_far():
    ours = summed_transformer()
    owed = torch.zeros(64)
    for block in ours.transformer_blocks:
        layers = (block.attn1.to_out[0], block.attn2.to_out[0], block.ff.net[2])
        sums = (block.owed_attn1, block.owed_attn2, block.owed)
        for layer, found in zip(layers, sums, strict=True):
            owed = owed + layer.bias.float()
            assert torch.equal(found, owed)
    assert [block.owns_input for block in ours.transformer_blocks] == [True, False, False]


@torch.no_grad()
def test_a_block_that_is_alone_leaves_its_input_as_it_was():
    ours = summed_block()
    x, text, _ = drawn()
    kept = x.clone()
    found = ours(x, encoder_hidden_states=text)
    assert torch.equal(x, kept)
    assert torch.equal(ours(x, encoder_hidden_states=text), found)


@torch.no_grad()
def test_blocks_beside_another_kind_are_not_chained():
    class OtherBlock(BasicTransformerBlock):
        pass

    plain, ours = make_transformer(), make_transformer()
    ours.transformer_blocks[1].__class__ = OtherBlock
    norm_in_one_pass(ours)
    sum_in_products(ours)
    image, text = drawn_image()
    wanted = widened(make_transformer, plain)(image.float(), text.float(), return_dict=False)[0]
    before, after = (
        error_of(net(image, text, return_dict=False)[0], wanted) for net in (plain, ours)
    )
    assert after < 1.1 * before


@torch.no_grad()
def test_a_block_is_one_graph_with_three_products_in_place_and_no_pass_that_adds():
    ours = summed_block()
    x, text, _ = drawn()
    operators = operators_of(ours, x, encoder_hidden_states=text)
    assert [name for name in operators if "add" in name] == ["benchlib.add_product_.default"] * 3
    tokens, weight = torch.randn(24, 256).bfloat16(), ours.ff.net[2].weight.detach()
    library.opcheck(add_product_, (x[0].clone(), tokens, weight))


@pytest.mark.parametrize("regions", [BLOCKS, TRANSFORMERS], ids=["blocks", "regional"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # inductor's own
@torch.inference_mode()
def test_inductor_adds_to_the_residual_itself(regions):
    """A copy would be another buffer of its code."""
    ours = summed_transformer(use_linear_projection=True)
    image, text = drawn_image()
    wanted = ours(image, text, return_dict=False)[0]
    torch.compiler.reset()
    for module in ours.modules():
        if isinstance(module, regions):
            module.compile(dynamic=False, options={"epilogue_fusion": False})
    found, codes = run_and_get_code(ours, image, text, return_dict=False)
    torch.compiler.reset()
    assert error_of(found[0], wanted.float()) < 0.01
    added = r"benchlib\.add_product_\.default\((?:reinterpret_tensor\()?(\w+)"
    (to,) = (re.findall(added, code) for code in codes)
    assert len(to) == (3 if regions is BLOCKS else 9)
    assert len(set(to)) == 1
    assert to[0].startswith("arg" if regions is BLOCKS else "buf")


KINDS = {
    "lora": {},
    "dora": {"use_dora": True},
    "biased": {"lora_bias": True},
    "float32": {},
}


@pytest.mark.parametrize("layer", ["attn1.to_out.0", "attn2.to_out.0", "ff.net.2"])
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")  # peft says it of its own
@torch.no_grad()
def test_a_layer_with_an_adapter_computes_as_before(layer, kind):
    plain, ours = make_transformer(), summed_transformer()
    image, text = drawn_image()
    alone = ours(image, text, return_dict=False)[0]
    for model in (plain, ours):
        torch.manual_seed(1)
        options = {"init_lora_weights": False, "lora_alpha": 6} | KINDS[kind]
        config = LoraConfig(r=4, target_modules=f".*{layer}", **options)
        inject_adapter_in_model(config, model)
        if kind != "float32":  # as diffusers' loader does
            for block in model.transformer_blocks:
                block.get_submodule(layer).bfloat16()
    found, wanted = (net(image, text, return_dict=False)[0] for net in (ours, plain))
    assert error_of(found, wanted.float()) < 0.01
    assert error_of(alone, wanted.float()) > 0.04
    for block in ours.transformer_blocks:
        block.get_submodule(layer).enable_adapters(False)
    assert torch.equal(ours(image, text, return_dict=False)[0], alone)


@torch.no_grad()
def test_the_products_of_an_adapter_are_added_in_place_and_in_one_graph():
    ours = summed_block()
    x, text, _ = drawn()
    config = LoraConfig(r=4, target_modules=r"ff\.net\.2", init_lora_weights=False)
    inject_adapter_in_model(config, ours)
    ours.ff.net[2].bfloat16()
    operators = operators_of(ours, x, encoder_hidden_states=text)
    assert [name for name in operators if "add" in name] == ["benchlib.add_product_.default"] * 4


@pytest.mark.parametrize(
    ("regions", "depths"), [(TRANSFORMERS, (3,)), (BLOCKS, (1, 3))], ids=["regional", "blocks"]
)
def test_a_compiled_transformer_is_that_of_its_blocks(usable, monkeypatch, regions, depths):  # noqa: ARG001
    recipes = "bf16+channels-last+fused-qkv+geglu-product+norm-rows+summed-products"
    made = graphs_by_depth(monkeypatch, regions, depths, recipes=recipes, alike=recipes)
    assert made[0] == made[-1] > 0


def test_what_it_can_not_change_is_refused_in_words():
    with pytest.raises(ValueError, match="recipe: 'summed-products' changes blocks of 'norm-rows'"):
        sum_in_products(make_block())
    integers, without_bias, other_attention = make_block(), make_block(), make_block()
    for block in (integers, without_bias, other_attention):
        norm_in_one_pass(block)
    weight = integers.ff.net[2].weight
    integers.ff.net[2].weight = torch.nn.Parameter(weight.to(torch.int8), requires_grad=False)
    without_bias.attn1.to_out[0].bias = None
    other_attention.attn2.set_processor(lambda *_: None)
    for block in (integers, without_bias, other_attention):
        with pytest.raises(ValueError, match="recipe: 'summed-products' adds products in 16 bits"):
            sum_in_products(block)
        assert type(block) is NormedBlock


@pytest.mark.parametrize(
    ("device", "dtype", "words"),
    [
        ("cpu", "bfloat16", "its kernel needs a CUDA GPU"),
        ("cuda", "float32", "it computes in 16 bits; add 'bf16'"),
        ("cuda", "float16", None),
    ],
)
def test_any_cuda_card_can_and_others_are_told_in_words(monkeypatch, device, dtype, words):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    recipe = RECIPES["summed-products"]
    if words is None:
        recipe.check(torch.device(device), dtype)
        return
    with pytest.raises(ValueError, match=f"recipe: 'summed-products' can't be used: {words}"):
        recipe.check(torch.device(device), dtype)


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
    for module in pipe._unet.modules():
        assert not isinstance(module, SummedBlock) or module.owed.dtype == torch.float32
    has_them = [
        any(isinstance(module, SummedBlock) for module in unet.modules())
        for unet in (pipe._unet, pipe.diffusers.unet)
    ]
    assert has_them == [True, False]
