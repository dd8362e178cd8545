"""Quantizers behind one small interface: latents (B, D, h, w) <-> codes (B, h*w) int64.

The learning parts (k-means start, smoothing, revival of dead codes, rotation trick, level arithmetic) are those of
vector-quantize-pytorch. What this wrapper adds: one signature, float32 inside whatever the ambient autocast, our own
search, no change of the codebook outside of training with gradients, and the same codebook on every rank.

B = images, D = width of a code vector, h, w = grid, N = B*h*w vectors, K = codes
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
import vector_quantize_pytorch as library
from torch import Tensor, distributed, nn
from vector_quantize_pytorch import vector_quantize_pytorch as library_vq

from .errors import UserError
from .lookup import nearest_rows
from .quantizer_config import FSQ, IBQ, LFQ, VQ, Cosine, Gumbel, QuantizerConfig, SimVQ


class Quantized(NamedTuple):
    """What a quantizer makes of latents."""

    latents: Tensor
    """(B, D, h, w) float32: the code vectors; gradients pass to the encoder."""
    codes: Tensor
    """(B, h*w) int64, row-major."""
    losses: dict[str, Tensor]
    """Weighted scalars to add to the training loss; the same names in training and in evaluation."""


def to_rows(z: Tensor) -> Tensor:
    """(B, D, h, w) -> (N, D) float32."""
    return z.float().permute(0, 2, 3, 1).reshape(-1, z.shape[1])


def to_grid(rows: Tensor, batch: int, height: int, width: int) -> Tensor:
    """(N, D) -> (B, D, h, w)."""
    return rows.reshape(batch, height, width, rows.shape[1]).permute(0, 3, 1, 2)


def pass_gradient(source: Tensor, target: Tensor, rotate: bool) -> Tensor:
    """The value of `target` with the gradient of `source`."""
    if rotate and source.requires_grad:
        return library_vq.rotate_to(source, target)
    return source + (target - source).detach()


class Quantizer(nn.Module, ABC):
    """Latents <-> codes. Made by `make_quantizer`."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        self.codebook_size = config.size

    def forward(self, z: Tensor, accumulate: bool = False) -> Quantized:
        """Quantizes (B, D, h, w).

        The codebook moves only in training mode with gradients enabled. `accumulate=True` puts its move off to the next
        call without: then micro-batches move it as their joint batch would.
        """
        batch, _, height, width = z.shape
        with torch.autocast(z.device.type, enabled=False):
            rows, codes, losses = self._quantize(to_rows(z), accumulate)
            return Quantized(to_grid(rows, batch, height, width), codes.reshape(batch, height * width), losses)

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """Codes (B, h*w) int64 of latents (B, D, h, w); never changes the codebook."""
        with torch.autocast(z.device.type, enabled=False):
            return self._nearest(to_rows(z)).reshape(z.shape[0], -1)

    def vectors(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, D, h, w) float32: the code vectors of codes (B, h*w), as `forward` gives them.

        Raises:
            UserError: an id is outside the codebook. (The library would wrap some of them silently.)
        """
        check_codes(codes, self.codebook_size)
        with torch.autocast(codes.device.type, enabled=False):
            return to_grid(self._vectors(codes.reshape(-1).long()), codes.shape[0], *grid)

    def start(self, rows: Tensor) -> None:
        """Sees training latents (N, D) before they are quantized; a codebook may start from the first ones."""

    def follow(self, rows: Tensor, codes: Tensor, accumulate: bool, weights: Tensor | None = None) -> None:
        """Sees training latents (N, D) and the codes they got; a codebook may move. `accumulate` as in `forward`;
        `weights` (N,) say how much each latent counts."""

    @abstractmethod
    def _quantize(self, rows: Tensor, accumulate: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(N, D) -> code vectors (N, D), codes (N,), losses."""

    @abstractmethod
    def _nearest(self, rows: Tensor) -> Tensor:
        """(N, D) -> (N,) int64."""

    @abstractmethod
    def _vectors(self, codes: Tensor) -> Tensor:
        """(N,) -> (N, D)."""


def check_codes(codes: Tensor, codebook_size: int) -> None:
    """Raises UserError for ids outside [0, codebook_size), with the worst one."""
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise UserError(f"codes are {codes.dtype}: give integer ids from 0 to {codebook_size - 1}")
    if codes.numel() == 0:
        return
    low, high = (int(value) for value in torch.aminmax(codes))
    if low < 0 or high >= codebook_size:
        worst = low if low < 0 else high
        raise UserError(
            f"code {worst} is outside the codebook of {codebook_size}: ids go from 0 to {codebook_size - 1}; "
            "were these codes made by another tokenizer?"
        )


class MovingAverage(Quantizer):
    """`vq` and `cosine`: a codebook that follows the latents, with k-means start and revival of dead codes."""

    config: VQ

    def __init__(self, config: VQ) -> None:
        super().__init__(config)
        self.cosine = isinstance(config, Cosine)
        self.library = library.VectorQuantize(
            dim=config.dim,
            codebook_size=config.codebook_size,
            decay=config.decay,
            kmeans_init=config.kmeans_init,
            use_cosine_sim=self.cosine,
            threshold_ema_dead_code=1,  # set to the wanted share at every step, below
            sync_codebook=False,  # decided at every step, below: the library asks once, possibly before ranks exist
        )
        # The library's start is all zeros until k-means has run, and far too small without: spread it over the sphere.
        start = F.normalize(torch.randn(1, config.codebook_size, config.dim), dim=-1)
        self._book.embed.data.copy_(start)
        self._book.embed_avg.data.copy_(start)
        self._pending: tuple[Tensor, Tensor] | None = None

    @property
    def _book(self) -> library_vq.Codebook:
        return self.library._codebook

    @property
    def codebook(self) -> Tensor:
        """(K, D) float32; of unit length for `cosine`, also after the rows were averaged over time."""
        return self._directions(self._book.embed[0])

    def _directions(self, rows: Tensor) -> Tensor:
        return F.normalize(rows, dim=-1) if self.cosine else rows

    def _quantize(self, rows: Tensor, accumulate: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        learn = self.training and torch.is_grad_enabled()
        rows = self._directions(rows)
        if learn:
            self.start(rows.detach())
        codebook = self.codebook
        codes = nearest_rows(rows.detach(), codebook, self.cosine)
        target = codebook[codes]
        loss = self.config.commitment_weight * F.mse_loss(rows, target)
        if learn:
            self.follow(rows.detach(), codes, accumulate)
        return pass_gradient(rows, target, self.config.rotation_trick), codes, {"commitment": loss}

    def _nearest(self, rows: Tensor) -> Tensor:
        return nearest_rows(self._directions(rows), self.codebook, self.cosine)

    def _vectors(self, codes: Tensor) -> Tensor:
        return self.codebook[codes]

    def start(self, rows: Tensor) -> None:
        """k-means over the first batch of all ranks, once."""
        book = self._book
        together = ranks() > 1
        sample = library_vq.sample_vectors_distributed if together else library_vq.batched_sample_vectors
        book.use_ddp = together
        book.sample_fn = book.replace_sample_fn = sample
        book.kmeans_all_reduce_fn = distributed.all_reduce if together else library_vq.noop
        library_vq.logger.disable(library.__name__)  # fewer vectors than codes are no news: revival supplies the rest
        book.init_embed_(rows[None])
        library_vq.logger.enable(library.__name__)

    @torch.no_grad()
    def follow(self, rows: Tensor, codes: Tensor, accumulate: bool, weights: Tensor | None = None) -> None:
        """Moves the codebook towards the latents that chose it.

        The library's own update makes an (N, K) one-hot table, several times the cost of everything else here; counts
        and sums are the same numbers.
        """
        book, size = self._book, self.codebook_size
        counts = torch.bincount(codes, weights, minlength=size).float()
        weighted = rows if weights is None else rows * weights[:, None]
        sums = rows.new_zeros(size, self.width).index_add_(0, codes, weighted)
        if self._pending is not None:
            counts, sums = counts + self._pending[0], sums + self._pending[1]
        self._pending = (counts, sums) if accumulate else None
        if accumulate:
            return
        if ranks() > 1:
            distributed.all_reduce(counts)
            distributed.all_reduce(sums)
        book.cluster_size[0].lerp_(counts, 1 - self.config.decay)
        book.embed_avg[0].lerp_(sums, 1 - self.config.decay)
        book.update_ema()
        if self.config.revive_below > 0:
            mean_use = float(counts.sum()) / size
            book.threshold_ema_dead_code = self.config.revive_below * mean_use
            book.reset_cluster_size = mean_use  # time to prove itself before it counts as dead again
            if weights is not None:  # new codes are drawn from latents in proportion to their weight
                rows = rows[torch.multinomial(weights, len(rows), replacement=True)]
            book.expire_codes_(rows[None])


def ranks() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


class Linear(Quantizer):
    """`simvq`: a frozen codebook behind a learned linear map."""

    def __init__(self, config: SimVQ) -> None:
        super().__init__(config)
        self.library = library.SimVQ(
            dim=config.dim,
            codebook_size=config.codebook_size,
            rotation_trick=config.rotation_trick,
            input_to_quantize_commit_loss_weight=config.commitment_weight,
        )

    def _quantize(self, rows: Tensor, accumulate: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        quantized, codes, loss = self.library(rows[None])
        return quantized[0], codes[0], {"commitment": loss}

    def _nearest(self, rows: Tensor) -> Tensor:
        return nearest_rows(rows, self.library.codebook)

    def _vectors(self, codes: Tensor) -> Tensor:
        return self.library.codebook[codes]


class Levels(Quantizer):
    """`fsq`: every channel rounded to its levels."""

    def __init__(self, config: FSQ) -> None:
        super().__init__(config)
        # The published bound has no place for channels of two levels; the symmetric one has.
        self.library = library.FSQ(list(config.levels), preserve_symmetry=min(config.levels) == 2)

    def _quantize(self, rows: Tensor, accumulate: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        quantized, codes = self.library(rows[None])
        return quantized[0], codes[0].long(), {}

    def _nearest(self, rows: Tensor) -> Tensor:
        return self.library(rows[None])[1][0].long()

    def _vectors(self, codes: Tensor) -> Tensor:
        return self.library.indices_to_codes(codes)


class Signs(Quantizer):
    """`lfq`: every channel gives its sign.

    The losses are written here: the library's batch entropy divides by the number of ranks without adding them up.
    """

    config: LFQ

    def __init__(self, config: LFQ) -> None:
        super().__init__(config)
        self.library = library.LFQ(codebook_size=config.codebook_size)

    def _quantize(self, rows: Tensor, accumulate: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        config = self.config
        target = torch.where(rows > 0, 1.0, -1.0)
        losses = {"commitment": config.commitment_weight * F.mse_loss(rows, target)}
        if config.entropy_weight > 0:
            losses["entropy"] = config.entropy_weight * self._entropy(rows)
        return pass_gradient(rows, target, rotate=False), self._nearest(rows), losses

    def _entropy(self, rows: Tensor) -> Tensor:
        """Mean entropy of each latent's soft choice, minus that of this rank's mean choice (eq. 5 of the paper)."""
        probabilities = (200.0 * rows @ self.library.codebook.t()).softmax(dim=-1)  # (N, K); 2 v.e at temperature 0.01
        return _entropy(probabilities).mean() - self.config.diversity * _entropy(probabilities.mean(dim=0))

    def _nearest(self, rows: Tensor) -> Tensor:
        return ((rows > 0) * self.library.mask).sum(dim=-1)

    def _vectors(self, codes: Tensor) -> Tensor:
        return self.library.indices_to_codes(codes)


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp(min=1e-5).log()).sum(dim=-1)


class InnerProduct(Quantizer):
    """`ibq`: the row of largest inner product, and gradients to all rows through the soft choice."""

    config: IBQ

    def __init__(self, config: IBQ) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.codebook_size, config.dim)
        nn.init.uniform_(self.embedding.weight, -1 / config.codebook_size, 1 / config.codebook_size)

    def _quantize(self, rows: Tensor, accumulate: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        codebook = self.embedding.weight
        codes = self._nearest(rows.detach())
        soft = (rows @ codebook.t()).softmax(dim=-1)  # (N, K)
        chosen = codebook[codes]
        # Hard in value, soft in gradient, for the rows as well as for the latents.
        mixed = soft @ codebook
        target = mixed + (chosen - mixed).detach()
        losses = {
            "commitment": self.config.commitment_weight * F.mse_loss(rows, chosen.detach()),
            "codebook": F.mse_loss(chosen, rows.detach()),
        }
        if self.config.entropy_weight > 0:
            losses["entropy"] = self.config.entropy_weight * (_entropy(soft).mean() - _entropy(soft.mean(dim=0)))
        return target, codes, losses

    def _nearest(self, rows: Tensor) -> Tensor:
        return nearest_rows(rows, self.embedding.weight, cosine=True)

    def _vectors(self, codes: Tensor) -> Tensor:
        return self.embedding(codes)


class Scores(Quantizer):
    """`gumbel`: a linear map scores the codes; in training the code vectors are mixed by a noisy soft choice."""

    config: Gumbel

    def __init__(self, config: Gumbel) -> None:
        super().__init__(config)
        self.proj = nn.Linear(config.dim, config.codebook_size)
        self.embedding = nn.Embedding(config.codebook_size, config.dim)

    def _quantize(self, rows: Tensor, accumulate: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        scores = self.proj(rows)  # (N, K)
        p = scores.softmax(dim=-1)
        kl = (p * (p * self.codebook_size).clamp(min=1e-10).log()).sum(dim=-1).mean()
        if self.training and torch.is_grad_enabled():
            mixed = F.gumbel_softmax(scores, self.config.temperature, dim=-1) @ self.embedding.weight
        else:
            mixed = self.embedding(scores.argmax(dim=-1))
        return mixed, scores.detach().argmax(dim=-1), {"kl": self.config.kl_weight * kl}

    def _nearest(self, rows: Tensor) -> Tensor:
        return torch.cat([self.proj(part).argmax(dim=-1) for part in rows.split(512)])

    def _vectors(self, codes: Tensor) -> Tensor:
        return self.embedding(codes)


def make_quantizer(config: QuantizerConfig) -> Quantizer:
    """The quantizer of a configuration; its `width` is the number of latent channels that it takes."""
    match config:
        case VQ():
            return MovingAverage(config)
        case SimVQ():
            return Linear(config)
        case FSQ():
            return Levels(config)
        case LFQ():
            return Signs(config)
        case IBQ():
            return InnerProduct(config)
        case Gumbel():
            return Scores(config)
    raise UserError(f"quantizer is {type(config).__name__}: choose VQ, Cosine, SimVQ, FSQ, LFQ, IBQ or Gumbel")
