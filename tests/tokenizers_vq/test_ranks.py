"""Two processes (gloo): the codebook is the same on every rank, and follows the joint batch.

The processes are forked: torch is imported once.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from processes import pair
from torch import Tensor, distributed

from tokenizers_vq import build_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS
from tokenizers_vq.quantizers.config import VQ, Cosine
from tokenizers_vq.quantizers.single_scale import Quantizer, make_quantizer
from tokenizers_vq.usage import CodebookUsage

# k-means and revival draw samples, which all ranks must agree on; the plain one has a single-process answer.
CONFIGS = {
    "vq": VQ(codebook_size=16, dim=4, revive_below=0.5, decay=0.5),
    "cosine": Cosine(codebook_size=16, dim=4, revive_below=0.5, decay=0.5),
    "plain": VQ(codebook_size=16, dim=4, kmeans_init=False, revive_below=0.0),
}


def latents(step: int) -> Tensor:
    """(4, 4, 3, 3): the joint batch of a step; each rank takes its half."""
    return torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(step))


def fresh(name: str) -> Quantizer:
    torch.manual_seed(0)
    return make_quantizer(CONFIGS[name]).train()


def work(rank: int, folder: Path) -> None:
    # Made before the process group, on purpose: the library would decide here, once, not to talk to the other ranks.
    quantizers = {name: fresh(name) for name in CONFIGS}
    tokenizer = build_tokenizer(dataclasses.replace(TOKENIZER_PRESETS["debug"](), quantizer=CONFIGS["vq"]))
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    result: dict[str, Tensor] = {}
    usage = CodebookUsage(16)
    for name, quantizer in quantizers.items():
        for step in range(4):
            torch.manual_seed(100 * step + rank)
            half = latents(step)[2 * rank : 2 * rank + 2]
            if rank == 0:  # this rank's pictures come in two micro-batches
                quantizer(half[:1], accumulate=True)
                half = half[1:]
            usage.update(quantizer(half).codes)
        result |= {f"{name} {key}": value for key, value in quantizer.state_dict().items()}
    wrapped = torch.nn.parallel.DistributedDataParallel(tokenizer, broadcast_buffers=False)
    for step in range(3):
        torch.manual_seed(100 * step + rank)
        with torch.autocast("cpu", torch.bfloat16):
            out = wrapped(torch.rand(2, 3, 32, 32) * 2 - 1)
        (out.reconstruction.square().mean() + sum(out.losses.values())).backward()
    result |= {f"tokenizer {key}": value for key, value in tokenizer.state_dict().items()}
    usage.merge_ranks()
    torch.save({**result, "usage": usage.counts}, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What each of the two ranks ended with."""
    folder = tmp_path_factory.mktemp("ranks")
    assert pair(lambda rank: work(rank, folder)) == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_codebooks_and_counts_are_equal_on_all_ranks(ranks: list[dict[str, Tensor]]) -> None:
    first, second = ranks
    assert len(first) > 10
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    # 4 steps of 3 quantizers; the first rank's first picture is not counted.
    assert first["usage"].sum() == 4 * 3 * 9 * 3


def test_codebook_follows_the_joint_batch(ranks: list[dict[str, Tensor]]) -> None:
    alone = fresh("plain")
    for step in range(4):
        alone(latents(step))
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(ranks[0][f"plain {name}"], value)
