"""Statistics and pictures in `.npz` files, in the layouts that other tools read and write. Nothing in them is executed.

mu, sigma                  mean and covariance: pytorch-fid, and ADM's reference batches (guided-diffusion)
mu_s, sigma_s              ADM's spatial features, for sFID; left aside
arr_0                      pictures uint8 (N, H, W, 3): ADM's samples and reference batches
unitok                     JSON text, written here: network and its hash, count, resize, image size, set and its hash
"""

from __future__ import annotations

import json
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from tokenizers_vq.errors import UserError
from tokenizers_vq.storage.files import atomic_path, parse_json
from tokenizers_vq.storage.schema import read_value

from .metrics.frechet import Gaussian
from .metrics.statistics import Statistics
from .provenance import Fact, Provenance, hash_tensors, version_line

FACTS = "unitok"
ORIGIN = ("features", "features_sha256", "resize", "image size", "pictures", "name", "sha256", "versions")
HINT = "give a file with mu and sigma (pytorch-fid, ADM, `unitok eval statistics`) or arr_0 (ADM's pictures)"
LARGEST = 2**30
"""Bytes of a covariance: features of up to 11,000 numbers."""
LARGEST_SIDE = 4096
"""Pixels of a picture's side."""


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
    with _opened(path) as archive:
        if not {"mu", "sigma"} <= _keys(archive):
            raise UserError(f"{path} holds {', '.join(sorted(_keys(archive))) or 'nothing'}: {HINT}")
        mean, covariance = (np.atleast_1d(_array(archive, path, key)) for key in ("mu", "sigma"))
        facts = _facts(path, archive)
    covariance = np.atleast_2d(covariance)
    if (
        mean.ndim != 1
        or covariance.shape != (len(mean), len(mean))
        or {mean.dtype.kind, covariance.dtype.kind} != {"f"}
    ):
        raise UserError(
            f"{path}: mu is {mean.shape} and sigma {covariance.shape}: they are no mean and covariance; {HINT}"
        )
    gaussian = Gaussian(
        torch.from_numpy(mean.astype(np.float64)),
        torch.from_numpy(covariance.astype(np.float64)),
        pictures if isinstance(pictures := facts.get("pictures"), int) and 0 <= pictures < 2**63 else 0,
        str(facts.get("features_sha256") or ""),
    )
    if not (torch.isfinite(gaussian.mean).all() and torch.isfinite(gaussian.covariance).all()):
        raise UserError(f"{path}: mu or sigma has values that are not finite: compute the statistics again")
    facts.setdefault("name", path.name)
    facts.setdefault("sha256", hash_tensors(gaussian.mean, gaussian.covariance))
    return Statistics(gaussian, provenance=facts)


def holds(path: Path) -> set[str]:
    """The keys of an `.npz` file. Raises UserError when it cannot be read."""
    with _opened(path) as archive:
        return _keys(archive)


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
    with _opened(path) as archive, _member(archive, path, "arr_0") as (file, (shape, dtype, column_major)):
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or column_major:
            raise UserError(f"{path}: arr_0 is {dtype} {shape}: pictures are uint8 (N, H, W, 3)")
        if not (shape[0] >= 1 and 1 <= shape[1] <= LARGEST_SIDE and 1 <= shape[2] <= LARGEST_SIDE):
            raise UserError(f"{path}: arr_0 is {shape}: give one picture or more, of sides up to {LARGEST_SIDE}")
        yield file, shape


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive; whatever is found to be wrong while it is read is told in a line."""
    if not path.is_file():
        raise UserError(f"there is no file {str(path)!r}: {HINT}")
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except UserError:
        raise
    except _BROKEN as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path} cannot be read as .npz ({reason}): {HINT}") from error


_BROKEN = (
    *(OSError, KeyError, ValueError, EOFError, OverflowError, MemoryError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, SyntaxError, TypeError),
)
"""What zipfile and numpy raise for a damaged or hostile file."""


def _keys(archive: zipfile.ZipFile) -> set[str]:
    return {name.removesuffix(".npy") for name in archive.namelist()}


@contextmanager
def _member(
    archive: zipfile.ZipFile, path: Path, key: str
) -> Iterator[tuple[IO[bytes], tuple[tuple[int, ...], np.dtype[Any], bool]]]:
    """An array's bytes behind its header, and its shape, dtype and whether columns come first.

    Raises:
        UserError: its shape and the size of the file do not agree, so that memory would be taken for nothing.
    """
    info = archive.getinfo(f"{key}.npy")
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, column_major, dtype = header(file)
        if dtype.hasobject:
            raise UserError(f"{path}: {key} holds Python objects, which are not read: {HINT}")
        if any(side < 0 for side in shape) or math.prod(shape) * dtype.itemsize != info.file_size - file.tell():
            raise UserError(f"{path}: {key} says {dtype} {shape}, which is not what the file holds: fetch it again")
        yield file, (shape, dtype, column_major)


def _array(archive: zipfile.ZipFile, path: Path, key: str) -> np.ndarray:
    with _member(archive, path, key) as (file, (shape, dtype, column_major)):
        size = math.prod(shape) * dtype.itemsize
        if size > LARGEST:
            raise UserError(f"{path}: {key} is {dtype} {shape}, larger than {LARGEST:,} bytes: {HINT}")
        values = np.frombuffer(file.read(size), dtype)
        return values.reshape(shape, order="F" if column_major else "C")


def _facts(path: Path, archive: zipfile.ZipFile) -> Provenance:
    if FACTS not in _keys(archive):
        return {}
    where = f"{path}: its key {FACTS!r}"
    facts = read_value(dict[str, Fact], parse_json(str(_array(archive, path, FACTS)), where), where, "facts")
    return {key: facts[key] for key in ORIGIN if key in facts}
