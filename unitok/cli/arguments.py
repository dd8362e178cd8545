"""From a plain function to a command: its signature is the options, its docstring the help.

jsonargparse reads the signature, checks the values, merges YAML files and prints configurations. Here stand the parts
that are ours: words without a name, bare switches, presets, and messages of one line each that tell of several mistakes
at once. Nothing in here imports torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import inspect
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from tokenizers_vq.errors import SHOWN, Problems, UserError, shown

from .commands import Command
from .messages import error_key, one_line, type_names
from .values import text_problem, value_problems
from .yaml_file import check_value, read_yaml


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of the command line, `--key=value`; without a value it is a switch such as `--help`."""

    key: str
    value: str | None

    @property
    def text(self) -> str:
        return f"--{self.key}" if self.value is None else f"--{self.key}={self.value}"


def parse(name: str, command: Command, argv: list[str]) -> tuple[Callable[..., object], dict[str, Any]]:
    """The function of a command and its arguments; prints and exits for `--help` and `--print_config`.

    A value comes from the command line, else from the last `--config` file that has it, else from the preset, else it
    is the default of the function. Raises UserError with all that is wrong.
    """
    line = _CommandLine(name, command, argv)
    return line.function, line.parse(argv)


@functools.cache  # before they are changed for a command line
def _hints(function: Callable[..., object]) -> dict[str, Any]:
    """Types of a function. Given text, jsonargparse would also run TYPE_CHECKING imports, which may be of torch."""
    return get_type_hints(function)


def load(path: str) -> Any:
    """The object called "module:name"."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


class _CommandLine:
    """One command while its arguments are read."""

    def __init__(self, name: str, command: Command, argv: list[str]) -> None:
        self.name = name
        self.command = command
        self.function: Callable[..., object] = load(command.function)
        hints = _hints(self.function)
        self.function.__annotations__ = dict(hints)
        self.of_others = ""
        self.files: dict[str, dict[str, Any] | UserError] = {}
        """What the files of `--config` say, each read once: it may be a pipe."""
        if command.presets is not None:
            # The preset chooses the dataclass of its group, and so which options there are.
            registry, parameter = load(command.presets[0]), command.presets[1]
            default = inspect.signature(self.function).parameters["preset"].default
            preset = next((name for name in self._named("preset", argv) if name in registry), default)
            self.of_others = parameter if str in get_args(hints[parameter]) else ""  # as hf:NAME, with its own sizes
            named = bool(self.of_others) and next(self._named(parameter, argv), "").startswith("hf:")
            self.function.__annotations__[parameter] = str if named else type(registry[preset]())
        self.parameters = inspect.signature(self.function).parameters
        self.choices: tuple[type, ...] = tuple(load(choice) for choice in command.choices)
        self.problems = Problems()
        self.parser = self._build_parser(with_help=any(re.match("-h$|--.*help", word) for word in argv))
        self.types = {
            action.dest: action._typehint
            for action in self.parser._actions
            if hasattr(action, "_typehint") and not action.dest.endswith(".help")
        }
        """The type of every option that holds a value, by its dotted name."""
        self.groups = {name[: dot.start()] for name in self.types for dot in re.finditer(r"\.", name)}

    def parse(self, argv: list[str]) -> dict[str, Any]:
        for problem in dict.fromkeys(map(text_problem, argv)):
            self.problems.check(problem is None, str(problem))
        self.problems.raise_if_any()
        options = self._read_options(argv)
        configs = [self._read_config(option.value or "") for option in options if option.key == "config"]
        if self.command.presets is not None:
            self._set_preset(*self.command.presets, options, configs)
        if any(option.key == "help" for option in options):
            self.parser.print_help()
            raise SystemExit(0)
        if None in configs:
            self.problems.raise_if_any()
        given = {option.key for option in options}.union(*(config or {} for config in configs))
        for parameter in self.command.positional:
            if parameter not in given and self._is_list(parameter):
                options.append(Option(parameter, "[]"))  # no words make an empty list; the function judges it
        return self._check_values(options)

    def _build_parser(self, with_help: bool) -> ArgumentParser:
        # What the docstrings of settings say takes half of the time, and only help shows it.
        set_parsing_settings(docstring_parse_attribute_docstrings=with_help, subclasses_enabled=list(self.choices))
        description, example = _split_docstring(self.function)
        words = [f"[{word.upper()} ...]" if self._is_list(word) else word.upper() for word in self.command.positional]
        epilog = [f"Presets: {', '.join(load(self.command.presets[0]))}", ""] if self.command.presets else []
        parser = ArgumentParser(
            prog=f"unitok {self.name}",
            usage=" ".join(["unitok", self.name, *words, "[--option VALUE ...]"]),
            description=description,
            epilog="\n".join([*epilog, *(["Example:", example] if example else [])]),
            formatter_class=_HelpFormatter,
            exit_on_error=False,
            allow_abbrev=False,
        )
        parser.add_argument(
            "--config", action="config", help="YAML file with any of these options; the command line wins over it"
        )
        names, inline = list(self.parameters), self.command.inline
        place = names.index(inline) if inline else len(names)
        parser.add_function_arguments(self.function, as_group=False, skip={*names[place:]})
        if inline:
            parser.add_class_arguments(self.parameters[inline].annotation, as_group=False)
            parser.add_function_arguments(self.function, as_group=False, skip={*names[: place + 1]})
        return parser

    def _is_list(self, parameter: str) -> bool:
        return "list[" in str(self.parameters[parameter].annotation)

    def _read_options(self, argv: list[str]) -> list[Option]:
        """Every known option of the command line in the form `--key=value`; notes the unknown ones.

        A dash in a name is an underscore, a switch without a value is true, and words without a name go to the
        command's positional parameters.
        """
        known = [text[2:] for text in self.parser._option_string_actions if text.startswith("--")]
        options: list[Option] = []
        words: list[str] = []
        rest = ["--help" if token == "-h" else token for token in argv]
        while rest:
            token = rest.pop(0)
            if token == "--":
                words += rest
                break
            if not re.match(r"-[-A-Za-z]", token):
                words.append(token)
                continue
            key, equals, value = token.lstrip("-").partition("=")
            key = key.replace("-", "_")
            in_choice = any(key.startswith(f"{name}.") and kind in self.choices for name, kind in self.types.items())
            next_is_value = bool(rest) and not rest[0].startswith("--")
            if not token.startswith("--") or (key not in known and not in_choice):
                if next_is_value and not equals:
                    rest.pop(0)
                self._note(f"unknown option {token.partition('=')[0][:80]}: {self._suggest(key, known, '--')}")
            elif equals and value:
                options.append(Option(key, value))
            elif equals:
                self._note(f"--{key} has no value: write --{key}=VALUE")
            elif key in ("help", "print_config"):
                options.append(Option(key, None))
            elif self.types.get(key) is bool and not (next_is_value and rest[0] in ("true", "false")):
                options.append(Option(key, "true"))
            elif next_is_value and rest[0]:
                options.append(Option(key, rest.pop(0)))
            elif key.endswith(".help"):
                options.append(Option(key, None))
            else:
                self._note(f"--{key} has no value: write --{key}=VALUE")
                rest = rest[1:] if next_is_value else rest  # an empty one
        return options + self._name_words(words, options)

    def _name_words(self, words: list[str], options: list[Option]) -> list[Option]:
        """Options for the words that were given without a name."""
        named: list[Option] = []
        rest = list(words)
        for parameter in self.command.positional:
            if not rest:
                break
            if any(option.key == parameter for option in options):
                self._note(f"{parameter} is given twice, with --{parameter} and as {shown(rest[0])}: choose one")
            if self._is_list(parameter):
                named.append(Option(parameter, json.dumps(rest, ensure_ascii=False)))
                rest = []
            else:
                named.append(Option(parameter, rest.pop(0)))
        if rest:
            self._note(f"unexpected word {shown(rest[0])}: options look like --name VALUE, and texts need quotes")
        return named

    def _file(self, path: str) -> dict[str, Any] | UserError:
        """The content of a YAML file, or what is wrong with it."""
        if path not in self.files:
            try:
                self.files[path] = read_yaml(Path(path))
            except UserError as error:
                self.files[path] = error
        return self.files[path]

    def _read_config(self, path: str) -> dict[str, Any] | None:
        """The options of a file of `--config`, or None after noting what is wrong with it."""
        values = self._file(path)
        if isinstance(values, UserError):
            self._note(f"--config {values}")
            return None
        before = len(self.problems.messages)
        for key, value in _walk(values, self.groups):
            if key in self.groups:
                allowed = ", ".join(name for name in self.types if name.startswith(f"{key}."))
                allowed += self._or_named(key, value)
                self._note(f"{key} in {path} is {shown(value)}: it holds options, {allowed}")
            elif value == "":
                self._note(f"{key} in {path} is empty: give it a value, or remove the line")
            elif key not in self.types:
                self._note(f"unknown key {shown(key)} in {path}: {self._suggest(key, self.types)}")
        return values if len(self.problems.messages) == before else None

    def _set_preset(
        self, registry_path: str, parameter: str, options: list[Option], configs: list[dict[str, Any] | None]
    ) -> None:
        """Makes the chosen preset the default of its group."""
        registry = load(registry_path)
        given = [config["preset"] for config in configs if config and "preset" in config]
        given += [option.value for option in options if option.key == "preset"]
        preset = given[-1] if given else self.parameters["preset"].default
        if preset not in registry:
            close = difflib.get_close_matches(str(preset), registry, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            self._note(f"unknown preset {shown(preset)}: {hint}choose one of {', '.join(registry)}")
            return
        values = registry[preset]()
        if type(values) is self.function.__annotations__[parameter]:  # else a file with mistakes named another one
            self.parser.set_defaults({parameter: _group_values(values, self.choices)})

    def _check_values(self, options: list[Option]) -> dict[str, Any]:
        """The arguments of the function. jsonargparse stops at a wrong value, so each is noted and left out in turn."""
        dropped: set[str] = set()
        printing = any(option.key == "print_config" for option in options)
        while True:
            kept = [option for option in options if option.key not in dropped]
            if self.problems.messages:  # nothing wrong is printed
                kept = [option for option in kept if option.key != "print_config"]
            kept.sort(key=lambda option: option.key != "config")  # the place of a file does not matter
            try:
                parsed = self.parser.parse_args([self._text(option) for option in kept])
                if beyond := [problem for key, value in parsed.items() for problem in value_problems(key, value)]:
                    self.problems.messages += beyond
                    break
                namespace = self.parser.instantiate(parsed)
                break
            except UserError as error:  # from the checks of a dataclass
                first, *several = str(error).split("\n  ")
                for message in several or [first]:
                    self._note(message)
                break
            except ArgumentError as error:
                message = str(error)
                if missing := re.match(r"the following arguments are required: (.*)", message):
                    if not printing:
                        self._note_missing(missing[1].split(", "), dropped)
                    break
                key = error_key(message)
                value = next((option.value for option in kept if option.key == key), None)
                self._note(one_line(message, self.choices) + self._or_named(key, value))
                wrong = {option.key for option in kept if option.key == key or option.key.startswith(f"{key}.")}
                if not wrong:  # it came from a file, which is read as a whole
                    break
                dropped |= wrong
        self.problems.raise_if_any()
        values = {key: value for key, value in vars(namespace).items() if key != "config"}
        if inline := self.command.inline:
            kind = self.parameters[inline].annotation
            values[inline] = kind(**{item.name: values.pop(item.name) for item in dataclasses.fields(kind)})
        return values

    def _named(self, key: str, argv: list[str]) -> Iterator[str]:
        """What an option on the command line names, then what the files of `--config` do, last first; mistakes are
        left to the parser."""
        for option in (key, "config"):
            pairs = zip(argv, [*argv[1:], ""], strict=False)  # without words there are none
            values = [word.partition("=")[2] or after for word, after in pairs if re.match(rf"--{option}(=|$)", word)]
            for value in reversed(values):
                content = {key: value} if option == key else self._file(value)
                if isinstance(content, dict) and isinstance(content.get(key), str):
                    yield content[key]

    def _text(self, option: Option) -> str:
        """An option as jsonargparse reads it; a file by what it says."""
        path = option.value or ""
        names_a_file = option.key in self.groups and os.path.exists(path)
        if option.key != "config" and not names_a_file:
            if self.types.get(option.key) not in (str, Path, None):
                check_value(path, f"--{option.key}")
            return option.text
        values = self._file(path)
        if isinstance(values, UserError):
            raise values
        return f"--{option.key}={json.dumps(values)}"

    def _note_missing(self, keys: list[str], dropped: set[str]) -> None:
        told = " ".join(self.problems.messages)
        lacking = [key for key in keys if key not in dropped and f"--{key} has no value" not in told]
        if lacking:
            what = " and ".join(key.upper() if key in self.command.positional else f"--{key}" for key in lacking)
            self._note(f"{what} missing: `unitok {self.name} --help` explains and gives an example")

    def _or_named(self, key: str, value: Any) -> str:
        """What else a text may have meant that was given for a group."""
        return f"; or hf:{value}, for a model of others" if key == self.of_others and isinstance(value, str) else ""

    def _note(self, message: str) -> None:
        self.problems.check(False, message)

    def _suggest(self, key: str, known: Iterable[str], dashes: str = "") -> str:
        """What was probably meant: the options of that last name, else the one spelled most alike."""
        known = [name for name in known if not name.endswith("help")]
        close = [name for name in known if name.split(".")[-1] == key.split(".")[-1]]
        if not close and len(self.problems.messages) < SHOWN:  # those behind are counted and not shown
            close = difflib.get_close_matches(key, known, n=1)
        meant = " or ".join(f"{dashes}{name}" for name in close)
        return f"did you mean {meant}?" if close else f"`unitok {self.name} --help` lists what there is"


# --- documentation ---------------------------------------------------------------------------------------------------


class _HelpFormatter(DefaultHelpFormatter):
    """Keeps the line breaks of descriptions and examples, and writes types without Python's angle brackets."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(f"{indent}{line}" for line in text.splitlines())

    def _split_lines(self, text: str, width: int) -> list[str]:
        return super()._split_lines(type_names(text), width)


def _split_docstring(function: Callable[..., object]) -> tuple[str, str]:
    """(what stands before "Args:", the block under "Example:") of a Google style docstring."""
    text = inspect.getdoc(function) or ""
    description = re.split(r"^(?:Args|Returns|Raises|Examples?):", text, maxsplit=1, flags=re.MULTILINE)[0].strip()
    example = re.search(r"^Examples?:[ ]*\n((?:[ ]+.*\n?|\n)+)", text, flags=re.MULTILINE)
    return description, example[1].rstrip() if example else ""


# --- values and messages ---------------------------------------------------------------------------------------------


def _walk(values: Mapping[Any, Any], groups: set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything in a mapping, down to what is not a group of options."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name in groups and isinstance(value, dict):
            yield from _walk(value, groups, f"{name}.")
        else:
            yield name, value


def _group_values(config: Any, choices: tuple[type, ...]) -> Any:
    """A dataclass as nested dictionaries; a choice stays whole, for it is one value of its group."""
    if not dataclasses.is_dataclass(config) or isinstance(config, choices):
        return config
    return {field.name: _group_values(getattr(config, field.name), choices) for field in dataclasses.fields(config)}
