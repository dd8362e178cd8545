"""From the shards of a suite to the sections of a report."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tokenizers_vq.storage.files import atomic_path
from unitok.data.records import RecordDataset
from unitok.data.shapes.checker import Verdict
from unitok.prepare import noted

from .generation import picture_numbers
from .metrics.alignment import are_shapes, check_pictures, wrong_attributes
from .metrics.intervals import with_intervals
from .metrics.memorisation import measure_memorisation
from .metrics.statistics import Statistics, StatisticsMeter
from .pictures import progress
from .provenance import Fact, Provenance
from .report import Figure, Item, Number, Section
from .reports.figures import category_figure, sweep_figure
from .suite import Suite, picture_name, scale_name

SHOWN = 9
"""Best pictures shown of each guidance scale, and as many of the worst."""
SWEPT = ("fid", "kid", "inception_score", "precision", "recall", "density", "coverage")
SWEPT_TEXT = ("clipscore", "cmmd", "r_precision", "scene_accuracy")
"""Numbers of the sweep's table, where they could be measured."""


def measure_suite(
    suite: Suite,
    train: RecordDataset | None = None,
    *,
    max_bad: float = 0.01,
    batch_size: int = 32,
    save_features: bool = False,
) -> tuple[list[Section], dict[str, Fact]]:
    """The sweep, a section for each guidance scale, and the nearest training pictures; and which scale is the best.

    Args:
        suite: with all its shards made.
        train: what the model was trained on; None leaves the nearest training pictures out.
        max_bad, batch_size: of reading them, see `pictures.read_indexed`.
        save_features: keep all features in the sections of the scales, round after round, for a bootstrap of FID.

    Returns:
        Sections, and facts for the head of the report.
    """
    of_data = suite.rows(None)
    meter = StatisticsMeter(suite.network, suite.asked.dataset.name)
    meter.pictures = suite.asked.pictures
    meter.add(of_data["features"], of_data.get("logits"))
    real = meter.result()
    sections = [_measure_scale(suite, guidance, real, of_data, save_features) for guidance in suite.guidances]
    best = {key: _best(sections, key) for key in ("fid", "clipscore")}
    facts: dict[str, Fact] = {
        "captions": len(suite.asked.captions),
        "seeds": suite.rounds,
        "best_guidance_by_fid": suite.guidances[best["fid"]],
        "best_guidance_by_clipscore": suite.guidances[best["clipscore"]],
    }
    bars = list(_category_figures(sections))
    if len(sections) > 1:
        sections.insert(0, _sweep(suite, sections))
        scales = [f"{facts[f'best_guidance_by_{key}']:g}" for key in best]
        sections[0].title = f"Guidance sweep: best FID at {scales[0]}, best CLIPScore at {scales[1]}"
        sections[0].warnings = sections[1].warnings  # they are about the sets' sizes, and so the same for all
        for section in sections[1:]:
            section.warnings = []
    sections[0].figures += bars
    if train is not None:
        guidance = suite.guidances[best["fid"]]
        drawn = torch.cat([suite.rows(guidance, number)["features"] for number in range(suite.rounds)])
        section = measure_memorisation(
            drawn,
            of_data["features"],
            train,
            suite.network,
            show=lambda place: (suite.image(guidance, place), suite.asked.captions[place % len(suite.asked.captions)]),
            facts=_facts(suite, guidance),
            max_bad=max_bad,
            batch_size=batch_size,
        )
        section.title = f"Nearest training pictures, of guidance {guidance:g}"
        sections.append(section)
    return sections, facts


def _measure_scale(
    suite: Suite, guidance: float, real: Statistics, of_data: dict[str, Tensor], save_features: bool
) -> Section:
    """All numbers of one guidance scale: each the mean over the rounds."""
    asked = suite.asked
    exact = are_shapes(asked.captions)
    facts = _facts(suite, guidance)
    rounds: list[dict[str, Number]] = []
    values: list[dict[str, Fact]] = []
    verdicts: list[Verdict] = []
    hashes: list[str] = []
    warnings: list[str] = []
    features: list[Tensor] = []
    for number in range(suite.rounds):
        rows = suite.rows(guidance, number)
        meter = StatisticsMeter(suite.network, "drawn pictures")
        judged: list[Verdict] = []
        first = number * len(asked.captions)
        captions = progress(asked.captions, f"measuring guidance {guidance:g}", len(asked.captions))
        for place, caption in enumerate(captions, first):
            image = suite.image(guidance, place)
            meter.pictures.update(image[None])
            judged += check_pictures(image[None], [caption]) if exact else []
        meter.add(rows["features"], rows.get("logits"))
        drawn = meter.result()
        features += [rows["features"]] if save_features else []
        hashes.append(str(drawn.provenance["sha256"]))
        facts["image size"] = meter.pictures.size
        embeddings = {"drawn": rows["image"], "real": of_data["image"], "text": of_data["text"]}
        numbers, of_each, warnings = picture_numbers(
            drawn, real, suite.network, suite.clip, embeddings, asked.captions, judged, facts, suite.seed
        )
        if asked.categories is not None:
            numbers["clipscore_by_category"] = _by_category(numbers["clipscore"], of_each, asked.categories)
        rounds.append(numbers)
        verdicts += judged
        names = zip(asked.names, asked.captions, suite.seeds(number), of_each, strict=True)
        values += [{"item": name, "caption": text, "seed": seed, **one} for name, text, seed, one in names]
        _write_captions(suite, guidance, number)
    # A copy of the data's own for each scale: tensors that share memory cannot be written to one file.
    kept = {"drawn": torch.cat(features), "real": of_data["features"].clone()} if save_features else {}
    return Section(
        scale_name(guidance),
        f"Guidance {guidance:g}",
        with_intervals(mean_of_rounds(rounds, hashes), values, "caption"),
        _best_and_worst(suite, guidance, values, verdicts),
        warnings,
        values=values,
        features=kept,
    )


def mean_of_rounds(rounds: Sequence[dict[str, Number]], hashes: Sequence[str]) -> dict[str, Number]:
    """Each number as the mean over the rounds, with the spread of what was measured in each of them anew.

    `hashes`: of the rounds' pictures.
    """
    if len(rounds) == 1:
        return dict(rounds[0])
    joined = hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    numbers = {}
    for key, first in rounds[0].items():
        tables = [_parts(one[key]) for one in rounds]
        means = {part: statistics.fmean(table[part] for table in tables) for part in tables[0]}
        spread = {part: statistics.stdev(table[part] for table in tables) for part in tables[0]}
        numbers[key] = replace(
            first,
            value=means if isinstance(first.value, dict) else means[""],
            provenance={**first.provenance, "set_sha256": joined},
            spread=spread if first.better else {},
        )
    return numbers


def _parts(number: Number) -> dict[str, float]:
    return number.value if isinstance(number.value, dict) else {"": number.value}


def _facts(suite: Suite, guidance: float) -> Provenance:
    """What every number of one guidance scale carries; sample counts are those of one round."""
    return {
        "data": suite.asked.dataset.name,
        "captions_sha256": suite.asked.captions_sha256,
        "pictures": len(suite.asked.captions),
        "seeds": suite.rounds,
        "seed": suite.seed,
        "model_sha256": suite.model.fingerprint(),
        "settings": str(suite.settings(guidance)),
        "precision": suite.precision,
        **noted(suite.model),
    }


def _by_category(score: Number, values: list[dict[str, Fact]], categories: list[str]) -> Number:
    found: dict[str, list[float]] = {name: [] for name in sorted(set(categories))}
    for one, name in zip(values, categories, strict=True):
        found[name].append(float(one["clipscore"] or 0))
    means = {name: max(0.0, statistics.fmean(some)) for name, some in found.items()}
    return replace(score, label=f"{score.label} by category", value=means)


def _best_and_worst(
    suite: Suite, guidance: float, values: list[dict[str, Fact]], verdicts: list[Verdict]
) -> list[Figure]:
    order = sorted(range(len(values)), key=lambda place: -float(values[place]["clipscore"] or 0))
    most = min(SHOWN, len(order) // 2)
    chosen = {"Best": order[:most], "Worst": order[-most:][::-1]}
    count = len(suite.asked.captions)
    figures = []
    for title, places in chosen.items():
        items = []
        for place in places:
            one, verdict = values[place], verdicts[place] if verdicts else None
            index = place % count
            wrong = f", wrong: {', '.join(wrong_attributes(verdict))}" if verdict and not verdict.all else ""
            items.append(
                Item(
                    [suite.image(guidance, place), suite.asked.images(index, index + 1)[0]],
                    str(one["caption"]),
                    verdict.all if verdict else None,
                    f"CLIPScore {one['clipscore']:.1f}, seed {one['seed']}{wrong}",
                )
            )
        figures.append(Figure(f"{title} by CLIPScore: drawn, and the data's own picture beside it", items))
    return figures


def _sweep(suite: Suite, sections: Sequence[Section]) -> Section:
    """The guidance scales side by side."""
    columns = tuple(f"{guidance:g}" for guidance in suite.guidances)
    numbers: dict[str, Number] = {}
    for key in (*SWEPT, *SWEPT_TEXT):
        if key in sections[0].numbers:
            found = {column: one.numbers[key] for column, one in zip(columns, sections, strict=True)}
            values = {column: _plain(number) for column, number in found.items()}
            facts = {
                k: v for k, v in sections[0].numbers[key].provenance.items() if k not in ("settings", "set_sha256")
            }
            spread = {column: number.spread[""] for column, number in found.items() if number.spread}
            numbers[key] = replace(sections[0].numbers[key], value=values, provenance=facts, spread=spread)
    points = {
        key: [(_plain(one.numbers[key]), one.numbers[key].spread.get("", 0.0)) for one in sections]
        for key in ("fid", "clipscore")
    }
    labels = (sections[0].numbers["clipscore"].label, sections[0].numbers["fid"].label)
    figure = sweep_figure(suite.guidances, points["clipscore"], points["fid"], labels, "sweep.png")
    return Section("sweep", "Guidance sweep", numbers, [figure], columns=columns)


def _category_figures(sections: Sequence[Section]) -> Iterator[Figure]:
    """Bars by category, one group for each category, one bar for each guidance scale."""
    for key, title, file in (
        ("geneval", "Right by task, on shapes by the checker", "tasks.png"),
        ("clipscore_by_category", "CLIPScore by category", "categories.png"),
    ):
        if key in sections[0].numbers:
            bars = {one.title: one.numbers[key].value for one in sections}
            share = sections[0].numbers[key].unit == "%"
            yield category_figure(title, {k: v for k, v in bars.items() if isinstance(v, dict)}, share, file)


def _best(sections: Sequence[Section], key: str) -> int:
    """Which section has the best value."""
    values = [_plain(section.numbers[key]) for section in sections]
    pick = min if sections[0].numbers[key].better == "lower" else max
    return values.index(pick(values))


def _plain(number: Number) -> float:
    assert not isinstance(number.value, dict)
    return number.value


def _write_captions(suite: Suite, guidance: float, number: int) -> None:
    """Makes a round's folder a captioned data set, such as `unitok eval clipscore` and other tools read."""
    lines = [
        {"file_name": picture_name(index), "caption": caption, "seed": seed}
        for index, (caption, seed) in enumerate(zip(suite.asked.captions, suite.seeds(number), strict=True))
    ]
    with atomic_path(suite.pictures(guidance, number) / "metadata.jsonl") as temporary:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        temporary.write_text(text, encoding="utf-8")
