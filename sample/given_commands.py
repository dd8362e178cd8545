"""The commands that draw from more than captions: from pictures, from a layout. Free of torch until one runs, so that
help is quick."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tokenizers_vq.errors import Problems, UserError
from unitok.data.text_files import TextError, parse_foreign_json, read_text
from unitok.sampling import NONE_GIVEN, GivenSettings, SampleSettings

from .commands import printable

if TYPE_CHECKING:
    from unitok.device import Precision
    from unitok.model import UniTok

    from .jobs import Job
    from .outputs import PictureFolder


def edit(
    picture: Path,
    instruction: str,
    further: list[Path],
    model: Path,
    n: int = 1,
    out: Path = Path("runs/edits"),
    seed: int = 0,
    sampling: GivenSettings = NONE_GIVEN,
    batch_size: int = 32,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Draw a picture changed as an instruction says; further pictures behind the instruction are read after the first.

    Writes PNGs, their records and a contact sheet as unitok sample does. A record holds the instruction as its caption,
    and names the sources. --guidance takes two scales, [instruction, picture]: how much the instruction counts, and how
    much the sources do. One number is that of the instruction.

    Args:
        picture: Picture file to change.
        instruction: What to change.
        further: Further picture files that the instruction speaks of.
        model: Folder of a model that learned to edit (--tasks.edit.share), or hf:owner/name.
        n: Pictures, with the seeds seed, seed + 1, ...
        out: Folder for the results.
        seed: Seed of the first picture.
        sampling: How codes are chosen.
        batch_size: Pictures that are decoded together; changes the speed, not the pictures.
        precision: Of the weights: fp32, bf16 (faster on large models), or auto (bf16 where the hardware has it and the
            model is large enough to gain). The record of a picture names it.
        device: auto takes a GPU where there is one.

    Example:
        unitok edit cat.png "make the circle blue" --model runs/edits --n 4 --guidance "[3, 1.5]"
    """
    given, paths = SampleSettings.given(sampling), [picture, *further]
    problems = _counts(n, batch_size)
    for path in paths:
        problems.check(
            path.is_file(), f"{printable(str(path))} is not a file: give the picture, the instruction, further pictures"
        )
    problems.raise_if_any()

    import hashlib

    from unitok.device import pick_device
    from unitok.model import UniTok
    from unitok.prepare import prepare

    from .jobs import job_for, way_of
    from .outputs import PictureFolder
    from .pictures import as_read, read_picture
    from .pipeline import settings_for
    from .reading import check_task

    loaded = UniTok.from_pretrained(str(model), pick_device(device))
    computed = prepare(loaded, precision)
    settings = settings_for(loaded, given)
    check_task(loaded, model, "edit")
    size = loaded.image_tokenizer.image_size
    source = [as_read(loaded, read_picture(path, size)[None])[0] for path in paths]
    record = {"source": source, "instruction": loaded.text_ids(instruction)}
    task = way_of(loaded, "edit")
    jobs = {(instruction, number): job_for(task, record, number, settings) for number in range(seed, seed + n)}
    facts = [
        {"file_name": printable(path.name), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in paths
    ]
    folder = PictureFolder(out, str(model), loaded.fingerprint(), settings, computed, {"source": facts})
    print(draw_into(folder, loaded, task, jobs, settings, n, batch_size, computed))


def sample_layout(
    layout: Path,
    model: Path,
    n: int,
    out: Path,
    seed: int,
    given: Mapping[str, Any],
    batch_size: int,
    precision: Literal["auto", "bf16", "fp32"],
    compile: bool,
    device: str,
) -> None:
    """`unitok sample --layout`: pictures of a caption with boxes."""
    named = read_layout(layout)

    from unitok.device import pick_device
    from unitok.model import UniTok
    from unitok.prepare import noted, prepare

    from .jobs import job_for
    from .outputs import PictureFolder
    from .pipeline import settings_for
    from .reading import check_task

    loaded = UniTok.from_pretrained(str(model), pick_device(device))
    computed = prepare(loaded, precision, compile)
    settings = settings_for(loaded, given)
    check_task(loaded, model, "layout_to_image")
    caption = "".join(part for part in named if isinstance(part, str))
    loaded.text_ids(caption)  # one that is too long is refused before anything is written
    task = "layout_to_image"
    jobs = {(caption, number): job_for(task, {"named": named}, number, settings) for number in range(seed, seed + n)}
    given_too = {"named": named, **noted(loaded)}
    folder = PictureFolder(out, str(model), loaded.fingerprint(), settings, computed, given_too)
    print(draw_into(folder, loaded, task, jobs, settings, n, batch_size, computed))


def read_layout(path: Path) -> list[str | list[float]]:
    """A caption with boxes, from a file with one JSON list of strings and boxes.

    Raises:
        UserError: something else is in the file.
    """
    from unitok.data.captions import CaptionError
    from unitok.data.records_file import named_value

    try:
        return named_value(parse_foreign_json(read_text(path)))
    except (CaptionError, TextError) as error:
        raise UserError(f"--layout {path} {error}") from None


def draw_into(
    folder: PictureFolder,
    model: UniTok,
    task: str,
    jobs: Mapping[tuple[str, int], Job],
    settings: SampleSettings,
    n: int,
    batch_size: int,
    precision: Precision,
) -> Path:
    """Draws what a folder does not hold yet, by (caption, seed); returns the contact sheet, n pictures a row."""
    from rich.console import Console
    from rich.progress import track

    from .performing import pointed_first
    from .pipeline import draw_jobs

    left = [asked for asked in jobs if asked not in folder.done]
    wanted = [jobs[asked] for asked in left]
    drawn = draw_jobs(model, wanted, settings, batch_size=batch_size, precision=precision)
    for place, picture, written in track(drawn, "drawing", total=len(left), console=Console(stderr=True)):
        folder.add(*left[place], picture, pointed_first(model, task, written))
    return folder.finish(jobs, n)


def _counts(n: int, batch_size: int) -> Problems:
    problems = Problems()
    problems.check(n >= 1, f"--n is {n}: choose 1 or more")
    problems.check(batch_size >= 1, f"--batch-size is {batch_size}: choose 1 or more")
    return problems
