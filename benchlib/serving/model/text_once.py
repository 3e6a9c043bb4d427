"""A UNet that reads a batch's texts once, and not again in each step.

Each cross-attention turns the text into keys and values. They depend on the text alone, and so does
what the UNet adds to its time embedding. Here both are computed when a batch is new. The products
have the shapes that they have in a step, so the image keeps its bits. SDXL has 70 such attentions;
their keys and values take 12.7 MiB for each row in 16 bits.

Knows diffusers' transformers and their attention. Ignorant of batches: a text is another text if it
is another tensor.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from diffusers import Transformer2DModel, UNet2DConditionModel
from torch import Tensor

from benchlib.serving.model.model_errors import UnfitModel
from benchlib.serving.model.plain_attention import attended, finished

Projected = tuple[Tensor, ...]  # of one attention: keys and values, joined or one by one


class Conditions(NamedTuple):
    """What the texts of a batch are to the UNet: by transformer and block, and for its embedding."""

    projected: tuple[tuple[Projected, ...], ...]
    embedded: Tensor


class TextOnce(torch.nn.Module):
    """A UNet, as it is called by the pipeline, that keeps the conditions of the latest text.

    An adapter changes the projections. A batch has one adapter, and its text is a tensor of its own,
    so the conditions are those of its adapter.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self._latest: tuple[Tensor, Conditions] | None = None

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        *,
        encoder_hidden_states: Tensor,
        added_cond_kwargs: dict[str, Tensor],
        return_dict: bool,  # noqa: ARG002 - as the UNet's own
        timestep_cond: Tensor | None = None,
    ) -> tuple[Tensor]:
        if self._latest is None or self._latest[0] is not encoder_hidden_states:
            self._latest = None  # frees it first
            conditions = self.conditions(encoder_hidden_states, added_cond_kwargs)
            self._latest = encoder_hidden_states, conditions
        _, conditions = self._latest
        return (self.denoise(latents, timesteps, conditions, timestep_cond=timestep_cond),)

    def conditions(self, text: Tensor, added: dict[str, Tensor]) -> Conditions:
        """Compute what depends on the texts (rows, 77, features) and the other conditions alone."""
        unet = _inmost(self.network)
        projected = []
        for transformer in _transformers(unet):
            blocks = transformer.transformer_blocks
            projected.append(tuple(_project(block.attn2, text) for block in blocks))
        embedded = UNet2DConditionModel.get_aug_embed(unet, text, text, added)
        return Conditions(tuple(projected), embedded)

    def denoise(
        self,
        latents: Tensor,
        timesteps: Tensor,
        conditions: Conditions,
        *,
        timestep_cond: Tensor | None,
    ) -> Tensor:
        """The UNet's answer, given the conditions."""
        noise: Tensor = self.network(
            latents,
            timesteps,
            encoder_hidden_states=conditions.projected,
            added_cond_kwargs={"embedded": conditions.embedded},
            return_dict=False,
            timestep_cond=timestep_cond,
        )[0]
        return noise


def read_texts_once(network: torch.nn.Module) -> TextOnce:
    """The UNet `network`, changed in place so that it takes conditions in place of texts.

    Raises UnfitModel if a block reads the text elsewhere than in its second attention.
    """
    unet = _inmost(network)
    for transformer in _transformers(unet):
        for block in transformer.transformer_blocks:
            if block.only_cross_attention or block.attn2 is None:
                raise UnfitModel("recipe: 'text-once' knows SDXL's transformers only; leave it out")
    for number, transformer in enumerate(_transformers(unet)):
        kind: Any = type(transformer)
        transformer.__class__ = _with_share(kind)
        transformer.text_share = number
        for place, block in enumerate(transformer.transformer_blocks):
            kind = type(block)
            block.__class__ = _with_share(kind)
            block.text_share = place
            block.attn2.processor = _GIVEN_TEXT
    unet.get_aug_embed = _embedded  # unbound, since a method of its own would be a reference cycle
    return TextOnce(network)


def _embedded(
    emb: Tensor,  # noqa: ARG001 - as the UNet's own
    encoder_hidden_states: Any,  # noqa: ARG001
    added_cond_kwargs: dict[str, Tensor],
) -> Tensor:
    return added_cond_kwargs["embedded"]


class _TakesItsShare(torch.nn.Module):
    """A transformer that takes its share of a UNet's conditions, or a block that takes its own of it.

    It does so before the call that is compiled. Else like modules, which differ in their number,
    would each be compiled.
    """

    text_share: int

    def __call__(self, hidden_states: Tensor, *, encoder_hidden_states: Any, **options: Any) -> Any:
        share = encoder_hidden_states[self.text_share]
        return super().__call__(hidden_states, encoder_hidden_states=share, **options)


@cache
def _with_share(kind: type) -> type:
    """A class of modules like `kind` that take their share."""
    return type(kind.__name__, (_TakesItsShare, kind), {})


class _GivenText:
    """Attention to a text that is projected already."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Projected,
        attention_mask: Tensor | None = None,
        without_product: bool = False,
    ) -> Tensor:
        """`hidden_states` is (rows, tokens, features), and so is the answer."""
        projected = encoder_hidden_states
        if len(projected) == 1:
            projected = projected[0].chunk(2, dim=-1)
        keys, values = projected
        joined = attended(attn, attn.to_q(hidden_states), keys, values, attention_mask)
        return finished(attn, joined, without_product=without_product)


_GIVEN_TEXT = _GivenText()  # one for all, so that like blocks are compiled once


def _project(attn: Any, text: Tensor) -> Projected:
    """The keys and values of a text, by the products that the attention itself would use."""
    if attn.fused_projections:
        return (attn.to_kv(text),)
    return attn.to_k(text), attn.to_v(text)


def _inmost(network: Any) -> Any:
    """The UNet within the wrappers of other recipes."""
    while hasattr(network, "network"):
        network = network.network
    return network


def _transformers(unet: torch.nn.Module) -> list[Any]:
    return [module for module in unet.modules() if isinstance(module, Transformer2DModel)]
