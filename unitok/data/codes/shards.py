"""Code shards: a data set tokenized once. A folder with `codes.json` and `codes-00000.safetensors`, ...

Row i of the shards, laid end to end, is record i of the source, broken pictures included, so training from shards reads
the same records at the same steps as training from pixels. A shard holds, for its N rows:

    codes    (N, L) uint16, uint32 or uint64, zeros for a broken picture
    text     (T,)   uint8, one JSON list [name, caption, problem, fields] per row, UTF-8, laid end to end; fields
                    are the further texts and boxes of the record (without any, the list ends before them)
    ends     (N,)   int64, where each row's text ends
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from tokenizers_vq.errors import UserError, shown
from tokenizers_vq.layout import Layout
from tokenizers_vq.storage.digests import check_own, take_digests, with_digests
from tokenizers_vq.storage.files import parse_json, plain, read_json, sha256_of, write_json
from tokenizers_vq.storage.schema import read_dataclass, read_value

from ..fingerprint import digest
from ..records import LeftOut, Record
from ..spec import CODES_INDEX as INDEX

FORMAT = "unitok codes 1"
PARTS = "codes-[0-9]*.json"
"""What says of a finished shard that codes.json does not list yet."""
_CHUNK = 65536  # rows read at once when a shard is checked


@dataclass(frozen=True)
class Shard:
    """One finished file of a folder of codes."""

    file: str
    count: int
    sha256: str

    def __post_init__(self) -> None:
        if self.count < 1 or Path(self.file).name != self.file:
            raise UserError(f"it lists {self.count} rows in {shown(self.file)}: encode the data again")


@dataclass(frozen=True)
class CodesIndex:
    """What `codes.json` says."""

    tokenizer_fingerprint: str
    """Of the tokenizer that wrote the codes; a model must use the same one."""
    layout: Layout
    codebook_size: int
    image_size: tuple[int, int]
    """(H, W) of the pictures that were encoded."""
    source: str
    """The data spec that was encoded."""
    total: int
    """Records of the source."""
    shards: tuple[Shard, ...] = ()
    data_sha256: str = ""
    """Fingerprint of the records that were encoded; "" in folders from before it was kept."""
    shard_size: int = 0
    """Records of a shard that is begun from here on; 0 in folders from before it was kept."""
    unreadable: int = 0
    """Records without codes, of an encoding that is finished; 0 in folders from before it was kept."""

    @property
    def count(self) -> int:
        """Records in the listed shards; all of them, when the encoding is finished."""
        return sum(shard.count for shard in self.shards)

    def save(self, folder: Path) -> None:
        facts = asdict(self) | {"layout": self.layout.scales, "count": self.count, "complete": self.count == self.total}
        if self.layout.books:
            facts["books"] = self.layout.books
        write_json(folder / INDEX, with_digests({"format": FORMAT} | plain(facts), folder, INDEX))

    @classmethod
    def load(cls, folder: Path) -> CodesIndex:
        """Raises UserError when the file is missing, foreign, or damaged."""
        where, facts = folder / INDEX, read_json(folder / INDEX)
        if not isinstance(facts, dict) or facts.get("format") != FORMAT:
            raise UserError(f"{where} is not an index of format {FORMAT!r}: encode the data again")
        files = take_digests(facts, where)
        said = dict(facts)
        facts = {key: value for key, value in facts.items() if key not in ("format", "count", "complete")}
        if "layout" in facts:
            facts["layout"] = {"scales": facts["layout"], "books": facts.pop("books", [])}
        index = read_dataclass(cls, facts, str(where))
        check_own(said, files, where)
        if index.codebook_size < 1 or index.count > index.total:
            raise UserError(f"{where} is damaged (its counts do not add up): encode the data again")
        return index


@dataclass(frozen=True)
class Part:
    """A finished shard that is not listed yet."""

    count: int
    sha256: str
    unreadable: int
    """Records without codes."""


def read_part(path: Path) -> Part:
    return read_dataclass(Part, read_json(path), str(path))


class CodesDataset:
    """A finished folder of codes as records. Shards are memory-mapped; a row is read when it is asked for.

    Opening reads every shard once and compares it with what `codes.json` claims: digests, sizes, and that all ids lie
    in the codebook (about 2 s per gigabyte).

    Args:
        path: the folder.
        captions: a record without a caption is broken.

    Raises:
        UserError: the folder is unfinished, foreign or damaged.
    """

    endless = False
    left_out: Sequence[LeftOut] = ()

    def __init__(self, path: str | Path, *, captions: bool = True) -> None:
        self.path, self.captions = Path(path), captions
        self.name = str(path)
        self.index = CodesIndex.load(self.path)
        if self.index.count < self.index.total:
            waiting = (read_part(part).count for part in self.path.glob(PARTS))
            done = f"{self.index.count + sum(waiting)} of {self.index.total}"
            raise UserError(f"{self.path} holds {done} records: run the same unitok encode again to finish it")
        self._checked: dict[int, tuple[int, int]] = {}
        self._check_all()
        self._starts = np.cumsum([0, *(shard.count for shard in self.index.shards)])
        self._open_shards: dict[int, Any] = {}

    def _check_all(self) -> None:
        for number, shard in enumerate(self.index.shards):
            file = self._file(number)
            before = _state(file)
            check_shard(file, shard, self.index)
            self._checked[number] = before

    @property
    def layout(self) -> Layout:
        return self.index.layout

    @property
    def codebook_size(self) -> int:
        return self.index.codebook_size

    @property
    def image_size(self) -> tuple[int, int]:
        return self.index.image_size

    @property
    def tokenizer_fingerprint(self) -> str:
        return self.index.tokenizer_fingerprint

    def __len__(self) -> int:
        return self.index.count

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} records, index is {index}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        row = index - int(self._starts[number])
        shard = self._shard(number)
        ends = shard.get_slice("ends")
        begin, end = (int(ends[row - 1]) if row else 0), int(ends[row])
        where = f"{self.path}: record {index}"
        text = parse_json(shard.get_slice("text")[begin:end].tobytes(), where)
        if not isinstance(text, list) or len(text) not in (3, 4):
            raise UserError(f"{where}: text is {shown(text)}: expected a list of 3 or 4; encode the data again")
        name, caption, problem = read_value(tuple[str, str | None, str | None], text[:3], where, "text")
        fields = read_value(dict[str, Any], text[3], where, "fields") if len(text) > 3 else {}
        if problem is None and self.captions and not caption:
            problem = "has no caption"
        if problem is not None:
            return Record(name=name, caption=caption, problem=problem, fields=fields)
        codes = shard.get_slice("codes")[row].astype(np.int64)  # (L,)
        return Record(name=name, caption=caption, codes=torch.from_numpy(codes), fields=fields)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the codes, names and captions."""
        index = self.index
        facts = [index.tokenizer_fingerprint, index.layout.scales, index.codebook_size, index.image_size]
        return digest([*facts, [shard.sha256 for shard in index.shards]], 0, lambda _: b"")

    def _shard(self, number: int) -> Any:
        if number not in self._open_shards:
            file = self._file(number)
            if number in self._checked and self._checked[number] != _state(file):
                raise UserError(
                    f"{file} has changed since {self.path} was opened: put back what was there, and repeat the command "
                    "(training: with --resume)"
                )
            self._open_shards[number] = safe_open(file, framework="numpy").__enter__()
        return self._open_shards[number]

    def _file(self, number: int) -> Path:
        return self.path / self.index.shards[number].file

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open_shards": {}}  # a worker opens its own


def _state(file: Path) -> tuple[int, int]:
    """Size and time of a file; of one that is missing, none."""
    try:
        about = file.stat()
    except OSError:
        return (0, 0)
    return about.st_size, about.st_mtime_ns


def check_shard(file: Path, shard: Shard, index: CodesIndex) -> None:
    """Raises UserError when a shard is not what the index claims."""

    def require(ok: bool, what: str) -> None:
        if not ok:
            raise UserError(f"{file} is damaged ({what}): encode the data again")

    try:
        require(sha256_of(file) == shard.sha256, f"its digest is not the one in {INDEX}")
        with safe_open(file, framework="numpy") as tensors:
            require(set(tensors.keys()) == {"codes", "text", "ends"}, "it has other contents")
            codes, ends = tensors.get_slice("codes"), tensors.get_tensor("ends")
            shape = [shard.count, index.layout.length]
            require(codes.get_shape() == shape, f"codes of shape {codes.get_shape()} instead of {shape}")
            require(codes.get_dtype() in ("U16", "U32", "U64"), f"codes are {codes.get_dtype()}")
            require(ends.shape == (shard.count,) and ends.dtype == np.int64, "its captions do not match its codes")
            text_length = tensors.get_slice("text").get_shape()[0]
            require(bool((np.diff(ends, prepend=0) > 0).all()) and ends[-1] == text_length, "its captions are cut off")
            for start in range(0, shard.count, _CHUNK):
                worst = int(codes[start : min(start + _CHUNK, shard.count)].max())
                require(worst < index.codebook_size, f"id {worst} is outside the codebook of {index.codebook_size}")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read ({error}): encode the data again") from error
