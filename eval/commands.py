"""The commands that measure pictures and generators. Free of torch until one runs, so that help is quick."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tokenizers_vq.errors import Problems, UserError
from unitok.data.spec import parse_spec
from unitok.sampling import NONE_GIVEN, GivenSettings, SampleSettings

if TYPE_CHECKING:
    from .provenance import Fact
    from .report import Section

Device = Literal["auto", "cpu", "cuda"]


def eval_generator(
    model: Path,
    data: str,
    out: Path = Path("runs/eval-generator"),
    limit: int | None = None,
    max_bad: float = 0.01,
    sampling: GivenSettings = NONE_GIVEN,
    seed: int = 0,
    captioning: bool = True,
    features: str = "embedded",
    feature_weights: Path | None = None,
    clip: str = "embedded",
    reference: Path | None = None,
    save_features: bool = False,
    prompt: str | None = None,
    gallery: str | None = None,
    label: str | None = None,
    batch_size: int = 32,
    precision: Literal["auto", "bf16", "fp32"] = "fp32",
    compile: bool = False,
    device: Device = "auto",
) -> None:
    """Measure a model: FID, KID and CLIPScore of pictures drawn from the captions of a data set, and its own captions.

    Also precision, recall, density, coverage, CMMD and R-precision; the Inception Score with --features inception. On
    `shapes`, an exact checker reads the pictures: attribute and scene accuracy, and GenEval's tasks. A model that
    learned to answer is asked the questions of the data. With --gallery,
    retrieval: is the known picture that is nearest to the drawn one called what was asked for? Prints a table and
    writes report.json, report.html and items.jsonl, which has a line of values per picture.

    Args:
        model: Model folder, as written by `unitok train generator`, or hf:owner/name.
        data: Captions to draw, with the pictures to compare with: SOURCE[@SPLIT][?key=value&...].
        out: Folder for the report.
        limit: Captions used; null for all (of endless data, 1000).
        max_bad: Share of broken pictures that is left out; more of them stop the measurement.
        sampling: How codes are chosen.
        seed: The i-th picture is drawn with seed + i.
        captioning: Also caption the pictures of the data and compare with their captions.
        features: Network for FID, KID, precision and retrieval: embedded, efficientnet_lite0, inception,
            clip:<hub id or folder>, dinov2, or dinov2:<hub id or folder>.
        feature_weights: File with the weights of inception, instead of the download.
        clip: Network for CLIPScore, R-precision and CMMD: embedded or clip:<hub id or folder>.
        reference: An .npz file that FID compares with instead of the pictures of the data: statistics (mu, sigma), or
            pictures (arr_0), or both, such as ADM's reference batches.
        save_features: Also write the features of all pictures to features.safetensors, for a bootstrap of FID.
        prompt: Column or template of the data that is drawn from in place of the captions, such as other words for the
            same; the pictures are still scored by the captions.
        gallery: Known pictures whose captions are names, such as "emoji/@train?caption=text".
        label: Column or template of the data that holds the right name, such as text; needs --gallery.
        batch_size: Pictures drawn at a time; changes the speed, not the pictures.
        precision: Of the weights: fp32, bf16 (faster on large models), or auto (bf16 where the hardware has it and the
            model is large enough to gain).
        compile: Compile the passes that draw code by code when they have come often: faster from some hundred pictures
            on. Needs a C++ compiler, on a GPU triton (docs/speed.md).
        device: auto takes a GPU where there is one.

    Example:
        unitok eval generator --model runs/demo/generator --data "shapes@val?limit=192" --out runs/eval-generator
    """
    given = SampleSettings.given(sampling)
    started = time.time()
    check_counts(batch_size, limit)
    if (gallery is None) != (label is None):
        raise UserError("--gallery and --label go together: name the known pictures and the column of the right name")

    from unitok.data.open import open_data
    from unitok.device import pick_device
    from unitok.model import UniTok
    from unitok.prepare import prepare
    from unitok.sample.pipeline import settings_for

    from .captioning import measure_captioning
    from .feature_network import ImageTextNetwork
    from .generation import measure_generation
    from .metrics.statistics import KEPT
    from .networks.features import load_features, load_image_text
    from .questions import has_questions, measure_questions
    from .reports.output import claim_folder
    from .sources import load_set

    where = pick_device(device)
    loaded = UniTok.from_pretrained(str(model), where)
    precision = prepare(loaded, precision, compile)
    settings = settings_for(loaded, given)
    size = loaded.image_tokenizer.image_size
    dataset = open_data(with_texts(data, label=label, prompt=prompt), size)
    known = None if gallery is None else open_data(gallery, size)
    network = load_features(features, where, feature_weights)
    same = clip == features and isinstance(network, ImageTextNetwork)
    scorer = network if same and isinstance(network, ImageTextNetwork) else load_image_text(clip, where)
    known_set = None
    if reference is not None:
        if reference.suffix != ".npz":
            raise UserError(f"--reference {reference} is not an .npz file: make one with `unitok eval statistics`")
        known_set = load_set(str(reference), network, batch_size=batch_size, keep=None if save_features else KEPT)
    claim_folder(out)
    sections = [
        measure_generation(
            loaded,
            dataset,
            network,
            scorer,
            settings=settings,
            seed=seed,
            limit=limit,
            max_bad=max_bad,
            batch_size=batch_size,
            precision=precision,
            reference=known_set,
            gallery=known,
            save_features=save_features,
        )
    ]
    if captioning and loaded.config.trunk.captions == "text":  # classes and states are never written
        sections.append(
            measure_captioning(
                loaded, dataset, scorer, limit=limit, max_bad=max_bad, batch_size=batch_size, precision=precision
            )
        )
    if has_questions(loaded, dataset):
        sections.append(
            measure_questions(loaded, dataset, limit=limit, max_bad=max_bad, batch_size=batch_size, precision=precision)
        )
    finish("Generator evaluation", sections, out, started, {"model": str(model)})


def eval_statistics(
    data: str,
    out: Path,
    limit: int | None = None,
    max_bad: float = 0.01,
    image_size: int | None = None,
    features: str = "embedded",
    feature_weights: Path | None = None,
    batch_size: int = 32,
    device: Device = "auto",
) -> None:
    """Save mean and covariance of the features of a set of pictures, for `eval fid` and `eval generator --reference`.

    The file has pytorch-fid's layout (mu, sigma), and says in a key of its own which network made it from what.

    Args:
        data: Pictures, SOURCE[@SPLIT][?key=value&...], or an .npz file with pictures (arr_0).
        out: File to write, ending in .npz.
        limit: Pictures used; null for all (of endless data, 1000).
        max_bad: Share of broken pictures that is left out; more of them stop the measurement.
        image_size: Pictures are first scaled and cropped to this square; null leaves all resizing to the network.
        features: embedded, efficientnet_lite0, inception, clip:<hub id or folder>, dinov2, or
            dinov2:<hub id or folder>.
        feature_weights: File with the weights of inception, instead of the download.
        batch_size: Pictures at a time; changes the speed, not the numbers.
        device: auto takes a GPU where there is one.

    Example:
        unitok eval statistics shapes@val --out runs/shapes-val.npz
    """
    check_counts(batch_size, limit)
    if out.suffix != ".npz":
        raise UserError(f"--out {out} is not an .npz file: give a name such as statistics.npz")
    if out.exists():
        raise UserError(f"--out {out} is there already: choose another name or remove it")
    from unitok.device import pick_device

    from .networks.features import load_features
    from .saved import save_statistics
    from .sources import load_set

    network = load_features(features, pick_device(device), feature_weights)
    statistics = load_set(
        data, network, image_size=image_size, limit=limit, max_bad=max_bad, batch_size=batch_size, keep=0
    )
    save_statistics(out, statistics)
    print(f"{out}: {statistics.gaussian.count} pictures, {network.label}")


def eval_fid(
    a: str,
    b: str,
    out: Path | None = None,
    limit: int | None = None,
    max_bad: float = 0.01,
    image_size: int | None = None,
    features: str = "embedded",
    feature_weights: Path | None = None,
    save_features: bool = False,
    batch_size: int = 32,
    seed: int = 0,
    device: Device = "auto",
) -> None:
    """How far one set of pictures is from another: FID, KID, precision, recall, density, coverage, Inception Score.

    Args:
        a: Pictures to judge, SOURCE[@SPLIT][?key=value&...], such as a folder; captions are not needed. Or an .npz
            file: statistics (mu, sigma) for FID alone, or ADM's samples (arr_0).
        b: The reference to compare with, of the same kinds; ADM's reference batches have both.
        out: Folder for report.json and report.html; null prints the table alone.
        limit: Pictures used of each set; null for all (of endless data, 1000).
        max_bad: Share of broken pictures that is left out; more of them stop the measurement.
        image_size: Pictures are first scaled and cropped to this square; null leaves all resizing to the network.
        features: embedded, efficientnet_lite0, inception, clip:<hub id or folder>, dinov2, or
            dinov2:<hub id or folder>.
        feature_weights: File with the weights of inception, instead of the download.
        save_features: Also write the features of all pictures to features.safetensors, for a bootstrap of FID; needs
            --out.
        batch_size: Pictures at a time; changes the speed, not the numbers.
        seed: Chooses the subsets of KID.
        device: auto takes a GPU where there is one.

    Example:
        unitok eval fid "shapes@val?limit=500" shapes@train --limit 500
    """
    started = time.time()
    check_counts(batch_size, limit)
    if save_features and out is None:
        raise UserError("--save_features needs a folder to write to: give --out FOLDER")
    from unitok.device import pick_device

    from .metrics.statistics import KEPT
    from .networks.features import load_features
    from .reports.output import claim_folder
    from .sets import compare_sets
    from .sources import load_set

    network = load_features(features, pick_device(device), feature_weights)
    if out is not None:
        claim_folder(out)
    load = partial(
        load_set,
        network=network,
        image_size=image_size,
        limit=limit,
        max_bad=max_bad,
        batch_size=batch_size,
        keep=None if save_features else KEPT,
        seed=seed,
    )
    second = load(b)  # before the other set, for statistics that do not fit are refused at once
    if save_features:
        second.all_features()
    first = load(a)
    section = compare_sets(first, second, network, seed=seed, save_features=save_features)
    finish("Distance of two sets of pictures", [section], out, started, {})


def eval_clipscore(
    data: str,
    out: Path | None = None,
    limit: int | None = None,
    max_bad: float = 0.01,
    image_size: int | None = None,
    clip: str = "embedded",
    batch_size: int = 32,
    device: Device = "auto",
) -> None:
    """CLIPScore of pictures and their captions: 100 times the cosine of their embeddings, at least 0.

    Args:
        data: Pictures with captions, SOURCE[@SPLIT][?key=value&...].
        out: Folder for report.json and report.html with the best and worst pairs; null prints the table alone.
        limit: Pairs used; null for all (of endless data, 1000).
        max_bad: Share of broken pictures that is left out; more of them stop the measurement.
        image_size: Pictures are first scaled and cropped to this square; null leaves all resizing to the network.
        clip: embedded or clip:<hub id or folder>.
        batch_size: Pairs at a time; changes the speed, not the number.
        device: auto takes a GPU where there is one.

    Example:
        unitok eval clipscore --data "shapes@val?limit=192"
    """
    started = time.time()
    check_counts(batch_size, limit)
    from unitok.data.open import open_data
    from unitok.device import pick_device

    from .networks.features import load_image_text
    from .reports.output import claim_folder
    from .sets import score_pairs

    dataset = open_data(data, image_size)
    network = load_image_text(clip, pick_device(device))
    if out is not None:
        claim_folder(out)
    section = score_pairs(dataset, network, limit=limit, max_bad=max_bad, batch_size=batch_size)
    finish("CLIPScore", [section], out, started, {})


def eval_compare(
    reports: list[Path],
    out: Path | None = None,
    resamples: int = 2000,
    seed: int = 0,
    force: bool = False,
) -> None:
    """Reports side by side: every number they share, and how sure their differences are.

    The differences to the first report have 95 % intervals from a bootstrap over the pictures, paired where both
    reports drew the same captions with the same seeds. Numbers that were made in different ways (features, reference
    set, sample count, ...) are refused.

    Args:
        reports: Two or more report.json files of the same command, or their folders.
        out: Folder for report.json and report.html; null prints the tables alone.
        resamples: Bootstrap samples; FID takes a tenth of them.
        seed: Chooses the bootstrap samples.
        force: Put numbers that were made in different ways side by side all the same, with a warning.

    Example:
        unitok eval compare runs/eval-a runs/eval-b --out runs/eval-compare
    """
    started = time.time()
    problems = Problems()
    problems.check(len(reports) > 1, f"{len(reports)} report given: give two or more to compare")
    problems.check(resamples >= 100, f"--resamples is {resamples}: choose 100 or more")
    problems.raise_if_any()
    from dataclasses import replace

    from .reports.compare_reports import compare_reports, read_report
    from .reports.output import claim_folder

    found = [read_report(path) for path in reports]
    if len({one.name for one in found}) < len(found):  # told apart by their paths as given
        found = [replace(one, name=str(path)) for one, path in zip(found, reports, strict=True)]
    if len({one.name for one in found}) < len(found):
        raise UserError(f"{found[0].name} is given twice: compare different reports")
    if out is not None:
        claim_folder(out)
    sections = compare_reports(found, resamples, seed, force)
    finish("Reports side by side", sections, out, started, {})


def with_texts(data: str, **texts: str | None) -> str:
    """The data spec whose records also have these texts, by name: a column or a template each; None is left out."""
    given = {name: text for name, text in texts.items() if text is not None}
    return str(parse_spec(data).having(**given)) if given else data


def check_counts(batch_size: int, limit: int | None) -> None:
    """Raises UserError unless both are counts."""
    problems = Problems()
    problems.check(batch_size >= 1, f"--batch_size is {batch_size}: choose 1 or more")
    problems.check(limit is None or limit >= 1, f"--limit is {limit}: choose 1 or more, or leave it out")
    problems.raise_if_any()


def finish(title: str, sections: list[Section], out: Path | None, started: float, facts: Mapping[str, Fact]) -> None:
    """Prints the report, and writes it where there is a folder for it."""
    from .report import Report
    from .reports.output import print_report, write_report

    report = Report(title, sections, {**facts, "seconds": round(time.time() - started, 1)})
    print_report(report)
    if out is not None:
        write_report(report, out)
        print(out / "report.html")
