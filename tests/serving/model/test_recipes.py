"""Recipes on the tiny model: their effect, the untouched stock pipeline, and their refusals."""

import copy
import dataclasses
import gc
import math
import os
import re
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.attention import BasicTransformerBlock

from benchlib.serving.engine.engine import Engine
from benchlib.serving.engine.options import EngineOptions
from benchlib.serving.model import recipes as recipes_module
from benchlib.serving.model.compiled_edges import norm_and_activate_at_once
from benchlib.serving.model.gated_products import GatedFeedForward
from benchlib.serving.model.loading import DTYPES, load_pipeline
from benchlib.serving.model.normed_blocks import NormedBlock
from benchlib.serving.model.optimisations import (
    BLOCKS,
    TRANSFORMERS,
    Networks,
    _ChannelwiseGroupNorm,
    _group_norm,
    _with_compiled_ends,
    compiled,
    graphs_made,
)
from benchlib.serving.model.pipeline import SDXLPipeline
from benchlib.serving.model.recipes import (
    COMBINATIONS,
    EXTRAS,
    RECIPES,
    Recipe,
    apply_recipes,
    parse_recipes,
    with_extras,
)
from benchlib.serving.model.text_once import TextOnce, read_texts_once
from benchlib.serving.schemas import GenerateRequest
from benchlib.study.likeness import psnr_db

from .small_models import put_into_hub_cache, small_pipeline

PSNR_DB = {  # the least; images of exact recipes differ by single levels
    "fp32": math.inf, "bf16": 30, "channels-last": 60, "fused-qkv": 60, "vae-bf16": 40, "vae-tiling": 18,
    "vae-slicing": 60, "phased-upsampling": 60,
}  # fmt: skip


def request(**changes):
    return GenerateRequest(
        **{
            "prompt": "a lighthouse",
            "num_inference_steps": 4,
            "width": 128,
            "height": 128,
            "seed": 1,
        }
        | changes
    )


def pixels(pipe, *requests):
    return np.stack(
        [np.asarray(image) for image in pipe.generate(list(requests) or request()).images]
    )


@pytest.fixture(scope="module")
def applied():
    """A pipeline for each recipe, loaded once."""
    loaded = {}

    def pipeline(recipe):
        if recipe not in loaded:
            loaded[recipe] = load_pipeline("tiny", device="cpu", recipe=recipe)
        return loaded[recipe]

    return pipeline


@pytest.mark.parametrize("name", PSNR_DB)
def test_a_recipes_image_is_near_the_baselines(applied, tiny, name):
    pair, others = (request(), request(seed=2)), (request(seed=3), request(seed=4))
    a, b, other = pixels(tiny, *pair), pixels(applied(name), *pair), pixels(tiny, *others)
    found = min(psnr_db(one, two) for one, two in zip(a, b, strict=True))
    assert found >= PSNR_DB[name]
    assert found > psnr_db(a[0], other[0]) + 5, "another image is not as near"
    assert applied(name).spec["recipe"] == name


def without_the_collector(drop):
    """Call `drop` while Python's garbage collector is off."""
    gc.collect()
    gc.disable()
    try:
        drop()
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "recipe", ["baseline", "channels-last", "fused-qkv", "vae-slicing", "phased-upsampling"]
)
def test_a_dropped_pipeline_is_freed_without_the_garbage_collector(recipe):
    pipes = [load_pipeline("tiny", device="cpu", recipe=recipe)]
    pixels(pipes[0], request(width=64, height=64))
    networks = [pipes[0]._unet, pipes[0]._vae, pipes[0]._pipe.unet, pipes[0]._pipe.text_encoder]
    weights = [weakref.ref(tensor) for one in networks for tensor in one.parameters()]
    networks.clear()
    without_the_collector(pipes.clear)
    assert sum(weight() is not None for weight in weights) == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # inductor's own
def test_close_frees_a_model_that_torch_is_to_compile(tiny):
    """torch's `Module.compile` sets a bound method on its own module: a reference cycle."""
    pipe = SDXLPipeline(
        copy.deepcopy(tiny.diffusers), spec={"model": "tiny"}, recipes=parse_recipes("compile")
    )
    norm = weakref.ref(pipe._vae.decoder.mid_block.resnets[0].norm1.weight)
    weights = [weakref.ref(tensor) for tensor in pipe._unet.parameters()]
    pipe.close()
    assert norm() is None
    assert sum(weight() is not None for weight in weights) == 0
    pipe.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # inductor's own
def test_the_compilers_group_norm_frees_its_weights(tiny):
    networks = [Networks(copy.deepcopy(tiny._unet), copy.deepcopy(tiny._vae))]
    compiled(networks[0])
    decoder = networks[0].vae.decoder
    weights = [
        weakref.ref(module.weight)
        for module in decoder.modules()
        if isinstance(module, torch.nn.GroupNorm)
    ]
    decoder._compiled_call_impl = None  # torch's own cycle
    del decoder
    without_the_collector(networks.clear)
    assert weights
    assert sum(weight() is not None for weight in weights) == 0


def test_the_recipes_called_exact_are_exact():
    assert [name for name, recipe in RECIPES.items() if recipe.exact] == [
        "baseline", "fp32", "bf16", "vae-bf16", "channels-last", "fused-qkv", "vae-slicing", "sdpa-cudnn",
        "geglu-product", "norm-rows", "summed-products", "text-attention", "decoder-products",
        "phased-upsampling", "compile", "compile-regional", "compile-blocks", "cudnn-tuned", "text-once",
        "text-graphs", "cuda-graphs",
    ]  # fmt: skip
    assert all(
        PSNR_DB.get(name, 60) >= PSNR_DB["bf16"] for name, recipe in RECIPES.items() if recipe.exact
    )
    assert all(
        PSNR_DB.get(name, 0) < PSNR_DB["bf16"]
        for name, recipe in RECIPES.items()
        if not recipe.exact
    )
    assert all(one.exact for one in parse_recipes(COMBINATIONS["fastest-exact"]))
    assert not all(one.exact for one in parse_recipes(COMBINATIONS["fastest"]))


def names_of(recipes):
    return [recipe.name for recipe in recipes]


BOTH_HAVE = ["phased-upsampling", "decoder-products", "text-attention", "text-once"]
EXACT_HAS = ["geglu-product", "norm-rows", "summed-products", *BOTH_HAVE]


@pytest.mark.parametrize(
    ("text", "extras"),
    [
        ("fastest-exact", EXACT_HAS),
        ("fastest-exact+text-once", EXACT_HAS),
        ("fastest-exact+geglu-product", EXACT_HAS),
        ("fastest-exact+text-attention", EXACT_HAS),
        ("fastest+text-attention", ["fp8", "fp8-rows", "fp8-convolutions", *BOTH_HAVE]),
        ("fastest-exact+fp8", ["fp8"]),  # as geglu-product, it sets the linears
        ("fastest-exact+fp8-geglu+fp8", ["fp8", "fp8-geglu"]),
        ("fastest", ["fp8", "fp8-rows", "fp8-convolutions", *BOTH_HAVE]),
        ("fastest+text-once", ["fp8", "fp8-rows", "fp8-convolutions", *BOTH_HAVE]),
        ("fastest+fp8-geglu", ["fp8", "fp8-geglu"]),  # excludes fp8-rows
        ("bf16+channels-last", []),
    ],
)
def test_a_combination_takes_extras_that_nothing_excludes(monkeypatch, text, extras):
    everywhere = {
        name: dataclasses.replace(recipe, why_not=recipes_module._never)
        for name, recipe in RECIPES.items()
    }
    monkeypatch.setattr(recipes_module, "RECIPES", everywhere)
    hopper = torch.device("cuda")
    chosen = with_extras(text, parse_recipes(text), hopper, "bfloat16")
    usual = parse_recipes("bf16+channels-last" if text.startswith("bf16") else "fastest-exact")
    assert set(names_of(chosen)) == {*names_of(usual), *extras}
    assert names_of(chosen) == [name for name in RECIPES if name in names_of(chosen)]


def test_a_machine_that_lacks_what_an_extra_needs_goes_without_it():
    text = "fastest-exact"
    chosen = with_extras(text, parse_recipes(text), torch.device("cpu"), "bfloat16")
    assert chosen == parse_recipes(text)


def on_a_hopper(text):
    """The recipes that `text` means there, without those that need a GPU or a compiler to apply."""
    hopper = torch.device("cuda")
    with pytest.MonkeyPatch.context() as patch:
        everywhere = {
            name: dataclasses.replace(recipe, why_not=recipes_module._never)
            for name, recipe in RECIPES.items()
        }
        patch.setattr(recipes_module, "RECIPES", everywhere)
        chosen = with_extras(text, parse_recipes(text), hopper, "bfloat16")
    named = [*EXTRAS["fastest-exact"], "channels-last"]
    return tuple(recipe for recipe in chosen if recipe.name in named)


def of_another_form(pipe, form):
    """Change a small model, and return the extras that do not fit it."""
    pipe.unet.bfloat16()
    pipe.vae.bfloat16()
    if form == "no upsamplers":
        for network in (pipe.unet.up_blocks, pipe.vae.decoder.up_blocks):
            for block in network:
                block.upsamplers = None
        return {"phased-upsampling"}
    blocks = [module for module in pipe.unet.modules() if type(module) is BasicTransformerBlock]
    if form == "other norms":
        blocks[-1].norm_type = "ada_norm"
        return {"norm-rows", "summed-products"}
    if form == "text in the first attention":
        blocks[-1].only_cross_attention = True
        return {"norm-rows", "summed-products", "text-once"}
    if form == "no bias":
        blocks[-1].ff.net[0].proj.bias = None
        return {"geglu-product"}
    return set()


@pytest.mark.parametrize(
    "form", ["as it is", "no upsamplers", "other norms", "text in the first attention", "no bias"]
)
def test_an_extra_that_does_not_fit_a_model_is_left_out_and_changes_nothing(form):
    pipe = small_pipeline()
    unfit = of_another_form(pipe, form)
    recipes = on_a_hopper("fastest-exact")
    spec = {"model": "small", "recipes": names_of(recipes)}
    ours = SDXLPipeline(pipe, spec=spec, recipes=recipes)
    used = ours.spec["recipes"]
    assert used == [name for name in names_of(recipes) if name not in unfit]
    assert set(EXTRAS["fastest-exact"]) - unfit <= set(used)
    kinds = (NormedBlock, GatedFeedForward, TextOnce)
    found = [any(isinstance(one, kind) for one in ours._unet.modules()) for kind in kinds]
    assert found == [name in used for name in ("norm-rows", "geglu-product", "text-once")]


def test_a_recipe_that_is_named_and_does_not_fit_is_an_error():
    pipe = small_pipeline()
    of_another_form(pipe, "no bias")
    with pytest.raises(ValueError, match="recipe: 'geglu-product' computes"):
        apply_recipes(pipe, on_a_hopper("fastest-exact+geglu-product"))


def test_the_extras_of_the_exact_combination_are_exact():
    assert all(RECIPES[name].exact for name in EXTRAS["fastest-exact"])
    assert set(EXTRAS) <= set(COMBINATIONS)


def calls(monkeypatch, module, name):
    """Record the shapes of the first argument of each later call of `module.name`."""
    shapes, original = [], getattr(module, name)

    def counted(first, *args, **options):
        shapes.append(tuple(first.shape))
        return original(first, *args, **options)

    monkeypatch.setattr(module, name, counted)
    return shapes


def test_dtypes_are_those_of_the_networks(applied):
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        pipe = applied(name)
        assert {pipe._unet.dtype, pipe._vae.dtype, pipe.diffusers.text_encoder.dtype} == {dtype}
        assert pipe.spec["dtype"] == str(dtype).removeprefix("torch.")


def test_a_seed_means_the_same_noise_in_every_dtype(applied, tiny):
    # 16 does not divide the sides of the second size.
    for size in ({"width": 64, "height": 64}, {"width": 104, "height": 88}):
        noise = [pipe.encode([request(**size)])[0].latents for pipe in (tiny, applied("bf16"))]
        assert torch.allclose(noise[0], noise[1].float(), rtol=2**-7, atol=0)


def test_channels_last_is_the_layout_of_weights_and_activations(applied, tiny):
    def strides(pipe):
        """Whether two convolutions' weights and two outputs are channels-last."""
        outputs = []
        unet = pipe._unet
        hooks = [
            module.register_forward_hook(lambda *passed: outputs.append(passed[2]))
            for module in (unet.mid_block.attentions[0], unet.conv_out)
        ]
        pixels(pipe)
        for hook in hooks:
            hook.remove()
        tensors = [unet.conv_in.weight, pipe._vae.decoder.conv_in.weight, outputs[0][0], outputs[1]]
        return [tensor.is_contiguous(memory_format=torch.channels_last) for tensor in tensors]

    assert strides(applied("channels-last")) == [True] * 4
    assert strides(tiny) == [False] * 4


@pytest.mark.parametrize("shape", [(2, 6, 5, 7), (1, 8, 64), (3, 4, 1, 1)])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_group_norm_by_channels_is_group_norm(shape, affine, offset):
    torch.manual_seed(0)
    norm = torch.nn.GroupNorm(2, shape[1], affine=affine)
    if affine:
        norm.weight.data, norm.bias.data = torch.randn(shape[1]), torch.randn(shape[1])
    x = (
        torch.randn(shape) * (1 + torch.arange(shape[1]).view(1, -1, *[1] * (len(shape) - 2)))
        + offset
    )
    exact = norm.double()(x.double())
    norm.float()
    error, torchs_error = (
        (result - exact).abs().max() for result in (_group_norm(norm, x), norm(x))
    )
    assert error <= 2 * torchs_error + 2e-6
    half = x.bfloat16()
    assert _group_norm(norm, half).dtype == torch.bfloat16
    assert torch.allclose(
        _group_norm(norm, half).float(), norm(half.float()), rtol=2**-7, atol=2e-3
    )


def test_fused_projections_are_what_computes(applied, tiny):
    pipe = applied("fused-qkv")
    attention = pipe._unet.mid_block.attentions[0].transformer_blocks[0].attn1
    assert attention.fused_projections
    used = []
    for layer in (attention.to_qkv, attention.to_q):
        layer.register_forward_hook(lambda *passed: used.append(passed[0]))
    pixels(pipe)
    assert set(used) == {attention.to_qkv}
    assert pipe._vae.decoder.mid_block.attentions[0].fused_projections
    assert pipe.spec["model_params"] == tiny.spec["model_params"]
    assert pipe.spec["weights_gib"] == pytest.approx(tiny.spec["weights_gib"]), (
        "the joined matrices are the parts"
    )
    parts = [attention.to_q.weight, attention.to_k.weight, attention.to_v.weight]
    assert torch.equal(torch.cat(parts), attention.to_qkv.weight)
    assert [part.data_ptr() for part in parts] == [
        rows.data_ptr() for rows in attention.to_qkv.weight.chunk(3)
    ]


def test_a_bf16_vae_decodes_and_the_rest_stays(applied):
    pipe = applied("vae-bf16")
    assert (pipe._vae.dtype, pipe.diffusers.vae.dtype, pipe._unet.dtype) == (
        torch.bfloat16, torch.float32, torch.float32,
    )  # fmt: skip
    dtypes = []
    hook = pipe._vae.decoder.register_forward_hook(lambda *passed: dtypes.append(passed[2].dtype))
    pixels(pipe)
    hook.remove()
    assert dtypes == [torch.bfloat16]


def test_tiles_are_decoded_at_the_models_own_side(applied, tiny, monkeypatch):
    pipe = applied("vae-tiling")
    assert pipe._vae.use_tiling
    tiled = calls(monkeypatch, pipe._vae, "tiled_decode")
    tiles = calls(monkeypatch, pipe._vae.decoder, "forward")
    pixels(pipe)
    assert tiled == [(1, 4, 16, 16)]
    assert tiles[0] == (1, 4, 8, 8)
    assert len(tiles) == 9
    image = pixels(pipe, request(width=64, height=64))
    assert len(tiled) == 1, "what fits a tile is not cut"
    assert (image == pixels(tiny, request(width=64, height=64))).all()


def test_sdpa_cudnn_allows_no_other_attention_in_the_unet_alone():
    allowed = []

    class Watched(torch.nn.Module):
        def forward(self):
            cuda = torch.backends.cuda
            flags = (cuda.cudnn_sdp_enabled(), cuda.flash_sdp_enabled(), cuda.math_sdp_enabled())
            allowed.append(flags)

    watched = Watched()
    networks = Networks(watched, None)
    RECIPES["sdpa-cudnn"].apply(networks)
    networks.unet()
    watched()
    assert allowed == [(True, False, False), (True, True, True)]


def test_without_torchao_int8_says_so(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # noqa: ARG005
    with pytest.raises(
        ValueError,
        match="recipe: 'int8' can't be used: torchao is not installed; pip install torchao",
    ):
        RECIPES["int8"].check(torch.device("cpu"), "float32")


def test_bytes_are_those_of_the_stock_call(tiny):
    decoded = torch.rand(2, 3, 64, 64, dtype=torch.bfloat16) * 2 - 1
    stock = tiny.diffusers.image_processor.postprocess(decoded, output_type="pil")
    works = tiny.encode([request(width=64, height=64)] * 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny._vae, "decode", lambda *latents, **options: (decoded,))  # noqa: ARG005
        assert [np.asarray(image).tolist() for image in tiny.decode(works)] == [
            np.asarray(i).tolist() for i in stock
        ]


def test_slices_are_decoded_one_by_one(applied, tiny, monkeypatch):
    pipe = applied("vae-slicing")
    for one, batches in ((pipe, [1, 1, 1]), (tiny, [3])):
        with monkeypatch.context() as patch:
            seen = calls(patch, one._vae.decoder, "forward")
            pixels(one, request(), request(seed=2), request(seed=3))
            assert [shape[0] for shape in seen] == batches


def test_less_memory_is_foreseen_where_less_is_decoded_at_once(applied, tiny):
    huge = (2**15, 2**15)
    assert not tiny.fits(*huge)
    assert applied("vae-tiling").fits(*huge)
    assert not tiny.fits(1024, 1024, 10**5)
    assert applied("vae-slicing").fits(1024, 1024, 10**5)


@pytest.mark.parametrize(
    "name",
    ["channels-last", "fused-qkv", "vae-bf16", "vae-tiling", "vae-slicing", "phased-upsampling"],
)
def test_the_stock_pipeline_stays_stock(applied, tiny, name):
    stock = applied(name).diffusers
    assert (stock.vae.use_tiling, stock.vae.use_slicing) == (False, False)
    assert type(next(iter(stock.unet.attn_processors.values()))).__name__ == "AttnProcessor2_0"
    assert stock.vae.dtype == torch.float32
    images = []
    for pipe in (stock, tiny.diffusers):
        pipe.set_progress_bar_config(disable=True)
        options = {"num_inference_steps": 2, "width": 128, "height": 128}
        images.append(
            pipe("a", generator=torch.Generator("cpu").manual_seed(1), **options).images[0]
        )
    assert psnr_db(*map(np.asarray, images)) > 60
    # Only the layout of its weights is shared.
    assert stock.unet.conv_in.weight.is_contiguous() == (name != "channels-last")


# The warning is the stock call's own.
@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("name", "own"), [("vae-tiling", torch.float32), ("vae-bf16", torch.bfloat16)]
)
def test_a_16_bit_vae_that_overflows_is_reached_too(tiny, name, own):
    stock = copy.deepcopy(tiny.diffusers)
    stock.vae = stock.vae.half()
    stock.vae.register_to_config(force_upcast=True)
    pipe = SDXLPipeline(stock, spec={"model": "tiny"}, recipes=parse_recipes(name))
    assert (pipe._vae.dtype, pipe._vae.use_tiling) == (own, name == "vae-tiling")
    assert np.isfinite(pixels(pipe)).all()
    assert (pipe.diffusers.vae.dtype, pipe.diffusers.vae.use_tiling) == (torch.float16, False)


@pytest.mark.parametrize(
    ("name", "hub_id", "kind", "of_stock"),
    [
        ("vae-fp16-fix", "madebyollin/sdxl-vae-fp16-fix", AutoencoderKL, True),
        ("tiny-vae", "madebyollin/taesdxl", AutoencoderTiny, False),
    ],
)
def test_a_vae_of_the_hub_takes_the_decoders_place(
    tiny, tmp_path, monkeypatch, name, hub_id, kind, of_stock
):
    """The hub's cache holds a VAE with random weights, as after a download."""
    repository = tmp_path / f"models--{hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    vae = copy.deepcopy(tiny.diffusers.vae) if of_stock else AutoencoderTiny()
    vae.save_pretrained(repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    pipe = load_pipeline("tiny", device="cpu", recipe=f"{name}+fused-qkv+vae-tiling")
    assert type(pipe._vae) is kind
    assert pipe._vae.use_tiling
    assert isinstance(pipe.diffusers.vae, AutoencoderKL)
    assert not pipe.diffusers.vae.use_tiling
    images = pixels(pipe, request(width=64, height=64))
    assert images.shape == (1, 64, 64, 3)
    assert (psnr_db(images[0], pixels(tiny, request(width=64, height=64))[0]) > 60) == of_stock


def test_several_are_applied_together_and_the_text_is_kept():
    text = "vae-slicing+channels-last"
    pipe = load_pipeline("tiny", device="cpu", recipe=text)
    assert pipe.spec["recipe"] == text
    assert pipe._vae.use_slicing
    assert pipe._unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert [recipe.name for recipe in parse_recipes("compile+baseline+ channels-last")] == [
        "baseline", "channels-last", "compile",
    ]  # fmt: skip


def test_each_says_what_it_is():
    for name, recipe in RECIPES.items():
        assert isinstance(recipe, Recipe)
        assert (recipe.name, recipe.changes[-1], recipe.start[-1]) == (name, ".", ".")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"recipe": "warp"}, "recipe: 'warp' is not known; use baseline, fp32"),
        ({"recipe": ""}, "recipe: '' is not known"),
        ({"recipe": "vae-tiling+vae-tiling"}, "recipe: 'vae-tiling' is there twice"),
        ({"recipe": "bf16+fp32"}, "recipe: fp32 and bf16 each set the dtype; keep one"),
        (
            {"recipe": "compile+compile-regional"},
            "recipe: compile and compile-regional each set the compiler; keep one",
        ),
        ({"recipe": "int8+fp8"}, "recipe: int8 and fp8 each set the linears; keep one"),
        (
            {"recipe": "sdpa-cudnn"},
            "recipe: 'sdpa-cudnn' can't be used: cuDNN's attention needs a CUDA GPU",
        ),
        (
            {"recipe": "bf16+fp8"},
            "recipe: 'fp8' can't be used: fp8 needs a CUDA GPU of compute capability 8.9",
        ),
        (
            {"recipe": "bf16+geglu-product"},
            "recipe: 'geglu-product' can't be used: its kernel needs a CUDA GPU of compute",
        ),
        (
            {"recipe": "fastest-exact"},
            "recipe: 'text-graphs' can't be used: CUDA graphs need a CUDA GPU; leave it out",
        ),
        (
            {"recipe": "fastest-exact+cudnn-tuned"},
            "recipe: 'cudnn-tuned' can't be used: cuDNN needs a CUDA GPU; leave it out",
        ),
        (
            {"recipe": "cuda-graphs"},
            "recipe: 'cuda-graphs' can't be used: CUDA graphs need a CUDA GPU; leave it out",
        ),
        (
            {"recipe": "tiny-vae"},
            "recipe: 'tiny-vae' can't be used: 'madebyollin/taesdxl' is not cached and the hub",
        ),
        (
            {"recipe": "tiny-vae+vae-bf16"},
            "recipe: vae-bf16 and tiny-vae each set the VAE; keep one",
        ),
        ({"recipe": "fastest+bf16"}, "recipe: 'bf16' is there twice"),
        (
            {"recipe": "bf16", "dtype": "float32"},
            "recipe: 'bf16' computes in bfloat16, not in float32; leave out the recipe or the",
        ),
        (
            {"recipe": "bf16+vae-bf16"},
            "recipe: 'vae-bf16' can't be used: the VAE is in bfloat16 already; leave it out",
        ),
    ],
)
def test_a_bad_recipe_is_refused_before_anything_is_loaded(options, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        load_pipeline("/no/such/model", device="cpu", **options)


def test_each_recipe_that_needs_a_gpu_says_so_first_on_a_cpu(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)  # nor is there any library
    needs = r"[^;]+ needs? a CUDA GPU( of compute capability \d\.\d( or newer)?, such as an H100)?"
    for name in (
        "sdpa-cudnn",
        "fp8",
        "fp8-geglu",
        "fp8-rows",
        "geglu-product",
        "norm-rows",
        "text-attention",
        "decoder-products",
        "fp8-convolutions",
        "cudnn-tuned",
        "text-graphs",
        "cuda-graphs",
    ):
        for dtype in DTYPES:
            with pytest.raises(ValueError, match="can't be used") as refused:
                RECIPES[name].check(torch.device("cpu"), dtype)
            words = rf"recipe: '{name}' can't be used: {needs}; leave it out"
            assert re.fullmatch(words, str(refused.value)), refused.value


@pytest.mark.parametrize("name", ["tiny-vae", "vae-fp16-fix"])
def test_a_vae_that_is_not_there_asks_for_no_other_model(name):
    with pytest.raises(ValueError, match=r"; load it once while .*, or leave it out$") as refused:
        RECIPES[name].check(torch.device("cpu"), "float32")
    assert "model=" not in str(refused.value)


def test_a_dtype_that_agrees_with_the_recipe_is_no_conflict():
    assert (
        load_pipeline("tiny", device="cpu", recipe="bf16", dtype="bfloat16").spec["dtype"]
        == "bfloat16"
    )


def test_without_a_compiler_compile_says_so(tmp_path):
    code = (
        "import torch; from benchlib.serving.model.recipes import RECIPES\n"
        "try: RECIPES['compile'].check(torch.device('cpu'), 'float32')\n"
        "except ValueError as error: print(error)"
    )
    bare = os.environ | {"PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    bare.pop("CXX", None)
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=bare, capture_output=True, text=True
    )
    assert "recipe: 'compile' can't be used: torch.compile does not work here" in ran.stdout, (
        ran.stderr
    )
    assert "install a C++ compiler" in ran.stdout


def noise_of(unet):
    """The answer of a UNet of `small_pipeline` to one text, of its own or as conditions."""
    torch.manual_seed(0)
    with torch.inference_mode():
        return unet(
            torch.randn(2, 4, 8, 8),
            torch.ones(2),
            encoder_hidden_states=torch.randn(2, 77, 160),
            added_cond_kwargs={"text_embeds": torch.randn(2, 96), "time_ids": torch.ones(2, 6)},
            return_dict=False,
        )[0]


def test_like_blocks_are_traced_once_and_compute_the_same(monkeypatch):
    """The graphs that torch gets run as they are, so the answer keeps its bits."""
    operators = []

    def count(graph, _):
        operators.append(len(graph.graph.nodes))
        return graph.forward

    compiles = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda call, **_: compiles(call, backend=count, dynamic=False)
    )
    traced = []
    for layers in (1, 3):
        pipe = small_pipeline(unet={"transformer_layers_per_block": [1, 1, layers]})
        recipes = parse_recipes("channels-last+fused-qkv")
        uncompiled = apply_recipes(pipe, recipes).unet
        norm_and_activate_at_once(uncompiled, _ChannelwiseGroupNorm)
        expected = noise_of(uncompiled)
        _with_compiled_ends.cache_clear()
        torch.compiler.reset()
        operators.clear()
        networks = apply_recipes(pipe, recipes)
        compiled(networks, regions=BLOCKS)
        networks.unet = read_texts_once(networks.unet)
        assert torch.equal(noise_of(networks.unet), expected)
        traced.append(list(operators))
    _with_compiled_ends.cache_clear()
    torch.compiler.reset()
    assert traced[0] == traced[1] != []


def test_compiled_sums_have_a_fixed_order_so_processes_agree(monkeypatch):
    """Without it two processes on one card made other bytes of each seed (H200, torch 2.11)."""
    asked = []

    def look(call, *, options, **_):
        asked.append(options["deterministic"])
        return call

    monkeypatch.setattr(torch, "compile", look)
    monkeypatch.setattr(torch.nn.Module, "compile", look)
    for regions in (None, TRANSFORMERS, BLOCKS):
        _with_compiled_ends.cache_clear()
        compiled(apply_recipes(small_pipeline(), (), apart=True), regions=regions)
        assert asked
        assert all(asked)
        asked.clear()
    _with_compiled_ends.cache_clear()


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("recipe", ["compile-regional", "compile-blocks", "compile"])
def test_compiled_images_agree_and_a_server_that_is_ready_compiles_nothing(tiny, recipe):
    torch.compiler.reset()  # drops a decoder that another test compiled
    pipe = load_pipeline("tiny", device="cpu", recipe=recipe)
    engine = Engine(pipe, EngineOptions(max_batch_size=2, sizes=[(64, 64)]))
    before = graphs_made()
    engine.start()
    assert engine.settled.wait(1200)
    graphs = graphs_made()
    assert graphs - before >= 3, "the UNet's for 2 and 4 rows, and the decoder's"
    changes = [
        {"guidance_scale": 1.0 if n == 2 else 5.0, "num_inference_steps": 2 + n} for n in range(4)
    ]
    requests = [request(seed=n, width=64, height=64, **changes[n]) for n in range(4)]
    for n in (1, 2, 3, 4):
        jobs = [engine.submit(one) for one in requests[:n]]
        images = [np.asarray(job.future.result(60)) for job in jobs]
    assert graphs_made() == graphs
    engine.stop()
    assert (
        min(
            psnr_db(image, pixels(tiny, one)[0])
            for image, one in zip(images, requests, strict=True)
        )
        > 60
    )


def test_a_vae_of_another_scale_is_refused(tmp_path, monkeypatch):
    """The model's VAE has two levels, and the hub's has four."""
    levels = {"block_out_channels": [16, 16], "norm_num_groups": 8}
    levels |= {"down_block_types": ["DownEncoderBlock2D"] * 2}
    levels |= {"up_block_types": ["UpDecoderBlock2D"] * 2}
    folder = tmp_path / "model"
    small_pipeline(vae=levels).save_pretrained(folder)
    AutoencoderTiny().save_pretrained(tmp_path / "vae")
    put_into_hub_cache(tmp_path, "madebyollin/taesdxl", tmp_path / "vae", with_weights=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="has another scale than this model's VAE of 2 levels"):
        load_pipeline(str(folder), device="cpu", recipe="tiny-vae", torch_threads=1)
