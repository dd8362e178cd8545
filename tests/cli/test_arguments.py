"""A function becomes a command: options, words, files, presets, and what each mistake is answered with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from tokenizers_vq.errors import Problems, UserError
from unitok.cli.arguments import parse
from unitok.cli.commands import Command


@dataclass(frozen=True)
class Quantizer:
    """The base of the choice."""


@dataclass(frozen=True)
class Nearest(Quantizer):
    """A codebook."""

    size: int = 512
    """Number of codes."""


@dataclass(frozen=True)
class Rounded(Quantizer):
    """Levels."""

    levels: tuple[int, ...] = (8, 5)
    """Levels per channel."""


@dataclass(frozen=True)
class Network:
    """A network."""

    channels: int = 64
    """Channels of a level."""
    image_size: int | tuple[int, int] = 32
    """Pixels."""
    quantizer: Quantizer = field(default_factory=Nearest)
    """How latents become codes."""

    def __post_init__(self) -> None:
        problems = Problems()
        problems.check(self.channels > 0, f"network.channels is {self.channels}: choose at least 1")
        problems.check(self.channels % 2 == 0, f"network.channels is {self.channels}: choose an even number")
        problems.raise_if_any()


@dataclass(frozen=True)
class Run:
    """A run."""

    steps: int = 10
    """Steps."""
    lr: float = 0.1
    """Learning rate."""
    compile: bool = False
    """Compile."""
    precision: Literal["auto", "bf16"] = "auto"
    """Number format."""


PRESETS: dict[str, Callable[[], Network]] = {
    "small": lambda: Network(channels=8),
    "large": lambda: Network(channels=128, quantizer=Rounded((4, 4))),
}


def train(data: str, out: Path, network: Network, run: Run, preset: str = "small", top_k: int | None = None) -> None:
    """Train something.

    More about it.

    Args:
        data: What to read.
        out: Where to write.
        network: The network.
        run: The run.
        preset: Starting values of the network.
        top_k: How many.

    Example:
        unitok try --data pictures/ \\
            --out there
    """


def draw(texts: list[str], model: Path, n: int = 1, fast: bool = False) -> None:
    """Draw.

    Args:
        texts: What to draw.
        model: Which model.
        n: How many.
        fast: In a hurry.
    """


def compare(a: str, b: str, size: int = 1) -> None:
    """Compare.

    Args:
        a: One.
        b: Other.
        size: Number.
    """


TRAIN = Command(f"{__name__}:train", "", presets=(f"{__name__}:PRESETS", "network"), choices=(f"{__name__}:Quantizer",))
DRAW = Command(f"{__name__}:draw", "", positional=("texts",))
COMPARE = Command(f"{__name__}:compare", "", positional=("a", "b"))
NEEDED = ["--data", "d", "--out", "o"]


def read(command: Command, *argv: str) -> dict[str, Any]:
    return parse("try", command, list(argv))[1]


def problems_of(command: Command, *argv: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        read(command, *argv)
    first, *rest = str(caught.value).split("\n  ")
    assert not rest or first == f"{len(rest)} problems:"
    return rest or [first]


def written(folder: Path, text: str) -> str:
    path = folder / "config.yaml"
    path.write_text(text)
    return str(path)


# --- values ----------------------------------------------------------------------------------------------------------


def test_defaults_come_from_the_function_and_its_preset() -> None:
    assert read(TRAIN, *NEEDED) == {
        "data": "d",
        "out": Path("o"),
        "network": Network(channels=8),
        "run": Run(),
        "preset": "small",
        "top_k": None,
    }


def test_preset_gives_way_to_the_file_and_the_file_to_the_command_line(tmp_path: Path) -> None:
    config = written(tmp_path, "preset: large\nnetwork:\n  channels: 32\nrun:\n  steps: 3\n  lr: 1e-3\n")
    values = read(TRAIN, "--run.steps", "4", *NEEDED, "--config", config)  # the place of --config does not matter
    assert values["network"] == Network(channels=32, quantizer=Rounded((4, 4)))
    assert values["run"] == Run(steps=4, lr=0.001)
    assert read(TRAIN, *NEEDED, "--config", config, "--preset", "small")["network"] == Network(channels=32)


def test_later_files_win(tmp_path: Path) -> None:
    first = written(tmp_path, "data: d\nout: o\nrun: {steps: 3, lr: 0.5}\n")
    second = tmp_path / "second.yaml"
    second.write_text("run: {steps: 5}\n")
    assert read(TRAIN, "--config", first, "--config", str(second))["run"] == Run(steps=5, lr=0.5)


def test_dashes_switches_and_equals_signs() -> None:
    values = read(TRAIN, "--data=a=b", "--out", "o", "--top-k", "-3", "--run.compile", "--network.image_size", "[8,16]")
    assert (values["data"], values["top_k"], values["run"].compile) == ("a=b", -3, True)
    assert values["network"].image_size == (8, 16)
    assert read(TRAIN, *NEEDED, "--run.compile", "false")["run"].compile is False


def test_a_choice_is_switched_and_its_options_follow() -> None:
    def quantizer(*argv: str) -> Quantizer:
        return read(TRAIN, *NEEDED, *argv)["network"].quantizer

    assert quantizer("--network.quantizer.size", "7") == Nearest(7)
    assert quantizer("--network.quantizer", "Rounded", "--network.quantizer.levels", "[3]") == Rounded((3,))
    assert quantizer("--preset", "large", "--network.quantizer.levels", "[3]") == Rounded((3,))
    assert quantizer("--preset", "large", "--network.quantizer", "Nearest") == Nearest()


@pytest.mark.parametrize("argv", [[], ["--preset", "large"], ["--network.quantizer", "Rounded"], ["--run.lr", "1e-5"]])
def test_printed_configuration_reads_back(argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        read(TRAIN, *argv, "--print_config")  # what is required may still be missing
    assert left.value.code == 0
    config = written(tmp_path, capsys.readouterr().out)
    assert read(TRAIN, *NEEDED, "--config", config) == read(TRAIN, *NEEDED, *argv)


# --- words without a name --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "texts"),
    [
        (["a red circle", "two"], ["a red circle", "two"]),
        (["a", "--n", "3", "b"], ["a", "b"]),
        (["--fast", "a"], ["a"]),
        (["12", "true", "null", "[x]", "--", "--n", "-5"], ["12", "true", "null", "[x]", "--n", "-5"]),
        (["große Katze \u732b"], ["große Katze \u732b"]),
        ([], []),
    ],
)
def test_words_become_the_list(argv: list[str], texts: list[str]) -> None:
    assert read(DRAW, "--model", "m", *argv)["texts"] == texts


def test_words_in_a_file_stay_unless_others_are_given(tmp_path: Path) -> None:
    config = written(tmp_path, "model: m\ntexts: [a, b]\n")
    assert read(DRAW, "--config", config)["texts"] == ["a", "b"]
    assert read(DRAW, "--config", config, "c")["texts"] == ["c"]


def test_words_fill_single_parameters_in_order() -> None:
    assert read(COMPARE, "x/", "shapes?size=32@val", "--size", "3") == {"a": "x/", "b": "shapes?size=32@val", "size": 3}
    assert problems_of(COMPARE, "x") == ["B missing: `unitok try --help` explains and gives an example"]
    assert problems_of(COMPARE, "x", "y", "z") == [
        "unexpected word 'z': options look like --name VALUE, and texts need quotes"
    ]
    assert problems_of(COMPARE, "x", "y", "--b", "z") == ["b is given twice, with --b and as 'y': choose one"]


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--run.step", "3"], "unknown option --run.step: did you mean --run.steps?"),
        (["--steps", "3"], "unknown option --steps: did you mean --run.steps?"),
        (["--zzz=3"], "unknown option --zzz: `unitok try --help` lists what there is"),
        (["-k", "3"], "unknown option -k: `unitok try --help` lists what there is"),
        (["--preset", "smal"], "unknown preset 'smal': did you mean 'small'? choose one of small, large"),
        (["--run.steps"], "--run.steps has no value: write --run.steps=VALUE"),
        (["--run.steps="], "--run.steps has no value: write --run.steps=VALUE"),
        (["--run.compile="], "--run.compile has no value: write --run.compile=VALUE"),
        (["--run.steps", "many"], "run.steps is 'many': expected int"),
        (["--run.compile=perhaps"], "run.compile is 'perhaps': expected bool"),
        (["--run.precision", "fp8"], "run.precision is 'fp8': expected one of 'auto', 'bf16'"),
        (["--top_k", "x"], "top_k is 'x': expected int or null"),
        (["--network.image_size", "x"], "network.image_size is 'x': expected int or tuple[int, int]"),
        (["--network.channels", "3"], "network.channels is 3: choose an even number"),
        (["--network.quantizer", "Vector"], "network.quantizer is 'Vector': choose one of Nearest, Rounded"),
        (
            ["--network.quantizer", "Rounded", "--network.quantizer.size", "3"],
            "network.quantizer: Rounded has no option 'size': choose from levels",
        ),
        (
            ["--network.quantizer", "Rounded", "--network.quantizer.levels", "x"],
            "network.quantizer.levels is 'x': expected a list such as [1, 2]",
        ),
        (["--run", "x"], "run is 'x': give a YAML file with its options, or single options such as --run.NAME"),
    ],
)
def test_a_mistake_is_told_in_one_line(argv: list[str], message: str) -> None:
    assert problems_of(TRAIN, *NEEDED, *argv) == [message]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: {stepz: 3}", "unknown key 'run.stepz' in {}: did you mean run.steps?"),
        ("steps: 3", "unknown key 'steps' in {}: did you mean run.steps?"),
        ("run: 3", "run in {} is 3: it holds options, run.steps, run.lr, run.compile, run.precision"),
        ("run: {steps: many}", "run.steps is 'many': expected int"),
        ("preset: tiny", "unknown preset 'tiny': choose one of small, large"),
        ("network: {quantizer: {class_path: Rounded, init_args: {size: 3}}}", "Rounded has no option 'size'"),
        ("- a", "has no options: write lines such as 'data: pictures/'"),
        ("run: {steps: 3\nlr: 4", "is not valid YAML: line 2, column 3: "),
    ],
)
def test_a_mistake_in_a_file_names_the_file(text: str, message: str, tmp_path: Path) -> None:
    config = written(tmp_path, text)
    (problem,) = problems_of(TRAIN, *NEEDED, "--config", config)
    assert message.format(config) in problem


def test_a_missing_file_is_named() -> None:
    assert problems_of(TRAIN, *NEEDED, "--config", "no.yaml") == [
        "--config 'no.yaml' cannot be read (No such file or directory): give a YAML file"
    ]


def test_several_problems_are_told_together() -> None:
    argv = ["--data", "d", "--zzz", "1", "--run.step=1", "--run.steps", "x", "--run.lr", "y", "--preset", "tiny"]
    assert problems_of(TRAIN, *argv) == [
        "unknown option --zzz: `unitok try --help` lists what there is",
        "unknown option --run.step: did you mean --run.steps?",
        "unknown preset 'tiny': choose one of small, large",
        "run.steps is 'x': expected int",
        "run.lr is 'y': expected float",
        "--out missing: `unitok try --help` explains and gives an example",
    ]


def test_checks_of_a_dataclass_join_the_other_problems() -> None:
    assert problems_of(TRAIN, *NEEDED, "--zzz", "--network.channels", "-7", "--run.steps", "x") == [
        "unknown option --zzz: `unitok try --help` lists what there is",
        "run.steps is 'x': expected int",
        "network.channels is -7: choose at least 1",
        "network.channels is -7: choose an even number",
    ]


def test_nothing_wrong_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert problems_of(TRAIN, "--run.steps", "x", "--print_config") == ["run.steps is 'x': expected int"]
    assert capsys.readouterr().out == ""


# --- help ------------------------------------------------------------------------------------------------------------


def test_help_shows_description_types_presets_and_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        read(TRAIN, "--preset", "large", "-h")
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: unitok try [--option VALUE ...]\n\nTrain something.\n\nMore about it.\n")
    assert "Where to write. (required, type: Path)" in text
    assert "Channels of a level. (type: int, default: 128)" in text
    assert "Presets: small, large" in text
    assert text.endswith("Example:\n    unitok try --data pictures/ \\\n        --out there\n")


def test_help_names_the_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read(DRAW, "--help")
    assert capsys.readouterr().out.startswith("usage: unitok try [TEXTS ...] [--option VALUE ...]\n")


def test_the_preset_chooses_the_options_of_its_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from unitok.cli.commands import COMMANDS

    def tokenizer(*words: str) -> Any:
        return parse("train tokenizer", COMMANDS["train tokenizer"], ["--data", "x", "--out", "y", *words])[1][
            "tokenizer"
        ]

    assert tokenizer("--preset", "shapes_query", "--tokenizer.tokens", "8").tokens == 8
    (tmp_path / "a.yaml").write_text("preset: shapes_query\ntokenizer: {depth: 1}")
    config = tokenizer("--config", str(tmp_path / "a.yaml"), "--tokenizer.quantizer", "VQ")
    assert (config.family, config.depth, config.quantizer.kind) == ("query_vq", 1, "vq")
    (tmp_path / "c.yaml").write_text("preset: shapes_query")
    assert tokenizer("--config", str(tmp_path / "c.yaml"), "--preset=shapes", "--tokenizer.stem", "2").stem == 2
    assert tokenizer().family == "conv_vq"
    with pytest.raises(UserError, match=r"unknown option --tokenizer.tokens"):
        tokenizer("--preset", "shapes", "--tokenizer.tokens", "8")
    with pytest.raises(UserError, match=r"unknown key 'tokenizer.scales' in"):
        (tmp_path / "b.yaml").write_text("preset: shapes_query\ntokenizer: {scales: [8]}")
        tokenizer("--config", str(tmp_path / "b.yaml"))
    with pytest.raises(UserError, match=r"tokenizer.tokens is 0: choose 1 or more"):
        tokenizer("--preset", "shapes_query", "--tokenizer.tokens", "0")
    with pytest.raises(SystemExit):
        tokenizer("--preset", "shapes_query", "--help")
    assert "--tokenizer.prefix_dropout" in (shown := capsys.readouterr().out) and "--tokenizer.scales" not in shown
