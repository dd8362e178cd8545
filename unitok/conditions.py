"""Captions that are a condition beside the sequence: a class, or what a text encoder made of a caption."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch

from tokenizers_vq.errors import UserError, shown, some_of

from .config import PortConfig
from .objectives.base import Draw, Writer
from .sequence import Condition, Segment
from .vocabulary import Vocabulary

STATES = "caption"
"""Port of the states of a caption."""
KINDS: dict[str, Literal["states", "attended"]] = {"states": "states", "attended": "attended"}
"""Captions that are states -> the kind of their port."""


class TextStates(NamedTuple):
    """What a text encoder made of a caption, without its padding."""

    states: torch.Tensor
    """(n, F) float32; (0, F): the caption is left out."""
    length: int
    """n of the caption, also where it is left out: a published model then sees as many states of its own."""

    @classmethod
    def of(cls, states: torch.Tensor, mask: torch.Tensor | None = None) -> TextStates:
        """States (n, F), of which those count where the mask (n,) is true.

        Raises:
            UserError: no state counts, or the shapes do not fit.
        """
        if states.ndim != 2 or (mask is not None and mask.shape != states.shape[:1]):
            raise UserError(
                f"states have shape {tuple(states.shape)}: give those of one caption, (n, size), and a mask (n,)"
            )
        found = states if mask is None else states[mask.bool()]
        if not len(found):
            raise UserError("a caption has no states that its mask keeps: give at least one")
        return cls(found.float().cpu(), len(found))

    def left_out(self) -> TextStates:
        return TextStates(self.states[:0], self.length)


@dataclass(frozen=True)
class _GivenOnly:
    """Captions that are read, and never written."""

    vocabulary: Vocabulary
    encode: Callable[[str], Any]
    longest: int = 0

    def read(self, value: str) -> Any:
        """What stands for a caption in a record: the id of its class, or its states."""
        return self.encode(value)

    def _read(self, value: Any) -> Any:
        """A value that may be a caption still."""
        return self.encode(value) if isinstance(value, str) else value

    def learned(self, values: Sequence[Any], draws: Sequence[Draw], followed: Sequence[bool]) -> list[list[Segment]]:
        if values:
            raise UserError("this model writes no captions: give it the task text_to_image alone")
        return []

    def writer(self, rows: int, device: torch.device) -> Writer:
        raise UserError("this model writes no texts: it draws pictures")

    def value(self, written: torch.Tensor) -> Any:
        return written


@dataclass(frozen=True)
class Classes:
    """Captions of a model of classes to the ids of their classes: a caption is the number of a class, or its name."""

    number: int
    names: tuple[str, ...] = ()
    """Of the first classes; the others have none."""

    def __call__(self, caption: str) -> list[int]:
        """The id (1,) of a class; (0,) of an empty caption. Raises UserError for what is neither number nor name.

        >>> Classes(10, ("cat", "dog"))(" dog"), Classes(1000)("207"), Classes(1000)("")
        ([1], [207], [])
        """
        text = caption.strip()
        if text in self.names:
            return [self.names.index(text)]
        if text and not (text.isdecimal() and len(text) < 10 and int(text) < self.number):
            known = f"one of {some_of([*self.names])}, or " if self.names else ""
            raise UserError(
                f"the caption {shown(caption)} is no class of this model: give {known}a number from 0 to "
                f"{self.number - 1}"
            )
        return [int(text)] if text else []

    def with_names_of(self, captions: Iterable[str]) -> Classes:
        """The same with names for what the captions of data call classes. If all are numbers or known, nothing is new.
        New names are numbered in sorted order, from 0 on, or behind those that the model has.

        Raises:
            UserError: numbers that are no classes, numbers beside new names, or more names than classes.
        """
        known, numbers, new = {"", *self.names}, set[str](), set[str]()
        for caption in captions:
            text = caption.strip()
            if text not in known:
                (numbers if text.isdecimal() else new).add(text)
            if new and numbers:
                raise UserError(
                    f"the captions {shown(min(numbers))} and {shown(min(new))} are a number and a name of a class: "
                    "give numbers alone, or names alone"
                )
            if len(self.names) + len(new) > self.number:
                raise UserError(
                    f"{len(new)} captions of the data, such as {shown(min(new))}, are names of no class yet, and the "
                    f"model has {self.number - len(self.names)} classes without a name: give as captions what is to be "
                    "a class, as in 'pictures/?caption=label' for the names of folders"
                )
        for one in numbers:
            self(one)
        return Classes(self.number, (*self.names, *sorted(new)))


class ClassModality(_GivenOnly):
    """Classes, as the text ids (1,) of their numbers; (0,): no class. They have no position of their own."""

    def given(self, values: Sequence[str | list[int]]) -> list[Segment]:
        found = []
        for given in values:
            value = self._read(given)
            if len(value) > 1:
                raise UserError(f"{shown(value)} are several classes: give one")
            nothing = torch.zeros(0, dtype=torch.int64)
            condition = Condition(value[0] if value else self.vocabulary.bos)
            found.append(Segment(nothing, nothing, torch.zeros(0, 3), condition=condition))
        return found


@dataclass(frozen=True)
class StatesModality(_GivenOnly):
    """States of captions. The last of them stands where the picture begins, the others before it."""

    nothing: torch.Tensor | None = None
    """(n, F): what a caption that is left out has instead, the last ones counting."""

    def given(self, values: Sequence[str | TextStates]) -> list[Segment]:
        assert self.nothing is not None
        found = []
        most, size = self.nothing.shape
        for value in map(self._read, values):
            check_states(value, most, size)
            states = value.states if len(value.states) else self.nothing[most - value.length :]
            before = torch.arange(len(states) - 1)
            places = torch.zeros(len(before), 3)
            places[:, 0] = before
            ids = torch.full_like(before, self.vocabulary.bos)
            condition = Condition(self.vocabulary.bos, states[-1], STATES)
            found.append(Segment(ids, before, places, features=states[:-1], port=STATES, condition=condition))
        return found


@dataclass(frozen=True)
class AttendedModality(_GivenOnly):
    """States of captions, which positions attend to. They have no positions of their own."""

    most: int = 0
    """States of a caption."""
    size: int = 0
    """Of a state."""

    def given(self, values: Sequence[str | TextStates]) -> list[Segment]:
        found = []
        for value in map(self._read, values):
            check_states(value, self.most, self.size)
            states = value.states if len(value.states) else torch.zeros(value.length, self.size)
            condition = Condition(self.vocabulary.bos, None, STATES, states, not len(value.states))
            nothing = torch.zeros(0, dtype=torch.int64)
            found.append(Segment(nothing, nothing, torch.zeros(0, 3), condition=condition))
        return found


def check_states(value: object, most: int, size: int) -> None:
    """Raises UserError for what are no states, or not those that a model takes."""
    if not isinstance(value, TextStates):
        raise UserError("this model reads states of its text encoder, not a text or its ids: give TextStates")
    if value.length > most or value.states.shape[1] != size:
        raise UserError(
            f"a caption has {value.length} states of {value.states.shape[1]} numbers, this model takes up to {most} of "
            f"{size}"
        )


def caption_ports(captions: str, size: int) -> dict[str, PortConfig]:
    """The port that captions of a kind need; `size` is that of the states."""
    return {STATES: PortConfig(KINDS[captions], size)} if captions in KINDS else {}
