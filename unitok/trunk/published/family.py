"""What a published family of generators is: released sizes, the authors' names of its tensors, and what becomes of
them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.errors import UserError, shown
from tokenizers_vq.layout import Layout

from ...text import TextTokenizer
from ...vocabulary import Vocabulary
from . import PublishedTrunk

if TYPE_CHECKING:
    from .janus_reading import Reading

Shape = tuple[int, ...]
Settings = Mapping[str, Any]
Weights = Mapping[str, Tensor]

CLOSED = -1e4
"""Logit of an id that is never written."""


class Family(ABC):
    """One published family."""

    config: ClassVar[type[PublishedTrunk]]
    objective: ClassVar[str]
    tokenizer: ClassVar[str]
    """The family of its image tokenizers in `tokenizers_vq.published`."""
    settings: ClassVar[frozenset[str]]
    """The authors' names of the settings that are read; all others say nothing, or what the tensors say too."""
    wrappers: ClassVar[tuple[str, ...]] = ()
    """Dotted keys under which a file may hold the weights, the best first; else the file is the weights."""
    ignored: ClassVar[tuple[str, ...]] = ()
    """Ends of the names of tensors that follow from the sizes."""
    left_out: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the names of tensors that drawing and writing do without."""
    files: ClassVar[tuple[str, ...]] = ()
    """File names on the hub, the usual one first."""
    tasks: ClassVar[tuple[str, ...]] = ("text_to_image",)
    tokens: ClassVar[Mapping[str, str]] = {}
    """Span of the vocabulary -> the token of the authors' text tokenizer that it is; empty: captions are no texts."""
    text_length: ClassVar[int] = 512
    """Longest text, in tokens, where captions are texts."""
    spans: ClassVar[tuple[str, ...]] = ()
    """Further spans of one id that stand around texts and pictures."""
    reads: ClassVar[Mapping[str, str]] = {}
    """Further spans of a model whose file says how it reads pictures, and the tokens that they are."""
    reading_tasks: ClassVar[tuple[str, ...]] = ()
    """What such a model does."""
    holds_tokenizer: ClassVar[bool] = False
    """Whether a file holds the image tokenizer too."""

    def named(self, weights: Weights, settings: Settings) -> Weights:
        """The tensors of a file by the names that `shapes` uses, where its releases have several."""
        return weights

    def configuration(self, settings: Settings) -> Settings:
        """The settings of the transformer in the authors' configuration, which may have groups."""
        return dict(flat(settings))

    def image_tokenizer(self, weights: Weights, settings: Settings, where: str) -> ImageTokenizer:
        """The image tokenizer in a file that holds one."""
        raise NotImplementedError

    def reading(self, weights: Weights, settings: Settings, where: str) -> Reading | None:
        """How the model reads pictures, where a file says so; else as codes, or not at all."""
        return None

    def reading_trunk(self, trunk: PublishedTrunk) -> PublishedTrunk:
        """The trunk of a model that reads pictures so."""
        return trunk

    def codebook(self, weights: Weights) -> Tensor | None:
        """(K, D): the vectors of codes of the image tokenizer that the model was trained with, where a file says so."""
        return None

    @abstractmethod
    def released(self) -> dict[str, tuple[PublishedTrunk, int, int]]:
        """File -> (sizes, classes, codes) of the released models. What is said of classes here and below is said of
        the ids of texts, where captions are texts."""

    @abstractmethod
    def grids(self, config: PublishedTrunk) -> tuple[tuple[int, int], ...]:
        """The grids of codes that a model of these sizes draws; none: any that an image tokenizer makes."""

    @abstractmethod
    def read(self, shapes: Mapping[str, Shape], settings: Settings, layout: Layout) -> tuple[PublishedTrunk, int, int]:
        """(sizes, classes, codes) of the model whose tensors have these shapes and that draws pictures of this layout.

        Raises:
            KeyError: a tensor is missing that says the sizes.
            UserError: a size that neither the shapes nor the settings say.
        """

    @abstractmethod
    def shapes(self, config: PublishedTrunk, classes: int, codes: int) -> dict[str, Shape]:
        """The tensors that a file of these sizes holds, by their authors' names."""

    @abstractmethod
    def state(
        self, config: PublishedTrunk, weights: Weights, vocabulary: Vocabulary, texts: TextTokenizer
    ) -> dict[str, Tensor]:
        """The tensors of our model, by our names; all weights are there and fit. `texts` is the text tokenizer."""

    @abstractmethod
    def sampling(self, config: PublishedTrunk) -> dict[str, Any]:
        """The fields of `SampleSettings` by which its authors draw."""


def rows(vocabulary: Vocabulary, width: int, spans: Mapping[str, Tensor]) -> Tensor:
    """(V, width) float32: a table of all ids with these rows; zeros for ids that the published model does not have."""
    table = torch.zeros(vocabulary.size, width)
    for name, values in spans.items():
        table[vocabulary[name]] = values.float()
    return table


def text_spans(table: Tensor, tokens: Mapping[str, str], texts: TextTokenizer) -> dict[str, Tensor]:
    """Span -> its rows of a table of all the authors' ids: texts keep their ids, and each of our own spans has the row
    of its token beside."""
    found = {"text": table[: texts.size]}
    for span, token in tokens.items():
        found[span] = table[[id_of(texts, token)]]
    return found


def id_of(texts: TextTokenizer, token: str) -> int:
    """The authors' id of a token that is there."""
    place = texts.tokenizer.token_to_id(token)
    assert place is not None, token
    return place


def closed(vocabulary: Vocabulary, ids: Sequence[int]) -> Tensor:
    """(V,): a bias of the head by which no text has these ids, which stand elsewhere in the vocabulary."""
    bias = torch.zeros(vocabulary.size)
    bias[torch.tensor(ids, dtype=torch.int64)] = CLOSED
    return bias


def flat(settings: Settings) -> Iterator[tuple[str, Any]]:
    """Settings of a configuration, without the groups that they stand in."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value)
        else:
            yield str(name), value


def whole(settings: Settings, name: str, default: int) -> int:
    """A setting that is a whole number above 0."""
    value = settings.get(name, default)
    if type(value) is not int or value < 1:
        raise UserError(f"setting {name} is {shown(value)}: give a whole number above 0, such as {default}")
    return value


def number(settings: Settings, name: str, default: float) -> float:
    """A setting that is a number above 0."""
    value = settings.get(name, default)
    if type(value) not in (int, float) or not value > 0:
        raise UserError(f"setting {name} is {shown(value)}: give a number above 0, such as {default}")
    return float(value)


def wording(settings: Settings, default: str) -> str:
    """The setting of that name: what a caption is put into, in place of {}."""
    value = settings.get("wording", default)
    if not isinstance(value, str) or value.count("{}") != 1:
        raise UserError(f"setting wording is {shown(value)}: give a text with one {{}}, where the caption stands")
    return value


def talk(settings: Settings, *names: str) -> dict[str, Any]:
    """Those of the settings of these names that are given: what is said in a talk about a picture."""
    found = {name: settings[name] for name in names if name in settings}
    for name, value in found.items():
        if not isinstance(value, str):
            raise UserError(f"setting {name} is {shown(value)}: give a text")
    return found


def layers(shapes: Mapping[str, Shape], start: str) -> int:
    """How many layers the names that begin with `start` and a number count."""
    numbers = [name.removeprefix(start).partition(".")[0] for name in shapes if name.startswith(start)]
    return max((int(one) for one in numbers if one.isdecimal() and len(one) < 5), default=-1) + 1
