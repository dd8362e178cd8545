"""The commands that go on with documents of texts and pictures. Free of torch until one runs, so that help is quick."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tokenizers_vq.errors import Problems, UserError
from unitok.sampling import NONE_GIVEN, GivenSettings, SampleSettings

if TYPE_CHECKING:
    from .documents import DocumentWriter

TASK = "interleaved"
"""What a model must have learned."""


def generate(
    documents: Path,
    model: Path,
    out: Path = Path("runs/documents"),
    pictures: int = 4,
    seed: int = 0,
    text_temperature: float = 1.0,
    sampling: GivenSettings = NONE_GIVEN,
    context: int = 2048,
    batch_size: int = 32,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Go on with documents of texts and pictures. The model decides when a picture begins and when a document ends.

    A line of the file is a document to go on with, such as {"parts": [{"text": "Here is a circle:"}, {"image":
    "a.png"}]}; {"parts": []} begins from nothing. Writes documents.jsonl, which is a data set again, its pictures/, and
    a page to look at (documents.html).

    Args:
        documents: File of JSON lines. Its pictures are files beside it.
        model: Model folder, as written by `unitok train generator` with --tasks.interleaved.share, or hf:owner/name.
        out: New folder for the results.
        pictures: Most pictures that are drawn in a document; then it ends with the text behind the last.
        seed: Of the first document; the next has the next.
        text_temperature: Divides the logits of texts; 0 takes the most likely token each time.
        sampling: How pictures are drawn. Guidance is 1 unless it is given here: it compares the document with itself
            without its last text, which the model must have learned (tasks.caption_dropout).
        context: Most positions of a document, with what it begins with. Documents much longer than those of the
            training are outside of what the model learned.
        batch_size: Documents that are written together; changes the speed, not the documents.
        precision: Of the weights: fp32, bf16 (faster on large models), or auto (bf16 where the hardware has it and the
            model is large enough to gain).
        device: auto takes a GPU where there is one.

    Example:
        unitok generate beginnings.jsonl --model runs/generator --out runs/documents
    """
    given = SampleSettings.given(sampling)
    texts = _texts(text_temperature)
    problems = Problems()
    problems.check(documents.is_file(), f"{documents} is not a file")
    problems.check(batch_size >= 1, f"--batch-size is {batch_size}: choose 1 or more")
    problems.raise_if_any()

    import torch
    from rich.console import Console
    from rich.progress import track

    from .document_files import FILE, PAGE, read_beginnings, save_documents, save_page
    from .documents import Part, write_documents
    from .pictures import as_read
    from .pipeline import decoded

    problems.check(not (out / FILE).exists(), f"--out {out} already holds documents: choose another folder")
    problems.raise_if_any()
    writer = _writer(model, device, precision, given, texts, pictures, context)
    tokenizer = writer.model.image_tokenizer
    beginnings: list[list[Part]] = []
    pixels: list[list[torch.Tensor]] = []
    for number, parts in read_beginnings(documents, tokenizer.image_size):
        pixels.append([picture for kind, picture in parts if kind == "image"])
        with torch.inference_mode():
            left = iter([as_read(writer.model, picture[None])[0] for picture in pixels[-1]])
        beginnings.append([(kind, next(left) if kind == "image" else value) for kind, value in parts])
        try:
            writer.pieces(beginnings[-1])
        except UserError as error:
            problems.check(False, f"{documents}, line {number}: {error}")
    problems.raise_if_any()
    found: dict[int, list[Part]] = {}
    seeds = range(seed, seed + len(beginnings))
    running = write_documents(writer, beginnings, seeds, batch_size=batch_size)
    for place, parts in track(running, "writing", total=len(beginnings), console=Console(stderr=True)):
        codes = [value for kind, value in parts if kind == "image"][len(pixels[place]) :]
        drawn = [decoded(writer.model, one[None])[0] for one in codes]
        shown = iter([*pixels[place], *drawn])
        found[place] = [(kind, next(shown) if kind == "image" else value) for kind, value in parts]
    records = save_documents(out / FILE, [found[place] for place in range(len(beginnings))])
    save_page(out / PAGE, records, [f"seed {number}" for number in seeds])
    print(out / PAGE)


def chat(
    model: Path,
    out: Path = Path("runs/chat"),
    pictures: int = 4,
    seed: int = 0,
    text_temperature: float = 1.0,
    sampling: GivenSettings = NONE_GIVEN,
    context: int = 2048,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Write a document in turn with a model, line by line: it answers with texts and pictures.

    /image FILE gives a picture, which the next line speaks of; /save FILE writes the chat down as a line of a data set;
    /new begins another one; /quit ends. Lines come from the standard input, so a chat may be a file.

    Args:
        model: Model folder, as written by `unitok train generator` with --tasks.interleaved.share, or hf:owner/name.
        out: Folder for the pictures of the answers, whose names are printed.
        pictures: Most pictures of an answer.
        seed: Of the chat.
        text_temperature: Divides the logits of texts; 0 takes the most likely token each time.
        sampling: How pictures are drawn. Guidance is 1 unless it is given here: see `unitok generate`.
        context: Most positions of the chat.
        precision: Of the weights: fp32, bf16 (faster on large models), or auto (bf16 where the hardware has it and the
            model is large enough to gain).
        device: auto takes a GPU where there is one.

    Example:
        unitok chat --model runs/generator
    """
    given = SampleSettings.given(sampling)
    texts = _texts(text_temperature)

    from .chat import HELP, Chat

    writer = _writer(model, device, precision, given, texts, pictures, context)
    if sys.stdin.isatty():
        print(HELP)
    Chat(writer, _typed(), out, seed).talk()


def _typed() -> Iterator[str]:
    """The lines of the standard input."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        yield line


def _texts(temperature: float) -> SampleSettings:
    try:
        return SampleSettings(guidance=1.0, temperature=temperature)
    except UserError as error:
        raise UserError(str(error).replace("--temperature", "--text_temperature")) from None


def _writer(
    model: Path,
    device: Literal["auto", "cpu", "cuda"],
    precision: Literal["auto", "bf16", "fp32"],
    given: dict,
    texts: SampleSettings,
    pictures: int,
    context: int,
) -> DocumentWriter:
    from unitok.device import pick_device
    from unitok.model import UniTok
    from unitok.prepare import prepare

    from .documents import DocumentWriter
    from .pipeline import settings_for

    loaded = UniTok.from_pretrained(str(model), pick_device(device))
    prepare(loaded, precision)
    if TASK not in loaded.config.tasks:
        learned = ", ".join(loaded.config.tasks) or "captions and pictures"
        raise UserError(f"{model} learned {learned}, not {TASK}: train it with --tasks.{TASK}.share above 0")
    images = settings_for(loaded, {"guidance": 1.0, **given})
    return DocumentWriter(loaded, images, texts, pictures, context)
