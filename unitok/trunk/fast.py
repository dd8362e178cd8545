"""Norm and rotary turn with backward passes written out, for training on a CPU.

There autograd takes the derivative of a norm apart into a dozen passes over memory, and that of a turn into another
dozen; these take half as long (docs/speed.md). A GPU has a kernel of its own for the norm.
"""

from __future__ import annotations

from typing import Any

import torch


class Norm(torch.autograd.Function):
    """RMS norm over the last axis (arXiv:1910.07467), in float32 at least: x (..., n), weight (n,), the type of
    what comes out, and what is added to the mean square."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype, eps: float) -> torch.Tensor:
        wide = _wide(x)
        mean = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale = mean.add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).mul_(weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        gradient, normed = _wide(gradient), _wide(x) * scale
        product = gradient * normed
        of_weight = product.sum_to_size(weight.shape)
        along = product.mul_(weight).mean(-1, keepdim=True)  # the part of the gradient that the scale takes away
        of_x = (gradient * weight).addcmul_(normed, along, value=-1).mul_(scale)
        return of_x.to(x.dtype), of_weight.to(weight.dtype), None, None


class Turn(torch.autograd.Function):
    """Rotary turn of x (B, H, T, D) by cosine and sine (B, 1, T, D/2); pair i is (x[i], x[i + D/2])."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cosine, sine)
        return _turned(x, cosine, sine)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _turned(gradient, cosine, -sine), None, None


def _turned(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    cosine, sine = torch.cat([cosine, cosine], -1), torch.cat([-sine, sine], -1)
    return x.roll(x.shape[-1] // 2, -1).mul_(sine).addcmul_(x, cosine)


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
