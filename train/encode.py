"""`unitok encode`: pictures to shards of codes."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tokenizers_vq.base import load_tokenizer
from tokenizers_vq.errors import UserError
from unitok.data.loader import BadPictures, read_in_order
from unitok.data.open import open_data
from unitok.data.shards import CodesDataset, ShardWriter
from unitok.device import pick_device

from .pictures import to_device


def encode_data(
    data: str,
    image_tokenizer: Path,
    out: Path,
    batch_size: int,
    shard_size: int,
    workers: int,
    device: str,
    max_bad: float,
) -> tuple[int, int]:
    """Encodes what is not encoded yet; returns (records in the folder, unreadable ones met by this call).

    Raises:
        UserError: no end to the data, too many unreadable pictures, a folder with other codes, a full disk.
    """
    place = pick_device(device)
    tokenizer = load_tokenizer(image_tokenizer, place)
    dataset = open_data(data, tokenizer.image_size)
    if dataset.endless:
        raise UserError(f"data {data!r} has no end: say how many pictures to encode, as in {data}?limit=50000")
    if isinstance(dataset, CodesDataset):
        raise UserError(f"data {data!r} holds codes already: give pictures")
    writer = ShardWriter(
        out,
        tokenizer_fingerprint=tokenizer.fingerprint(),
        layout=tokenizer.layout,
        codebook_size=tokenizer.codebook_size,
        image_size=tokenizer.image_size,
        source=data,
        total=len(dataset),
        data_sha256=dataset.fingerprint(),
        shard_size=shard_size,
    )
    bad = BadPictures(len(dataset), max_bad, dataset.left_out)
    columns = (TextColumn("encoding"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(dataset), completed=writer.next_index, speed="")
        start = writer.next_index
        for batch in read_in_order(dataset, batch_size=batch_size, start=start, workers=workers):
            bad.note(batch.problems)
            codes = None if batch.images is None else tokenizer.encode(to_device(batch.images, place)).cpu()
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
            seconds = progress.tasks[task].elapsed or 1e-9
            speed = (writer.next_index - start) / seconds
            progress.update(task, completed=writer.next_index, speed=f"{speed:.0f} images/s")
    return len(dataset), len(bad.reasons)
