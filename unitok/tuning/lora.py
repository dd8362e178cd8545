"""Low-rank adapters beside linear maps (LoRA, arXiv:2106.09685).

A module and a hook of our own. The names of a model's weights stay as they are, so checkpoints and folders do too. peft
puts other layers in their place, under other names, and its import takes longer than torch's.

Letters: R rank, I inputs, O outputs.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.hooks import RemovableHandle

from tokenizers_vq.errors import UserError
from tokenizers_vq.parts import matching_names

ADAPTER = "lora"
"""Name of the adapter inside its linear map."""


class LowRank(nn.Module):
    """What is added to a linear map: nothing before training, for `up` begins at 0."""

    hook: RemovableHandle
    """Adds its output to that of the map."""

    def __init__(self, layer: nn.Module, rank: int, alpha: float) -> None:
        super().__init__()
        weight = layer.get_parameter("weight")
        outputs, inputs = reversed(weight.shape) if _lies(layer) else weight.shape
        like: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        self.down = nn.Parameter(torch.empty(rank, inputs, **like))
        """(R, I)."""
        self.up = nn.Parameter(torch.zeros(outputs, rank, **like))
        """(O, R)."""
        self.scale = alpha / rank
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))  # as in the authors' code

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(F.linear(x, self.down), self.up) * self.scale


def add_lora(trunk: nn.Module, names: Sequence[str], rank: int, alpha: float) -> None:
    """Puts a fresh adapter beside each of these linear maps of a trunk. Its tensors are `NAME.lora.down` and `.up`.

    Raises:
        UserError: a map that is thinner than the adapter would be.
    """
    for layer in _checked(trunk, names, rank):
        low = LowRank(layer, rank, alpha)
        layer.add_module(ADAPTER, low)
        low.hook = layer.register_forward_hook(_add, prepend=True)  # of a map's own output, not of its expert's


@torch.no_grad()
def merge_lora(trunk: nn.Module) -> None:
    """Adds the adapters of a trunk to its weights, and takes them away."""
    for layer in trunk.modules():
        low = getattr(layer, ADAPTER, None)
        if isinstance(low, LowRank):
            added = low.scale * (low.up @ low.down)
            layer.get_parameter("weight").add_(added.T if _lies(layer) else added)
            low.hook.remove()
            delattr(layer, ADAPTER)


def linear_maps(trunk: nn.Module) -> list[str]:
    """The names of the linear maps that can have an adapter."""
    return [name for name, module in trunk.named_modules() if isinstance(module, nn.Linear) or _lies(module)]


def _lies(module: nn.Module) -> bool:
    """Whether this is a linear map of transformers that holds its weights as (I, O), as those of GPT-2 do."""
    library = sys.modules.get("transformers.pytorch_utils")  # whoever has such a map has imported it
    return library is not None and isinstance(module, library.Conv1D)


def lora_targets(trunk: nn.Module, patterns: Sequence[str], rank: int) -> list[str]:
    """The linear maps of a trunk that match patterns over the names `trunk.NAME`.

    Raises:
        UserError: a pattern that matches none, or a map that is thinner than the adapter would be.
    """
    maps = [f"trunk.{name}" for name in linear_maps(trunk)]
    found = matching_names(maps, patterns, "--lora.targets", "no linear map of the trunk")
    targets = [name.removeprefix("trunk.") for name in maps if name in found]
    _checked(trunk, targets, rank)
    return targets


def _checked(trunk: nn.Module, names: Sequence[str], rank: int) -> list[nn.Module]:
    """The linear maps of these names, if none is thinner than an adapter of this rank would be."""
    layers = []
    for name in names:
        layer = trunk.get_submodule(name)
        side = min(layer.get_parameter("weight").shape)
        if rank > side:
            raise UserError(f"lora.rank is {rank}, but trunk.{name} has only {side} on one side: choose at most {side}")
        layers.append(layer)
    return layers


def _add(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    low: LowRank = layer.get_submodule(ADAPTER)  # type: ignore[assignment]
    return output + low(inputs[0])
