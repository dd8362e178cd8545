"""Prompts of different length side by side: encoded once into the cache, whatever comes after."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unitok.cache import KVCache
from unitok.model import UniTok
from unitok.sequence import DocumentBuilder, lay_out


@dataclass
class EncodedPrompts:
    """Rows ready to be continued."""

    cache: KVCache
    length: int
    """Slots of the cache that hold prompts."""
    groups: torch.Tensor
    """(B,) int64: first free group of each row."""
    orders: torch.Tensor
    """(B,) int64: next order coordinate of each row."""


def encode_prompts(model: UniTok, prompts: list[DocumentBuilder], room: int) -> EncodedPrompts:
    """Runs prompts through the transformer, leaving room for that many further positions.

    Shorter prompts are padded behind; nobody sees padding, and places count on from each row's own end, so a row
    gives what it gives alone.
    """
    transformer = model.transformer
    batch = lay_out([[prompt.build()] for prompt in prompts], pad=model.vocabulary.pad).to(model.device)
    rows, length = batch.inputs.shape
    autocast = torch.is_autocast_enabled(model.device.type)
    dtype = torch.get_autocast_dtype(model.device.type) if autocast else transformer.embedding.weight.dtype
    cache = KVCache(transformer.config, rows, length + room, model.device, dtype)
    seen = cache.extend(batch.groups, batch.documents)
    transformer.hidden(batch.inputs, batch.places, seen, cache, batch.features)
    return EncodedPrompts(
        cache,
        length,
        torch.tensor([prompt.group for prompt in prompts], device=model.device),
        torch.tensor([prompt.order for prompt in prompts], device=model.device),
    )
