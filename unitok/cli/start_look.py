"""What `unitok start` finds in a folder: pictures, what can serve as captions, and what can be held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenizers_vq.errors import UserError

from ..data.spec import DataSpec, parse_spec

if TYPE_CHECKING:
    from ..data.records import RecordDataset

LOOKED_AT = 200
"""Pictures, spread evenly, whose size and caption are looked at."""
HELD_OUT, LEAST_TO_HOLD_OUT = 10, 40
"""Every so many-th picture is held out where the data have no `val` split; of fewer pictures none."""


@dataclass(frozen=True)
class Look:
    """What there is."""

    train: DataSpec
    val: DataSpec | None
    """Held-out pictures; None where there are too few."""
    count: int
    """Pictures to learn from."""
    side: int
    """The shorter side of a picture, the median of those looked at."""
    names: int
    """Different captions among the pictures looked at."""
    max_bad: float
    """Share of records that may be left out."""
    notes: list[str]
    movable: bool = True
    """Whether copies of the pictures may be moved: none has a box, or a further picture."""


def look(data: str) -> Look:
    """Counts pictures, measures some, and finds what can serve as captions and what can be held out.

    Raises:
        UserError: no such data, endless data, or pictures that neither captions nor folders describe.
    """
    from ..data.open import open_data
    from ..tasks import is_bound

    spec = parse_spec(data)
    pictures = open_data(data, captions=False)
    if pictures.endless:
        raise UserError(f"data {data!r} is endless: `unitok demo` trains on it")
    spec, notes, names = _with_captions(spec)
    val = _val_split(spec)
    if val is not None:
        notes.append(f"held out: the data's own split, {val}")
    elif spec.options.keys() & {"every", "except"}:
        notes.append("nothing is held out, because ?every or ?except of the data says already which pictures there are")
    elif len(pictures) >= LEAST_TO_HOLD_OUT:
        spec, val = spec.having(**{"except": str(HELD_OUT)}), spec.having(every=str(HELD_OUT))
        notes.append(f"held out: every {HELD_OUT}th picture")
    else:
        notes.append(f"nothing is held out, because {len(pictures)} pictures are few: numbers are of what was learned")
    count = len(open_data(str(spec), captions=False))
    captioned = open_data(str(spec), captions=True)
    some = _spread(captioned)
    records = [captioned[index] for index in some]
    whole = [record for record in records if record.image is not None]
    if not whole:
        raise UserError(f"data {data!r}: none of {len(records)} pictures can be used ({records[0].problem})")
    sides = sorted(min(record.image.shape[1:]) for record in whole if record.image is not None)
    broken = len(records) - len(whole)
    if broken:
        why = next(record.problem for record in records if record.problem is not None)
        notes.append(f"left out: {broken} of the {len(records)} pictures that were looked at (the first: it {why})")
    max_bad = min(1.0, round(2 * broken / len(records) + 0.02, 2)) if broken else 0.01
    movable = not any(is_bound(field) for record in whole for field in record.fields)
    return Look(spec, val, count, sides[len(sides) // 2], names, max_bad, notes, movable)


def _spread(dataset: RecordDataset) -> list[int]:
    count = min(LOOKED_AT, len(dataset))
    return [number * len(dataset) // count for number in range(count)]


def _with_captions(spec: DataSpec) -> tuple[DataSpec, list[str], int]:
    """(the spec with captions, what to say of them, how many different ones were seen).

    Where there are no captions the folders' names serve.
    """
    from ..data.open import open_data

    chosen, what = spec, "captions: as they are"
    try:
        dataset = open_data(str(spec))
    except UserError as error:
        if "caption" in spec.options:
            raise
        chosen = spec.having(caption="label")
        try:
            dataset = open_data(str(chosen))
        except UserError:
            raise error from None  # data without folders: what it says of captions is the way out
        what = "captions: there are none, so the names of the folders serve"
    captions = [dataset[index].caption for index in _spread(dataset)]
    names = list(dict.fromkeys(caption for caption in captions if caption))
    if chosen is not spec and len(names) == 1:
        what = (
            f"captions: there are none; all pictures are called {names[0]!r}, so the model cannot be told which to draw"
        )
    shown = ", ".join(repr(name[:60]) for name in names[:3])
    return chosen, [f"{what} (such as {shown})" if len(names) > 1 else what], len(names)


def _val_split(spec: DataSpec) -> DataSpec | None:
    """The held-out split of the data, if they have one."""
    from ..data.open import open_data

    if spec.split not in (None, "train") or spec.options.keys() & {"limit", "every", "except"}:
        return None
    val = DataSpec(spec.source, "val", spec.options)
    try:
        open_data(str(val), captions=False)
    except UserError:
        return None
    return val
