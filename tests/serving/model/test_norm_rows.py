"""The kernel that adds and norms rows, on Triton's interpreter beside float64; and its recipe."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import Transformer2DModel
from diffusers.models.attention import BasicTransformerBlock
from torch import library
from torch.utils._python_dispatch import TorchDispatchMode

from benchlib.serving.model.loading import load_pipeline
from benchlib.serving.model.normed_blocks import (
    NormedBlock,
    add_norm_rows,
    norm_in_one_pass,
    norm_rows,
)
from benchlib.serving.model.optimisations import (
    BLOCKS,
    TRANSFORMERS,
)
from benchlib.serving.model.recipes import RECIPES, parse_recipes
from benchlib.serving.schemas import GenerateRequest
from benchlib.study.likeness import psnr_db

from .changed_blocks import graphs_by_depth, make_block, norm_on_a_cpu
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
    alone = torch.full((rows, width), torch.nan).half()
    norm_rows_into(alone, sum_of_two, (weight, bias, 1e-5))
    assert torch.equal(alone, normed), "a sum is normed as it is written"

    # What a row lacks is added in float32, and x stays as it is
    owed = torch.randn(width, generator=generator) + 0.1
    before = x.clone()
    normed = torch.full((rows, width), torch.nan).half()
    norm_rows_into(normed, x, (weight, bias, 1e-5), owed=owed)
    parts = (part.double() for part in (weight, bias))
    wanted = torch.nn.functional.layer_norm(x.double() + owed, (width,), *parts, 1e-5)
    error = (normed.double() - wanted).abs()
    assert (error <= 2**-11 * wanted.abs() + 2e-4).all(), (rows, width, error.max())
    assert torch.equal(x, before)
print("all rows are right")
"""


def test_the_kernel_agrees_with_float64_on_poisoned_outputs():
    run_on_interpreter(KERNEL, "all rows are right")


@pytest.fixture(scope="module", autouse=True)
def _on_a_cpu():
    norm_on_a_cpu()


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


def make_transformer(layers):
    torch.manual_seed(0)
    options = {"cross_attention_dim": 32, "norm_num_groups": 8, "use_linear_projection": True}
    transformer = Transformer2DModel(4, 16, 64, num_layers=layers, **options)
    return transformer.bfloat16().eval()


class CountsPasses(TorchDispatchMode):
    """Counts plain sums of tokens (rows, tokens, features), and the kernel's calls."""

    def __init__(self):
        super().__init__()
        self.passes = Counter()

    def __torch_dispatch__(self, operator, kinds, arguments=(), options=None):
        name = operator.overloadpacket.__name__
        if name != "add" or all(part.dim() == 3 for part in arguments[:2]):
            self.passes[name] += 1
        return operator(*arguments, **(options or {}))

    @property
    def found(self):
        return tuple(self.passes[name] for name in ("norm_rows", "add_norm_rows", "add"))


@pytest.mark.parametrize("layers", [1, 2, 3])
@torch.no_grad()
def test_a_block_leaves_its_last_sum_to_the_next_one(layers):
    plain, ours = make_transformer(layers), make_transformer(layers)
    norm_in_one_pass(ours)
    assert list(ours.state_dict()) == list(plain.state_dict())
    x, text = torch.randn(2, 64, 4, 4).bfloat16(), torch.randn(2, 7, 32).bfloat16()
    wanted = plain(x, text, return_dict=False)[0]
    with CountsPasses() as counts:
        found = ours(x, text, return_dict=False)[0]
    assert torch.equal(found, wanted)
    assert counts.found == (1, 3 * layers - 1, 1)


@torch.no_grad()
def test_a_transformer_with_another_kind_of_block_is_not_chained():
    class OtherBlock(BasicTransformerBlock):
        pass

    plain, ours = make_transformer(3), make_transformer(3)
    ours.transformer_blocks[1].__class__ = OtherBlock
    norm_in_one_pass(ours)
    x, text = torch.randn(2, 64, 4, 4).bfloat16(), torch.randn(2, 7, 32).bfloat16()
    wanted = plain(x, text, return_dict=False)[0]
    with CountsPasses() as counts:
        found = ours(x, text, return_dict=False)[0]
    assert torch.equal(found, wanted)
    assert counts.found == (2, 4, 2 + 3)


@torch.no_grad()
def test_a_lone_block_takes_tensors_and_returns_one():
    block = make_block()
    norm_in_one_pass(block)
    x, more = torch.randn(2, 2, 24, 64).bfloat16()
    text = torch.randn(2, 7, 32).bfloat16()
    found = block(x + more, encoder_hidden_states=text)
    assert found.shape == x.shape
    assert torch.equal(block((x, more), encoder_hidden_states=text), found)


@pytest.mark.parametrize(
    ("regions", "depths"), [(TRANSFORMERS, (3,)), (BLOCKS, (1, 3))], ids=["regional", "blocks"]
)
def test_like_blocks_are_still_compiled_once(monkeypatch, regions, depths):
    others = "bf16+channels-last+fused-qkv"
    made = graphs_by_depth(
        monkeypatch, regions, depths, recipes=f"{others}+norm-rows", alike=others
    )
    assert made[0] == made[-1] > 0


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
        ("cuda", "float32", "it computes in 16 bits; add 'bf16'"),
        ("cuda", "float16", "Triton is not installed; pip install triton"),
    ],
)
@pytest.mark.parametrize("name", ["norm-rows", "text-attention"])
def test_a_machine_without_the_kernel_is_told_in_words(monkeypatch, name, device, dtype, words):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=f"recipe: '{name}' can't be used: {words}"):
        RECIPES[name].check(torch.device(device), dtype)


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


def test_an_adapter_by_request_changes_chained_blocks_as_it_does_others(monkeypatch):
    recipe = replace(RECIPES["norm-rows"], why_not=lambda *_: None)
    monkeypatch.setitem(RECIPES, "norm-rows", recipe)
    asked = {"prompt": "a", "num_inference_steps": 4, "width": 64, "height": 64, "seed": 1}
    images = {}
    for recipes in ("bf16", "bf16+norm-rows"):
        pipe = load_pipeline("tiny", device="cpu", recipe=recipes, loras={"style": "random"})
        for lora in (None, "style", "style:0.5"):
            request = GenerateRequest(**asked, lora=lora)
            images[recipes, lora] = np.asarray(pipe.generate([request]).images[0])
    for lora in (None, "style", "style:0.5"):
        assert psnr_db(images["bf16", lora], images["bf16+norm-rows", lora]) > 60, lora
    assert psnr_db(images["bf16+norm-rows", None], images["bf16+norm-rows", "style"]) < 50
