"""Files and folders that are either whole or not there, whenever the process is killed, and the readers of JSON.

What is written goes to a temporary name beside its place first, `.NAME.PID.tmp`, and takes its place by a rename. A
folder whose parts belong together is replaced by `replace_parts`; whoever reads such a folder asks `part` where they
are.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from ..errors import UserError

T = TypeVar("T")

JSON_LIMIT = 2**26
"""Bytes: JSON files of ours are far smaller."""

INCOMING = ".incoming"
"""Holds the parts of a folder that are about to take their places, complete; they count before those in place."""

_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")


@contextmanager
def atomic_path(path: str | Path, sync: bool = True) -> Iterator[Path]:
    """A temporary path beside `path` to write to; takes the place of `path` when the block ends without an error.

    Parent folders are made. `sync`: the content is on the disk before the name is, so that not even a power cut leaves
    an empty file; without it, what can be made again is written faster.

    Raises:
        UserError: the place cannot be written, or the disk is full.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if sync:
            sync_file(temporary)
        os.replace(temporary, path)
        if sync:
            sync_file(path.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; choose another folder or free space"
        ) from error
    finally:
        with suppress(OSError):  # the folder itself may be what is wrong, and that is already being said
            temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """Where this process writes what will be `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def sync_file(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """`sync_file` for everything in a folder, and for itself."""
    for place, _, names in os.walk(folder):
        for name in names:
            sync_file(Path(place, name))
        sync_file(Path(place))


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Fills a new folder under a temporary name and renames it; after a failure nothing is left behind.

    Raises:
        UserError: the disk is full, or the place cannot be written.
    """
    temporary = temporary_name(path)
    try:
        temporary.mkdir(parents=True)
        fill(temporary)
        sync_tree(temporary)
        if path.exists():
            remove_folder(path)
        temporary.rename(path)
        sync_file(path.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free some space, then run the same command again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Removes a folder so that no half of it is ever found under its name."""
    temporary = path.with_name(f".{path.name}.gone.{os.getpid()}.tmp")
    path.rename(temporary)
    shutil.rmtree(temporary)


def replace_parts(folder: Path, fill: Callable[[Path], None]) -> None:
    """Replaces files and folders inside `folder` by those of the same names that `fill` writes into a draft: all of
    them or none, whenever the process is killed. What else is in the folder stays.

    The rename of the finished draft to `INCOMING` decides: from then on `part` finds the new parts. They are moved into
    place after it, by whoever opens the folder to write if need be (`settle_parts`).

    Raises:
        UserError: the disk is full, or the place cannot be written.
    """
    draft = temporary_name(folder / "parts")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        settle_parts(folder)
        draft.mkdir()
        fill(draft)
        sync_tree(draft)
        draft.rename(folder / INCOMING)
        sync_file(folder)
        settle_parts(folder)
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error.strerror or error}; choose another folder or free space"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def settle_parts(folder: Path) -> None:
    """Moves parts that are complete but not yet in place; for the one who writes into the folder."""
    incoming = folder / INCOMING
    if not incoming.is_dir():
        return
    for new in sorted(incoming.iterdir()):
        place = folder / new.name
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        os.replace(new, place)
    incoming.rmdir()
    sync_file(folder)


def part(folder: Path, name: str) -> Path:
    """Where a part of a folder is that `replace_parts` writes: in place, or on its way there."""
    incoming = folder / INCOMING / name
    return incoming if incoming.exists() else folder / name


def read_stable(deciding: Path, read: Callable[[], T]) -> T:
    """What `read` gives of a folder whose parts another process may be replacing: it reads again when the file that
    decides changed meanwhile."""
    for _ in range(5):
        before = _stamp(deciding)
        try:
            return read()
        except UserError:
            if _stamp(deciding) == before:
                raise
    return read()


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def clear_litter(folder: Path) -> None:
    """Removes what processes that are dead now left half-written under `folder`; for the one who writes into it.

    (A process of another machine cannot be asked whether it lives; the folder's lock says that nobody else writes.)
    """
    for place, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            match = _TEMPORARY.fullmatch(name)
            if match is None or _lives(int(match[1])):
                continue
            with suppress(OSError):
                if name in folders:
                    shutil.rmtree(Path(place, name))
                else:
                    Path(place, name).unlink()
        folders[:] = [name for name in folders if not _TEMPORARY.fullmatch(name)]


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    with suppress(OSError):  # dead, and not yet asked after by who started it
        return not Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].startswith(b" Z")
    return True


def is_ours_alone(folder: Path, names: frozenset[str]) -> bool:
    """Whether a folder holds nothing but what has one of these names or is temporary."""
    return all(path.name in names or _TEMPORARY.fullmatch(path.name) for path in folder.iterdir())


def sha256_of(path: str | Path) -> str:
    """SHA-256 (hex) of a file, read piece by piece."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: str | Path, value: Any) -> None:
    """Writes indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def plain(values: Any) -> Any:
    """Values as JSON reads them back: lists for tuples, text for paths."""
    return json.loads(json.dumps(values, default=str))


def read_json(path: str | Path, limit: int = JSON_LIMIT) -> Any:
    """Reads JSON of ours; UserError when the file is missing, larger than `limit` bytes, or not JSON."""
    return parse_json(read_bytes(path, limit), str(path))


def parse_json(data: bytes | str, where: str) -> Any:
    """JSON text -> values. `where` names the file in errors.

    Raises:
        UserError: not UTF-8, not JSON, NaN or infinity, nested too deep, or text that no file can hold (half a
            surrogate pair).
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


def log_entries(log: str | bytes) -> Iterator[dict[str, Any]]:
    """The entries of a run's log.jsonl, each with its `kind` and `step`. A line that a crash cut short, or that is
    damaged, is left out: a log must not stop anything."""
    for line in log.splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and type(entry.get("step")) is int and isinstance(entry.get("kind"), str):
            yield entry


def read_bytes(path: str | Path, limit: int) -> bytes:
    """The bytes of a regular file; UserError when it cannot be read or is larger than `limit` bytes."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # a device or a pipe may have no end
            raise UserError(f"cannot read {path}: it is not a regular file")
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except UserError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > limit:
        raise UserError(f"cannot read {path}: it is larger than {limit:,} bytes, too large for a file of its kind")
    return data


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
