"""Does a picture say what its caption says, and a caption what its picture shows?

Exact on `shapes`, by nearest features elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations

import torch
from torch import Tensor

from tokenizers_vq.errors import UserError
from unitok.data.shapes.checker import Found, Verdict, check
from unitok.data.shapes.scenes import Kind, parse


def are_shapes(captions: Sequence[str]) -> bool:
    """Whether all captions are sentences of the `shapes` language, so that pictures can be checked exactly."""
    return bool(captions) and all(parse(caption) is not None for caption in captions)


def check_pictures(images: Tensor, captions: Sequence[str]) -> list[Verdict]:
    """The checker's verdict on each picture uint8 (N, 3, S, S) and its shapes caption."""
    return [check(image, caption) for image, caption in zip(images, captions, strict=True)]


def by_category(verdicts: Sequence[Verdict], captions: Sequence[str]) -> list[dict[str, bool]]:
    """For each picture of a shapes caption: which of GenEval's tasks the caption sets, and whether they are done.

    "single_object"      one object is asked for, and its shape is there
    "colors"             one object is asked for, and its shape is there in its colour
    "two_object"         two objects are asked for, and both shapes are there
    "color_attr"         two objects are asked for, and each shape has its own colour (attribute binding)
    "counting"           the picture has exactly as many objects as the caption names
    "position"           a relation is asked for, and all shapes are there and stand as the caption says
    """
    results = []
    for verdict, caption in zip(verdicts, captions, strict=True):
        facts = parse(caption)
        assert facts is not None
        found, kinds = verdict.found, facts.kinds
        shapes = _matched(found, kinds, lambda thing, kind: thing.shape == kind.shape)
        bound = _matched(found, kinds, lambda thing, kind: (thing.shape, thing.colour) == (kind.shape, kind.colour))
        tasks = {"counting": verdict.count}
        if len(kinds) == 1:
            tasks |= {"single_object": shapes, "colors": bound}
        if len(kinds) == 2:
            tasks |= {"two_object": shapes, "color_attr": bound}
        if verdict.relation is not None:
            tasks["position"] = verdict.relation == 1 and verdict.shape == 1
        results.append(tasks)
    return results


def _matched(found: Sequence[Found], kinds: Sequence[Kind], fits: Callable[[Found, Kind], bool]) -> bool:
    """Whether each kind can have a found object of its own that fits it."""
    return any(
        all(fits(thing, kind) for thing, kind in zip(things, kinds, strict=True))
        for things in permutations(found, len(kinds))
    )


OBJECT_COUNTS = ("one object", "two objects", "three objects")


def object_count(caption: str) -> str:
    """How many objects a shapes caption names, as one of `OBJECT_COUNTS`."""
    facts = parse(caption)
    assert facts is not None
    return OBJECT_COUNTS[len(facts.kinds) - 1]


def share_by_objects(captions: Sequence[str], right: Sequence[bool]) -> dict[str, float]:
    """The share that is right, for each number of objects that shapes captions name."""
    counts = [object_count(caption) for caption in captions]
    return {
        count: sum(one for one, own in zip(right, counts, strict=True) if own == count) / counts.count(count)
        for count in OBJECT_COUNTS
        if count in counts
    }


def wrong_attributes(verdict: Verdict) -> list[str]:
    """Names of what a picture gets wrong."""
    shares = {name: getattr(verdict, name) for name in ("count", "shape", "colour", "size", "relation")}
    return [name for name, share in shares.items() if share is not None and share < 1]


def exact_share(written: Sequence[str], reference: Sequence[str]) -> float:
    """Share of captions that equal the reference, letter for letter, but for white space at the ends and doubled."""
    if not written:
        raise UserError("there are no captions to compare: give at least one picture")
    return sum(_plain(a) == _plain(b) for a, b in zip(written, reference, strict=True)) / len(written)


def true_share(images: Tensor, written: Sequence[str]) -> float:
    """Share of captions that are shapes sentences and wholly true of their picture uint8 (N, 3, S, S).

    A caption that names the objects in another order than the reference is true, though not exact.
    """
    if not written:
        raise UserError("there are no captions to check: give at least one picture")
    true = true_captions(images, written)
    return sum(true) / len(true)


def true_captions(images: Tensor, written: Sequence[str]) -> list[bool]:
    """Of each caption, whether it is a shapes sentence and wholly true of its picture uint8 (N, 3, S, S)."""
    return [parse(text) is not None and check(image, text).all for image, text in zip(images, written, strict=True)]


def nearest_group(
    queries: Tensor, right: Sequence[str], gallery: Tensor, groups: Sequence[str], top: Sequence[int] = (1, 5)
) -> dict[str, float]:
    """Retrieval of the right group by the nearest picture: "top1", "top5", ...: the share of the queries whose right
    group is among so many nearest ones. Arguments as for `group_ranks`."""
    rank = group_ranks(queries, right, gallery, groups)
    return {f"top{number}": (rank < number).float().mean().item() for number in top}


def group_ranks(queries: Tensor, right: Sequence[str], gallery: Tensor, groups: Sequence[str]) -> Tensor:
    """(N,) how many groups are nearer to each query than the right one. A group is as near as the nearest of its
    pictures, by the cosine of the features.

    Args:
        queries: (N, D) features of the pictures in question.
        right: N names of groups, one per query.
        gallery: (M, D) features of known pictures.
        groups: M names, the group of each known picture.

    Raises:
        UserError: a right name that no group has.
    """
    names = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    unknown = sorted({name for name in right if name not in names})
    if unknown:
        raise UserError(
            f"{len(unknown)} names of what the pictures should show are not in the gallery, such as {unknown[0]!r}: "
            "make the captions of the gallery and the right names match"
        )
    member = torch.tensor([names[name] for name in groups])
    wanted = torch.tensor([names[name] for name in right])
    queries = torch.nn.functional.normalize(queries.float(), dim=1)
    gallery = torch.nn.functional.normalize(gallery.float(), dim=1)
    near = torch.full((len(queries), len(names)), -torch.inf)
    near.scatter_reduce_(1, member.expand(len(queries), -1), queries @ gallery.T, "amax")
    return (near > near.gather(1, wanted[:, None])).sum(dim=1)


def _plain(text: str) -> str:
    return " ".join(text.split())
