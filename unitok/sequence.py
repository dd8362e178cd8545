"""Sequences: documents made of text and image parts, and rows that several documents share.

Every position carries an input id, a target id (IGNORE where nothing is predicted), a group number that never
decreases along a document (see `attention.py`), and a place (order, row, column) for the rotary positions. Inputs and
targets are aligned: the logits at a position are compared with the target at the same position, and nobody shifts
anything again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from tokenizers_vq.layout import Layout

from .attention import Visibility, visibility

IGNORE = -100
"""Target of a position where nothing is predicted."""


@dataclass
class Document:
    """Parts in a row; n positions."""

    inputs: torch.Tensor
    """(n,) int64 ids."""
    targets: torch.Tensor
    """(n,) int64 ids or IGNORE."""
    groups: torch.Tensor
    """(n,) int64, never decreasing."""
    places: torch.Tensor
    """(n, 3) float32: order, row, column."""
    task: int = 0
    features: torch.Tensor | None = None
    """(n, F) float32 beside the ids, zeros where there are none."""

    def __len__(self) -> int:
        return len(self.inputs)


class DocumentBuilder:
    """Puts a document together from left to right, keeping count of groups and of the order coordinate."""

    def __init__(self, task: int = 0) -> None:
        self.task = task
        self.parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self.features: list[tuple[int, torch.Tensor]] = []
        """(where it begins, (n, F)) of every image with features."""
        self.group = 0
        self.order = 0

    def text(self, ids: list[int], *, bos: int, eos: int | None = None) -> DocumentBuilder:
        """Adds `bos` and a text; each token opens a group. With `eos` the text and its end are predicted."""
        inputs = torch.tensor([bos, *ids])
        n = len(inputs)
        targets = torch.full((n,), IGNORE) if eos is None else torch.tensor([*ids, eos])
        places = torch.zeros(n, 3)
        places[:, 0] = torch.arange(self.order, self.order + n)
        self.parts.append((inputs, targets, torch.arange(self.group, self.group + n), places))
        self.group += n
        self.order += n
        return self

    def image(
        self,
        inputs: torch.Tensor,
        targets: torch.Tensor | None,
        groups: torch.Tensor,
        layout: Layout,
        features: torch.Tensor | None = None,
    ) -> DocumentBuilder:
        """Adds an image: inputs (L,), targets (L,) or None, groups (L,) counted from 0, features (L, F) or None."""
        if targets is None:
            targets = torch.full_like(inputs, IGNORE)
        if features is not None:
            self.features.append((sum(len(part[0]) for part in self.parts), features))
        self.parts.append((inputs, targets, groups + self.group, image_places(layout, self.order)))
        self.group += int(groups[-1]) + 1
        self.order += len(layout.scales)
        return self

    def build(self) -> Document:
        inputs, targets, groups, places = (torch.cat(tensors) for tensors in zip(*self.parts, strict=True))
        features = None
        for start, part in self.features:
            features = torch.zeros(len(inputs), part.shape[1]) if features is None else features
            features[start : start + len(part)] = part
        return Document(inputs, targets, groups, places, self.task, features)


def image_places(layout: Layout, order: int) -> torch.Tensor:
    """(L, 3) float32 places of an image that begins at `order`: a scale takes one step of the order, rows and columns
    are those of the finest grid."""
    places = layout.coordinates()
    places[:, 0] += order
    return places


@dataclass
class PackedBatch:
    """R rows of T positions, each row holding one or more documents, the rest padding."""

    inputs: torch.Tensor
    """(R, T) int64."""
    targets: torch.Tensor
    """(R, T) int64; IGNORE where nothing is predicted."""
    groups: torch.Tensor
    """(R, T) int64."""
    documents: torch.Tensor
    """(R, T) int64: number of the document within its row, -1 for padding."""
    places: torch.Tensor
    """(R, T, 3) float32."""
    tasks: torch.Tensor
    """(R, T) int64 task ids."""
    at: torch.Tensor
    """(N,) int64: flat positions where something is predicted."""
    features: torch.Tensor | None
    """(R, T, F) float32, or None when no document has any."""
    causal: bool
    """Whether the group rule reduces to plain causal attention (known on the host, so that no device has to be
    asked)."""

    def visibility(self, backend: str = "sdpa") -> Visibility:
        return visibility(self.groups, self.documents, self.groups, self.documents, causal=self.causal, backend=backend)

    def to(self, device: torch.device | str) -> PackedBatch:
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> PackedBatch:
        """The batch with every tensor changed."""
        changed: dict[str, Any] = {k: change(v) for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return replace(self, **changed)


def pack(documents: list[Document], *, pad: int) -> PackedBatch:
    """Puts documents into as few rows as first-fit gives, longest first; rows are as long as the longest document.

    >>> one, two = (DocumentBuilder().text(ids, bos=1, eos=2).build() for ids in ([5], [5, 6, 7]))
    >>> pack([one, two, one, one], pad=0).documents.tolist()
    [[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, -1, -1]]
    """
    length = max(len(document) for document in documents)
    rows: list[list[Document]] = []
    free: list[int] = []
    for document in sorted(documents, key=len, reverse=True):  # stable: equal lengths keep their order
        n = len(document)
        place = next((index for index, space in enumerate(free) if space >= n), None)
        if place is None:
            rows.append([document])
            free.append(length - n)
        else:
            rows[place].append(document)
            free[place] -= n
    return lay_out(rows, pad=pad)


def lay_out(rows: list[list[Document]], *, pad: int) -> PackedBatch:
    """Rows of documents, side by side in the order given, padded behind to the longest row."""
    shape = (len(rows), max(sum(len(document) for document in row) for row in rows))
    widths = {document.features.shape[1] for row in rows for document in row if document.features is not None}
    batch = PackedBatch(
        inputs=torch.full(shape, pad),
        targets=torch.full(shape, IGNORE),
        groups=torch.zeros(shape, dtype=torch.int64),
        documents=torch.full(shape, -1),
        places=torch.zeros(*shape, 3),
        tasks=torch.zeros(shape, dtype=torch.int64),
        at=torch.empty(0, dtype=torch.int64),
        features=torch.zeros(*shape, widths.pop()) if widths else None,
        causal=all(len(row) == 1 and bool((row[0].groups.diff() > 0).all()) for row in rows),
    )
    for r, row in enumerate(rows):
        start = 0
        for number, document in enumerate(row):
            span = slice(start, start + len(document))
            batch.inputs[r, span] = document.inputs
            batch.targets[r, span] = document.targets
            batch.groups[r, span] = document.groups
            batch.documents[r, span] = number
            batch.places[r, span] = document.places
            batch.tasks[r, span] = document.task
            if batch.features is not None and document.features is not None:
                batch.features[r, span] = document.features
            start = span.stop
    batch.at = (batch.targets != IGNORE).flatten().nonzero().squeeze(1)
    return batch
