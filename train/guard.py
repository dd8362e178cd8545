"""The watch over loss and gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tokenizers_vq.errors import UserError
from unitok.processes.world import World

FILES_NAMED = 16
"""File names that an error about a step lists."""


class Guard:
    """Stops a run whose loss or gradient is not finite, before the weights are touched.

    On a GPU (`late`) the fused optimizer is told on the device to leave the weights alone, and the number is read one
    step later: the CPU never waits for the GPU.

    Of several processes all know at once: a loss that is not finite makes the gradient so, which is everyone's. The
    first process with such a loss says so.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], world: World, late: bool) -> None:
        self._optimizers: Sequence[Any] = optimizers
        self._world = world
        # Muon cannot be told on the device: its runs wait for the number.
        self._late = late and all(isinstance(optimizer, torch.optim.AdamW) for optimizer in optimizers)
        self._waiting: tuple[int, torch.Tensor, list[torch.Tensor], list[list[str]]] | None = None
        self._arrived: torch.cuda.Event | None = None

    def check(self, step: int, norm: torch.Tensor, losses: list[torch.Tensor], names: list[list[str]]) -> None:
        """After the backward passes of `step` (from 1), before the optimizer. `norm`: of the gradient of all."""
        broken = ~torch.isfinite(norm)
        if not self._world.meets:
            broken |= ~torch.isfinite(torch.stack(losses)).all()
        self.settle()
        if self._late:
            for optimizer in self._optimizers:
                optimizer.found_inf = broken.float()
            # The flag travels now. Asked for later, it would stand in line behind the next step.
            broken = broken.to("cpu", non_blocking=True)
            if norm.is_cuda:
                self._arrived = torch.cuda.Event()
                self._arrived.record()
        self._waiting = (step, broken, losses, names)
        if not self._late:
            self.settle()

    def settle(self) -> None:
        """Raises UserError when the step last checked was not finite."""
        if self._waiting is None:
            return
        step, broken, losses, names = self._waiting
        self._waiting = None
        if self._arrived is not None:
            self._arrived.synchronize()
        if not bool(broken):
            return
        guilty = [index for index, loss in enumerate(losses) if not torch.isfinite(loss)]
        guilts = self._world.gather(bool(guilty))
        if self._world.rank != (guilts.index(True) if any(guilts) else 0):
            raise SystemExit(2)
        what = f"the loss is {losses[guilty[0]].item()}" if guilty else "the gradient is not finite"
        files = [name for index in guilty or range(len(names)) for name in names[index]]
        more = f" and {len(files) - FILES_NAMED} more" if len(files) > FILES_NAMED else ""
        raise UserError(
            f"step {step}: {what}; the weights are still those of step {step - 1}. Look at these files, or lower"
            f" optim.lr and start again: {', '.join(files[:FILES_NAMED])}{more}"
        )
