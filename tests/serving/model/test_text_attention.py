"""The kernel of attention to a text, on Triton's interpreter beside float64; and its recipe."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import library
from torch.nn.functional import scaled_dot_product_attention

from benchlib.serving.model.loading import load_pipeline
from benchlib.serving.model.normed_blocks import norm_in_one_pass
from benchlib.serving.model.optimisations import BLOCKS, TRANSFORMERS
from benchlib.serving.model.recipes import RECIPES, apply_recipes, parse_recipes
from benchlib.serving.model.summed_products import sum_in_products
from benchlib.serving.model.text_attention import (
    MOST_KEYS,
    TextAttention,
    attend_to_text_by_kernel,
    text_attention,
)
from benchlib.serving.schemas import GenerateRequest
from benchlib.study.likeness import psnr_db

from .changed_blocks import graphs_by_depth, make_block, noise_of, norm_on_a_cpu, operators_of
from .interpreted import run_on_interpreter
from .small_models import small_pipeline

# The interpreter multiplies the bits of bf16, so 16 bits are float16 here.
KERNEL = """
import torch
from torch.nn.functional import scaled_dot_product_attention
from benchlib.serving.model.text_attention import text_attention
from benchlib.serving.model.text_attention_kernel import key_parts, text_attention_into

assert [key_parts(n) for n in (1, 16, 17, 64, 65, 77, 80, 97, 128)] == [
    (16, 0), (16, 0), (16, 16), (64, 0), (64, 16), (64, 16), (64, 16), (64, 64), (64, 64)
]
generator = torch.Generator().manual_seed(0)

def draw(*shape):
    return torch.randn(*shape, generator=generator).half()

def by_heads(part, heads):
    return part.double().unflatten(2, (heads, -1)).transpose(1, 2)

cases = ((2, 3, 70, 77, 64), (1, 1, 64, 64, 64), (1, 2, 5, 1, 16), (3, 1, 1, 100, 32),
         (1, 2, 130, 128, 32), (2, 1, 65, 19, 128))
for rows, heads, tokens, keys, width in cases:
    features = heads * width
    # The operands are parts of larger tensors, beside numbers that must not be read
    query = torch.cat([draw(rows, tokens, features), torch.full((rows, tokens, 8), torch.nan)], 2)
    query = query.half()[..., :features]
    joined = torch.full((rows, keys + 3, 2 * features), torch.nan).half()
    joined[:, :keys] = 3 * draw(rows, keys, 2 * features)
    key, value = joined[:, :keys].chunk(2, dim=-1)
    whole = torch.full((rows + 1, tokens, features), torch.nan).half()
    text_attention_into(whole[:rows], query, key, value, heads=heads)
    parts = (by_heads(part, heads) for part in (query, key, value))
    wanted = scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
    error = (whole[:rows].double() - wanted).abs()
    assert (error <= 2**-9 * wanted.abs() + 4e-3).all(), (rows, heads, tokens, keys, error.max())
    assert whole[rows].isnan().all(), "the row beyond is left alone"
    again = text_attention._init_fn(query, key, value.clone(), heads)
    assert torch.equal(again, whole[:rows]), "strides may differ"
print("all rows are right")
"""


def test_the_kernel_agrees_with_float64_on_poisoned_outputs():
    run_on_interpreter(KERNEL, "all rows are right")


@pytest.fixture(scope="module", autouse=True)
def _on_a_cpu():
    """torch's own attention stands in for the kernel."""
    norm_on_a_cpu()

    @text_attention.register_kernel("cpu")
    def _attend(query, key, value, heads):
        parts = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (query, key, value))
        seen = scaled_dot_product_attention(*parts)
        return seen.transpose(1, 2).flatten(2).contiguous()


@pytest.fixture
def usable(monkeypatch):
    """The recipes, as on a card that has their kernels."""
    for name in ("norm-rows", "summed-products", "text-attention"):
        recipe = replace(RECIPES[name], why_not=lambda *_: None)
        monkeypatch.setitem(RECIPES, name, recipe)


def drawn(keys=7):
    torch.manual_seed(1)
    return torch.randn(2, 24, 64).bfloat16(), torch.randn(2, keys, 32).bfloat16()


CHANGES = {
    "alone": (),
    "norm-rows": (norm_in_one_pass,),
    "summed-products": (norm_in_one_pass, sum_in_products),
}


@torch.no_grad()
@pytest.mark.parametrize("fuses", [False, True])
@pytest.mark.parametrize("changes", list(CHANGES))
def test_a_block_keeps_its_bits_and_calls_the_kernel_once(changes, fuses):
    plain, ours = make_block(), make_block()
    for block in (plain, ours):
        if fuses:
            block.attn2.fuse_projections()
        for change in CHANGES[changes]:
            change(block)
    attend_to_text_by_kernel(ours)
    assert type(ours.attn2) is TextAttention
    assert list(ours.state_dict()) == list(plain.state_dict())
    x, text = drawn()
    found = ours(x, encoder_hidden_states=text)
    assert torch.equal(found, plain(x, encoder_hidden_states=text))
    operators = operators_of(ours, x, encoder_hidden_states=text)
    called = [name for name in operators if "attention" in name]
    assert len(called) == 2, "to the image, and to the text"
    assert called[1] == "benchlib.text_attention.default"


@torch.no_grad()
@pytest.mark.parametrize("case", ["mask", "keys", "most keys"])
def test_a_mask_and_too_many_keys_go_to_sdpa(case, monkeypatch):
    calls = []
    ours, plain = make_block(), make_block()
    attend_to_text_by_kernel(ours)
    monkeypatch.setattr(
        "benchlib.serving.model.text_attention.text_attention",
        lambda *operands: calls.append(1) or text_attention(*operands),
    )
    x, text = drawn({"mask": 7, "keys": MOST_KEYS + 1, "most keys": MOST_KEYS}[case])
    options = {}
    if case == "mask":
        options["encoder_attention_mask"] = torch.zeros(2, 1, 7).bfloat16()
        options["encoder_attention_mask"][:, :, 5:] = -10000.0
    found, wanted = (one(x, encoder_hidden_states=text, **options) for one in (ours, plain))
    assert torch.equal(found, wanted)
    assert len(calls) == (case == "most keys")


def test_the_operator_is_what_its_fake_says():
    query, (key, value) = torch.randn(2, 24, 64), torch.randn(2, 7, 128).chunk(2, dim=-1)
    library.opcheck(text_attention, (query.half(), key.half(), value.half(), 4))


@pytest.mark.parametrize(
    ("regions", "depths"), [(TRANSFORMERS, (3,)), (BLOCKS, (1, 3))], ids=["regional", "blocks"]
)
def test_like_blocks_are_still_compiled_once(usable, monkeypatch, regions, depths):  # noqa: ARG001
    others = "bf16+channels-last+fused-qkv"
    recipes = f"{others}+norm-rows+text-attention"
    made = graphs_by_depth(monkeypatch, regions, depths, recipes=recipes, alike=others)
    assert made[0] == made[-1] > 0


def test_what_it_can_not_change_is_refused_in_words_and_stays():
    processed, normed = make_block(), make_block()
    processed.attn2.set_processor(lambda *_: None)
    normed.attn2.norm_q = torch.nn.LayerNorm(16)
    odd = make_block()
    odd.attn2.heads = 3
    both = torch.nn.ModuleList([make_block(), make_block(torch.float32)])
    for other in (processed, normed, odd, both):
        with pytest.raises(ValueError, match=r"recipe: 'text-attention' knows plain .*; leave it"):
            attend_to_text_by_kernel(other)
        assert not any(isinstance(module, TextAttention) for module in other.modules())
    assert type(both[0].attn2.processor) is AttnProcessor2_0
    for other in (torch.nn.Linear(2, 2), make_block(cross_attention_dim=None)):
        with pytest.raises(ValueError, match="recipe: 'text-attention' finds no attention to a"):
            attend_to_text_by_kernel(other)


def test_it_needs_no_other_recipe(usable):  # noqa: ARG001
    pipe = small_pipeline().to(torch.bfloat16)
    plain, ours = (
        noise_of(apply_recipes(pipe, parse_recipes(recipe)))
        for recipe in ("bf16", "bf16+text-attention")
    )
    assert torch.equal(plain, ours)


@pytest.mark.parametrize("more", ["", "+channels-last+norm-rows+summed-products+text-once"])
def test_its_images_are_the_16_bit_ones_also_with_an_adapter(usable, more):  # noqa: ARG001
    asked = {"prompt": "a", "num_inference_steps": 4, "width": 64, "height": 64, "seed": 1}
    images = {}
    for recipe in (f"bf16{more}", f"bf16+text-attention{more}"):
        pipe = load_pipeline("tiny", device="cpu", recipe=recipe, loras={"style": "random"})
        for lora in (None, "style"):
            request = GenerateRequest(**asked, lora=lora)
            images[recipe, lora] = np.asarray(pipe.generate([request]).images[0])
    plain, ours = dict.fromkeys(recipe for recipe, _ in images)
    for lora in (None, "style"):
        assert psnr_db(images[plain, lora], images[ours, lora]) > 60, lora
    assert psnr_db(images[ours, None], images[ours, "style"]) < 50
    kinds = [
        any(isinstance(module, TextAttention) for module in unet.modules())
        for unet in (pipe._unet, pipe.diffusers.unet)
    ]
    assert kinds == [True, False]
