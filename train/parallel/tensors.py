"""Tensors that may be spread over the processes (DTensor), without its module, which takes 0.6 s to import: only a
model in shards needs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def is_shard(tensor: Any) -> bool:
    return hasattr(tensor, "full_tensor")


def whole(tensor: Any) -> Tensor:
    """A tensor, gathered from all processes where it is spread over them."""
    return tensor.full_tensor() if is_shard(tensor) else tensor


def own(tensor: Any) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if is_shard(tensor) else tensor


def local(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """What this process holds of tensors."""
    return {name: own(one) for name, one in tensors.items()}


def size(tensors: Mapping[str, Any]) -> int:
    """Bytes that this process holds of tensors."""
    return sum(one.numel() * one.element_size() for one in local(tensors).values())


@torch.no_grad()
def put(target: Any, value: Tensor) -> None:
    """Copies a whole tensor into another one, or its part into a shard."""
    if is_shard(target) and not is_shard(value):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(value)
