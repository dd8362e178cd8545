"""From logits to ids: a row of small pure functions. Logits are (..., V) float32. Nothing here waits for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .sampling import SampleSettings

COLDEST = 1e-6
"""Temperatures below are 0: they would divide logits beyond all numbers."""
FEW = (64, 1024)
"""Ids that are put in order before all are."""


def guide(lanes: Sequence[torch.Tensor], weights: Sequence[float | torch.Tensor]) -> torch.Tensor:
    """Classifier-free guidance (arXiv:2207.12598) from the logits of each prompt, the barest last.

    `weights` are those of all prompts but the last; see `lane_weights`. One prompt alone is what it is, and so is one
    of two whose weight is 1.
    """
    *others, last = lanes
    if len(others) == 1 and isinstance(weights[0], float) and weights[0] == 1:
        return others[0]
    guided = last
    for logits, weight in zip(others, weights, strict=True):
        guided = guided + weight * (logits - last)
    return guided


def lane_weights(scales: Sequence[float]) -> dict[int, float]:
    """Prompt -> its weight, of the prompts that guidance needs.

    Prompt 0 has all conditions, prompt i lacks the first i of them. Guided logits are those of the barest prompt, and
    for each condition i its scale times (prompt i - prompt i + 1), as in InstructPix2Pix (arXiv:2211.09800). A prompt
    whose weight is 0 need not be run: at scale 1 a condition costs nothing.

    >>> lane_weights([3.0]), lane_weights([1.0]), lane_weights([7.5, 1.5])
    ({0: 3.0, 1: -2.0}, {0: 1.0}, {0: 7.5, 1: -6.0, 2: -0.5})
    """
    edges = [*scales, 1.0]
    weights = {0: edges[0]} | {i: edges[i] - edges[i - 1] for i in range(1, len(edges))}
    return {lane: weight for lane, weight in weights.items() if weight != 0} or {len(scales): 1.0}


def choose(
    logits: torch.Tensor, uniform: torch.Tensor, settings: Sequence[SampleSettings]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (b, n) and their probabilities (b, n), from logits (b, n, V), draws (b, n) in [0, 1) and the settings of each
    row, every one a number."""
    kinds = [(one.temperature, one.entropy_temperature, one.top_k, one.top_p) for one in settings]
    if all(kind == kinds[0] for kind in kinds):
        return _choose(logits, uniform, settings[0])
    ids, chances = torch.empty_like(uniform, dtype=torch.int64), torch.empty_like(uniform)
    for kind in dict.fromkeys(map(repr, kinds)):
        mine = [row for row, other in enumerate(kinds) if repr(other) == kind]
        rows = torch.tensor(mine, device=logits.device)
        ids[rows], chances[rows] = _choose(logits[rows], uniform[rows], settings[mine[0]])
    return ids, chances


def _choose(logits: torch.Tensor, uniform: torch.Tensor, settings: SampleSettings) -> tuple[torch.Tensor, torch.Tensor]:
    temperature, top_k, top_p = settings.temperature, settings.top_k, settings.top_p
    assert not (isinstance(temperature, list) or isinstance(top_k, list) or isinstance(top_p, list))
    if temperature < COLDEST:
        ids = logits.argmax(-1)
        return ids, torch.ones_like(uniform)
    rule = settings.entropy_temperature
    if not rule:
        logits = logits / temperature
    kept = None
    if 0 < top_k < logits.shape[-1]:
        # Only those k are looked at from here on, in the order of their ids.
        kept = logits.topk(top_k, -1, sorted=False).indices.sort(-1).values
        logits = logits.gather(-1, kept)
    logits = keep_top_p(logits, top_p)
    if rule:
        logits = logits / (temperature * entropy_factor(logits, *rule)).clamp(min=COLDEST)
    ids, chances = _pick(logits.softmax(-1), uniform)
    return ids if kept is None else kept.gather(-1, ids[..., None])[..., 0], chances


def entropy_factor(logits: torch.Tensor, scale: float, decay: float, floor: float) -> torch.Tensor:
    """By what the temperature of each distribution is multiplied (..., 1): scale * exp(-entropy / decay) + floor, with
    the entropy in nats (arXiv:2510.09012). It is scale + floor where one id is certain, and comes to floor where many
    are likely.

    >>> entropy_factor(torch.tensor([[99.0, 0.0], [0.0, 0.0]]), -0.5, 0.5, 1.0)
    tensor([[0.5000],
            [0.8750]])
    """
    entropy = torch.special.entr(logits.softmax(-1)).sum(-1, keepdim=True)
    return scale * (-entropy / decay).exp() + floor


def _pick(probabilities: torch.Tensor, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    ids = pick(probabilities, uniform)
    return ids, probabilities.gather(-1, ids[..., None])[..., 0]


def keep_top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Minus infinity outside the k most likely ids; 0 keeps all. Ids as likely as the last one of them stay."""
    if not 0 < k < logits.shape[-1]:
        return logits
    least = logits.topk(k, -1).values[..., -1:]
    return logits.masked_fill(logits < least, float("-inf"))


def keep_top_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Minus infinity outside the smallest set with probability p (nucleus sampling, arXiv:1904.09751); 0 or 1 keep
    all. Ids as likely as the last one of the set stay with it."""
    if p == 0 or p == 1:
        return logits
    total = logits.logsumexp(-1, keepdim=True)
    for size in _sizes(logits):
        ordered = logits.topk(size, -1).values if size < logits.shape[-1] else logits.sort(-1, descending=True).values
        probabilities = (ordered - total).exp()
        before = probabilities.cumsum(-1) - probabilities
        if size == logits.shape[-1] or bool((before[..., -1] >= p).all()):
            break
    least = ordered.masked_fill(before >= p, float("inf")).amin(-1, keepdim=True)  # the first that reaches p is inside
    return logits.masked_fill(logits < least, float("-inf"))


def _sizes(logits: torch.Tensor) -> list[int]:
    """How many of the most likely ids to put in order. The set is small as a rule; to see whether it is costs a wait,
    which only a CPU does not mind."""
    few = [size for size in FEW if size < logits.shape[-1]] if logits.device.type == "cpu" else []
    return [*few, logits.shape[-1]]


def pick(probabilities: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Inverse-CDF sampling: probabilities (..., V) and uniform draws (...) in [0, 1) to ids (...).

    One number per id decides, so a row's draw is the same in any batch and on any device.
    """
    cumulative = probabilities.double().cumsum(-1)
    point = uniform.double() * cumulative[..., -1]
    ids = (cumulative <= point[..., None]).sum(-1)
    return ids.clamp(max=probabilities.shape[-1] - 1)
