"""What runs between the compiled parts of a UNet, and that moving it changes no bit."""

import pytest
import torch
from diffusers.models.unets.unet_2d_blocks import CrossAttnUpBlock2D
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchlib.serving.model.compiled_edges import (
    JoiningResnet,
    _joined,
    join_in_resnets,
    norm_and_activate_at_once,
)
from benchlib.serving.model.optimisations import BLOCKS, TRANSFORMERS, compiled
from benchlib.serving.model.recipes import apply_recipes, parse_recipes

from .small_models import small_pipeline


def networks_of(recipe="channels-last+fused-qkv"):
    return apply_recipes(small_pipeline(), parse_recipes(recipe), apart=True)


def noise_of(unet, side=8):
    torch.manual_seed(0)
    with torch.inference_mode():
        return unet(
            torch.randn(2, 4, side, side),
            torch.ones(2),
            encoder_hidden_states=torch.randn(2, 77, 160),
            added_cond_kwargs={"text_embeds": torch.randn(2, 96), "time_ids": torch.ones(2, 6)},
            return_dict=False,
        )[0]


class Between(TorchDispatchMode):
    """The operators that write images while no compiled part runs, and images in another layout."""

    def __init__(self):
        super().__init__()
        self.depth = 0
        self.operators = []
        self.strangers = []

    def part(self, call):
        """`call` as a part that a compiler gets."""

        def called(*arguments, **options):
            self.look_at((arguments, options))
            self.depth += 1
            try:
                answer = call(*arguments, **options)
            finally:
                self.depth -= 1
            self.look_at(answer)
            return answer

        return called

    def look_at(self, tensors):
        """Notes images that are not in channels-last."""
        for tensor in tree_leaves(tensors):
            is_image = isinstance(tensor, torch.Tensor) and tensor.dim() == 4
            if is_image and not tensor.is_contiguous(memory_format=torch.channels_last):
                self.strangers.append(tuple(tensor.shape))

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        answer = operator(*args, **kwargs or {})
        leaves = [leaf for leaf in tree_leaves(answer) if isinstance(leaf, torch.Tensor)]
        if not self.depth and any(leaf.dim() == 4 for leaf in leaves):
            self.operators.append(str(operator.overloadpacket))
            self.look_at(answer)
        return answer


@pytest.mark.parametrize("regions", [TRANSFORMERS, BLOCKS])
def test_between_the_compiled_parts_only_the_outer_convolutions_write_images(monkeypatch, regions):
    networks = networks_of()
    expected = noise_of(networks.unet)
    between = Between()

    def compile_module(self, **_):
        self._compiled_call_impl = between.part(self._call_impl)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_module)
    monkeypatch.setattr(torch, "compile", lambda call, **_: between.part(call))
    monkeypatch.setattr(
        "benchlib.serving.model.optimisations._with_compiled_ends", uncached_ends(between)
    )
    compiled(networks, regions=regions)
    torch.manual_seed(0)
    with between:
        found = noise_of(networks.unet)
    image_operators = [name for name in between.operators if name != "aten.randn"]
    assert image_operators == ["aten.conv2d", "aten.conv2d"]
    assert between.strangers == [(2, 4, 8, 8)], "the latents alone, as they come"
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def uncached_ends(between):
    """As `_with_compiled_ends`, which would keep this test's parts."""

    def with_ends(kind):
        names = ("_operate_on_continuous_inputs", "_get_output_for_continuous_inputs")
        ends = {name: between.part(getattr(kind, name)) for name in names}
        return type(kind.__name__, (kind,), ends)

    return with_ends


@pytest.mark.parametrize("side", [8, 10])  # 10 can't be halved twice
@pytest.mark.parametrize("freeu", [False, True])
@pytest.mark.parametrize("recipe", ["channels-last+fused-qkv", "baseline"])
def test_residual_blocks_that_join_keep_every_bit(side, freeu, recipe):
    plain, joining = networks_of(recipe).unet, networks_of(recipe).unet
    join_in_resnets(joining)
    for unet in (plain, joining):
        if freeu:
            unet.enable_freeu(s1=0.6, s2=0.4, b1=1.1, b2=1.2)
    assert torch.equal(noise_of(joining, side), noise_of(plain, side))
    joins = [isinstance(module, JoiningResnet) for module in joining.modules()]
    assert sum(joins) == 9, "three in each of SDXL's three up blocks"


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_joined_pair_has_the_layout_of_its_parts(layout):
    image, skip = torch.randn(2, 6, 4, 4), torch.randn(2, 3, 4, 4)
    pair = [tensor.to(memory_format=layout) for tensor in (image, skip)]
    joined = _joined(*pair)
    assert torch.equal(joined, torch.cat((image, skip), dim=1))
    assert joined.is_contiguous(memory_format=layout)


def test_the_changed_modules_keep_their_names_and_weights():
    plain, changed = networks_of().unet, networks_of().unet
    join_in_resnets(changed)
    assert norm_and_activate_at_once(changed, torch.nn.GroupNorm) == [changed.conv_norm_out]
    assert [name for name, _ in plain.named_modules()] == [
        name for name, _ in changed.named_modules()
    ]
    assert plain.state_dict().keys() == changed.state_dict().keys()
    assert torch.equal(noise_of(changed), noise_of(plain))


def test_a_unet_of_another_kind_stays_as_it_is():
    unet = networks_of().unet
    unet.conv_act = torch.nn.GELU()
    unet.up_blocks[0].resnets[0].__class__ = type(
        "Another", (type(unet.up_blocks[0].resnets[0]),), {}
    )
    join_in_resnets(unet)
    assert norm_and_activate_at_once(unet, torch.nn.GroupNorm) == []
    assert type(unet.conv_norm_out) is torch.nn.GroupNorm
    assert type(unet.up_blocks[0]) is CrossAttnUpBlock2D
    assert type(unet.up_blocks[1]) is not CrossAttnUpBlock2D
