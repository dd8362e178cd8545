"""The commands that draw a part of a picture and leave the rest. Free of torch until one runs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tokenizers_vq.errors import Problems, UserError, shown
from tokenizers_vq.storage.files import read_bytes
from unitok.sampling import NONE_GIVEN, GivenSettings, SampleSettings

from .commands import printable

if TYPE_CHECKING:
    import torch

    from unitok.model import UniTok

FILE_LIMIT = 2**30
"""Bytes of a picture file that are read."""


def inpaint(
    picture: Path,
    model: Path,
    caption: str,
    box: str | None = None,
    mask: Path | None = None,
    n: int = 4,
    out: Path = Path("runs/inpainted"),
    seed: int = 0,
    sampling: GivenSettings = NONE_GIVEN,
    batch_size: int = 32,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Draw a part of a picture anew, by a caption. All other pixels stay.

    The picture is scaled and cropped to the model's size, as `unitok caption` does it, and its mask with it. Writes the
    same files as `unitok sample`; each record names the digest of the picture and the mask. The sheet begins with the
    picture and what is known of it.

    Args:
        picture: Picture file.
        model: Model folder, as written by `unitok train generator`, or hf:owner/name.
        caption: What the whole picture shows when it is done.
        box: What is drawn anew, as left,top,right,bottom in pixels of the picture given; right and bottom are the first
            pixels that stay.
        mask: In place of a box, a picture file of the picture's size, white where it is drawn anew.
        n: Pictures, with the seeds seed, seed + 1, ...
        out: Folder for the results.
        seed: Seed of the first picture.
        sampling: How codes are chosen.
        batch_size: Pictures that are drawn together; changes the speed, not the pictures.
        precision: Of the weights: fp32, bf16 (faster on large models), or auto (bf16 where the hardware has it and the
            model is large enough to gain). The record of a picture names it.
        device: auto takes a GPU where there is one.

    Example:
        unitok inpaint cat.png --model runs/generator --caption "a cat with a red hat" --box 40,0,90,30
    """
    given = SampleSettings.given(sampling)
    problems = _problems(picture, caption, n, batch_size)
    sides = _sides_of(box, problems) if box is not None else None
    problems.check((box is None) != (mask is None), "give --box left,top,right,bottom or --mask FILE, one of them")
    problems.check(mask is None or mask.is_file(), f"--mask {printable(str(mask))} is not a file")
    problems.raise_if_any()

    from rich.console import Console
    from rich.progress import track

    from unitok.device import pick_device
    from unitok.model import UniTok
    from unitok.prepare import prepare

    from .inpainting import inpaint_each, inpainting_task
    from .masks import check_places, drawn_anew, fit_mask, mask_of_box, mask_of_picture, without
    from .outputs import PictureFolder
    from .performing import pointed_first

    given_picture, digest = _read(picture)
    height, width = given_picture.shape[1:]
    made_from: dict[str, Any] = {"picture": str(picture), "sha256": digest}
    if sides is not None:
        hole, made_from["box"] = mask_of_box(sides, height, width), list(sides)
    else:
        assert mask is not None
        white, made_from["mask_sha256"] = _read(mask)
        if white.shape != given_picture.shape:
            raise UserError(
                f"--mask {printable(str(mask))} is {white.shape[2]} wide and {white.shape[1]} high, the picture is "
                f"{width} wide and {height} high: make the mask as large as the picture"
            )
        hole = mask_of_picture(white)
        if not hole.any():
            raise UserError(f"--mask {printable(str(mask))} has no white pixel: make white what is to be drawn anew")
    loaded = UniTok.from_pretrained(str(model), pick_device(device))
    computed = prepare(loaded, precision)
    check_places(loaded.image_tokenizer)
    settings = _settings(loaded, given, caption)
    size = loaded.image_tokenizer.image_size
    hole, (whole, _) = fit_mask(hole, size), _read(picture, size)
    if not hole.any():
        raise UserError(
            f"what is to be drawn anew is cut off when the picture is scaled and cropped to the model's "
            f"{size[1]}x{size[0]}: crop the picture yourself, around it"
        )
    drawn_anew(loaded, hole[None])  # one that covers no code is refused before anything is written
    folder = PictureFolder(out, str(model), loaded.fingerprint(), settings, computed, {"made_from": made_from})
    asked = [(caption, seed + i) for i in range(n)]
    jobs = [job for job in asked if job not in folder.done]
    pictures, holes = (one.expand(len(jobs), *one.shape) for one in (whole, hole))
    seeds = [number for _, number in jobs]
    drawn = inpaint_each(
        loaded,
        pictures,
        holes,
        [caption] * len(jobs),
        settings,
        seeds,
        batch_size=batch_size,
        precision=computed,
    )
    task = inpainting_task(loaded)
    for place, result, written in track(drawn, "drawing", total=len(jobs), console=Console(stderr=True)):
        folder.add(*jobs[place], result, pointed_first(loaded, task, written))
    print(folder.finish(asked, n, {"given": whole, "known": without(whole, hole)}))


def extend(
    picture: Path,
    model: Path,
    caption: str,
    left: int = 0,
    right: int = 0,
    top: int = 0,
    bottom: int = 0,
    n: int = 4,
    out: Path = Path("runs/extended"),
    seed: int = 0,
    sampling: GivenSettings = NONE_GIVEN,
    batch_size: int = 32,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Draw a larger picture around one, by a caption. The picture itself stays as it is.

    The model draws windows of its own size over the canvas, in steps of half a window, beginning beside the picture.
    Writes the same files as `unitok sample`; each record names the digest of the picture and the sides. The sheet
    begins with what is known of the canvas.

    Args:
        picture: Picture file, at least as large as the model's pictures; it is not scaled.
        model: Model folder, as written by `unitok train generator`, or hf:owner/name.
        caption: What each window shows.
        left: Pixels to add on the left.
        right: Pixels to add on the right.
        top: Pixels to add above.
        bottom: Pixels to add below.
        n: Pictures, with the seeds seed, seed + 1, ...
        out: Folder for the results.
        seed: Seed of the first picture.
        sampling: How codes are chosen.
        batch_size: Pictures that are drawn together; changes the speed, not the pictures.
        precision: Of the weights: fp32, bf16 (faster on large models), or auto (bf16 where the hardware has it and the
            model is large enough to gain). The record of a picture names it.
        device: auto takes a GPU where there is one.

    Example:
        unitok extend beach.png --model runs/generator --caption "a beach with palms" --left 128 --right 128
    """
    given = SampleSettings.given(sampling)
    _problems(picture, caption, n, batch_size).raise_if_any()

    import torch.nn.functional as F
    from rich.console import Console
    from rich.progress import track

    from unitok.device import pick_device
    from unitok.model import UniTok
    from unitok.prepare import prepare

    from .inpainting import Sides, extend_all, plan
    from .jobs import parts
    from .masks import GREY, check_places
    from .outputs import PictureFolder

    whole, digest = _read(picture)
    sides = Sides(left, right, top, bottom)
    loaded = UniTok.from_pretrained(str(model), pick_device(device))
    computed = prepare(loaded, precision)
    check_places(loaded.image_tokenizer)
    settings = _settings(loaded, given, caption)
    plan(loaded, whole.shape[1:], sides)  # sides and sizes that cannot be are refused before anything is written
    made_from = {"picture": str(picture), "sha256": digest, **sides._asdict()}
    folder = PictureFolder(out, str(model), loaded.fingerprint(), settings, computed, {"made_from": made_from})
    asked = [(caption, seed + i) for i in range(n)]
    jobs = [job for job in asked if job not in folder.done]
    steps = list(parts(len(jobs), batch_size))
    for step in track(steps, "drawing", console=Console(stderr=True)):
        seeds = [number for _, number in jobs[step]]
        drawn = extend_all(loaded, whole, sides, caption, settings, seeds, batch_size=batch_size, precision=computed)
        for job, result in zip(jobs[step], drawn, strict=True):
            folder.add(*job, result)
    print(folder.finish(asked, n, {"known": F.pad(whole, sides, value=GREY)}))


def _problems(picture: Path, caption: str, n: int, batch_size: int) -> Problems:
    problems = Problems()
    problems.check(picture.is_file(), f"{printable(str(picture))} is not a file")
    problems.check(n >= 1, f"--n is {n}: choose 1 or more")
    problems.check(batch_size >= 1, f"--batch-size is {batch_size}: choose 1 or more")
    return problems


def _sides_of(box: str, problems: Problems) -> tuple[int, int, int, int]:
    """The numbers of a `--box`; notes one that is none."""
    try:
        left, top, right, bottom = (int(side) for side in box.strip("[]() ").split(","))
    except ValueError:
        problems.check(False, f"--box is {shown(box)}: give left,top,right,bottom, four whole numbers of pixels")
        return 0, 0, 0, 0
    return left, top, right, bottom


def _read(path: Path, size: tuple[int, int] | None = None) -> tuple[torch.Tensor, str]:
    """A picture (3, H, W) uint8, and the digest of its file.

    Raises:
        UserError: not a picture.
    """
    from unitok.data.decoding import PictureError, decode

    data = read_bytes(path, FILE_LIMIT)
    try:
        return decode(data, size), hashlib.sha256(data).hexdigest()
    except PictureError as error:
        raise UserError(f"{printable(str(path))} cannot be read as a picture: {error}") from None


def _settings(model: UniTok, given: dict[str, Any], caption: str) -> SampleSettings:
    """The settings to draw with; refuses a caption that is too long."""
    from .pipeline import settings_for, value_of

    value_of(model, caption)
    return settings_for(model, given)
