"""Random order: codes in any order, each told where it stands (RAR, arXiv:2411.00776).

Training permutes the codes of an image, and permutes ever fewer images until all stand in raster order. A code is so
predicted from others on all sides of it, and yet in the end in the order in which images are drawn best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType

import torch

from tokenizers_vq.layout import Layout

from ..config import ObjectiveSettings, PortConfig
from ..sequence import Segment
from ..vocabulary import Vocabulary
from .base import Asked, Draw, Objective, Writer, hidden_places, runs_in_order
from .next_token import CodeByCode
from .orders import order_in_drawing, order_in_training

PORT = "target"
"""Where the number of the place comes in that is predicted."""


class RandomOrder(Objective):
    """Input: the code before in the order, start-of-image first. It stands at its own place, and looks from the place
    of the next code, which is the target. Each code is a group."""

    name = "random_order"
    settings = MappingProxyType({"code_dropout": 0.6, "permuted_until": 0.5, "ordered_from": 0.75})

    def ports(self, layout: Layout) -> dict[str, PortConfig]:
        return {PORT: PortConfig("table", layout.length)}

    def learned(
        self,
        codes: torch.Tensor,
        layout: Layout,
        vocabulary: Vocabulary,
        draws: Sequence[Draw],
        settings: ObjectiveSettings | None = None,
    ) -> list[Segment]:
        raster = torch.arange(layout.length)
        orders = [raster] * len(codes)
        if settings is not None:
            orders = [order_in_training(raster, draw, settings) for draw in draws]
        ids, places, groups = vocabulary.image_ids(codes), layout.coordinates(), raster
        hidden = torch.zeros(len(codes), layout.length - 1, dtype=torch.bool)
        if settings is not None and settings.code_dropout:
            hidden = hidden_places(layout.length - 1, settings.code_dropout, draws)
        segments = []
        for row, order in enumerate(orders):
            target = ids[row, order]
            before = target[:-1].masked_fill(hidden[row], vocabulary.mask)
            inputs = torch.cat([target.new_tensor([vocabulary.boi]), before])
            stands = torch.cat([torch.zeros(1, 3), places[order[:-1]]])
            runs = runs_in_order(layout, vocabulary, order)
            here = places[order]
            segments.append(Segment(inputs, groups, here, target, runs, order, PORT, stands=stands))
        return segments

    def writer(self, layout: Layout, vocabulary: Vocabulary, rows: int, device: torch.device) -> Writer:
        return InOrder(layout, vocabulary, rows, device)


class InOrder(CodeByCode):
    """Writes one code a step, in raster order, or in an order of the seed's own. Known codes come first, for all
    others to see them."""

    def __init__(self, layout: Layout, vocabulary: Vocabulary, rows: int, device: torch.device) -> None:
        super().__init__("random_order", layout, vocabulary, rows, device)

    def _order(self, row: int, seed: int, known: torch.Tensor | None) -> torch.Tensor:
        return order_in_drawing(super()._order(row, seed, known), "random_order", seed, self.row(row).settings, known)

    def _asked(self, asked: Asked, at: torch.Tensor, target: torch.Tensor, before: torch.Tensor) -> Asked:
        stands = self.places[before] * (at > 0)[..., None]  # (b, n, 3)
        return replace(asked, features={PORT: target}, stands=stands)
