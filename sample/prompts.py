"""Prompts: each is encoded once, and so are the pictures that several begin with."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import torch

from unitok.modalities import Modality
from unitok.model import UniTok
from unitok.sequence import Document, document, lay_out
from unitok.tasks import Piece
from unitok.trunk.base import Beside
from unitok.trunk.cache import Slots
from unitok.trunk.rule import Visibility, allowed

Key = tuple[Any, ...]
"""What makes two prompts equal."""


class Encoded(NamedTuple):
    """What a cache is filled with to go on behind a prompt of n positions."""

    slots: Slots
    order: int
    """The next order coordinate."""
    condition: Beside | None = None
    """One row."""


class Prompts:
    """Encodes prompts, and keeps the latest.

    A prompt that begins with pictures and goes on is encoded in two passes: the pictures, then what follows, in every
    prompt alike. So several questions about a picture share its positions, and a prompt does not depend on the others.

    Args:
        model: reads them.
        modalities: of the model.
        most: encoded prompts that are kept.
    """

    def __init__(self, model: UniTok, modalities: Mapping[str, Modality], most: int) -> None:
        self.model, self.modalities, self.most = model, modalities, most
        self._kept: OrderedDict[Key, Encoded] = OrderedDict()

    def take(self, prompts: Sequence[list[Piece]]) -> list[Encoded]:
        """The prompts, those that are new encoded together."""
        keys = [_key(pieces) for pieces in prompts]
        fresh = {key: pieces for key, pieces in zip(keys, prompts, strict=True) if key not in self._kept}
        begins = {key: _pictures_first(pieces) for key, pieces in fresh.items()}
        firsts = {_key(first): first for first in (begins[key] or pieces for key, pieces in fresh.items())}
        first_ones = {key: pieces for key, pieces in firsts.items() if key not in self._kept}
        self._kept.update(zip(first_ones, self._encode(list(first_ones.values())), strict=True))
        behind = {key: fresh[key][len(begin) :] for key, begin in begins.items() if begin}
        begun = [self._kept[_key(begins[key])] for key in behind]
        self._kept.update(zip(behind, self._encode_behind(begun, list(behind.values())), strict=True))
        for key in (*firsts, *keys):
            self._kept.move_to_end(key)
        found = [self._kept[key] for key in keys]
        while len(self._kept) > self.most:
            self._kept.popitem(last=False)
        return found

    def _encode(self, prompts: Sequence[list[Piece]]) -> Iterator[Encoded]:
        """Runs prompts through the model, shorter ones padded behind; nobody sees padding."""
        documents = [document_of(pieces, self.modalities) for pieces in prompts if pieces]
        if documents:
            batch = lay_out([[item] for item in documents], pad=self.model.vocabulary.pad).to(self.model.device)
            rows, length = batch.inputs.shape
            cache = self.model.trunk.cache(rows, length)
            cache.extend(range(rows), length)
            condition = self.model.embedded(batch.conditions)
            if length:  # a condition alone has no positions
                seen = batch.visibility()
                self.model.hidden(batch.inputs, batch.places, seen, cache, batch.features, batch.stands, condition)
        row = 0
        for pieces in prompts:
            if pieces:
                n = len(documents[row])
                beside = None if condition is None else condition.row(row)
                yield Encoded(cache.held(row, 0, n), documents[row].order, beside)
                row += 1
            else:
                yield Encoded(self.model.trunk.cache(1, 0).held(0, 0, 0), 0)

    def _encode_behind(self, begun: Sequence[Encoded], prompts: Sequence[list[Piece]]) -> Iterator[Encoded]:
        """Runs what follows prompts that are encoded; shorter ones of these are padded behind, before it."""
        if not prompts:
            return
        documents = [document_of(pieces, self.modalities) for pieces in prompts]
        batch = lay_out([[item] for item in documents], pad=self.model.vocabulary.pad).to(self.model.device)
        rows, length = batch.inputs.shape
        start = max(len(one.slots.orders) for one in begun)
        cache = self.model.trunk.cache(rows, start + length)
        for row, one in enumerate(begun):
            cache.copy(row, one.slots)
        cache.align(range(rows))
        before = cache.used[:, None, None, :start].expand(-1, -1, length, -1)
        inside = allowed(batch.groups, batch.documents, batch.groups, batch.documents)
        cache.extend(range(rows), length)
        places = batch.places.clone()
        places[..., 0] += torch.tensor([one.order for one in begun], device=places.device)[:, None]
        seen = Visibility("sdpa", mask=torch.cat([before, inside], -1))
        self.model.hidden(batch.inputs, places, seen, cache, batch.features)
        for row, (one, item) in enumerate(zip(begun, documents, strict=True)):
            behind = cache.held(row, start, start + len(item))
            yield Encoded(one.slots.followed_by(behind), one.order + item.order)


def document_of(pieces: Sequence[Piece], modalities: Mapping[str, Modality]) -> Document:
    """The document of given pieces; there is at least one."""
    return document(segment for piece in pieces for segment in modalities[piece.modality].given([piece.value]))


def _pictures_first(pieces: list[Piece]) -> list[Piece]:
    """The pictures that a prompt begins with, if more follows."""
    pictures = list(takewhile(lambda piece: piece.modality == "image", pieces))
    return pictures if len(pictures) < len(pieces) else []


def _key(pieces: Sequence[Piece]) -> Key:
    return tuple((piece.modality, _plain(piece.value)) for piece in pieces)


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.cpu().numpy().tobytes()
    return tuple(map(_plain, value)) if isinstance(value, tuple) else repr(value)
