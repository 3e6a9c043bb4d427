"""What the tests of the UNet's changed blocks share: small blocks, kernels on a CPU, and graphs."""

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch.nn.functional import layer_norm

from benchlib.serving.model.normed_blocks import add_norm_rows, norm_rows
from benchlib.serving.model.optimisations import Networks, _with_compiled_ends, compiled
from benchlib.serving.model.recipes import apply_recipes, parse_recipes
from benchlib.serving.model.text_once import read_texts_once

from .small_models import small_pipeline


def norm_on_a_cpu():
    """Let torch's own norm stand in for the kernels."""

    @norm_rows.register_kernel("cpu")
    def _norm(x, weight, bias, eps, owed=None):
        if owed is None:
            return layer_norm(x, x.shape[1:], weight, bias, eps)
        numbers = layer_norm(x + owed, x.shape[1:], weight.float(), bias.float(), eps)
        return numbers.to(x.dtype)

    @add_norm_rows.register_kernel("cpu")
    def _add_norm(x, more, weight, bias, eps):
        total = x + more
        return total, layer_norm(total, x.shape[1:], weight, bias, eps)


def make_block(dtype=torch.bfloat16, **options):
    torch.manual_seed(0)
    options = {"cross_attention_dim": 32, "activation_fn": "geglu"} | options
    return BasicTransformerBlock(64, 4, 16, **options).to(dtype).eval()


@torch.inference_mode()
def noise_of(networks: Networks):
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


def graphs_by_depth(monkeypatch, regions, depths, *, recipes, alike):
    """How many graphs torch gets of the UNet of `recipes`, for each number of blocks in `depths`.

    The graphs run as they are. So the answer must have the bits of the recipes `alike`, which are
    not compiled.
    """
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    compiles = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda call, **_: compiles(call, backend=count, dynamic=False)
    )
    made = []
    for layers in depths:
        pipe = small_pipeline(unet={"transformer_layers_per_block": [1, 1, layers]}).to(
            torch.bfloat16
        )
        wanted = noise_of(apply_recipes(pipe, parse_recipes(alike)))
        _with_compiled_ends.cache_clear()
        torch.compiler.reset()
        graphs.clear()
        networks = apply_recipes(pipe, parse_recipes(recipes))
        compiled(networks, regions=regions)
        networks.unet = read_texts_once(networks.unet)
        assert torch.equal(noise_of(networks), wanted)
        made.append(len(graphs))
    _with_compiled_ends.cache_clear()
    torch.compiler.reset()
    return made


def operators_of(block, *inputs, **options):
    """The operators of the one graph that torch gets of `block`; its answer must keep its bits."""
    operators = []

    def look(graph, _):
        operators.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    wanted = block(*inputs, **options)
    torch.compiler.reset()
    block.compile(backend=look, fullgraph=True, dynamic=False)
    assert torch.equal(block(*inputs, **options), wanted)
    torch.compiler.reset()
    return operators
