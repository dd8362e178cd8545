"""A step's state in the host's memory: it is written while the next steps change the state itself."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenizers_vq.storage.weights import each_once, place_of

from ..parallel.tensors import own


@dataclass(frozen=True)
class Snapshot:
    """What a save writes."""

    step: int
    """Steps done."""
    sums: dict[str, Tensor]
    """Of the log interval; nothing changes these tensors."""
    tensors: dict[str, dict[str, Tensor]]
    """Copies of what `TrainState.parts` names; none in a process that writes no tensors."""
    model: nn.Module | None
    """With the averages, to be exported; in the first process."""

    def parts(self) -> dict[str, dict[str, Tensor]]:
        return self.tensors


class Copies:
    """Memory of the host for copies of tensors. It is kept, and filled again at the next save."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], Tensor] = {}

    @torch.no_grad()
    def take(self, part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of tensors, whole or in shards. They stand until the same part is taken again."""
        taken = {}
        for name, tensor in tensors.items():
            kept = self._kept.get((part, name))
            if kept is None:
                kept = self._kept[part, name] = tensor.detach().to("cpu", copy=True)
            else:
                own(kept).copy_(own(tensor))
            taken[name] = kept
        return taken


def shadow(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A second model of the same parts, which has other tensors in the place of those of these names, also where those
    are emptied. It is made to be written, not to be run."""
    named = dict(each_once(model.state_dict(keep_vars=True)))
    others: dict[object, Tensor] = {}
    for name, tensor in tensors.items():
        live = named[name]
        is_weight = isinstance(live, nn.Parameter)
        others[place_of(live)] = nn.Parameter(tensor, requires_grad=live.requires_grad) if is_weight else tensor

    def other(tensor: Tensor | None) -> Tensor | None:
        return tensor if tensor is None else others.get(place_of(tensor), tensor)

    def shadowed(module: nn.Module) -> nn.Module:
        twin = copy.copy(module)
        twin.__dict__["_parameters"] = {name: other(tensor) for name, tensor in module._parameters.items()}
        twin.__dict__["_buffers"] = {name: other(tensor) for name, tensor in module._buffers.items()}
        twin.__dict__["_modules"] = {
            name: None if part is None else shadowed(part) for name, part in module._modules.items()
        }
        return twin

    return shadowed(model)
