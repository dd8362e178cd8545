"""A chat on the terminal: a document that the user and the model write in turn.

What the user types goes on with the last text, for a document knows no speakers; behind a picture a new text begins.
All turns are one job of the engine, which asks what comes next: so the cache is kept, and nothing is run twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import torch

from tokenizers_vq.errors import UserError
from tokenizers_vq.images import save_png
from unitok.boxes import written_out
from unitok.data.decoding import PictureError, decode
from unitok.modalities import PASSAGE, Picture
from unitok.tasks import Piece

from .document_files import PICTURES, save_documents
from .documents import DocumentWriter, Part
from .engine import Engine
from .jobs import Turn, prompts_needed
from .pictures import as_read
from .pipeline import decoded

HELP = "/image FILE gives a picture, /save FILE writes the chat down, /new begins another one, /quit ends"


class Chat:
    """Answers lines until they end.

    Args:
        writer: how the model answers.
        lines: what the user types: texts, and what `HELP` names.
        out: folder for the pictures of the answers.
        seed: of every chat.
        say: shows a line to the user.
    """

    def __init__(
        self, writer: DocumentWriter, lines: Iterator[str], out: Path, seed: int = 0, say: Callable[[str], None] = print
    ) -> None:
        self.writer, self.lines, self.pictures, self.seed, self.say = writer, lines, out / PICTURES, seed, say
        self.model = writer.model
        self.over = False
        self._begin()

    def _begin(self) -> None:
        self.document = [Piece(PASSAGE, [], False)]
        """Texts as ids and pictures as they are read, in turn, a text first and last."""
        self.pixels: list[torch.Tensor] = []
        """The pictures (3, H, W) uint8."""
        self.drawn = 0
        """Pictures of the answer."""
        self.drawing = False
        """Whether the model writes a picture, not a text."""

    @torch.inference_mode()
    def talk(self) -> None:
        """Answers until the lines end."""
        while not self.over:
            self._begin()
            if self._listen() is not None:
                job = self.writer.job(self.document, self.seed)
                job.then = self._next
                engine = Engine(self.model, len(prompts_needed(job)), self.writer.context)
                engine.add(job)
                while engine.busy:
                    engine.step()

    # --- the model ---------------------------------------------------------------------------------------------------

    def _next(self, written: list[torch.Tensor]) -> Turn | None:
        """Shows what the model wrote. What comes next is more of its answer, or what the user says."""
        writer, value = self.writer, written[-1]
        if self.drawing:
            self.drawing = False
            pixels = decoded(self.model, value[None])[0]
            self._add(self.model.modalities()["image"].value(value), pixels)
            self._show_picture()
            return Turn([], PASSAGE, writer.texts)
        known, ids = self.document[-1].value, writer.passage.value(value)
        self.document[-1] = Piece(PASSAGE, ids, False)
        if len(ids) > len(known):
            said = writer.passage.said(ids[len(known) :], self.model.text_tokenizer.decode)
            self.say(written_out(said).strip())
        if writer.passage.image_follows(value) and self.drawn < writer.pictures:
            if writer.fits(writer.positions(self.document)):
                self.drawing, self.drawn = True, self.drawn + 1
                return Turn([], "image", writer.images)
            self.say(self._full())
        self.drawn = 0
        return self._listen()

    def _add(self, value: torch.Tensor | Picture, pixels: torch.Tensor) -> None:
        self.document += [Piece("image", value, False), Piece(PASSAGE, [], False)]
        self.pixels.append(pixels)

    def _show_picture(self) -> None:
        self.pictures.mkdir(parents=True, exist_ok=True)
        path = next(path for n in count(1) if not (path := self.pictures / f"{n:04}.png").exists())
        save_png(path, self.pixels[-1])
        self.say(str(path))

    def _full(self) -> str:
        return (
            f"the chat is full: no picture fits into its context of {self.writer.context} positions any more: write it "
            "down with /save FILE and begin another one with /new, or start with a greater --context"
        )

    # --- the user ----------------------------------------------------------------------------------------------------

    def _listen(self) -> Turn | None:
        """Reads lines until one is a text to answer; None where the chat ends."""
        old = len(self.document)
        for line in self.lines:
            word, _, rest = line.strip().partition(" ")
            try:
                if word == "/quit":
                    break
                if word == "/new":
                    return None
                if word == "/image":
                    self._give(Path(rest.strip()))
                elif word == "/save":
                    self._save(Path(rest.strip()))
                elif word.startswith("/"):
                    raise UserError(f"unknown command {word}: {HELP}")
                elif word or len(self.document) > old:
                    return self._answered(line.strip(), old)
            except UserError as error:
                self.say(f"error: {error}")
        self.over = True
        return None

    def _answered(self, text: str, old: int) -> Turn:
        """The turn that answers a text, and the pictures that were given since the document had `old` pieces."""
        before = self.document[-1].value
        ids = self.model.text_tokenizer.encode(f" {text}" if before else text)
        most = self.model.config.text_length
        if len(before) + len(ids) > most:
            raise UserError(
                f"the text has {len(ids)} tokens behind {len(before)} others, and a text of this model up to {most}: "
                "shorten it, give a picture first (/image FILE), or begin another chat (/new)"
            )
        self.document[-1] = Piece(PASSAGE, [*before, *ids], False)
        given, known = self.document[old:-1], torch.tensor(ids, dtype=torch.int64)
        return Turn(given, PASSAGE, self.writer.texts, known, more=not given)

    def _give(self, path: Path) -> None:
        """Puts a picture behind the document."""
        try:
            pixels = decode(path.read_bytes(), self.model.image_tokenizer.image_size)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): give a picture file") from None
        except PictureError as error:
            raise UserError(f"{path} cannot be read as a picture: {error}") from None
        if not self.writer.fits(self.writer.positions(self.document)):
            raise UserError(self._full())
        self._add(as_read(self.model, pixels[None])[0], pixels)

    def _save(self, path: Path) -> None:
        """Writes the document as a line of a file of records, and its pictures into a folder beside it."""
        if not path.name:
            raise UserError("/save takes a file: /save chat.jsonl")
        if path.exists():
            raise UserError(f"{path} is there already: choose another file")
        pixels = iter(self.pixels)
        parts: list[Part] = []
        for piece in self.document:
            if piece.modality != PASSAGE:
                parts.append(("image", next(pixels)))
            elif piece.value:
                parts.append(("text", self.writer.passage.said(piece.value, self.model.text_tokenizer.decode)))
        save_documents(path, [parts], f"{path.stem}_pictures")
        self.say(str(path))
