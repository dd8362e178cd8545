"""What a network that measures promises, and features that may be used. `networks/` has the networks."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tokenizers_vq.errors import UserError
from tokenizers_vq.storage.weights import check_finite

from .provenance import Provenance


class FeatureNetwork(ABC):
    """Pictures -> features.

    Pictures are uint8 (B, 3, H, W) of any size; the network resizes them itself, and `resize` says how. Features are
    float32 (B, dim) on the CPU and do not depend on batch mates.
    """

    name: str
    """What the user called it."""
    label: str
    """What a number made with it must say."""
    dim: int
    image_size: int
    resize: str

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        check_finite(module.state_dict(), "the network that measures is damaged", "fetch its weights again")
        self.module = module.eval().requires_grad_(False).to(device)
        self.device = device
        self.hash = hash_weights(module)
        """SHA-256 (hex) of the weights."""

    @property
    def origin(self) -> Provenance:
        """What a number made with it must carry."""
        return {"features": self.name, "features_sha256": self.hash, "resize": self.resize}

    @abstractmethod
    def features(self, images: Tensor) -> Tensor: ...

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features, and the scores (B, C) of ImageNet's classes where the network has them: the Inception Score's."""
        return self.features(images), None


class ImageTextNetwork(FeatureNetwork):
    """A network whose picture and caption embeddings live in one space."""

    pair_label: str
    """What a score of pictures and captions made with it must say."""

    @abstractmethod
    def image_embeddings(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> (B, E) of length 1."""

    @abstractmethod
    def text_embeddings(self, captions: list[str]) -> Tensor:
        """(B, E) of length 1."""


def extract(network: FeatureNetwork, batches: Iterable[Tensor]) -> Tensor:
    """Features (N, dim) of batches of pictures uint8 (B, 3, H, W).

    Raises:
        UserError: no picture, or features that are not finite.
    """
    parts = [network.features(batch) for batch in batches]
    if not parts:
        raise UserError("there are no pictures to measure: give a data set with at least two")
    return check_features(torch.cat(parts), network.label)


def check_features(features: Tensor, where: str, first: int = 0) -> Tensor:
    """The features themselves, of which the first belongs to picture number `first`. Raises UserError when some are not
    finite."""
    bad = (~torch.isfinite(features)).any(dim=1)
    if bad.any():
        raise UserError(
            f"{int(bad.sum())} of {len(features)} pictures have features that are not finite ({where}), the first is "
            f"number {first + int(bad.nonzero()[0])}: check the weights and the pictures"
        )
    return features


def hash_weights(module: nn.Module) -> str:
    """SHA-256 (hex) of all weights, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
