"""Where a number comes from, and whether two numbers may stand in one table.

Every number carries the metric's name, the feature network and its hash, sample counts, resize method, image size, the
reference set's name and hash, versions of the libraries that computed it, and a seed where something was drawn.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata

import torch
from torch import Tensor

from tokenizers_vq.errors import UserError

Fact = str | int | float | None
Provenance = dict[str, Fact]

PACKAGES = ("unitok-vq", "torch", "torchmetrics", "torch-fidelity", "transformers", "numpy", "pillow")
SPREAD = "std_over_seeds"
"""Key of a standard deviation over rounds of drawing, beside the facts of the mean."""
INTERVAL = "interval_over_captions"
"""Key of a 95 % interval over distinct captions."""
SUBJECT = frozenset(
    {
        "model_sha256",
        "tokenizer_sha256",
        "settings",
        "set",
        "set_sha256",
        "label",
        "precision",
        "compiled",
        SPREAD,
        INTERVAL,
    }
)
"""Facts about what is measured, not about how: they may differ between two numbers of one table."""

NAMED = {"features": "features_sha256", "reference": "reference_sha256", "data": "captions_sha256"}
"""Names, such as paths, that say nothing more where the hash of what they name is known and equal."""


@cache
def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # unitok itself, in a checkout that is not installed
            found[name] = "not installed"
    return found


def version_line() -> str:
    """The versions as one fact: "python 3.11.9, torch 2.15.0, ..."."""
    return ", ".join(f"{name} {version}" for name, version in versions().items())


class PictureSet:
    """What a set of pictures (or of pictures with captions) is, as it goes by: how many, their one size, and a hash.

    The hash does not depend on order and batches: the SHA-256 of each picture's size and pixels (and caption) are added
    up as numbers.
    """

    def __init__(self, name: str) -> None:
        self.name, self.total, self.count = name, 0, 0
        self.size = ""
        """Width and height, such as "32x32"; of no picture yet, ""."""

    def update(self, images: Tensor, captions: Sequence[str] | None = None) -> None:
        """images uint8 (B, 3, H, W), captions B texts. Raises UserError for another size than that of the first."""
        size = f"{images.shape[3]}x{images.shape[2]}"
        self.size = self.size or size
        if size != self.size:  # a network would scale each in its own way, and part of the number would be that
            raise UserError(
                f"{self.name} has pictures of {self.size} and of {size}, and a set is measured at one size: "
                "scale and crop them first, as --image_size N does"
            )
        for number, image in enumerate(images):
            digest = hashlib.sha256(f"{tuple(image.shape)}\n".encode())
            digest.update(image.contiguous().cpu().numpy().data)
            if captions is not None:
                digest.update(captions[number].encode())
            self.total = (self.total + int.from_bytes(digest.digest(), "big")) % 2**256
            self.count += 1

    def hexdigest(self) -> str:
        """64 hex digits."""
        return hashlib.sha256(f"{self.count} {self.total:064x}".encode()).hexdigest()


def hash_tensors(*tensors: Tensor) -> str:
    """SHA-256 (hex) of values, such as a mean and a covariance that came without a name."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def difference(a: Mapping[str, Fact], b: Mapping[str, Fact]) -> str | None:
    """What differs in how two numbers were made, in one line; None when they may stand in one table.

    >>> difference({"features": "inception", "pictures": 500}, {"features": "inception", "pictures": 5000})
    'pictures 500 and 5000'
    """
    settled = {name for name, key in NAMED.items() if a.get(key) is not None and a.get(key) == b.get(key)}
    keys = [key for key in dict.fromkeys([*a, *b]) if key not in SUBJECT | settled and a.get(key) != b.get(key)]
    return in_words(a, b, keys)


def in_words(a: Mapping[str, Fact], b: Mapping[str, Fact], keys: Sequence[str]) -> str | None:
    """What two sets of facts say about these keys, in one line; of versions only what differs. None without keys."""
    parts = [f"{key} {_short(key, a.get(key))} and {_short(key, b.get(key))}" for key in keys if key != "versions"]
    if "versions" in keys:
        parts.append(_versions_line(str(a.get("versions")), str(b.get("versions"))))
    return ", ".join(parts) or None


def require_same(provenances: Mapping[str, Mapping[str, Fact]], what: str, force: bool = False) -> list[str]:
    """Refuses to put numbers that were made in different ways in one table.

    Args:
        provenances: of each number, by the name of its result, such as a file or a model; the first is the yardstick.
        what: the number's name, for the message.
        force: lets them stand side by side all the same.

    Returns:
        One warning for each result that differs, for the table; none when all agree.

    Raises:
        UserError: they differ and `force` is not given.
    """
    (first, facts), *others = provenances.items()
    found = [(name, difference(facts, other)) for name, other in others]
    lines = [f"{what} of {first} and of {name} were made in different ways: {line}" for name, line in found if line]
    if lines and not force:
        raise UserError(f"{lines[0]}: measure both in the same way, or put them side by side with --force")
    return lines


def _versions_line(a: str, b: str) -> str:
    """Only the packages that differ."""
    left, right = a.split(", "), b.split(", ")
    return f"{', '.join(x for x in left if x not in right)} and {', '.join(x for x in right if x not in left)}"


def _short(key: str, value: Fact) -> str:
    return str(value)[:12] if key.endswith("sha256") else str(value)
