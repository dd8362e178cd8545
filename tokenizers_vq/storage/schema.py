"""JSON against a schema: the dataclasses that hold it are the schema.

A small reader of our own. It reads the files of all earlier versions unchanged (whole numbers in float fields stay
whole, so fingerprints stay the same), names missing keys in its errors, and does not slow down `--help`.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import Problems, UserError, shown

T = TypeVar("T")
LARGEST = 2**64
"""The codes of 64 bits: nothing of ours is more."""


def read_dataclass(kind: type[T], values: Any, where: str, may_lack: Collection[str] | None = None) -> T:
    """Values of a JSON file as a dataclass, its nested dataclasses, lists and tuples too.

    Args:
        kind: a dataclass with types of JSON: bool, int, float, str, None, Literal, unions, tuple, list, dict with keys
            of text, Any, and dataclasses of these.
        values: what `read_json` gave. An object of a nested dataclass's type is taken as it is.
        where: names the file in errors, and the place in it, as in "config.json: quantizer".
        may_lack: keys that may be missing; None: those that have a default.

    Raises:
        UserError: a line for each key that is unknown, missing, or of another type; what the dataclass itself refuses.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where} is {shown(values)}: expected an object with keys; restore the file")
    hints, fields = _hints(kind), {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    problems, found = Problems(), {}
    known = ", ".join(sorted(fields))
    for name in sorted(values.keys() - fields.keys()):
        problems.check(
            False, f"{where} has an unknown key {shown(name)}: known are {known}; update unitok, or remove the key"
        )
    for name, field in fields.items():
        if name in values:
            try:
                found[name] = read_value(hints[name], values[name], where, name)
            except UserError as error:
                problems.check(False, str(error))
        else:
            optional = name in may_lack if may_lack is not None else _has_default(field)
            problems.check(optional, f"{where} lacks the key {name!r}: the file is not complete, restore it")
    problems.raise_if_any()
    try:
        return kind(**found)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def read_value(kind: Any, value: Any, where: str, key: str) -> Any:
    """A value of JSON as one type of those that `read_dataclass` takes. `key` names its place in `where`.

    >>> read_value(tuple[int, ...], [1, 2], "config.json", "levels")
    (1, 2)
    >>> read_value(int, 1.5, "config.json", "steps")
    Traceback (most recent call last):
    tokenizers_vq.errors.UserError: config.json: steps is 1.5: expected a whole number; restore the file
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (types.UnionType, Union):
        problem = None
        if any(part in _NAMES and _fits(part, value) for part in parts):
            return value
        for part in parts:
            try:
                return read_value(part, value, where, key)
            except UserError as error:
                if dataclasses.is_dataclass(part) and isinstance(value, dict):
                    problem = error  # says more than the names of all types
        raise problem or _unlike(kind, value, where, key)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return value if isinstance(value, kind) else read_dataclass(kind, value, f"{where}: {key}")
    if origin in (tuple, list) and isinstance(value, list | tuple):
        if origin is list or parts[1:] == (...,):
            parts = (parts[0],) * len(value)
        if len(parts) == len(value):
            pairs = enumerate(zip(parts, value, strict=True))
            return origin(read_value(part, one, where, f"{key}[{index}]") for index, (part, one) in pairs)
    if origin is dict and isinstance(value, dict):
        return {name: read_value(parts[1], one, where, f"{key}.{name}") for name, one in value.items()}
    if _fits(kind, value):
        return value
    raise _unlike(kind, value, where, key)


def _fits(kind: Any, value: Any) -> bool:
    """Whether a value without parts is of a type."""
    if kind is Any:
        return True
    if get_origin(kind) is Literal:
        return any(value == one and type(value) is type(one) for one in get_args(kind))
    if kind is type(None):
        return value is None
    if kind is int:
        return type(value) is int and abs(value) <= LARGEST
    if kind is float:
        return _fits(int, value) or (type(value) is float and math.isfinite(value))
    return type(value) is kind


def _unlike(kind: Any, value: Any, where: str, key: str) -> UserError:
    return UserError(f"{where}: {key} is {shown(value)}: expected {describe(kind)}; restore the file")


_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


def describe(kind: Any) -> str:
    """A type in words.

    >>> describe(int | tuple[int, int] | None)
    'a whole number, a list of 2 or null'
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (types.UnionType, Union):
        *first, last = (describe(part) for part in parts)
        return f"{', '.join(first)} or {last}"
    if origin is Literal:
        return f"one of {', '.join(map(repr, parts))}"
    if origin is tuple and parts[1:] != (...,):
        return f"a list of {len(parts)}"
    if origin in (tuple, list):
        return f"a list, each {describe(parts[0])}"
    return _NAMES.get(kind, "an object with keys")


@lru_cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
