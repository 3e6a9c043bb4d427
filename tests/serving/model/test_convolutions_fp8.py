"""Convolutions in fp8: the kernel on Triton's interpreter, and the recipe with plain torch for it."""

import copy
import sys
import types

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch.nn.functional import conv2d

from benchlib.serving.model import convolutions_fp8, optimisations
from benchlib.serving.model.adapters import LoraPlan
from benchlib.serving.model.convolutions_fp8 import FP8, QuantisedConvolution, can_be_fp8
from benchlib.serving.model.optimisations import Networks
from benchlib.serving.model.recipes import RECIPES, parse_recipes

from .interpreted import run_on_interpreter

# Triton 3.9.0's interpreter multiplies the bits of bf16, so 16 bits are float16 here.
KERNEL = """
import torch
from torch.nn.functional import conv2d
from benchlib.serving.model import convolution_kernel
from benchlib.serving.model.convolution_kernel import convolution_into

generator = torch.Generator().manual_seed(0)

def draw(*shape):
    return torch.randn(*shape, generator=generator)

convolution_kernel.TALL = 32
half, fp8 = torch.float16, torch.float8_e4m3fn
shapes = (
    (2, 16, 16, 32, 32, half),
    (1, 13, 19, 48, 40, half),
    (3, 5, 7, 32, 16, fp8),
    (1, 3, 40, 16, 48, fp8),
    (1, 1, 1, 16, 16, fp8),
)
for rows, height, width, channels, columns, kind in shapes:
    image = draw(rows, height, width, channels).to(kind)
    weight = draw(columns, 3, 3, channels).to(kind)
    scales, bias = draw(columns).abs(), draw(columns).half()
    answer = torch.full((rows, height, width, columns), torch.nan, dtype=torch.float16)
    tile = (32, 32, 4, 2, 1)
    convolution_into(answer, image, weight.flatten(1), scales, bias, tile=tile)
    plain = conv2d(image.float().permute(0, 3, 1, 2), weight.float().permute(0, 3, 1, 2), padding=1)
    wanted = plain.permute(0, 2, 3, 1) * scales + bias.float()
    assert (answer.float() - wanted).norm() < 4e-3 * wanted.norm(), (height, width, kind)

convolution_kernel.TALL = 128
of = convolution_kernel.lines_and_span
assert [of(side, side) for side in (128, 64, 32)] == [(1, 128), (2, 64), (4, 32)]
assert of(104, 152) == (4, 32)  # 130 tiles, where 123.5 would be full
print("all numbers are right")
"""


def test_the_kernel_agrees_with_float32_on_poisoned_outputs():
    run_on_interpreter(KERNEL, "all numbers are right")


@pytest.fixture
def _plain_torch(monkeypatch):
    """Plain torch in place of the kernel, behind the same operator."""

    def convolution_into(answer, image, weight, scales, bias):
        assert (image.dtype, weight.dtype, image.is_contiguous()) == (FP8, FP8, True)
        by_tap = weight.float().view(len(weight), 3, 3, -1).permute(0, 3, 1, 2)
        sums = conv2d(image.float().permute(0, 3, 1, 2), by_tap, padding=1).permute(0, 2, 3, 1)
        answer.copy_(sums * scales + bias.float())

    kernel = types.SimpleNamespace(convolution_into=convolution_into)
    monkeypatch.setitem(sys.modules, "benchlib.serving.model.convolution_kernel", kernel)


def relative(one, other):
    return float((one - other).norm() / other.norm())


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # inductor's own
@pytest.mark.usefixtures("_plain_torch")
@torch.no_grad()
def test_a_residual_block_gives_nearly_the_same_answer_compiled_as_one_graph():
    torch.manual_seed(0)
    block = ResnetBlock2D(in_channels=32, out_channels=48, temb_channels=16, groups=8).bfloat16()
    block = block.to(memory_format=torch.channels_last).eval()
    x = torch.randn(3, 32, 13, 9).bfloat16().to(memory_format=torch.channels_last)
    time = torch.randn(3, 16).bfloat16()
    wanted = block(x, time) - block.conv_shortcut(x)
    ours = copy.deepcopy(block)
    convolutions_fp8.use_in_resnets(ours)
    assert type(ours.conv1) is type(ours.conv2) is QuantisedConvolution
    ours.compile(dynamic=False, fullgraph=True)
    answer = ours(x, time)
    assert answer.is_contiguous(memory_format=torch.channels_last)
    assert 0.001 < relative(answer - block.conv_shortcut(x), wanted) < 0.06


@pytest.mark.usefixtures("_plain_torch")
@torch.no_grad()
def test_a_unet_gives_nearly_the_same_answer_and_its_stock_stays(tiny):
    stock = tiny.diffusers.unet
    unet = copy.deepcopy(stock)
    RECIPES["fp8-convolutions"].apply(Networks(unet, None))
    kinds = [type(module) for module in unet.modules()]
    blocks = sum(issubclass(kind, ResnetBlock2D) for kind in kinds)
    assert kinds.count(QuantisedConvolution) == 2 * blocks
    assert kinds.count(torch.nn.Conv2d) > 2, "samplers, shortcuts and both ends stay"
    assert unet.dtype == stock.dtype
    torch.manual_seed(0)
    width = stock.config.cross_attention_dim
    pooled = stock.add_embedding.linear_1.in_features - 6 * stock.config.addition_time_embed_dim
    added = {"text_embeds": torch.randn(2, pooled), "time_ids": torch.rand(2, 6)}
    given = (torch.randn(2, 4, 8, 8), torch.tensor(500), torch.randn(2, 7, width))
    wanted, answer = (one(*given, added_cond_kwargs=added).sample for one in (stock, unet))
    assert 0.001 < relative(answer, wanted) < 0.1


def test_what_the_kernel_does_not_compute_stays():
    def conv(channels=32, columns=32, side=3, **options):
        return torch.nn.Conv2d(channels, columns, side, **{"padding": 1} | options)

    assert can_be_fp8(conv())
    others = [conv(channels=24), conv(columns=40), conv(side=1), conv(stride=2), conv(groups=2)]
    others += [
        conv(padding=0),
        conv(dilation=2),
        conv(padding_mode="reflect"),
        torch.nn.Linear(2, 2),
    ]
    assert not any(can_be_fp8(one) for one in others)


@pytest.mark.usefixtures("_plain_torch")
@torch.no_grad()
def test_large_inputs_are_cut_off_and_zeros_stay_zeros():
    convolution = torch.nn.Conv2d(16, 16, 3, padding=1, bias=False)
    convolution.weight.zero_()
    convolution.weight[3, 5, 1, 1] = 2.0
    ours = QuantisedConvolution(convolution)
    x = torch.zeros(1, 16, 2, 2)
    x[0, 5] = torch.tensor([[1000.0, 0.5], [-0.25, 28.0]])
    answer = ours(x)
    assert torch.allclose(answer[0, 3], torch.tensor([[56.0, 1.0], [-0.5, 56.0]]), rtol=1e-5)
    assert answer.count_nonzero() == 4


@pytest.mark.parametrize(
    ("card", "dtype", "lacks", "words"),
    [
        ((8, 9), "bfloat16", (), "needs a CUDA GPU of compute capability 9.0, such as an H100"),
        ((9, 0), "float16", (), "add 'bf16'"),
        ((9, 0), "bfloat16", ("triton",), "Triton is not installed"),
        ((9, 0), "bfloat16", ("triton.tools.tensor_descriptor",), "no tensor descriptors"),
        ((9, 0), "bfloat16", (), None),
    ],
)
def test_it_says_what_is_missing(monkeypatch, card, dtype, lacks, words):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: card)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in lacks else name)
    found = optimisations.no_fp8_convolutions(torch.device("cuda"), dtype)
    assert found is None if words is None else words in found
    assert "leave it out" in optimisations.no_fp8_convolutions(torch.device("cpu"), dtype)


def test_adapters_by_request_are_refused():
    recipes = parse_recipes("bf16+fp8-convolutions")
    with pytest.raises(ValueError, match="quantises the layers that an adapter would change"):
        LoraPlan({"a": "a.safetensors"}, None, recipes)
