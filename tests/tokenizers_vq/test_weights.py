"""Modules that are built for the weights of a file."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tokenizers_vq.storage.weights import build_empty


class Drawn(nn.Module):
    """A module whose memory holds what no draw would leave."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((64, 64), 1e30))
        nn.init.trunc_normal_(self.weight, a=low, b=high)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("low", "high"), [(-2.0, 2.0), (-0.1, 0.1)])
def test_a_draw_that_rejects_values_ends(low: float, high: float) -> None:
    """`trunc_normal_` draws again until all values fit: with draws left out, it never ended on memory as it came."""
    before = torch.get_rng_state()
    assert build_empty(lambda: Drawn(low, high), "here").weight.shape == (64, 64)
    assert torch.equal(torch.get_rng_state(), before)
