"""Files that are either whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import UserError

JSON_LIMIT = 2**26
"""Bytes: JSON files of ours are far smaller."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; takes the place of `path` when the block ends without an error.

    Parent folders are made. UserError when the place cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; choose another folder or free space"
        ) from error
    finally:
        with suppress(OSError):  # the folder itself may be what is wrong, and that is already being said
            temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Writes indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | Path, limit: int = JSON_LIMIT) -> Any:
    """Reads JSON of ours; UserError when the file is missing, larger than `limit` bytes, or not JSON."""
    return parse_json(read_bytes(path, limit), str(path))


def parse_json(data: bytes | str, where: str) -> Any:
    """JSON text -> values. `where` names the file in errors.

    Raises:
        UserError: not UTF-8, not JSON, NaN or infinity, nested too deep, or text that no file can hold (half a surrogate
            pair).
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        value = json.loads(text, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode()  # finds halves of surrogate pairs
    except RecursionError:
        raise UserError(f"{where} is nested too deep to be read: restore the file") from None
    except UnicodeError:
        raise UserError(f"{where} holds text that is not UTF-8: restore the file") from None
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON ({' '.join(str(error).split())[:200]}): restore the file") from None
    return value


def read_bytes(path: str | Path, limit: int) -> bytes:
    """The bytes of a regular file; UserError when it cannot be read or is larger than `limit` bytes."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # a device or a pipe may have no end
            raise UserError(f"cannot read {path}: it is not a regular file")
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > limit:
        raise UserError(f"cannot read {path}: it is larger than {limit:,} bytes, too large for a file of its kind")
    return data


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
