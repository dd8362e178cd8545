"""`unitok demo`: the whole line on rendered shapes, by the same commands and recipes that a user runs.

Free of torch until it runs, so that help is quick.
"""

from __future__ import annotations

import resource
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tokenizers_vq.errors import UserError, shown
from tokenizers_vq.storage.files import read_json

from ..objectives import OBJECTIVES, objective_class

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
if not RECIPES.is_dir():  # in a checkout they stand at the top level
    RECIPES = RECIPES.parents[1] / "recipes"

DEFAULT = "next_token"
"""The objective of the recipe of all tasks."""
POINTED = "pointed"
"""The recipe where no objective is named: `next_token`, and what is drawn is pointed at first."""
ENCODED = "shapes?task=groundings&limit=24000"
"""What the generator learns from: pictures, captions, and a box for each thing that a caption names."""
CONDITIONS = "shapes?task=condition"
"""What the tokenizer of all tasks learns from: pictures, outlines and label maps."""
LANGUAGE_LR = 0.0005
"""Learning rate of a language model: that of the recipes, for fresh weights, would overwrite what it knows."""
EXAMS = ("edit", "condition", "story", "ground")
"""Records of `shapes` that tasks are measured on, besides captions and questions."""


def demo(
    out: Path = Path("runs/demo"),
    objective: str | None = None,
    tasks: Literal["drawing", "all"] = "drawing",
    trunk: str | None = None,
    pictures: int = 192,
    seed: int = 0,
) -> None:
    """The whole line on rendered shapes: train, draw, caption, measure, report.

    Trains a tokenizer and a generator with the recipes in recipes/shapes, draws held-out captions, captions held-out
    pictures, measures both, and writes report.html and report.json. Needs no data and no network; about ten minutes on
    two CPU cores, and with --tasks all about two hours of one core. After an interruption the same command goes on.

    Args:
        out: Folder for everything.
        objective: How the generator draws, by the recipe of that name: next_token, masked_token, next_scale,
            random_order, maskgit or var; next_scale and var train a tokenizer with several scales for it. Without one:
            next_token, which writes where each thing is to be before it draws.
        tasks: drawing: drawing and captions. all: also questions, edits, boxes, layouts, stories, outlines and label
            maps, by recipes/shapes/tasks.yaml; each is measured by its exact score.
        trunk: A language model that goes on learning in place of the recipe's trunk, hf:NAME as --trunk of
            train generator; slower than the recipe's by its size, and at a lower learning rate.
        pictures: Pictures drawn from held-out captions, and held-out pictures that are captioned; as many of one, two
            and three objects. The first 48 captions are distinct, then those of one object come again.
        seed: Seed of the runs.

    Example:
        unitok demo --objective masked_token --out runs/demo-masked
    """
    started = time.time()
    if objective is not None and objective not in OBJECTIVES:
        raise UserError(f"--objective is {shown(objective)}: choose one of {', '.join(OBJECTIVES)}")
    if pictures < 4:
        raise UserError(f"--pictures is {pictures}: choose 4 or more")
    if trunk is not None:
        _check_trunk(trunk)
    from unitok.eval.reports.output import claim_folder

    claim_folder(out)
    recipes = RECIPES / "shapes"
    tokenizer, codes, generator = out / "tokenizer", out / "codes", out / "generator"
    scales = objective is not None and objective_class(objective).sets_scales
    everything = tasks == "all"
    first = "scales_tokenizer.yaml" if scales else "tasks_tokenizer.yaml" if everything else "tokenizer.yaml"
    seeded = ["--run.seed", seed]
    if everything:
        held_out = ["--val_data", f"{CONDITIONS.replace('shapes', 'shapes@val')}&limit=256"]
        run_step("train tokenizer", ["--config", recipes / first, "--data", CONDITIONS, *held_out, *seeded], tokenizer)
        words: list[object] = ["--config", recipes / "tasks.yaml", *seeded]
        if objective not in (None, DEFAULT):  # which has the settings of the recipe
            words += ["--objective", objective, "--sampling.guidance", "null", "--sampling.top_p", "null"]
    else:
        run_step("train tokenizer", ["--config", recipes / first, *seeded], tokenizer)
        run_step("encode", ["--data", ENCODED, "--image_tokenizer", tokenizer], codes)
        words = ["--config", recipes / f"{objective or POINTED}.yaml", *seeded, "--data", codes]
    if trunk is not None:
        words += ["--trunk", trunk, "--optim.lr", LANGUAGE_LR]
    run_step("train generator", [*words, "--image_tokenizer", tokenizer], generator)
    _measure(out, tokenizer, generator, pictures, seed, started, everything)


def _check_trunk(trunk: str) -> None:
    """Raises UserError for a language model that cannot be read, before minutes are spent on the steps before it."""
    if not trunk.startswith("hf:"):
        raise UserError(f"--trunk is {shown(trunk)}: give a language model, as hf:{trunk}")
    from ..trunk.hf.reading import read_language_model

    read_language_model(trunk)


def run_step(command: str, words: Sequence[object], out: Path) -> None:
    """One command of the line, announced as a user would type it; what is done already is not done again."""
    from .main import run

    argv = [*map(str, words), "--out", str(out)]
    if command.startswith("train") and out.exists():
        argv += ["--resume"]
    print(f"\n$ unitok {command} {shlex.join(argv)}", file=sys.stderr)
    run(command, argv)


def _measure(
    out: Path, tokenizer: Path, generator: Path, pictures: int, seed: int, started: float, everything: bool
) -> None:
    from unitok.eval.captioning import measure_captioning
    from unitok.eval.generation import measure_generation
    from unitok.eval.measure import measure_tokenizer
    from unitok.eval.networks.features import load_image_text
    from unitok.eval.questions import has_questions, measure_questions
    from unitok.eval.report import Report
    from unitok.eval.reports.output import print_report, write_report
    from unitok.eval.tasks import measure_inpainting, measure_task, of_captions, tasks_of

    from ..data.open import open_data
    from ..device import pick_device
    from ..model import UniTok

    device = pick_device("auto")
    model = UniTok.from_pretrained(generator, device)
    held_out = open_data(f"shapes@val?limit={pictures}", model.image_tokenizer.image_size)
    network = load_image_text("embedded", device)
    sections = [
        measure_tokenizer(model.image_tokenizer, held_out, network, limit=pictures),
        measure_generation(model, held_out, network, network, limit=pictures, seed=seed, batch_size=100),
        measure_captioning(model, held_out, network, limit=pictures, batch_size=100),
    ]
    if has_questions(model, held_out):
        sections.append(measure_questions(model, held_out, limit=pictures, batch_size=100))
    for exam in EXAMS if everything else ():
        records = open_data(f"shapes@val?task={exam}&limit={pictures}", model.image_tokenizer.image_size)
        for task in tasks_of(model, records):
            if not of_captions(task):
                section = measure_task(model, task, records, seed=seed, batch_size=100)
                sections += [replace(section, name=f"{task} ({exam})")] if section is not None else []
        filled = measure_inpainting(model, records, seed=seed, batch_size=100)
        sections += [] if filled is None else [filled]
    runs: dict[str, Any] = {path.name: read_json(path / "run.json") for path in (tokenizer, generator)}
    facts = {
        "seconds": round(time.time() - started, 1),
        "seconds_tokenizer": runs["tokenizer"]["seconds"],
        "seconds_generator": runs["generator"]["seconds"],
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "parameters": runs["generator"]["parameters"],
        "objective": model.config.objective,
        "hardware": hardware(runs["generator"]["hardware"]),
    }
    report = Report("unitok demo", sections, facts)
    print_report(report)
    write_report(report, out)
    print(out / "report.html")


def hardware(facts: dict[str, Any]) -> str:
    """
    >>> hardware({"cpu": "AMD EPYC", "cpu_cores": 2, "threads": 1, "gpu": None})
    'AMD EPYC, 2 cores, threads: 1'
    """
    return facts["gpu"] or f"{facts['cpu']}, {facts['cpu_cores']} cores, threads: {facts['threads']}"
