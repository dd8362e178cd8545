"""Small files of pictures and captions that the tests of data write."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from unitok.data import Record, RecordDataset


def png(value: int, size: tuple[int, int] = (6, 4)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(stream, "PNG")
    return stream.getvalue()


def write(root: Path, files: dict[str, bytes | str]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return root


def write_tar(path: Path, files: dict[str, bytes | str]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            data = data.encode() if isinstance(data, str) else data
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]], **types: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_list(rows)
    for column, feature in types.items():
        table = table.cast_column(column, feature)
    table.to_parquet(str(path))
    return path


def records(data: RecordDataset) -> list[Record]:
    return [data[index] for index in range(len(data))]


def captions(data: RecordDataset) -> list[str | None]:
    return [record.caption for record in records(data)]
