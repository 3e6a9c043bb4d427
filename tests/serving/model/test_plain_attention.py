"""Attention without a division by 1, beside diffusers' own: the same bits."""

import copy
import operator

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from benchlib.serving.model.plain_attention import leave_out_division


def make_attention(*, crosses=False, **options):
    torch.manual_seed(0)
    text = {"cross_attention_dim": 32} if crosses else {}
    return Attention(query_dim=64, heads=4, dim_head=16, **text, **options).bfloat16().eval()


def undivided(attn):
    ours = copy.deepcopy(attn)
    leave_out_division(ours)
    assert type(ours.processor) is not type(attn.processor)
    return ours


@torch.no_grad()
@pytest.mark.parametrize("crosses", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_it_keeps_the_bits_of_diffusers(crosses, masked):
    plain = make_attention(crosses=crosses)
    joined = copy.deepcopy(plain)
    joined.fuse_projections()
    x = torch.randn(2, 24, 64).bfloat16()
    text = torch.randn(2, 7, 32).bfloat16() if crosses else None
    mask = None
    if masked:
        mask = torch.zeros(2, 1, 7 if crosses else 24).bfloat16()
        mask[:, :, 3:] = -10_000.0
    wanted = plain(x, encoder_hidden_states=text, attention_mask=mask)
    for attn in (plain, joined):
        found = undivided(attn)(x, encoder_hidden_states=text, attention_mask=mask)
        assert torch.equal(found, wanted)


def test_nothing_is_divided_any_more():
    operators = []

    def look(graph, _):
        operators.extend(node.target for node in graph.graph.nodes)
        return graph.forward

    x = torch.randn(2, 24, 64).bfloat16()
    divisions = []
    for attn in (make_attention(), undivided(make_attention())):
        torch.compiler.reset()
        operators.clear()
        torch.compile(attn, backend=look, fullgraph=True, dynamic=False)(x)
        divisions.append(operators.count(operator.truediv))
    torch.compiler.reset()
    assert divisions == [1, 0]


@pytest.mark.parametrize(
    "options",
    [{"rescale_output_factor": 2.0}, {"residual_connection": True}, {"norm_num_groups": 4}],
)
def test_attention_that_does_more_stays_as_it_is(options):
    attn = make_attention(**options)
    leave_out_division(attn)
    assert type(attn.processor) is AttnProcessor2_0


def test_a_processor_of_others_stays():
    class Other(AttnProcessor2_0):
        pass

    attn = make_attention()
    attn.set_processor(Other())
    leave_out_division(attn)
    assert type(attn.processor) is Other
