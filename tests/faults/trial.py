"""What all kinds of cases share: the server that runs commands, and folders made once by the commands themselves."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]
CAPTIONS = ("a small red circle", "a large blue square", "a small green triangle")
SMALL = ["--run.device", "cpu", "--run.precision", "fp32", "--run.threads", "1", "--run.log_every", "1"]
SMALL += ["--run.eval_every", "0", "--run.sample_every", "0", "--run.batch_size", "4", "--preset", "debug"]

ENVIRONMENT = {
    "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
    # A name of the hub would be asked for again and again, for half a minute.
    "HF_HUB_OFFLINE": "1",
}

Answer = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One thing that is tried. `run` gets a folder of its own and returns what fell; nothing means that it held."""

    name: str
    run: Callable[[Path], list[str]]
    row: str = ""
    """The command, and what happens to it where the kind tries several things: a row of the table."""


def drawn(cases: list[Case], draw: random.Random, share: float) -> list[Case]:
    """A share of the cases, in their order; at least one."""
    chosen = sorted(draw.sample(range(len(cases)), max(1, round(share * len(cases)))))
    return [cases[number] for number in chosen]


class Trial:
    """The server, and `base`: a folder with pictures, a tokenizer, codes, a generator: what cases start from."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.base = scratch / "base"
        self.base.mkdir(parents=True)
        (scratch / "server").mkdir()
        self._log = (scratch / "server.log").open("w")
        self._server = subprocess.Popen(
            [sys.executable, "-m", "faults.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT},
        )
        assert self._server.stdout is not None and self._server.stdout.readline() == "ready\n", "see server.log"

    def close(self) -> None:
        self._server.kill()
        self._server.wait()
        self._log.close()

    def run(self, words: list[str], cwd: Path, **request: Any) -> Answer:
        """Runs one command in a process of its own. `words` are those after `unitok`; see server.py for the rest."""
        cwd.mkdir(parents=True, exist_ok=True)
        full = {"words": words, "cwd": str(cwd), "scratch": str(self.scratch / "server"), **request}
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(full) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def prepare(self) -> None:
        """Makes what the cases start from, by the commands themselves."""
        make_pictures(self.base / "pictures", 10)
        for name, words in (
            ("tokenizer", self.train_tokenizer(4)),
            ("codes", self.encode()),
            ("generator", self.train_generator(4)),
            ("samples", self.sample()),
        ):
            answer = self.run([*words, "--out", self.place(name)], self.base)
            assert answer["code"] == 0, (name, answer["stderr"])
        words = ["eval", "statistics", self.place("pictures"), "--out", self.place("statistics.npz")]
        assert self.run(words, self.base)["code"] == 0

    def place(self, name: str) -> str:
        return str(self.base / name)

    def with_tokenizer(self) -> list[str]:
        return ["--image_tokenizer", self.place("tokenizer")]

    def train_tokenizer(self, steps: int) -> list[str]:
        words = ["train", "tokenizer", "--data", self.place("pictures"), "--run.save_every", "2", *SMALL]
        return [*words, "--run.steps", str(steps)]

    def train_generator(self, steps: int, data: str | None = None, tokenizer: str | None = None) -> list[str]:
        words = ["train", "generator", "--data", data or self.place("codes"), "--run.save_every", "2", *SMALL]
        words += ["--text_vocabulary", "260", "--image_tokenizer", tokenizer or self.place("tokenizer")]
        return [*words, "--run.steps", str(steps)]

    def encode(self, shard_size: int = 4) -> list[str]:
        return ["encode", "--data", self.place("pictures"), *self.with_tokenizer(), "--shard_size", str(shard_size)]

    def suite(self) -> list[str]:
        words = ["eval", "suite", "--model", self.place("generator"), "--data", self.place("pictures")]
        return [*words, "--seeds", "1", "--guidances", "[1, 2]"]

    def sample(self, model: str | None = None) -> list[str]:
        return ["sample", *CAPTIONS[:2], "--model", model or self.place("generator"), "--n", "2", "--batch_size", "3"]


def make_pictures(folder: Path, count: int) -> None:
    """Small captioned pictures, no two alike."""
    folder.mkdir(parents=True)
    draw = random.Random(0)
    for index in range(count):
        picture = Image.new("RGB", (32, 32), "white")
        left, top = draw.randrange(4, 12), draw.randrange(4, 12)
        shape = (left, top, left + 12, top + 12)
        colour = tuple(draw.randrange(200) for _ in range(3))
        pen = ImageDraw.Draw(picture)
        (pen.ellipse if index % 2 else pen.rectangle)(shape, fill=colour)
        picture.save(folder / f"{index:02}.png")
        (folder / f"{index:02}.txt").write_text(CAPTIONS[index % len(CAPTIONS)])


def copy(source: Path, target: Path) -> Path:
    """A copy of a file or a folder, to be spoilt."""
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path((shutil.copytree if source.is_dir() else shutil.copy2)(source, target))
