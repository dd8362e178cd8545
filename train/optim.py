"""AdamW with decay groups, Muon, the learning-rate schedule as a function of the step, and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from tokenizers_vq.errors import UserError
from tokenizers_vq.weights import each_once

from .config import OptimConfig
from .trainee import Opponent


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
    matrices of the blocks if so configured.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) takes steps with equal singular values. Scaled
    to the root mean square of AdamW's steps (arXiv:2502.16982), both share one learning rate and one decay.

    Raises:
        UserError: Muon for a model without matrices in blocks.
    """
    decayed, kept = decay_groups(model)
    optimizers: list[torch.optim.Optimizer] = []
    if config.muon:
        matrices = {name: weight for name, weight in decayed.items() if ".blocks." in f".{name}" and weight.ndim == 2}
        if not matrices:
            raise UserError("optim.muon is true, but this model has no transformer blocks: leave it out")
        decayed = {name: weight for name, weight in decayed.items() if name not in matrices}
        optimizers.append(
            torch.optim.Muon(
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
    return [*optimizers, torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=1e-8, fused=True)]


def build_opponent_optimizer(opponent: Opponent) -> torch.optim.Optimizer:
    """AdamW with short memory, as in VQGAN, and no decay: an opponent has to follow a moving target."""
    weights = opponent.network.parameters()
    return torch.optim.AdamW(weights, lr=opponent.lr, betas=(0.5, 0.9), weight_decay=0.0, eps=1e-8, fused=True)


def learning_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a model that training changes, by name, each once: weights with gradients, and saved buffers of
    modules that are not frozen as a whole."""
    frozen = [name for name, module in model.named_modules() if _is_frozen(module)]
    trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
    weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    found = {}
    for name, tensor in each_once(model.state_dict(keep_vars=True)):
        inside = any(name.startswith(f"{place}.") for place in frozen)
        if name in trainable or (name not in weights and not inside):
            found[name] = tensor.data
    return found


def _is_frozen(module: nn.Module) -> bool:
    weights = list(module.parameters())
    return bool(weights) and not any(weight.requires_grad for weight in weights)


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
