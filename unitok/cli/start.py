"""`unitok start`: from a folder of pictures to a model and a report, by ordinary commands that it chooses itself.

Free of torch until it runs, so that help is quick.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers_vq.errors import UserError
from tokenizers_vq.storage.files import read_json, write_json
from tokenizers_vq.storage.schema import read_dataclass

from .demo import hardware, run_step
from .start_plan import Plan, make_plan, shown

if TYPE_CHECKING:
    from unitok.eval.feature_network import FeatureNetwork
    from unitok.eval.report import Figure

PLAN_FILE = "plan.json"
DRAWN = 48
"""Pictures that the report draws, at most."""
MEASURED = 500
"""Pictures that the report measures the tokenizer with, at most."""


def start(data: str, out: Path = Path("runs/start"), minutes: float = 60, dry_run: bool = False, seed: int = 0) -> None:
    """From a folder of pictures to a model and a report, in about so many minutes.

    Looks at the pictures and their captions, tries a few steps on this machine, chooses the size of the pictures, the
    tokenizer, the transformer and how long each is trained, and says why. Prints the commands, which are ordinary ones,
    and runs them; then draws, measures, and writes report.html and report.json. Without captions the names of the
    folders serve. After an interruption the same command goes on with the same plan.

    Args:
        data: Pictures, such as pictures/; a split named val is held out, else every tenth picture.
        out: Folder for everything.
        minutes: Budget for all of it. Few pictures may need less.
        dry_run: Only say and print; a few steps are tried all the same.
        seed: Seed of the runs.

    Example:
        unitok start pictures/ --out runs/mine --minutes 60
    """
    started = time.time()
    if not 0 < minutes <= 10**6:
        raise UserError(f"--minutes is {minutes:g}: choose a number above 0")
    if dry_run:
        print(shown(make_plan(data, out, minutes, seed)))
        return
    from unitok.eval.reports.output import claim_folder

    claim_folder(out)
    plan = _kept_plan(data, out, minutes, seed)
    print(shown(plan), flush=True)
    for command, words, folder in plan.commands:
        run_step(command, words, Path(folder))
    _report(plan, out, seed, started)


def _kept_plan(data: str, out: Path, minutes: float, seed: int) -> Plan:
    """The plan of the folder, or a new one, which it keeps: what a trial measures differs from time to time."""
    file, asked = out / PLAN_FILE, {"data": data, "minutes": minutes, "seed": seed}
    if not file.exists():
        plan = make_plan(data, out, minutes, seed)
        write_json(file, {"asked": asked, "plan": asdict(plan)})
        return plan
    kept = read_json(file)
    if not isinstance(kept, dict) or kept.keys() != {"asked", "plan"}:
        raise UserError(f"{file} is no plan of unitok start: choose another --out, or remove it")
    if kept["asked"] != asked:
        other = ", ".join(f"{name} {value}" for name, value in dict(kept["asked"]).items())
        raise UserError(f"--out {out} was begun with {other}: give the same, or choose another --out")
    return read_dataclass(Plan, kept["plan"], str(file))


def _report(plan: Plan, out: Path, seed: int, started: float) -> None:
    from unitok.eval.captioning import measure_captioning
    from unitok.eval.generation import FEWEST, measure_generation
    from unitok.eval.measure import measure_tokenizer
    from unitok.eval.networks.features import load_image_text
    from unitok.eval.report import Report, Section
    from unitok.eval.reports.output import print_report, write_report

    from ..data.open import open_data
    from ..device import pick_device
    from ..model import UniTok

    device = pick_device("auto")
    model = UniTok.from_pretrained(out / "generator", device)
    size = model.image_tokenizer.image_size
    network, clip = _features(device), load_image_text("embedded", device)
    held_out = open_data(plan.val, size)
    common: dict[str, Any] = {"max_bad": plan.max_bad}
    sections = [
        Section("training", "Training", figures=[_curves(out)], warnings=plan.expected),
        measure_tokenizer(model.image_tokenizer, held_out, network, limit=MEASURED, **common),
    ]
    if len(held_out) >= FEWEST:
        sections.append(measure_generation(model, held_out, network, clip, limit=DRAWN, seed=seed, **common))
    if "image_to_text" in model.config.tasks:
        sections.append(measure_captioning(model, held_out, clip, limit=DRAWN, **common))
    run = read_json(out / "generator" / "run.json")
    facts = {
        "seconds": round(time.time() - started, 1),
        "measured_on": f"{plan.val} ({'held out' if plan.held_out else 'learned from'})",
        "parameters": run["parameters"],
        "hardware": hardware(run["hardware"]),
        "plan": "; ".join(plan.said),
    }
    report = Report("unitok start", sections, facts)
    print_report(report)
    write_report(report, out)
    print(out / "report.html")


def _features(device: Any) -> FeatureNetwork:
    """ImageNet's features where they are installed, for the embedded ones know only shapes and icons."""
    from unitok.eval.networks.features import load_features

    try:
        return load_features("efficientnet_lite0", device)
    except UserError:
        return load_features("embedded", device)


def _curves(out: Path) -> Figure:
    from unitok.eval.report import Figure, Item

    from ..data.decoding import decode

    parts = ("tokenizer", "generator")
    return Figure("Losses", [Item([decode((out / part / "loss.png").read_bytes())], part) for part in parts])
