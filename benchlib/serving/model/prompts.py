"""Prompts: the embeddings of a request's texts for the UNet.

Knows the text encoders of a stock pipeline and how classifier-free guidance uses the negative
prompt. Ignorant of images, noise and the UNet itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchlib.serving.model.model_spec import guided_rows
from benchlib.serving.model.recorded import RecordedEncoder
from benchlib.serving.schemas import GenerateRequest

Embedding = tuple[Tensor, Tensor]  # (rows, 77, features) of the text, (rows, features) pooled


def embed_prompts(pipe: Any, requests: Sequence[GenerateRequest]) -> list[Embedding]:
    """The embeddings of each request for the UNet.

    A guided request has two rows; the negative prompt's comes first. A request without guidance
    has one row.
    """
    embeddings = _embed_texts(pipe, requests)
    chosen = []
    for request in requests:
        text, pooled = embeddings[request.prompt]
        if _guides(pipe, request):
            unconditional = (torch.zeros_like(text), torch.zeros_like(pooled))
            negative = _negative(pipe, request)
            if negative is not None:
                unconditional = embeddings[negative]
            text = torch.cat([unconditional[0], text])
            pooled = torch.cat([unconditional[1], pooled])
        chosen.append((text, pooled))
    return chosen


def embed_guidance(pipe: Any, request: GenerateRequest, dtype: torch.dtype) -> Tensor | None:
    """(1, features) of the guidance scale, for a UNet that reads it as an LCM's does; else None."""
    features = pipe.unet.config.time_cond_proj_dim
    if features is None:
        return None
    scale = torch.tensor([request.guidance_scale - 1], dtype=torch.float32)
    embedding: Tensor = pipe.get_guidance_scale_embedding(scale, embedding_dim=features)
    return embedding.to(device=pipe.unet.device, dtype=dtype)


def _guides(pipe: Any, request: GenerateRequest) -> bool:
    """Whether guidance takes a second row: above a scale of 1, unless the UNet reads the scale."""
    return request.rows(guided_rows(pipe.unet)) == 2


def _embed_texts(pipe: Any, requests: Sequence[GenerateRequest]) -> dict[str, Embedding]:
    """The embedding of each different text in `requests`, one row each."""
    texts = [request.prompt for request in requests]
    for request in requests:
        negative = _negative(pipe, request)
        if _guides(pipe, request) and negative is not None:
            texts.append(negative)
    texts = list(dict.fromkeys(texts))
    # The stock pipeline encodes one text at a time. A single request is encoded likewise, for the
    # same bits. Recorded encoders have one recording, of one text.
    together = len(requests) > 1 and not isinstance(pipe.text_encoder_2, RecordedEncoder)
    groups = [texts] if together else [[text] for text in texts]
    # diffusers' own `unet.device` asks each module for hooks: milliseconds for SDXL's UNet.
    device = next(pipe.unet.parameters()).device
    embeddings: dict[str, Embedding] = {}
    for group in groups:
        embedded, _, pooled, _ = pipe.encode_prompt(
            prompt=group, device=device, do_classifier_free_guidance=False
        )
        for number, text in enumerate(group):
            row = slice(number, number + 1)
            embeddings[text] = (embedded[row], pooled[row])
    return embeddings


def _negative(pipe: Any, request: GenerateRequest) -> str | None:
    """The text that guidance leads away from; None stands for zeros in place of an embedding."""
    if request.negative_prompt is None and not pipe.config.force_zeros_for_empty_prompt:
        return ""
    return request.negative_prompt
