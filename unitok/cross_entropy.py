"""Cross-entropy of a linear head without keeping its logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

PIECE = 2**22
"""Logits that are held at a time."""


class LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropies (N,) float32 of states (N, C), scored by weight (V, C), and targets (N,) from 0 to V - 1.

    The logits are made piece by piece, and once more in the backward pass: of N x V numbers none is kept. Both products
    are in `dtype`, the rest in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        ctx.dtypes = states.dtype, weight.dtype
        states, weight = states.to(dtype), weight.to(dtype)
        ctx.rows = max(1, PIECE // len(weight))
        totals, right = [], []
        for some, wanted in zip(states.split(ctx.rows), targets.split(ctx.rows), strict=True):
            logits = F.linear(some, weight).float()
            totals.append(logits.logsumexp(-1))
            right.append(logits.gather(1, wanted[:, None]).squeeze(1))
        total = torch.cat(totals)
        ctx.save_for_backward(states, weight, targets, total)
        return total - torch.cat(right)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        states, weight, targets, total = ctx.saved_tensors
        of_states = torch.empty_like(states)
        of_weight = torch.zeros(weight.shape, device=weight.device)
        for start in range(0, len(states), ctx.rows):
            here = slice(start, start + ctx.rows)
            change = F.linear(states[here], weight).float().sub_(total[here, None]).exp_()  # probabilities
            change.scatter_add_(1, targets[here, None], change.new_full((len(change), 1), -1.0))
            change = change.mul_(gradient[here, None]).to(weight.dtype)
            torch.mm(change, weight, out=of_states[here])
            of_weight += change.T @ states[here]
        return of_states.to(ctx.dtypes[0]), of_weight.to(ctx.dtypes[1]), None, None
