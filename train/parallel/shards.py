"""The model in shards: each process holds a part of weights, gradients, averages and moments (FSDP2).

A block of the trunk is gathered when the pass comes to it and given back behind it. What is outside of the blocks is
gathered for the whole step. Frozen weights outside of the blocks, such as those of an image tokenizer, stay whole.

Evaluation, drawing and the export run on the whole model, as always: its weights are filled from the shards before,
and emptied after. So they may take as many passes as they like, each process its own. What a save copies of it is
gathered one tensor at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from tokenizers_vq.errors import UserError
from tokenizers_vq.storage.weights import each_once
from unitok.device import autocast
from unitok.processes.world import World

from ..checkpoint import Saved, TrainState, save
from ..config import RunConfig
from ..optim import AveragedWeights, learning_tensors
from ..saving.copies import Copies, Snapshot, shadow
from ..trainee import Trainee
from .files import write_shards
from .tensors import is_shard, size, whole


class Shards:
    """What the engine needs of a model that the processes hold together. `Replicas` answers the same.

    Raises:
        UserError: the trainee's model has no blocks, or `run.shard_within` does not divide the processes.
    """

    name = "fsdp"
    in_step = True

    def __init__(self, trainee: Trainee, run: RunConfig, world: World) -> None:
        if not trainee.blocks:
            raise UserError("run.parallel is fsdp, which shards the blocks of a generator: choose ddp")
        within = run.shard_within or world.size
        if world.size % within:
            raise UserError(f"run.shard_within is {within}: choose a divisor of the number of processes ({world.size})")
        self._world, self._whole, self._exports_all = world, trainee.model, trainee.exports_all
        self.model, blocks = _twin(trainee.model, trainee.blocks)
        self._blocks = blocks
        inside = {weight for block in blocks for weight in block.parameters()}
        left = {weight for weight in self.model.parameters() if not weight.requires_grad and weight not in inside}
        with world.meeting():
            mesh = _mesh(world, within)
        with autocast(world.device, run.precision):
            bf16 = torch.is_autocast_enabled(world.device.type)
        # Autocast would round the weights of a block's products to bf16 after they have travelled; here they travel so.
        # Gradients are summed in float32, and what runs along the blocks keeps its float32.
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False) if bf16 else None
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy or MixedPrecisionPolicy(), ignored_params=left)
        fully_shard(self.model, mesh=mesh, ignored_params=left)
        self._empty()

    def compile(self) -> None:
        for block in self._blocks:
            block.compile()

    def start(self) -> None:
        """Nothing: every process has read its shards."""

    @property
    def forward(self) -> Callable[..., Any]:
        return self.model

    def exchanging(self, last: bool) -> AbstractContextManager[object]:
        """Gradients travel within a group in every micro-batch: put off, they would be held whole, as large as the
        whole model. Between groups they travel once a step."""
        cast("FSDPModule", self.model).set_requires_all_reduce(last)
        return nullcontext()

    def clip(self, weights: list[nn.Parameter], longest: float) -> torch.Tensor:
        return whole(nn.utils.clip_grad_norm_(weights, longest))

    @contextmanager
    def showing(self, average: AveragedWeights) -> Iterator[None]:
        with average.in_place():  # moves what is not in shards, too: the two models have it in common
            self._fill()
            try:
                yield
            finally:
                self._empty()

    def to_copy(self, state: TrainState) -> int:
        found = self._exported().values() if self._world.is_main else ()
        exported = sum(tensor.numel() * tensor.element_size() for tensor in found)
        return exported + sum(size(tensors) for tensors in state.parts().values())

    def copied(self, state: TrainState, copies: Copies) -> Snapshot:
        """Every process copies its shards. The first one copies the whole model with its averages too, which are
        gathered one tensor at a time: no process has more than that one on its device."""
        tensors = {part: copies.take(part, live) for part, live in state.parts().items()}
        shown: dict[str, torch.Tensor] = {}
        with state.average.in_place():
            for name, tensor in self._exported().items():
                gathered = {name: whole(tensor)}  # by all processes
                if self._world.is_main:
                    shown |= copies.take("shown", gathered)
                del gathered  # before the next one comes
        model = shadow(self._whole, shown) if self._world.is_main else None
        return Snapshot(state.step, state.sums, tensors, model)

    def save(
        self, world: World, folder: Path, state: Saved, about: dict[str, Any], keep: int, fill: Callable[[Path], None]
    ) -> None:
        def write(draft: Path | None, parts: dict[str, dict[str, torch.Tensor]]) -> dict[str, str]:
            return write_shards(draft, parts, world)

        if not world.is_main:
            write(None, state.parts())
        world.from_main(lambda: save(folder, state, about, keep, fill, write))

    @torch.no_grad()
    def _exported(self) -> dict[str, Any]:
        """Those tensors that the export needs and that change or are in shards, each once."""
        found, learned = self.model.state_dict(keep_vars=True), learning_tensors(self.model)
        kept = {name for name in found if name in learned or (self._exports_all and is_shard(found[name]))}
        return {name: tensor.data for name, tensor in each_once(found) if name in kept}

    @torch.no_grad()
    def _fill(self) -> None:
        shards = self.model.state_dict()
        for name, weight in self._whole.named_parameters():
            if is_shard(shards[name]):
                weight.data = whole(shards[name])

    def _empty(self) -> None:
        shards = self.model.state_dict()
        for name, weight in self._whole.named_parameters():
            if is_shard(shards[name]):
                weight.data = weight.data.new_empty(0)


def _twin(model: nn.Module, blocks: list[nn.Module]) -> tuple[nn.Module, list[nn.Module]]:
    """A second model of the same weights, buffers and frozen parts, and those modules of it that are its blocks."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    names = {module: name for name, module in model.named_modules()}
    twin = copy.deepcopy(model, memo)
    return twin, [twin.get_submodule(names[block]) for block in blocks]


def _mesh(world: World, within: int) -> DeviceMesh:
    kind = world.device.type
    if within == dist.get_world_size():
        return init_device_mesh(kind, (within,), mesh_dim_names=("shard",))
    return init_device_mesh(kind, (world.size // within, within), mesh_dim_names=("replicate", "shard"))
