"""From the fields of a request to an order: everything that can be refused is refused here, before it is in the
queue."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from tokenizers_vq.errors import UserError
from unitok.boxes import SPANS, Box
from unitok.data.decoding import fit_shares, upright_size
from unitok.model import UniTok
from unitok.sampling import SampleSettings
from unitok.tasks import TASKS, needs, way

from ..best_of import check_best_of
from ..documents import DocumentWriter, Part
from ..inpainting import Sides, plan, reads_known
from ..masks import check_places, fit_mask
from ..outputs import POINTED
from ..pipeline import GREEDY, settings_for, value_of
from ..reading import has_learned
from .errors import ApiError, about, refused
from .fields import (
    ChatFields,
    DrawingFields,
    ExtensionFields,
    Fields,
    GroundingFields,
    ImageFields,
    ImagePart,
    InspectionFields,
    Message,
)
from .limits import Limits
from .orders import (
    Drawing,
    Editing,
    Extending,
    Inpainting,
    Inspecting,
    Locating,
    Order,
    Reading,
    Reconstructing,
    Telling,
)
from .uploads import data_of_url, read_mask, read_picture

DOCUMENTS = "interleaved"
MOST_SOURCES = 4
"""Pictures of an edit."""
MOST_WORDS = 32
"""Words of a caption of which is told what they are worth: each takes a pass of the model."""
MOST_DRAWN = 4
"""Pictures in an answer of a chat, unless the request says otherwise."""


class Service:
    """A model under a name.

    Args:
        model: what draws and writes.
        name: by which clients know it.
        limits: what is taken on.
        context: most positions of a document.
    """

    def __init__(self, model: UniTok, name: str, limits: Limits, context: int = 2048) -> None:
        self.model, self.name, self.limits = model, name, limits
        self.fingerprint = model.fingerprint()
        self.size = model.image_tokenizer.image_size
        self.documents: DocumentWriter | None = None
        """How documents are gone on with, if the model learned it."""
        if DOCUMENTS in model.config.tasks:
            drawn = settings_for(model, {"guidance": 1.0})
            self.documents = DocumentWriter(model, drawn, SampleSettings(guidance=1.0), MOST_DRAWN, context)

    @property
    def room(self) -> int:
        """Positions of the longest job."""
        text, image = self.model.config.text_length + 1, self.model.picture_length
        edited = has_learned(self.model, "edit")
        read = MOST_SOURCES if edited else 1
        drawn = text + 2 * max(text, image + 1)  # behind known codes, a pass carries more than it draws
        drawn += image if reads_known(self.model) else 0
        boxes = [self.model.modalities()[name].longest + 1 for name in SPANS if name in self.model.modalities()]
        values = max((sum(part.learned for part in TASKS[task]) for task in self.model.config.tasks), default=1)
        written = values * max(text, image + 1, *boxes)
        return max(drawn, read * image + 2 * text + written, self.documents.context if self.documents else 0)

    def facts(self) -> dict[str, Any]:
        """The model, as a client sees it."""
        height, width = self.size
        return {
            "size": f"{width}x{height}",
            "objective": self.model.config.objective,
            "tasks": [task for task in TASKS if way(task, self.model.config.tasks)],
            "caption_tokens": self.model.config.text_length,
            "settings": asdict(settings_for(self.model)),
            "model_sha256": self.fingerprint,
        }

    def record(self, order: Drawing, caption: str, place: int, made_from: Mapping[str, Any]) -> dict[str, Any]:
        """What draws a picture again, as `unitok sample` writes it down."""
        return {
            "caption": caption,
            "seed": order.seeds[place],
            "model": self.name,
            "model_sha256": self.fingerprint,
            "settings": asdict(order.settings),
            **made_from,
            **pointed(order, place),
        }

    # --- pictures ----------------------------------------------------------------------------------------------------

    def drawing(self, asked: ImageFields) -> Drawing:
        """Raises ApiError for what cannot be drawn."""
        order = Drawing(*self._given(asked))
        try:
            check_best_of(self.model, order.settings)
        except UserError as error:
            raise refused(error) from None
        return order

    def edit(
        self, asked: ImageFields, pictures: Sequence[bytes], masks: Sequence[bytes]
    ) -> tuple[Drawing, dict[str, Any]]:
        """The order of an edit, and what its record names. With a mask a part is drawn anew, by a caption of the whole;
        without one, the picture is drawn changed, by an instruction.

        Raises:
            ApiError: files that cannot be read or do not fit, or a task that the model did not learn.
        """
        given = self._given(asked)
        if not pictures:
            raise ApiError(400, "image is missing: send the picture as a file", "image")
        if not masks:
            return self._editing(given, pictures)
        if len(pictures) != 1 or len(masks) != 1:
            raise ApiError(400, f"a mask goes with one image, here are {len(pictures)} and {len(masks)} masks", "mask")
        with about("mask"):
            check_places(self.model.image_tokenizer)
        pixels = self.limits.pixels
        whole, hole = read_picture(pictures[0], None, pixels, "image"), read_mask(masks[0], pixels)
        if whole.shape[1:] != hole.shape:
            raise ApiError(
                400,
                f"mask is {hole.shape[1]} wide and {hole.shape[0]} high, image is {whole.shape[2]} wide and "
                f"{whole.shape[1]} high: make the mask as large as the image",
                "mask",
            )
        picture, mask = read_picture(pictures[0], self.size, pixels, "image"), fit_mask(hole, self.size)
        if not mask.any():
            raise ApiError(
                400,
                f"what is to be drawn anew is cut off when the image is scaled and cropped to the model's "
                f"{self.size[1]}x{self.size[0]}: crop the image yourself, around it",
                "mask",
            )
        facts = {"sha256": _digest(pictures[0]), "mask_sha256": _digest(masks[0])}
        return Inpainting(*given, picture=picture, mask=mask), {"made_from": facts}

    def _editing(self, given: tuple[Any, ...], pictures: Sequence[bytes]) -> tuple[Drawing, dict[str, Any]]:
        if not has_learned(self.model, "edit"):
            raise ApiError(
                400,
                f"this model learned {', '.join(self.model.config.tasks)}, not edit: send a mask with the image, to "
                "draw a part of it anew",
                "mask",
            )
        if len(pictures) > MOST_SOURCES:
            raise ApiError(400, f"here are {len(pictures)} images: send up to {MOST_SOURCES}", "image")
        sources = [read_picture(data, self.size, self.limits.pixels, "image") for data in pictures]
        return Editing(*given, sources=sources), {"source": [{"sha256": _digest(data)} for data in pictures]}

    def extension(self, asked: ExtensionFields, pictures: Sequence[bytes]) -> tuple[Drawing, dict[str, Any]]:
        """The order of a picture with more around it, and what its record names.

        Raises:
            ApiError: a picture that cannot be read or is too small, or sides that are wrong or take too many drawings.
        """
        given = self._asked(asked)
        data = _one(pictures)
        picture = read_picture(data, None, self.limits.pixels, "image")
        sides = Sides(asked.left, asked.right, asked.top, asked.bottom)
        try:
            check_places(self.model.image_tokenizer)
            windows, _ = plan(self.model, picture.shape[1:], sides)
        except UserError as error:  # names the side, or is about the picture or its codes
            wrong = refused(error)
            raise ApiError(400, wrong.message, wrong.param or "image") from None
        drawings = asked.n * len(windows)
        if drawings > self.limits.pictures:
            raise ApiError(
                400,
                f"n is {asked.n} and each picture takes {len(windows)} drawings: this server draws up to "
                f"{self.limits.pictures} for a request, choose smaller sides, a smaller image or a smaller n",
                "n",
            )
        order = Extending(*given, picture=picture, sides=sides)
        height, width = order.canvas(self.size)
        if asked.n * height * width > self.limits.pixels:
            raise ApiError(
                400,
                f"n is {asked.n} and each picture has {width}x{height} pixels: this server draws up to "
                f"{self.limits.pixels:,} for a request, choose a smaller image or a smaller n",
                "n",
            )
        return order, {"made_from": {"sha256": _digest(data), **sides._asdict()}}

    def _given(self, asked: ImageFields) -> tuple[list[int], SampleSettings, list[int], int | None]:
        """Caption, settings, seeds and partial pictures."""
        height, width = self.size
        if asked.size not in (None, "auto", f"{width}x{height}"):
            raise ApiError(400, f"size is {asked.size!r:.80}: this model draws {width}x{height} or auto", "size")
        return *self._asked(asked), asked.partial_images if asked.stream else None

    def _asked(self, asked: DrawingFields) -> tuple[list[int], SampleSettings, list[int]]:
        """Caption, settings and seeds."""
        try:
            settings = settings_for(self.model, asked.settings())
        except UserError as error:
            raise refused(error) from None
        drawings = asked.n * settings.best_of
        if drawings > self.limits.pictures:
            what = f"n is {asked.n}" + (f" with best_of {settings.best_of}" if settings.best_of > 1 else "")
            raise ApiError(400, f"{what}: this server draws up to {self.limits.pictures} for a request", "n")
        with about("prompt"):
            caption = value_of(self.model, asked.prompt)
        seed = _seed(asked)
        return caption, settings, list(range(seed, seed + asked.n))

    # --- what is in a picture ----------------------------------------------------------------------------------------

    def inspection(self, asked: InspectionFields, pictures: Sequence[bytes]) -> Inspecting:
        """Raises ApiError for a picture that cannot be read, or a caption that is too long."""
        data = _one(pictures)
        self._check_task("text_to_image", "prompt")
        with about("prompt"):
            value_of(self.model, asked.prompt)
        words = len(asked.prompt.split())
        if asked.words and words > MOST_WORDS:
            raise ApiError(400, f"prompt has {words} words: what {MOST_WORDS} are worth is told at most", "prompt")
        return Inspecting(asked.prompt, self._read(data), asked.words)

    def reconstruction(self, pictures: Sequence[bytes]) -> Reconstructing:
        """Raises ApiError for a picture that cannot be read."""
        data = _one(pictures)
        return Reconstructing(self._read(data))

    def grounding(self, asked: GroundingFields, pictures: Sequence[bytes]) -> Locating:
        """Raises ApiError for a picture that cannot be read, a phrase that is too long, or a task that the model did
        not learn."""
        data = _one(pictures)
        self._check_task("ground" if asked.prompt else "ground_caption", "prompt")
        with about("prompt"):
            phrase = self.model.text_ids(asked.prompt) if asked.prompt else None
        return Locating(phrase, self._read(data), self._window(data))

    def _read(self, data: bytes, field: str = "image") -> torch.Tensor:
        return read_picture(data, self.size, self.limits.pixels, field)

    def _window(self, data: bytes) -> Box:
        """What is kept of a picture that has been read, as shares of it."""
        return fit_shares(upright_size(data), self.size)

    def _check_task(self, task: str, param: str) -> None:
        if not has_learned(self.model, task):
            raise ApiError(400, f"this model learned {', '.join(self.model.config.tasks)}, not {task}", param)

    # --- texts -------------------------------------------------------------------------------------------------------

    def answer(self, asked: ChatFields) -> tuple[Order, dict[str, Any]]:
        """The order of a chat, and what its answer says about how it was made. A model of documents goes on with the
        texts and pictures of all messages in their order, for a document knows no speakers. Others, and those that are
        told so, answer one question about one picture, or caption it.

        Raises:
            ApiError: something that the model did not learn.
        """
        seed = _seed(asked)
        facts = {"seed": seed, "model_sha256": self.fingerprint}
        windows: list[Box] = []
        document = [part for number, one in enumerate(asked.messages) for part in self._parts(one, number, windows)]
        reads = asked.task in ("question", "image_to_text")
        if self.documents is not None and not reads:
            return self._telling(asked, self.documents, document, seed), facts
        if asked.task == DOCUMENTS:
            raise ApiError(400, f"this model learned {', '.join(self.model.config.tasks)}, not {DOCUMENTS}", "task")
        if asked.pictures is not None:
            raise ApiError(400, f"pictures is of the task {DOCUMENTS}: leave it out", "pictures")
        pictures = [value for kind, value in document if kind == "image"]
        text = " ".join(value for kind, value in document if kind == "text").strip()
        task = asked.task or ("question" if text else "image_to_text")
        if bool(text) != ("question" in needs([task])):
            raise ApiError(400, "a question needs a text beside the picture, image_to_text has none", "task")
        if len(asked.messages) != 1 or len(pictures) != 1:
            raise ApiError(
                400,
                "this model reads one picture: send one message with it and a question, or with it alone",
                "messages",
            )
        if not has_learned(self.model, task):
            learned = ", ".join(self.model.config.tasks)
            raise ApiError(400, f"this model learned {learned}, not {task}", "messages")
        with about("messages"):
            record = {"question": self.model.text_ids(text)} if text else {}
        settings = self._text_settings(asked, GREEDY.temperature)
        return Reading(task, record, pictures[0], windows[0], settings, seed), facts

    def _telling(self, asked: ChatFields, writer: DocumentWriter, document: list[Part], seed: int) -> Order:
        most = writer.pictures if asked.pictures is None else asked.pictures
        if most > self.limits.pictures:
            raise ApiError(
                400, f"pictures is {most}: this server draws up to {self.limits.pictures} for a request", "pictures"
            )
        texts = self._text_settings(asked, 1.0)
        return Telling(DocumentWriter(self.model, writer.images, texts, most, writer.context), document, seed)

    def _text_settings(self, asked: ChatFields, temperature: float | list[float]) -> SampleSettings:
        warm = temperature if asked.temperature is None else asked.temperature
        try:
            return SampleSettings(guidance=1.0, temperature=warm, top_k=asked.top_k, top_p=asked.top_p)
        except UserError as error:
            raise refused(error) from None

    def _parts(self, message: Message, number: int, windows: list[Box]) -> list[Part]:
        """The texts and pictures of a message; what is kept of each picture is put behind `windows`."""
        if isinstance(message.content, str):
            return [("text", message.content)] if message.content else []
        field = f"messages[{number}].content"
        parts: list[Part] = []
        for part in message.content:
            if isinstance(part, ImagePart):
                data = data_of_url(part.image_url.url, field)
                parts.append(("image", self._read(data, field)))
                windows.append(self._window(data))
            elif part.text:
                parts.append(("text", part.text))
        return parts


def pointed(order: Order, place: int = 0) -> dict[str, Any]:
    """What a record says of what the model pointed at before a value."""
    found = order.pointed.get(place)
    return {POINTED: dict(found)} if found else {}


def _seed(asked: Fields) -> int:
    return secrets.randbelow(2**31) if asked.seed is None else asked.seed


def _one(pictures: Sequence[bytes]) -> bytes:
    """The only one. Raises ApiError if there is none, or more."""
    if len(pictures) != 1:
        raise ApiError(400, f"here are {len(pictures)} images: send one, as a file", "image")
    return pictures[0]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
