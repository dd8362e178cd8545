"""What `unitok start` chooses, and why: it looks at the pictures, tries a few steps on this machine, plans commands.

Free of torch until it works, so that help is quick.
"""

from __future__ import annotations

import io
import shlex
import statistics
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tokenizers_vq.errors import UserError

from ..config import TasksConfig
from ..data.spec import DataSpec, parse_spec
from .demo import RECIPES

if TYPE_CHECKING:
    from ..data.records import RecordDataset

LOOKED_AT = 200
"""Pictures, spread evenly, whose size and caption are looked at."""
HELD_OUT, LEAST_TO_HOLD_OUT = 10, 40
"""Every so many-th picture is held out where the data have no `val` split; of fewer pictures none."""
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
class Look:
    """What there is."""

    train: DataSpec
    val: DataSpec | None
    """Held-out pictures; None where there are too few."""
    count: int
    """Pictures to learn from."""
    side: int
    """The shorter side of a picture, the median of those looked at."""
    names: int
    """Different captions among the pictures looked at."""
    max_bad: float
    """Share of records that may be left out."""
    notes: list[str]


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


def look(data: str) -> Look:
    """Counts pictures, measures some, and finds what can serve as captions and what can be held out.

    Raises:
        UserError: no such data, endless data, or pictures that neither captions nor folders describe.
    """
    from ..data.open import open_data

    spec = parse_spec(data)
    pictures = open_data(data, captions=False)
    if pictures.endless:
        raise UserError(f"data {data!r} is endless: `unitok demo` trains on it")
    spec, notes, names = _with_captions(spec)
    val = _val_split(spec)
    if val is not None:
        notes.append(f"held out: the data's own split, {val}")
    elif len(pictures) >= LEAST_TO_HOLD_OUT:
        spec, val = spec.having(**{"except": str(HELD_OUT)}), spec.having(every=str(HELD_OUT))
        notes.append(f"held out: every {HELD_OUT}th picture")
    else:
        notes.append(f"nothing is held out, because {len(pictures)} pictures are few: numbers are of what was learned")
    count = len(open_data(str(spec), captions=False))
    captioned = open_data(str(spec), captions=True)
    some = _spread(captioned)
    records = [captioned[index] for index in some]
    whole = [record for record in records if record.image is not None]
    if not whole:
        raise UserError(f"data {data!r}: none of {len(records)} pictures can be used ({records[0].problem})")
    sides = sorted(min(record.image.shape[1:]) for record in whole if record.image is not None)
    broken = len(records) - len(whole)
    if broken:
        why = next(record.problem for record in records if record.problem is not None)
        notes.append(f"left out: {broken} of the {len(records)} pictures that were looked at (the first: it {why})")
    max_bad = min(1.0, round(2 * broken / len(records) + 0.02, 2)) if broken else 0.01
    return Look(spec, val, count, sides[len(sides) // 2], names, max_bad, notes)


def _spread(dataset: RecordDataset) -> list[int]:
    count = min(LOOKED_AT, len(dataset))
    return [number * len(dataset) // count for number in range(count)]


def _with_captions(spec: DataSpec) -> tuple[DataSpec, list[str], int]:
    """(the spec with captions, what to say of them, how many different ones were seen).

    Where there are no captions the folders' names serve.
    """
    from ..data.open import open_data

    chosen, what = spec, "captions: as they are"
    try:
        dataset = open_data(str(spec))
    except UserError as error:
        if "caption" in spec.options:
            raise
        chosen = spec.having(caption="label")
        try:
            dataset = open_data(str(chosen))
        except UserError:
            raise error from None  # data without folders: what it says of captions is the way out
        what = "captions: there are none, so the names of the folders serve"
    captions = [dataset[index].caption for index in _spread(dataset)]
    names = list(dict.fromkeys(caption for caption in captions if caption))
    if chosen is not spec and len(names) == 1:
        what = (
            f"captions: there are none; all pictures are called {names[0]!r}, so the model cannot be told which to draw"
        )
    shown = ", ".join(repr(name[:60]) for name in names[:3])
    return chosen, [f"{what} (such as {shown})" if len(names) > 1 else what], len(names)


def _val_split(spec: DataSpec) -> DataSpec | None:
    """The held-out split of the data, if they have one."""
    from ..data.open import open_data

    if spec.split not in (None, "train") or spec.options.keys() & {"limit", "every", "except"}:
        return None
    val = DataSpec(spec.source, "val", spec.options)
    try:
        open_data(str(val), captions=False)
    except UserError:
        return None
    return val


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
        left = max(0.0, left - trial.beside - found.count * trial.encoding)
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
        length[0] * chosen.tokenizer + length[1] * chosen.generator + found.count * chosen.encoding + chosen.beside
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
    tokenizer, codes, generator = (str(out / part) for part in ("tokenizer", "codes", "generator"))
    # A single name says nothing of a picture: there is nothing to caption, and nothing to guide by.
    single = ["--tasks.image_to_text.share", "0", "--tasks.text_only.share", "0", "--sampling.guidance", "1"]
    of_generator = train_words(level.generator, codes, val, found.max_bad, batch, seed, length[1], parts)
    of_generator += ["--image_tokenizer", tokenizer, "--text_vocabulary", "512" if found.count < 2000 else "2048"]
    commands = [
        (
            "train tokenizer",
            train_words(level.tokenizer, train, val, found.max_bad, batch, seed, length[0], parts),
            tokenizer,
        ),
        ("encode", ["--data", train, "--image_tokenizer", tokenizer, "--max_bad", str(found.max_bad)], codes),
        ("train generator", of_generator + (single if found.names == 1 else []), generator),
    ]
    expected = expectations(found.count, length)
    return Plan(train, val or train, val is not None, found.max_bad, commands, said, expected)


def shown(plan: Plan) -> str:
    """The plan as text: reasons, then commands that can be pasted."""
    lines = [f"unitok {command} {shlex.join([*words, '--out', out])}" for command, words, out in plan.commands]
    return "\n".join([*plan.said, *plan.expected, "", *lines])
