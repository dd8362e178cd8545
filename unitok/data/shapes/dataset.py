"""Rendered scenes as a data set."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tokenizers_vq.errors import Problems

from ..fingerprint import digest
from ..records import LeftOut, Record
from .questions import ask
from .scenes import MIN_SIZE, SPLITS, TRAIN_LENGTH, VAL_LENGTH, Scene, describe, render, sample_scene


class ShapesDataset:
    """Captioned scenes as a `RecordDataset`: "train" is endless, "val" (held-out combinations) is finite.

    Args:
        size: Side of the pictures in pixels, at least 24.
        split: "train" or "val".
        seed: Another seed gives other scenes; the split of combinations stays the same.
        length: Number of scenes, None for the default of the split.

    Raises:
        UserError: A value outside its range.
    """

    left_out: Sequence[LeftOut] = ()

    def __init__(self, size: int = 32, split: str = "train", seed: int = 0, length: int | None = None) -> None:
        problems = Problems()
        problems.check(size >= MIN_SIZE, f"shapes: size is {size}: choose {MIN_SIZE} or more pixels, such as 32 or 64")
        problems.check(split in SPLITS, f"shapes: split is {split!r}: choose train or val, as in shapes@val")
        problems.check(length is None or length > 0, f"shapes: length is {length}: choose a number above 0")
        problems.raise_if_any()
        self.size = size
        self.split = split
        self.seed = seed
        self._length = length or (TRAIN_LENGTH if split == "train" else VAL_LENGTH)

    @property
    def name(self) -> str:
        return f"shapes:{self.split}:seed{self.seed}"

    @property
    def endless(self) -> bool:
        return self.split == "train"

    def __len__(self) -> int:
        return self._length

    def scene(self, index: int) -> Scene:
        """The scene behind a record."""
        if not 0 <= index < self._length:
            raise IndexError(f"{self.name} has {self._length} records, index is {index}")
        return sample_scene(self.seed, self.split, index)

    def __getitem__(self, index: int) -> Record:
        scene = self.scene(index)
        image = torch.from_numpy(render(scene, self.size)).permute(2, 0, 1).contiguous()  # (3, size, size) uint8
        question = ask(scene, self.seed, index)
        fields = {"question": question.text, "answer": question.answer}
        return Record(name=f"{self.name}:{index}", caption=describe(scene), image=image, fields=fields)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the settings and of a few rendered scenes, which tell of a change of the renderer."""

        def drawn(index: int) -> bytes:
            record = self[index]
            assert record.image is not None and record.caption is not None
            return repr((record.caption, record.fields)).encode() + record.image.numpy().tobytes()

        return digest([self.name, self.size, len(self)], len(self), drawn)
