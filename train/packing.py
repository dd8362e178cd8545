"""From records with codes to a packed micro-batch of tasks, wherever that is done: in a loader's worker or here."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from tokenizers_vq.layout import Layout
from unitok.config import TasksConfig
from unitok.data.records import RecordBatch
from unitok.objectives import Objective
from unitok.sequence import PackedBatch
from unitok.tasks import make_batch
from unitok.text import CaptionEncoder
from unitok.vocabulary import Vocabulary


@dataclass
class TaskBatch:
    """A packed micro-batch."""

    batch: PackedBatch
    targets: torch.Tensor
    """(N,) int64 ids at the positions `batch.at`."""
    tasks: torch.Tensor
    """(N,) int64 task ids of the same positions."""
    counts: torch.Tensor
    """(tasks,) float64, stays on the CPU: targets per task."""
    tokens: int
    """Positions that are no padding."""
    pictures: int

    def to(self, device: torch.device) -> TaskBatch:
        if device.type == "cpu":
            return self
        # Only pinned memory travels without making the CPU wait for the GPU.
        return replace(
            self,
            batch=self.batch.map(torch.Tensor.pin_memory).to(device),
            targets=self.targets.pin_memory().to(device, non_blocking=True),
            tasks=self.tasks.pin_memory().to(device, non_blocking=True),
        )


@dataclass
class PackedRecords(RecordBatch):
    """Records that a worker has packed already."""

    packed: TaskBatch | None = None


@dataclass
class Packer:
    """Packs records. Holds nothing heavy: it travels to the loader's workers."""

    caption_ids: CaptionEncoder
    layout: Layout
    vocabulary: Vocabulary
    objective: Objective
    tasks: TasksConfig
    seed: int

    def __call__(self, records: RecordBatch) -> RecordBatch:
        """Adds the packed batch to records with codes; records with pixels, or without any picture, stay as they
        are."""
        if records.codes is None:
            return records
        return PackedRecords(**vars(records), packed=self.pack(records, records.codes))

    def pack(self, records: RecordBatch, codes: torch.Tensor) -> TaskBatch:
        """Codes (B, L) on the CPU."""
        batch = make_batch(
            [self.caption_ids(caption) for caption in records.captions],
            codes,
            records.keys,
            layout=self.layout,
            vocabulary=self.vocabulary,
            objective=self.objective,
            tasks=self.tasks,
            seed=self.seed,
        )
        tasks = batch.tasks.flatten()[batch.at]
        return TaskBatch(
            batch=batch,
            targets=batch.targets.flatten()[batch.at],
            tasks=tasks,
            counts=torch.bincount(tasks, minlength=len(self.tasks.items())).double(),
            tokens=int((batch.documents >= 0).sum()),
            pictures=len(records.names),
        )
