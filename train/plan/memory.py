"""Bytes of a training and of drawing, by arithmetic: the model is built of tensors without memory.

Activations are counted, not guessed: one row and two pass through one block and two of the real sizes, as tensors that
have shapes and no content, and what autograd keeps for the backward pass is added up. It grows evenly with rows and
blocks. The kernels are those of a CPU; the fused norms of a GPU keep a sixth less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from unitok.config import TrunkConfig
from unitok.cross_entropy import PIECE
from unitok.ports import IdPort
from unitok.trunk.native import Transformer
from unitok.trunk.rule import Visibility

Parallel = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class Sizes:
    """What is trained, and in what portions."""

    trunk: TrunkConfig
    vocabulary: int
    codebook: int
    codes: int
    """Of a picture."""
    text: int
    """Tokens of a caption."""
    rows: int
    """Of a micro-batch."""
    bf16: bool
    checkpointing: bool = False
    muon: bool = False
    gpu: bool = True

    @property
    def positions(self) -> int:
        """Of a row: begin, caption, its end, and the codes."""
        return self.text + 2 + self.codes

    @property
    def item(self) -> int:
        """Bytes of a number that is computed with."""
        return 2 if self.bf16 else 4


@dataclass(frozen=True)
class Counts:
    """Parameters."""

    blocks: int
    matrices: int
    """Of them those that Muon would move."""
    depth: int
    outside: int
    """Table of ids, head and last norm."""

    @property
    def all(self) -> int:
        return self.blocks + self.outside


def count(sizes: Sizes) -> Counts:
    with torch.device("meta"):
        trunk, ids = Transformer(sizes.trunk), IdPort(sizes.vocabulary, sizes.trunk.width, sizes.trunk.tied_head)
    blocks = list(trunk.blocks.parameters())
    outside = sum(weight.numel() for weight in (*trunk.parameters(), *ids.parameters()))
    inside = sum(weight.numel() for weight in blocks)
    matrices = sum(weight.numel() for weight in blocks if weight.ndim == 2)
    return Counts(inside, matrices, len(trunk.blocks), outside - inside)


def training(sizes: Sizes, counts: Counts, parallel: Parallel, gpus: int, ema: bool = True) -> dict[str, float]:
    """Bytes in each GPU at the fullest moment, by what they are for."""
    shared = gpus if parallel == "fsdp" else 1
    moments = 8 * counts.all - (4 * counts.matrices if sizes.muon else 0)
    needs = {
        "weights": 4 * counts.all / shared,
        "gradients": 4 * counts.all / shared,
        "moments": moments / shared,
        "average": 4 * counts.all / shared if ema else 0.0,
    }
    if sizes.bf16 and parallel == "ddp":
        needs["copies in bf16"] = 2.0 * (counts.matrices + sizes.trunk.width * sizes.codebook)
    if parallel == "fsdp":  # what is outside, whole with its gradient; two blocks, and the gradient of one
        block = counts.blocks / counts.depth
        needs["gathered"] = 8 * counts.outside + block * (3 * sizes.item)
    kept, passing = activations(sizes)
    return needs | {"activations": kept, "passing": passing}


def activations(sizes: Sizes) -> tuple[float, float]:
    """(bytes that the backward pass waits for, bytes that come and go on top of them) of a micro-batch."""
    # What does not grow with rows is weights.
    one, two = (_saved(sizes, depth, 2) - _saved(sizes, depth, 1) for depth in (1, 2))
    block, around = two - one, 2 * one - two
    states = sizes.positions * sizes.trunk.width * 4  # what runs along the blocks, float32
    row = around + sizes.trunk.depth * (states if sizes.checkpointing else block)
    # Logits in float32 with their gradient, and both again in what is computed with; a CPU makes them piece by piece.
    logits = sizes.rows * sizes.codes * sizes.codebook
    logits = logits if sizes.gpu else min(logits, PIECE)
    head = logits * (8 + (2 * sizes.item if sizes.bf16 else 0))
    return sizes.rows * row, max(float(head), sizes.rows * (block if sizes.checkpointing else 3 * states))


def _saved(sizes: Sizes, depth: int, rows: int) -> float:
    """Bytes that autograd keeps of some rows through a trunk of this depth."""
    found: dict[int, tuple[int, Tensor]] = {}
    length = sizes.positions

    def note(tensor: Tensor) -> Tensor:
        if not (sizes.gpu and tensor.shape[-2:] == (length, length)):  # scores, which a GPU's kernels do not keep
            storage = tensor.untyped_storage()
            found[storage._cdata] = storage.nbytes(), tensor
        return tensor

    with FakeTensorMode():
        trunk = Transformer(replace(sizes.trunk, depth=depth, attention="sdpa"))
        x = torch.zeros(rows, length, sizes.trunk.width, requires_grad=True)
        hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16, enabled=sizes.bf16):
            trunk(x, torch.zeros(rows, length, 3), Visibility("sdpa", causal=True))
    return float(sum(size for size, _ in found.values()))


def drawing(sizes: Sizes, counts: Counts, pictures: int, lanes: int = 2) -> dict[str, float]:
    """Bytes of one GPU that draws so many pictures side by side; `lanes` prompts of each are compared by guidance."""
    config = sizes.trunk
    slots = pictures * lanes * sizes.positions
    cache = 2 * config.depth * config.key_heads * config.head_size * slots * sizes.item
    return {"weights": 4.0 * counts.all + (2 * counts.all if sizes.bf16 else 0), "cache": float(cache)}


def traffic(sizes: Sizes, counts: Counts, parallel: Parallel, gpus: int, micro_batches: int) -> float:
    """Bytes that each GPU sends in a step, by ring collectives."""
    if gpus == 1:
        return 0.0
    ring = (gpus - 1) / gpus
    if parallel == "ddp":  # gradients alone, once a step: a sum is two rounds
        return 2 * ring * 4 * counts.all
    gathers = 2 * sizes.item * counts.blocks + 4 * counts.outside  # of blocks forward and backward
    return ring * micro_batches * (gathers + 4 * counts.all)


def flops(sizes: Sizes, counts: Counts) -> float:
    """Of a step's products for one position: 6 for each weight that takes part, 8 with recomputing, and attention."""
    factor = 8 if sizes.checkpointing else 6
    head = sizes.trunk.width * sizes.codebook
    attention = 2 * sizes.trunk.depth * sizes.positions * sizes.trunk.width
    return factor * (counts.blocks + attention) + 6.0 * head


def total(needs: Mapping[str, float]) -> float:
    return sum(needs.values())
