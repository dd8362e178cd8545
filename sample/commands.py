"""The commands that use a model. Free of torch until one runs, so that help is quick."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tokenizers_vq.errors import Problems, UserError
from unitok.data.text_files import read_text
from unitok.sampling import NONE_GIVEN, GivenSettings, SampleSettings

if TYPE_CHECKING:
    from unitok.device import Precision
    from unitok.model import UniTok

    from .pipeline import Drawn

PROGRESS_ROWS = 8


def sample(
    prompts: list[str],
    model: Path,
    captions: Path | None = None,
    layout: Path | None = None,
    n: int = 4,
    out: Path = Path("runs/samples"),
    seed: int = 0,
    sampling: GivenSettings = NONE_GIVEN,
    progress: bool = False,
    batch_size: int = 32,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    compile: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Draw pictures from captions.

    Writes PNGs into pictures/, one JSON line per picture that reproduces it (pictures/metadata.jsonl, so that pictures/
    is a captioned data set) and a labelled contact sheet (sheet.png). Run again with the same options to go on where it
    stopped. Where the image tokenizer makes no pixels (SEED-LLaMA), it writes codes and image embeddings: a file for
    each picture into codes/, with such lines beside them, and codes.safetensors with all.

    Args:
        prompts: Captions to draw.
        model: Model folder, as written by `unitok train generator`, or hf:owner/name.
        captions: File with one caption per line, instead of or in addition to the captions given.
        layout: File with a caption with boxes, instead of captions: a JSON list such as ["a red circle", [0.1, 0.2,
            0.5, 0.6], " left of a square", [0.6, 0.2, 0.9, 0.5]], boxes as left, top, right, bottom from 0 to 1. For a
            model that learned it (--tasks.layout_to_image.share).
        n: Pictures for each caption, with the seeds seed, seed + 1, ...
        out: Folder for the results.
        seed: Seed of the first picture of each caption.
        sampling: How codes are chosen.
        progress: Next scale: also write progress.png, the first pictures after each scale, one picture a row.
        batch_size: Pictures that are decoded together; changes the speed, not the pictures.
        precision: Of the weights: fp32, bf16 (faster on large models), or auto (bf16 where the hardware has it and the
            model is large enough to gain). The record of a picture names it.
        compile: Compile the passes that draw code by code when they have come often: faster from some hundred pictures
            on. Needs a C++ compiler, on a GPU triton (docs/speed.md).
        device: auto takes a GPU where there is one.

    Example:
        unitok sample --model runs/demo/generator "a large blue square right of a small red circle" --n 4
    """
    given = SampleSettings.given(sampling)
    problems = Problems()
    wanted = list(prompts)
    lines: dict[str, int] = {}
    if captions is not None:
        problems.check(captions.is_file(), f"--captions {captions} is not a file")
        if captions.is_file():
            for number, line in enumerate(read_text(captions).split("\n"), 1):
                if line.strip():
                    lines.setdefault(line.strip(), number)
            wanted += lines
    if layout is not None:
        problems.check(layout.is_file(), f"--layout {layout} is not a file")
        problems.check(not wanted, "--layout has a caption of its own: leave the other captions out")
        problems.check(not progress, "--progress shows captions, not layouts: leave it out")
    problems.check(
        bool(wanted) or layout is not None,
        'nothing to draw: give captions, as in unitok sample --model DIR "a red circle"',
    )
    problems.check(n >= 1, f"--n is {n}: choose 1 or more")
    problems.check(batch_size >= 1, f"--batch-size is {batch_size}: choose 1 or more")
    problems.raise_if_any()
    if layout is not None:
        from .given_commands import sample_layout

        sample_layout(layout, model, n, out, seed, given, batch_size, precision, compile, device)
        return

    from rich.console import Console
    from rich.progress import track

    from unitok.device import pick_device
    from unitok.model import UniTok
    from unitok.prepare import noted, prepare

    from .jobs import check_smooth, way_of
    from .outputs import CodesFolder, PictureFolder
    from .performing import pointed_first
    from .pipeline import draw_progress, settings_for, value_of

    loaded = UniTok.from_pretrained(str(model), pick_device(device))
    computed = prepare(loaded, precision, compile)
    settings, no_pixels = settings_for(loaded, given, pixels=False), loaded.image_tokenizer.no_pixels
    for caption in wanted:  # one that is too long is refused before anything is written
        try:
            value_of(loaded, caption)
        except UserError as error:
            raise UserError(
                f"--captions {captions}, line {lines[caption]}: {error}" if caption in lines else str(error)
            ) from None
    check_smooth(loaded, settings, progress)
    if progress and not loaded.objective.sets_scales:
        raise UserError(f"--progress shows scales, but this model draws by {loaded.config.objective}: leave it out")
    origin = (out, str(model), loaded.fingerprint(), settings, computed, noted(loaded))
    folder = CodesFolder(loaded, *origin) if no_pixels else PictureFolder(*origin)
    asked = [(caption, seed + i) for caption in dict.fromkeys(wanted) for i in range(n)]
    jobs = [job for job in asked if job not in folder.done]
    captions_left, seeds_left = [caption for caption, _ in jobs], [number for _, number in jobs]
    task = way_of(loaded, "text_to_image")
    drawn = _drawn(loaded, captions_left, settings, seeds_left, batch_size, computed)
    for place, picture, written in track(drawn, "drawing", total=len(jobs), console=Console(stderr=True)):
        folder.add(*jobs[place], picture, pointed_first(loaded, task, written))
    print(folder.finish(asked, n))
    if no_pixels:
        print(f"note: codes and image embeddings, no pictures: {no_pixels}", file=sys.stderr)
    if progress:
        first = asked[:PROGRESS_ROWS]
        texts, seeds = [text for text, _ in first], [number for _, number in first]
        emerging = draw_progress(loaded, texts, settings, seeds, precision=computed)
        print(folder.write_progress(emerging))


def _drawn(
    model: UniTok,
    captions: Sequence[str],
    settings: SampleSettings,
    seeds: Sequence[int],
    batch_size: int,
    precision: Precision,
) -> Iterator[Drawn]:
    """Pictures as they are finished, or their codes (L,) where the image tokenizer makes no pixels."""
    from .pipeline import Drawn, draw_codes_each, draw_each

    if not model.image_tokenizer.no_pixels:
        return draw_each(model, captions, settings, seeds, batch_size=batch_size, precision=precision)
    parts = draw_codes_each(model, captions, settings, seeds, batch_size=batch_size, precision=precision)
    return (Drawn(place, written[-1], written) for part in parts for place, written in part)


def caption(
    pictures: list[Path],
    model: Path,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 0.0,
    seed: int = 0,
    batch_size: int = 32,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Write captions of pictures, one line each: file, tab, caption. What would break the line is written as in Python.

    Args:
        pictures: Picture files.
        model: Model folder, as written by `unitok train generator`, or hf:owner/name.
        temperature: Divides the logits; 0 takes the most likely token each time.
        top_k: Keep the k most likely tokens; 0 keeps all.
        top_p: Keep the smallest set of tokens with this much probability, in (0, 1]; 0 keeps all.
        seed: Of the first picture, when the temperature is above 0; the next has the next.
        batch_size: Pictures that are read together; changes the speed, not the captions.
        precision: Of the weights: fp32, bf16 (faster on large models), or auto (bf16 where the hardware has it and the
            model is large enough to gain).
        device: auto takes a GPU where there is one.

    Example:
        unitok caption --model runs/demo/generator runs/samples/pictures/a-small-red-circle-s0.png
    """
    problems = Problems()
    problems.check(bool(pictures), "nothing to caption: give picture files")
    problems.check(batch_size >= 1, f"--batch-size is {batch_size}: choose 1 or more")
    for path in pictures:
        problems.check(path.is_file(), f"{printable(str(path))} is not a file")
    problems.raise_if_any()

    import torch

    from unitok.data.decoding import PictureError, decode
    from unitok.device import pick_device
    from unitok.model import UniTok
    from unitok.prepare import prepare

    from .pipeline import caption as write_captions
    from .reading import check_task

    settings = SampleSettings(guidance=1.0, temperature=temperature, top_k=top_k, top_p=top_p)
    loaded = UniTok.from_pretrained(str(model), pick_device(device))
    prepare(loaded, precision)
    check_task(loaded, model, "image_to_text")
    size = loaded.image_tokenizer.image_size
    images = []
    for path in pictures:
        try:
            images.append(decode(path.read_bytes(), size))
        except PictureError as error:
            problems.check(False, f"{printable(str(path))} cannot be read as a picture: {error}")
    problems.raise_if_any()
    seeds = range(seed, seed + len(images))
    texts = write_captions(loaded, torch.stack(images), settings, seeds, batch_size=batch_size)
    for path, text in zip(pictures, texts, strict=True):
        print(f"{printable(str(path))}\t{printable(' '.join(text.split()))}")


def printable(text: str) -> str:
    r"""The text in one line, whatever is in it: control characters, and bytes of a file's name that are no text, are
    written as in Python.

    >>> printable("two\nlines"), printable("caf\xe9.png"), printable("caf\udce9.png")
    ('two\\nlines', 'café.png', 'caf\\xe9.png')
    """
    return "".join(_escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # how Python spells a byte that is not UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    if letter.isprintable():
        return letter
    return letter.encode("unicode_escape", "backslashreplace").decode("ascii")
