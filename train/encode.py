"""`unitok encode`: pictures to shards of codes."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tokenizers_vq.base import load_tokenizer
from tokenizers_vq.errors import UserError
from unitok.data.codes.shards import CodesDataset
from unitok.data.codes.writer import ShardWriter
from unitok.data.loader import BadPictures, read_spans
from unitok.data.open import open_data
from unitok.data.records import RecordBatch, RecordDataset
from unitok.processes.world import World

from .config import AS_IT_IS, AugmentConfig
from .pictures import ChangedCopies, to_device

LARGEST_BATCH = 2**24
"""Pixels that are encoded at once: 64 pictures of 512 x 512."""
LARGEST_SHARD = 2**26
"""Codes of a shard, which is held until it is written: 128 MB."""


def encode_data(
    world: World,
    data: str,
    image_tokenizer: Path,
    out: Path,
    batch_size: int,
    shard_size: int,
    workers: int,
    max_bad: float,
    image_size: int | None = None,
    augmentation: AugmentConfig = AS_IT_IS,
    copies: int = 1,
    caption_suffix: str = "",
) -> tuple[int, int]:
    """Encodes what is not encoded yet; returns (records in the folder, unreadable ones among them).

    The processes agree on what is to be done, and part. Then they share the shards without a word to each other: the
    folder says what is done, and who works at what. Each returns when the whole is finished.

    Raises:
        UserError: no end to the data, too many unreadable pictures, a folder with other codes, a full disk.
    """
    world.doing = "the check of what is to be encoded"
    place = world.device
    tokenizer = world.together(lambda: load_tokenizer(image_tokenizer, place, image_size))
    height, width = tokenizer.image_size
    batch_size = max(1, min(batch_size, LARGEST_BATCH // (height * width)))
    shard_size = max(1, min(shard_size, LARGEST_SHARD // tokenizer.layout.length))
    dataset = world.together(lambda: _pictures(data, tokenizer.image_size, augmentation, copies, caption_suffix))
    made_by = world.agreed(tokenizer.fingerprint, "weights of the image tokenizer")
    count, digest = world.agreed(lambda: (len(dataset), dataset.fingerprint()), "pictures or captions")
    bad = world.together(lambda: BadPictures(count, max_bad, dataset.left_out))
    writer = world.together(
        lambda: ShardWriter(
            out,
            tokenizer_fingerprint=made_by,
            layout=tokenizer.layout,
            codebook_size=tokenizer.codebook_size,
            image_size=tokenizer.image_size,
            source=data,
            total=count,
            data_sha256=digest,
            shard_size=shard_size,
            rank=world.rank,
            processes=world.size,
        )
    )
    world.part()
    columns = (TextColumn("encoding"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
    console = Console(stderr=True, quiet=not world.is_main)
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        start = writer.count
        task = progress.add_task("", total=count, completed=start, speed="")
        encoded = 0
        while not writer.done():
            for batch in read_spans(dataset, writer.claims(), batch_size=batch_size, workers=workers):
                bad.note(batch.problems)
                codes = None if batch.images is None else tokenizer.encode(to_device(batch.images, place)).cpu()
                _add(writer, batch, codes)
                encoded += len(batch.keys) + len(batch.problems)
                speed = f"{encoded / (progress.tasks[task].elapsed or 1e-9):.0f} images/s"
                # Of one process all that it has done; of several, the shards that are finished.
                done = start + encoded if world.size == 1 else writer.count
                progress.update(task, completed=done, speed=speed)
        progress.update(task, completed=count)
    return count, writer.finish(bad.check_all)


def _pictures(
    data: str, size: tuple[int, int], augmentation: AugmentConfig, copies: int, caption_suffix: str
) -> RecordDataset:
    """The data set that is encoded."""
    dataset = open_data(data, size)
    if dataset.endless:
        raise UserError(f"data {data!r} has no end: say how many pictures to encode, as in {data}?limit=50000")
    if isinstance(dataset, CodesDataset):
        raise UserError(f"data {data!r} holds codes already: give pictures")
    as_it_is = augmentation == AS_IT_IS and copies == 1 and not caption_suffix
    return dataset if as_it_is else ChangedCopies(dataset, augmentation, copies, caption_suffix)


def _add(writer: ShardWriter, batch: RecordBatch, codes: torch.Tensor | None) -> None:
    """A batch's records in their order, broken ones with what is wrong with them."""
    rows = {key.index: place_in_batch for place_in_batch, key in enumerate(batch.keys)}
    problems = {index: (name, reason) for index, name, reason in batch.problems}
    for index in sorted(rows.keys() | problems.keys()):
        if index in problems:
            name, reason = problems[index]
            writer.add(name, None, None, reason)
        else:
            assert codes is not None
            row = rows[index]
            writer.add(batch.names[row], batch.captions[row], codes[row], fields=batch.records[row].fields)
