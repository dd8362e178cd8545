"""Statistics and pictures in `.npz` files, in the layouts that other tools read and write. Nothing in them is executed.

mu, sigma                  mean and covariance: pytorch-fid, and ADM's reference batches (guided-diffusion)
mu_s, sigma_s              ADM's spatial features, for sFID; left aside
arr_0                      pictures uint8 (N, H, W, 3): ADM's samples and reference batches
unitok                     JSON text, written here: network and its hash, count, resize, image size, set and its hash
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from tokenizers_vq.errors import UserError
from tokenizers_vq.files import atomic_path

from .frechet import Gaussian
from .provenance import Provenance, hash_tensors, version_line
from .statistics import Statistics

FACTS = "unitok"
ORIGIN = ("features", "features_sha256", "resize", "image size", "pictures", "name", "sha256", "versions")
HINT = "give a file with mu and sigma (pytorch-fid, ADM, `unitok eval statistics`) or arr_0 (ADM's pictures)"


def save_statistics(path: Path, statistics: Statistics) -> None:
    """Writes mean, covariance and where they come from; pytorch-fid reads the file too."""
    facts = {"versions": version_line(), **statistics.provenance}
    arrays: dict[str, Any] = {
        "mu": statistics.gaussian.mean.numpy(),
        "sigma": statistics.gaussian.covariance.numpy(),
        FACTS: np.array(json.dumps(facts, ensure_ascii=False)),
    }
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def load_statistics(path: Path) -> Statistics:
    """Mean and covariance of a file with `mu` and `sigma`; without `unitok`'s key, network and count are unknown.

    Raises:
        UserError: no such file, no mean and covariance in it, or values that cannot be those.
    """
    with _opened(path) as file:
        if not {"mu", "sigma"} <= set(file.files):
            raise UserError(f"{path} holds {', '.join(file.files) or 'nothing'}: {HINT}")
        mean, covariance = (np.atleast_1d(np.asarray(file[key])) for key in ("mu", "sigma"))
        facts = _facts(path, file)
    covariance = np.atleast_2d(covariance)
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or mean.dtype.kind != "f":
        raise UserError(
            f"{path}: mu is {mean.shape} and sigma {covariance.shape}: they are no mean and covariance; {HINT}"
        )
    gaussian = Gaussian(
        torch.from_numpy(mean).double(),
        torch.from_numpy(covariance).double(),
        int(facts.get("pictures") or 0),
        str(facts.get("features_sha256") or ""),
    )
    if not (torch.isfinite(gaussian.mean).all() and torch.isfinite(gaussian.covariance).all()):
        raise UserError(f"{path}: mu or sigma has values that are not finite: compute the statistics again")
    facts.setdefault("name", path.name)
    facts.setdefault("sha256", hash_tensors(gaussian.mean, gaussian.covariance))
    return Statistics(gaussian, provenance=facts)


def holds(path: Path) -> set[str]:
    """The keys of an `.npz` file. Raises UserError when it cannot be read."""
    with _opened(path) as file:
        return set(file.files)


def count_npz_pictures(path: Path) -> int:
    """How many pictures `arr_0` holds."""
    with _pictures(path) as (_, shape):
        return shape[0]


def npz_pictures(path: Path, batch_size: int = 32, limit: int | None = None) -> Iterator[Tensor]:
    """Batches uint8 (B, 3, H, W) of the pictures in `arr_0`, read as they are asked for: files may exceed the memory.

    Raises:
        UserError: no such file, or `arr_0` is not uint8 (N, H, W, 3).
    """
    with _pictures(path) as (file, (count, height, width, _)):
        count = min(count, limit or count)
        for start in range(0, count, batch_size):
            rows = min(batch_size, count - start)
            data = file.read(rows * height * width * 3)
            if len(data) < rows * height * width * 3:
                raise UserError(f"{path} ends after {start} of {count} pictures: fetch it again")
            images = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(rows, height, width, 3)
            yield images.permute(0, 3, 1, 2).contiguous()


@contextmanager
def _pictures(path: Path) -> Iterator[tuple[IO[bytes], tuple[int, ...]]]:
    """The bytes of `arr_0` behind its header, and its shape."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
            read = np.lib.format.read_array_header_1_0
            if np.lib.format.read_magic(file) != (1, 0):
                read = np.lib.format.read_array_header_2_0
            shape, column_major, dtype = read(file)
            if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or column_major:
                raise UserError(f"{path}: arr_0 is {dtype} {shape}: pictures are uint8 (N, H, W, 3)")
            yield file, shape
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read as pictures ({error}): {HINT}") from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise UserError(f"there is no file {str(path)!r}: {HINT}")
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise UserError(f"{path} is not an .npz file: {HINT}")
            yield file
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read as .npz ({error}): {HINT}") from error


def _facts(path: Path, file: Any) -> Provenance:
    if FACTS not in file.files:
        return {}
    facts = json.loads(str(file[FACTS]))
    if not isinstance(facts, dict) or not all(isinstance(v, str | int | float | None) for v in facts.values()):
        raise UserError(f"{path}: its key {FACTS!r} is not what unitok writes: compute the statistics again")
    return {key: facts[key] for key in ORIGIN if key in facts}
