"""What a pass of a model holds and computes, without memory: its weights and activations have shapes and no content.

What is alive is added up from one operation to the next. On a CPU, a pass forward and back is followed to its fullest
moment. For a GPU, torch can be followed forward alone; attention keeps what a fused kernel keeps.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from unitok.model import UniTok
from unitok.sequence import PackedBatch


@dataclass(frozen=True)
class Pass:
    """Bytes of a micro-batch, beside weights and gradients."""

    kept: float
    """What the backward pass waits for."""
    passing: float
    """What comes and goes on top of that, at the fullest moment."""
    copies: float
    """Of what is kept, the weights in what is computed with: they do not grow with the batch."""


def measure(model: UniTok, batch: PackedBatch, twice: PackedBatch, bf16: bool, gpu: bool, checkpointing: bool) -> Pass:
    """What a pass holds. `twice`: the same batch, with as many rows again.

    On a GPU the backward pass is taken to add the gradients of the largest tensor, the scores of all codes, before and
    behind the softmax. Where activations are computed again, a block keeps what goes out of it, and those of one block
    come and go.
    """
    device = "cuda" if gpu else "cpu"
    once, more = _follow(model, batch, bf16, device, back=not gpu), _follow(model, twice, bf16, device)
    copies = max(0.0, 2 * once.kept - more.kept)
    passing = max(once.most - once.kept, 2.0 * once.largest if gpu else 0.0)
    if not checkpointing:
        return Pass(once.kept, passing, copies)
    inside = once.blocks - max(0.0, 2 * once.blocks - more.blocks)
    return Pass(once.kept - inside + once.states, max(passing, inside / len(model.trunk.blocks)), copies)


def products(model: UniTok, batch: PackedBatch, checkpointing: bool) -> float:
    """Floating-point operations of the matrix products of a pass forward and back."""
    with FlopCounterMode(display=False) as counter, _around_blocks(model, counter.get_total_flops) as found:
        _follow(model, batch, False, "cpu", back=True)
    return float(counter.get_total_flops() + (found[0] if checkpointing else 0))


class Held(TorchDispatchMode):
    """Follows the bytes of the tensors that operations make, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = self.largest = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """These were there before."""
        for tensor in tensors:
            self.leave_out_one(tensor)
            if tensor.grad is not None:
                self.leave_out_one(tensor.grad)

    def leave_out_one(self, tensor: Tensor) -> Tensor:
        self._known.add(tensor.untyped_storage())
        return tensor

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._note, found)
        return found

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.most, self.largest = max(self.most, self.now), max(self.largest, size)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.now -= size


class FusedAttention(TorchFunctionMode):
    """Attention that keeps what goes in and what comes out, a number for each query, and a mask as a bias."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is not F.scaled_dot_product_attention:
            return function(*args, **kwargs)
        mask = kwargs.get("attn_mask")
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else args[0].dtype
        return _Fused.apply(*(one.to(dtype) for one in args[:3]), None if mask is None else mask.to(dtype))


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        out, sums = q.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(q.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, bias, out, sums)
        return out


@dataclass(frozen=True)
class _Followed:
    """Bytes of a pass forward, and back where it is followed so far."""

    kept: float
    most: float
    largest: float
    blocks: float
    """Of what is kept, what the blocks of the trunk made."""
    states: float
    """What goes out of the blocks."""


def _follow(model: UniTok, batch: PackedBatch, bf16: bool, device: str, back: bool = False) -> _Followed:
    held, fake = Held(), FakeTensorMode()
    with fake:
        embody(model, device)
        given = batch.map(lambda tensor: fake.from_tensor(tensor).to(device))
        for weight in model.parameters():
            weight.grad = torch.empty_like(weight) if back and weight.requires_grad else None
        held.leave_out([*model.parameters(), *model.buffers()])
        given.map(held.leave_out_one)
        fused = FusedAttention() if device == "cuda" else nullcontext()
        with held, fused, in_precision(device, bf16), _around_blocks(model, lambda: held.now) as found:
            losses = model(given)
            kept = held.now
            if back:
                losses.sum().backward()
        model.zero_grad()
    return _Followed(kept, held.most, held.largest, *found)


@contextmanager
def _around_blocks(model: UniTok, read: Callable[[], float]) -> Iterator[list[float]]:
    """Two sums over the blocks of the trunk: by how much what is read grows in each, and bytes that go out of it."""
    found, before = [0.0, 0.0], [0.0]

    def enter(module: nn.Module, inputs: Any) -> None:
        before[0] = read()

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        found[0] += read() - before[0]
        found[1] += output.numel() * output.element_size()

    hooks = [hook for one in model.trunk.blocks for hook in _hooks(one, enter, leave)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _hooks(block: nn.Module, enter: Callable[..., None], leave: Callable[..., None]) -> list[Any]:
    return [block.register_forward_pre_hook(enter), block.register_forward_hook(leave)]


@contextmanager
def in_precision(device: str, bf16: bool) -> Iterator[None]:
    """bf16 autocast. That of torch is off where there is no such device."""
    before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    torch.set_autocast_enabled(device, bf16)
    torch.set_autocast_dtype(device, torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(device, before[0])
        torch.set_autocast_dtype(device, before[1])


def embody(model: nn.Module, device: str) -> None:
    """Gives a model tensors of its shapes without content, in the mode that is entered."""
    made: dict[int, Any] = {}

    def like(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            new = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            made[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
        return made[id(tensor)]

    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = like(tensor)  # type: ignore[assignment]
