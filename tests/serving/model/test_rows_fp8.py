"""The kernel that adds, norms and rounds rows to fp8, and the blocks that use it, beside plain torch."""

import pytest

from .interpreted import run_on_interpreter

# As in test_geglu_fp8.py, the kernel writes float32, and the last rounding is torch's. The interpreter
# cuts numbers off to bf16, so 16 bits are float16 here.
KERNEL = """
import torch
from benchlib.serving.model import rows_fp8
from benchlib.serving.model.geglu_fp8 import LARGEST, LEAST

generator = torch.Generator().manual_seed(0)

def draw(*shape):
    return torch.randn(*shape, generator=generator).half()

for rows, width in ((3, 8), (5, 20), (4, 640), (3, 1280)):
    x, more, weight, bias = draw(rows, width), draw(rows, width), draw(width), draw(width)
    x[0] = 0.0
    x[1] += 300.0  # a mean far from 0
    sum_of_two = (x.float() + more.float()).half()

    def normed(x, eps=1e-5):
        parts = (part.double() for part in (weight, bias))
        return torch.nn.functional.layer_norm(x.double(), (width,), *parts, eps)

    norm = (weight, bias, 1e-5)
    for options, wanted in (
        ({}, x.double()),
        ({"norm": norm}, normed(x)),
        ({"norm": norm, "more": more}, normed(sum_of_two)),
    ):
        total = torch.full((rows, width), torch.nan).half()
        scaled = torch.full((rows, width), torch.nan)
        scales = torch.full((rows, 1), torch.nan)
        if "more" in options:
            options = options | {"total": total}
        rows_fp8._rows_into(x, scaled, scales, **options)
        least = wanted.abs().amax(1, keepdim=True).clamp(min=LEAST) / LARGEST
        assert (scales.double() / least - 1).abs().max() < 1e-3, (options, scales, least)
        assert (scaled.double() * scales - wanted).abs().max() < 1e-3 * wanted.abs().max()
        assert scaled.abs().max() <= LARGEST
        if "more" in options:
            assert torch.equal(total, sum_of_two)
            alone = torch.full((rows, width), torch.nan)
            rows_fp8._rows_into(sum_of_two, alone, scales, norm=norm)
            assert torch.equal(alone, scaled), "a sum is normed as it is written"
print("all rows are right")
"""

# A block whose weights are in fp8, on a CPU: torch stands in for the kernels.
BLOCK = """
import torch
from diffusers import Transformer2DModel
from diffusers.models.attention import BasicTransformerBlock
from benchlib.serving.model import geglu_fp8, rows_fp8
from benchlib.serving.model.model_errors import UnfitModel
from benchlib.serving.model.text_attention import attend_to_text_by_kernel, text_attention
from benchlib.serving.model.text_once import _GIVEN_TEXT, _project

given = []

@text_attention.register_kernel("cpu")
def attend(query, key, value, heads):
    given.append((tuple(query.shape), tuple(key.shape), heads))
    parts = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    seen = torch.nn.functional.scaled_dot_product_attention(*parts)
    return seen.transpose(1, 2).flatten(2).contiguous()

def rounded_into(wide, rounded, scales):
    scales.copy_(wide.abs().amax(1, keepdim=True).clamp(min=1e-6) / 448)
    rounded.copy_((wide / scales).clamp(-448, 448).to(rounded.dtype))

def rows_into(x, rounded, scales, *, norm=None, more=None, total=None):
    if more is not None:
        x = total.copy_(x + more)
    wide = x.float()
    if norm is not None:
        weight, bias, eps = norm
        wide = torch.nn.functional.layer_norm(wide, wide.shape[1:], weight.float(), bias.float(), eps)
    rounded_into(wide, rounded, scales)

def geglu_into(projected, rounded, scales):
    value, gate = projected.float().chunk(2, dim=1)
    rounded_into(value * torch.nn.functional.gelu(gate), rounded, scales)

rows_fp8._rows_into = rows_into
geglu_fp8._geglu_into = geglu_into

class Weight(torch.nn.Parameter):
    pass

def quantise(linear):
    weight = linear.weight
    scale = weight.abs().amax(1, keepdim=True).float() / 448
    linear.weight = Weight(weight.data, requires_grad=False)
    linear.weight.qdata = (weight / scale).to(torch.float8_e4m3fn)
    linear.weight.scale = scale

torch.manual_seed(0)
torch.set_grad_enabled(False)
for fused in (False, True):
    block = BasicTransformerBlock(64, 4, 16, cross_attention_dim=32, activation_fn="geglu").bfloat16()
    for attn in (block.attn1, block.attn2):
        if fused:
            attn.fuse_projections()
    if fused:
        from diffusers.models.attention_processor import FusedAttnProcessor2_0
        block.attn1.processor = block.attn2.processor = FusedAttnProcessor2_0()
    x, text = torch.randn(2, 24, 64).bfloat16(), torch.randn(2, 7, 32).bfloat16()
    plain = block(x, encoder_hidden_states=text)
    try:
        rows_fp8.use_in_blocks(block)
    except UnfitModel as error:
        assert "add 'fp8'" in str(error)
    for module in block.modules():
        if isinstance(module, torch.nn.Linear):
            quantise(module)
    rows_fp8.use_in_blocks(block)
    assert type(block) is rows_fp8.QuantisedBlock
    ours = block(x, encoder_hidden_states=text)
    error = float((ours - plain).norm() / (plain - x).norm())
    assert 0.001 < error < 0.06, error

    # The recipe text-attention changes it, too
    attend_to_text_by_kernel(block)
    given.clear()
    assert torch.equal(block(x, encoder_hidden_states=text), ours)
    assert given == [((2, 24, 64), (2, 7, 64), 4)]
    block.attn2.processor = _GIVEN_TEXT
    again = block(x, encoder_hidden_states=_project(block.attn2, text))
    assert torch.equal(again, ours)

# Blocks in a row: each leaves its last sum to the next one, and all numbers keep their bits.
calls = []

def counted(x, *others, more=None, **options):
    calls.append("norm" if "norm" in options else "round")
    if more is not None:
        calls[-1] += " of a sum"
    rows_into(x, *others, more=more, **options)

rows_fp8._rows_into = counted
for layers in (1, 2, 3):
    options = {"cross_attention_dim": 32, "norm_num_groups": 8, "use_linear_projection": True}
    transformer = Transformer2DModel(4, 16, 64, num_layers=layers, **options).bfloat16().eval()
    for module in transformer.transformer_blocks.modules():
        if isinstance(module, torch.nn.Linear):
            quantise(module)
    names = list(transformer.state_dict())
    last = transformer.transformer_blocks[-1]
    last.norm_type = "ada_norm"
    try:
        rows_fp8.use_in_blocks(transformer)
    except UnfitModel as error:
        assert "leave it out" in str(error)
    assert {type(block) for block in transformer.transformer_blocks} == {BasicTransformerBlock}
    last.norm_type = "layer_norm"
    rows_fp8.use_in_blocks(transformer)
    assert list(transformer.state_dict()) == names
    x, text = torch.randn(2, 64, 4, 4).bfloat16(), torch.randn(2, 7, 32).bfloat16()
    calls.clear()
    chained = transformer(x, text, return_dict=False)[0]
    expected = {"norm": 1, "norm of a sum": 3 * layers - 1, "round": 2 * layers}
    assert {name: calls.count(name) for name in expected} == expected, calls
    whole = torch.compile(transformer, backend="eager", fullgraph=True, dynamic=False)
    assert torch.equal(whole(x, text, return_dict=False)[0], chained)
    mask = torch.zeros(2, 1, 7).bfloat16()
    masked = transformer(x, text, encoder_attention_mask=mask, return_dict=False)[0]
    for block in transformer.transformer_blocks:
        block.hands_on = False
    assert torch.equal(transformer(x, text, return_dict=False)[0], chained)
    options = {"encoder_attention_mask": mask, "return_dict": False}
    assert torch.equal(transformer(x, text, **options)[0], masked)
print("all blocks are right")
"""


@pytest.mark.parametrize(
    ("code", "says"), [(KERNEL, "all rows are right"), (BLOCK, "all blocks are right")]
)
def test_rows_agree_with_plain_torch_on_poisoned_outputs(code, says):
    run_on_interpreter(code, says)
