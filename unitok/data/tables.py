"""Tables that others made, opened with `datasets`: parquet files and data sets of the Hugging Face hub."""

from __future__ import annotations

import contextlib
import errno
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
from datasets import Dataset, Features, Image, Value

from tokenizers_vq.errors import UserError

from .folders import choose_split
from .spec import DataSpec

_BATCH = 64  # rows of a parquet file in memory at once: each may be a large picture


def parquet_columns(files: Sequence[Path], where: str) -> Features:
    """The columns of parquet files, by their footers: those of all files together. A column that is empty in some
    files, or missing, has the type of the others.

    Raises:
        UserError: a file that is damaged, or one column with two types.
    """
    found: dict[str, Any] = {}
    origin: dict[str, Path] = {}
    for file in files:
        with reported(where, f"cannot be read as parquet ({file.name})"):
            columns = Features.from_arrow_schema(pq.read_schema(file))
        for column, feature in columns.items():
            if column not in found or _is_null(found[column]):
                found[column], origin[column] = feature, file
    return Features(found)


def row_counts(files: Sequence[Path]) -> list[tuple[str, int]]:
    """(name, rows) of parquet files, by their footers."""
    return [(file.name, pq.read_metadata(file).num_rows) for file in files]


def load_parquet(files: Sequence[Path], features: Features, where: str) -> Dataset:
    """The columns `features` of parquet files in the given order; others are not read.

    `datasets` keeps a memory-mapped copy in the user's cache, or, where that cannot be written, in a temporary folder
    that goes with this process.
    """
    parts = []
    with _quiet(), reported(where, f"cannot be read as parquet ({files[0].name} ...)"):
        for columns, group in itertools.groupby(files, lambda file: _columns_of(file, features)):
            known = Features({column: features[column] for column in columns})
            names = [str(file) for file in group]
            parts.append(
                Dataset.from_parquet(
                    names, cache_dir=cache_dir(), features=known, columns=list(columns), batch_size=_BATCH
                )
            )
        return undecoded(parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts))


def count_rows(file: Path) -> int:
    """Rows of a parquet file that has a column for pictures, by its footer; a damaged one has none."""
    try:
        features = Features.from_arrow_schema(pq.read_schema(file))
        return pq.read_metadata(file).num_rows if any(map(holds_pictures, features.values())) else 0
    except Exception:  # whatever pyarrow or `datasets` raise
        return 0


def load_hub(spec: DataSpec) -> Dataset:
    """A data set of the Hugging Face hub, downloaded once into the user's cache. That may take long: bars are shown."""
    repository, config = spec.source.removeprefix("hf:"), spec.options.get("config")
    with reported(str(spec), "cannot be opened from the Hugging Face hub"):
        split = choose_split(spec.split, datasets.get_dataset_split_names(repository, config), str(spec))
        return undecoded(datasets.load_dataset(repository, config, split=split, cache_dir=cache_dir()))


def hub_folders(spec: DataSpec) -> list[Path]:
    """Where the files of a hub data set may lie on this machine."""
    from huggingface_hub.constants import HF_HUB_CACHE

    name = spec.source.removeprefix("hf:").replace("/", "--")
    return [Path(HF_HUB_CACHE) / f"datasets--{name}", Path(cache_dir()) / "downloads"]


def find_image_column(features: Features, wanted: str | None, where: str) -> str:
    """The column that holds pictures.

    Raises:
        UserError: the wanted column is missing or holds something else, or the choice is not clear.
    """
    columns = ", ".join(features)
    found = [column for column, feature in features.items() if holds_pictures(feature)]
    if wanted is not None:
        if wanted not in features:
            raise UserError(f"data {where!r} has no column {wanted!r}; it has {columns}: choose with ?image=COLUMN")
        if wanted not in found:
            raise UserError(f"data {where!r}: column {wanted!r} holds no picture files; {columns} is what there is")
        return wanted
    if not found:
        raise UserError(f"data {where!r} has no column with picture files; it has {columns}: give other data")
    if len(found) > 1 and "image" not in found:
        raise UserError(f"data {where!r} has pictures in {', '.join(found)}: choose with ?image=COLUMN")
    return "image" if "image" in found else found[0]


def holds_pictures(feature: Any) -> bool:
    if isinstance(feature, dict):
        return "bytes" in feature
    return isinstance(feature, Image) or (isinstance(feature, Value) and feature.dtype in ("binary", "large_binary"))


def undecoded(table: Dataset) -> Dataset:
    """The table with its picture columns left as file bytes."""
    for column, feature in table.features.items():
        if isinstance(feature, Image):
            table = table.cast_column(column, Image(decode=False))
    return table


@contextlib.contextmanager
def reported(where: str, what: str) -> Iterator[None]:
    """Errors of `datasets` as one line for the user."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # it raises its own, pyarrow's, fsspec's and the hub client's
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            raise UserError(
                f"data {where!r}: the disk of the cache {cache_dir()} is full: set HF_HOME elsewhere"
            ) from error
        reason = " ".join(str(cause).split())
        raise UserError(f"data {where!r} {what}: {type(cause).__name__}: {reason[:300]}") from error


@contextlib.contextmanager
def copies_in(folder: Path) -> Iterator[None]:
    """While entered, `datasets` keeps its copies in this folder."""
    token = _copies.set(folder)
    try:
        yield
    finally:
        _copies.reset(token)


_copies: ContextVar[Path | None] = ContextVar("copies", default=None)


def cache_dir() -> str:
    """Where `datasets` keeps its copies: the user's cache, or a temporary folder where that cannot be written."""
    global _temporary_cache
    if (chosen := _copies.get()) is not None:
        return str(chosen)
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            return str(cache)
    except OSError:
        if _temporary_cache is None:
            _temporary_cache = tempfile.TemporaryDirectory(prefix="unitok-data-")
        return _temporary_cache.name


_temporary_cache: tempfile.TemporaryDirectory[str] | None = None


def _columns_of(file: Path, wanted: Features) -> tuple[str, ...]:
    there = set(pq.read_schema(file).names)
    return tuple(column for column in wanted if column in there)


def _is_null(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype == "null"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Progress bars and notices of `datasets` off, and as they were afterwards."""
    bars, verbosity = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it says of errors, they say themselves
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()
