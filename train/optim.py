"""AdamW with decay groups, Muon, the learning-rate schedule as a function of the step, and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tokenizers_vq.errors import UserError
from tokenizers_vq.parts import trainable_names
from tokenizers_vq.storage.weights import each_once

from .config import OptimConfig
from .parallel.tensors import is_shard, put, whole
from .trainee import Opponent

STACK = 2**24
"""Numbers in one stack of matrices: larger ones keep a GPU busy alone, and a stack costs memory."""


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """The rate of step 0 .. steps-1: linear warm-up, then half a cosine from `lr` to `min_lr`.

    >>> config = OptimConfig(lr=1.0, min_lr=0.1, warmup_steps=4)
    >>> [round(learning_rate(step, 8, config), 3) for step in (0, 3, 4, 7)]
    [0.25, 1.0, 0.775, 0.1]
    """
    warmup = min(config.warmup_steps, steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    share = (step + 1 - warmup) / max(1, steps - warmup)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def decay_groups(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """(weights that decay, weights that do not). Norms, biases, embeddings and codebooks do not."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed: dict[str, nn.Parameter] = {}
    kept: dict[str, nn.Parameter] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            free = weight.ndim < 2 or id(weight) in embeddings or "codebook" in name
            (kept if free else decayed)[name] = weight
    return decayed, kept


def build_optimizers(model: nn.Module, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """AdamW over the trainable weights (the fused kernel updates all of them in one pass), and Muon before it over the
    matrices of the blocks if so configured, or over the kernels of a convolutional network, which has no blocks.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) takes steps with equal singular values. Scaled
    to the root mean square of AdamW's steps (arXiv:2502.16982), both share one learning rate and one decay.

    Raises:
        UserError: Muon for a model that has neither.
    """
    decayed, kept = decay_groups(model)
    optimizers: list[torch.optim.Optimizer] = []
    if config.muon:
        matrices = {name: weight for name, weight in decayed.items() if ".blocks." in f".{name}" and weight.ndim == 2}
        matrices = matrices or {name: weight for name, weight in decayed.items() if _is_inner_kernel(name, weight)}
        if not matrices:
            raise UserError(
                "optim.muon is true, but this model has no transformer blocks and no levels of convolutions to train: "
                "leave it out"
            )
        decayed = {name: weight for name, weight in decayed.items() if name not in matrices}
        # A GPU would wait for every small matrix to be asked for. A CPU gains little, and would round otherwise.
        stacked = all(weight.is_cuda or is_shard(weight) or weight.ndim > 2 for weight in matrices.values())
        kind = StackedMuon if stacked else torch.optim.Muon
        optimizers.append(
            kind(
                list(matrices.values()),
                lr=config.lr,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    groups = [
        {"params": list(decayed.values()), "weight_decay": config.weight_decay},
        {"params": list(kept.values()), "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if groups:  # Muon may have all that is trained
        optimizers.append(torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=1e-8, fused=True))
    return optimizers


def _is_inner_kernel(name: str, weight: torch.Tensor) -> bool:
    """Whether a weight is a kernel of the levels of an encoder or a decoder. What takes pixels or codes, or makes such,
    is left to AdamW, as embeddings and heads are."""
    return weight.ndim == 4 and any(level in name for level in (".down.", ".mid.", ".up."))


def build_opponent_optimizer(opponent: Opponent) -> torch.optim.Optimizer:
    """AdamW with short memory, as in VQGAN, and no decay: an opponent has to follow a moving target."""
    weights = opponent.network.parameters()
    return torch.optim.AdamW(weights, lr=opponent.lr, betas=(0.5, 0.9), weight_decay=0.0, eps=1e-8, fused=True)


class StackedMuon(torch.optim.Optimizer):
    """Takes the steps of `torch.optim.Muon` with Nesterov's momentum and `adjust_lr_fn="match_rms_adamw"`, with the
    same settings and state, but orthogonalises all matrices of one size at once: a transformer has many, and a GPU is
    done with a small one before the next is asked for. A kernel (out, in, h, w) is taken as a matrix (out, in * h * w).

    A matrix in shards is gathered for its iterations: every process makes all of them, and keeps its own part.
    """

    def __init__(self, weights: Sequence[nn.Parameter], **settings: Any) -> None:
        super().__init__(weights, torch.optim.Muon([nn.Parameter(torch.zeros(1, 1))], **settings).defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weights in stacks([weight for weight in group["params"] if weight.grad is not None]):
                self._move(weights, group)

    def _move(self, weights: list[torch.Tensor], group: dict[str, Any]) -> None:
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        means = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, means, group["momentum"])  # Nesterov's
        matrices = torch.stack([_wide(whole(one)) for one in ahead])
        found = orthogonal(matrices, group["ns_coefficients"], group["ns_steps"])
        steps = [torch.empty_like(weight) for weight in weights]
        for weight, step, one in zip(weights, steps, found, strict=True):
            put(step, (one if _is_wide(weight) else one.mT).reshape(weight.shape))
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        rate = group["lr"] * 0.2 * max(matrices.shape[1:]) ** 0.5
        torch._foreach_add_(weights, steps, alpha=-rate)


def orthogonal(matrices: torch.Tensor, coefficients: Sequence[float], iterations: int) -> torch.Tensor:
    """Matrices (N, m, n), m <= n, with their singular values moved to about 0.7 to 1.2, in bfloat16, by Newton-Schulz
    iterations (https://kellerjordan.github.io/posts/muon)."""
    a, b, c = coefficients
    x = matrices.bfloat16()
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(iterations):
        squares = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(squares, squares, squares, beta=b, alpha=c), x, beta=a)
    return x


def stacks(matrices: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Matrices of one size, whichever side is longer, at most STACK numbers at a time."""
    alike: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for matrix in matrices:
        rows = matrix.shape[0]
        alike.setdefault(tuple(sorted((rows, matrix.numel() // rows))), []).append(matrix)
    for members in alike.values():
        count = max(1, STACK // members[0].numel())
        yield from (members[start : start + count] for start in range(0, len(members), count))


def _is_wide(matrix: torch.Tensor) -> bool:
    return matrix.shape[0] ** 2 <= matrix.numel()


def _wide(matrix: torch.Tensor) -> torch.Tensor:
    matrix = matrix.flatten(1)
    return matrix if _is_wide(matrix) else matrix.mT


def learning_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a model that training changes, by name, each once: weights with gradients, and saved buffers of
    modules that are not frozen as a whole."""
    learn = set(trainable_names(model))
    return {name: tensor.data for name, tensor in each_once(model.state_dict(keep_vars=True)) if name in learn}


class AveragedWeights:
    """An exponential moving average of the tensors of a model that learn.

    The decay of step t is min(decay, (1 + t) / (10 + t)), so that short runs are not dominated by their first weights.
    Floating buffers (such as codebooks learned by averaging) move along with the weights; others are copied.
    With decay 0 the averages are the tensors themselves.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._now = learning_tensors(model)
        self.tensors = {name: tensor.clone() if decay else tensor for name, tensor in self._now.items()}
        pairs = [(self.tensors[name], now) for name, now in self._now.items()]
        self._moving = [pair for pair in pairs if pair[1].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[1].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After the weights of `step` (from 0) have moved."""
        if not self.decay:
            return
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([mean for mean, _ in self._moving], [now for _, now in self._moving], 1 - decay)
        for mean, now in self._copied:
            mean.copy_(now)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averages for as long as this is entered."""
        if not self.decay:
            yield
            return
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, now in self._now.items():
            kept = now.clone()
            now.copy_(self.tensors[name])
            self.tensors[name].copy_(kept)
