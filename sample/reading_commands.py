"""The commands that read one picture: answers, boxes. Free of torch until one runs, so that help is quick."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tokenizers_vq.errors import Problems, UserError, shown
from unitok.sampling import SampleSettings

from .commands import printable


def ask(
    picture: Path,
    questions: list[str],
    model: Path,
    also: Path | list[Path] | None = None,
    out: Path | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 0.0,
    seed: int = 0,
    batch_size: int = 32,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Answer questions about a picture, one line each: question, tab, answer. The picture is read once. What would
    break the line is written as in Python.

    A model that points first (--tasks.pointed_question.share) says behind a second tab where it looked: boxes as
    left,top,right,bottom in pixels of the picture, with spaces between them.

    Args:
        picture: Picture file.
        questions: What to ask about it.
        model: Folder of a model that learned to answer (--tasks.question.share), or hf:owner/name.
        also: A further picture file, or [several], read behind the first: each question is about all of them.
        out: Folder for the answers as a file of records (NAME.jsonl: image, question, answer and, of a model that
            points, boxes), the picture beside it, and the picture with the boxes drawn on it (NAME-boxes.png), each
            with the number of its question.
        temperature: Divides the logits; 0 takes the most likely token each time.
        top_k: Keep the k most likely tokens; 0 keeps all.
        top_p: Keep the smallest set of tokens with this much probability, in (0, 1]; 0 keeps all.
        seed: Of the first answer, when the temperature is above 0; the next has the next.
        batch_size: Answers that are written together; changes the speed, not the answers.
        precision: Of the weights: fp32, bf16 (faster on large models), or auto (bf16 where the hardware has it and the
            model is large enough to gain).
        device: auto takes a GPU where there is one.

    Example:
        unitok ask cat.png --model runs/demo/generator "what colour is the circle" "how many squares are there"
        unitok ask cat.png --model runs/chameleon "what do these pictures have in common" --also dog.png
    """
    problems = Problems()
    problems.check(bool(questions), 'nothing to ask: give questions, as in unitok ask cat.png --model DIR "what is it"')
    problems.check(batch_size >= 1, f"--batch-size is {batch_size}: choose 1 or more")
    pictures = [picture, *(also if isinstance(also, list) else [also] if also else [])]
    for one in pictures:
        _check_files(one, out, problems)
    problems.check(out is None or not also, "--out holds records of one picture each: leave it out with --also")
    problems.raise_if_any()

    import torch

    from unitok.boxes import uncropped
    from unitok.device import pick_device
    from unitok.model import UniTok
    from unitok.prepare import prepare

    from . import reading
    from .outputs import save_answers
    from .pictures import ReadPicture

    settings = SampleSettings(guidance=1.0, temperature=temperature, top_k=top_k, top_p=top_p)
    loaded = UniTok.from_pretrained(str(model), pick_device(device))
    prepare(loaded, precision)
    reading.check_task(loaded, model, "question")
    read, *others = [ReadPicture.of(one, loaded.image_tokenizer.image_size) for one in pictures]
    seen = torch.stack([read.seen, *(one.seen for one in others)]) if others else read.seen
    seeds = range(seed, seed + len(questions))
    answers = reading.answers(loaded, seen, questions, settings, seeds, batch_size=batch_size)
    records, drawn = [], []
    for number, (question, (answer, pointed)) in enumerate(zip(questions, answers, strict=True), 1):
        boxes = [read.pixels(box) for box in pointed.get("boxes", ())]
        print("\t".join([_line(question), _line(answer), *([" ".join(map(_sides, boxes))] if pointed else [])]))
        shares = {field: [uncropped(box, read.window) for box in found] for field, found in pointed.items()}
        records.append({"question": question, **shares, "answer": answer})
        drawn += [(str(number), box) for box in boxes]
    if out is not None:
        save_answers(out, picture.stem, read.whole, records, drawn)


def ground(
    picture: Path,
    model: Path,
    phrase: str | None = None,
    describe: str | None = None,
    out: Path | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 0.0,
    seed: int = 0,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Say where something is in a picture: its boxes, one line each, as left,top,right,bottom in pixels of the picture.

    Without a phrase the caption of the picture is written, with the box of each thing that it names: a line for each
    part of the caption, and behind a tab its box. With --describe it goes the other way, from a box to words. A model
    reads the centre of a picture, scaled to cover its size: there lie all boxes.

    Args:
        picture: Picture file.
        model: Folder of a model that learned the task (--tasks.ground.share, ground_caption, describe), or
            hf:owner/name.
        phrase: What to look for.
        describe: Describe what is in this box, left,top,right,bottom in pixels, instead of looking for something.
        out: Folder for the picture with the boxes drawn on it.
        temperature: Divides the logits; 0 takes the most likely token each time.
        top_k: Keep the k most likely tokens; 0 keeps all.
        top_p: Keep the smallest set of tokens with this much probability, in (0, 1]; 0 keeps all.
        seed: For a temperature above 0.
        precision: Of the weights: fp32, bf16 (faster on large models), or auto (bf16 where the hardware has it and the
            model is large enough to gain).
        device: auto takes a GPU where there is one.

    Example:
        unitok ground cat.png --model runs/grounded "the red circle" --out runs/boxes
        unitok ground cat.png --model runs/grounded
        unitok ground cat.png --model runs/grounded --describe 10,20,40,60
    """
    problems = Problems()
    _check_files(picture, out, problems)
    problems.check(phrase is None or describe is None, "a phrase and --describe are two directions: give one of them")
    given = None if describe is None else pixels_of(describe, problems)
    problems.raise_if_any()

    from unitok.device import pick_device
    from unitok.model import UniTok
    from unitok.prepare import prepare

    from . import reading
    from .outputs import save_boxes
    from .pictures import ReadPicture

    settings = SampleSettings(guidance=1.0, temperature=temperature, top_k=top_k, top_p=top_p)
    loaded = UniTok.from_pretrained(str(model), pick_device(device))
    prepare(loaded, precision)
    task = "describe" if given else "ground_caption" if phrase is None else "ground"
    reading.check_task(loaded, model, task)
    read = ReadPicture.of(picture, loaded.image_tokenizer.image_size)
    seen, (width, height, *_) = read.seen, read.lengths
    found: list[tuple[str, list[int] | None]] = []
    if given is not None:
        if given[2] > width or given[3] > height:
            raise UserError(f"--describe {describe} is outside of the picture, which has {width}x{height} pixels")
        box = read.shares(given)
        if box is None:
            left, top, right, bottom = read.pixels([0, 0, 1, 1])
            raise UserError(
                f"--describe {describe} is outside of what the model reads, {left},{top},{right},{bottom}: choose "
                "another box"
            )
        print(_line(reading.describe(loaded, seen, box, settings, seed)))
        found.append(("", [round(side) for side in given]))
    elif phrase is not None:
        boxes = reading.ground(loaded, seen, phrase, settings, seed)
        found += [("", read.pixels(box)) for box in boxes]
    else:
        parts = reading.ground_caption(loaded, seen, settings, seed)
        for part in parts:
            if isinstance(part, str):
                found.append((_line(part), None))
            elif found and found[-1][1] is None:
                found[-1] = (found[-1][0], read.pixels(part))
            else:  # one more box of the same words
                found.append(("", read.pixels(part)))
    if given is None:
        for text, place in found:
            print("\t".join([*([text] if phrase is None else []), *([_sides(place)] if place else [])]))
    if not found:
        print("the model names nothing", file=sys.stderr)
    if out is not None:
        drawn = [(text, place) for text, place in found if place is not None]
        save_boxes(out / f"{picture.stem}.png", read.whole, drawn)


def pixels_of(text: str, problems: Problems) -> list[float]:
    """The box of `left,top,right,bottom`; notes what is none."""
    try:
        sides = [float(side) for side in text.split(",")]
    except ValueError:
        sides = []
    fine = len(sides) == 4 and all(map(math.isfinite, sides)) and 0 <= sides[0] < sides[2] and 0 <= sides[1] < sides[3]
    problems.check(
        fine,
        f"--describe is {shown(text)}: give left,top,right,bottom in pixels, left before right and top before bottom, "
        "as in 10,20,40,60",
    )
    return sides


def _check_files(picture: Path, out: Path | None, problems: Problems) -> None:
    problems.check(picture.is_file(), f"{printable(str(picture))} is not a file")
    problems.check(
        out is None or out.resolve() != picture.resolve().parent,
        f"--out {out} is the folder of the picture, which would be written over: choose another",
    )


def _sides(box: Sequence[int]) -> str:
    return ",".join(map(str, box))


def _line(text: str) -> str:
    return printable(" ".join(text.split()))
