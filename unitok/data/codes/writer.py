"""Writing a folder of codes (`unitok.data.codes.shards`), by one process or several.

Which records a shard holds follows from their number alone, so any process may write any of them. While the encoding
goes on there stand, beside `codes.json` without a list of shards:

    codes-00000.safetensors     a finished shard
    codes-00000.json            its count and digest, written behind it: where this stands, the shard is done
    .claims                     which process works at which shard (`unitok.lock.Claims`)

The last of the processes puts the list into `codes.json`, once, and removes the rest.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save

from tokenizers_vq.errors import UserError
from tokenizers_vq.layout import Layout
from tokenizers_vq.storage.files import atomic_path, clear_litter, is_ours_alone, sha256_of, write_json

from ...lock import LOCK_FILE, Claims
from .shards import INDEX, PARTS, CodesIndex, Part, Shard, read_part

CLAIMS_FILE = ".claims"
_OF_INDEX = 0  # the claim of who reads and writes codes.json; shard n has claim n + 1
_PAUSE = 0.5  # seconds between two looks at what the other processes do


@dataclass
class _Begun:
    """A shard that this process works at: records `start` to `stop`."""

    number: int
    start: int
    stop: int
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    codes: list[np.ndarray] = field(default_factory=list)


class ShardWriter:
    """Writes the records of a data set as code shards; several processes may do so in one folder, each with its own
    writer.

    Opening an unfinished folder of the same source and tokenizer goes on. A shard is written to a temporary name,
    renamed, and only then counted, so a kill loses one shard at most; where several processes work, another one takes
    over the shard of a process that died.

    Args:
        out: the folder; made when missing.
        source: the data spec that is encoded.
        total: records of the source.
        data_sha256: fingerprint of the source's records.
        shard_size: records per file; a folder that was begun keeps its own.
        rank, processes: which of how many processes this is.

    Raises:
        UserError: the folder holds codes of another tokenizer or source, or other files, or a damaged shard, or cannot
            be written.

    >>> writer = ShardWriter(out, ...)                              # doctest: +SKIP
    >>> while not writer.done():                                    # doctest: +SKIP
    ...     for start, stop in writer.claims():
    ...         for index in range(start, stop):
    ...             writer.add(name, caption, codes)
    >>> writer.finish()                                             # doctest: +SKIP
    """

    def __init__(
        self,
        out: str | Path,
        *,
        tokenizer_fingerprint: str,
        layout: Layout,
        codebook_size: int,
        image_size: tuple[int, int],
        source: str,
        total: int,
        data_sha256: str = "",
        shard_size: int = 8192,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.out = Path(out)
        if shard_size < 1:
            raise UserError(f"shard_size is {shard_size}: choose a number above 0, such as 8192")
        size = (int(image_size[0]), int(image_size[1]))
        self.index = CodesIndex(
            tokenizer_fingerprint, layout, codebook_size, size, source, total, (), data_sha256, shard_size
        )
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"{self.out} is a file: choose another folder for the codes")
        others = self.out.is_dir() and not is_ours_alone(self.out, frozenset({LOCK_FILE, CLAIMS_FILE, INDEX}))
        if others and not (self.out / INDEX).is_file():
            raise UserError(f"{self.out} holds other files and no {INDEX}: choose an empty folder for the codes")
        if (self.out / INDEX).is_file():
            self._check_same(CodesIndex.load(self.out))
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {self.out}: {error.strerror}; choose another folder") from error
        self._claims = Claims(self.out / CLAIMS_FILE, shared=processes > 1)
        with self._claims.holding(_OF_INDEX):
            if (self.out / INDEX).is_file():
                self._continue()
            else:
                self.index.save(self.out)
        self._first = len(self.index.shards)
        """Number of the first shard of `shard_size`; those listed before have their own sizes."""
        self._starts = range(self.index.count, total, self.index.shard_size)
        """Of all shards that are not listed."""
        self._begun: list[_Begun] = []
        self._check_finished(rank, processes)
        if processes == 1:
            clear_litter(self.out)

    def _continue(self) -> None:
        found = CodesIndex.load(self.out)
        self._check_same(found)
        if found.shard_size < 1:
            found = replace(found, shard_size=self.index.shard_size)
            found.save(self.out)
        self.index = found

    def _check_same(self, found: CodesIndex) -> None:
        wanted = self.index
        same_data = (
            [("other pictures, fingerprint", found.data_sha256[:12], wanted.data_sha256[:12])]
            if found.data_sha256  # whatever the path to them is now
            else [
                ("another source", found.source, wanted.source),
                ("another number of pictures", found.total, wanted.total),
            ]
        )
        for what, old, new in (
            ("another tokenizer", found.tokenizer_fingerprint[:12], wanted.tokenizer_fingerprint[:12]),
            ("another layout", found.layout.scales, wanted.layout.scales),
            ("another codebook size", found.codebook_size, wanted.codebook_size),
            ("another image size", found.image_size, wanted.image_size),
            *same_data,
        ):
            if old != new:
                raise UserError(f"{self.out} holds codes of {what}, {old} (now {new}): choose another folder")

    def _check_finished(self, rank: int, processes: int) -> None:
        """Compares this process's share of the finished shards with their digests."""
        for shard in self.index.shards[rank::processes]:
            self._check_file(self.out / shard.file, shard.sha256)
        for number in sorted(self._finished())[rank::processes]:
            self._check_file(self._shard(number), read_part(self._part(number)).sha256)

    def _check_file(self, file: Path, sha256: str) -> None:
        if not file.is_file() or sha256_of(file) != sha256:
            raise UserError(f"{file} is missing or damaged: remove {self.out} and encode again")

    @property
    def count(self) -> int:
        """Records that all processes together have encoded so far."""
        return self.index.count + sum(stop - start for start, stop in map(self._span, self._finished()))

    def claims(self) -> Iterator[tuple[int, int]]:
        """(start, stop) of the shards that nobody has done or works at, one after the other. They are held for this
        process, which adds their records in this order."""
        known = self._finished() | {shard.number for shard in self._begun}
        for number in self._numbers():
            if number in known or not self._claims.take(number + 1):
                continue
            if self._part(number).exists() or self._is_listed():  # done by who has just let it go
                self._claims.release(number + 1)
                continue
            self._begun.append(_Begun(number, *self._span(number)))
            yield self._span(number)

    def done(self) -> bool:
        """Whether all shards are done. Waits while other processes work at all those that are missing."""
        while True:
            finished = self._finished()
            missing = [number for number in self._numbers() if number not in finished]
            if not missing or self._is_listed():
                return True
            for number in missing:
                if self._claims.take(number + 1):  # it has no process, or no longer
                    self._claims.release(number + 1)
                    return False
            time.sleep(_PAUSE)

    def add(
        self,
        name: str,
        caption: str | None,
        codes: torch.Tensor | None,
        problem: str | None = None,
        fields: dict[str, Any] | None = None,
    ) -> None:
        """The next record of the shards that were claimed: its (L,) codes, or the problem that left it without.

        Raises:
            UserError: a record with more than one picture, or the disk is full.
        """
        for key in ("source", "parts"):
            if fields and key in fields:
                raise UserError(
                    f"{name} has a field {key!r} with pictures, and codes hold one picture a record: train on the "
                    "data itself"
                )
        assert (codes is None) == (problem is not None), "a record has codes or a problem"
        assert self._begun, "more records than were claimed"
        length = self.index.layout.length
        row = np.zeros(length, np.int64) if codes is None else codes.detach().cpu().numpy()
        assert row.shape == (length,), f"codes of shape {row.shape}, the layout has {length}"
        whole = self.index.codebook_size == 2**64  # all int64 are codes; the file has the sign as a bit
        assert whole or (row.min() >= 0 and row.max() < self.index.codebook_size), "an id is outside the codebook"
        shard = self._begun[0]
        kind = next(
            one for one in (np.uint16, np.uint32, np.uint64) if self.index.codebook_size - 1 <= np.iinfo(one).max
        )
        shard.codes.append(row.astype(kind))
        shard.rows.append((name, caption, problem, *([fields] if fields else [])))
        if len(shard.rows) == shard.stop - shard.start:
            self._write(shard)
            self._begun.remove(shard)
            self._claims.release(shard.number + 1)

    def finish(self, check: Callable[[int], None] | None = None) -> int:
        """Lists all shards in `codes.json`, once, whichever process is the first to come here. Returns how many records
        have no codes.

        Args:
            check: is told this number before anything is listed, and may raise.
        """
        with self._claims.holding(_OF_INDEX):
            if not self._is_listed():
                parts = [read_part(self._part(number)) for number in self._numbers()]
                unreadable = sum(part.unreadable for part in parts)
                if check is not None:
                    check(unreadable)
                shards = [
                    Shard(self._shard(number).name, part.count, part.sha256)
                    for number, part in zip(self._numbers(), parts, strict=True)
                ]
                self.index = replace(self.index, shards=(*self.index.shards, *shards), unreadable=unreadable)
                self.index.save(self.out)
            for part in self.out.glob(PARTS):  # also those that a kill left here
                part.unlink(missing_ok=True)
            self._claims.remove()
        clear_litter(self.out)
        return self.index.unreadable

    def _is_listed(self) -> bool:
        """Whether some process has finished the whole."""
        found = CodesIndex.load(self.out)
        if found.count == found.total:
            self.index = found
        return found.count == found.total

    def _write(self, shard: _Begun) -> None:
        texts = [json.dumps(row, ensure_ascii=False).encode() for row in shard.rows]
        data = save(
            {
                "codes": np.stack(shard.codes),
                "text": np.frombuffer(b"".join(texts), np.uint8),
                "ends": np.cumsum([len(text) for text in texts], dtype=np.int64),
            }
        )
        with atomic_path(self._shard(shard.number)) as temporary:
            temporary.write_bytes(data)
        unreadable = sum(row[2] is not None for row in shard.rows)
        part = Part(len(shard.rows), hashlib.sha256(data).hexdigest(), unreadable)
        write_json(self._part(shard.number), asdict(part))

    def _numbers(self) -> range:
        return range(self._first, self._first + len(self._starts))

    def _span(self, number: int) -> tuple[int, int]:
        """(start, stop) of a shard."""
        start = self._starts[number - self._first]
        return start, min(start + self._starts.step, self._starts.stop)

    def _finished(self) -> set[int]:
        """The shards that are done and not listed yet."""
        return {int(part.stem.removeprefix("codes-")) for part in self.out.glob(PARTS)} & set(self._numbers())

    def _shard(self, number: int) -> Path:
        return self.out / f"codes-{number:05d}.safetensors"

    def _part(self, number: int) -> Path:
        return self._shard(number).with_suffix(".json")
