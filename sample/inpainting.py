"""Pictures of which a part is known: a hole is filled, or a larger canvas is drawn around them.

What is known comes back to the bit. Codes whose places lie in it are given to the model and stay, the others are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from tokenizers_vq.errors import Problems, UserError
from tokenizers_vq.images import to_float, to_uint8
from unitok.device import Precision
from unitok.model import UniTok
from unitok.sampling import SampleSettings
from unitok.seeding import fold
from unitok.tasks import way

from .best_of import BestOf, candidate_seeds
from .jobs import Job, job_for, way_of
from .masks import box_around, check_places, covered, drawn_anew
from .pictures import check_size
from .pipeline import Drawn, decoded, draw_jobs, value_of

LONGEST_SIDE = 2**14
"""Pixels that a side of a picture is extended by."""
MOST_WINDOWS = 4096
"""Windows of a canvas that are drawn."""


def inpaint(
    model: UniTok,
    pictures: torch.Tensor,
    masks: torch.Tensor,
    captions: Sequence[str],
    settings: SampleSettings | None = None,
    seeds: Sequence[int] | None = None,
    *,
    batch_size: int = 32,
    precision: Precision = "fp32",
    text_ids: Callable[[str], list[int]] | None = None,
) -> torch.Tensor:
    """Pictures (N, 3, H, W) uint8, drawn anew where the masks say so. All other pixels are those that were given.

    Args:
        model: draws.
        pictures: (N, 3, H, W) uint8 of the model's size.
        masks: (N, H, W) bool, true where a picture is drawn anew.
        captions: of the whole pictures, one for each.
        settings: how codes are chosen; default: the model's own.
        seeds: default 0, 1, ... They fix each picture, alone or in any batch.
        batch_size: pictures drawn at a time; changes the speed, not the pictures.
        precision: see `unitok.device`.
        text_ids: see `unitok.sample.pipeline.draw`.

    Raises:
        UserError: pictures or masks of another size, a mask without a pixel, a tokenizer whose codes have no place, a
            caption that is too long, or logits that are not finite.
    """
    settings = settings or SampleSettings.of(model.config)
    seeds = range(len(captions)) if seeds is None else seeds
    drawn = inpaint_each(
        model, pictures, masks, captions, settings, seeds, batch_size=batch_size, precision=precision, text_ids=text_ids
    )
    found = {one.place: one.picture for one in drawn}
    return torch.stack([found[place] for place in range(len(captions))])


def inpaint_each(
    model: UniTok,
    pictures: torch.Tensor,
    masks: torch.Tensor,
    captions: Sequence[str],
    settings: SampleSettings,
    seeds: Sequence[int],
    *,
    batch_size: int = 32,
    precision: Precision = "fp32",
    text_ids: Callable[[str], list[int]] | None = None,
    known: torch.Tensor | None = None,
) -> Iterator[Drawn]:
    """Pictures as they are finished; arguments as of `inpaint`. `known`: the codes (N, L), -1 where they are drawn;
    default: those of the pictures."""
    known = known_codes(model, pictures, masks) if known is None else known
    jobs = [
        inpainting_job(model, given, mask, value_of(model, caption, text_ids), one, settings)
        for caption, seed, given, mask in zip(captions, seeds, known, masks, strict=True)
        for one in candidate_seeds(seed, settings.best_of)
    ]
    best = best_fitting(model, pictures, masks, settings.best_of)
    for drawn in draw_jobs(model, jobs, settings, best, batch_size=batch_size, precision=precision):
        number = drawn.place
        yield drawn._replace(picture=torch.where(masks[number], drawn.picture, pictures[number]))


def best_fitting(model: UniTok, pictures: torch.Tensor, masks: torch.Tensor, number: int) -> BestOf:
    """The drawings that differ least, pixel by pixel, from what is known of pictures (N, 3, H, W) uint8. A code that is
    drawn may show known pixels too, and the model was not told them: without a choice, what it draws may be cut off
    there."""

    def scores(place: int, codes: torch.Tensor) -> torch.Tensor:
        off = (decoded(model, codes).float() - pictures[place].float()).abs()
        return -off.masked_fill(masks[place], 0).mean((1, 2, 3))

    return BestOf(number, scores)


def inpainting_job(
    model: UniTok, known: torch.Tensor, mask: torch.Tensor, caption: list[int], seed: int, settings: SampleSettings
) -> Job:
    """The job that draws the codes that are not known, -1 of (L,), by a caption's ids. A model that learned the task
    reads all that is known before the first, and a mask (H, W) bool as the box around it."""
    record = {"known": known, "hole": box_around(mask), "caption": caption}
    return job_for(inpainting_task(model), record, seed, settings, known=known)


def inpainting_task(model: UniTok) -> str:
    """The row of the task table by which a model fills in."""
    return way("inpaint", model.config.tasks) or way_of(model, "text_to_image")


def reads_known(model: UniTok) -> bool:
    """Whether a model learned to read the known part of a picture."""
    return way("inpaint", model.config.tasks) is not None


def known_codes(model: UniTok, pictures: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Codes (N, L), on the CPU, of pictures (N, 3, H, W) uint8; -1 where masks (N, H, W) say that they are drawn anew.

    Raises:
        UserError: pictures or masks of another size, a mask without a pixel, a tokenizer whose codes have no place.
    """
    check_places(model.image_tokenizer)
    check_size(model, pictures)
    if masks.shape != (len(pictures), *pictures.shape[2:]):
        raise UserError(
            f"masks are {tuple(masks.shape)}, the pictures need {(len(pictures), *pictures.shape[2:])}: give each "
            "picture a mask of its size"
        )
    for number, mask in enumerate(masks):
        if not mask.any():
            raise UserError(f"mask {number} is empty, so there is nothing to draw: mark the pixels to be drawn anew")
    # One at a time: convolutions round differently in another batch, and a picture must not depend on its batch.
    images = to_float(pictures).to(model.device).split(1)
    codes = torch.cat([model.image_tokenizer.encode(image) for image in images]).cpu()
    return codes.masked_fill(drawn_anew(model, masks), -1)


class Sides(NamedTuple):
    """Pixels that a picture is extended by."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0


class Window(NamedTuple):
    """A part of a canvas, of the model's size, by its first row and column."""

    top: int
    left: int


def extend(
    model: UniTok,
    picture: torch.Tensor,
    sides: Sides,
    caption: str,
    settings: SampleSettings | None = None,
    seed: int = 0,
    *,
    precision: Precision = "fp32",
) -> torch.Tensor:
    """One of the canvases of `extend_all`, (3, H', W') uint8."""
    return extend_all(model, picture, sides, caption, settings, [seed], precision=precision)[0]


def extend_all(
    model: UniTok,
    picture: torch.Tensor,
    sides: Sides,
    caption: str,
    settings: SampleSettings | None = None,
    seeds: Sequence[int] = (0,),
    *,
    batch_size: int = 32,
    precision: Precision = "fp32",
) -> torch.Tensor:
    """A picture with more around it, once for each seed: (N, 3, H', W') uint8, the picture itself unchanged in it.

    Windows of the model's size are drawn over the canvas in steps of half a window, each with the same caption. Those
    beside the picture come first, so that each window knows a part of what it shows.

    Args:
        model: draws.
        picture: (3, H, W) uint8, at least of the model's size.
        sides: pixels to add.
        caption: what every window shows.
        settings: how codes are chosen; default: the model's own.
        seeds: they fix each canvas, alone or in any batch.
        batch_size: canvases drawn at a time; changes the speed, not the canvases.
        precision: see `unitok.device`.

    Raises:
        UserError: a picture smaller than the model's, sides that are negative, all zero or too long, a tokenizer whose
            codes have no place, a caption that is too long, or logits that are not finite.
    """
    settings = settings or SampleSettings.of(model.config)
    canvases = [canvas_of(model, picture, Sides(*sides)) for _ in seeds]
    for number in range(len(canvases[0].windows) if canvases else 0):
        pixels, holes = zip(*(canvas.window(number) for canvas in canvases), strict=True)
        drawn = inpaint_each(
            model,
            torch.stack(pixels),
            torch.stack(holes),
            [caption] * len(seeds),
            settings,
            [window_seed(seed, number) for seed in seeds],
            batch_size=batch_size,
            precision=precision,
            known=torch.stack([canvas.known(number) for canvas in canvases]),
        )
        for one in drawn:
            canvases[one.place].put(number, one.picture, one.written[-1])
    return torch.stack([canvas.picture for canvas in canvases])


def window_seed(seed: int, number: int) -> int:
    """The seed of a window of a canvas."""
    return fold(seed, "window", number)


class Canvas:
    """A picture with room around it, which is drawn window by window.

    Args:
        model: draws.
        picture: (3, H, W) uint8, at least of the model's size.
        sides: pixels to add.

    Raises:
        UserError: as `extend_all`.
    """

    def __init__(self, model: UniTok, picture: torch.Tensor, sides: Sides) -> None:
        check_places(model.image_tokenizer)
        self._model = model
        self.windows, around = plan(model, picture.shape[1:], sides)
        """In the order in which they are drawn."""
        self._size = model.image_tokenizer.image_size
        _, height, width = picture.shape
        # What is not known yet continues the border, for the codes beside it to be made from likely neighbours.
        border = (around.left, around.right, around.top, around.bottom)
        self._pixels = F.pad(picture[None].float(), border, mode="replicate")[0].to(torch.uint8)
        self._empty = torch.ones(self._pixels.shape[1:], dtype=torch.bool)
        self._empty[around.top : around.top + height, around.left : around.left + width] = False
        self._corner = around.left, around.top
        """Of the picture: its first column and row."""
        top, left = around.top - sides.top, around.left - sides.left
        self._shown = (
            ...,
            slice(top, around.top + height + sides.bottom),
            slice(left, around.left + width + sides.right),
        )

    def window(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What is there where a window stands, (3, H, W) uint8, and what of it is to be drawn, (H, W) bool."""
        here = self._here(number)
        return self._pixels[here], self._empty[here]

    def known(self, number: int) -> torch.Tensor:
        """The codes (L,) of a window, -1 where they are to be drawn."""
        pixels, empty = self.window(number)
        return known_codes(self._model, pixels[None], empty[None])[0]

    def put(self, number: int, drawn: torch.Tensor, codes: torch.Tensor) -> None:
        """Keeps what was drawn in a window, (3, H, W) uint8 with codes (L,), where nothing was known."""
        here = self._here(number)
        self._pixels[here] = torch.where(self._empty[here], drawn, self._pixels[here])
        self._empty[here] = False

    @property
    def picture(self) -> torch.Tensor:
        """(3, H', W') uint8 so far."""
        return self._pixels[self._shown]

    def _here(self, number: int) -> tuple[Any, ...]:
        (top, left), (rows, columns) = self.windows[number], self._size
        return (..., slice(top, top + rows), slice(left, left + columns))


class CodeCanvas(Canvas):
    """A canvas of codes: those of the whole picture, and those that were drawn. It is decoded as one."""

    def __init__(self, model: UniTok, picture: torch.Tensor, sides: Sides) -> None:
        super().__init__(model, picture, sides)
        self._drawn = self._empty.clone()
        tokenizer, (left, top) = model.image_tokenizer, self._corner
        stride, (rows, columns) = tokenizer.stride, (-(-side // tokenizer.stride) for side in picture.shape[1:])
        inside = self._pixels[None, :, top : top + rows * stride, left : left + columns * stride]
        self._layout = tokenizer.layout_for(*self._pixels.shape[1:])
        self._codes = torch.full(self._layout.grid, -1)
        here = slice(top // stride, top // stride + rows), slice(left // stride, left // stride + columns)
        self._codes[here] = tokenizer.encode(to_float(inside).to(model.device)).cpu().view(rows, columns)
        self._codes[covered(model, self._empty[None], self._layout).view_as(self._codes)] = -1

    def known(self, number: int) -> torch.Tensor:
        return self._codes[self._places(number)].flatten()

    def put(self, number: int, drawn: torch.Tensor, codes: torch.Tensor) -> None:
        super().put(number, drawn, codes)
        here = self._places(number)
        self._codes[here] = codes.cpu().view_as(self._codes[here])

    @property
    def picture(self) -> torch.Tensor:
        """(3, H', W') uint8 so far."""
        if (self._codes < 0).any():
            return super().picture
        codes = self._codes.flatten()[None].to(self._model.device)
        decoded = to_uint8(self._model.image_tokenizer.decode(codes, self._layout))[0].cpu()
        return torch.where(self._drawn, decoded, self._pixels)[self._shown]

    def _places(self, number: int) -> tuple[slice, slice]:
        """The codes of a window."""
        stride, (top, left) = self._model.image_tokenizer.stride, self.windows[number]
        rows, columns = self._model.layout.grid
        return slice(top // stride, top // stride + rows), slice(left // stride, left // stride + columns)


def canvas_of(model: UniTok, picture: torch.Tensor, sides: Sides) -> Canvas:
    """The canvas by which a model draws around a picture; arguments as of `Canvas`."""
    return (CodeCanvas if model.config.trunk.fills_codes else Canvas)(model, picture, sides)


def plan(model: UniTok, size: Sequence[int], sides: Sides) -> tuple[list[Window], Sides]:
    """The windows over the canvas of a picture (H, W), in the order in which they are drawn, and by how much the canvas
    is larger than the picture: `sides`, and up to where the grid of codes ends that begins at the picture's corner.

    Raises:
        UserError: a picture smaller than the model's, or sides that are negative, all zero or too long.
    """
    problems = Problems()
    for name, pixels in sides._asdict().items():
        problems.check_range(f"--{name}", pixels, 0, LONGEST_SIDE)
    problems.check(any(sides), "nothing to extend: give --left, --right, --top or --bottom in pixels")
    (height, width), (rows, columns) = size, model.image_tokenizer.image_size
    problems.check(
        height >= rows and width >= columns,
        f"the picture is {width} wide and {height} high, and this model draws windows of {columns}x{rows}: enlarge it, "
        "or give one of at least that size",
    )
    problems.raise_if_any()
    stride = model.image_tokenizer.stride
    above, down, below = _along(height, rows, stride, sides.top, sides.bottom)
    before, across, behind = _along(width, columns, stride, sides.left, sides.right)
    # Counted before they are listed: of a long and narrow picture there can be more than fit into the memory.
    count = len(down) * len(across) - list(down.values()).count(0) * list(across.values()).count(0)
    if count > MOST_WINDOWS:
        raise UserError(
            f"the canvas needs {count} windows of {columns}x{rows}, at most {MOST_WINDOWS} are drawn: choose smaller "
            "sides"
        )
    distances = {
        Window(top, left): far_down + far_across
        for top, far_down in down.items()
        for left, far_across in across.items()
        if far_down + far_across
    }
    return sorted(distances, key=lambda window: (distances[window], window)), Sides(before, behind, above, below)


def _along(length: int, window: int, stride: int, before: int, after: int) -> tuple[int, dict[int, int], int]:
    """Of one axis: pixels before the picture, first pixel of each window -> how far it sticks out of the picture, and
    pixels behind the picture. All windows stand on the grid of codes that begins at the picture's first pixel."""
    before = -(-before // stride) * stride
    end = -(-(before + length + after) // stride) * stride
    step = max(1, window // stride // 2) * stride
    firsts = {0, end - window, *range(before % step, end - window + 1, step)}
    return (
        before,
        {first: max(0, before - first, first + window - before - length) for first in firsts},
        end - before - length,
    )
