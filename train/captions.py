"""The text side of a generator's training data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from tokenizers_vq.errors import UserError
from unitok.data.loader import read_in_order
from unitok.data.records import Record, RecordDataset
from unitok.model import TEXT_TOKENIZER
from unitok.text import TextTokenizer, load_text_tokenizer, train_bpe

from .config import RunConfig

CAPTIONS_READ = 10_000
CAPTIONS_READ_ENDLESS = 2_000
"""Records that a byte-level BPE is trained on. Rendered data speaks in few words."""


def text_tokenizer_for(
    dataset: RecordDataset, name: str | None, vocabulary: int, checkpoint: Path | None, run: RunConfig
) -> TextTokenizer:
    """The text tokenizer of a run: the given one, that of the checkpoint to go on from, or a new BPE of the data's
    captions."""
    if name is not None:
        return load_text_tokenizer(name)
    if checkpoint is not None:
        # Checkpoints from before they held it go on with that of the model beside them.
        kept = [place / TEXT_TOKENIZER for place in (checkpoint, checkpoint.parents[1])]
        for place in filter(Path.is_dir, kept):
            return load_text_tokenizer(place)
    return train_bpe(read_captions(dataset, run.workers or 0), vocabulary)


def text_fingerprint(tokenizer: TextTokenizer) -> str:
    """SHA-256 (hex) of a text tokenizer."""
    return hashlib.sha256(tokenizer.tokenizer.to_str().encode()).hexdigest()


def read_captions(dataset: RecordDataset, workers: int) -> Iterator[str]:
    """The captions of records spread evenly over a data set."""
    count = min(len(dataset), CAPTIONS_READ_ENDLESS if dataset.endless else CAPTIONS_READ)
    spread = dataset if dataset.endless else Spread(dataset, count)
    found = False
    for batch in read_in_order(spread, batch_size=64, stop=count, workers=workers):
        found = found or bool(batch.captions)
        yield from batch.captions
    if not found:
        raise UserError(f"{dataset.name}: none of the {count} records looked at has a picture and a caption")


class Spread:
    """`count` records of a data set, evenly spaced."""

    endless = False

    def __init__(self, dataset: RecordDataset, count: int) -> None:
        self.name, self.left_out = dataset.name, dataset.left_out
        self._dataset, self._count = dataset, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Record:
        return self._dataset[index * len(self._dataset) // self._count]

    def fingerprint(self) -> str:
        return self._dataset.fingerprint()
