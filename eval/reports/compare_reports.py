"""Reports side by side: what differs between two measurements, and how sure that is.

Intervals are percentile bootstrap intervals (Efron 1979): the pictures are drawn again with replacement many times, and
the difference is computed each time. Where both reports hold the same pictures (captions and seeds), pairs are drawn:
what makes a caption hard for both does not widen the interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tokenizers_vq.errors import UserError, shown
from tokenizers_vq.storage.files import read_json
from tokenizers_vq.storage.schema import read_value

from ..metrics.frechet import frechet_distance
from ..provenance import Fact, Provenance, require_same
from ..report import Number, Section
from .output import FEATURES_FILE, ITEMS_FILE, JSON_FILE, read_items

LEVEL = 0.95
SAME = 1e-6
"""A column of items is what a number is made of if its mean is the number, to this share."""
CHUNK = 2**22
"""Draws held at a time."""
MEASURED_ALONE = frozenset({"clipscore_real", "clipscore_reference", "kid_std"})
"""Numbers that say nothing about what is compared."""
REPEATED = "sweep"
"""Section of a suite's report whose numbers are those of the guidance scales' own sections."""


@dataclass(frozen=True)
class Result:
    """One number of a written report, or one part of it."""

    label: str
    value: float
    unit: str
    better: str
    provenance: Provenance


@dataclass(frozen=True)
class Measured:
    """A written report."""

    name: str
    folder: Path
    results: dict[str, Result]
    """By "section.number" or "section.number.part"."""

    def items(self, key: str) -> dict[tuple[Fact, Fact], float] | None:
        """The values of single pictures whose mean is a number, by (picture, seed); None where there are none."""
        section, number, *part = key.split(".", 2)
        if not (self.folder / ITEMS_FILE).exists():
            return None
        lines = read_items(self.folder, section)
        for column in (number, ".".join([number, *part]), *part, number.removesuffix("_accuracy")):
            found = {(line["item"], line.get("seed")): line[column] for line in lines if column in line}
            values = [float(value) for value in found.values() if isinstance(value, int | float)]
            if values and len(values) == len(found):
                mean, wanted = sum(values) / len(values), self.results[key].value
                if abs(mean - wanted) <= SAME * max(1.0, abs(wanted)):
                    return dict(zip(found, values, strict=True))
        return None

    def features(self, section: str) -> dict[str, Tensor]:
        """Feature matrices (N, D) "drawn" and "real" of a section; empty where none were kept."""
        file = self.folder / FEATURES_FILE
        if not file.exists():
            return {}
        try:
            with safe_open(file, "pt") as kept:
                names = {name: f"{section}.{name}" for name in ("drawn", "real")}
                if not set(names.values()) <= set(kept.keys()):
                    return {}
                tensors = {name: kept.get_tensor(key) for name, key in names.items()}
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} cannot be read as safetensors ({error}): measure again") from error
        drawn, real = tensors["drawn"], tensors["real"]
        if not (drawn.ndim == real.ndim == 2 and drawn.shape[1] == real.shape[1] and len(drawn) and len(real)):
            raise UserError(f"{file} holds features of shapes {[*drawn.shape]} and {[*real.shape]}: measure again")
        if not all(one.is_floating_point() and bool(one.isfinite().all()) for one in tensors.values()):
            raise UserError(f"{file} holds features that are not finite numbers: measure again")
        return tensors

    def pictures(self, section: str) -> list[tuple[Fact, Fact]]:
        """(picture, seed) of each line of a section, in order; empty where none were written."""
        lines = read_items(self.folder, section) if (self.folder / ITEMS_FILE).exists() else []
        return [(line["item"], line.get("seed")) for line in lines]


@dataclass(frozen=True)
class Interval:
    """A difference, what is compared minus the first, and where it lies with a chance of `LEVEL`."""

    difference: float
    low: float
    high: float
    paired: bool


_Interval = tuple[float, float]
_Fact = Fact | bool | _Interval | dict[str, float | _Interval]
"""What a report says of a number: also its spread and its interval, by part where it has parts."""


def read_report(path: Path) -> Measured:
    """A report.json, or the folder that holds it.

    Raises:
        UserError: there is none, or it is not one.
    """
    file = path / JSON_FILE if path.is_dir() else path
    data = read_json(file)
    provenance = data.get("provenance") if isinstance(data, dict) else None
    if not isinstance(provenance, dict):
        raise UserError(f"{file} is not a report of unitok: give the report.json that `unitok eval` wrote")
    facts = read_value(dict[str, dict[str, _Fact]], provenance, str(file), "provenance")
    results = {key: result for name, about in facts.items() for key, result in _results(data, name, about, str(file))}
    if not results:
        raise UserError(f"{file} holds no numbers: measure again")
    return Measured(path.parent.name if path.name == JSON_FILE else path.stem, file.parent, results)


def _results(data: Mapping[str, Any], name: str, facts: dict[str, Any], where: str) -> Iterator[tuple[str, Result]]:
    section, dot, number = name.partition(".")
    values = data.get(section, {})
    if not dot or not isinstance(values, dict):
        raise UserError(f"{where}: {shown(section)} holds no numbers by name: measure again")
    value = read_value(str | float | dict[str, float | None] | None, values.get(number), where, name)
    about = {key: fact for key, fact in facts.items() if key not in ("unit", "better")}
    parts = value.items() if isinstance(value, dict) else [("", value)]
    for part, one in parts:
        if isinstance(one, int | float):
            label = f"{facts.get('label', number)}: {part}" if part else str(facts.get("label", number))
            key = f"{name}.{part}" if part else name
            yield key, Result(label, one, str(facts.get("unit", "")), str(facts.get("better", "")), about)


def compare_reports(reports: list[Measured], resamples: int, seed: int, force: bool = False) -> list[Section]:
    """A table of all numbers that the reports share, and one of differences to the first for each other report.

    Args:
        reports: two or more, with names of their own.
        resamples: bootstrap samples for means; FID takes a tenth of them.
        seed: chooses the samples.
        force: numbers that were made in different ways stand side by side all the same, with a warning.

    Raises:
        UserError: they share no number, or numbers were made in different ways and `force` is not given.
    """
    first, *others = reports
    shared = []
    for key in first.results:
        section, what = key.split(".")[:2]
        if section != REPEATED and what not in MEASURED_ALONE and all(key in other.results for other in others):
            shared.append(key)
    if not shared:
        raise UserError(
            f"{first.folder / JSON_FILE} and {others[0].folder / JSON_FILE} share no number: give reports of the same "
            "command"
        )
    warnings: list[str] = []
    for key in shared:
        warnings += require_same({one.name: one.results[key].provenance for one in reports}, key, force)
    numbers = {}
    for key in shared:
        one = first.results[key]
        values = {report.name: report.results[key].value for report in reports}
        numbers[key] = Number(_title(key, one, shared), values, one.unit, one.better, one.provenance)
    names = tuple(report.name for report in reports)
    sections = [Section("values", "Side by side", numbers, warnings=list(dict.fromkeys(warnings)), columns=names)]
    for number, other in enumerate(others):
        sections.append(_differences(first, other, shared, resamples, seed, f"differences_{number + 1}"))
    return sections


def _differences(first: Measured, other: Measured, keys: list[str], resamples: int, seed: int, name: str) -> Section:
    numbers, without = {}, []
    for key in keys:
        interval = interval_of(first, other, key, resamples, seed)
        if interval is None:
            without.append(key)
            continue
        one = first.results[key]
        values = {"difference": interval.difference, "from": interval.low, "to": interval.high}
        how: Provenance = {"bootstrap samples": resamples, "bootstrap seed": seed, "paired": str(interval.paired)}
        label = f"{_title(key, one, keys)}: {_verdict(one.better, interval, other.name)}"
        numbers[key] = Number(label, values, one.unit, "", how)
    title = f"{other.name} minus {first.name}, with {LEVEL:.0%} intervals"
    warnings = []
    if without:
        warnings.append(
            f"no interval for {', '.join(without)}: an interval needs the values of single pictures (items.jsonl), and "
            "for FID features (--save_features true)"
        )
    return Section(name, title, numbers, warnings=warnings, columns=("difference", "from", "to") if numbers else ())


def _title(key: str, one: Result, keys: list[str]) -> str:
    """A number's label, with its section where the table has numbers of several."""
    sections = {other.split(".")[0] for other in keys}
    return one.label if len(sections) == 1 else f"{key.split('.')[0]}: {one.label}"


def _verdict(better: str, interval: Interval, name: str) -> str:
    if interval.low <= 0 <= interval.high:
        return "undecided"
    if not better:
        return "different"
    return f"{name} is {'better' if (interval.low > 0) == (better == 'higher') else 'worse'}"


def interval_of(first: Measured, other: Measured, key: str, resamples: int, seed: int) -> Interval | None:
    """The bootstrap interval of one number's difference; None without values of single pictures."""
    if key.split(".")[1] == "fid":
        return _fid_interval(first, other, key, max(1, resamples // 10), seed)
    a, b = first.items(key), other.items(key)
    if a is None or b is None:
        return None
    generator = torch.Generator().manual_seed(seed)
    if a.keys() == b.keys():
        differences = torch.tensor([b[item] - a[item] for item in a], dtype=torch.float64)
        means, paired = _bootstrap_means(differences, resamples, generator), True
    else:
        x, y = (torch.tensor(list(one.values()), dtype=torch.float64) for one in (a, b))
        means, paired = _bootstrap_means(y, resamples, generator) - _bootstrap_means(x, resamples, generator), False
    return _interval(other.results[key].value - first.results[key].value, means, paired)


def _bootstrap_means(values: Tensor, resamples: int, generator: torch.Generator) -> Tensor:
    """(resamples,) means of values (N,) drawn with replacement."""
    rows = max(1, CHUNK // len(values))
    parts = []
    for start in range(0, resamples, rows):
        shape = (min(rows, resamples - start), len(values))
        parts.append(values[torch.randint(len(values), shape, generator=generator)].mean(1))
    return torch.cat(parts)


def _fid_interval(first: Measured, other: Measured, key: str, resamples: int, seed: int) -> Interval | None:
    """Both are measured against the same draws of the real pictures. What a bootstrap adds to either FID (drawn again,
    a set has fewer different pictures) largely falls out of the difference. Of several rounds each is drawn anew."""
    section = key.split(".")[0]
    a, b = first.features(section), other.features(section)
    if not a or not b or a["real"].shape != b["real"].shape:
        return None
    names = first.pictures(section)
    paired = bool(names) and names == other.pictures(section)
    of_a, of_b = (
        kept["drawn"].split(_pictures_of(one.results[key], len(kept["drawn"])))
        for one, kept in ((first, a), (other, b))
    )
    generator = torch.Generator().manual_seed(seed)

    def draw(sets: Sequence[Tensor]) -> list[Tensor]:
        return [torch.randint(len(one), (len(one),), generator=generator) for one in sets]

    def distance(sets: Sequence[Tensor], rows: Sequence[Tensor], real: Tensor) -> float:
        return fmean(frechet_distance(one[some], real) for one, some in zip(sets, rows, strict=True))

    found = []
    for _ in range(resamples):
        real = a["real"][draw([a["real"]])[0]]
        rows_a = draw(of_a)
        rows_b = rows_a if paired else draw(of_b)
        found.append(distance(of_b, rows_b, real) - distance(of_a, rows_a, real))
    difference = other.results[key].value - first.results[key].value
    return _interval(difference, torch.tensor(found, dtype=torch.float64), paired)


def _pictures_of(result: Result, every: int) -> int:
    """Pictures of one round, of which a number was made."""
    count = result.provenance.get("pictures")
    return count if isinstance(count, int) and 0 < count < every else every


def _interval(difference: float, samples: Tensor, paired: bool) -> Interval:
    low, high = samples.quantile(torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=samples.dtype)).tolist()
    return Interval(difference, low, high, paired)
