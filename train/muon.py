"""Muon over stacks: matrices of one size take their steps together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the Newton-Schulz iteration."""
ITERATIONS = 5
STACK = 2**21
"""Numbers in one stack. Larger matrices keep the hardware busy one by one, and stacks cost memory."""


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): the step is the momentum of the gradient
    with all singular values moved near 1, scaled to the root mean square of AdamW's steps (arXiv:2502.16982).

    It computes what `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"` computes, which goes matrix by matrix: a
    small transformer has many small ones.
    """

    def __init__(
        self, weights: Iterable[torch.Tensor], lr: float, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        """`weights` are matrices."""
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weights in stacks([weight for weight in group["params"] if weight.grad is not None]):
                self._move(weights, group["lr"], group["weight_decay"], group["momentum"])

    def _move(self, weights: list[torch.Tensor], lr: float, weight_decay: float, momentum: float) -> None:
        gradients = [weight.grad for weight in weights]
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        means = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_lerp_(means, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, means, momentum)  # Nesterov's
        wide = [_wide(one) for one in ahead]
        # One alone stays a matrix: a CPU multiplies it faster than a stack of one.
        steps = orthogonal(torch.stack(wide)) if len(wide) > 1 else [orthogonal(wide[0])]
        torch._foreach_mul_(weights, 1 - lr * weight_decay)
        for weight, one in zip(weights, steps, strict=True):
            _wide(weight).add_(one, alpha=-lr * 0.2 * max(weight.shape) ** 0.5)


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Matrices (m, n) or (N, m, n), m <= n, with their singular values moved to about 0.7 to 1.2, in bfloat16: five
    Newton-Schulz iterations."""
    a, b, c = QUINTIC
    added = torch.addmm if matrices.ndim == 2 else torch.baddbmm
    x = matrices.bfloat16()
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        squares = x @ x.mT
        x = added(x, added(squares, squares, squares, beta=b, alpha=c), x, beta=a)
    return x


def stacks(matrices: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Matrices of one size, whichever side is longer, at most STACK numbers at a time."""
    alike: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for matrix in matrices:
        alike.setdefault(_wide(matrix).shape, []).append(matrix)
    for members in alike.values():
        count = max(1, STACK // members[0].numel())
        yield from (members[start : start + count] for start in range(0, len(members), count))


def _wide(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
