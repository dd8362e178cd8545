"""Decoder of the next-token objective: one code after the other, with the KV cache."""

from __future__ import annotations

from collections.abc import Callable

import torch

from unitok.model import UniTok
from unitok.seeding import keyed_generator
from unitok.sequence import image_places

from .config import SampleSettings
from .logits import guide, pick, probabilities
from .prompts import EncodedPrompts


def decode(
    model: UniTok,
    prompts: EncodedPrompts,
    seeds: list[int],
    settings: SampleSettings,
    watch: Callable[[torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Codes (B, L) of B pictures. With guidance the prompts are 2B rows, conditional ones first.

    `watch` is shown the logits (rows, 1, codebook) of every position before guidance.
    """
    settings = settings.at_scale()
    transformer, vocabulary, layout = model.transformer, model.vocabulary, model.layout
    rows = len(prompts.groups)
    groups = model.objective.groups(layout).to(model.device)
    places = image_places(layout, 0).to(model.device)
    uniform = torch.stack([torch.rand(layout.length, generator=keyed_generator(seed, "next_token")) for seed in seeds])
    uniform = uniform.to(model.device)

    ids = torch.full((rows, 1), vocabulary.boi, device=model.device)
    codes = torch.full((len(seeds), layout.length), -1, device=model.device)
    for position in range(layout.length):
        place = places[position].repeat(rows, 1)
        place[:, 0] += prompts.orders
        seen = prompts.cache.extend((prompts.groups + groups[position])[:, None], whole=True)
        hidden = transformer.hidden(ids, place[:, None], seen, prompts.cache)  # (rows, 1, C)
        logits = transformer.logits(hidden, vocabulary.image_range)
        if watch is not None:
            watch(logits)
        guided = guide(logits[:, 0], settings.guidance, len(seeds))
        chosen = pick(probabilities(guided, settings), uniform[:, position])
        codes[:, position] = chosen
        ids = (chosen + vocabulary.image_start).repeat(rows // len(seeds))[:, None]
    return codes
