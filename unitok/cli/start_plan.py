"""What `unitok start` chooses, and why: it looks at the pictures, tries a few steps on this machine, plans commands.

Free of torch until it works, so that help is quick.
"""

from __future__ import annotations

import io
import json
import shlex
import statistics
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from ..config import TasksConfig
from ..data.spec import DataSpec
from .demo import RECIPES
from .start_look import Look, look

TRIED = 4
"""Steps of a trial; the first one warms up."""
ENCODED = 64
"""Pictures that a trial encodes."""
BATCH = 32
LEAST_STEPS = 600
"""Of tokenizer and generator, below which little is to be expected."""
ROOM = 4
"""A larger level is tried only where the one before leaves so many times the least steps: it costs at least as much."""
TOKENIZER_PASSES, GENERATOR_PASSES = 300, 100
"""Passes over the pictures, after which more of them only learn single pictures by heart."""
COPIES, COPIES_OF_FEW, FEW = 5, 10, 2000
"""Moved copies of each picture, and of each where there are fewer than so many pictures. Without, a generator knows
them by heart after some 20 passes, and draws worse ones from captions that it has not seen."""
MOVED = ", moved"
"""What captions of moved copies end in, so that what is drawn from others is not moved."""
FURTHEST = 0.08
"""How far copies are moved, as a share of their side."""
TOKENIZER_SHARE = 0.4
"""Of the time for training; the rest is the generator's."""
KEPT_BACK = 0.1
"""Share of the budget for what the trial did not see."""
REPORT = 2
"""What a report costs, as so many times all that a training of the generator does beside its steps."""
FEWEST_STEPS = 20
"""Trained whatever the budget says."""
MEASURED = 64
"""Held-out pictures that an evaluation during training looks at."""
LONG = 20
"""Minutes from which training also evaluates and draws on its way."""


@dataclass(frozen=True)
class Level:
    """A size of pictures with the tokenizer and the generator that are proven for it."""

    side: int
    tokenizer: tuple[str, ...]
    """Options of `train tokenizer`."""
    generator: tuple[str, ...]
    """Options of `train generator`."""


def _recipe(name: str) -> tuple[str, ...]:
    return ("--config", str(RECIPES / name))


LEVELS = (
    Level(32, _recipe("shapes/tokenizer.yaml"), _recipe("shapes/next_token.yaml")),
    Level(64, _recipe("emoji/tokenizer.yaml"), _recipe("emoji/generator.yaml")),
    Level(
        128,
        ("--preset", "small", "--losses.l1", "0.5", "--augment.flip", "0.5"),
        (
            "--preset",
            "small",
            "--trunk.dropout",
            "0.1",
            "--optim.muon",
            "true",
            "--objective_settings.code_dropout",
            "0.6",
        ),
    ),
)
"""Small to large."""


@dataclass(frozen=True)
class Trial:
    """What a few steps of a level cost on this machine, in seconds."""

    level: Level
    tokenizer: float
    """A step."""
    encoding: float
    """A picture."""
    generator: float
    """A step."""
    beside: float
    """All that the commands and the report do beside steps and encoding."""


@dataclass(frozen=True)
class Plan:
    """Commands in their order, and what is said of them."""

    train: str
    val: str
    """What is measured: held-out pictures, or the pictures that were learned from."""
    held_out: bool
    max_bad: float
    commands: list[tuple[str, list[str], str]]
    """(command, options, output folder)."""
    said: list[str]
    expected: list[str]
    """What can be expected, where that is little."""


def try_level(level: Level, found: Look, batch: int, seed: int) -> Trial:
    """Runs a few steps of the very commands that are planned, in a folder that is removed again."""
    from .main import run

    with TemporaryDirectory() as name, redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        folder = Path(name)
        few, val = str(_first(found, ENCODED)), None if found.val is None else str(found.val)
        tokenizer = ["--image_tokenizer", str(folder / "tokenizer")]

        def seconds(command: str, words: list[str], out: str) -> tuple[float, float]:
            """(of a step, of all else)"""
            started = time.perf_counter()
            run(command, [*words, "--run.log_every", "1", "--out", str(folder / out)])
            step = _seconds_per_step(folder / out / "log.jsonl")
            return step, max(0.0, time.perf_counter() - started - TRIED * step)

        words = train_words(level.tokenizer, few, val, 1.0, batch, seed, TRIED)
        step_of_tokenizer, beside_tokenizer = seconds("train tokenizer", words, "tokenizer")
        times = []
        for count in (1, 2, ENCODED):  # the first is slow to start, the others differ by what pictures cost
            started = time.perf_counter()
            words = ["--data", str(_first(found, count)), *tokenizer, "--max_bad", "1"]
            run("encode", [*words, "--out", str(folder / f"codes{count}")])
            times.append(time.perf_counter() - started)
        encoding = max(0.0, times[2] - times[1]) / max(1, min(ENCODED, found.count) - 2)
        words = train_words(level.generator, str(folder / f"codes{ENCODED}"), val, 1.0, batch, seed, TRIED)
        step_of_generator, beside_generator = seconds("train generator", [*words, *tokenizer], "generator")
    beside = beside_tokenizer + times[0] + (1 + REPORT) * beside_generator
    return Trial(level, step_of_tokenizer, encoding, step_of_generator, beside)


def _first(found: Look, count: int) -> DataSpec:
    return found.train.having(limit=str(min(count, found.count)))


def _seconds_per_step(log: Path) -> float:
    """The median over the steps behind the first."""
    from unitok.train.log import read_log

    times = [entry["time"] for entry in read_log(log) if entry["kind"] == "train"]
    return max(1e-4, statistics.median(later - earlier for earlier, later in pairwise(times)))


def train_words(
    options: Sequence[str],
    data: str,
    val: str | None,
    max_bad: float,
    batch: int,
    seed: int,
    steps: int,
    parts: int = 0,
) -> list[str]:
    """Options of a training that evaluates and draws at the end and at so many parts of its way."""
    every = steps // parts if parts else 0
    words = [*options, "--data", data, "--val_data", val or "null", "--run.batch_size", str(batch)]
    words += ["--run.seed", str(seed), "--run.max_bad", str(max_bad), "--run.eval_pictures", str(MEASURED)]
    words += ["--run.steps", str(steps), "--optim.warmup_steps", str(min(100, steps // 10))]
    words += ["--run.log_every", str(max(1, min(20, steps // 20))), "--run.save_every", str(max(10, steps // 8))]
    return [*words, "--run.eval_every", str(every), "--run.sample_every", str(every)]


def make_plan(data: str, out: Path, minutes: float, seed: int) -> Plan:
    """Looks, tries and plans.

    Raises:
        UserError: see `look`.
    """
    started = time.perf_counter()
    found = look(data)
    tasks = len(TasksConfig().shares())  # each has a slot in every batch
    batch = min(BATCH, max(tasks, found.count // 4))
    # Small to large, and no larger than the pictures are.
    fitting = [level for level in LEVELS if level.side <= max(found.side, LEVELS[0].side)]
    chosen, length, why = None, (0, 0), ""
    for level in fitting:
        trial = try_level(level, found, batch, seed)
        left = 60 * minutes * (1 - KEPT_BACK) - (time.perf_counter() - started)
        left = max(0.0, left - trial.beside - encoded(found) * trial.encoding)
        room = min(TOKENIZER_SHARE * left / trial.tokenizer, (1 - TOKENIZER_SHARE) * left / trial.generator)
        if chosen is not None and room < LEAST_STEPS:
            why = f"{level.side} would leave too few steps of learning"
            break
        chosen, length, why = trial, lengths(trial, found.count, batch, left), "the largest that fits the pictures"
        if room < ROOM * LEAST_STEPS and level is not fitting[-1]:
            why = "more would leave too few steps of learning"
            break
    assert chosen is not None
    seconds = (
        length[0] * chosen.tokenizer + length[1] * chosen.generator + encoded(found) * chosen.encoding + chosen.beside
    )
    said = [
        f"pictures: {found.count:,} to learn from, their shorter side about {found.side} pixels",
        *found.notes,
        f"size: {chosen.level.side} pixels, {why}",
        f"measured on this machine, in batches of {batch}: {chosen.tokenizer:.2f} s for a step of the tokenizer, "
        f"{chosen.generator:.2f} s of the generator, {1000 * chosen.encoding:.0f} ms to encode a picture, "
        f"{chosen.beside:.0f} s for all else",
        f"length: {length[0]:,} steps of the tokenizer, {length[1]:,} of the generator, about {seconds / 60:.1f} of "
        f"{minutes:g} minutes; at most {TOKENIZER_PASSES} and {GENERATOR_PASSES} passes over the pictures, for more "
        "would only learn them by heart",
    ]
    if found.movable:
        said.append(
            f"copies: {copies(found)} of each picture, mirrored, moved and cropped, for half of what the generator "
            f"sees; their captions end in {MOVED!r}, so what is drawn is not moved"
        )
    if seconds > 60 * minutes:
        said.append(f"{minutes:g} minutes are too short for this machine: it will take longer")
    return _planned(found, chosen.level, length, batch, seed, out, said, 4 if minutes >= LONG else 0)


def lengths(trial: Trial, count: int, batch: int, seconds: float) -> tuple[int, int]:
    """Steps of tokenizer and generator in this time, none more than is useful for so many pictures. What one of them
    leaves goes to the other."""
    most = [passes * count // batch for passes in (TOKENIZER_PASSES, GENERATOR_PASSES)]
    tokenizer = min(TOKENIZER_SHARE * seconds / trial.tokenizer, most[0])
    generator = min((seconds - tokenizer * trial.tokenizer) / trial.generator, most[1])
    tokenizer = min((seconds - generator * trial.generator) / trial.tokenizer, most[0])
    return max(FEWEST_STEPS, int(tokenizer)), max(FEWEST_STEPS, int(generator))


def copies(found: Look) -> int:
    """Moved copies of each picture."""
    return (COPIES_OF_FEW if found.count < FEW else COPIES) if found.movable else 0


def encoded(found: Look) -> int:
    """Pictures that are encoded: those that there are, and their copies."""
    return found.count * (1 + copies(found))


def expectations(count: int, length: Sequence[int]) -> list[str]:
    """What can be expected of so many pictures and steps, where that is little."""
    said = []
    if count < 100:
        said.append(
            f"expect little: {count} pictures are too few to learn what such pictures have in common; the model will "
            "know these by heart, and new ones will be mixtures of them"
        )
    elif count < 1000:
        said.append(
            f"expect rough pictures: {count} are few, and what occurs in only some of them is learned by heart, or not "
            "at all"
        )
    if min(length) < LEAST_STEPS:
        said.append(
            f"expect blurred pictures: below {LEAST_STEPS} steps tokenizer and generator have only begun; more minutes "
            "help, or more pictures where these limit the steps"
        )
    return said


def _planned(
    found: Look, level: Level, length: Sequence[int], batch: int, seed: int, out: Path, said: list[str], parts: int
) -> Plan:
    train, val = str(found.train), str(found.val) if found.val is not None else None
    tokenizer, codes, moved, generator = (str(out / part) for part in ("tokenizer", "codes", "moved", "generator"))
    # A single name says nothing of a picture: there is nothing to caption, and nothing to guide by.
    single = ["--tasks.image_to_text.share", "0", "--tasks.text_only.share", "0", "--sampling.guidance", "1"]
    learned = json.dumps([{"data": one, "share": 0.5} for one in (codes, moved)]) if found.movable else codes
    of_generator = train_words(level.generator, learned, val, found.max_bad, batch, seed, length[1], parts)
    of_generator += ["--image_tokenizer", tokenizer, "--text_vocabulary", "512" if found.count < 2000 else "2048"]
    encode = ["--data", train, "--image_tokenizer", tokenizer, "--max_bad", str(found.max_bad)]
    change = ["--augment.flip", "0.5", "--augment.shift", str(round(FURTHEST * level.side)), "--augment.crop", "0.85"]
    change += ["--copies", str(copies(found)), "--caption_suffix", MOVED]
    commands = [
        (
            "train tokenizer",
            train_words(level.tokenizer, train, val, found.max_bad, batch, seed, length[0], parts),
            tokenizer,
        ),
        ("encode", encode, codes),
        *([("encode", [*encode, *change], moved)] if found.movable else []),
        ("train generator", of_generator + (single if found.names == 1 else []), generator),
    ]
    expected = expectations(found.count, length)
    return Plan(train, val or train, val is not None, found.max_bad, commands, said, expected)


def shown(plan: Plan) -> str:
    """The plan as text: reasons, then commands that can be pasted."""
    lines = [f"unitok {command} {shlex.join([*words, '--out', out])}" for command, words, out in plan.commands]
    return "\n".join([*plan.said, *plan.expected, "", *lines])
