"""VAR's form of next scale: all codes of a scale at once, from all coarser scales (arXiv:2404.02905; with a caption
before it as in STAR, 2406.10797)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from types import MappingProxyType
from typing import Self

import torch
import torch.nn.functional as F

from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.layout import Layout
from tokenizers_vq.quantizers.multi_scale import MultiScaleQuantizer, ScaleQuantizer

from ..choose import choose, keep_top_k, keep_top_p
from ..config import ObjectiveSettings, PortConfig
from ..sampling import SampleSettings
from ..seeding import keyed_generator
from ..sequence import Segment
from ..vocabulary import Vocabulary
from .base import Asked, Draw, Objective, Writer, hidden_places

PORT = "image"
"""Where the reconstruction comes in."""
WARMEST, COLDEST = 0.27, 0.005
"""Temperatures of mixtures: at the first scale, and the least."""


class MapByMap(Objective):
    """Draws maps of codes, coarse to fine, each from the reconstruction so far."""

    quantizer: ScaleQuantizer
    sets_scales = True

    def groups(self, layout: Layout) -> torch.Tensor:
        """(L,) int64: the scale of every position."""
        lengths = torch.tensor(layout.lengths)
        return torch.arange(len(layout.scales)).repeat_interleave(lengths, output_size=layout.length)

    @abstractmethod
    def inputs(self, seen: torch.Tensor, scale: torch.Tensor, vocabulary: Vocabulary) -> torch.Tensor:
        """Ids (B, n) that stand where (B, n, D) is seen, at positions of scales (n,)."""

    @abstractmethod
    def mark(self, seen: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Features (B, n, F) of what is seen (B, n, D), at positions of scales (n,)."""


class VAR(MapByMap):
    """Input: the reconstruction from the coarser scales, shrunk to this one's grid, the code nearest to it, and which
    scale it is. Target: this scale's codes. Each scale is a group."""

    name = "var"
    settings = MappingProxyType({"code_dropout": 0.0, "code_noise": 0.0})
    smooths = True
    quantizer: MultiScaleQuantizer

    def __init__(self, quantizer: MultiScaleQuantizer, scales: int) -> None:
        self.quantizer, self.scales = quantizer, scales
        self._whitening = _whitening(quantizer)

    @classmethod
    def for_tokenizer(cls, image_tokenizer: ImageTokenizer) -> Self:
        quantizer = image_tokenizer.quantizer
        if isinstance(quantizer, ScaleQuantizer) and not isinstance(quantizer, MultiScaleQuantizer):
            raise UserError(
                f"objective {cls.name} needs a tokenizer with a codebook, the scales of this one are bits: train one "
                "with --tokenizer.scales and VQ or SimVQ"
            )
        if not isinstance(quantizer, MultiScaleQuantizer):
            raise UserError(
                f"objective {cls.name} needs a tokenizer with several scales, this one has a single grid: train one "
                "with --tokenizer.scales, or choose next_token or masked_token"
            )
        return cls(quantizer, len(image_tokenizer.layout.scales))

    def ports(self, layout: Layout) -> dict[str, PortConfig]:
        return {PORT: PortConfig("linear", self.quantizer.width + (0 if self.plain else self.scales))}

    def learned(
        self,
        codes: torch.Tensor,
        layout: Layout,
        vocabulary: Vocabulary,
        draws: Sequence[Draw],
        settings: ObjectiveSettings | None = None,
    ) -> list[Segment]:
        if settings is not None and settings.code_noise and len(codes):
            noise = self.noise(layout, draws, settings.code_noise)
            codes, seen, _ = self.quantizer.rewrite(codes, layout, noise)
        else:
            seen = self.quantizer.seen_before(codes, layout)  # (B, L, D)
        ids, groups = vocabulary.image_ids(codes).cpu(), self.groups(layout)
        inputs, features = self.inputs(seen, groups, vocabulary).cpu(), self.mark(seen, groups).cpu()
        if settings is not None and settings.code_dropout:
            hidden = hidden_places(layout.length, settings.code_dropout, draws)
            inputs, features = inputs.masked_fill(hidden, vocabulary.mask), features.masked_fill(hidden[..., None], 0.0)
        places, runs = layout.coordinates(), ((vocabulary.image_range, layout.length),)
        return [Segment(inputs[b], groups, places, ids[b], runs, features[b], PORT) for b in range(len(ids))]

    def given(self, codes: torch.Tensor, layout: Layout, vocabulary: Vocabulary) -> list[Segment]:
        """The whole reconstruction on the finest grid, marked as of no scale: it says more, in fewer positions, than
        the codes of all scales. Places whose finest code is not known are masked, and nothing of them is said.

        Raises:
            UserError: codes that are not known, of a tokenizer whose finest map is not the whole picture.
        """
        if not len(codes):
            return []
        hidden = codes[:, -layout.lengths[-1] :] == -1
        if hidden.any() and self.quantizer.config.scale_residual:
            raise UserError(
                "the task inpaint needs a tokenizer in which each map is of the whole picture: train one with "
                "--tokenizer.scale_residual false, or set tasks.inpaint.share to 0"
            )
        vocabulary.known_ids(codes)  # all of them are codes
        # Codes of a picture that is read stand on the CPU.
        codes, hidden = codes.clamp(min=0).to(self.quantizer.mean.device), hidden.cpu()
        last = len(layout.scales) - 1
        whole = self.quantizer.shrink(self.quantizer.total(codes, layout), last, layout)  # (B, h*w, D)
        ids = (self.nearest(whole) + vocabulary.image_start).cpu().masked_fill(hidden, vocabulary.mask)
        features = F.pad(self.white(whole), (0, self.scales)).cpu().masked_fill(hidden[..., None], 0.0)
        places, groups = Layout((layout.grid,)).coordinates(), torch.zeros_like(ids[0])
        return [Segment(ids[b], groups, places, features=features[b], port=PORT) for b in range(len(ids))]

    def writer(self, layout: Layout, vocabulary: Vocabulary, rows: int, device: torch.device) -> Writer:
        return Smooth(self, layout, vocabulary, rows, device)

    def noise(self, layout: Layout, draws: Sequence[Draw], most: float) -> torch.Tensor:
        """(B, L, D): noise of each image, up to a strength that it draws."""
        sizes = [most * torch.rand((), generator=draw.generator) for draw in draws]
        found = [torch.randn(layout.length, self.quantizer.width, generator=draw.generator) for draw in draws]
        return torch.stack([size * one for size, one in zip(sizes, found, strict=True)])

    def inputs(self, seen: torch.Tensor, scale: torch.Tensor, vocabulary: Vocabulary) -> torch.Tensor:
        """Ids (B, n): of the code nearest to what is seen (B, n, D); for the first scale, which sees nothing, the mask
        token. Pictures that are drawn and pictures that are read so share the embeddings of the codes. The plain form
        has no ids: an image begins, and goes on with codes that are not known."""
        if self.plain:
            begins = torch.where(scale == 0, vocabulary.boi, vocabulary.mask)
            return begins.expand(len(seen), -1)
        return (self.nearest(seen) + vocabulary.image_start).masked_fill(scale == 0, vocabulary.mask)

    def mark(self, seen: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Features (B, n, D + K): what is seen (B, n, D), whitened, and, one-hot, the number of the scale (n,). In the
        plain form (B, n, D), as it is."""
        if self.plain:
            return seen
        number = F.one_hot(scale, self.scales).to(seen).expand(len(seen), -1, -1)
        return torch.cat([self.white(seen), number], -1)

    def nearest(self, seen: torch.Tensor) -> torch.Tensor:
        """Codes (B, n) of what is seen (B, n, D)."""
        if not len(seen):
            return torch.zeros(seen.shape[:2], dtype=torch.int64, device=seen.device)
        return self.quantizer.book.nearest(seen.transpose(1, 2)[:, :, None])

    def white(self, seen: torch.Tensor) -> torch.Tensor:
        """Vectors (..., D), whitened."""
        with torch.autocast(seen.device.type, enabled=False):  # bf16 would round away what whitening brings out
            return seen.float() @ self._whitening.to(seen.device)


class ScaleByScale(Writer):
    """Writes all codes of a scale in one pass, coarse to fine."""

    def __init__(
        self, objective: MapByMap, layout: Layout, vocabulary: Vocabulary, rows: int, device: torch.device
    ) -> None:
        super().__init__(rows)
        self.objective, self.layout, self.vocabulary = objective, layout, vocabulary
        self.places = layout.coordinates().to(device).split(layout.lengths)
        self.groups = objective.groups(layout).to(device).split(layout.lengths)
        self.codes = torch.zeros(rows, layout.length, dtype=torch.int64, device=device)
        self.known = torch.full_like(self.codes, -1)
        self.uniform = torch.zeros(rows, layout.length, device=device)
        self.total = objective.quantizer.blank(rows, layout, device)  # (rows, D, h, w)
        self.forced: set[int] = set()
        """Rows with known codes."""

    def _begin(self, row: int, seed: int, known: torch.Tensor | None) -> None:
        device = self.codes.device
        self.uniform[row] = torch.rand(self.uniform.shape[1:], generator=keyed_generator(seed, "next_scale")).to(device)
        self.total[row] = 0
        self.known[row] = -1 if known is None else known.to(device)
        self.forced.discard(row)
        if known is not None:
            self.forced.add(row)

    def settings(self, row: int) -> SampleSettings:
        state = self.row(row)
        return state.at(state.step, len(self.layout.scales), self.guided(row))

    def before(self, row: int) -> int:
        return sum(self.layout.lengths[: self.row(row).step])

    def phase(self, row: int) -> int:
        return self.row(row).step

    def ask(self, rows: Sequence[int], index: torch.Tensor) -> Asked:
        scale = self.phase(rows[0])
        groups, n = self.groups[scale], self.layout.lengths[scale]
        seen = self.objective.quantizer.shrink(self.total[index], scale, self.layout)  # (b, n, D)
        ids = self.objective.inputs(seen, groups, self.vocabulary)
        features = {PORT: self.objective.mark(seen, groups)}
        places = self.places[scale].expand(len(rows), -1, -1)
        return Asked(ids, places, ((self.vocabulary.image_range, slice(0, n)),), features=features)

    def take(self, rows: Sequence[int], index: torch.Tensor, scores: list[torch.Tensor]) -> None:
        scale = self.phase(rows[0])
        start = sum(self.layout.lengths[:scale])
        span = slice(start, start + self.layout.lengths[scale])
        codes = self._chosen(scores[0], index, span, list(map(self.settings, rows)))
        if not self.forced.isdisjoint(rows):
            known = self.known[index, span]
            codes = torch.where(known >= 0, known, codes)
        self.codes[index, span] = codes
        self.total[index] = self._added(scores[0], rows, index, codes, scale)
        for row in rows:
            self.row(row).step += 1

    def _chosen(
        self, scores: torch.Tensor, index: torch.Tensor, span: slice, settings: Sequence[SampleSettings]
    ) -> torch.Tensor:
        """Codes (b, n) of the places of a scale, from their logits (b, n, V)."""
        return choose(scores, self.uniform[index, span], settings)[0]

    def _added(
        self, scores: torch.Tensor, rows: Sequence[int], index: torch.Tensor, codes: torch.Tensor, scale: int
    ) -> torch.Tensor:
        """The totals after a scale, whose codes are (b, n), from its logits (b, n, V)."""
        return self.objective.quantizer.add(self.total[index], codes, scale, self.layout)

    def finished(self, rows: Sequence[int]) -> list[int]:
        return [row for row in rows if self.row(row).step == self.steps(row)]

    def written(self, row: int) -> torch.Tensor:
        """The codes of the scales so far."""
        return self.codes[row, : sum(self.layout.lengths[: self.row(row).step])]

    def steps(self, row: int) -> int:
        return self._wanted(row)

    def so_far(self, row: int) -> torch.Tensor:
        """Of whole scales: they are what a picture is made of."""
        written = self.written(row)
        return F.pad(written, (0, self.layout.length - len(written)), value=-1)

    def _wanted(self, row: int) -> int:
        """Scales that a row draws."""
        return self.row(row).settings.scales or len(self.layout.scales)


class Smooth(ScaleByScale):
    """Goes on, if a row's settings say so, from mixtures of code vectors in place of the codes that were chosen: by the
    Gumbel softmax of their logits, ever nearer to one code. Hands on latents (D, h, w) in place of codes."""

    objective: VAR

    def _added(
        self, scores: torch.Tensor, rows: Sequence[int], index: torch.Tensor, codes: torch.Tensor, scale: int
    ) -> torch.Tensor:
        total = super()._added(scores, rows, index, codes, scale)
        for place, row in enumerate(rows):
            if self.row(row).settings.smooth:
                here = slice(place, place + 1)
                vectors = self._mixed(scores[here], self.settings(row), self.row(row).seed, scale)
                start = sum(self.layout.lengths[:scale])
                known = self.known[row, start : start + len(vectors[0])] >= 0
                vectors[0, known] = self._book[codes[place, known]]
                total[here] = self.objective.quantizer.mix(self.total[row][None], vectors, scale, self.layout)
        return total

    @property
    def _book(self) -> torch.Tensor:
        return self.objective.quantizer.table()[0]

    def _mixed(self, scores: torch.Tensor, settings: SampleSettings, seed: int, scale: int) -> torch.Tensor:
        """(1, n, D) from logits (1, n, V) before temperature."""
        top_k, top_p = settings.top_k, settings.top_p
        assert not isinstance(top_k, list) and not isinstance(top_p, list), "of one scale"
        done = scale / max(1, len(self.layout.scales) - 1)
        logits = keep_top_p(keep_top_k(scores, top_k), top_p) * (1 + done)
        noise = torch.empty(scores.shape).exponential_(generator=keyed_generator(seed, "smooth", scale))
        warmth = max(WARMEST * (1 - 0.95 * done), COLDEST)
        return ((logits - noise.log().to(logits.device)) / warmth).softmax(-1) @ self._book

    def written(self, row: int) -> torch.Tensor:
        if not self.row(row).settings.smooth:
            return super().written(row)
        return self.total[row] + self.objective.quantizer.mean[:, None, None]

    def so_far(self, row: int) -> torch.Tensor:
        """Of the codes that were chosen, which say about the same."""
        written = super().written(row)
        return F.pad(written, (0, self.layout.length - len(written)), value=-1)


def _whitening(quantizer: MultiScaleQuantizer) -> torch.Tensor:
    """(D, D) float32, from the right: makes the covariance of the code vectors the identity.

    A tokenizer's latents are far longer in some directions than in others (a hundred times, where the long ones hold
    colours and the short ones edges), and a model that sees them as they are learns to read shapes last, if bf16 has
    left anything of them.
    """
    with torch.no_grad():
        codes = torch.arange(quantizer.codebook_size, device=next(quantizer.parameters()).device)
        vectors = quantizer.book.vectors(codes[None], (1, len(codes)))[0, :, 0].double().cpu()  # (D, codebook)
    variances, directions = torch.linalg.eigh(torch.cov(vectors))
    least = max(variances.max().item() * 1e-6, torch.finfo(torch.float64).tiny)  # no noise where there is nothing
    return (directions * variances.clamp(min=least).rsqrt()).float()
