"""Decoder of the next-scale objective: all codes of a scale in one pass, coarse to fine, with the KV cache."""

from __future__ import annotations

from collections.abc import Callable

import torch

from unitok.model import UniTok
from unitok.objectives.next_scale import NextScale
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
    """Codes (B, L) of B pictures, or of their first `settings.scales` scales, in as many passes. With guidance the
    prompts are 2B rows, conditional ones first.

    `watch` is shown the logits (rows, n, codebook) of every scale before guidance.
    """
    transformer, vocabulary, layout, objective = model.transformer, model.vocabulary, model.layout, model.objective
    assert isinstance(objective, NextScale)
    rows, copies = len(prompts.groups), len(prompts.groups) // len(seeds)
    places = image_places(layout, 0).to(model.device)
    groups = objective.groups(layout).to(model.device)
    uniform = torch.stack([torch.rand(layout.length, generator=keyed_generator(seed, "next_scale")) for seed in seeds])
    uniform = uniform.to(model.device)

    total = objective.quantizer.blank(len(seeds), layout, model.device)  # (B, D, h, w)
    codes: list[torch.Tensor] = []
    start = 0
    for scale, length in enumerate(layout.lengths[: settings.scales or None]):
        span = slice(start, start + length)
        start = span.stop
        seen_before = objective.quantizer.shrink(total, scale, layout)  # (B, n, D)
        features = objective.mark(seen_before, groups[span]).repeat(copies, 1, 1)
        ids = objective.inputs(seen_before, groups[span], vocabulary).repeat(copies, 1)
        place = places[span].repeat(rows, 1, 1)
        place[..., 0] += prompts.orders[:, None]
        seen = prompts.cache.extend(prompts.groups[:, None] + groups[span], whole=True)
        hidden = transformer.hidden(ids, place, seen, prompts.cache, features)
        logits = transformer.logits(hidden, vocabulary.image_range)
        if watch is not None:
            watch(logits)
        here = settings.at_scale(scale, len(layout.scales))
        codes.append(pick(probabilities(guide(logits, here.guidance, len(seeds)), here), uniform[:, span]))
        total = objective.quantizer.add(total, codes[-1], scale, layout)
    return torch.cat(codes, 1)
