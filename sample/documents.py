"""Documents of texts and pictures that a model goes on with: it decides itself when a picture begins and when the
document ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tokenizers_vq.errors import Problems, UserError
from unitok.device import Precision
from unitok.modalities import PASSAGE, PassageModality
from unitok.model import UniTok
from unitok.prepare import computing
from unitok.sampling import SampleSettings
from unitok.tasks import Piece, in_turn

from .engine import Engine
from .jobs import Job, Turn, prompts_needed

Part = tuple[str, Any]
"""("text", a text) or ("image", a picture: as the model reads it, or its pixels (3, H, W) uint8)."""


@dataclass
class DocumentWriter:
    """Goes on with documents.

    A picture is begun only where it fits with a text of the greatest length behind it, so both are always whole.

    Raises:
        UserError: what cannot be done with this model.
    """

    model: UniTok
    images: SampleSettings
    """How pictures are drawn. Guidance compares the document with itself without its last text."""
    texts: SampleSettings
    """How texts are written; guidance 1."""
    pictures: int = 4
    """Most that are drawn in a document, or in an answer of a chat."""
    context: int = 2048
    """Most positions of a document. A model has no limit of its own: its places are no table."""

    def __post_init__(self) -> None:
        modality = self.model.modalities()[PASSAGE]
        assert isinstance(modality, PassageModality)
        self.passage = modality
        self.longest = modality.longest + 1
        """Positions of a text at most, its boxes counted."""
        self.image = self.model.picture_length
        """Positions of a picture at most."""
        problems, least = Problems(), self.image + 2 * self.longest
        problems.check(self.pictures >= 0, f"--pictures is {self.pictures}: choose 0 or more")
        problems.check(
            self.context >= least,
            f"--context is {self.context}: a picture of this model takes {self.image} positions and a text up to "
            f"{self.longest}, choose at least {least}",
        )
        problems.check(not self.images.scales, "--scales draws a preview, which nothing can follow: leave it out")
        problems.raise_if_any()
        self.guided = self.images.guidance_scales(1) != [1.0]

    @property
    def fitting(self) -> int:
        """Pictures that the context holds for sure, whatever their texts."""
        return (self.context - self.longest) // (self.image + self.longest)

    def positions(self, pieces: Sequence[Piece]) -> int:
        """Positions of texts as ids, and of pictures."""
        return sum(len(piece.value) + 1 if piece.modality == PASSAGE else self.image for piece in pieces)

    def pieces(self, parts: Sequence[Part]) -> list[Piece]:
        """Texts as ids and pictures as they are read, in turn, a text first and last.

        Raises:
            UserError: a text that is too long, or more than the context holds.
        """
        found = [
            piece._replace(value=self.passage.ids(piece.value)) if piece.modality == PASSAGE else piece
            for piece in in_turn(parts)
        ]
        if self.positions(found[:-1]) + self.longest > self.context:
            raise UserError(
                f"the document has {len(found) // 2} pictures and {self.positions(found)} positions, but a context of "
                f"{self.context} holds {self.fitting} pictures of {self.image} positions with texts of up to "
                f"{self.longest}: shorten it, or raise --context"
            )
        return found

    def fits(self, used: int) -> bool:
        """Whether a picture has room behind so many positions."""
        return used + self.image + self.longest <= self.context

    def job(self, pieces: Sequence[Piece], seed: int) -> Job:
        """Goes on with a document, whose last text may go on itself, until it ends."""
        *before, last = pieces
        prompts = [before, [Piece(PASSAGE, self.images.negative or [], False)]][: 1 + self.guided]
        begun = self.positions(before)

        def then(written: list[torch.Tensor]) -> Turn | None:
            """Texts and pictures alternate, a text first."""
            if len(written) % 2 == 0:
                return Turn([], PASSAGE, self.texts)
            texts = sum(len(self.passage.value(text)) + 1 for text in written[::2])
            drawn = len(written) // 2
            if not self.passage.image_follows(written[-1]) or drawn == self.pictures:
                return None
            return Turn([], "image", self.images) if self.fits(begun + texts + drawn * self.image) else None

        known = torch.tensor(last.value, dtype=torch.int64)
        return Job(prompts, PASSAGE, seed, self.texts, known, then, aside=True, instead=True)

    def room(self, job: Job) -> tuple[int, int]:
        """Positions of a job's prompt, and of all that can come behind it."""
        begun = self.positions(job.prompts[0])
        return begun, min(self.context - begun, self.longest + self.pictures * (self.image + self.longest))


@torch.inference_mode()
def write_documents(
    writer: DocumentWriter,
    documents: Sequence[Sequence[Part]],
    seeds: Sequence[int],
    *,
    batch_size: int = 32,
    precision: Precision = "fp32",
) -> Iterator[tuple[int, list[Part]]]:
    """(place, the whole document: texts, and pictures as codes (L,)) of each beginning, as documents are finished. No
    document depends on the others.

    Raises:
        UserError: a beginning that is too long; then nothing is written.
    """
    beginnings = [in_turn(document) for document in documents]
    jobs = [writer.job(writer.pieces(one), seed) for one, seed in zip(documents, seeds, strict=True)]
    lanes = sum(len(prompts_needed(job)) for job in jobs[:batch_size])
    room = sum(map(max, zip(*map(writer.room, jobs), strict=True))) if jobs else 0
    with computing(writer.model, precision):
        engine = Engine(writer.model, lanes, room)
    for job in jobs:
        engine.add(job)
    while engine.busy:
        with computing(writer.model, precision):
            finished = engine.step()
        for number, written in finished:
            parts = [("image" if place % 2 else "text", value) for place, value in enumerate(written)]
            yield number, [*_said(beginnings[number][:-1]), *told(writer, parts)]


def _said(pieces: Sequence[Piece]) -> list[Part]:
    """The parts that a beginning has before its last text."""
    parts = [("text" if piece.modality == PASSAGE else piece.modality, piece.value) for piece in pieces]
    return [(kind, value) for kind, value in parts if kind != "text" or value]


def told(writer: DocumentWriter, parts: Sequence[Part]) -> list[Part]:
    """What was written, with texts as texts, or as strings and boxes; empty ones are left out."""
    decode = writer.model.text_tokenizer.decode
    found = [
        (kind, writer.passage.said(writer.passage.value(one), decode) if kind == "text" else one) for kind, one in parts
    ]
    return [(kind, value) for kind, value in found if kind != "text" or value]
