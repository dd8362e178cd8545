"""A report as tables on stdout, as report.json, as report.html and as PNG files of its figures."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tokenizers_vq.errors import UserError
from tokenizers_vq.files import atomic_path, write_json
from tokenizers_vq.images import save_png

from .figures import sheet
from .page import render
from .report import Report

JSON_FILE, HTML_FILE = "report.json", "report.html"


def claim_folder(folder: Path) -> None:
    """Makes sure, before anything is computed, that a report can be written. Raises UserError where it cannot."""
    if (folder / JSON_FILE).exists():
        raise UserError(f"--out {folder} already holds a report: choose another folder or remove {folder / JSON_FILE}")
    probe = folder / f".{JSON_FILE}.probe"
    with atomic_path(probe) as temporary:
        temporary.touch()
    probe.unlink()


def write_report(report: Report, folder: Path) -> None:
    """Writes the figures that have a file name, report.html and report.json, each whole or not at all."""
    report.facts.setdefault("created", datetime.now(UTC).isoformat(timespec="seconds"))
    for figure in (figure for section in report.sections for figure in section.figures if figure.file):
        save_png(folder / figure.file, sheet(figure))
    with atomic_path(folder / HTML_FILE) as temporary:
        temporary.write_text(render(report), encoding="utf-8")
    write_json(folder / JSON_FILE, report.to_json())


def print_report(report: Report) -> None:
    """One table per section on stdout, warnings on stderr."""
    out, notes = Console(), Console(stderr=True)
    for section in report.sections:
        table = Table(
            "", *section.columns, title=section.title, title_justify="left", show_header=bool(section.columns)
        )
        for number in section.numbers.values():
            if isinstance(number.value, dict) and section.columns:
                table.add_row(number.label, *(number.show(number.value[name]) for name in section.columns))
            elif isinstance(number.value, dict):
                for part, value in number.value.items():
                    table.add_row(f"{number.label}: {part}", number.show(value))
            else:
                table.add_row(number.label, number.show(number.value))
        if section.numbers:
            out.print(table, markup=False)
        for warning in section.warnings:
            notes.print(f"warning: {warning}", style="yellow", markup=False)
