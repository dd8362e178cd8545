"""The base of adapters in few bits (QLoRA, arXiv:2305.14314): linear maps of the blocks that do not learn are held in 4
or 8 bits, and become floating-point numbers for the length of a product, forward and back.

Modules of our own, as adapters are: names of what learns stay, so checkpoints and folders do too. What is held is no
part of a model's state, for it follows from the base: `rounded` gives the same numbers.

Letters: I inputs, O outputs.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_vq.errors import UserError

from ..device import compute_dtype

BLOCK, BLOCK_OF_SCALES = 64, 256
"""Numbers that share a scale in 4 bits, and scales that share one, as in QLoRA."""


@dataclass(frozen=True)
class Format:
    """A kind of numbers."""

    pack: Callable[[Tensor], list[Tensor]]
    """Weights (O, I) float32 to what is held of them."""
    unpack: Callable[[Sequence[Tensor], Sequence[int], torch.dtype], Tensor]
    """What is held, the shape (O, I) and a dtype to weights."""


def _pack_nf4(weight: Tensor) -> list[Tensor]:
    library = bitsandbytes()
    packed, state = library.quantize_4bit(weight.contiguous(), blocksize=BLOCK, quant_type="nf4")
    offset = state.absmax.mean()
    steps = _steps_of_scales().to(weight.device)
    scales, further = library.quantize_blockwise(state.absmax - offset, code=steps, blocksize=BLOCK_OF_SCALES)
    return [packed, scales, offset, further.absmax, steps]


def _unpack_nf4(held: Sequence[Tensor], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    library = bitsandbytes()
    packed, scales, offset, further, steps = held
    of_scales = library.QuantState(further, code=steps, blocksize=BLOCK_OF_SCALES, dtype=torch.float32)
    state = library.QuantState(scales, torch.Size(shape), None, BLOCK, "nf4", dtype, offset=offset, state2=of_scales)
    weight: Tensor = library.dequantize_4bit(packed, state)
    return weight.reshape(shape)  # that of a single byte comes on its side


def _pack_int8(weight: Tensor) -> list[Tensor]:
    scales = weight.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    return [(weight / scales).round().to(torch.int8), scales]


def _unpack_int8(held: Sequence[Tensor], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    numbers, scales = held
    return (numbers * scales).to(dtype)


FORMATS = {"nf4": Format(_pack_nf4, _unpack_nf4), "int8": Format(_pack_int8, _unpack_int8)}
"""By name: 4 bits as normally distributed numbers need them, a scale for 64 of them, held in 8 bits itself; 8 bits, a
scale for each output, as LLM.int8() holds weights (arXiv:2208.07339). Inputs stay as they are."""


@cache
def bitsandbytes() -> Any:
    """The functions of the package bitsandbytes.

    Raises:
        UserError: it is not installed.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # it tells of the kernel
    with _without("kernels"):  # by which it would fetch a kernel for a CPU from a hub, which is not needed here
        try:
            from bitsandbytes import functional
        except ImportError:
            raise UserError(
                "nf4 is computed by the package bitsandbytes: pip install unitok-vq[bitsandbytes], or choose int8"
            ) from None
    return functional


@contextmanager
def _without(package: str) -> Iterator[None]:
    """As if a package were not installed."""
    given = {name: module for name, module in sys.modules.items() if name == package}
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
        sys.modules.update(given)


@cache
def _steps_of_scales() -> Tensor:
    """(256,): what the 8 bits of a scale stand for."""
    with torch.device("cpu"):  # whatever is built now: they are kept
        steps: Tensor = bitsandbytes().create_dynamic_map()
    return steps


class Quantized(nn.Module):
    """A linear map that does not learn, in few bits. What stands beside its weights stays: a bias, an adapter."""

    def __init__(self, layer: nn.Linear, kind: str) -> None:
        super().__init__()
        self.kind, self.shape = kind, layer.weight.shape
        for number, tensor in enumerate(FORMATS[kind].pack(layer.weight.detach())):
            self.register_buffer(f"held{number}", tensor, persistent=False)
        self.held = list(self._buffers)
        """Names of its tensors."""
        self.bias = layer.bias
        self._modules.update(layer._modules)
        for hooks in ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"):
            setattr(self, hooks, getattr(layer, hooks))  # themselves, for an adapter's handle looks for them

    def forward(self, x: Tensor) -> Tensor:
        dtype = compute_dtype(x)
        held = [self.get_buffer(name) for name in self.held]
        y: Tensor = _Product.apply(x, FORMATS[self.kind].unpack, self.shape, dtype, *held)
        return y if self.bias is None else y + self.bias.to(dtype)


class _Product(torch.autograd.Function):
    """`F.linear` that keeps neither the inputs nor floating-point weights for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        unpack: Callable[[Sequence[Tensor], Sequence[int], torch.dtype], Tensor],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        *held: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(*held)
        ctx.unpack, ctx.shape, ctx.dtype, ctx.given = unpack, shape, dtype, x.dtype
        return F.linear(x.to(dtype), unpack(held, shape, dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        held = ctx.saved_tensors  # asked for once: where activations are made again, they are given once
        found = gradient.to(ctx.dtype) @ ctx.unpack(held, ctx.shape, ctx.dtype)
        return found.to(ctx.given), None, None, None, *(None for _ in held)


def frozen_maps(trunk: nn.Module, learned: Collection[str]) -> list[str]:
    """The names of the linear maps of the blocks that do not learn; `learned`: names of weights of the trunk that do.
    One with an odd number of inputs stays as it is: two numbers of 4 bits share a byte."""
    return [
        name
        for name, module in trunk.named_modules()
        if name.startswith("blocks.")
        and isinstance(module, nn.Linear)
        and module.in_features % 2 == 0
        and f"{name}.weight" not in learned
    ]


def quantize(trunk: nn.Module, kind: str) -> None:
    """Holds the linear maps of the blocks of a trunk that do not learn in few bits.

    Raises:
        UserError: there is none, or the package that computes with such numbers is not installed.
    """
    names = frozen_maps(trunk, {name for name, weight in trunk.named_parameters() if weight.requires_grad})
    if not names:
        raise UserError(f"lora.quantize is {kind}, but no linear map of the trunk's blocks is frozen: leave it out")
    for name in reversed(names):  # those inside of others first
        place, _, own = name.rpartition(".")
        layer = trunk.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        trunk.get_submodule(place).register_module(own, Quantized(layer, kind))


@torch.no_grad()
def rounded(trunk: nn.Module, kind: str, learned: Collection[str]) -> None:
    """Gives the maps that `quantize` would take the numbers that it would hold, as floating-point numbers."""
    how = FORMATS[kind]
    for name in frozen_maps(trunk, learned):
        weight = trunk.get_parameter(f"{name}.weight")
        weight.copy_(how.unpack(how.pack(weight), weight.shape, weight.dtype))


def held_in_few_bits(model: nn.Module) -> tuple[int, int]:
    """(numbers, bytes) of the weights of a model that are held in few bits."""
    layers = [module for module in model.modules() if isinstance(module, Quantized)]
    tensors = [layer.get_buffer(name) for layer in layers for name in layer.held]
    numbers = sum(layer.shape.numel() for layer in layers)
    return numbers, sum(tensor.numel() * tensor.element_size() for tensor in tensors)
