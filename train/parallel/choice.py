"""Whether a model is whole in every process, or in shards."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import torch

from unitok.processes.world import World
from unitok.tuning.quantized import held_in_few_bits

from ..config import OptimConfig, RunConfig
from ..trainee import Trainee
from .replicas import Replicas

if TYPE_CHECKING:
    from .shards import Shards

Parallel: TypeAlias = "Replicas | Shards"
"""How the processes of a run hold its model."""

ROOM = 0.5
"""Share of a device's memory that weights, gradients and optimizer may take; activations need the rest."""


def spread(trainee: Trainee, optim: OptimConfig, run: RunConfig, world: World) -> tuple[Parallel, str]:
    """The model as the processes hold it, and why where `run.parallel` is auto and chooses shards. One process holds it
    whole, whatever is asked for.

    Raises:
        UserError: shards are asked for, and the model cannot be in any.
    """
    why = ""
    if run.parallel == "auto" and world.size > 1 and trainee.blocks:
        needed, has = kept(trainee.model, optim), device_memory(world.device)
        if needed > ROOM * has:
            why = (
                f"weights, gradients and optimizer of a whole model need {needed / 1e9:.1f} GB, more than half of the "
                f"{has / 1e9:.1f} of a process"
            )
    if world.size > 1 and (run.parallel == "fsdp" or why):
        from .shards import Shards  # here, for it takes most of a second to import

        return world.together(partial(Shards, trainee, run, world)), why
    return Replicas(trainee, world), ""


def kept(model: torch.nn.Module, optim: OptimConfig) -> int:
    """Bytes that a whole model keeps through a training: itself, and of what learns the gradient, AdamW's two moments
    and the average, all in float32."""
    held = sum(weight.numel() * weight.element_size() for weight in model.parameters()) + held_in_few_bits(model)[1]
    learned = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return held + learned * (12 + (4 if optim.ema else 0))


def device_memory(device: torch.device) -> int:
    """Bytes of this process's GPU; on a CPU, of its share of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return whole // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
