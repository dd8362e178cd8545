"""`unitok bench`: how fast and how large on this machine, as one JSON that a later run can be compared with.

Free of torch until it runs, so that help is quick.
"""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tokenizers_vq.config import TOKENIZER_PRESETS
from tokenizers_vq.errors import Problems, UserError, shown
from tokenizers_vq.storage.files import read_json

from ..config import TRUNK_PRESETS
from ..objectives import OBJECTIVES, objective_class

SLOWER, LARGER = 1.15, 1.05
"""Times the baseline's seconds, and its memory, from which on a case is worse."""
SAME = ("settings", "hardware")
"""What two runs have in common that are compared."""


def bench(
    what: Literal["tokenizer", "train", "decode"],
    preset: str = "shapes",
    objective: str | None = None,
    batch_size: int = 8,
    rounds: int = 5,
    precision: Literal["auto", "bf16", "fp32"] = "fp32",
    threads: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    baseline: Path | None = None,
) -> None:
    """Measure speed and memory on this machine, with fresh weights: speed does not depend on what was learned.

    Writes one JSON to the standard output: commit, versions, hardware, and for each case the median of the seconds, the
    rate, the peak memory of a process of its own, the passes of the transformer, and the share of the roofline: the
    least time that the arithmetic and the reading of the weights can take at the rates of matrix products and of
    memory, which are measured first, over the time that was taken. With --baseline the exit code is 1 where a case is
    15 % slower or takes 5 % more memory than there.

    Args:
        what: tokenizer: an image tokenizer encodes, decodes and is trained. train: a generator is trained. decode: it
            draws.
        preset: Size of both the tokenizer and the transformer: debug, shapes, emoji, small or base.
        objective: Of train and decode: one objective; default: all that the preset has a tokenizer for.
        batch_size: Pictures at a time.
        rounds: Times that each case is measured.
        precision: fp32, bf16, or auto (bf16 where the hardware has it). Pictures are always encoded in fp32.
        threads: Threads of a CPU; default: all.
        device: auto takes a GPU where there is one.
        baseline: JSON of an earlier run with the same settings on the same hardware.

    Example:
        unitok bench tokenizer --preset shapes
        unitok bench decode --objective next_token --baseline before.json
    """
    problems = Problems()
    presets = [name for name in TRUNK_PRESETS if name in TOKENIZER_PRESETS]
    problems.check(preset in presets, f"--preset is {shown(preset)}: choose one of {', '.join(presets)}")
    known = objective is None or objective in OBJECTIVES
    problems.check(known, f"--objective is {shown(objective)}: choose one of {', '.join(OBJECTIVES)}")
    problems.check(objective is None or what != "tokenizer", "--objective is of train and decode: leave it out")
    for name, value in (("batch_size", batch_size), ("rounds", rounds), ("threads", threads)):
        problems.check(value is None or value >= 1, f"--{name} is {value}: choose 1 or more")
    problems.raise_if_any()
    listed = cases(what, preset, objective)
    settings = {"what": what, "preset": preset, "batch_size": batch_size, "precision": precision, "device": device}
    before = None if baseline is None else _read(baseline)
    if before is not None and not {row["case"] for row in before["results"]} & set(listed):
        raise UserError(f"--baseline {baseline} has no {' and no '.join(listed)}: give a run that measured the same")
    results: list[dict[str, Any]] = []
    # A process for each, and this one stays small: a new process inherits the peak memory of its parent.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        facts = pool.apply(_on_this_machine, (device, precision, threads))
        if before is not None and baseline is not None:
            _check_same(before, settings, facts, baseline)
        for case in listed:
            how = (case, preset, batch_size, rounds, precision, threads, device, facts["roofline"])
            row = pool.apply(_measure, how)
            results.append(row)
            print(
                f"{row['case']:<22} {row['rate']:>10g} {row['unit']:<9} {row['seconds_median']:>10g} s"
                f" {row['peak_memory_gb']:>7.3f} GB  {100 * row['roofline_share']:>5.1f} % of the roofline",
                file=sys.stderr,
                flush=True,
            )
    date = datetime.now(UTC).date().isoformat()
    print(json.dumps({"date": date, "commit": _commit(), "settings": settings, **facts, "results": results}, indent=2))
    worse = [] if before is None else worse_than(before["results"], results)
    for line in worse:
        print(line, file=sys.stderr)
    if worse:
        raise SystemExit(1)


def _on_this_machine(*how: Any) -> dict[str, Any]:
    from .bench_cases import on_this_machine

    return on_this_machine(*how)


def _measure(*how: Any) -> dict[str, Any]:
    from .bench_cases import measure

    return measure(*how)


def cases(what: str, preset: str, objective: str | None) -> list[str]:
    """What is measured, in words.

    Raises:
        UserError: the preset has no tokenizer for the objective.
    """
    scaled = f"{preset}_scales" in TOKENIZER_PRESETS
    if what == "tokenizer":
        kinds = ("", " scales") if scaled else ("",)
        return [f"tokenizer {work}{kind}" for kind in kinds for work in ("encode", "decode", "train")]
    names = [objective] if objective else list(OBJECTIVES)
    fit = [name for name in names if scaled or not objective_class(name).sets_scales]
    if not fit:
        raise UserError(
            f"--preset {preset} has no tokenizer with scales, which {objective} needs: choose shapes or base"
        )
    return [f"{what} {name}" for name in fit]


def worse_than(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[str]:
    """A line for each case that takes more than 15 % more time, or 5 % more memory.

    >>> old = {"case": "decode var", "seconds_median": 1.0, "peak_memory_gb": 1.0}
    >>> worse_than([old], [{**old, "seconds_median": 1.3}])
    ['decode var: 1.3 s instead of 1, 1.30 times as long']
    """
    olds = {row["case"]: row for row in before}
    lines = []
    for row in now:
        old = olds.get(row["case"], row)
        for key, limit, unit, how in (
            ("seconds_median", SLOWER, "s", "as long"),
            ("peak_memory_gb", LARGER, "GB", "as much memory"),
        ):
            ratio = row[key] / old[key]
            if ratio > limit:
                lines.append(f"{row['case']}: {row[key]:g} {unit} instead of {old[key]:g}, {ratio:.2f} times {how}")
    return lines


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"--baseline {path} is not a file: give the JSON of an earlier unitok bench")
    values = read_json(path)
    rows = values.get("results") if isinstance(values, dict) else None
    numbers = ("seconds_median", "peak_memory_gb")
    whole = isinstance(rows, list) and all(
        isinstance(row, dict)
        and isinstance(row.get("case"), str)
        and all(isinstance(row.get(name), int | float) and row[name] > 0 for name in numbers)
        for row in rows
    )
    if not whole or any(not isinstance(values.get(name), dict) for name in SAME):
        raise UserError(f"--baseline {path} is not of unitok bench: give the JSON that an earlier run wrote")
    return dict(values)


def _check_same(before: dict[str, Any], settings: dict[str, Any], facts: dict[str, Any], path: Path) -> None:
    """Raises UserError with all that differs between two runs and makes their times say nothing about the code."""
    problems = Problems()
    for name, now in (("settings", settings), ("hardware", facts["hardware"])):
        for key, value in now.items():
            was = before[name].get(key)
            problems.check(
                was == value, f"--baseline {path} has {key} {was!r}, this run has {value!r}: compare like with like"
            )
    problems.raise_if_any()


def _commit() -> str | None:
    """The commit of the checkout that runs, with a plus where it has changes; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False).stdout

    return (git("rev-parse", "HEAD").strip() + ("+" if git("status", "--porcelain", "-uno") else "")) or None
