"""Decoder of the masked-token objective: all codes at once, the most confident are kept (MaskGIT,
arXiv:2202.04200)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from unitok.model import UniTok
from unitok.objectives.masked_token import mask_share
from unitok.seeding import keyed_generator
from unitok.sequence import image_places

from .config import SampleSettings
from .logits import guide, pick, probabilities
from .prompts import EncodedPrompts

CHOICE_TEMPERATURE = 4.5
"""Noise in the order in which codes are fixed, falling linearly to 0 (MaskGIT's published value for 256 px)."""


def decode(
    model: UniTok,
    prompts: EncodedPrompts,
    seeds: list[int],
    settings: SampleSettings,
    watch: Callable[[torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Codes (B, L) of B pictures in `settings.steps` passes. With guidance the prompts are 2B rows, conditional ones
    first.

    `watch` is shown the logits (rows, L, codebook) of every pass before guidance.
    """
    settings = settings.at_scale()
    assert not isinstance(settings.temperature, list)
    transformer, vocabulary, layout = model.transformer, model.vocabulary, model.layout
    rows, length = len(prompts.groups), layout.length
    steps = min(settings.steps, length)
    groups = prompts.groups[:, None] + model.objective.groups(layout).to(model.device)
    places = image_places(layout, 0).to(model.device).repeat(rows, 1, 1)
    places[..., 0] += prompts.orders[:, None]
    generators = [keyed_generator(seed, "masked_token") for seed in seeds]

    codes = torch.full((len(seeds), length), -1, device=model.device)
    for step in range(steps):
        hidden_codes = codes < 0
        ids = torch.where(hidden_codes, vocabulary.mask, codes + vocabulary.image_start)
        prompts.cache.rewind(prompts.length)
        seen = prompts.cache.extend(groups, whole=True)
        hidden = transformer.hidden(ids.repeat(rows // len(seeds), 1), places, seen, prompts.cache)
        logits = transformer.logits(hidden, vocabulary.image_range)  # (rows, L, codebook)
        if watch is not None:
            watch(logits)
        chances = probabilities(guide(logits, settings.guidance, len(seeds)), settings)  # (B, L, codebook)
        draws = torch.stack([torch.rand(2, length, generator=generator) for generator in generators]).to(model.device)
        drawn = pick(chances, draws[:, 0])
        codes = torch.where(hidden_codes, drawn, codes)
        progress = (step + 1) / steps
        still_hidden = int(mask_share(progress) * length) if step + 1 < steps else 0
        if still_hidden:
            # Gumbel noise on the log-probability of the chosen code; codes that are fixed stay fixed.
            gumbel = -torch.log(-torch.log(draws[:, 1].clamp(1e-9, 1 - 1e-7)))
            confidence = chances.gather(-1, drawn[..., None])[..., 0].clamp(min=1e-20).log()
            confidence = confidence + CHOICE_TEMPERATURE * settings.temperature * (1 - progress) * gumbel
            confidence = confidence.masked_fill(~hidden_codes, float("inf"))
            again = confidence.argsort(-1)[:, :still_hidden]
            codes = codes.scatter(1, again, -1)
    return codes
