"""Captioned pictures as rows of a Hugging Face `datasets` table, read undecoded and decoded by our own guarded decoder.

A table has a picture column and the columns that the caption is made of. The picture column holds file bytes (parquet,
the hub), or says where they are (`folders`), so a worker reads them when their turn comes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import string
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Features, Image, Value

from tokenizers_vq.errors import UserError

from .decoding import MAX_PIXELS, PictureError, decode
from .fingerprint import digest
from .folders import Row, choose_split, find_files, picture_rows
from .records import CaptionsWanted, Record
from .spec import DataSpec
from .tars import tar_rows

CAPTION_COLUMNS = ("caption", "text", "txt")
"""Where captions are looked for, in this order, when the spec does not say."""


class CaptionTemplate:
    """How a row becomes a caption: a column's name, or a text with {column} in it.

    >>> CaptionTemplate("{text}, {style} style").render({"text": "crab", "style": "noto"})
    'crab, noto style'
    """

    def __init__(self, template: str) -> None:
        self.template = template if "{" in template or "}" in template else "{" + template + "}"
        try:
            parts = list(string.Formatter().parse(self.template))
        except ValueError as error:
            raise UserError(f"caption template {template!r}: {error}: write {{column}}, and {{{{ for a brace") from None
        self.columns = [column for _, column, _, _ in parts if column is not None]
        if not self.columns or any(not c or f or v for _, c, f, v in parts if c is not None):
            raise UserError(f"caption template {template!r}: write plain column names in braces, such as {{text}}")
        self._parts = [(text, column) for text, column, _, _ in parts]

    def render(self, row: Mapping[str, Any]) -> str | None:
        """The caption, or None when a column is missing or empty in this row. Lists are joined with commas."""
        out = ""
        for text, column in self._parts:
            out += text
            if column is not None:
                value = row.get(column)
                if isinstance(value, list | tuple):
                    value = ", ".join(str(item) for item in value)
                value = "" if value is None else str(value).strip()
                if not value:
                    return None
                out += value
        return out.strip()


def caption_template(wanted: str | None, columns: Sequence[str], where: str, advice: str) -> CaptionTemplate:
    """The template of the spec's `caption` key, or the first of `CAPTION_COLUMNS` that there is.

    Raises:
        UserError: a column that there is not, or, with `advice`, no column that looks like a caption.
    """
    have = f"it has {', '.join(columns)}"
    if wanted is None:
        found = [column for column in CAPTION_COLUMNS if column in columns]
        if not found:
            names = ", ".join(CAPTION_COLUMNS[:-1]) + " or " + CAPTION_COLUMNS[-1]
            raise UserError(f"data {where!r} has no captions: no column is named {names}; {have}: {advice}")
        return CaptionTemplate(found[0])
    template = CaptionTemplate(wanted)
    for column in template.columns:
        if column not in columns:
            raise UserError(f"data {where!r} has no column {column!r} for the caption; {have}: choose one of them")
    return template


class PictureDataset:
    """Rows of a table as records.

    A picture that cannot be decoded, or has no caption when one is wanted, becomes a record with a `problem`.

    Args:
        table: with `image_column`, whose cells are bytes, {"bytes", "path"}, or the fields of a `Place`.
        caption: None when captions are not wanted.
        caption_needed: without a caption a record is broken.
        size: (H, W) of every record, None for each picture's own size.
    """

    endless = False

    def __init__(
        self,
        table: Dataset,
        *,
        name: str,
        image_column: str,
        caption: CaptionTemplate | None,
        size: tuple[int, int] | None,
        max_pixels: int = MAX_PIXELS,
        caption_needed: bool = True,
    ) -> None:
        self.name, self.caption_needed = name, caption_needed
        self.image_column, self.caption, self.size, self.max_pixels = image_column, caption, size, max_pixels
        wanted = [image_column, *(caption.columns if caption else ())]
        self._table = table.select_columns(list(dict.fromkeys(wanted)))
        self._labels: dict[str, Callable[[int], str]] = {
            column: feature.int2str
            for column, feature in self._table.features.items()
            if isinstance(feature, ClassLabel)
        }
        if caption and len(table) and not any(self._caption(row) for row in self._caption_rows(1000)):
            raise UserError(
                f"data {name!r}: none of the first {min(len(table), 1000)} pictures has a caption in "
                f"{', '.join(caption.columns)}: fill that in, or choose others with ?caption=COLUMN"
            )

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} records, index is {index}")
        row = self._table[index]
        cell = row[self.image_column]
        names = (cell.get("name"), cell.get("path")) if isinstance(cell, dict) else ()
        name = next(filter(None, names), f"row {index}")
        caption = self._caption(row)
        if self.caption is not None and self.caption_needed and not caption:
            return Record(name=name, problem="has no caption")
        try:
            image = decode(_read(cell), self.size, max_pixels=self.max_pixels)
        except PictureError as error:
            return Record(name=name, caption=caption, problem=str(error))
        return Record(name=name, caption=caption, image=image)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of all names, captions and file sizes, and of some pictures' bytes. Paths and times do not
        count."""
        return digest(self._facts(), len(self), self._bytes)

    def _facts(self) -> Iterator[Any]:
        table = self._table.with_format("arrow")
        yield len(self), self.caption.template if self.caption else None
        others = [column for column in table.column_names if column != self.image_column]
        for start in range(0, len(self), 1000):
            part = table[start : start + 1000]
            cells = part.column(self.image_column).combine_chunks()
            for column in others:
                yield part.column(column).to_pylist()
            yield _names_and_sizes(cells)

    def _bytes(self, index: int) -> bytes:
        try:
            return _read(self._table[index][self.image_column])
        except PictureError:
            return b""

    def _caption_rows(self, count: int) -> Iterator[Mapping[str, Any]]:
        assert self.caption is not None
        columns = self._table.select_columns(list(dict.fromkeys(self.caption.columns)))
        yield from columns.select(range(min(count, len(columns))))

    def _caption(self, row: Mapping[str, Any]) -> str | None:
        if self.caption is None:
            return None
        named = {c: name(row[c]) for c, name in self._labels.items() if c in row and row[c] is not None}
        return self.caption.render({**row, **named})


def _names_and_sizes(cells: pa.Array) -> list[Any]:
    """Of picture cells: file names and sizes, without reading what is large."""
    if not pa.types.is_struct(cells.type):
        return list(pc.binary_length(cells).to_pylist())
    fields = {field.name: pc.struct_field(cells, field.name) for field in cells.type}
    paths = fields["path"].to_pylist() if "path" in fields else [None] * len(cells)
    if "bytes" in fields:
        sizes = pc.binary_length(fields["bytes"]).to_pylist()
        return [(path, size) if size else (None, _size(path)) for path, size in zip(paths, sizes, strict=True)]
    names, sizes = fields["name"].to_pylist(), fields["size"].to_pylist()
    return [(name, _size(path) if size < 0 else size) for path, name, size in zip(paths, names, sizes, strict=True)]


def _size(path: str | None) -> int | None:
    try:
        return os.stat(path).st_size if path else None
    except OSError:
        return None


def _read(cell: Any) -> bytes:
    """The file bytes of a picture cell."""
    if isinstance(cell, bytes):
        return cell
    if not isinstance(cell, dict) or not (cell.get("bytes") or cell.get("path")):
        raise PictureError("has no picture")
    if cell.get("bytes"):
        return bytes(cell["bytes"])
    try:
        if not os.path.isfile(cell["path"]) and os.path.exists(cell["path"]):
            raise PictureError("is not a regular file")  # a table may name any path, also a device without end
        with open(cell["path"], "rb") as file:
            file.seek(cell.get("offset", 0))
            return file.read(cell.get("size", -1))
    except OSError as error:
        raise PictureError(f"cannot be read: {error.strerror}") from None


def open_pictures(
    spec: DataSpec, size: tuple[int, int] | None, captions: CaptionsWanted, max_pixels: int
) -> PictureDataset:
    """Folders, parquet, tars and hub data sets; see `open_data` for the arguments.

    Raises:
        UserError: the spec names something that is not there or cannot be used.
    """
    where = str(spec)
    caption, image = spec.options.get("caption"), spec.options.get("image")
    if spec.source.startswith("hf:"):
        spec.check_keys("caption", "image", "limit", "config")
        return _of_table(load_hub(spec), spec, size, captions, max_pixels)
    files = find_files(spec.source, spec.split, where)
    if files.kind == "parquet":
        spec.check_keys("caption", "image", "limit")
        return _of_table(load_parquet(files.paths, where), spec, size, captions, max_pixels)
    if files.kind == "tar":
        spec.check_keys("caption", "image", "limit")
        rows = tar_rows(files.paths, image, where)
        advice = "give each sample a .txt or .json, or say ?caption=COLUMN"
    else:
        spec.check_keys("caption", "limit")
        rows = picture_rows(files)
        advice = "put NAME.txt beside each NAME.png, or add a metadata.jsonl, or say ?caption={label} for folder names"
    columns = sorted({column for _, row in rows for column in row})
    template = caption_template(caption, columns, where, advice) if captions else None
    table = place_table(rows, template)
    finished = CaptionTemplate("caption") if captions else None
    return PictureDataset(
        table,
        name=where,
        image_column="image",
        caption=finished,
        size=size,
        max_pixels=max_pixels,
        caption_needed=captions is True,
    )


def _of_table(
    table: Dataset, spec: DataSpec, size: tuple[int, int] | None, captions: CaptionsWanted, max_pixels: int
) -> PictureDataset:
    where, advice = str(spec), "say ?caption=COLUMN"
    image_column = find_image_column(table, spec.options.get("image"), where)
    others = [column for column in table.column_names if column != image_column]
    template = caption_template(spec.options.get("caption"), others, where, advice) if captions else None
    return PictureDataset(
        table,
        name=where,
        image_column=image_column,
        caption=template,
        size=size,
        max_pixels=max_pixels,
        caption_needed=captions is True,
    )


def find_image_column(table: Dataset, wanted: str | None, where: str) -> str:
    """The column that holds pictures.

    Raises:
        UserError: the wanted column is missing or holds something else, or the choice is not clear.
    """
    columns = ", ".join(table.column_names)
    found = [column for column, feature in table.features.items() if _holds_pictures(feature)]
    if wanted is not None:
        if wanted not in table.column_names:
            raise UserError(f"data {where!r} has no column {wanted!r}; it has {columns}: choose with ?image=COLUMN")
        if wanted not in found:
            raise UserError(f"data {where!r}: column {wanted!r} holds no picture files; {columns} is what there is")
        return wanted
    if not found:
        raise UserError(f"data {where!r} has no column with picture files; it has {columns}: give other data")
    if len(found) > 1 and "image" not in found:
        raise UserError(f"data {where!r} has pictures in {', '.join(found)}: choose with ?image=COLUMN")
    return "image" if "image" in found else found[0]


def _holds_pictures(feature: Any) -> bool:
    if isinstance(feature, dict):
        return "bytes" in feature
    return isinstance(feature, Image) or (isinstance(feature, Value) and feature.dtype in ("binary", "large_binary"))


def place_table(rows: Sequence[Row], template: CaptionTemplate | None) -> Dataset:
    """Rows of loose pictures or tars as a table of places and finished captions, without the pictures themselves."""
    place = {"path": Value("string"), "name": Value("string"), "offset": Value("int64"), "size": Value("int64")}
    return Dataset.from_dict(
        {
            "image": [asdict(place) for place, _ in rows],
            "caption": [template.render(columns) if template else None for _, columns in rows],
        },
        features=Features({"image": place, "caption": Value("string")}),
    )


def load_parquet(files: Sequence[Path], where: str) -> Dataset:
    """Parquet files in the given order.

    `datasets` keeps a memory-mapped copy in the user's cache, or, where that cannot be written, in a temporary folder
    that goes with this process.
    """
    with _quiet(), _reported(where, f"cannot be read as parquet ({files[0].name} ...)"):
        return undecoded(Dataset.from_parquet([str(file) for file in files], cache_dir=_cache_dir()))


def load_hub(spec: DataSpec) -> Dataset:
    """A data set of the Hugging Face hub, downloaded once into the user's cache. That may take long: bars are shown."""
    repository, config = spec.source.removeprefix("hf:"), spec.options.get("config")
    with _reported(str(spec), "cannot be opened from the Hugging Face hub"):
        split = choose_split(spec.split, datasets.get_dataset_split_names(repository, config), str(spec))
        return undecoded(datasets.load_dataset(repository, config, split=split, cache_dir=_cache_dir()))


def undecoded(table: Dataset) -> Dataset:
    """The table with its picture columns left as file bytes."""
    for column, feature in table.features.items():
        if isinstance(feature, Image):
            table = table.cast_column(column, Image(decode=False))
    return table


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Progress bars and notices of `datasets` off, and as they were afterwards."""
    bars, verbosity = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def _reported(where: str, what: str) -> Iterator[None]:
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
                f"data {where!r}: the disk of the cache {_cache_dir()} is full: set HF_HOME elsewhere"
            ) from error
        reason = " ".join(str(cause).split())
        raise UserError(f"data {where!r} {what}: {type(cause).__name__}: {reason[:300]}") from error


_temporary_cache: tempfile.TemporaryDirectory[str] | None = None


def _cache_dir() -> str:
    global _temporary_cache
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            return str(cache)
    except OSError:
        if _temporary_cache is None:
            _temporary_cache = tempfile.TemporaryDirectory(prefix="unitok-data-")
        return _temporary_cache.name
