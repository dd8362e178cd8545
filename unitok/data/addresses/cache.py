"""Files that lie elsewhere (http, s3, hf, whatever `fsspec` opens): brought here one by one, kept in bounded space.

A server that is slow, dead for a while or cuts connections is waited for, with longer and longer pauses. What comes is
compared with the digest that is known of it, by whoever asks for it or by the server.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import Queue
from typing import Any

from tokenizers_vq.errors import UserError
from tokenizers_vq.storage.files import clear_litter, temporary_name

logger = logging.getLogger(__name__)

PATIENCE = 300.0
"""Seconds between the tries to bring a file, all together, after which its server is given up."""
STALL = 30.0
"""Seconds without a byte after which a connection is given up, and tried again."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
DAMAGED = 3
"""Times that a file may arrive damaged."""
CACHE_GB = 20
"""Default size of the cache."""
_IN_USE = 60.0  # seconds since a file was asked for in which it is not removed
_TOUCH = 10.0
_PASSING = (408, 425, 429)  # answers 4xx of a server that asks for patience
_AT_ONCE = 2  # files that are brought at once, ahead of their use


def is_remote(source: str) -> bool:
    """Whether a spec's source is an address, such as https://host/data.tar, and no path."""
    return re.match(r"[a-z][a-z0-9+.-]*://", source) is not None


class Cache:
    """Files from elsewhere in a folder of this machine, at most `limit` bytes of them: what was not asked for the
    longest is removed. Processes may share it, and each file is brought by one of them.

    Pickles, and works in forked processes.
    """

    def __init__(self, limit: int = CACHE_GB * 10**9, folder: Path | None = None) -> None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.folder, self.limit = folder or home / "unitok" / "data", limit
        self._ahead: Queue[tuple[str, str | None]] | None = None
        self._waiting: set[tuple[str, str | None]] = set()

    def place(self, address: str) -> Path:
        """Where a file is kept."""
        parent, _, name = address.rpartition("/")
        return self.folder / hashlib.sha256(parent.encode()).hexdigest()[:16] / name

    def bring(self, address: str, sha256: str | None = None, fresh: bool = False) -> Path:
        """The file of an address, brought if it is not here.

        Args:
            sha256: what is known of it.
            fresh: bring it even if it is here.

        Raises:
            UserError: there is no such file, its server is given up, it arrives `DAMAGED`
                times as another one, or the disk is full.
        """
        path = self.place(address)
        if fresh or not _is_here(path):
            with self._alone(path):
                if fresh or not _is_here(path):
                    _download(address, path, sha256)
                    self._make_room(path)
        return path

    def bring_ahead(self, wanted: Sequence[tuple[str, str | None]]) -> None:
        """Begins to bring files (address, sha256) in this order. What goes wrong shows when they are asked for."""
        if self._ahead is None:
            self._ahead = Queue()
            for _ in range(_AT_ONCE):  # daemons: a program that ends does not wait for them
                threading.Thread(target=self._bring_all, args=(self._ahead,), daemon=True).start()
        for one in wanted:
            if one not in self._waiting:
                self._waiting.add(one)
                self._ahead.put(one)

    def _bring_all(self, queue: Queue[tuple[str, str | None]]) -> None:
        while True:
            one = queue.get()
            with contextlib.suppress(UserError, OSError):
                self.bring(*one)
            self._waiting.discard(one)

    @contextlib.contextmanager
    def _alone(self, path: Path) -> Iterator[None]:
        """One thread of one process at a time brings a file."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UserError(
                f"the cache {self.folder} cannot be written ({error.strerror}): set XDG_CACHE_HOME"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _make_room(self, newest: Path) -> None:
        """Removes what was not asked for the longest until the rest fits. What is in use stays, and may be more."""
        clear_litter(self.folder)
        kept = []
        for path in self.folder.glob("*/[!.]*"):
            with contextlib.suppress(OSError):  # another process makes room as well
                files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
                facts = [one.stat() for one in files]
                used, size = max((one.st_mtime for one in facts), default=0.0), sum(one.st_size for one in facts)
                kept.append((used, size, path))
        total = sum(size for _, size, _ in kept)
        for used, size, path in sorted(kept):
            if total <= self.limit:
                return
            if path != newest and time.time() - used > _IN_USE:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
                total -= size

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ahead": None, "_waiting": set()}


def _is_here(path: Path) -> bool:
    """Whether a file is here; then it is in use."""
    try:
        if time.time() - path.stat().st_mtime > _TOUCH:
            os.utime(path)
    except FileNotFoundError:
        return False
    return True


def file_system(address: str) -> Any:
    """The `fsspec` file system of an address; http connections that stall are given up.

    Raises:
        UserError: a protocol that is not known, or whose package is missing.
    """
    import aiohttp
    import fsspec

    options: dict[str, Any] = {}
    if address.startswith(("http://", "https://")):
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALL, sock_read=STALL)
        options["client_kwargs"] = {"timeout": timeout}
    try:
        return fsspec.filesystem(address.partition("://")[0], skip_instance_cache=True, **options)
    except (ImportError, ValueError) as error:
        raise UserError(f"{address} cannot be opened ({' '.join(str(error).split())}): give another address") from error


def _download(address: str, path: Path, sha256: str | None) -> None:
    """Brings a file, whole or not at all."""
    system, temporary = file_system(address), temporary_name(path)
    tries, waited, pause, damaged = 0, 0.0, FIRST_PAUSE, 0
    while True:
        tries += 1
        try:
            system.get_file(address, str(temporary))
            wrong = _wrong(temporary, [("sha256", sha256)] if sha256 else _promised(system, address))
            if wrong is None:
                os.replace(temporary, path)
                return
            damaged += 1
            trouble = f"it arrived damaged, {wrong}"
            if damaged == DAMAGED:
                raise UserError(
                    f"{address} arrived damaged {DAMAGED} times, or it was replaced ({wrong}): restore it there, or "
                    f"remove {path.parent} and start anew"
                )
        except UserError:
            raise
        except Exception as error:  # aiohttp's, botocore's, the hub client's
            trouble = _said(error)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise UserError(f"the disk of the cache {path.parent} is full: set XDG_CACHE_HOME elsewhere") from error
            status = getattr(error, "status", None)
            refused = isinstance(status, int) and 400 <= status < 500 and status not in _PASSING
            if refused or isinstance(error, FileNotFoundError | PermissionError):
                raise UserError(f"{address} is not there ({trouble}): correct the address") from error
            if waited > PATIENCE:
                raise UserError(
                    f"{address} could not be brought in {tries} tries ({trouble}): see to the server or the network, "
                    "then run the same command again"
                ) from error
        finally:
            temporary.unlink(missing_ok=True)
        logger.warning("waiting for %s: %s", address, trouble)
        time.sleep(pause)
        waited += pause
        pause = min(2 * pause, LONGEST_PAUSE)


def _wrong(file: Path, promised: Sequence[tuple[str, str]]) -> str | None:
    for name, digest in promised:
        with open(file, "rb") as stream:
            if hashlib.file_digest(stream, name).hexdigest() != digest:
                return f"its {name} is not {digest[:12]}..."
    return None


def _promised(system: Any, address: str) -> list[tuple[str, str]]:
    """(algorithm, hex digest) that a server gives of a file; empty where it gives none."""
    info: dict[str, Any] = {}
    with contextlib.suppress(Exception):  # a server may have no answer to this question
        info = system.info(address)
    if info.get("Content-MD5"):
        return [("md5", base64.b64decode(info["Content-MD5"]).hex())]
    lfs = info.get("lfs")
    if isinstance(lfs, dict) and lfs.get("sha256"):  # of the Hugging Face hub
        return [("sha256", lfs["sha256"])]
    etag = str(info.get("ETag", "")).strip('"')
    if "StorageClass" in info and re.fullmatch("[0-9a-f]{32}", etag):  # of S3, where a file came in one piece
        return [("md5", etag)]
    return []


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
