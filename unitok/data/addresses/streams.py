"""Data that lie elsewhere as records: shards of codes, WebDataset tars and parquet files at any address of `fsspec`.

A shard is brought into the cache when its turn comes (`unitok.data.addresses.cache`) and then read like any file of
this machine. The order of an epoch takes a few shards at a time (`unitok.data.epochs`), and the next ones are brought
meanwhile.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from tokenizers_vq.errors import UserError
from tokenizers_vq.storage.files import read_json, sha256_of, write_json
from tokenizers_vq.storage.schema import read_value

from ..codes.shards import INDEX, CodesDataset, check_shard
from ..epochs import WINDOW
from ..fingerprint import digest
from ..records import LeftOut, Record, RecordDataset
from ..spec import DataSpec
from .cache import CACHE_GB, Cache, file_system

_OPEN = 3 * WINDOW  # shards that are open at once
_MOST_SHARDS = 10**6


class RemoteCodes(CodesDataset):
    """A finished folder of codes at an address. `codes.json` is brought at once; a shard when it is needed, and then
    compared with what that claims."""

    def __init__(self, address: str, cache: Cache, *, captions: bool = True) -> None:
        self.address, self.cache = address.rstrip("/"), cache
        found = cache.bring(f"{self.address}/{INDEX}", fresh=True)
        super().__init__(found.parent, captions=captions)
        self.name = address
        self._open_shards: OrderedDict[int, Any] = OrderedDict()

    @property
    def shards(self) -> Sequence[int]:
        return [shard.count for shard in self.index.shards]

    def prefetch(self, shards: Sequence[int]) -> None:
        self.cache.bring_ahead([self._known(number) for number in shards])

    def _known(self, number: int) -> tuple[str, str]:
        shard = self.index.shards[number]
        return f"{self.address}/{shard.file}", shard.sha256

    def _check_all(self) -> None:
        pass  # each when it is brought

    def _file(self, number: int) -> Path:
        path = self.cache.bring(*self._known(number))
        check_shard(path, self.index.shards[number], self.index)
        return path

    def _shard(self, number: int) -> Any:
        shard = super()._shard(number)
        _keep_newest(self._open_shards, number)
        return shard

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open_shards": OrderedDict()}


@dataclass(frozen=True)
class _Counted:
    """What is known of a tar or parquet file from the first time that it was brought."""

    sha256: str
    records: int


class RemotePictures:
    """Tars or parquet files at addresses, laid end to end.

    How many records a file has is only known when it has been here. So at the first opening every file is brought
    once; the counts stay in the cache.

    Args:
        open_file: a file of this machine as a data set.
        facts: what else records depend on, for the fingerprint.
    """

    endless = False
    left_out: Sequence[LeftOut] = ()

    def __init__(
        self,
        name: str,
        addresses: Sequence[str],
        cache: Cache,
        open_file: Callable[[Path], RecordDataset],
        facts: Sequence[Any] = (),
    ) -> None:
        self.name, self.addresses, self.cache = name, list(addresses), cache
        self._open_file, self._facts = open_file, list(facts)
        self._counted = self._count()
        self._starts = np.array([0, *accumulate(self.shards)])
        self._opened: OrderedDict[int, RecordDataset] = OrderedDict()

    @property
    def shards(self) -> Sequence[int]:
        return [one.records for one in self._counted]

    def prefetch(self, shards: Sequence[int]) -> None:
        self.cache.bring_ahead([(self.addresses[number], self._counted[number].sha256) for number in shards])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} records, index is {index}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._file(number)[index - int(self._starts[number])]

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the files' names and digests."""
        names = [address.rpartition("/")[2] for address in self.addresses]
        return digest([self._facts, names, [asdict(one) for one in self._counted]], 0, lambda _: b"")

    def _file(self, number: int) -> RecordDataset:
        path = self.cache.bring(self.addresses[number], self._counted[number].sha256)  # also says: in use
        if number not in self._opened:
            self._opened[number] = self._open_file(path)
        _keep_newest(self._opened, number)
        return self._opened[number]

    def _count(self) -> list[_Counted]:
        found = []
        console = Console(stderr=True)
        silent = not console.is_terminal
        for address in track(self.addresses, "counting", console=console, transient=True, disable=silent):
            note = self.cache.place(address).with_name(f".{address.rpartition('/')[2]}.count.json")
            if note.is_file():
                found.append(read_value(_Counted, read_json(note), str(note), "count"))
                continue
            path = self.cache.bring(address)
            found.append(_Counted(sha256_of(path), len(self._open_file(path))))
            write_json(note, asdict(found[-1]))
        return found

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": OrderedDict()}


def _keep_newest(opened: OrderedDict[int, Any], number: int) -> None:
    opened.move_to_end(number)
    while len(opened) > _OPEN:
        opened.popitem(last=False)


def find_addresses(spec: DataSpec) -> list[str]:
    """The files of an address with `{00000..00099}` or `*` in it, sorted by name.

    Raises:
        UserError: there is none, or too many.
    """
    source = spec.source
    spans = re.search(r"\{(\d+)\.\.(\d+)\}", source)
    if spans:
        first, last = spans.groups()
        if not int(first) <= int(last) < int(first) + _MOST_SHARDS:
            raise UserError(f"data {str(spec)!r}: {spans[0]} names no file or too many: write it as {{00000..00099}}")
        width = len(first)
        return [
            source[: spans.start()] + f"{number:0{width}}" + source[spans.end() :]
            for number in range(int(first), int(last) + 1)
        ]
    if "*" not in source:
        return [source]
    scheme = source.partition("://")[0]
    try:
        found = sorted(file_system(source).glob(source))
    except UserError:
        raise
    except Exception as error:  # aiohttp's, botocore's, the hub client's
        raise UserError(f"data {str(spec)!r} cannot be listed ({' '.join(str(error).split())[:200]})") from error
    if not found:
        raise UserError(f"data {str(spec)!r}: no file there has such a name: name them as in {{00000..00099}}.tar")
    return [path if "://" in path else f"{scheme}://{path}" for path in found]


def cache_of(spec: DataSpec) -> Cache:
    return Cache(spec.integer("cache", CACHE_GB) * 10**9)
