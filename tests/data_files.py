"""Small files of pictures and captions that the tests of data write."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from tokenizers_vq.errors import UserError
from unitok.data import Record, RecordDataset, open_data


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


def pictures(root: Path, *names: str, text: str = "x") -> Path:
    """Pictures full of 1, 2, ... with captions."""
    for value, name in enumerate(names, 1):
        write(root, {f"{name}.png": png(value)} | ({f"{name}.txt": f"{text} {value}"} if text else {}))
    return root


def found(data: RecordDataset) -> dict[str, str | None]:
    """Name -> caption, or what is wrong in brackets."""
    records = [data[index] for index in range(len(data))]
    return {record.name: f"[{record.problem}]" if record.problem else record.caption for record in records}


def refusal(spec: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        open_data(str(spec), 4, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def jsonl(*entries: dict[str, Any]) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)
