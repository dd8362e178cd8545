"""A report as tables on stdout and as files.

report.json           the numbers and where each comes from
report.html           the same to look at, with pictures
*.png                 figures that have a file name
items.jsonl           values of single pictures, a line each, where a section has them
features.safetensors  feature matrices that were asked for, as "SECTION.NAME", in the order of the section's lines
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text
from safetensors.torch import save_file

from tokenizers_vq.errors import UserError
from tokenizers_vq.images import save_png
from tokenizers_vq.storage.files import atomic_path, parse_json, read_bytes, write_json
from tokenizers_vq.storage.schema import read_value

from ..provenance import Fact
from ..report import Report
from .figures import sheet
from .page import render

JSON_FILE, HTML_FILE = "report.json", "report.html"
ITEMS_FILE, FEATURES_FILE = "items.jsonl", "features.safetensors"
ITEMS_LIMIT = 2**30
"""Bytes of `items.jsonl`: millions of pictures."""


def claim_folder(folder: Path) -> None:
    """Makes sure, before anything is computed, that a report can be written. Raises UserError where it cannot."""
    if (folder / JSON_FILE).exists():
        raise UserError(f"--out {folder} already holds a report: choose another folder or remove {folder / JSON_FILE}")
    probe = folder / f".{JSON_FILE}.probe"
    with atomic_path(probe) as temporary:
        temporary.touch()
    probe.unlink(missing_ok=True)  # another process of the same run may probe too


def write_report(report: Report, folder: Path) -> None:
    """Writes report.json, report.html, the figures that have a file name and what the sections hold of single pictures,
    each file whole or not at all."""
    report.facts.setdefault("created", datetime.now(UTC).isoformat(timespec="seconds"))
    for figure in (figure for section in report.sections for figure in section.figures if figure.file):
        save_png(folder / figure.file, sheet(figure))
    with atomic_path(folder / HTML_FILE) as temporary:
        temporary.write_text(render(report), encoding="utf-8")
    lines = [{"section": section.name, **values} for section in report.sections for values in section.values]
    if lines:
        with atomic_path(folder / ITEMS_FILE) as temporary:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            temporary.write_text(text, encoding="utf-8")
    features = {f"{one.name}.{name}": kept for one in report.sections for name, kept in one.features.items()}
    if features:
        with atomic_path(folder / FEATURES_FILE) as temporary:
            save_file({name: kept.contiguous() for name, kept in features.items()}, temporary)
    write_json(folder / JSON_FILE, report.to_json())  # last: where it stands, the rest is complete


def read_items(folder: Path, section: str) -> list[dict[str, Fact]]:
    """The values of single pictures of one section of a written report, in order.

    Raises:
        UserError: no such file, or it is not what `write_report` writes.
    """
    file = folder / ITEMS_FILE
    if not file.is_file():
        raise UserError(f"there is no {file}: measure again to have values of single pictures")
    found: list[dict[str, Fact]] = []
    for number, line in enumerate(read_bytes(file, ITEMS_LIMIT).split(b"\n"), 1):
        if not line:
            continue
        where = f"{file}, line {number}"
        values = read_value(dict[str, str | int | float | bool | None], parse_json(line, where), where, "picture")
        if not {"section", "item"} <= values.keys():
            raise UserError(f"{where} has no section and item: measure again")
        if values.pop("section") == section:
            found.append(values)
    return found


def print_report(report: Report) -> None:
    """One table per section on stdout, warnings on stderr."""
    out, notes = Console(), Console(stderr=True)
    for section in report.sections:
        table = Table(
            "",
            *section.columns,
            title=Text(section.title),
            title_justify="left",
            show_header=bool(section.columns),
        )
        for number in section.numbers.values():
            if isinstance(number.value, dict) and section.columns:
                table.add_row(number.label, *(number.show(number.value[name], name) for name in section.columns))
            elif isinstance(number.value, dict):
                for part, value in number.value.items():
                    table.add_row(Text(f"{number.label}: {part}"), number.show(value, part))
            else:
                table.add_row(Text(number.label), number.show(number.value))
        if section.numbers:
            out.print(table, markup=False)
        for warning in section.warnings:
            notes.print(f"warning: {warning}", style="yellow", markup=False)
