"""One writer for a folder at a time: a lock that dies with its process."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tokenizers_vq.errors import UserError
from tokenizers_vq.storage.files import clear_litter, read_bytes, settle_parts

LOCK_FILE = ".lock"

_held: set[Path] = set()


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Holds the lock of an output folder, which is made if need be, and clears away what killed processes left in it.

    The lock is a POSIX record lock on `.lock`: it dies with its process whatever kills that, is not handed on to child
    processes, and holds between machines where the file system passes locks on (NFS does). A process may enter a folder
    that it holds already. Under torchrun the first process takes the lock for all of them.

    Raises:
        UserError: another process writes into the folder, or nobody can.
    """
    place = folder.absolute()
    if int(os.environ.get("RANK", "0")) > 0 or place in _held:
        yield
        return
    made = _make(place)
    try:
        died_here = (place / LOCK_FILE).exists()  # who ends by itself removes it
        descriptor = _lock(place)
        _held.add(place)
        try:
            if died_here:
                settle_parts(place)
                clear_litter(place)
            yield
        finally:
            _held.discard(place)
            with suppress(OSError):
                (place / LOCK_FILE).unlink()
            os.close(descriptor)  # and with it the lock: only after nobody can find the file any more
    finally:
        for parent in reversed(made):  # a command that was refused leaves no empty folder behind
            with suppress(OSError):
                parent.rmdir()


def _make(place: Path) -> list[Path]:
    """The folders that were made, outermost first."""
    missing: list[Path] = []
    if place == Path(place.anchor):
        raise UserError(f"--out {place} is the root of all folders: choose one of its own")
    if place.exists() and not place.is_dir():
        raise UserError(f"--out {place} is a file: choose another folder")
    for parent in (place, *place.parents):
        try:
            if parent.is_dir():
                break
        except OSError:
            break
        missing.append(parent)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {place} cannot be written ({error.strerror}): choose another folder") from error
    return missing[::-1]


def _lock(place: Path) -> int:
    """The open file that is locked."""
    path = place / LOCK_FILE
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UserError(f"--out {place} cannot be written ({error.strerror}): choose another folder") from error
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(
                    f"--out {place} is in use by {_holder(path)}: wait until it ends, or choose another folder"
                ) from None
            print(
                f"warning: {place} is on a file system without locks ({error.strerror}): make sure that no other "
                "command writes into it",
                file=sys.stderr,
            )
            return os.open(place, os.O_RDONLY)
        with suppress(OSError):
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                break
        os.close(descriptor)  # who held it before has just removed the file: take the new one
    with suppress(OSError):  # on a full disk the lock holds without a name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode(), 0)
    return descriptor


def _holder(path: Path) -> str:
    try:
        about = json.loads(read_bytes(path, 2**16))
        return f"process {int(about['pid'])} on {about['host']}"
    except (UserError, ValueError, KeyError, TypeError):
        return "another process"


class Claims:
    """Numbered parts of the work in a folder, each held by one process at a time.

    A part is a byte of a file, held by a POSIX record lock on it. So it is free again when its process ends, whatever
    ended it.

    Args:
        path: the file; made when missing.
        shared: several processes work in the folder. One alone holds whatever it takes, and there is no file.

    Raises:
        UserError: the file cannot be made, or the file system has no locks.
    """

    def __init__(self, path: Path, shared: bool) -> None:
        self.path = path
        self._file: int | None = None
        if shared:
            try:
                self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError as error:
                raise UserError(f"{path} cannot be written ({error.strerror}): choose another folder") from error

    def take(self, number: int, wait: bool = False) -> bool:
        """Whether the part is held from now on; not where another process holds it, unless one waits for that."""
        if self._file is None:
            return True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, number)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise UserError(
                f"{self.path.parent} is on a file system without locks ({error.strerror}), so several processes cannot "
                "share the work: start one process, or choose another folder"
            ) from error
        return True

    def release(self, number: int) -> None:
        if self._file is not None:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number)

    @contextmanager
    def holding(self, number: int) -> Iterator[None]:
        """Waits for a part and holds it."""
        self.take(number, wait=True)
        try:
            yield
        finally:
            self.release(number)

    def remove(self) -> None:
        """For when all the work is done."""
        self.path.unlink(missing_ok=True)
