"""How well a tokenizer gives pictures back: PSNR, SSIM, LPIPS, reconstruction FID, codebook use."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.images import to_float, to_uint8
from tokenizers_vq.layout import Layout
from tokenizers_vq.usage import CodebookUsage

from ..feature_network import FeatureNetwork
from ..provenance import Provenance
from .perturbed import Perturbation
from .statistics import StatisticsMeter, fid

BEST_PSNR = 100.0
"""Cap in dB, met by equal pictures, so that one of them does not make a mean infinite."""


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """(B,) peak signal-to-noise ratio in dB of pictures uint8 (B, 3, H, W), at most `BEST_PSNR`."""
    error = (a.double() - b.double()).square().flatten(1).mean(dim=1) / 255**2
    return -10 * error.clamp(min=10 ** (-BEST_PSNR / 10)).log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """(B,) structural similarity of pictures uint8 (B, 3, H, W): torchmetrics, Gaussian window of 11, sigma 1.5."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    value = structural_similarity_index_measure(a.float() / 255, b.float() / 255, data_range=1.0, reduction="none")
    return torch.as_tensor(value).reshape(len(a))


@torch.no_grad()
def reconstruct(tokenizer: ImageTokenizer, images: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures uint8 (B, 3, H, W) through the codes and back: (pictures uint8, codes (B, L)), on the CPU."""
    device = next(tokenizer.parameters()).device
    codes = tokenizer.encode(to_float(images).to(device)).cpu()
    return decoded(tokenizer, codes, tokenizer.layout_for(images.shape[2], images.shape[3])), codes


@torch.no_grad()
def reconstruct_whole(tokenizer: ImageTokenizer, picture: Tensor) -> tuple[Tensor, int, float]:
    """A picture uint8 (3, H, W) of any size through the codes and back: (picture of the same size, number of codes,
    PSNR in dB). The edge is repeated where the stride does not divide a side. Memory is a few times the picture's."""
    _, height, width = picture.shape
    rows, columns = (torch.arange(-(-side // tokenizer.stride) * tokenizer.stride) for side in (height, width))
    whole = picture
    if (len(rows), len(columns)) != (height, width):
        whole = picture[:, rows.clamp(max=height - 1)][:, :, columns.clamp(max=width - 1)]
    back, codes = reconstruct(tokenizer, whole[None])
    back = back[0, :, :height, :width]
    strips = zip(picture.split(256, 1), back.split(256, 1), strict=True)
    square = sum(int((one.int() - other.int()).square().sum()) for one, other in strips)
    error = square / picture.numel() / 255**2
    return back, codes.shape[1], BEST_PSNR if error == 0 else min(BEST_PSNR, -10 * math.log10(error))


@torch.no_grad()
def decoded(tokenizer: ImageTokenizer, codes: Tensor, layout: Layout) -> Tensor:
    """Pictures uint8 (B, 3, H, W) on the CPU, of codes (B, L) on any device."""
    return to_uint8(tokenizer.decode(codes.to(next(tokenizer.parameters()).device), layout)).cpu()


@torch.no_grad()
def as_known(tokenizer: ImageTokenizer, images: Tensor) -> tuple[list[int], Tensor]:
    """Pictures uint8 (B, 3, H, W) as known after so many codes: (K numbers of codes, uint8 (B, K, 3, H, W) on the CPU).

    After each scale of a multi-scale tokenizer; after 1, 2, 4, ... codes and all of them where any number will do.
    """
    device = next(tokenizer.parameters()).device
    codes = tokenizer.encode(to_float(images).to(device))
    layout = tokenizer.layout_for(images.shape[2], images.shape[3])
    counts = tokenizer.known_after(layout)
    if len(counts) == layout.length:
        counts = [n for n in counts if n & (n - 1) == 0 or n == layout.length]
    return counts, torch.stack([to_uint8(tokenizer.decode(codes[:, :n], layout)).cpu() for n in counts], 1)


@dataclass(frozen=True)
class ReconstructionScores:
    psnr: float
    """Mean over pictures, dB."""
    ssim: float
    """Mean over pictures."""
    lpips: float | None
    """Mean over pictures; None without the network."""
    rfid: float | None
    """None for a single picture."""
    pfid: float | None
    """None for a single picture, and without a perturbation."""
    codebook_use: float
    """Share of the codes that occurred."""
    perplexity: float
    scale_use: dict[str, float]
    """Of each scale of a multi-scale tokenizer, such as "2x2": share of the codes it could have used that it did."""
    count: int
    """Pictures measured."""
    originals: Provenance
    """Of the pictures themselves: "reference", "reference_sha256", "pictures", "image size"."""


class ReconstructionMeter:
    """Adds up batches of originals; `scores()` at the end. What is held does not grow with the number of pictures."""

    def __init__(
        self,
        tokenizer: ImageTokenizer,
        network: FeatureNetwork,
        name: str,
        lpips: nn.Module | None = None,
        perturbation: Perturbation | None = None,
    ) -> None:
        """`name`: of the originals, for the record."""
        self.tokenizer, self.lpips, self.perturbation = tokenizer, lpips, perturbation
        self.usage = CodebookUsage(tokenizer.counted)
        own = tokenizer.counted // tokenizer.config.quantizer.grids  # codes that one grid can use
        self.scale_usage = {name: CodebookUsage(own) for name in tokenizer.layout.names}
        self.sums = {"psnr": 0.0, "ssim": 0.0, "lpips": 0.0}
        keep = network.dim  # of fewer pictures than that, FID rounds less from all their features than from covariances
        self.before = StatisticsMeter(network, name, keep=keep)
        self.after = StatisticsMeter(network, "reconstructions", keep=keep)
        self.perturbed = StatisticsMeter(network, "reconstructions from perturbed codes", keep=keep)

    def update(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Measures pictures uint8 (B, 3, H, W), all of one size; returns their reconstructions, uint8, and codes (B, L)
        on the CPU."""
        first = self.before.pictures.count
        self.before.update(images)
        back, codes = reconstruct(self.tokenizer, images)
        counted = self.tokenizer.countable(codes)
        self.usage.update(counted)
        layout = self.tokenizer.layout_for(images.shape[2], images.shape[3])
        for usage, part in zip(self.scale_usage.values(), layout.split(counted), strict=True):
            usage.update(part % len(usage.counts))
        self.after.update(back)
        self.sums["psnr"] += float(psnr(images, back).sum())
        self.sums["ssim"] += float(ssim(images, back).double().sum())
        if self.lpips is not None:
            device = next(self.lpips.parameters()).device
            with torch.no_grad():
                distance = self.lpips(to_float(images).to(device), to_float(back).to(device))
            self.sums["lpips"] += float(distance.double().sum())
        if self.perturbation is not None:
            self.perturbed.update(decoded(self.tokenizer, self.perturbation(codes, first), layout))
        return back, codes

    def scores(self) -> ReconstructionScores:
        """Raises UserError without pictures."""
        seen = self.before.pictures
        count = seen.count
        if not count:
            raise UserError(f"{seen.name}: there are no pictures to measure: give data with at least one")
        return ReconstructionScores(
            psnr=self.sums["psnr"] / count,
            ssim=self.sums["ssim"] / count,
            lpips=None if self.lpips is None else self.sums["lpips"] / count,
            rfid=fid(self.after.result(), self.before.result()) if count > 1 else None,
            pfid=fid(self.perturbed.result(), self.before.result()) if self.perturbation and count > 1 else None,
            codebook_use=self.usage.use,
            perplexity=self.usage.perplexity,
            scale_use={name: usage.reached for name, usage in self.scale_usage.items()},
            count=count,
            originals={
                "reference": seen.name,
                "reference_sha256": seen.hexdigest(),
                "pictures": count,
                "image size": seen.size,
            },
        )
