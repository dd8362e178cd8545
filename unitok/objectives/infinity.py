"""Infinity's form of next scale: all codes of a scale at once, each chosen bit by bit (arXiv:2412.04431)."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Self

import torch

from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.layout import Layout
from tokenizers_vq.quantizers.base import check_codes
from tokenizers_vq.quantizers.bitwise import BitScales, to_codes

from ..choose import choose
from ..config import ObjectiveSettings, PortConfig
from ..sampling import SampleSettings
from ..sequence import Segment
from ..vocabulary import Vocabulary
from .base import Draw, Writer
from .var import PORT, MapByMap, ScaleByScale

MOST_BITS = 62
"""Of a code that is drawn: other ids stand beside codes, and marks of what is not known."""
STEP = 100
"""A share of wrong bits is a whole number of hundredths."""


class Infinity(MapByMap):
    """Input: the reconstruction from the coarser scales, shrunk to this one's grid. Target: the bits of this scale's
    codes. Each scale is a group.

    In training a share of the bits of every scale is wrong, and the scales behind learn to correct them (bitwise
    self-correction). Losses of coarse scales, which have few codes, weigh more.
    """

    name = "infinity"
    settings = MappingProxyType({"code_noise": 0.0})
    authors = MappingProxyType({"code_noise": 0.3})
    bitwise = True
    counted = "values of bits"
    quantizer: BitScales

    def __init__(self, quantizer: BitScales, scales: int) -> None:
        self.quantizer, self.scales = quantizer, scales

    @classmethod
    def for_tokenizer(cls, image_tokenizer: ImageTokenizer) -> Self:
        quantizer = image_tokenizer.quantizer
        if not isinstance(quantizer, BitScales):
            raise UserError(
                "Infinity draws codes of bits over several scales, this image tokenizer makes others: give the folder "
                "that unitok import infinity_vae made"
            )
        if quantizer.width > MOST_BITS:
            raise UserError(
                f"the image tokenizer makes codes of {quantizer.width} bits, a model draws codes of up to {MOST_BITS}: "
                "give another image tokenizer (no model was released for codes of 64 bits)"
            )
        return cls(quantizer, len(image_tokenizer.layout.scales))

    @classmethod
    def ids_of(cls, image_tokenizer: ImageTokenizer) -> int:
        return 2 * cls.for_tokenizer(image_tokenizer).quantizer.width

    @classmethod
    def settled(cls, given: ObjectiveSettings) -> ObjectiveSettings:
        found = super().settled(given)
        if found.code_noise is not None and found.code_noise > 1:
            raise UserError(
                f"--objective_settings.code_noise is {found.code_noise}, a share of wrong bits for objective "
                f"{cls.name}: choose a value from 0 to 1"
            )
        return found

    def ports(self, layout: Layout) -> dict[str, PortConfig]:
        return {PORT: PortConfig("linear", self.quantizer.width)}

    def learned(
        self,
        codes: torch.Tensor,
        layout: Layout,
        vocabulary: Vocabulary,
        draws: Sequence[Draw],
        settings: ObjectiveSettings | None = None,
    ) -> list[Segment]:
        if not len(codes):
            return []
        check_codes(codes, self.quantizer.codebook_size)
        if settings is not None and settings.code_noise:
            flipped = torch.stack([self.flips(layout, draw, settings.code_noise) for draw in draws])
            codes, seen = self.quantizer.rewrite(codes, layout, flipped.to(codes.device))
        else:
            seen = self.quantizer.seen_before(codes, layout)  # (B, L, D)
        groups, places, runs = self.groups(layout), layout.coordinates(), ((vocabulary.image_range, layout.length),)
        inputs, features = self.inputs(seen, groups, vocabulary), self.mark(seen, groups).cpu()
        targets = codes.cpu() + vocabulary.image_start
        weight = 1.0 if settings is None else self.weights(layout)
        return [
            Segment(inputs[b], groups, places, targets[b], runs, features[b], PORT, weight) for b in range(len(codes))
        ]

    def weights(self, layout: Layout) -> torch.Tensor:
        """(L,): of the losses of a picture's codes in training, one by the root of the number of their scale; 1 on
        average."""
        lengths = torch.tensor(layout.lengths)
        found = lengths.float().rsqrt().repeat_interleave(lengths)
        return found / found.mean()

    def flips(self, layout: Layout, draw: Draw, most: float) -> torch.Tensor:
        """(L, D) bool: wrong bits, a share of its own of each scale, up to `most`."""
        found = []
        for length in layout.lengths:
            share = int(torch.randint(int(STEP * most) + 1, (), generator=draw.generator)) / STEP
            found.append(torch.rand(length, self.quantizer.width, generator=draw.generator) < share)
        return torch.cat(found)

    def given(self, codes: torch.Tensor, layout: Layout, vocabulary: Vocabulary) -> list[Segment]:
        """
        Raises:
            UserError: any picture.
        """
        if len(codes):
            raise UserError("this model draws pictures and reads none: give it the task text_to_image alone")
        return []

    def writer(self, layout: Layout, vocabulary: Vocabulary, rows: int, device: torch.device) -> Writer:
        return BitByBit(self, layout, vocabulary, rows, device)

    def inputs(self, seen: torch.Tensor, scale: torch.Tensor, vocabulary: Vocabulary) -> torch.Tensor:
        return torch.where(scale == 0, vocabulary.boi, vocabulary.mask).expand(len(seen), -1)

    def mark(self, seen: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return seen


class BitByBit(ScaleByScale):
    """Writes all bits of all codes of a scale in one pass, coarse to fine."""

    def __init__(
        self, objective: Infinity, layout: Layout, vocabulary: Vocabulary, rows: int, device: torch.device
    ) -> None:
        super().__init__(objective, layout, vocabulary, rows, device)
        self.uniform = torch.zeros(rows, layout.length, objective.quantizer.width, device=device)

    def _chosen(
        self, scores: torch.Tensor, index: torch.Tensor, span: slice, settings: Sequence[SampleSettings]
    ) -> torch.Tensor:
        uniform = self.uniform[index, span]  # (b, n, D)
        pairs = scores.unflatten(-1, (-1, 2)).flatten(1, 2)  # (b, n * D, 2)
        bits = choose(pairs, uniform.flatten(1), settings)[0]
        return to_codes(bits.view_as(uniform))
