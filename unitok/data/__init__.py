"""Captioned pictures: rendered shapes, folders, parquet, WebDataset tars, the hub, code shards: one spec string."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .codes.shards import CodesDataset
    from .codes.writer import ShardWriter
    from .loader import BadPictures, StepSampler, make_loader, read_in_order
    from .open import open_data
    from .records import Key, Record, RecordBatch, RecordDataset

__all__ = [
    "BadPictures",
    "CodesDataset",
    "Key",
    "Record",
    "RecordBatch",
    "RecordDataset",
    "ShardWriter",
    "StepSampler",
    "make_loader",
    "open_data",
    "read_in_order",
]

_HOMES = {
    "BadPictures": "loader",
    "CodesDataset": "codes.shards",
    "ShardWriter": "codes.writer",
    "StepSampler": "loader",
    "make_loader": "loader",
    "open_data": "open",
    "read_in_order": "loader",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: torch and datasets take seconds to import.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("." + _HOMES.get(name, "records"), __name__), name)
