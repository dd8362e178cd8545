"""Reads a `shapes` picture back without any learned part, so that "does it show what the caption says" is a fact.

    pixels -> pieces that stand out from white -> the best outline -> the colour, unmixed from white -> objects

It forgives what a VQ decoder does to a good picture (a blur of about a pixel, noise, small specks) and nothing else: a
blob without a clear outline has no shape, a colour far from the palette is no colour, and both then count as wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch

from tokenizers_vq.errors import UserError

from .scenes import (
    COLOURS,
    CROSS_ARM,
    MIN_SIZE,
    RELATIONS,
    SHAPES,
    SIZES,
    Facts,
    Kind,
    Object,
    Scene,
    coverage,
    describe,
    holds,
    in_order,
    parse,
)

ATTRIBUTES = ("count", "shape", "colour", "size", "relation")

# "Ink" is what a pixel lacks to white, 255 - rgb. Mixing with white scales it and keeps its direction.
_NAMES = list(COLOURS)
_INK = 255.0 - np.array([COLOURS[name] for name in _NAMES])  # (C, 3)
_DIRECTION = _INK / np.linalg.norm(_INK, axis=1, keepdims=True)  # (C, 3)
_SHAPES = list(SHAPES)
_FILLED = np.array([0.7854, 1.0, 0.5, 1 - (1 - CROSS_ARM) ** 2])  # share of each shape's box that it covers
_DROP = np.array([height / 6 if shape == "triangle" else 0.0 for shape, (_, height) in SHAPES.items()])
_AREA = _FILLED * [width * height for width, height in SHAPES.values()]  # (S,) in squared diameters

FOREGROUND = 90.0
"""Ink in the strongest channel from which a pixel belongs to an object: about 0.4 of any of the colours."""
SMALLEST = 0.35
"""A piece with less area than this share of the smallest object is a speck and ignored, as are thin lines."""
COLOUR_LIMIT = 60.0
"""Largest RGB distance between an object's colour and a palette colour; any two of these are at least 110 apart."""
FIT_LIMIT = 0.8
"""Least overlap (intersection over union of soft masks) of an object with the best outline of the same area."""
MARGIN = 0.03
"""By how much the best outline must overlap more than that of any other shape; clean pictures give at least 0.08 at 24
pixels and 0.117 at 32. What lies between two shapes is none."""
SIZE_TOLERANCE = 1.2
"""A size is told up to this factor in the diameter; an object between small and large has no size."""
PLACE_TOLERANCE = 1.5 / 32
"""Up to this share of the canvas, along each axis, an object counts as being where it should; it is less than a step of
the lattice."""
MOST = 6
"""Only so many pieces, the largest, are looked at. No caption has half as many, so nothing right is lost."""


@dataclass(frozen=True)
class Found:
    """An object found in a picture. An attribute that cannot be told is None; x and y are as in `Object`.

    A size is told from the area even where the outline is no shape.
    """

    size: str | None
    colour: str | None
    shape: str | None
    x: float
    y: float
    fit: float
    """Overlap with the best outline, 0 to 1; clean pictures give about 0.95, see `FIT_LIMIT`."""
    margin: float
    """By how much the best outline overlaps more than that of any other shape, see `MARGIN`."""


@dataclass(frozen=True)
class Verdict:
    """How far a picture shows what a caption says.

    The caption's objects are assigned to found objects one to one, such that most attributes and relations come out
    right; an object that the picture lacks has no attribute right. Shares are over the caption's objects or relations.
    """

    count: bool
    """The picture has as many objects as the caption."""
    shape: float
    colour: float
    size: float
    relation: float | None
    """None for a caption without a relation."""
    found: tuple[Found, ...] = ()

    @property
    def all(self) -> bool:
        """Everything is right: the picture shows this scene."""
        return self.count and self.shape == self.colour == self.size == 1 and self.relation in (None, 1)


def accuracy(verdicts: list[Verdict]) -> dict[str, float]:
    """Accuracy per attribute (the mean of the pictures' shares) and "scene", the share of pictures that are all right.

    "relation" is the mean over captions that have one, and missing when there is none.
    """
    if not verdicts:
        raise UserError("no pictures to average over: check at least one picture")
    result = {}
    for name in ATTRIBUTES:
        shares = [float(getattr(v, name)) for v in verdicts if getattr(v, name) is not None]
        if shares:
            result[name] = sum(shares) / len(shares)
    return {**result, "scene": sum(v.all for v in verdicts) / len(verdicts)}


# --- reading --------------------------------------------------------------------------------------------------------


def read_picture(picture: np.ndarray | torch.Tensor) -> list[Found]:
    """The objects of a picture, in no special order.

    Args:
        picture: uint8, (N, N, 3) array or (3, N, N) tensor, N at least 24.

    Raises:
        UserError: Another type or shape.
    """
    ink = 255.0 - pixels(picture)  # (N, N, 3)
    return [_identify(ink, piece, others) for piece, others in _pieces(ink)]


def caption_from_picture(picture: np.ndarray | torch.Tensor) -> str | None:
    """The canonical caption of a picture as the checker reads it, or None when it is not clearly a scene."""
    scene = scene_of(read_picture(picture))
    return None if scene is None else describe(scene)


def scene_of(found: list[Found]) -> Scene | None:
    """The scene of found objects, or None when they are not clearly one."""
    objects = []
    for thing in found:
        if thing.size is None or thing.colour is None or thing.shape is None:
            return None
        objects.append(Object(Kind(thing.size, thing.colour, thing.shape), thing.x, thing.y))
    return in_order(objects) if 1 <= len(objects) <= 3 else None


def same_place(thing: Found, x: float, y: float) -> bool:
    """Whether a found object stands at a place, up to `PLACE_TOLERANCE`."""
    return max(abs(thing.x - x), abs(thing.y - y)) <= PLACE_TOLERANCE


def same_kind(thing: Found, kind: Kind) -> bool:
    """Whether a found object is of a kind; one with an attribute that cannot be told is of none."""
    return (thing.size, thing.colour, thing.shape) == (kind.size, kind.colour, kind.shape)


def pixels(picture: np.ndarray | torch.Tensor) -> np.ndarray:
    """As (N, N, 3) float64."""
    array = picture.detach().cpu().movedim(0, -1).numpy() if isinstance(picture, torch.Tensor) else picture
    square = array.ndim == 3 and array.shape[0] == array.shape[1] >= MIN_SIZE and array.shape[2] == 3
    if array.dtype != np.uint8 or not square:
        raise UserError(
            f"a picture to check is {picture.dtype} {tuple(picture.shape)}: give uint8, (N, N, 3) as an array or "
            f"(3, N, N) as a tensor, N at least {MIN_SIZE}"
        )
    return array.astype(np.float64)


def _pieces(ink: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(mask, foreground outside it) of the connected pieces that are no specks, largest first, at most `MOST`."""
    smallest = SMALLEST * float(_AREA.min()) * (min(SIZES.values()) * ink.shape[0]) ** 2
    foreground = ink.max(axis=2) > FOREGROUND
    likeness = ink @ _DIRECTION.T  # (N, N, C)
    nearest = np.argmax(likeness, axis=2)
    pieces = []
    for mask in _components(foreground):
        if mask.sum() < smallest or not _core(mask).any():
            continue
        # Objects that touch are one component; they are told apart when they differ in colour. A colour counts where
        # it is solid: blurred edges can look like another colour, but only a pixel wide.
        present = [c for c in np.unique(nearest[mask]) if _core(mask & (nearest == c)).any()]
        if len(present) > 1:
            owner = np.argmax(likeness[:, :, present], axis=2)
            parts = [part for i in range(len(present)) for part in _components(mask & (owner == i))]
            pieces += [part for part in parts if part.sum() >= smallest and _core(part).any()]
        else:
            pieces.append(mask)
    pieces.sort(key=lambda mask: -int(mask.sum()))
    return [(mask, foreground & ~mask) for mask in pieces[:MOST]]


def _components(mask: np.ndarray) -> list[np.ndarray]:
    """The 4-connected components of a boolean (H, W) mask, each a mask; by union-find over horizontal runs."""
    runs: list[tuple[int, int, int]] = []  # (row, start, stop)
    parent: list[int] = []

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)  # (H, W + 1)
    starts, stops = np.argwhere(edges == 1), np.argwhere(edges == -1)  # row-major: the k-th start meets the k-th stop
    above = 0  # first run that may touch the current one
    for k, ((row, start), (_, stop)) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        runs.append((row, start, stop))
        parent.append(k)
        while runs[above][0] < row - 1 or (runs[above][0] == row - 1 and runs[above][2] <= start):
            above += 1
        for j in range(above, k):
            if runs[j][0] == row or runs[j][1] >= stop:
                break
            parent[root(j)] = root(k)
    components: dict[int, np.ndarray] = {}
    for k, (row, start, stop) in enumerate(runs):
        components.setdefault(root(k), np.zeros_like(mask))[row, start:stop] = True
    return list(components.values())


def _identify(ink: np.ndarray, piece: np.ndarray, others: np.ndarray) -> Found:
    """Colour, outline and place of one piece; others are the foreground pixels of all other pieces."""
    n = ink.shape[0]
    nearest = _INK[np.argmax(_DIRECTION @ ink[piece].sum(axis=0))]  # (3,)
    # Soft mask: the share of the colour in each pixel, with the faint rim around the piece.
    rim = _grown(piece, max(1, round(n / 32))) & ~others
    share = ink @ nearest / (nearest @ nearest)  # (N, N), 1 where the palette's colour is full
    values = np.sort(share[piece])
    share /= min(1.0, float(values[len(values) * 9 // 10]))  # pale objects keep their outline
    soft = np.where(rim, np.clip(share, 0, 1), 0)  # (N, N)
    mass = float(soft.sum())
    grid = (np.arange(n) + 0.5) / n
    x, y = float(soft.sum(axis=0) @ grid) / mass, float(soft.sum(axis=1) @ grid) / mass  # centroid

    # Each shape with the area and centroid of the piece. Both sides are smoothed and outlines come sharp and blurred,
    # so that the pictures of a decoder fit as well as rendered ones.
    diameters = np.sqrt(mass / _AREA) / n  # (S,)
    drops = diameters * _DROP  # (S,) from the centre of the box down to the centroid
    outlines = np.zeros((len(_SHAPES), n, n))
    for i, shape in enumerate(_SHAPES):
        rows, columns, counts = coverage(shape, diameters[i], x, y - drops[i], n)
        outlines[i, rows, columns] = counts / 64
    planes = np.concatenate([soft[None], np.where(rim, ink.transpose(2, 0, 1), 0), outlines])
    planes = _smooth(planes[(slice(None), *_window(rim))])  # (1 + 3 + S, h, w)
    soft, patch, outlines = planes[0], planes[1:4], np.concatenate([planes[4:], _smooth(planes[4:])])
    best = int(np.argmin(((outlines - soft) ** 2).sum(axis=(1, 2))))
    fits = np.minimum(outlines, soft).sum(axis=(1, 2)) / np.maximum(outlines, soft).sum(axis=(1, 2))
    outline, fit, best = outlines[best], float(fits[best]), best % len(_SHAPES)
    margin = fit - max(float(one) for i, one in enumerate(fits) if i % len(_SHAPES) != best)

    # The colour that, mixed with white as the outline says, comes nearest to the pixels; without an outline, the mean.
    clear = fit >= FIT_LIMIT and margin >= MARGIN
    colour = (patch * outline).sum(axis=(1, 2)) / (outline**2).sum() if clear else ink[_core(piece)].mean(axis=0)
    distance = np.linalg.norm(_INK - colour, axis=1)
    return Found(
        size=_size(float(diameters[best])),
        colour=_NAMES[int(np.argmin(distance))] if distance.min() <= COLOUR_LIMIT else None,
        shape=_SHAPES[best] if clear else None,
        x=x,
        y=y - float(drops[best]),
        fit=fit,
        margin=margin,
    )


def _size(diameter: float) -> str | None:
    """The size with about this diameter."""
    return next((name for name, d in SIZES.items() if d / SIZE_TOLERANCE < diameter < d * SIZE_TOLERANCE), None)


def _window(mask: np.ndarray) -> tuple[slice, slice]:
    """The box of a mask with a margin in which an outline of the same area fits, cut to the picture."""
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    margin = 2 + mask.shape[0] // 16
    return (
        slice(max(0, int(ys[0]) - margin), int(ys[-1]) + 1 + margin),
        slice(max(0, int(xs[0]) - margin), int(xs[-1]) + 1 + margin),
    )


def _smooth(planes: np.ndarray) -> np.ndarray:
    """(P, H, W) under the binomial filter 1 2 1 along both axes, a blur of 0.7 pixels; zeros outside."""
    rows = 2 * planes
    rows[:, 1:] += planes[:, :-1]
    rows[:, :-1] += planes[:, 1:]
    both = 2 * rows
    both[:, :, 1:] += rows[:, :, :-1]
    both[:, :, :-1] += rows[:, :, 1:]
    return both / 16


def _core(mask: np.ndarray) -> np.ndarray:
    """The pixels whose four neighbours are in the mask too."""
    padded = np.pad(mask, 1)
    return mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def _grown(mask: np.ndarray, steps: int) -> np.ndarray:
    for _ in range(steps):
        padded = np.pad(mask, 1)
        mask = padded[:-2] | padded[1:-1] | padded[2:]
        mask = mask[:, :-2] | mask[:, 1:-1] | mask[:, 2:]
    return mask


# --- checking -------------------------------------------------------------------------------------------------------


def check(picture: np.ndarray | torch.Tensor, caption: str) -> Verdict:
    """Compares a picture with a caption; see `Verdict`, and `read_picture` for the picture.

    Raises:
        UserError: The caption is not a sentence of the shapes language.
    """
    facts = parse(caption)
    if facts is None:
        raise UserError(
            f"{caption!r} is not a shapes caption: write such as 'a large blue square left of a small red circle', "
            f"with {' / '.join(SIZES)}, {' / '.join(COLOURS)}, {' / '.join(SHAPES)}, {' / '.join(RELATIONS)}"
        )
    return judge(read_picture(picture), facts)


def judge(found: list[Found], facts: Facts) -> Verdict:
    """Compares found objects with the facts of a caption under the best assignment."""
    wanted = len(facts.kinds)
    # Missing objects are None, so that a caption of three can be compared with a picture of one.
    candidates: list[Found | None] = [*found, *[None] * max(0, wanted - len(found))]
    shape, colour, size, related = max(
        (_right(things, facts) for things in permutations(candidates, wanted)), key=lambda right: sum(right)
    )
    relations = len(facts.relations)
    return Verdict(
        count=len(found) == wanted,
        shape=shape / wanted,
        colour=colour / wanted,
        size=size / wanted,
        relation=related / relations if relations else None,
        found=tuple(found),
    )


def _right(things: tuple[Found | None, ...], facts: Facts) -> tuple[int, int, int, int]:
    """How many shapes, colours, sizes and relations are right when the caption's objects are these things."""
    pairs = [(thing, kind) for thing, kind in zip(things, facts.kinds, strict=True) if thing is not None]
    return (
        sum(thing.shape == kind.shape for thing, kind in pairs),
        sum(thing.colour == kind.colour for thing, kind in pairs),
        sum(thing.size == kind.size for thing, kind in pairs),
        sum(_holds(things[subject], name, things[other]) for subject, name, other in facts.relations),
    )


def _holds(subject: Found | None, name: str, other: Found | None) -> bool:
    return subject is not None and other is not None and holds(name, subject.x - other.x, subject.y - other.y)
