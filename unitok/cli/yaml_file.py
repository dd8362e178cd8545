"""YAML files of settings, read once and within bounds. Free of torch."""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from tokenizers_vq.errors import UserError, shown

from .values import text_problem

LARGEST = 2**20
"""Bytes of a file of settings."""
DEEPEST = 32
"""Brackets within brackets."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


class _Loader(yaml.SafeLoader):
    """Plain values alone: texts, numbers, true and false, null, lists, mappings. A date is a text, 1e-3 a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise yaml.constructor.ConstructorError(None, None, "keys are texts", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{shown(key.value)} is there twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":float", ":merge"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_NUMBER = (
    r"[-+]?(?:\d+\.\d*(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.\d+(?:[eE][-+]?\d+)?|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)"
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"(?:{_NUMBER})$"), list("-+0123456789."))


def read_yaml(path: Path) -> dict[str, Any]:
    """The content of a YAML file, or of a pipe: a mapping of plain values.

    Raises:
        UserError: it cannot be read, is too large or too deep, is not YAML, holds aliases, tags of other types or
            numbers that are not finite, or is no mapping.
    """
    name = repr(str(path))
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{name} cannot be read ({reason}): give a YAML file") from None
    if len(data) > LARGEST:
        raise UserError(f"{name} is larger than {LARGEST:,} bytes: give a YAML file of settings")
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), "utf-8")
    try:
        values = _load(data.decode(encoding))
    except UnicodeDecodeError:
        raise UserError(f"{name} cannot be read (not a text in UTF-8): save it as UTF-8") from None
    except RecursionError:
        raise UserError(f"{name} is not valid YAML: it is nested too deep") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())[:200]
        raise UserError(f"{name} is not valid YAML: {where}{reason}") from None
    if not isinstance(values, dict):
        raise UserError(f"{name} has no options: write lines such as 'data: pictures/'")
    return values


def check_value(text: str, name: str) -> None:
    """Raises UserError for the value of an option that is nested too deep, or grows when it is read."""
    if text.startswith("*"):  # a pattern of names; nothing stands before it that an alias could repeat
        return
    try:
        _check_events(text)
    except (yaml.YAMLError, RecursionError) as error:
        if not isinstance(error, yaml.MarkedYAMLError) or error.problem in _REFUSED:
            raise UserError(f"{name} is {shown(text)}: {getattr(error, 'problem', 'it is nested too deep')}") from None


def _load(text: str) -> Any:
    _check_events(text)
    values = yaml.load(text, Loader=_Loader)
    _check_plain(values)
    return values


_ALIAS, _DEEP = _REFUSED = ("aliases (*name) are not read: write the value out", "it is nested too deep")


def _check_events(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem=_ALIAS, problem_mark=event.start_mark)  # type: ignore[arg-type]
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            depth += 1
            if depth > DEEPEST:
                raise yaml.MarkedYAMLError(problem=_DEEP, problem_mark=event.start_mark)  # type: ignore[arg-type]
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            depth -= 1


def _check_plain(value: Any) -> None:
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            _check_plain(part)
    elif isinstance(value, str):
        if problem := text_problem(value):
            raise ValueError(problem)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not finite: give a number")
    elif not (value is None or isinstance(value, int | float | bool)):
        raise ValueError(f"{shown(value)} is neither text nor number")
