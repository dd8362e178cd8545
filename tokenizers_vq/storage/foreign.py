"""Files of weights from strangers: .pt, .pth, .ckpt, .bin and .safetensors.

Nothing in them is executed, and what they claim is checked before memory is taken for it. Tensors stay in the file
until they are asked for.
"""

from __future__ import annotations

import math
import mmap
import re
import stat
import struct
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import UserError, shown
from .pickled import Foreign, Name, read_pickle

MAX_PICKLE = 2**26
"""Bytes of the part of a file that names its tensors."""
MAX_HEADER = 2**24
"""The same of a .safetensors file."""
MAX_DIRECTORY = 2**25
"""Bytes of the table of contents of a zip file."""
MAX_NAME = 500
"""Letters of a tensor's name."""
MAX_DIMENSIONS = 64

_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


@dataclass
class _Storage:
    """Numbers in the file."""

    dtype: torch.dtype | None
    """None: bytes, or a kind that is not read."""
    data: memoryview | None = None


@dataclass
class StoredTensor:
    """A tensor that is still in its file."""

    storage: _Storage
    dtype: torch.dtype | None
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def read(self) -> Tensor:
        """A view of the file, without copying it. Raises ValueError that says what is wrong with it."""
        if self.dtype is None:
            raise ValueError("it holds numbers of a kind that is not read")
        if self.storage.data is None:
            raise ValueError("its numbers are not in the file")
        there = len(self.storage.data) // self.dtype.itemsize
        if min((self.offset, *self.size, *self.stride)) < 0 or len(self.size) != len(self.stride):
            raise ValueError(f"its size {self.size} and strides {self.stride} make no sense")
        wanted = math.prod(self.size)
        last = self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        if wanted > there or (wanted and last >= there):
            raise ValueError(f"it is said to be {self.size}, but the file has {there:,} numbers for it")
        if not wanted:
            return torch.empty(self.size, dtype=self.dtype)
        flat = torch.frombuffer(self.storage.data, dtype=torch.uint8)[: there * self.dtype.itemsize]
        if flat.data_ptr() % self.dtype.itemsize:
            flat = flat.clone()
        return flat.view(self.dtype).as_strided(self.size, self.stride, self.offset)


def read_tensors(path: str | Path, containers: Sequence[str] = ()) -> dict[str, Tensor]:
    """Tensors by name, as they are in the file, on the CPU.

    Args:
        path: .safetensors, or whatever `torch.save` wrote.
        containers: dotted keys under which a file may hold its tensors, the best first; else the file itself does.

    Raises:
        UserError: no such file, a damaged one, or one without tensors by name.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        weights = _read_safetensors(path)
        _check_names(path, weights)
        return weights
    found, keys = _find(read_pt(path), containers)
    if isinstance(found, Foreign):
        raise UserError(
            f"{path} holds an object ({shown(found.path)}), not tensors by name: where you trust it and have its "
            f"program, save its weights with {_export_line(path, keys)} and give weights.pt"
        )
    tensors = {str(name): value for name, value in found.items()} if isinstance(found, dict) else {}
    _check_names(path, tensors)
    odd = [name for name, value in tensors.items() if not isinstance(value, StoredTensor)]
    if odd or not tensors:
        places = " or ".join([*containers, "the file itself"])
        what = f"its entry {odd[0]} is no tensor" if odd else "it is empty or no table"
        raise UserError(f"{path} holds no weights ({what}): expected tensors by name in {places}")
    read = {}
    for name, value in tensors.items():
        try:
            read[name] = value.read()
        except ValueError as error:
            raise UserError(f"{path}: tensor {name} cannot be used ({error}): fetch the file again") from None
    return read


def _check_names(path: Path, names: Iterable[str]) -> None:
    """Raises UserError for names that would fill a message, or break its line."""
    for name in names:
        if len(name) > MAX_NAME or not name.isprintable():
            raise UserError(f"{path} names a tensor {shown(name)}: no model has such a name, fetch the file again")


def _export_line(path: Path, keys: Sequence[str]) -> str:
    """A line of Python that takes the weights out of a pickled object, for those who trust it."""
    inside = "".join(f"[{key!r}]" for key in keys)
    model = f"torch.load({path.name!r}, map_location='cpu', weights_only=False){inside}"
    return f"torch.save({model}.state_dict(), 'weights.pt')"


def _find(content: Any, containers: Sequence[str]) -> tuple[Any, list[str]]:
    """The first container that is there and not empty, and its keys; what is inside may have a container again. Else an
    object in the place of a container, else the whole."""
    objects = []
    for container in containers:
        inner, keys = content, container.split(".")
        for key in keys:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(inner, dict) and inner:
            if any(isinstance(value, StoredTensor) for value in inner.values()):
                return inner, keys
            found, further = _find(inner, containers)
            return found, keys + further
        if isinstance(inner, Foreign):
            objects.append((inner, keys))
    return objects[0] if objects else (content, [])


def read_pt(path: str | Path) -> Any:
    """What `torch.save` wrote: dictionaries, lists, numbers, text, `StoredTensor`, and `Foreign` for everything else.

    Raises:
        UserError: no such file, none of torch, or a damaged one.
    """
    path = Path(path)
    with _said(path):
        with open_regular(path) as file:
            mapped = mmap.mmap(
                file.fileno(), 0, access=mmap.ACCESS_COPY
            )  # lives as long as the tensors that look at it
        return _read_zip(path, mapped) if mapped[:2] == b"PK" else _read_legacy(mapped)


def _read_zip(path: Path, mapped: mmap.mmap) -> Any:
    """torch's format since 1.6: an uncompressed zip file, with one entry for each storage."""
    _check_directory(mapped)
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    squeezed = next((entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED), None)
    if squeezed is not None:
        raise ValueError(f"its part {squeezed[:80]!r} is compressed, which torch never writes")
    if sum(entry.file_size for entry in entries) > len(mapped):
        raise ValueError("its parts are larger than the file")
    records = {entry.filename: entry for entry in entries}
    root = next((name.removesuffix("data.pkl") for name in records if name.endswith("data.pkl")), None)
    if root is None:
        raise ValueError("it is a zip file, but none of torch")

    def record(name: str) -> memoryview:
        entry = records[root + name]
        start = entry.header_offset
        names, extra = struct.unpack("<HH", mapped[start + 26 : start + 30])
        start += 30 + names + extra
        if start + entry.file_size > len(mapped):
            raise ValueError(f"its part {name[:80]!r} is cut off")
        return memoryview(mapped)[start : start + entry.file_size]

    if root + "byteorder" in records and bytes(record("byteorder")[:6]) != b"little":
        raise ValueError("its numbers are in another byte order")

    def storage(key: Any) -> _Storage:
        _, kind, name, _, _ = key
        found = _storage(kind)
        if root + f"data/{name}" in records:
            found.data = record(f"data/{name}")
        return found

    pickled = record("data.pkl")
    if len(pickled) > MAX_PICKLE:
        raise ValueError(f"its list of tensors is larger than {MAX_PICKLE:,} bytes")
    with mmap.mmap(-1, max(1, len(pickled))) as copy:
        copy.write(pickled)
        copy.seek(0)
        return read_pickle(copy, _build, storage)  # type: ignore[arg-type]  # an mmap reads like a file


def _check_directory(mapped: mmap.mmap) -> None:
    """Raises ValueError for a table of contents that would take too much memory to read."""
    tail = mapped[max(0, len(mapped) - 2**16 - 128) :]
    end = tail.rfind(b"PK\5\6")
    size = struct.unpack("<I", tail[end + 12 : end + 16])[0] if 0 <= end <= len(tail) - 16 else 0
    long_end = end - 76  # the record of large files, where there is one, counts
    if long_end >= 0 and tail[long_end : long_end + 4] == b"PK\6\6":
        (size,) = struct.unpack("<Q", tail[long_end + 40 : long_end + 48])
    if size > MAX_DIRECTORY:
        raise ValueError(f"its table of contents is larger than {MAX_DIRECTORY:,} bytes")


def _read_legacy(mapped: mmap.mmap) -> Any:
    """torch's format before 1.6: pickles (a mark, a version, the machine, the values, the names of the storages), then
    the storages."""

    def next_pickle(persistent: Any = None) -> Any:
        return read_pickle(_Bounded(mapped), _build, persistent)  # type: ignore[arg-type]

    if next_pickle() != _LEGACY_MAGIC:
        raise ValueError("it is none of torch")
    next_pickle()
    machine = next_pickle()
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise ValueError("its numbers are in another byte order")
    storages: dict[str, _Storage] = {}

    def storage(key: Any) -> _Storage:
        _, kind, name, _, _, view = key
        found = storages.setdefault(str(name), _storage(kind))
        if view is None:
            return found
        raise ValueError("it was written by a very old version of torch")

    content = next_pickle(storage)
    for name in next_pickle():
        found = storages[str(name)]
        (count,) = struct.unpack("<q", mapped.read(8))
        length, start = count * (found.dtype.itemsize if found.dtype else 1), mapped.tell()
        if not 0 <= length <= len(mapped) - start:
            raise ValueError("it is cut off")
        found.data = memoryview(mapped)[start : start + length]
        mapped.seek(start + length)
    return content


class _Bounded:
    """A file of which the next `MAX_PICKLE` bytes are read, and no more."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self._mapped, self._end = mapped, mapped.tell() + MAX_PICKLE
        self.tell = mapped.tell

    def read(self, count: int) -> bytes:
        if self.tell() + count > self._end:
            raise ValueError(f"its list of tensors is larger than {MAX_PICKLE:,} bytes")
        return self._mapped.read(count)

    def readline(self) -> bytes:
        start = self.tell()
        return self.read(max(0, self._mapped.find(b"\n", start, self._end) + 1 - start))


def _storage(kind: Any) -> _Storage:
    name = kind.path.rpartition(".")[2].removesuffix("Storage") if isinstance(kind, Name | Foreign) else ""
    return _Storage(_STORAGES.get(name))


def _build(path: str, arguments: tuple[Any, ...]) -> Any:
    """What stands for the result of a call: tensors, and the containers of tensors."""
    match path, arguments:
        case "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor", (_Storage(), *_):
            storage, offset, size, stride = arguments[:4]
            return StoredTensor(storage, storage.dtype, offset, _whole(size), _whole(stride))
        case "torch._utils._rebuild_tensor_v3", (_Storage(), *_):
            storage, offset, size, stride, _, _, kind = arguments[:7]
            dtype = getattr(torch, kind.path.rpartition(".")[2], None) if isinstance(kind, Name) else None
            known = dtype if isinstance(dtype, torch.dtype) else None
            return StoredTensor(storage, known, offset, _whole(size), _whole(stride))
        case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state", (data, *_):
            return data
        case "torch._tensor._rebuild_from_type_v2", (Name() as function, _, tuple() as inner, _):
            return _build(function.path, inner)
        case "collections.OrderedDict" | "builtins.dict" | "__builtin__.dict" | "collections.defaultdict", _:
            pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
            made = {pair[0]: pair[1] for pair in pairs if isinstance(pair[0], str)}
            pairs.clear()  # else one list could be made into dictionaries without end
            return made
        case "torch.Size", (sizes,):
            return sizes
    return Foreign(path)


def _whole(numbers: Any) -> tuple[int, ...]:
    known = isinstance(numbers, tuple | list) and len(numbers) <= MAX_DIMENSIONS
    if not known or not all(type(number) is int and abs(number) < 2**63 for number in numbers):
        raise ValueError("a tensor's size is no row of whole numbers")
    return tuple(numbers)


def cached(url: str) -> Path:
    """Where torch's cache has the file of an address, if it was ever fetched."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]


def fetch(url: str) -> Path:
    """The file of an address in torch's cache, fetched where it is not there. The beginning of its digest stands in its
    name, and is checked.

    Raises:
        OSError, RuntimeError: it cannot be had, or is another one.
    """
    path = cached(url)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = re.search(r"-([0-9a-f]{8,})\.", path.name)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=digest[1] if digest else None)
    return path


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with _said(path):
        with open_regular(path) as file:
            (header,) = struct.unpack("<Q", file.read(8))
            if header > MAX_HEADER:
                raise ValueError(f"its header is said to have {header:,} bytes")
        return load_file(path)


@contextmanager
def open_regular(path: Path) -> Iterator[Any]:
    """The file, opened to be read as bytes. A device or a pipe may have no end, and is refused."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is no regular file")
    with open(path, "rb") as file:
        yield file


@contextmanager
def _said(path: Path) -> Iterator[None]:
    """Whatever goes wrong in the readers of others, as one line about the file."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of native readers
            raise
        missing = isinstance(error, FileNotFoundError)
        reason = "no such file" if missing else (" ".join(str(error).split())[:200] or type(error).__name__)
        advice = "check the path" if missing else "fetch the file again"
        raise UserError(f"{path} cannot be read as a checkpoint ({reason}): {advice}") from None
