"""Results: numbers that say where they come from, with pictures; what `output` prints and writes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tokenizers_vq.errors import UserError

from .provenance import INTERVAL, SPREAD, Fact, Provenance, version_line, versions


@dataclass(frozen=True)
class Number:
    """One measured value, or one value per part of it."""

    label: str
    """What it is, with the network it was made with: "FID (...)"."""
    value: float | dict[str, float]
    unit: str = ""
    """"%" for a share, which is kept as 0 to 1 and shown times 100; "dB"; or nothing."""
    better: str = ""
    """"higher", "lower" or nothing."""
    provenance: Provenance = field(default_factory=dict)
    """Network and its hash, sample counts, image size, resize method, reference set and its hash, seed; the metric's
    name and the versions are added when the report is written."""

    spread: dict[str, float] = field(default_factory=dict)
    """Standard deviation over rounds with other seeds, whose mean the value is; by part, "" for a single value."""

    def __post_init__(self) -> None:
        values = self.value.values() if isinstance(self.value, dict) else [self.value]
        if not all(math.isfinite(value) for value in values):
            raise UserError(
                f"{self.label} came out as {self.value}: the weights of the model or of the network that measures are "
                "damaged; take an older checkpoint, or fetch the network again"
            )

    interval: dict[str, tuple[float, float]] = field(default_factory=dict)
    """95 % interval over distinct captions, by part as `spread`."""

    def show(self, value: float, part: str = "") -> str:
        """The value, or that of a part, with its unit, its spread and its interval."""
        factor, unit = (100, " %") if self.unit == "%" else (1, f" {self.unit}" if self.unit else "")
        if isinstance(value, int):
            return f"{value:,}{unit}"
        digits = 1 if self.unit == "%" else 4 if abs(value) < 1 else 2
        spread = f" \u00b1 {factor * self.spread[part]:.{digits}f}" if part in self.spread else ""
        low, high = self.interval.get(part, (0.0, 0.0))
        interval = f" ({factor * low:.{digits}f} to {factor * high:.{digits}f})" if part in self.interval else ""
        return f"{factor * value:.{digits}f}{spread}{unit}{interval}"


@dataclass(frozen=True)
class Item:
    """Pictures side by side with a line of text."""

    pictures: list[Tensor]
    """uint8 (3, H, W) each."""
    text: str
    right: bool | None = None
    """Marks the item as right or wrong; None for neither."""
    detail: str = ""


@dataclass(frozen=True)
class Figure:
    title: str
    items: list[Item]
    labels: tuple[str, ...] = ()
    """What each picture of an item is, such as ("original", "reconstruction"); empty where the title says it."""
    legend: Item | None = None
    """A bar of colours and what they mean."""
    file: str = ""
    """Name of a PNG beside the report that shows the first items as well; empty for none."""


@dataclass
class Section:
    """What one measurement found. `name` is its key in the JSON."""

    name: str
    title: str
    numbers: dict[str, Number] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    columns: tuple[str, ...] = ()
    """Names that every number has a value for: then the numbers are shown as one table with these columns."""
    values: list[dict[str, Fact]] = field(default_factory=list)
    """One entry per picture, in order: "item" names it, the rest are its own values (its CLIPScore, its PSNR, whether
    it is right as 0 or 1, its caption). They are what a bootstrap draws from."""
    features: dict[str, Tensor] = field(default_factory=dict)
    """Feature matrices to keep, of which a bootstrap of FID draws: "drawn", with a row for each of `values` where there
    are such, and "real". FID is of as many rows of "drawn" as its provenance has "pictures", or the mean over several
    such rounds."""


@dataclass
class Report:
    title: str
    sections: list[Section]
    facts: dict[str, Fact] = field(default_factory=dict)
    """Top-level entries of the JSON: seconds, peak memory, the command, ..."""

    def to_json(self) -> dict[str, Any]:
        """`section.number` are plain values; where each comes from is under `provenance`, by dotted name. Values of
        single pictures are not in it: they go to a file of their own."""
        result: dict[str, Any] = {"title": self.title, **self.facts, "versions": versions()}
        provenance: dict[str, Any] = {}
        for section in self.sections:
            result[section.name] = {key: number.value for key, number in section.numbers.items()}
            for key, number in section.numbers.items():
                provenance[f"{section.name}.{key}"] = {
                    "label": number.label,
                    "metric": key,
                    "unit": number.unit,
                    "better": number.better,
                    **number.provenance,
                    "versions": version_line(),
                }
                if number.spread:
                    provenance[f"{section.name}.{key}"][SPREAD] = number.spread.get("", number.spread)
                if number.interval:
                    provenance[f"{section.name}.{key}"][INTERVAL] = number.interval.get("", number.interval)
        warnings = [text for section in self.sections for text in section.warnings]
        return {**result, "warnings": warnings, "provenance": provenance}
