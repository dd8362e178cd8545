"""Errors that a user can act on.

They live in the lowest room so that every room can raise them. The command line prints a `UserError` as one line,
without a traceback, and leaves with exit code 2; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence

SHOWN = 8
"""Problems that are told; of more, the number."""
NAMED = 3
"""Names that a line lists."""


class UserError(ValueError):
    """Something the user gave is wrong: says what, the value, what is allowed, and what to do next."""


class Problems:
    """Collects everything that is wrong with a request, so that it is reported together.

    >>> problems = Problems()
    >>> problems.check(False, "sample.top_p is 1.5: choose a value above 0 and up to 1")
    >>> problems.raise_if_any()
    Traceback (most recent call last):
    tokenizers_vq.errors.UserError: sample.top_p is 1.5: choose a value above 0 and up to 1
    """

    def __init__(self) -> None:
        self.messages: list[str] = []

    def check(self, ok: bool, message: str) -> None:
        if not ok:
            self.messages.append(message)

    def check_range(self, name: str, value: float, least: float, most: float) -> None:
        """Notes a number outside [least, most], or that is none."""
        if not value >= least:
            self.messages.append(f"{name} is {shown(value)}: choose {least} or more")
        elif value > most:
            self.messages.append(f"{name} is {shown(value)}: choose at most {most}")

    def raise_if_any(self) -> None:
        """Raises UserError with the first `SHOWN` problems, a line each, and how many more there are."""
        if len(self.messages) == 1:
            raise UserError(self.messages[0])
        if self.messages:
            more = len(self.messages) - SHOWN
            rest = [f"and {more} more"] if more > 0 else []
            raise UserError("\n  ".join([f"{len(self.messages)} problems:", *self.messages[:SHOWN], *rest]))


def shown(value: object) -> str:
    """A value for a message: as Python writes it, on one line, its middle left out where it is long.

    >>> shown("x" * 1000)
    "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'"
    """
    return _SHORT.repr(value)


def some_of(names: Sequence[str]) -> str:
    """Names for a message: the first ones, and how many more there are.

    >>> some_of(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxdict = 3, 8, 8, 6
_SHORT.maxstring, _SHORT.maxlong, _SHORT.maxother = 76, 40, 76
