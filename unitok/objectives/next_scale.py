"""Next scale: all codes of a scale at once, from all coarser scales (VAR, arXiv:2404.02905; with a caption before it
as in STAR, 2406.10797)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.layout import Layout
from tokenizers_vq.multi_scale import MultiScaleQuantizer

from ..config import TasksConfig
from ..sequence import IGNORE
from ..vocabulary import Vocabulary
from .base import ImageSegments, Objective, hidden_places


class NextScale(Objective):
    """Input: the reconstruction from the coarser scales, shrunk to this one's grid, the code nearest to it, and which
    scale it is. Target: this scale's codes. Each scale is a group."""

    name = "next_scale"

    def __init__(self, quantizer: MultiScaleQuantizer, scales: int) -> None:
        self.quantizer, self.scales = quantizer, scales
        self._whitening = _whitening(quantizer)

    @classmethod
    def for_tokenizer(cls, image_tokenizer: ImageTokenizer) -> NextScale:
        quantizer = image_tokenizer.quantizer
        if not isinstance(quantizer, MultiScaleQuantizer):
            raise UserError(
                "objective next_scale needs a tokenizer with several scales, this one has a single grid: train one "
                "with --tokenizer.scales, or choose next_token or masked_token"
            )
        return cls(quantizer, len(image_tokenizer.layout.scales))

    @property
    def features(self) -> int:
        return self.quantizer.width + self.scales

    def segments(
        self,
        codes: torch.Tensor,
        layout: Layout,
        vocabulary: Vocabulary,
        generators: list[torch.Generator],
        tasks: TasksConfig | None = None,
    ) -> ImageSegments:
        if tasks is not None and tasks.code_noise > 0 and len(codes):
            sizes = [tasks.code_noise * torch.rand((), generator=generator) for generator in generators]
            draws = [torch.randn(layout.length, self.quantizer.width, generator=generator) for generator in generators]
            noise = torch.stack([size * draw for size, draw in zip(sizes, draws, strict=True)])
            codes, seen = self.quantizer.rewrite(codes, layout, noise)
        else:
            seen = self.quantizer.seen_before(codes, layout)  # (B, L, D)
        ids = vocabulary.image_ids(codes)
        groups = self.groups(layout)
        inputs, features = self.inputs(seen, groups, vocabulary), self.mark(seen, groups)
        if tasks is not None and tasks.code_dropout > 0:
            hidden = hidden_places(layout.length, tasks, generators)
            inputs, features = inputs.masked_fill(hidden, vocabulary.mask), features.masked_fill(hidden[..., None], 0.0)
        return ImageSegments(inputs, ids, groups, layout, features)

    def context(self, codes: torch.Tensor, layout: Layout, vocabulary: Vocabulary) -> ImageSegments:
        """The whole reconstruction on the finest grid, marked as of no scale: it says more, in fewer positions, than
        the codes of all scales."""
        last = len(layout.scales) - 1
        whole = self.quantizer.shrink(self.quantizer.total(codes, layout), last, layout)  # (B, h*w, D)
        ids = vocabulary.image_ids(self._nearest(whole))
        features = F.pad(self._white(whole), (0, self.scales))
        return ImageSegments(
            ids, torch.full_like(ids, IGNORE), torch.zeros_like(ids[0]), Layout((layout.grid,)), features
        )

    def groups(self, layout: Layout) -> torch.Tensor:
        return torch.arange(len(layout.scales)).repeat_interleave(torch.tensor(layout.lengths))

    def inputs(self, seen: torch.Tensor, scale: torch.Tensor, vocabulary: Vocabulary) -> torch.Tensor:
        """Ids (B, n): of the code nearest to what is seen (B, n, D); for the first scale, which sees nothing, the mask
        token. Pictures that are drawn and pictures that are read so share the embeddings of the codes."""
        return vocabulary.image_ids(self._nearest(seen)).masked_fill(scale == 0, vocabulary.mask)

    def mark(self, seen: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Features (B, n, D + K): what is seen (B, n, D), whitened, and, one-hot, the number of the scale (n,)."""
        number = F.one_hot(scale, self.scales).to(seen).expand(len(seen), -1, -1)
        return torch.cat([self._white(seen), number], -1)

    def _nearest(self, seen: torch.Tensor) -> torch.Tensor:
        """Codes (B, n) of what is seen (B, n, D)."""
        if not len(seen):
            return torch.zeros(seen.shape[:2], dtype=torch.int64, device=seen.device)
        return self.quantizer.book.nearest(seen.transpose(1, 2)[:, :, None])

    def _white(self, seen: torch.Tensor) -> torch.Tensor:
        with torch.autocast(seen.device.type, enabled=False):  # bf16 would round away what whitening brings out
            return seen.float() @ self._whitening.to(seen.device)


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
