"""Digests that folders carry of their own files, in their JSON under the key `files`: name -> SHA-256 (hex).

A folder inside a folder is named by its JSON file, which carries the digests of the rest: a chain.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from ..errors import UserError
from .files import part, read_json, sha256_of

FILES = "files"

_verifying: ContextVar[bool] = ContextVar("verifying", default=True)


@contextmanager
def unverified() -> Iterator[None]:
    """While entered, digests are not compared: opening is faster, and a damaged file may pass."""
    token = _verifying.set(False)
    try:
        yield
    finally:
        _verifying.reset(token)


def with_digests(values: Mapping[str, Any], folder: Path, own: str, *names: str) -> dict[str, Any]:
    """The JSON of a folder, which will be its file `own`, with its own digest and those of these files beside it."""
    files = {own: _digest_of(values)} | {name: sha256_of(folder / name) for name in names}
    return {**values, FILES: files}


def read_configuration(where: Path) -> tuple[dict[str, Any], dict[str, str] | None]:
    """(values, digests) of the JSON of a folder; no digests when it was written without.

    Raises:
        UserError: it cannot be read, or is no table.
    """
    values = read_json(where)
    if not isinstance(values, dict):
        raise UserError(f"{where} holds a {type(values).__name__}, not a configuration: restore the file")
    return values, take_digests(values, where)


def take_digests(values: dict[str, Any], where: Path) -> dict[str, str] | None:
    """Removes the digests from the JSON of a folder; None when it was written without.

    Raises:
        UserError: something else stands under the key.
    """
    files = values.pop(FILES, None)
    if files is None:
        return None
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        raise UserError(f"{where}: {FILES!r} is no table of names and digests: restore the file")
    return files


def check_own(values: Mapping[str, Any], files: Mapping[str, str] | None, where: Path) -> None:
    """Compares what a JSON file says, without its digests, with the digest that it carries of itself.

    Raises:
        UserError: it was changed.
    """
    if files is not None and _verifying.get() and files.get(where.name) != _digest_of(values):
        raise UserError(
            f"{where} is not what was written: restore the file, or add --no_verify if you changed it on purpose"
        )


def _digest_of(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def check_digest(folder: Path, name: str, files: Mapping[str, str] | None, advice: str) -> None:
    """Compares a file of a folder with the digest that the folder carries of it, if it does.

    Raises:
        UserError: the file is missing, cannot be read, or is not what was written.
    """
    path = part(folder, name.partition("/")[0])
    path = path / name.partition("/")[2] if "/" in name else path
    if not path.is_file():
        raise UserError(f"{path} is missing: {advice}")
    if files is None or not _verifying.get():
        return
    try:
        found = sha256_of(path)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}): {advice}") from error
    if found != files.get(name):
        raise UserError(f"{path} is damaged, it is not what was written: {advice}")
