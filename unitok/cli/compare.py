"""`unitok compare`: objectives side by side, each trained with the same compute and drawn in the same way.

Free of torch until it runs, so that help is quick.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers_vq.errors import Problems, UserError, shown
from tokenizers_vq.storage.files import read_json

if TYPE_CHECKING:
    from unitok.eval.report import Number, Section
    from unitok.model import UniTok
    from unitok.sampling import SampleSettings

COUNTED = 500
"""Captions whose length is looked at, to tell how long a picture's sequence is."""
QUALITY = {"scene_accuracy": "whole scene right, %", "fid": "FID (see the label in the table)"}
"""The numbers that are plotted."""


def compare(
    generators: list[Path],
    val_data: str,
    out: Path = Path("runs/compare"),
    positions: int | list[int] = 4_000_000,
    sweep: dict[str, list[Any]] | None = None,
    limit: int = 200,
    batch_size: int = 50,
    seed: int = 0,
) -> None:
    """Train generators with the same compute, draw the same captions with each, and plot quality against time.

    Each generator is a configuration of `unitok train generator`, or a trained model. All configurations must have the
    same trunk; they may differ in objective, image tokenizer, batch and what else the objective needs. Compute is
    counted in sequence positions: a configuration with longer sequences or larger batches takes fewer steps. Writes
    report.json, report.html and compare.png. With several numbers of positions each generator is trained once for each
    of them, and training.png shows what longer training brings. After an interruption the same command goes on.

    Args:
        generators: YAML files of unitok train generator, named by their files, and folders of trained models.
        val_data: Captions to draw, with the pictures to compare with, such as shapes@val.
        out: Folder for the models and the report.
        positions: Sequence positions that each generator is trained on, or a list of such numbers.
        sweep: Setting of drawing -> values to draw with, such as {"best_of": [1, 4], "guidance": [1, 2, 3]}. One
            setting is changed at a time, all others are the model's own. `steps` is for masked_token and maskgit
            alone; default: {"steps": [8, 16, 32]}.
        limit: Captions drawn, and pictures captioned, by each.
        batch_size: Pictures drawn at a time when quality and time are measured; time is also measured one by one.
        seed: The i-th picture is drawn with seed + i.

    Example:
        unitok compare --generators "[next_token.yaml, next_scale.yaml]" --val_data pictures/@val --out runs/compare
        unitok compare --generators "[runs/generator]" --val_data pictures/@val --sweep '{"best_of": [1, 4, 16]}'
    """
    from unitok.sampling import SampleSettings

    problems = Problems()
    least = 1 if sweep else 2
    problems.check(
        len(generators) >= least,
        f"--generators has {len(generators)}: give two or more to compare, or --sweep for one",
    )
    known = [one.name for one in fields(SampleSettings)]
    for setting, values in (sweep or {}).items():
        problems.check(setting in known, f"--sweep has {shown(setting)}: choose of {', '.join(known)}")
        problems.check(bool(values), f"--sweep has no value for {shown(setting)}: give one or more")
    lengths = sorted({positions} if isinstance(positions, int) else set(positions))
    problems.check(bool(lengths), "--positions has no number: give one or more")
    for name, value in (*(("positions", one) for one in lengths), ("limit", limit), ("batch_size", batch_size)):
        problems.check(value >= 1, f"--{name} is {value}: choose 1 or more")
    for path in generators:
        problems.check(path.is_file() or path.is_dir(), f"--generators {path} is not a file, nor a folder of a model")
    configs = [path for path in generators if path.is_file()]
    names = [path.stem for path in configs]
    problems.check(len(set(names)) == len(names), f"--generators are called {', '.join(names)}: give each its own name")
    problems.raise_if_any()

    from unitok.eval.reports.output import claim_folder

    started = time.time()
    claim_folder(out)
    plans = [
        _plan(path, out / (path.stem if len(lengths) == 1 else f"{path.stem}_{length}"), length)
        for path in configs
        for length in lengths
    ]
    _check_alike(plans)
    for plan in plans:
        _train(plan)
    compared = [Compared(plan.config.stem, plan.folder.name, plan.folder, plan) for plan in plans]
    compared += [Compared(str(path), str(path), path) for path in generators if path not in configs]
    sweep = sweep or {"steps": [8, 16, 32]}
    rows = [row for one in compared for row in _measure(one, val_data, sweep, limit, batch_size, seed)]
    _report(rows, compared, out, time.time() - started)


@dataclass(frozen=True)
class Plan:
    """A generator to train."""

    config: Path
    folder: Path
    positions: int
    values: dict[str, Any]
    """Arguments of `train_generator`, as the file says."""
    length: float
    """Mean positions of a picture's sequence."""
    steps: int


@dataclass(frozen=True)
class Compared:
    """A trained generator."""

    stem: str
    """By which it is known, whatever it was trained on."""
    name: str
    folder: Path
    plan: Plan | None = None
    """None: it was trained before."""


@dataclass(frozen=True)
class Row:
    """One way to draw with one generator."""

    of: Compared
    setting: str
    """What is changed, and its value; empty: nothing is."""
    value: str
    seconds: float
    """Per picture, in a batch."""
    alone: float
    """Per picture, one by one."""
    section: Section


def _words(config: Path, folder: Path, steps: int | None = None) -> list[str]:
    words = ["--config", str(config), "--out", str(folder)]
    if steps is not None:
        words += ["--run.steps", str(steps)]
    return words + (["--resume"] if folder.exists() else [])


def _plan(config: Path, folder: Path, positions: int) -> Plan:
    """Reads a configuration and counts how many steps the compute allows."""
    from tokenizers_vq.base import load_tokenizer
    from unitok.modalities import TEXTS
    from unitok.tasks import Piece, needs, pieces
    from unitok.text import load_text_tokenizer, train_bpe
    from unitok.train.data import open_sources

    from .arguments import parse
    from .commands import COMMANDS

    _, values = parse("train generator", COMMANDS["train generator"], _words(config, folder))
    images = load_tokenizer(values["image_tokenizer"])
    images.check_pixels()
    dataset = open_sources(values["data"], values["tasks"], images.image_size)
    rows: list[tuple[float, list[list[Piece]]]] = []
    for part, source in zip(dataset.parts, dataset.sources, strict=True):
        records = [part[index] for index in range(min(COUNTED, len(part)))]
        known = [{"caption": one.caption, "image": 0, **one.fields} for one in records if one.problem is None]
        for task, share in source.tasks.items():
            able = [one for one in known if all(one.get(field) is not None for field in needs([task]))]
            if not able:
                raise UserError(f"{part.name}: none of the first {COUNTED} records has what the task {task} needs")
            rows.append((share, [pieces(task, one) for one in able]))
    if values["text_tokenizer"] is None:
        said = dict.fromkeys(p.value for _, some in rows for one in some for p in one if p.modality in TEXTS)
        texts = train_bpe(said, values["text_vocabulary"])
    else:
        texts = load_text_tokenizer(values["text_tokenizer"])
    sizes = {"image": lambda _: images.layout.length, **dict.fromkeys(TEXTS, lambda text: 1 + len(texts.encode(text)))}
    length = sum(
        share * sum(sizes.get(piece.modality, len)(piece.value) for one in some for piece in one) / len(some)
        for share, some in rows
    ) / sum(share for share, _ in rows)
    return Plan(config, folder, positions, values, length, max(1, round(positions / length / values["run"].batch_size)))


def _check_alike(plans: list[Plan]) -> None:
    problems = Problems()
    for plan in plans[1:]:
        first = plans[0]
        pair = f"{first.config} and {plan.config}"
        problems.check(plan.values["trunk"] == first.values["trunk"], f"{pair} differ in trunk: compare the same trunk")
    problems.raise_if_any()


def _train(plan: Plan) -> None:
    from .main import run

    words = _words(plan.config, plan.folder, plan.steps)
    print(f"\n$ unitok train generator {' '.join(words)}", file=sys.stderr)
    run("train generator", words)


def _measure(
    one: Compared, val_data: str, sweep: dict[str, list[Any]], limit: int, batch_size: int, seed: int
) -> list[Row]:
    """A row for each way to draw. The first says how many of the data's pictures are captioned exactly."""
    from unitok.eval.captioning import measure_captioning
    from unitok.eval.generation import measure_generation
    from unitok.eval.networks.features import load_image_text

    from ..data.open import open_data
    from ..device import pick_device
    from ..model import UniTok

    device = pick_device("auto")
    model = UniTok.from_pretrained(one.folder, device)
    network = load_image_text("embedded", device)
    dataset = open_data(val_data, model.image_tokenizer.image_size)
    rows = []
    for setting, value, way in _ways(model, sweep):
        section = measure_generation(
            model, dataset, network, network, settings=way, seed=seed, limit=limit, batch_size=batch_size
        )
        section.name = f"{one.name}, {setting} {value}" if setting else one.name
        section.title = section.name + (f" ({one.plan.steps} steps of training)" if one.plan else "")
        seconds, alone = _seconds(model, way, batch_size), _seconds(model, way, 1)
        rows.append(Row(one, setting, value, seconds, alone, section))
    if "image_to_text" in model.config.tasks:
        captions = measure_captioning(model, dataset, limit=limit, batch_size=batch_size)
        rows[0].section.numbers["exact_captions"] = captions.numbers["exact"]
    return rows


def _ways(model: UniTok, sweep: dict[str, list[Any]]) -> list[tuple[str, str, SampleSettings]]:
    """(setting that is changed, its value, all settings) of each way to draw; the model's own if nothing is changed.

    Raises:
        UserError: a value out of range, or a setting that the model does not take.
    """
    from unitok.sample.pipeline import settings_for

    changed = {name: values for name, values in sweep.items() if name != "steps" or model.objective.passes}
    ways = [(name, str(value), settings_for(model, {name: value})) for name, some in changed.items() for value in some]
    return ways or [("", "", settings_for(model))]


def _seconds(model: UniTok, settings: SampleSettings, batch_size: int) -> float:
    """Seconds per picture, the best of three batches."""
    from unitok.sample.pipeline import draw

    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        draw(model, [""] * batch_size, settings, batch_size=batch_size)
        best = min(best, time.perf_counter() - start)
    return best / batch_size


def _report(rows: list[Row], compared: list[Compared], out: Path, seconds: float) -> None:
    import torch

    from unitok.eval.report import Figure, Item, Number, Report
    from unitok.eval.reports.output import print_report, write_report
    from unitok.train.folder import environment

    from ..data.decoding import decode

    for row in rows:
        row.section.numbers["seconds"] = Number(f"Seconds per picture, {torch.get_num_threads()} threads", row.seconds)
        row.section.numbers["seconds_alone"] = Number("Seconds per picture, one by one", row.alone)
    plans = [one.plan for one in compared if one.plan]
    lengths = sorted({plan.positions for plan in plans})
    last = [row for row in rows if row.of.plan is None or row.of.plan.positions == lengths[-1]]
    _plot(last, out / "compare.png")
    said = {"compare.png": "Quality against time to draw: up and left is better, for FID down and left"}
    if len(lengths) > 1:
        _plot_training(rows, out / "training.png")
        said["training.png"] = "Quality against training, each generator as it was drawn last"
    pictures = [Item([decode((out / name).read_bytes())], text) for name, text in said.items()]
    rows[0].section.figures.insert(0, Figure("Comparison", pictures))
    facts: dict[str, Any] = {"seconds": round(seconds, 1), "hardware": json.dumps(environment()["hardware"])}
    if lengths:
        facts["positions"] = ", ".join(map(str, lengths))
    for plan in plans:
        name, run = plan.folder.name, read_json(plan.folder / "run.json")
        facts |= {f"steps_{name}": plan.steps, f"training_seconds_{name}": run["seconds"]}
    report = Report("unitok compare", [row.section for row in rows], facts)
    print_report(report)
    write_report(report, out)
    print(out / "report.html")


Curves = dict[str, list[tuple[float, float, str]]]
"""Name -> points, each with what is written beside it."""


def _plot(rows: list[Row], path: Path) -> None:
    shown = {key: label for key, label in QUALITY.items() if all(key in row.section.numbers for row in rows)}
    settings = {row.setting for row in rows if row.setting}
    panels: dict[str, Curves] = {label: {} for label in shown.values()}
    for key, label in shown.items():
        for row in rows:
            name = f"{row.of.stem}, {row.setting}" if len(settings) > 1 and row.setting else row.of.stem
            point = row.seconds, _value(row.section.numbers[key]), row.value
            panels[label].setdefault(name, []).append(point)
    _save_curves(panels, "seconds per picture, in a batch", path)


def _plot_training(rows: list[Row], path: Path) -> None:
    """Each generator that was trained here by its last way to draw; captions stand with its first."""
    panels: dict[str, Curves] = {}
    for key, label in {**QUALITY, "exact_captions": "exact captions, %"}.items():
        points = {
            (row.of.stem, row.of.plan.positions): _value(row.section.numbers[key])
            for row in rows
            if key in row.section.numbers and row.of.plan
        }
        for (name, positions), value in points.items():
            panels.setdefault(label, {}).setdefault(name, []).append((positions / 1e6, value, ""))
    _save_curves(panels, "millions of positions trained on", path)


def _save_curves(panels: dict[str, Curves], along: str, path: Path) -> None:
    """A panel for each label, side by side, with a curve for each name; the axis `along` is logarithmic."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    from tokenizers_vq.storage.files import atomic_path

    figure = Figure(figsize=(6 * len(panels), 4.5), dpi=100)
    for place, (label, curves) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), place + 1)
        for name, points in curves.items():
            axes.plot(*zip(*(point[:2] for point in points), strict=True), "o-", label=name)
            for along_at, up_at, text in points:
                axes.annotate(text, (along_at, up_at), (4, 4), textcoords="offset points", fontsize="small")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.set_xlabel(along)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight")


def _value(number: Number) -> float:
    assert isinstance(number.value, float)
    return 100 * number.value if number.unit == "%" else number.value
