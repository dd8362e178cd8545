"""Adversarial training of tokenizers: a PatchGAN discriminator and the losses of both players.

The discriminator is that of pix2pix (arXiv 1611.07004), the way it is balanced that of VQGAN (arXiv 2012.09841).

B = images, H, W = pixels, h, w = patches
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.func import functional_call

from ..networks.conv import group_norm
from ..quantizers.base import ranks
from .adversarial_config import AdversarialConfig


class PatchDiscriminator(nn.Module):
    """(B, 3, H, W) in [-1, 1] -> logits (B, 1, h, w) float32, one a patch; high for real.

    4x4 convolutions: `layers` of stride 2, then two of stride 1. Group norm stands where the papers have batch norm,
    whose statistics would tie pictures of a batch together: micro-batches and processes would no longer add up to the
    whole step.
    """

    def __init__(self, layers: int = 3, channels: int = 64) -> None:
        super().__init__()
        widths = [channels * min(2**index, 8) for index in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        for index, (before, width) in enumerate(pairwise(widths), start=1):
            stride = 2 if index < layers else 1
            parts += [nn.Conv2d(before, width, 4, stride, 1, bias=False), group_norm(width), nn.LeakyReLU(0.2)]
        parts.append(nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.layers = nn.Sequential(*parts)
        for part in parts:
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, 0.0, 0.02)  # as in pix2pix

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).float()


class AdversarialLoss(nn.Module):
    """The discriminator, the losses of discriminator and tokenizer, and their running means.

    All that a step measures (LeCam's means, the adaptive weight) is measured over its micro-batches and ranks together
    and holds from the next step on. So a step is the same however it is cut, and the state of a run is in the buffers.
    """

    real_mean: Tensor
    """LeCam's running mean of the logits of pictures."""
    fake_mean: Tensor
    """LeCam's running mean of the logits of reconstructions."""
    balance: Tensor
    """The adaptive weight; 0 until it has been measured once."""

    def __init__(self, config: AdversarialConfig) -> None:
        super().__init__()
        self.config = config
        self.discriminator = PatchDiscriminator(config.layers, config.channels)
        self.register_buffer("real_mean", torch.zeros(()))
        self.register_buffer("fake_mean", torch.zeros(()))
        self.register_buffer("balance", torch.zeros(()))
        self._pending: Tensor | None = None

    def forward(
        self,
        images: Tensor,
        reconstruction: Tensor,
        reconstruction_loss: Tensor,
        last_layer: Tensor,
        step: int,
        share: Tensor | float = 1.0,
        last: bool = True,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weighted losses by name, to be added to `reconstruction_loss`, and numbers for the log.

        One backward pass serves both players: the tokenizer is judged by weights that take no gradient, and the
        discriminator sees reconstructions that carry none. Both dicts are empty before `config.start`.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            reconstruction: (B, 3, H, W), of these images, with gradient.
            reconstruction_loss: scalar, what else trains the tokenizer.
            last_layer: the weight that makes the pixels, for the adaptive weight.
            step: from 0.
            share: what this micro-batch counts in the step, over all micro-batches and ranks.
            last: whether it is the step's last micro-batch on this rank.
        """
        config = self.config
        if step < config.start:
            return {}, {}
        weights = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        judged = functional_call(self.discriminator, weights, (reconstruction,))
        adversarial = generator_loss(judged, config.loss)
        real, fake = self.discriminator(images), self.discriminator(reconstruction.detach())

        weight = config.weight * config.ramp_at(step) * (self.balance if config.adaptive else 1.0)
        losses = {
            "adversarial": weight * adversarial,
            "discriminator": discriminator_loss(real, fake, config.loss),
        }
        if config.lecam_weight > 0:
            losses["lecam"] = config.lecam_weight * lecam(real, fake, self.real_mean, self.fake_mean)
        if config.r1_weight > 0 and (step - config.start) % config.r1_every == 0:
            losses["r1"] = config.r1_weight * config.r1_every * r1(self.discriminator, images)
        numbers = {
            "adversarial/weight": torch.as_tensor(weight, device=real.device),
            "adversarial/real": real.detach().mean(),
            "adversarial/fake": fake.detach().mean(),
        }

        measured = [numbers["adversarial/real"].reshape(1), numbers["adversarial/fake"].reshape(1)]
        if config.adaptive:
            for loss in (reconstruction_loss, adversarial):
                (gradient,) = torch.autograd.grad(loss, last_layer, retain_graph=True)
                measured.append(gradient.float().flatten())
        self._measure(share * torch.cat(measured), step, last)
        return losses, numbers

    @torch.no_grad()
    def _measure(self, measured: Tensor, step: int, last: bool) -> None:
        """Adds up a step's means of the logits and its two gradients; after the last, moves the buffers."""
        measured = measured if self._pending is None else self._pending + measured
        self._pending = None if last else measured
        if not last:
            return
        if ranks() > 1:
            distributed.all_reduce(measured)
        age = step - self.config.start
        kept = min(self.config.lecam_decay, age / (age + 1))  # a plain mean at first: there is nothing old to keep
        self.real_mean.lerp_(measured[0], 1 - kept)
        self.fake_mean.lerp_(measured[1], 1 - kept)
        if self.config.adaptive:
            reconstruction, adversarial = measured[2:].chunk(2)
            ratio = reconstruction.norm() / (adversarial.norm() + 1e-4)
            self.balance.copy_(ratio.clamp(max=self.config.adaptive_max))


def generator_loss(fake: Tensor, kind: str) -> Tensor:
    """What the tokenizer pays for the logits of its reconstructions: -mean for hinge (arXiv 1705.02894), else the
    non-saturating loss -log sigmoid (arXiv 1406.2661)."""
    return -fake.mean() if kind == "hinge" else F.softplus(-fake).mean()


def discriminator_loss(real: Tensor, fake: Tensor, kind: str) -> Tensor:
    """What the discriminator pays for its logits, mean of both sides: hinge with margin 1, else cross-entropy.

    One that cannot tell (logits of 0) pays 1 with hinge, log 2 without.
    """
    if kind == "hinge":
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def lecam(real: Tensor, fake: Tensor, real_mean: Tensor, fake_mean: Tensor) -> Tensor:
    """LeCam regularisation (arXiv 2104.03310, eq. 4): pulls the logits of each side towards the running mean of the
    other."""
    return (real - fake_mean).square().mean() + (fake - real_mean).square().mean()


def r1(discriminator: nn.Module, images: Tensor) -> Tensor:
    """R1 (arXiv 1801.04406): half the squared length of the gradient of a picture's score, the mean of its logits, with
    respect to its pixels, as a mean over pictures. In float32 whatever the autocast."""
    with torch.autocast(images.device.type, enabled=False):
        images = images.detach().float().requires_grad_()
        scores = discriminator(images).flatten(1).mean(1)
        (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
        return 0.5 * gradient.square().flatten(1).sum(1).mean()
