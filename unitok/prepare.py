"""A model in the form in which a machine draws fastest, made once when it is loaded.

A step of drawing multiplies few rows by all weights, so it takes as long as reading them does. bf16 weights are half as
long to read, and packed ones lie in the order in which the processor reads them. Only the linear layers and the head
compute with them; norms, attention, sums and the cache stay in float32. (Attention of one query is three to five times
as fast in float32 as in bf16 on a CPU: docs/speed.md.) On a GPU our own trunk hands on what the layers computed in
bf16: attention and the cache are in it too, and only norms and sums are in float32. What remains is asking for many
small operations, so they are written in fewer of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from .device import Precision, autocast, bf16_supported
from .model import UniTok
from .trunk.base import Trunk
from .trunk.compiled import Compiled, packs
from .trunk.native import Attention, RMSNorm, Rotary

Chosen = Literal["bf16", "fp32"]
Multiply = Callable[[torch.Tensor], torch.Tensor]
"""Multiplies vectors by the weights that it holds."""

LARGE = 2**18
"""Weights of a layer from which another form of them pays. Below, a step is not spent on reading weights."""


def prepare(model: UniTok, precision: Precision, compiled: bool = False) -> Chosen:
    """Prepares a model for drawing and writing, once; returns the precision of its weights. `auto` is bf16 where the
    hardware has it and the layers are large enough to gain. With `compiled`, passes that come often are compiled.

    The weights stay as they are beside their new form, so fingerprint and saved files are those of the model. It is not
    trained any more. In fp32, what it computes differs from the unprepared model in the last bits, and only if its
    layers are large or passes are compiled.

    Raises:
        UserError: nothing compiles for the device of the model.
    """
    if compiled:
        model.trunk.compiled = Compiled(model.device)
    layers = [layer for layer in model.trunk.modules() if isinstance(layer, nn.Linear)]
    large = max(layer.weight.numel() for layer in layers) >= LARGE
    if precision == "auto":
        precision = "bf16" if large and bf16_supported(model.device) else "fp32"
    if precision == "fp32" and not large:
        return precision
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    prepare_trunk(model.trunk, dtype, model.device.type == "cpu")
    model.ids.pack = lambda weight: multiplier(weight, dtype)
    return precision


def prepare_trunk(trunk: Trunk, dtype: torch.dtype, on_cpu: bool) -> None:
    """As `prepare`, for a CPU or for a GPU."""
    between = torch.float32 if on_cpu or not trunk.mixes else dtype
    if between != torch.float32:
        trunk.held = between
    _prepare(trunk, lambda weight: multiplier(weight, dtype, between), on_cpu, dtype)


def computing(model: UniTok, precision: Precision) -> AbstractContextManager[object]:
    """Autocast of a model that is not prepared, as the one that is in training; a prepared one computes as it is."""
    return autocast(model.device, precision) if model.ids.pack is None else nullcontext()


def noted(model: UniTok) -> dict[str, bool]:
    """What records say of a prepared model beside its precision: compiled passes round in another way."""
    return {} if model.trunk.compiled is None else {"compiled": True}


def _prepare(module: nn.Module, pack: Callable[[torch.Tensor], Multiply], on_cpu: bool, dtype: torch.dtype) -> None:
    if isinstance(module, Attention):
        module.norm = (normed if on_cpu else fused)(module.norm_weights(), module.query_norm.eps)
    if isinstance(module, Rotary):
        module.wide = True
    for name, child in list(module.named_children()):
        _prepare(child, pack, on_cpu, dtype)
        if isinstance(child, nn.Linear):
            setattr(module, name, Prepared(child, pack(child.weight.detach()), dtype))
        elif on_cpu and isinstance(child, RMSNorm):  # a GPU has one operation for it
            setattr(module, name, PreparedNorm(child))
        elif isinstance(child, nn.Dropout):
            setattr(module, name, nn.Identity())


class Prepared(nn.Module):
    """A linear layer that multiplies by another form of its weights. What stands beside these stays."""

    def __init__(self, layer: nn.Linear, multiply: Multiply, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.multiply, self.dtype = multiply, dtype
        self._modules.update(layer._modules)
        self._forward_hooks.update(layer._forward_hooks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if packs(x):
            y = F.linear(x.to(self.dtype), self.weight.to(self.dtype)).float()
        else:
            y = self.multiply(x)
        return y if self.bias is None else y + self.bias


class PreparedNorm(nn.Module):
    """A norm in the operations of `normed`."""

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.eps
        self.multiply = normed(norm.weight.detach(), norm.eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps) if packs(x) else self.multiply(x)


def normed(weight: torch.Tensor, eps: float) -> Multiply:
    """RMSNorm of vectors (..., C) by weights (..., C), in four operations where torch on a CPU takes eight: the root of
    the sum of the squares and of what `eps` adds is a length, and so is the root of the squares alone."""
    size = weight.shape[-1]
    scaled, least = weight * math.sqrt(size), torch.tensor(math.sqrt(size * eps))

    def norm(x: torch.Tensor) -> torch.Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(least)
        return x.div(length).mul_(scaled)

    return norm


def fused(weight: torch.Tensor, eps: float) -> Multiply:
    """The same in two operations, where torch has one for the norm."""
    return lambda x: F.rms_norm(x, x.shape[-1:], eps=eps) * weight


def multiplier(weight: torch.Tensor, dtype: torch.dtype, result: torch.dtype = torch.float32) -> Multiply:
    """`F.linear` by weights (O, I), with the weights and the vectors (..., I) in a dtype and the result in another."""
    form = weight.to(dtype)
    packed = None
    if weight.device.type == "cpu" and (dtype == torch.bfloat16 or weight.numel() >= LARGE):
        packed = _packed(form)
    multiply = packed or (lambda x: F.linear(x, form))
    return lambda x: multiply(x.to(dtype)).to(result)


def _packed(weight: torch.Tensor) -> Multiply | None:
    """`F.linear` by weights in the order in which oneDNN reads them, or None where torch lacks it: its names are
    private, torch.compile uses them."""
    try:
        held = torch.ops.mkldnn._reorder_linear_weight.default(weight, None)
        multiply = torch.ops.mkldnn._linear_pointwise.default
        multiply(weight[:1], held, None, "none", [], "")
    except (AttributeError, RuntimeError):
        return None
    return lambda x: multiply(x, held, None, "none", [], "")
