"""What a generator learns from: data sets side by side, and the text tokenizer for their texts."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tokenizers_vq.errors import UserError, some_of
from unitok.boxes import strings_of
from unitok.conditions import Classes
from unitok.config import TasksConfig
from unitok.data.loader import read_in_order
from unitok.data.mixture import Mixture, parts_of
from unitok.data.open import open_data
from unitok.data.records import Record, RecordDataset, ShardedDataset, each_caption
from unitok.modalities import TEXTS
from unitok.model import TEXT_TOKENIZER
from unitok.tasks import FIELDS, given_fields, is_several, needs
from unitok.text import TextTokenizer, load_text_tokenizer, train_bpe

from .config import RunConfig, SourceConfig

TEXTS_READ = 10_000
TEXTS_READ_ENDLESS = 2_000
"""Records that a byte-level BPE is trained on. Rendered data speaks in few words."""
WORDS_COMPARED = 64
"""Records of each data set whose captions are compared with those that have boxes."""


def open_sources(data: str | list[SourceConfig], tasks: TasksConfig, size: tuple[int, int]) -> Mixture:
    """Opens all sources. A record that lacks the caption that its tasks need is broken.

    Raises:
        UserError: as `open_data`.
    """
    sources = [SourceConfig(data=data)] if isinstance(data, str) else data
    shares = []
    for source in sources:
        mine = {task: share for task, share in (source.tasks or tasks.shares()).items() if share > 0}
        total = sum(mine.values())
        shares.append({task: source.share * share / total for task, share in mine.items()})
    parts = [
        open_data(source.data, size, captions="caption" in needs(mine))
        for source, mine in zip(sources, shares, strict=True)
    ]
    return Mixture(parts, shares, [source.weight for source in sources])


def text_tokenizer_for(
    dataset: Mixture, name: str | None, vocabulary: int, checkpoint: Path | None, run: RunConfig
) -> TextTokenizer:
    """The text tokenizer of a run: the given one, that of the checkpoint to go on from, or a new BPE of the data's
    texts."""
    if name is not None:
        return load_text_tokenizer(name)
    if checkpoint is not None:
        # Checkpoints from before they held it go on with that of the model beside them.
        kept = [place / TEXT_TOKENIZER for place in (checkpoint, checkpoint.parents[1])]
        for place in filter(Path.is_dir, kept):
            return load_text_tokenizer(place)
    pairs = zip(dataset.parts, dataset.sources, strict=True)
    texts = (text for part, source in pairs for text in read_texts(part, needs(source.tasks), run.workers or 0))
    return train_bpe(texts, vocabulary)


def named_classes(classes: Classes, dataset: RecordDataset, validation: Sequence[RecordDataset], says: bool) -> Classes:
    """The classes of a model with names for those of the training data, as a run begins. `says`: this process tells.

    Raises:
        UserError: captions that are no classes, and cannot become such.
    """
    named = classes.with_names_of(one or "" for part in parts_of(dataset) for one in each_caption(part))
    for data in validation:
        for caption in each_caption(data):
            named(caption or "")
    first, new = len(classes.names), named.names[len(classes.names) :]
    if new and says:
        shown = some_of([f"{name} is {number}" for number, name in enumerate(new, start=first)])
        print(f"classes: the data name {len(new)} of the model's {classes.number}: {shown}", file=sys.stderr)
    return named


def restated(dataset: Mixture, encode: Callable[[str], list[int]]) -> bool | None:
    """Whether the captions with boxes that a model learns to write behind a caption have its words, id for id, in all
    records looked at: some of each data set. None: it learns no such task."""
    found: list[bool] = []
    for part, source in zip(dataset.parts, dataset.sources, strict=True):
        if any("named" in needs([task]) and "caption" in given_fields(task) for task in source.tasks):
            for record in looked_at(part, WORDS_COMPARED):
                if record.caption and record.fields.get("named"):
                    named = [word for one in strings_of(record.fields["named"]) for word in encode(one)]
                    found.append(named == encode(record.caption))
    return all(found) if found else None


def text_fingerprint(tokenizer: TextTokenizer) -> str:
    """SHA-256 (hex) of a text tokenizer."""
    return hashlib.sha256(tokenizer.tokenizer.to_str().encode()).hexdigest()


def read_texts(dataset: RecordDataset, fields: set[str], workers: int) -> Iterator[str]:
    """The texts in these fields of the records that `looked_at` gives."""
    count = min(len(dataset), TEXTS_READ_ENDLESS if dataset.endless else TEXTS_READ)
    found = False
    for record in looked_at(dataset, count, workers):
        values = {"caption": record.caption, **record.fields}
        texts: list[str] = []
        for field, modality in FIELDS.items():
            if field in fields and modality in TEXTS and values.get(field):
                texts += values[field] if is_several(field, values[field]) else [values[field]]
        grounded = [text for kind, text in values.get("parts", []) if kind == "text"] if "parts" in fields else []
        grounded += [values["named"]] if "named" in fields and values.get("named") else []
        texts += [part for text in grounded for part in strings_of(text)]
        found = found or bool(texts)
        yield from texts
    if not found:
        wanted = " or ".join(field for field in FIELDS if field in fields and FIELDS[field] in TEXTS) or "text"
        raise UserError(f"{dataset.name}: none of the {count} records looked at has a {wanted} that can be used")


def looked_at(dataset: RecordDataset, count: int, workers: int = 0) -> Iterator[Record]:
    """`count` records spread evenly over a data set, at most all; the first ones where others would have to come from
    afar."""
    count = min(len(dataset), count)
    in_order = dataset.endless or isinstance(dataset, ShardedDataset)
    spread = dataset if in_order else Spread(dataset, count)
    for batch in read_in_order(spread, batch_size=64, stop=count, workers=workers):
        yield from batch.records


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
