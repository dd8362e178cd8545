"""Pickles read as data. A pickle is a program that imports and calls what it names; here nothing is imported and
nothing called.

torch's own reader of weights calls what it holds for harmless (a file of 300 bytes has it make a `bytearray` of 6 GB),
and refuses a whole checkpoint for one object that it does not know, such as the options of a training run.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

MAX_STEPS = 2_000_000
"""Instructions of one pickle. Each makes one object at most, so this bounds memory; a checkpoint of 3,000 tensors with
its optimizer has 100,000."""


@dataclass(frozen=True)
class Name:
    """A class or function that the pickle names."""

    path: str


@dataclass(frozen=True)
class Foreign:
    """An object that was not built."""

    path: str
    """Its class or function."""


Build = Callable[[str, tuple[Any, ...]], Any]
"""(class or function, arguments) -> what stands for its result."""


def foreign(path: str, arguments: tuple[Any, ...]) -> Foreign:
    return Foreign(path)


def read_pickle(file: IO[bytes], build: Build = foreign, persistent: Callable[[Any], Any] = lambda key: None) -> Any:
    """The value of the pickle that starts at the file's position; leaves the position behind it.

    Dictionaries keep entries whose keys are text or whole numbers of 64 bits, and drop the others.

    Args:
        file: its reads must end with the file, as those of `io.BytesIO` and `mmap.mmap` do.
        build: stands in for every call.
        persistent: what stands for data outside the pickle, by the key that the pickle has for it.

    Raises:
        ValueError: not a pickle, or one with more than `MAX_STEPS` instructions.
    """
    machine = _Machine(build, persistent)
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if number > MAX_STEPS:
                raise ValueError(f"it has more than {MAX_STEPS:,} instructions")
            machine.step(opcode.name, argument)
        return machine.stack.pop()
    except (IndexError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError("its instructions make no sense") from error


class _Machine:
    """The stack, the marks and the memory of a pickle that is being read."""

    def __init__(self, build: Build, persistent: Callable[[Any], Any]) -> None:
        self.stack: list[Any] = []
        self._build, self._persistent = build, persistent
        self._marks: list[int] = []
        self._memory: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                self._marks.append(len(stack))
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(name == "NEWTRUE")
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memory[argument] = stack[-1]
            case "MEMOIZE":
                self._memory[len(self._memory)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self._memory[argument])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._take(len(stack) - int(name[-1]))))
            case "TUPLE":
                stack.append(tuple(self._above_mark()))
            case "EMPTY_LIST":
                stack.append([])
            case "LIST" | "FROZENSET":  # sets are lists here, for their members need not be hashed
                stack.append(self._above_mark())
            case "EMPTY_SET":
                stack.append([])
            case "APPEND":
                _extend(stack[-2], [stack.pop()])
            case "APPENDS" | "ADDITEMS":
                items = self._above_mark()
                _extend(stack[-1], items)
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                stack.append(_set({}, self._above_mark()))
            case "SETITEM":
                items = self._take(len(stack) - 2)
                _set(stack[-1], items)
            case "SETITEMS":
                items = self._above_mark()
                _set(stack[-1], items)
            case "GLOBAL":
                stack.append(Name(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                module, attribute = self._take(len(stack) - 2)
                stack.append(Name(f"{module}.{attribute}"))
            case "REDUCE" | "NEWOBJ":
                self._call(*self._take(len(stack) - 2))
            case "NEWOBJ_EX":
                self._call(*self._take(len(stack) - 3)[:2])
            case "INST":
                self._call(Name(argument.replace(" ", ".")), tuple(self._above_mark()))
            case "OBJ":
                made, *arguments = self._above_mark()
                self._call(made, tuple(arguments))
            case "BUILD":
                stack.pop()  # attributes of an object that was not built
            case "PERSID":
                stack.append(self._persistent(argument))
            case "BINPERSID":
                stack.append(self._persistent(stack.pop()))
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._above_mark()
            case "DUP":
                stack.append(stack[-1])
            case "EXT1" | "EXT2" | "EXT4" | "NEXT_BUFFER" | "READONLY_BUFFER":
                raise ValueError(f"it has the instruction {name}")
            case _:  # a number, bytes or text
                stack.append(argument)

    def _call(self, function: Any, arguments: Any) -> None:
        path = function.path if isinstance(function, Name | Foreign) else type(function).__name__
        self.stack.append(self._build(path, arguments if isinstance(arguments, tuple) else ()))

    def _take(self, start: int) -> list[Any]:
        if start < 0:
            raise IndexError(start)
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _above_mark(self) -> list[Any]:
        return self._take(self._marks.pop())


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)


def _set(target: Any, items: list[Any]) -> Any:
    """Into a dictionary, keys and values in turns. Hashing other keys could take for ever (tuples of tuples)."""
    if isinstance(target, dict):
        pairs = zip(items[::2], items[1::2], strict=True)
        target.update((k, v) for k, v in pairs if isinstance(k, str) or (isinstance(k, int) and abs(k) < 2**63))
    return target
