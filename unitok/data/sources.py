"""Captioned pictures as rows of a Hugging Face `datasets` table, read undecoded and decoded by our own guarded decoder.

A table has a picture column and the columns that the records' texts are made of. The picture column holds file bytes
(parquet, the hub), or says where they are (loose pictures, tars), so a worker reads them when their turn comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, Value

from tokenizers_vq.errors import UserError

from .captions import CaptionError, Captions, CaptionTemplate, FirstColumn, caption_template, text_template
from .cells import Cells, Place, PlaceCells, Row, TableCells
from .decoding import MAX_PIXELS, PictureError, decode
from .fingerprint import digest
from .folders import Files, find_files
from .loose import picture_rows
from .records import CaptionsWanted, LeftOut, Record
from .spec import TEXT_KEYS, DataSpec
from .tables import (
    count_rows,
    find_image_column,
    hub_folders,
    load_hub,
    load_parquet,
    parquet_columns,
    row_counts,
)
from .tars import count_samples, tar_rows
from .text_files import printable

CAPTIONS_EXPECTED = 1000
"""Records of a table that are looked at for a caption before the work begins."""


class PictureDataset:
    """Rows of a table as records.

    A picture that cannot be decoded, or has no caption when one is wanted, becomes a record with a `problem`.

    Args:
        table: with `image_column`, which `cells` reads.
        texts: how a row becomes each text of its record: "caption", unless captions are not wanted, and those of
            `TEXT_KEYS` that are.
        caption_needed: without a caption a record is broken.
        size: (H, W) of every record, None for each picture's own size.
        left_out: pictures that were found but are no rows.
    """

    endless = False

    def __init__(
        self,
        table: Dataset,
        cells: Cells,
        *,
        name: str,
        image_column: str,
        texts: Mapping[str, Captions],
        size: tuple[int, int] | None,
        max_pixels: int = MAX_PIXELS,
        caption_needed: bool = True,
        left_out: Sequence[LeftOut] = (),
    ) -> None:
        self.name, self.caption_needed, self.left_out = name, caption_needed, left_out
        self.cells, self.image_column, self.texts = cells, image_column, texts
        self.size, self.max_pixels = size, max_pixels
        self._table = table.select_columns(_needed(image_column, texts))
        self._labels: dict[str, Callable[[int], str]] = {
            column: feature.int2str
            for column, feature in self._table.features.items()
            if isinstance(feature, ClassLabel)
        }

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} records, index is {index}")
        name, texts = f"row {index}", dict[str, str]()
        try:
            row = _row(self._table, index)
            cell = row[self.image_column]
            name = self.cells.name(cell, index)
            for key, template in self.texts.items():
                if text := self._text(template, row):
                    texts[key] = text
            data = self.cells.read(cell, index)
            if "caption" in self.texts and self.caption_needed and "caption" not in texts:
                return Record(name=name, problem="has no caption")
            image = decode(data, self.size, max_pixels=self.max_pixels)
        except (PictureError, CaptionError) as error:
            return Record(name=name, caption=texts.get("caption"), problem=str(error))
        caption = texts.pop("caption", None)
        return Record(name=name, caption=caption, image=image, fields={**texts})

    def fingerprint(self) -> str:
        """SHA-256 (hex) of all names, texts and file sizes, and of some pictures' bytes. Paths and times do not
        count."""
        return digest(self._facts(), len(self), self._bytes)

    def _facts(self) -> Iterator[Any]:
        table = self._table.with_format("arrow")
        templates = {key: template.template for key, template in self.texts.items()}
        yield len(self), templates.pop("caption", None)
        if templates:
            yield templates
        others = [column for column in table.column_names if column != self.image_column]
        for start in range(0, len(self), 1000):
            part = table[start : start + 1000]
            for column in others:
                yield _values(part.column(column))
            yield self.cells.facts(part.column(self.image_column).combine_chunks())

    def _bytes(self, index: int) -> bytes:
        try:
            return self.cells.read(_row(self._table, index)[self.image_column], index)
        except (PictureError, CaptionError):
            return b""

    def first_captions(self, count: int) -> Iterator[str | CaptionError | None]:
        """The captions of the first records, or what is wrong with them; no picture is read."""
        template = self.texts.get("caption")
        if template is None:
            return
        columns = self._table.select_columns(list(dict.fromkeys(template.columns)))
        for index in range(min(count, len(self))):
            try:
                yield self._text(template, _row(columns, index))
            except CaptionError as error:
                yield error

    def each_caption(self) -> Iterator[str | None]:
        """See `Captioned`."""
        return (one if isinstance(one, str) else None for one in self.first_captions(len(self)))

    def _text(self, template: Captions, row: Mapping[str, Any]) -> str | None:
        classes = {column: self._label(column, row[column]) for column in template.columns if column in self._labels}
        return template.render({**row, **classes})

    def _label(self, column: str, number: int | None) -> str | None:
        try:
            return None if number is None or number < 0 else self._labels[column](number)
        except ValueError:
            raise CaptionError(f"its {column} is {number}, a class without a name") from None


def _needed(image_column: str, texts: Mapping[str, Captions]) -> list[str]:
    """The columns that records are made of, each once."""
    return list(dict.fromkeys([image_column, *(column for text in texts.values() for column in text.columns)]))


def _row(table: Dataset, index: int) -> dict[str, Any]:
    try:
        return dict(table[index])
    except UnicodeDecodeError:  # a table may call any bytes text
        raise CaptionError("its row holds text that is not UTF-8: save it as UTF-8") from None


def _values(column: pa.ChunkedArray) -> Any:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [str(value.as_buffer().to_pybytes()) if hasattr(value, "as_buffer") else None for value in column]


def open_pictures(
    spec: DataSpec, size: tuple[int, int] | None, captions: CaptionsWanted, max_pixels: int
) -> tuple[PictureDataset, list[str]]:
    """Folders, parquet, tars and hub data sets; see `open_data` for the arguments.

    Returns the data set, and what to say of how the spec was understood.

    Raises:
        UserError: the spec names something that is not there or cannot be used.
    """
    where = str(spec)
    outside = spec.options.get("outside") == "true"
    common: dict[str, Any] = {
        "name": str(spec.without("label")),  # which changes neither pictures nor captions
        "size": size,
        "max_pixels": max_pixels,
        "caption_needed": captions is True,
    }
    if spec.source.startswith("hf:"):
        spec.check_keys("caption", "image", "limit", "config", "outside", *TEXT_KEYS)
        table = load_hub(spec)
        image, texts = _columns(table.features, spec, captions)
        data = PictureDataset(table, TableCells(hub_folders(spec), outside), image_column=image, texts=texts, **common)
        return _with_captions(data), []
    files = find_files(spec, _count_pictures)
    if files.kind == "parquet":
        spec.check_keys("caption", "image", "limit", "kind", "outside", *TEXT_KEYS)
        features = parquet_columns(files.paths, where)
        image, texts = _columns(features, spec, captions)
        needed = _needed(image, texts)
        table = load_parquet(
            files.paths, Features({name: kind for name, kind in features.items() if name in needed}), where
        )
        folders = list(dict.fromkeys([*(path.parent for path in files.paths), files.root]))
        cells = TableCells(folders, outside, row_counts(files.paths))
        data = PictureDataset(table, cells, image_column=image, texts=texts, **common)
        return _with_captions(data), files.notes
    rows, left_out, advice = _placed(files, spec, captions, outside)
    texts = _row_templates(rows, spec, captions, advice)
    finished = [_finished(row, texts) for row in rows]
    data = PictureDataset(
        place_table(finished, list(texts)),
        PlaceCells(),
        image_column="image",
        texts={key: CaptionTemplate(key) for key in texts},
        left_out=[(printable(name), reason) for name, reason in (*files.left_out, *left_out)],
        **common,
    )
    problems = [f"{place.name}: {place.problem}" for place, _ in finished if place.problem is not None]
    whole = [found for place, found in finished if place.problem is None]
    missing = sum(not found["caption"] for found in whole) if captions is True else 0
    if captions and not any(found.get("caption") for _, found in finished):
        raise _no_captions(where, len(finished), texts["caption"], problems)
    notes = [f"{len(problems)} cannot be used ({problems[0]}{', ...' * (len(problems) > 1)})"] if problems else []
    return data, [*files.notes, *notes, *([f"{missing} without a caption"] if missing else [])]


def _count_pictures(kind: str, files: Sequence[Path]) -> int:
    return sum(map(count_rows if kind == "parquet" else count_samples, files))


def _placed(
    files: Files, spec: DataSpec, captions: CaptionsWanted, outside: bool
) -> tuple[list[Row], list[LeftOut], str]:
    """(rows, pictures that are none, what to do where captions are missing) of tars or loose pictures."""
    where = str(spec)
    if files.kind == "tar":
        spec.check_keys("caption", "image", "limit", "kind", *TEXT_KEYS)
        advice = "give each sample a .txt or .json, or say ?caption=COLUMN"
        return (*tar_rows(files.paths, spec.options.get("image"), where), advice)
    spec.check_keys("caption", "limit", "kind", "outside", *TEXT_KEYS)
    texts = bool(captions) or any(key in spec.options for key in TEXT_KEYS)
    advice = "put NAME.txt beside each NAME.png, or add a metadata.jsonl, or say ?caption={label} for folder names"
    return (*picture_rows(files, texts, outside, where), advice)


def _templates(
    spec: DataSpec, columns: Sequence[str], spelled: Sequence[str], captions: CaptionsWanted, advice: str
) -> dict[str, Captions]:
    """How a row becomes each text that is wanted of it. `spelled`: the columns that the spec may name."""
    where, wanted = str(spec), spec.options.get("caption")
    found: dict[str, Captions] = {}
    if captions:
        found["caption"] = caption_template(wanted, columns if wanted is None else spelled, where, advice)
    for key in TEXT_KEYS:
        if key in spec.options:
            found[key] = text_template(spec.options[key], spelled, where, key)
    return found


def _columns(features: Features, spec: DataSpec, captions: CaptionsWanted) -> tuple[str, dict[str, Captions]]:
    """(picture column, texts) of a table."""
    image = find_image_column(features, spec.options.get("image"), str(spec))
    others = [column for column in features if column != image]
    return image, _templates(spec, others, others, captions, "say ?caption=COLUMN")


def _row_templates(rows: Sequence[Row], spec: DataSpec, captions: CaptionsWanted, advice: str) -> dict[str, Captions]:
    columns = {column for _, row in rows for column in row}
    spelled = columns | {"caption"} if "txt" in columns else columns
    return _templates(spec, sorted(columns), sorted(spelled), captions, advice)


def _finished(row: Row, texts: Mapping[str, Captions]) -> tuple[Place, dict[str, str | None]]:
    place, columns = row
    spelled = {"caption": columns.get("txt"), **columns}  # what is spelled out may call NAME.txt by its usual name
    found: dict[str, str | None] = {}
    try:
        for key, text in texts.items():
            found[key] = text.render(columns if isinstance(text, FirstColumn) else spelled)
    except CaptionError as error:
        place = replace(place, problem=place.problem or str(error))
    return place, found


def _with_captions(data: PictureDataset) -> PictureDataset:
    """The data set itself; UserError when none of its first records has a caption."""
    reasons = []
    for caption in data.first_captions(CAPTIONS_EXPECTED):
        if isinstance(caption, str) and caption:
            return data
        reasons.append(str(caption) if isinstance(caption, CaptionError) else None)
    if "caption" in data.texts and reasons:
        raise _no_captions(data.name, len(reasons), data.texts["caption"], [reason for reason in reasons if reason])
    return data


def _no_captions(where: str, count: int, caption: Captions, reasons: Sequence[str]) -> UserError:
    why = f" ({reasons[0]})" if reasons else ""
    return UserError(
        f"data {where!r}: none of the first {count} pictures has a caption in {', '.join(caption.columns)}{why}: "
        "fill that in, or choose others with ?caption=COLUMN"
    )


def place_table(rows: Sequence[tuple[Place, Mapping[str, str | None]]], keys: Sequence[str]) -> Dataset:
    """Rows of loose pictures or tars as a table of places and finished texts, without the pictures themselves."""
    place = {
        "path": Value("binary"),
        "name": Value("string"),
        "offset": Value("int64"),
        "size": Value("int64"),
        "problem": Value("string"),
    }
    return Dataset.from_dict(
        {"image": [vars(place) for place, _ in rows], **{key: [found.get(key) for _, found in rows] for key in keys}},
        features=Features({"image": place, **dict.fromkeys(keys, Value("string"))}),
    )
