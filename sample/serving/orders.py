"""Orders: what a request wants to be written, from jobs of the engine to the value of the answer."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from tokenizers_vq.errors import UserError
from unitok.boxes import Box, GroundedTextModality, uncropped
from unitok.model import UniTok
from unitok.objectives.sub_tokens import split
from unitok.sampling import SampleSettings
from unitok.tasks import asked
from unitok.trunk.attention import attention_to_words

from ..best_of import NO_BEST, BestOf, best_read, candidate_seeds, check_best_of
from ..documents import DocumentWriter, Part, told
from ..inpainting import Sides, best_fitting, canvas_of, inpainting_job, inpainting_task, known_codes, window_seed
from ..jobs import Job, job_for, rooms_of, way_of
from ..performing import pointed_first
from ..pictures import as_read, codes_of
from ..pipeline import GREEDY, before_pictures, score_codes
from .partial import decode_one
from .reconstruction import reconstruct

Finished = list[tuple[int, Any]]
"""(place among the values of the order, value) of what a job completes."""


class Order(ABC):
    """All but `size` and `places` runs where the model is, in its thread and in inference mode."""

    partials: int | None = None
    """Partial pictures of each value; None: nobody wants to know how far it is."""
    pointed: Mapping[int, Mapping[str, Any]] = MappingProxyType({})
    """Place of a value that is there -> what the model pointed at before it: fields of a record, boxes as shares of a
    picture."""

    @property
    def size(self) -> int:
        """Jobs."""
        return self.places

    @property
    def places(self) -> int:
        """Values."""
        return 1

    @abstractmethod
    def jobs(self, model: UniTok) -> list[Job]:
        """What the engine runs; nothing where one pass of the model is all. Raises UserError for what cannot be
        done."""

    @abstractmethod
    def finished(self, model: UniTok, number: int, written: Sequence[torch.Tensor]) -> Finished:
        """What a job completes; `number` is its place in `jobs`. Without jobs it is asked once, for 0."""

    def follow(self, model: UniTok, number: int) -> Job | None:
        """What takes the place of a job that is finished, if its value is not whole yet."""
        return None

    def room(self, model: UniTok, job: Job) -> int:
        """Positions that a job takes at most."""
        return sum(rooms_of(model, job))

    def place(self, number: int) -> int:
        """The value that a job belongs to."""
        return number

    def around(self, picture: torch.Tensor) -> torch.Tensor:
        """A drawn picture (3, H, W) uint8, with what is given of it."""
        return picture


@dataclass
class Drawing(Order):
    """Pictures (3, H, W) uint8 of one caption, a seed for each."""

    caption: list[int]
    """Its ids."""
    settings: SampleSettings
    seeds: list[int]
    partials: int | None = None

    @property
    def places(self) -> int:
        return len(self.seeds)

    @property
    def size(self) -> int:
        return len(self.seeds) * self.settings.best_of

    def place(self, number: int) -> int:
        return number // self.settings.best_of

    def jobs(self, model: UniTok) -> list[Job]:
        self.best = self._best(model)
        seeds = [one for seed in self.seeds for one in candidate_seeds(seed, self.settings.best_of)]
        return self._jobs(model, seeds)

    def _best(self, model: UniTok) -> BestOf:
        check_best_of(model, self.settings)
        return best_read(model, [self.caption] * len(self.seeds), self.settings.best_of)

    def _task(self, model: UniTok) -> str:
        """The row of the task table by which it draws."""
        return way_of(model, "text_to_image")

    def _jobs(self, model: UniTok, seeds: Sequence[int]) -> list[Job]:
        return [job_for(self._task(model), {"caption": self.caption}, seed, self.settings) for seed in seeds]

    def canvas(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the pictures, by a model of a size."""
        return size

    def finished(self, model: UniTok, number: int, written: Sequence[torch.Tensor]) -> Finished:
        chosen = self.best.take([(number, written)])
        first = {place: pointed_first(model, self._task(model), one) for place, one in chosen}
        self.pointed = {**self.pointed, **first}
        return [(place, self.around(decode_one(model.image_tokenizer, one[-1]))) for place, one in chosen]


@dataclass
class _FromPictures(Drawing):
    """A drawing that is made from pictures, of which nothing tells the best."""

    def _best(self, model: UniTok) -> BestOf:
        if self.settings.best_of > 1:
            raise UserError(f"--best_of {self.settings.best_of} {NO_BEST}")
        return super()._best(model)


@dataclass(kw_only=True)
class Inpainting(Drawing):
    """A picture, a part of which is drawn anew."""

    picture: torch.Tensor
    """(3, H, W) uint8 of the model's size."""
    mask: torch.Tensor
    """(H, W) bool, true where it is drawn anew."""

    def _best(self, model: UniTok) -> BestOf:
        number = len(self.seeds)
        pictures, masks = self.picture.expand(number, -1, -1, -1), self.mask.expand(number, -1, -1)
        return best_fitting(model, pictures, masks, self.settings.best_of)

    def _task(self, model: UniTok) -> str:
        return inpainting_task(model)

    def _jobs(self, model: UniTok, seeds: Sequence[int]) -> list[Job]:
        (known,) = known_codes(model, self.picture[None], self.mask[None])
        return [inpainting_job(model, known, self.mask, self.caption, seed, self.settings) for seed in seeds]

    def around(self, picture: torch.Tensor) -> torch.Tensor:
        return torch.where(self.mask, picture, self.picture)


@dataclass(kw_only=True)
class Editing(_FromPictures):
    """Pictures changed as the caption says, which is an instruction here."""

    sources: list[torch.Tensor]
    """(3, H, W) uint8 of the model's size."""

    def _task(self, model: UniTok) -> str:
        return way_of(model, "edit")

    def _jobs(self, model: UniTok, seeds: Sequence[int]) -> list[Job]:
        record = {"source": as_read(model, torch.stack(self.sources)), "instruction": self.caption}
        return [job_for(self._task(model), record, seed, self.settings) for seed in seeds]


@dataclass(kw_only=True)
class Extending(_FromPictures):
    """A picture with more around it, which is drawn window by window."""

    picture: torch.Tensor
    """(3, H, W) uint8, at least of the model's size."""
    sides: Sides

    def canvas(self, size: tuple[int, int]) -> tuple[int, int]:
        _, height, width = self.picture.shape
        return self.sides.top + height + self.sides.bottom, self.sides.left + width + self.sides.right

    def _jobs(self, model: UniTok, seeds: Sequence[int]) -> list[Job]:
        self.canvases = [canvas_of(model, self.picture, self.sides) for _ in seeds]
        self.drawn = [0] * len(seeds)
        return [self._job(model, number) for number in range(len(seeds))]

    def _job(self, model: UniTok, number: int) -> Job:
        window, canvas = self.drawn[number], self.canvases[number]
        known, (_, mask) = canvas.known(window), canvas.window(window)
        seed = window_seed(self.seeds[number], window)
        return inpainting_job(model, known, mask, self.caption, seed, self.settings)

    def finished(self, model: UniTok, number: int, written: Sequence[torch.Tensor]) -> Finished:
        canvas = self.canvases[number]
        canvas.put(self.drawn[number], decode_one(model.image_tokenizer, written[-1]), written[-1])
        self.drawn[number] += 1
        return [(number, canvas.picture)] if self.drawn[number] == len(canvas.windows) else []

    def follow(self, model: UniTok, number: int) -> Job | None:
        return self._job(model, number) if self.drawn[number] < len(self.canvases[number].windows) else None


@dataclass
class Inspecting(Order):
    """The codes of a picture, and what the model thinks of them where it draws them by a caption."""

    caption: str
    picture: torch.Tensor
    """(3, H, W) uint8 of the model's size."""
    words: bool = False
    """Whether to tell what each word of the caption is worth: by how many bits a code is likelier than it would be by
    the caption without this word. A word that is there twice is left out once at a time."""

    def jobs(self, model: UniTok) -> list[Job]:
        return []

    def finished(self, model: UniTok, number: int, written: Sequence[torch.Tensor]) -> Finished:
        codes = codes_of(model, self.picture[None])
        parts = split(codes[0].cpu(), model.objective.sub_tokens)  # (L, G), of codes without sub-tokens (L, 1)

        def odds(caption: str) -> torch.Tensor:
            scores = score_codes(model, [caption], codes)[0].double().log_softmax(-1)
            return scores.view(*parts.shape, -1)

        def own(odds: torch.Tensor) -> torch.Tensor:
            return odds.gather(-1, parts[..., None])[..., 0].sum(-1)

        all_odds = odds(self.caption)
        entropy = -(all_odds.exp() * all_odds.clamp(min=-1e9)).sum((-1, -2)) / math.log(2)
        found = {
            "grids": [list(grid) for grid in model.layout.scales],
            "codes": codes[0].tolist(),
            "probabilities": _rounded(own(all_odds).exp()),
            "entropies": _rounded(entropy),
        }
        if self.words:
            words = self.caption.split()
            without = [" ".join(words[:place] + words[place + 1 :]) for place in range(len(words))]
            worth = [(own(all_odds) - own(odds(caption))) / math.log(2) for caption in without]
            found["words"] = [{"word": word, "bits": _rounded(bits)} for word, bits in zip(words, worth, strict=True)]
            _, *behind = before_pictures(model, [self.caption])[0]
            looks = attention_to_words(model, self.caption, codes[0], behind)
            for one, (_, shares) in zip(found["words"], looks or [], strict=False):
                one["attention"] = _rounded(shares)
        return [(0, found)]


def _rounded(values: torch.Tensor) -> list[float]:
    return [float(f"{one:.4g}") for one in values.tolist()]


@dataclass
class Reconstructing(Order):
    """What an image tokenizer makes of a picture; no transformer has to do with it."""

    picture: torch.Tensor
    """(3, H, W) uint8 of the model's size."""

    def jobs(self, model: UniTok) -> list[Job]:
        return []

    def finished(self, model: UniTok, number: int, written: Sequence[torch.Tensor]) -> Finished:
        return [(0, reconstruct(model.image_tokenizer, self.picture))]


@dataclass
class Reading(Order):
    """A text about a picture."""

    task: str
    record: Mapping[str, Any]
    """Field -> ids, without the picture."""
    picture: torch.Tensor
    """(3, H, W) uint8 of the model's size."""
    window: Box
    """What is kept of the whole picture, as shares of it."""
    settings: SampleSettings
    seed: int

    def jobs(self, model: UniTok) -> list[Job]:
        (image,) = as_read(model, self.picture[None])
        task, record = asked(self.task, {**self.record, "image": image}, model.modalities())
        self.way = way_of(model, task)
        return [job_for(self.way, record, self.seed, self.settings)]

    def finished(self, model: UniTok, number: int, written: Sequence[torch.Tensor]) -> Finished:
        self.pointed = {0: pointed_first(model, self.way, written, self.window)}
        return [(0, [("text", model.text_tokenizer.decode(written[-1].tolist()))])]


@dataclass
class Locating(Order):
    """Where in a picture something is: texts, and boxes, shares of the whole picture."""

    phrase: list[int] | None
    """Its ids; None: the caption of the picture, with a box behind each thing that it names."""
    picture: torch.Tensor
    """(3, H, W) uint8 of the model's size."""
    window: Box
    """What is kept of the whole picture, as shares of it."""

    def jobs(self, model: UniTok) -> list[Job]:
        (image,) = as_read(model, self.picture[None])
        if self.phrase is None:
            return [job_for("ground_caption", {"image": image}, 0, GREEDY)]
        return [job_for("ground", {"image": image, "phrase": self.phrase}, 0, GREEDY)]

    def finished(self, model: UniTok, number: int, written: Sequence[torch.Tensor]) -> Finished:
        reader = model.modalities()["box" if self.phrase is not None else "grounded"]
        if isinstance(reader, GroundedTextModality):
            parts: Sequence[str | Box] = reader.parts(written[0].tolist(), model.text_tokenizer.decode)
        else:
            parts = reader.value(written[0])
        found = [{"text": one} if isinstance(one, str) else {"box": uncropped(one, self.window)} for one in parts]
        return [(0, {"parts": found})]


@dataclass
class Telling(Order):
    """What a document of texts and pictures goes on with: [("text", text) or ("image", (3, H, W) uint8)]."""

    writer: DocumentWriter
    document: Sequence[Part]
    """Pictures as (3, H, W) uint8 of the model's size."""
    seed: int

    def jobs(self, model: UniTok) -> list[Job]:
        parts = [(kind, as_read(model, one[None])[0] if kind == "image" else one) for kind, one in self.document]
        pieces = self.writer.pieces(parts)
        self.begun = len(pieces[-1].value)
        return [self.writer.job(pieces, self.seed)]

    def room(self, model: UniTok, job: Job) -> int:
        return sum(self.writer.room(job))

    def finished(self, model: UniTok, number: int, written: Sequence[torch.Tensor]) -> Finished:
        new = [written[0][self.begun :], *written[1:]]  # without what the last text began with
        parts = told(self.writer, [("image" if place % 2 else "text", value) for place, value in enumerate(new)])
        show = model.image_tokenizer
        return [(0, [(kind, decode_one(show, one) if kind == "image" else one) for kind, one in parts])]
