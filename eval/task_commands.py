"""The commands that measure tasks and texts. Free of torch until one runs, so that help is quick."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tokenizers_vq.errors import Problems, UserError
from unitok.sampling import NONE_GIVEN, GivenSettings, SampleSettings

from .commands import check_counts, finish

TEXT_LENGTH = 128
"""Tokens of a piece that a language model reads, where none are given."""

if TYPE_CHECKING:
    from unitok.data.records import CaptionsWanted, RecordDataset

    from .report import Section


def eval_tasks(
    data: list[str],
    model: Path,
    out: Path = Path("runs/eval-tasks"),
    limit: int | None = None,
    max_bad: float = 0.01,
    sampling: GivenSettings = NONE_GIVEN,
    seed: int = 0,
    batch_size: int = 32,
    precision: Literal["auto", "bf16", "fp32"] = "fp32",
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Measure every task that a model learned: the share of records for which what it writes is exactly right.

    A data set is used for each learned task whose fields its records have; captions, for which all have what it takes,
    are measured on the first. Where records have a box, what is in it is also drawn anew, the rest known. Texts and
    boxes are compared with those of the record (boxes by an overlap of at least one half); pictures are judged where an
    exact checker reads them, on `shapes`. What a model whose codes become no pixels would draw is left out. Prints a
    table and writes report.json, report.html, a sheet of each task and items.jsonl; `unitok eval compare` puts reports
    side by side, such as that of a model that learned one task alone.

    Args:
        data: Data sets, SOURCE[@SPLIT][?key=value&...] each.
        model: Model folder, as written by `unitok train generator`, or hf:owner/name.
        out: Folder for the report.
        limit: Records used of each data set; null for all (of endless data, 1000).
        max_bad: Share of broken pictures that is left out; more of them stop the measurement.
        sampling: How pictures are drawn.
        seed: The i-th record is written with seed + i.
        batch_size: Records at a time; changes the speed, not the numbers.
        precision: Of the weights: fp32, bf16 (faster on large models), or auto (bf16 where the hardware has it and the
            model is large enough to gain).
        device: auto takes a GPU where there is one.

    Example:
        unitok eval tasks "shapes@val?task=edit&limit=400" "shapes@val?task=ground&limit=400" --model runs/shapes/tasks
    """
    given = SampleSettings.given(sampling)
    started = time.time()
    check_counts(batch_size, limit)
    problems = Problems()
    problems.check(bool(data), 'no data given: name some, as in "shapes@val?task=edit&limit=400"')
    problems.raise_if_any()

    from unitok.data.open import open_data
    from unitok.device import pick_device
    from unitok.model import UniTok
    from unitok.prepare import prepare
    from unitok.sample.inpainting import reads_known
    from unitok.sample.masks import has_places
    from unitok.sample.pipeline import settings_for
    from unitok.tasks import needs, way

    from .reports.output import claim_folder
    from .tasks import DRAWS, check_learned, measure_inpainting, measure_task, of_captions, tasks_of, without_pixels

    loaded = UniTok.from_pretrained(str(model), pick_device(device))
    precision = prepare(loaded, precision)
    check_learned(loaded, str(model))
    drawn = not loaded.image_tokenizer.no_pixels
    settings = settings_for(loaded, given) if drawn else SampleSettings.of(loaded.config, given)
    size = loaded.image_tokenizer.image_size
    captions: CaptionsWanted = "optional" if "caption" in needs(loaded.config.tasks) else False
    opened = [open_data(one, size, captions=captions) for one in data]
    pairs: list[tuple[RecordDataset, str]] = []
    for dataset in opened:
        done = {task for _, task in pairs if of_captions(task)}
        pairs += [(dataset, task) for task in tasks_of(loaded, dataset) if task not in done]
    out_of_reach = without_pixels(loaded, [task for _, task in pairs])
    pairs = [(dataset, task) for dataset, task in pairs if task not in out_of_reach]
    if out_of_reach and not pairs:
        loaded.image_tokenizer.check_pixels()
    if not pairs:
        learned = ", ".join(loaded.config.tasks)
        raise UserError(f"the records of {', '.join(data)} have the fields of no task that {model} learned: {learned}")
    claim_folder(out)
    notes = [f"left out: {', '.join(out_of_reach)}; {loaded.image_tokenizer.no_pixels}"] if out_of_reach else []
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    sections: list[Section] = []
    for dataset, task in pairs:
        section = measure_task(
            loaded,
            task,
            dataset,
            settings=settings,
            seed=seed,
            limit=limit,
            max_bad=max_bad,
            batch_size=batch_size,
            precision=precision,
        )
        if section is not None:  # of several data sets for one task, the later ones are numbered
            before = sum(one.name.partition(" ")[0] == task for one in sections)
            sections.append(replace(section, name=f"{task} {before + 1}") if before else section)
    draws = way(DRAWS, loaded.config.tasks or [DRAWS]) is not None or reads_known(loaded)
    holes = draws and has_places(loaded.image_tokenizer) and drawn
    for dataset in opened if holes else ():
        inpainted = measure_inpainting(
            loaded,
            dataset,
            settings=settings,
            seed=seed,
            limit=limit,
            max_bad=max_bad,
            batch_size=batch_size,
            precision=precision,
        )
        if inpainted is not None:
            sections.append(inpainted)
            break
    for section in sections[:1]:
        section.warnings += notes
    finish("Tasks", sections, out, started, {"model": str(model)})


def eval_text(
    file: Path,
    model: Path | None = None,
    trunk: str | None = None,
    out: Path | None = None,
    length: int | None = None,
    batch_size: int = 32,
    precision: Literal["auto", "bf16", "fp32"] = "fp32",
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """How well a model foresees a text: perplexity per token, and bits per byte, which other tokenizers share.

    Before and after a training it says what a language model has kept of its language.

    Args:
        file: Text file; each line is a text.
        model: Model folder, as written by `unitok train generator`, or hf:owner/name.
        trunk: Instead of a model, a language model as it is, as of --trunk of train generator: hf:FOLDER, hf:FILE.gguf
            or hf:owner/name.
        out: Folder for report.json and report.html; null prints the table alone.
        length: Tokens of a piece; a longer text is read in pieces, each without those before it. Null: as many as the
            model reads (of a language model, 128).
        batch_size: Pieces at a time; changes the speed, not the numbers.
        precision: fp32, bf16 (autocast), or auto (bf16 where the hardware has it).
        device: auto takes a GPU where there is one.

    Example:
        unitok eval text prose.txt --model runs/generator --out runs/eval-text
    """
    started = time.time()
    check_counts(batch_size, None)
    problems = Problems()
    problems.check((model is None) != (trunk is None), "give a model with --model, or a language model with --trunk")
    problems.check(length is None or length >= 1, f"--length is {length}: choose 1 or more")
    problems.raise_if_any()
    from unitok.data.text_files import read_text
    from unitok.device import pick_device
    from unitok.model import UniTok
    from unitok.trunk.hf.reading import read_language_model

    from .metrics.perplexity import measure_texts
    from .reports.output import claim_folder

    texts = [line.strip() for line in read_text(file).split("\n") if line.strip()]
    where = pick_device(device)
    if trunk is not None:
        loaded = read_language_model(trunk).alone(length or TEXT_LENGTH).to(where)
    else:
        loaded = UniTok.from_pretrained(str(model), where)
    if out is not None:
        claim_folder(out)
    section = measure_texts(loaded, texts, str(file), length=length, batch_size=batch_size, precision=precision)
    finish("Texts", [section], out, started, {"model": str(model or trunk)})
