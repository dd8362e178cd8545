"""From logits to ids: a row of small pure functions. Logits are (..., V) float32."""

from __future__ import annotations

import torch

from tokenizers_vq.errors import UserError

from .config import SampleSettings


def guide(logits: torch.Tensor, scale: float, rows: int) -> torch.Tensor:
    """Classifier-free guidance (arXiv:2207.12598) over 2 x `rows` rows, conditional ones first, to `rows` rows. Without
    unconditional ones nothing changes."""
    if len(logits) == rows:
        return logits
    conditional, unconditional = logits.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def finite(logits: torch.Tensor) -> torch.Tensor:
    """The logits themselves. Every choice of an id goes through here, before ids are left out by minus infinity.

    Raises:
        UserError: they are not finite, and what is chosen by them would say nothing.
    """
    if not torch.isfinite(logits.sum()):  # one number to look at: a thirtieth of the time of looking at each
        raise UserError(
            "the model's logits are not finite: its weights are damaged or its training diverged (take an older "
            "checkpoint), or --guidance or --temperature is beyond all measure (leave it out)"
        )
    return logits


def keep_top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Minus infinity for all but the k largest; 0 keeps all."""
    if k == 0 or k >= logits.shape[-1]:
        return logits
    smallest = logits.topk(k, -1).values[..., -1:]
    return logits.masked_fill(logits < smallest, float("-inf"))


def keep_top_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Minus infinity outside the smallest set with probability p (nucleus sampling, arXiv:1904.09751); 0 or 1 keep
    all."""
    if p == 0 or p == 1:
        return logits
    ordered, index = logits.sort(-1, descending=True)
    probabilities = ordered.softmax(-1)
    outside = probabilities.cumsum(-1) - probabilities >= p  # the first id that reaches p still belongs
    return logits.masked_fill(torch.zeros_like(outside).scatter(-1, index, outside), float("-inf"))


def probabilities(logits: torch.Tensor, settings: SampleSettings) -> torch.Tensor:
    """Temperature, top-k and top-p of `settings.at_scale`, then softmax. Temperature 0 puts everything on the most
    likely id."""
    assert not (
        isinstance(settings.temperature, list) or isinstance(settings.top_k, list) or isinstance(settings.top_p, list)
    )
    if settings.temperature == 0:
        return torch.zeros_like(logits).scatter(-1, finite(logits).argmax(-1, keepdim=True), 1.0)
    logits = keep_top_k(finite(logits / settings.temperature), settings.top_k)
    return keep_top_p(logits, settings.top_p).softmax(-1)


def pick(probabilities: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Inverse-CDF sampling: probabilities (..., V) and uniform draws (...) in [0, 1) to ids (...).

    One number per id decides, so a row's draw is the same in any batch and on any device.
    """
    cumulative = probabilities.double().cumsum(-1)
    point = uniform.double() * cumulative[..., -1]
    ids = (cumulative <= point[..., None]).sum(-1)
    return ids.clamp(max=probabilities.shape[-1] - 1)
