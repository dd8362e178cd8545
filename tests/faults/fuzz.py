"""Fuzz: every option of every command by its type, with values that nobody means; and YAML files."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from . import judge
from .trial import Case, Trial

NASTY = (
    "nan", "inf", "-1", "0", "1e308", "1" * 30, "", "x" * 5000, "[", "[" * 3000, "{", "[1,2]", "{'a': 1}", "/dev/zero",
    "/", "/dev/null/x", "\udcff", "!!python/object:x {}", "1.5", "*a", "&a [*a]", "2024-13-45",
)  # fmt: skip
YAML = {
    "aliases": "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
    ),
    "brackets": "data: " + "[" * 20_000,
    "date": "data: 2024-13-45\n",
    "tag": "data: !!int abc\n",
    "digits": "text_length: " + "9" * 5000 + "\n",
    "python": "data: !!python/object/apply:os.system [ls]\n",
    "unknown keys": "".join(f"key{i}: {i}\n" for i in range(20_000)),
    "huge": "data: " + "x" * 2**21,
    "number": "3\n",
    "zero byte": "data: a\0b\n",
    "tab": "data:\n\tx: 1\n",
    "twice": "data: a\ndata: b\n",
}  # fmt: skip
SECONDS = 20
"""Of processor time, in which nonsense is refused."""


def minimal(trial: Trial) -> dict[str, list[str]]:
    """A small right call of every command, so that one wrong option is all that is wrong."""
    model, tokenizer, data = trial.place("generator"), trial.place("tokenizer"), trial.place("pictures")
    out = ["--out", "out"]
    return {
        "train tokenizer": [*trial.train_tokenizer(1)[2:], *out],
        "train generator": [*trial.train_generator(1)[2:], *out],
        "import": ["llamagen_vq", "nowhere.pt", *out],
        "data check": [data, *out],
        "encode": ["--data", data, "--image_tokenizer", tokenizer, *out],
        "sample": [*trial.sample()[1:], *out],
        "caption": [f"{data}/00.png", "--model", model],
        "eval tokenizer": ["--tokenizer", tokenizer, "--data", data, *out],
        "eval generator": ["--model", model, "--data", data, *out],
        "eval suite": ["--model", model, "--data", data, *out],
        "eval fid": [data, data],
        "eval statistics": [data, "--out", "out.npz"],
        "eval retrieval": [data, data],
        "eval clipscore": [data],
        "eval text": [f"{data}/00.txt", "--model", model],
        "eval compare": ["one", "two"],
        "compare": ["--generators", "[a.yaml, b.yaml]", "--val_data", data, *out],
        "compare-tokenizers": [tokenizer, "--data", data, *out],
    }


def options_of(*names: str) -> list[list[str]]:
    """Runs in the server's child."""
    from unitok.cli.arguments import _CommandLine
    from unitok.cli.commands import COMMANDS

    return [sorted(_CommandLine(name, COMMANDS[name], []).types) for name in names]


def cases(trial: Trial, draw: random.Random, share: float = 1.0) -> Iterator[Case]:
    """`share` of about 1,200 options and values, at least one of each command, and of the YAML files."""
    calls = minimal(trial)
    options = trial.run([*calls], trial.scratch / "options", call="faults.fuzz:options_of")["result"]
    tried = share * 1200 / sum(map(len, options))  # of each option
    for command, names in zip(calls, options, strict=True):
        pairs = [(option, value) for option in names for value in NASTY]
        for option, value in draw.sample(pairs, max(1, round(tried * len(names)))):
            words = [*command.split(), *calls[command], f"--{option}={value}"]
            yield Case(f"fuzz {command} --{option}={value[:20]!r}", partial(_case, trial, words))
    for name in draw.sample(sorted(YAML), max(3, round(share * len(YAML)))):
        yield Case(f"fuzz YAML {name}", partial(_yaml, trial, YAML[name]))


def _case(trial: Trial, words: list[str], folder: Path) -> list[str]:
    answer = trial.run(words, folder, allowed=[str(folder)], timeout=SECONDS)
    return judge.ended(answer)


def _yaml(trial: Trial, text: str, folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(text)
    words = ["train", "tokenizer", "--config", "config.yaml", "--out", "out"]
    answer = trial.run(words, folder, allowed=[str(folder)], timeout=SECONDS)
    return judge.ended(answer, codes=(2,))
