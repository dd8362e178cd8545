"""The command that looks at data. Free of torch until it runs, so that help is quick."""

from __future__ import annotations

import time
from pathlib import Path

from tokenizers_vq.errors import Problems
from unitok.data.records import CaptionsWanted

from ..commands import finish


def data_check(
    data: str,
    out: Path = Path("runs/data-check"),
    val_data: str | None = None,
    limit: int = 10_000,
    captions: bool = True,
    workers: int = 0,
) -> None:
    """Look at a data set before training on it: counts, sizes, captions, broken pictures, near-duplicates.

    Prints a table and writes report.json and report.html, with a contact sheet. With --val_data it also says which
    validation pictures are near-duplicates of training pictures. Memory does not grow beyond --limit.

    Args:
        data: Captioned pictures, SOURCE[@SPLIT][?key=value&...].
        out: Folder for the report.
        val_data: Validation data, which should share no picture with the data.
        limit: Records of each that are looked at, spread evenly.
        captions: Read captions; false for pictures without any.
        workers: Processes that read pictures.

    Example:
        unitok data check emoji/ --val_data emoji/@val --out runs/data-check
    """
    started = time.time()
    problems = Problems()
    problems.check_range("--limit", limit, 1, 10**6)
    problems.check_range("--workers", workers, 0, 1024)
    problems.raise_if_any()
    from unitok.data.open import open_data

    from ..reports.output import claim_folder
    from .check import describe, leakage, look

    wanted: CaptionsWanted = "optional" if captions else False
    specs = {"data": data, **({"val_data": val_data} if val_data else {})}
    opened = {name: open_data(spec, captions=wanted) for name, spec in specs.items()}
    claim_folder(out)
    seen = {name: look(dataset, limit, workers) for name, dataset in opened.items()}
    sections = [describe(name, seen[name], dataset, captions) for name, dataset in opened.items()]
    if val_data:
        sections.append(leakage(seen["data"], seen["val_data"]))
    finish("Data check", sections, out, started, {"data": data, "limit": limit})
