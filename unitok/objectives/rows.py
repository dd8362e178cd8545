"""Pictures whose rows end with an id that is given, drawn code by code, as those of Emu3 (arXiv:2409.18869).

Such an id has a position of its own behind each row but the last. It is an input alone: nothing is drawn there.
"""

from __future__ import annotations

import torch

from tokenizers_vq.layout import Layout

from ..sequence import IGNORE, Segment


def places_in_rows(layout: Layout) -> torch.Tensor:
    """(L, 3) float32: the places of codes in one line, with one more between two rows."""
    places, codes = torch.zeros(layout.length, 3), torch.arange(layout.length)
    places[:, 0] = codes + codes // layout.grid[1]
    return places


def with_row_ends(segment: Segment, layout: Layout, end: int) -> Segment:
    """A picture that is learned code by code, (L,) ids and targets, with row ends between: L + h - 1 positions."""
    assert segment.target is not None
    at = places_in_rows(layout)[:, 0].long()
    ids = torch.full((int(at[-1]) + 1,), end)
    ids[0] = segment.ids[0]
    ids[at[:-1] + 1] = segment.ids[1:]  # behind the position that predicts a code stands the code
    target = torch.full_like(ids, IGNORE)
    target[at] = segment.target
    places = torch.zeros(len(ids), 3)
    places[:, 0] = torch.arange(len(ids))
    [(can_stand, _)] = segment.runs
    return Segment(ids, torch.arange(len(ids)), places, target, ((can_stand, len(ids)),))
