"""From a plain function to a command: its signature is the options, its docstring the help.

jsonargparse reads the signature, checks the values, merges YAML files and prints configurations. Here stand the parts
that are ours: words without a name, bare switches, presets, and messages of one line each that tell of several mistakes
at once. Nothing in here imports torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from tokenizers_vq.errors import Problems, UserError

from .commands import Command


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
    is the default of the function.
    """
    function = load(command.function)
    choices = tuple(load(choice) for choice in command.choices)
    parser = _build_parser(name, command, function, choices)
    problems = Problems()
    options = _read_options(parser, command, function, choices, argv, problems)
    configs = [_read_config(parser, Path(option.value or ""), problems) for option in options if option.key == "config"]
    if command.presets is not None:
        _set_preset(parser, command.presets, function, choices, options, configs)
    if any(option.key == "help" for option in options):
        parser.print_help()
        raise SystemExit(0)
    if None in configs:
        problems.raise_if_any()
    values = _check_values(parser, options, name, choices, problems)
    return function, values


def load(path: str) -> Any:
    """The object called "module:name"."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


# --- the parser ------------------------------------------------------------------------------------------------------


class _HelpFormatter(DefaultHelpFormatter):
    """Keeps the line breaks of descriptions and examples, and writes types without Python's angle brackets."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(f"{indent}{line}" for line in text.splitlines())

    def _split_lines(self, text: str, width: int) -> list[str]:
        return super()._split_lines(_type_names(text), width)


def _build_parser(
    name: str, command: Command, function: Callable[..., object], choices: tuple[type, ...]
) -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True, subclasses_enabled=list(choices))
    description, example = _split_docstring(function)
    words = "".join(
        f" [{word.upper()} ...]" if _is_list(function, word) else f" {word.upper()}" for word in command.positional
    )
    epilog = [f"Presets: {', '.join(load(command.presets[0]))}", ""] if command.presets else []
    parser = ArgumentParser(
        prog=f"unitok {name}",
        usage=f"unitok {name}{words} [--option VALUE ...]",
        description=description,
        epilog="\n".join([*epilog, *(["Example:", example] if example else [])]),
        formatter_class=_HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", action="config", help="YAML file with any of these options; the command line wins over it"
    )
    parser.add_function_arguments(function, as_group=False)
    return parser


def _split_docstring(function: Callable[..., object]) -> tuple[str, str]:
    """(what stands before "Args:", the block under "Example:") of a Google style docstring."""
    text = inspect.getdoc(function) or ""
    description = re.split(r"^(?:Args|Returns|Raises|Examples?):", text, maxsplit=1, flags=re.MULTILINE)[0].strip()
    example = re.search(r"^Examples?:[ ]*\n((?:[ ]+.*\n?|\n)+)", text, flags=re.MULTILINE)
    return description, example[1].rstrip() if example else ""


def _is_list(function: Callable[..., object], parameter: str) -> bool:
    return "list[" in str(inspect.signature(function).parameters[parameter].annotation)


def _leaves(parser: ArgumentParser) -> dict[str, Any]:
    """The type of every option that holds a value, by its dotted name."""
    return {
        action.dest: action._typehint
        for action in parser._actions
        if hasattr(action, "_typehint") and not action.dest.endswith(".help")
    }


# --- reading the command line and the files --------------------------------------------------------------------------


def _read_options(
    parser: ArgumentParser,
    command: Command,
    function: Callable[..., object],
    choices: tuple[type, ...],
    argv: list[str],
    problems: Problems,
) -> list[Option]:
    """Every known option of the command line in the form `--key=value`; notes the unknown ones.

    A dash in a name is an underscore, a switch without a value is true, and words without a name go to the command's
    positional parameters.
    """
    leaves = _leaves(parser)
    known = {text[2:]: action for text, action in parser._option_string_actions.items() if text.startswith("--")}
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
        inside_choice = any(key.startswith(f"{leaf}.") and kind in choices for leaf, kind in leaves.items())
        next_is_value = bool(rest) and not rest[0].startswith("--")
        if not token.startswith("--") or (key not in known and not inside_choice):
            if next_is_value and not equals:
                rest.pop(0)
            problems.check(False, f"unknown option {token.partition('=')[0]}: {_suggest(key, known, parser, '--')}")
        elif equals:
            options.append(Option(key, value))
        elif key in ("help", "print_config"):
            options.append(Option(key, None))
        elif leaves.get(key) is bool and not (next_is_value and rest[0] in ("true", "false")):
            options.append(Option(key, "true"))
        elif next_is_value:
            options.append(Option(key, rest.pop(0)))
        elif key.endswith(".help"):
            options.append(Option(key, None))
        else:
            problems.check(False, f"--{key} has no value: write --{key}=VALUE")
    return options + _name_words(words, command, function, options, problems)


def _name_words(
    words: list[str], command: Command, function: Callable[..., object], options: list[Option], problems: Problems
) -> list[Option]:
    """Options for the words that were given without a name."""
    named: list[Option] = []
    rest = list(words)
    for parameter in command.positional:
        if rest:
            if any(option.key == parameter for option in options):
                problems.check(False, f"{parameter} is given twice, with --{parameter} and as {rest[0]!r}: choose one")
            if _is_list(function, parameter):
                named.append(Option(parameter, json.dumps(rest, ensure_ascii=False)))
                rest = []
            else:
                named.append(Option(parameter, rest.pop(0)))
    if rest:
        problems.check(False, f"unexpected word {rest[0]!r}: options look like --name VALUE, and texts need quotes")
    return named


def _read_config(parser: ArgumentParser, path: Path, problems: Problems) -> dict[str, Any] | None:
    """The content of a YAML file, or None after noting what is wrong with it."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        problems.check(False, f"--config {str(path)!r} cannot be read ({reason}): give a YAML file")
        return None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problems.check(False, f"--config {str(path)!r} is not valid YAML: {where}{getattr(error, 'problem', error)}")
        return None
    if not isinstance(values, dict):
        problems.check(False, f"--config {str(path)!r} has no options: write lines such as 'data: pictures/'")
        return None
    leaves = _leaves(parser)
    groups = {leaf[: dot.start()] for leaf in leaves for dot in re.finditer(r"\.", leaf)}
    before = len(problems.messages)
    for key, value in _walk(values, groups):
        if key in groups:  # a text would name a further YAML file with the options of the group
            allowed = ", ".join(leaf for leaf in leaves if leaf.startswith(f"{key}."))
            problems.check(isinstance(value, str), f"{key} in {path} is {value!r}: it holds options: {allowed}")
        else:
            problems.check(key in leaves, f"unknown key {key!r} in {path}: {_suggest(key, leaves, parser)}")
    return values if len(problems.messages) == before else None


def _walk(values: Mapping[Any, Any], groups: set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything in a mapping, down to what is not a group of options."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name in groups and isinstance(value, dict):
            yield from _walk(value, groups, f"{name}.")
        else:
            yield name, value


def _suggest(key: str, known: Iterable[str], parser: ArgumentParser, dashes: str = "") -> str:
    """What was probably meant: the option of that last name, else the one spelled most alike."""
    known = [name for name in known if not name.endswith("help")]
    close = [name for name in known if name.split(".")[-1] == key.split(".")[-1]]
    close = close or difflib.get_close_matches(key, known, n=1)
    if close:
        return f"did you mean {' or '.join(f'{dashes}{name}' for name in close)}?"
    return f"`{parser.prog} --help` lists what there is"


# --- presets ---------------------------------------------------------------------------------------------------------


def _set_preset(
    parser: ArgumentParser,
    presets: tuple[str, str],
    function: Callable[..., object],
    choices: tuple[type, ...],
    options: list[Option],
    configs: list[dict[str, Any] | None],
) -> None:
    """Makes the chosen preset the default of its group."""
    registry, parameter = load(presets[0]), presets[1]
    given = [config["preset"] for config in configs if config and "preset" in config]
    given += [option.value for option in options if option.key == "preset"]
    preset = given[-1] if given else inspect.signature(function).parameters["preset"].default
    if preset not in registry:
        close = difflib.get_close_matches(str(preset), registry, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(f"unknown preset {preset!r}: {hint}choose one of {', '.join(registry)}")
    parser.set_defaults({parameter: _group_values(registry[preset](), choices)})


def _group_values(config: Any, choices: tuple[type, ...]) -> Any:
    """A dataclass as nested dictionaries; a choice stays whole, for it is one value of its group."""
    if not dataclasses.is_dataclass(config) or isinstance(config, choices):
        return config
    return {field.name: _group_values(getattr(config, field.name), choices) for field in dataclasses.fields(config)}


# --- values and messages ---------------------------------------------------------------------------------------------


def _check_values(
    parser: ArgumentParser, options: list[Option], name: str, choices: tuple[type, ...], problems: Problems
) -> dict[str, Any]:
    """The arguments of the function. jsonargparse stops at a wrong value, so each is noted and left out in turn."""
    dropped: set[str] = set()
    while True:
        kept = [option for option in options if option.key not in dropped]
        try:
            # Files first: their place on the command line does not matter.
            namespace = parser.parse_args([option.text for option in sorted(kept, key=lambda it: it.key != "config")])
            break
        except ArgumentError as error:
            message = str(error)
            if missing := re.match(r"the following arguments are required: (.*)", message):
                told = " ".join([*problems.messages, ""])
                lacking = [
                    f"--{key}" for key in missing[1].split(", ") if key not in dropped and f"--{key} " not in told
                ]
                what = " and ".join(lacking)
                problems.check(not lacking, f"{what} missing: `unitok {name} --help` explains and gives an example")
                break
            problems.check(False, _one_line(message, choices))
            key = _error_key(message)
            wrong = {option.key for option in kept if option.key == key or option.key.startswith(f"{key}.")}
            if not wrong:  # it came from a file, which is read as a whole
                break
            dropped |= wrong
    problems.raise_if_any()
    values = vars(parser.instantiate(namespace))
    return {key: value for key, value in values.items() if key != "config"}


def _error_key(message: str) -> str:
    """The dotted name of the option that jsonargparse complains about; it names each level apart."""
    return ".".join(re.findall(r'Parser key "([^"]+)"', message))


def _one_line(message: str, choices: tuple[type, ...]) -> str:
    """jsonargparse's message in the project's form: what was wrong, the value, what is allowed."""
    key = _error_key(message)
    alternatives = {kind.__name__: kind for choice in choices for kind in _descendants(choice)}
    if match := re.search(r"class_path '(?:[^']*\.)?(\w+)'[\s\S]*Option '(\w+)' is not accepted", message):
        allowed = ", ".join(field.name for field in dataclasses.fields(alternatives[match[1]]))
        return f"{key}: {match[1]} has no option {match[2]!r}: choose from {allowed}"
    if match := re.search(r"(?:dot import path string: |Not a valid subclass of \w+\. Got value: )(\S+)", message):
        return f"{key} is {match[1]!r}: choose one of {', '.join(alternatives)}"
    if match := re.search(r"Expected an? ([\s\S]*?)\. Got value: ([\s\S]*)", message):
        return f"{key} is {match[2]!r}: expected {_type_names(match[1])}"
    if match := re.search(r"Subtypes: \[(.*)\][\s\S]*Given value: ([\s\S]*)", message):
        kinds = re.sub(r", (?![^\[]*\])", " or ", match[1])
        return f"{key} is {match[2]!r}: expected {_type_names(kinds)}"
    return " ".join(message.split())


def _descendants(kind: type[Any]) -> Iterator[type[Any]]:
    for child in kind.__subclasses__():
        if not child.__name__.startswith("_"):
            yield child
        yield from _descendants(child)


def _type_names(text: str) -> str:
    """Type names for people: `<class 'pathlib.Path'>` becomes Path."""
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    text = re.sub(r"(?:typing\.)?Literal\[(.*?)\]", r"one of \1", text)
    return re.sub(r"^(?:tuple|list)$", "a list such as [1, 2]", text).replace("NoneType", "null")
