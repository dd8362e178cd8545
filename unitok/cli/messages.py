"""What jsonargparse says of a wrong value, in the project's form."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from tokenizers_vq.errors import shown


def error_key(message: str) -> str:
    """The dotted name of the option that jsonargparse complains about; it names each level apart."""
    return ".".join(dict.fromkeys(re.findall(r'Parser key "([^"]+)"', message)))


def one_line(message: str, choices: tuple[type, ...]) -> str:
    """jsonargparse's message in the project's form: what was wrong, the value, what is allowed."""
    key = error_key(message)
    alternatives = {kind.__name__: kind for choice in choices for kind in _descendants(choice)}
    if match := re.search(r"class_path '(?:[^']*\.)?(\w+)'[\s\S]*Option '(\w+)' is not accepted", message):
        allowed = ", ".join(field.name for field in dataclasses.fields(alternatives[match[1]]))
        return f"{key}: {match[1]} has no option {match[2]!r}: choose from {allowed}"
    if match := re.search(r"(?:dot import path string: |Not a valid subclass of \w+\. Got value: )(\S+)", message):
        return f"{key} is {shown(match[1])}: choose one of {', '.join(alternatives)}"
    if match := re.search(r"Expected an? ([\s\S]*?)\. Got value: ([\s\S]*)", message):
        return f"{key} is {shown(match[2])}: expected {type_names(match[1])}"
    if match := re.search(r"Subtypes: \[(.*)\][\s\S]*Given value: ([\s\S]*)", message):
        kinds = re.sub(r", (?![^\[]*\])", " or ", match[1])
        return f"{key} is {shown(match[2])}: expected {type_names(kinds)}"
    if match := re.search(r"Unable to load config ['\"](.*?)['\"]", message):
        return f"{key} is {shown(match[1])}: give a YAML file with its options, or single options such as --{key}.NAME"
    return " ".join(message.split())[:300]


def _descendants(kind: type[Any]) -> Iterator[type[Any]]:
    for child in kind.__subclasses__():
        if not child.__name__.startswith("_"):
            yield child
        yield from _descendants(child)


def type_names(text: str) -> str:
    """Type names for people: `<class 'pathlib.Path'>` becomes Path."""
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    text = re.sub(r"(?:typing\.)?Literal\[(.*?)\]", r"one of \1", text)
    return re.sub(r"^(?:tuple|list)$", "a list such as [1, 2]", text).replace("NoneType", "null")
