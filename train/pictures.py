"""Pictures on their way into training: to the device, mirrored, cropped or moved, and as a fixed validation set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F

from tokenizers_vq.errors import UserError
from tokenizers_vq.images import to_float
from unitok.data.fingerprint import digest
from unitok.data.loader import collate, read_in_order
from unitok.data.records import Key, LeftOut, Record, RecordBatch, RecordDataset
from unitok.processes.world import World
from unitok.seeding import keyed_generator
from unitok.tasks import is_bound

from .config import AS_IT_IS, AugmentConfig


def augment(record: Record, config: AugmentConfig, generator: torch.Generator) -> Record:
    """Mirrors, crops and moves the picture of a record, if it has pixels. Every draw is made whatever the settings, so
    that one setting does not change what another one draws."""
    if record.image is None:
        return record
    flip, side, top, left = torch.rand(4, generator=generator).tolist()
    image = record.image  # (3, H, W) uint8
    if flip < config.flip:
        image = image.flip(-1)
    if config.crop < 1:
        height, width = image.shape[1:]
        share = config.crop + side * (1 - config.crop)
        h, w = max(1, round(height * share)), max(1, round(width * share))
        y, x = round(top * (height - h)), round(left * (width - w))
        part = image[None, :, y : y + h, x : x + w].float()
        whole = F.interpolate(part, (height, width), mode="bilinear", antialias=True, align_corners=False)
        image = whole[0].round().clamp(0, 255).to(torch.uint8)
    if config.shift:
        down, right = torch.randint(-config.shift, config.shift + 1, (2,), generator=generator).tolist()
        rows, columns = (
            (torch.arange(size) - by).clamp(0, size - 1)
            for size, by in zip(image.shape[1:], (down, right), strict=True)
        )
        image = image[:, rows][:, :, columns]
    record.image = image
    return record


@dataclass(frozen=True)
class Augmenter:
    """`augment` for a loader."""

    config: AugmentConfig

    def __call__(self, record: Record, key: Key, generator: torch.Generator) -> Record:
        return augment(record, self.config, generator)


class ChangedCopies:
    """Copies of the pictures of a data set, each changed in its own way, always the same; those of a picture stand side
    by side.

    Args:
        copies: of each picture.
        suffix: what is appended to their captions.
    """

    endless = False

    def __init__(self, dataset: RecordDataset, config: AugmentConfig, copies: int, suffix: str) -> None:
        self.dataset, self.config, self.copies, self.suffix = dataset, config, copies, suffix

    @property
    def name(self) -> str:
        return f"{self.dataset.name} ({self.copies} changed copies of each)"

    @property
    def left_out(self) -> Sequence[LeftOut]:
        return self.dataset.left_out

    def __len__(self) -> int:
        return len(self.dataset) * self.copies

    def __getitem__(self, index: int) -> Record:
        record = self.dataset[index // self.copies]
        bound = sorted(field for field in record.fields if is_bound(field))
        if bound and self.config != AS_IT_IS:
            raise UserError(
                f"{self.dataset.name}: {record.name} has {', '.join(bound)}, which would be wrong once its picture is "
                "changed: encode it without --augment"
            )
        caption = None if record.caption is None else record.caption + self.suffix
        return augment(replace(record, caption=caption), self.config, keyed_generator("copies", index))

    def fingerprint(self) -> str:
        facts = [self.dataset.fingerprint(), asdict(self.config), self.copies, self.suffix]
        return digest(facts, 0, lambda _: b"")


def to_device(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 (B, 3, H, W) on the CPU -> float in [-1, 1] on the device; the bytes travel, not the floats."""
    if device.type == "cuda":
        images = images.pin_memory().to(device, non_blocking=True)
    return to_float(images)


class Validation:
    """The first records of a data set, dealt out to the processes, read once and kept."""

    def __init__(self, dataset: RecordDataset, pictures: int, batch_size: int, world: World) -> None:
        self.dataset = dataset
        self._pictures = min(pictures, len(dataset))
        self._batch_size = batch_size
        self._world = world
        self._batches: list[RecordBatch] | None = None

    def batches(self, pictures: int) -> list[RecordBatch]:
        """This process's share of the first `pictures` records. All processes come here."""
        if pictures < self._pictures:
            return self._world.together(lambda: self._read(pictures))
        if self._batches is None:
            self._batches = self._world.together(lambda: self._read(self._pictures))
        return self._batches

    def _read(self, pictures: int) -> list[RecordBatch]:
        rank, size = self._world.rank, self._world.size
        start, stop = pictures * rank // size, pictures * (rank + 1) // size
        if pictures < size:
            start, stop = 0, pictures  # too few to deal out: everybody takes all of them, and means stay what they are
        read = read_in_order(self.dataset, batch_size=self._batch_size, start=start, stop=stop)
        batches = [batch for batch in read if batch.names]
        if not batches:
            raise UserError(f"validation data {self.dataset.name}: none of records {start} to {stop - 1} can be used")
        return batches


def first_records(dataset: RecordDataset, number: int) -> RecordBatch:
    """The first readable records of a data set (among its first 16 x number)."""
    records: list[Record] = []
    keys: list[Key] = []
    for index in range(min(len(dataset), 16 * number)):
        record = dataset[index]
        if record.problem is None:
            records.append(record)
            keys.append(Key(0, index, len(keys)))
        if len(keys) == number:
            break
    if not keys:
        raise UserError(f"{dataset.name}: none of the first {16 * number} pictures can be used ({record.problem})")
    return collate(keys, records)
