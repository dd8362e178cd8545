"""Bytes of each GPU, what it sends, and how long a step takes: by arithmetic, from what a pass holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from unitok.model import UniTok
from unitok.tuning.quantized import held_in_few_bits

from .passes import Pass


@dataclass(frozen=True)
class Counts:
    """Parameters."""

    blocks: int
    """Of the trunk, that learn."""
    matrices: int
    """Of them those that Muon would move."""
    depth: int
    outside: int
    """That learn: table of ids, head, last norm, ports."""
    still: int
    """Of the blocks, that stay as they are."""
    still_outside: int
    """The image tokenizer among them."""
    packed: int = 0
    """Of the blocks, that stay as they are and are held in few bits."""
    packed_bytes: int = 0
    """Of these: each GPU has all of them."""

    @property
    def learned(self) -> int:
        return self.blocks + self.outside

    @property
    def all(self) -> int:
        return self.learned + self.still + self.still_outside + self.packed


def count(model: UniTok) -> Counts:
    inside = set(model.trunk.blocks.parameters())
    blocks = sum(one.numel() for one in inside if one.requires_grad)
    matrices = sum(one.numel() for one in inside if one.requires_grad and one.ndim == 2)
    outside = [one for one in model.parameters() if one not in inside]
    learned = sum(one.numel() for one in outside if one.requires_grad)
    return Counts(
        blocks,
        matrices,
        len(model.trunk.blocks),
        learned,
        sum(one.numel() for one in inside) - blocks,
        sum(one.numel() for one in outside) - learned,
        *held_in_few_bits(model),
    )


@dataclass(frozen=True)
class Way:
    """How the GPUs have the model: groups that share a copy, and copies."""

    name: str
    shared: int
    copies: int


def ways(gpus: int, per_machine: int) -> list[Way]:
    """One GPU has the model whole; several in copies, in shards, or with a copy in the shards of each machine."""
    if gpus == 1:
        return [Way("one", 1, 1)]
    found = [Way("ddp", 1, gpus), Way("fsdp", gpus, 1)]
    if gpus > per_machine > 1 and gpus % per_machine == 0:
        found.append(Way(f"fsdp in {per_machine}", per_machine, gpus // per_machine))
    return found


@dataclass(frozen=True)
class Training:
    """How it is computed."""

    item: int
    """Bytes of a number that is computed with."""
    muon: bool = False
    ema: bool = True


def training(counts: Counts, held: Pass, way: Way, how: Training) -> dict[str, float]:
    """Bytes in each GPU at the fullest moment, by what they are for."""
    learned = counts.learned / way.shared
    whole = way.shared == 1
    needs = {
        "weights": 4.0 * (learned + counts.still / way.shared + counts.still_outside) + counts.packed_bytes,
        "gradients": 4.0 * learned,
        "moments": (8.0 * counts.learned - (4.0 * counts.matrices if how.muon else 0.0)) / way.shared,
        "average": 4.0 * learned if how.ema else 0.0,
    }
    if whole and held.copies:
        needs["copies of weights"] = held.copies
    if not whole:  # what is outside, whole with its gradient; two blocks, and the gradient of one
        block = (counts.blocks + counts.still) / counts.depth
        needs["gathered"] = 8.0 * counts.outside + (2 * block + counts.blocks / counts.depth) * how.item
    return needs | {"activations": held.kept - held.copies, "passing": held.passing}


def copied(counts: Counts, way: Way, needs: Mapping[str, float]) -> float:
    """Bytes of the host's memory that the first process takes for what is written while the training goes on: a copy of
    what changes, of which `training` needs so much, and of a model in shards the whole one besides."""
    changes = 4.0 * counts.learned / way.shared + needs["moments"] + needs["average"]
    return changes if way.shared == 1 else changes + 4.0 * (counts.learned + counts.still)


@dataclass(frozen=True)
class Links:
    """GB a second that a GPU sends, and how many GPUs a machine has."""

    within: float
    between: float
    per_machine: int

    def seconds(self, sent: float, group: int, apart: bool = False) -> float:
        """Of bytes that each of a group sends. `apart`: they stand in different machines."""
        return sent / 1e9 / (self.between if apart or group > self.per_machine else self.within)


def traffic(counts: Counts, way: Way, item: int, micro_batches: int) -> tuple[float, float]:
    """Bytes that each GPU sends in a step by ring collectives: (to those that share its copy, to the other copies)."""
    ring, copies = (way.shared - 1) / way.shared, 2 * (way.copies - 1) / way.copies  # a sum is two rounds
    if way.shared == 1:  # gradients alone, once a step
        return 0.0, copies * 4 * counts.learned
    gathers = 2.0 * item * (counts.blocks + counts.still) + 4.0 * counts.outside  # of blocks forward and backward
    inside = ring * micro_batches * (gathers + 4.0 * counts.learned)
    return inside, copies * 4 * counts.learned / way.shared  # between copies once a step


def sending(counts: Counts, way: Way, item: int, micro_batches: int, links: Links) -> tuple[float, float]:
    """(bytes that each GPU sends in a step, seconds)."""
    inside, between = traffic(counts, way, item, micro_batches)
    apart = way.shared > 1
    seconds = links.seconds(inside, way.shared) + links.seconds(between, way.copies, apart)
    return inside + between, seconds


def total(needs: Mapping[str, float]) -> float:
    return sum(needs.values())
