"""How much of a codebook is in use."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


class CodebookUsage:
    """Counts codes over any number of batches (and ranks).

    >>> usage = CodebookUsage(4)
    >>> usage.update(torch.tensor([[0, 0], [1, 1]]))
    >>> usage.use, round(usage.perplexity, 6)
    (0.5, 2.0)
    """

    def __init__(self, size: int, counts: Tensor | None = None) -> None:
        self.counts = torch.zeros(size, dtype=torch.int64) if counts is None else counts

    def update(self, codes: Tensor) -> None:
        """Adds the codes of a batch, any shape, ids in [0, size)."""
        counts = torch.bincount(codes.detach().reshape(-1), minlength=len(self.counts))
        self.counts = self.counts.to(counts.device) + counts

    def merge(self, other: CodebookUsage) -> None:
        """Adds what another one has counted."""
        self.counts = self.counts + other.counts.to(self.counts.device)

    def merge_ranks(self) -> None:
        """Adds up the counts of all ranks, on all ranks; call it once, at the end. A single process keeps its own."""
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(self.counts)

    @property
    def use(self) -> float:
        """Share of the codes that occurred, 0 to 1."""
        return float((self.counts > 0).double().mean())

    @property
    def reached(self) -> float:
        """Share of the codes that could have occurred that did: n codes cannot be more than n different ones."""
        could = min(len(self.counts), int(self.counts.sum()))
        return int((self.counts > 0).sum()) / could if could else 0.0

    @property
    def perplexity(self) -> float:
        """exp(entropy): the number of equally frequent codes that would be as varied. 0 before any code."""
        total = int(self.counts.sum())
        if total == 0:
            return 0.0
        share = self.counts[self.counts > 0].double() / total
        return float(torch.exp(-(share * share.log()).sum()))
