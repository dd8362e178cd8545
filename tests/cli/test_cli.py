"""The command `unitok` itself: help without delay, exit codes, and errors in one line."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml

from tokenizers_vq.errors import UserError
from unitok import __version__
from unitok.cli import arguments
from unitok.cli.commands import COMMANDS
from unitok.cli.main import main
from unitok.data.mixture import Source, slots_of
from unitok.train.tuning.stages import planned

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


PROGRAM = """
import contextlib, io, json, os, sys, time
from unitok.cli.main import main

for line in sys.stdin:
    child = os.fork()
    if not child:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            try:
                code = main(json.loads(line))
            except SystemExit as left:
                code = left.code
        heavy = sorted({"torch", "transformers", "datasets", "torchmetrics", "matplotlib"} & set(sys.modules))
        print(json.dumps([code, said.getvalue(), time.process_time(), heavy]))
        sys.exit()
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def helped() -> dict[str, tuple[int, str, float, list[str]]]:
    """What commands say to --help, each in a process that has imported nothing but `main`: its exit code, its text, its
    seconds of a processor, and the heavy modules that it has imported."""
    names = ["", *COMMANDS]
    asked = "".join(json.dumps([*name.split(), "--help"]) + "\n" for name in names)
    done = subprocess.run([sys.executable, "-c", PROGRAM], input=asked, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(zip(names, map(json.loads, done.stdout.splitlines()), strict=True))


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The error of a command that must fail: nothing on stdout, no traceback."""
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.endswith("\n")
    return err.removeprefix("error: ").rstrip("\n")


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Makes `unitok sample` raise."""

    def fail(**values: object) -> None:
        raise error

    monkeypatch.setattr(arguments, "parse", lambda name, command, argv: (fail, {}))


# --- help ------------------------------------------------------------------------------------------------------------


def test_overview_lists_every_command_at_once(helped: dict[str, tuple[int, str, float, list[str]]]) -> None:
    code, said, seconds, heavy = helped[""]
    assert code == 0
    assert all(f"  {name:<16} {command.summary}" in said for name, command in COMMANDS.items())
    # 0.02 s on an idle machine. The bounds of time are generous, for tests run beside each other.
    assert seconds < 1 and not heavy


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_is_quick_and_ends_with_an_example_that_parses(
    name: str, helped: dict[str, tuple[int, str, float, list[str]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, said, seconds, heavy = helped[name]
    assert code == 0 and seconds < 3 and not heavy  # 0.3 s on an idle machine
    assert f"usage: unitok {name}" in said
    assert "--config" in said and "--print_config" in said
    for option in re.split(r"\n  (?=-)", said)[1:]:
        shape, description = re.split(r"\s{2,}", option, maxsplit=1)
        assert not description.startswith(("(required", "(type")), f"{shape} has no description"
    example = textwrap.dedent(said.split("\nExample:\n")[1]).replace("\\\n", " ")
    monkeypatch.chdir(tmp_path)
    for line in example.strip().splitlines():
        program, *words = shlex.split(line)
        assert program == "unitok" and " ".join(words[: len(name.split())]) == name
        arguments.parse(name, COMMANDS[name], words[len(name.split()) :])


@pytest.mark.parametrize("name", COMMANDS)
def test_printed_configuration_names_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([*name.split(), "--print_config"])
    assert left.value.code == 0
    values = yaml.safe_load(capsys.readouterr().out)
    hints = get_type_hints(arguments.load(COMMANDS[name].function))
    options = [
        option
        for key, kind in hints.items()
        for option in ([item.name for item in fields(kind)] if key == COMMANDS[name].inline else [key])
    ]
    assert list(values) == options[: len(values)]


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*/*.yaml")), ids=lambda path: str(path.relative_to(RECIPES)))
def test_recipes_are_accepted(recipe: Path) -> None:
    """Every value of the file arrives where it is meant to."""
    words = recipe.stem.split("_")
    names = {"tokenizer": "train tokenizer", "compare": "compare", "curves": "compare", "suite": "eval suite"}
    name = next((names[word] for word in words if word in names), "train generator")
    _, values = arguments.parse(name, COMMANDS[name], ["--config", str(recipe)])
    written = yaml.safe_load(recipe.read_text())
    for group, value in written.items():
        if group in ("optim", "run", "sampling"):
            found = {key: getattr(values[group], key) for key in value}
            assert {key: list(one) if isinstance(one, tuple) else one for key, one in found.items()} == value
        elif group == "generators":
            assert [str(path) for path in values[group]] == value
            assert all((RECIPES.parent / path).is_file() for path in value)
        elif group == "data" and isinstance(value, list):
            given = [{key: getattr(one, key) for key in named} for one, named in zip(values[group], value, strict=True)]
            assert given == value
        elif group == "stages":
            assert values[group] == value
            common = {name: value for name, value in values.items() if name != "stages"}
            assert len(planned(common, value)) == len(value), "every value of a stage can be"
        elif not isinstance(value, dict):
            assert str(values[group]) == str(value)


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*/*.yaml")), ids=lambda path: str(path.relative_to(RECIPES)))
def test_every_task_of_a_recipe_has_a_record_in_each_step(recipe: Path) -> None:
    written = yaml.safe_load(recipe.read_text())
    for stage in written.get("stages", [{}]):
        sources = {**written, **stage}.get("data")
        if not isinstance(sources, list) or not any("tasks" in one for one in sources):
            continue
        shares = [one.get("share", 1) for one in sources]
        tasks = [
            {task: whole / sum(shares) * share / sum(one["tasks"].values()) for task, share in one["tasks"].items()}
            for one, whole in zip(sources, shares, strict=True)
        ]
        batch_size = {**written["run"], **stage.get("run", {})}["batch_size"]
        slots = slots_of([Source(1, True, tasks=one) for one in tasks], batch_size)
        for number, one in enumerate(tasks):
            for task, share in one.items():
                count = sum((slot.source, slot.task) == (number, task) for slot in slots)
                assert count and count == pytest.approx(share * len(slots), abs=2), "of its share"
        learned = {task for one in tasks for task in one}
        assert learned <= written["tasks"].keys()
        assert "stages" in written or learned == written["tasks"].keys()


def test_a_name_in_place_of_a_trunk_may_be_a_language_model(tmp_path: Path) -> None:
    name, told = "train generator", "; or hf:gpt9, for a model of others"
    (tmp_path / "a.yaml").write_text("trunk: gpt9")
    for words, message in (
        (["--trunk", "gpt9"], "trunk is 'gpt9': give a YAML file with its options, or single options such as"),
        (["--config", str(tmp_path / "a.yaml")], "a.yaml is 'gpt9': it holds options, trunk.width, "),
    ):
        with pytest.raises(UserError) as caught:
            arguments.parse(name, COMMANDS[name], ["--data", "shapes", "--out", "x", *words])
        assert message in str(caught.value) and str(caught.value).endswith(told)
    with pytest.raises(UserError, match=r"options such as --tokenizer.NAME(\n|$)"):
        arguments.parse("train tokenizer", COMMANDS["train tokenizer"], ["--tokenizer", "x"])


def test_version_and_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"unitok {__version__}\n"
    assert main(["eval"]) == 0
    listed = re.findall(r"^  (eval \w+) ", capsys.readouterr().out, flags=re.MULTILINE)
    assert listed == [name for name in COMMANDS if name.startswith("eval ")]


def test_module_runs_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "unitok", "trian"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: unknown command 'trian': did you mean 'train'? "
        "choose one of train, plan, import, merge, encode, export, push, reconstruct, data, sample, inpaint, extend, "
        "caption, ask, "
        "ground, edit, generate, chat, serve, studio, eval, compare, bench, compare-tokenizers, start, demo\n"
    )


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["train", "generatr"],
            "unknown command 'train generatr': did you mean 'train generator'? choose one of train",
        ),
        (["eval", "--steps", "3"], "unknown command 'eval --steps': choose one of eval tokenizer, eval generator"),
        (["xyz"], "unknown command 'xyz': choose one of train, plan, import, merge, encode"),
        (["sample", "--modle", "x"], "unknown option --modle: did you mean --model?"),
        (["train", "tokenizer", "--preset", "smal"], "unknown preset 'smal': did you mean 'small'?"),
    ],
)
def test_unknown_names(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in told(capsys, *argv)


def test_user_errors_are_one_line_and_bugs_keep_their_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, UserError("data is 'x': give a folder"))
    assert told(capsys, "sample") == "data is 'x': give a folder"
    raising(monkeypatch, ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        main(["sample"])


def test_an_error_keeps_its_lines_whatever_its_values_hold(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, UserError("2 problems:\n  a\nb.png is \x1b[2Jno file\n  " + "x" * 9000))
    first, second, third = told(capsys, "sample").split("\n")
    assert (first, second) == ("2 problems:", r"  a\nb.png is \x1b[2Jno file")
    assert third.startswith("  xxx") and third.endswith("xxx") and len(third) < 1010


def test_interruption_has_its_own_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    raising(monkeypatch, KeyboardInterrupt())
    assert main(["sample"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_request_to_stop_ends_a_command_with_a_line() -> None:
    """What it has forked ends without one. The handler goes with the command."""
    program = """
        import os, signal, time
        from unitok.cli import arguments
        from unitok.cli.main import main

        def work(**values):
            ready, begun = os.pipe()
            child = os.fork()
            if child == 0:
                os.write(begun, b".")
                time.sleep(30)
            os.read(ready, 1)  # Python drops a signal that comes while it forks
            os.kill(child, signal.SIGTERM)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)

        arguments.parse = lambda name, command, argv: (work, {})
        main(["sample"])
    """
    words = [sys.executable, "-c", textwrap.dedent(program)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (143, "stopped by a signal\n")
    before = signal.getsignal(signal.SIGTERM)
    assert main(["--version"]) == 0 and signal.getsignal(signal.SIGTERM) == before


def test_full_disk_is_told_also_when_a_library_wraps_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/model.safetensors")
    raising(monkeypatch, full)
    assert told(capsys, "sample") == (
        "the disk is full while writing 'runs/model.safetensors': free some space and run the same command again"
    )
    raising(monkeypatch, RuntimeError('Error while serializing: I/O error: StorageFull "No space left on device"'))
    assert told(capsys, "sample") == "the disk is full: free some space and run the same command again"
    wrapped = RuntimeError("cannot write the archive")
    wrapped.__cause__ = full
    raising(monkeypatch, wrapped)
    assert told(capsys, "sample").startswith("the disk is full while writing 'runs/model.safetensors'")


def test_real_full_disk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def write(**values: object) -> None:
        with open("/dev/full", "wb") as file:
            file.write(b"x" * 1_000_000)

    monkeypatch.setattr(arguments, "parse", lambda name, command, argv: (write, {}))
    assert told(capsys, "sample") == "the disk is full: free some space and run the same command again"


def test_refused_paths_are_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    raising(monkeypatch, PermissionError(errno.EACCES, "Permission denied", "/locked/run"))
    assert told(capsys, "sample") == (
        "no permission for '/locked/run': choose another folder or change its permissions"
    )


def test_reader_that_leaves_early_ends_quietly() -> None:
    program = f"{shlex.quote(sys.executable)} -m unitok --help | true"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
