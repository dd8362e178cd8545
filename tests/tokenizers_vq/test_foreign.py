"""Files of weights from strangers: what they hold, that nothing in them runs, that their claims take no memory."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tokenizers_vq.errors import UserError
from tokenizers_vq.storage.foreign import StoredTensor, read_pt, read_tensors
from tokenizers_vq.storage.pickled import Foreign

LIMIT = 2 * 2**30
"""Bytes that a child may take while it opens hostile files."""


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_checkpoint_is_read_as_torch_wrote_it(zipped: bool, protocol: int, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.25)
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    tensors = {
        "turned": torch.arange(12).view(3, 4).t(),
        "part": torch.arange(12.0)[3:5],
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "half": torch.ones(3).half(),
        "bfloat16": torch.ones(3).bfloat16(),
        "unsigned": torch.arange(3).to(torch.uint16),
        "eighth": torch.ones(3).to(torch.float8_e4m3fn),
        "bool": torch.tensor([True, False]),
        "none": torch.empty(0, 3),
        "number": torch.tensor(7),
    }
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=0.25),
        **tensors,
    }
    path = tmp_path / "x.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    found = read_pt(path)
    for name, tensor in tensors.items():
        read = found[name].read()
        assert read.dtype == tensor.dtype and torch.equal(read, tensor.detach()), name
    weights = read_tensors(path, ("model",))
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert found["optimizer"]["param_groups"][0]["lr"] == 0.25
    assert found["args"] == Foreign("argparse.Namespace")


class Trap:
    """Leaves a file where its pickle is run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_file_runs(zipped: bool, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    content = {"state_dict": {"a": torch.ones(2)}, "callbacks": Trap(sprung)}
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    assert read_tensors(tmp_path / "x.pt", ("state_dict",))["a"].tolist() == [1, 1]
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(UserError, match=r"cannot be read as a checkpoint \(it is none of torch\)"):
        read_pt(tmp_path / "bare.pt")
    assert not sprung.exists()


def test_a_container_may_hold_another_and_the_best_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    weights, others = {"a": torch.ones(1)}, {"a": torch.zeros(1)}
    for content in (
        weights,
        {"model": weights},
        {"model": {"state_dict": weights}, "epoch": 3},
        {"ema": weights, "model": others},
        {"ema": {}, "model": weights},
    ):
        torch.save(content, path)
        assert read_tensors(path, ("ema", "model", "state_dict"))["a"].tolist() == [1]


def as_zip(path: Path, pickled: bytes, data: bytes = bytes(40), method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/data/0", data)


def long(number: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", number)


def tensor(size: list[int], stride: list[int], offset: int = 0, count: int = 10) -> bytes:
    """A pickle of one tensor that claims so much."""
    rows = [b"(" + b"".join(map(long, numbers)) + b"t" for numbers in (size, stride)]
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu" + long(count) + b"tQ"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + long(offset) + rows[0] + rows[1]
    return b"\x80\x02}X\x01\0\0\0a" + call + b"\x89ccollections\nOrderedDict\n)RtRs."


def write_hostile(folder: Path) -> dict[str, str]:
    """Files, and what must be said of each."""
    wanted: dict[str, str] = {}

    def add(name: str, said: str) -> Path:
        wanted[name] = said
        return folder / name

    as_zip(add("large.pt", "the file has 10 numbers"), tensor([10**9], [1], count=10**9))
    as_zip(add("expanded.pt", "the file has 10 numbers"), tensor([10**9], [0]))
    as_zip(add("overflow.pt", "the file has 10 numbers"), tensor([2**62, 4], [1, 1]))
    as_zip(add("strided.pt", "the file has 10 numbers"), tensor([5], [3]))
    as_zip(add("beyond.pt", "the file has 10 numbers"), tensor([5], [1], offset=6))
    as_zip(add("negative.pt", "make no sense"), tensor([5], [-1]))
    as_zip(add("before.pt", "make no sense"), tensor([5], [1], offset=-1))
    as_zip(add("bytearray.pt", "holds an object"), b"\x80\x02cbuiltins\nbytearray\n" + long(6 * 10**9) + b"\x85R.")
    as_zip(add("deep.pt", "holds no weights"), b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b".")
    as_zip(add("tuples.pt", "holds no weights"), b"\x80\x02}K\0\x85q\0" + b"h\0h\0\x86q\0" * 60 + b"K\1s.")
    as_zip(add("memory.pt", "holds no weights"), b"\x80\x02}r\xff\xff\xff\xff.")
    as_zip(add("lists.pt", "instructions"), b"\x80\x02" + b"]" * 900_000 + b".")
    as_zip(add("text.pt", "only 4 remain"), b"\x80\x02X" + struct.pack("<I", 4_000_000_000) + b"abc.")
    as_zip(add("bytes.pt", "only 4 remain"), b"\x80\x05\x96" + struct.pack("<Q", 6_000_000_000) + b"abc.")
    pairs = b"ccollections\nOrderedDict\nq\1]q\0(" + b"X\1\0\0\0aK\1\x86" * 100_000 + b"e0"
    as_zip(add("tables.pt", "holds no weights"), b"\x80\x02" + pairs + b"h\1h\0\x85R" * 100_000 + b".")
    as_zip(add("key.pt", "holds no weights"), b"\x80\x02}\x8b" + struct.pack("<i", 4000) + b"\1" * 4000 + b"Ns.")
    as_zip(add("size.pt", "no row of whole numbers"), tensor([1] * 100, [1] * 100))
    as_zip(add("lines.pt", "no model has such a name"), tensor([2], [1]).replace(b"\1\0\0\0a", b"\3\0\0\0a\nb"))
    as_zip(add("nonsense.pt", "make no sense"), b"\x80\x02R.")
    with zipfile.ZipFile(add("inflates.pt", "is compressed"), "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("x/data.pkl", tensor([10**8], [1]))
        with archive.open("x/data/0", "w", force_zip64=True) as file:
            for _ in range(40):
                file.write(bytes(10_000_000))
    add("directory.pt", "table of contents").write_bytes(b"PK\5\6" + bytes(8) + struct.pack("<II", 2**31, 0) + bytes(2))
    with zipfile.ZipFile(add("other.pt", "none of torch"), "w") as archive:
        archive.writestr("word/document.xml", "<w/>")
    long_end = b"PK\6\6" + bytes(36) + struct.pack("<QQ", 2**31, 0) + b"PK\6\7" + bytes(16)
    add("directory64.pt", "table of contents").write_bytes(long_end + b"PK\5\6" + bytes(18))
    for name, start in (("line.pt", b"S"), ("word.pt", b"\x8d" + struct.pack("<Q", 2**33 - 100))):
        with open(add(name, "cannot be read as a checkpoint"), "wb") as file:
            file.write(b"\x80\x02" + start)
            file.truncate(2**33)  # takes no room on the disk
    for name, zipped, said in (("cut.pt", True, "zip"), ("legacy.pt", False, "cut off")):
        torch.save({"a": torch.zeros(1000)}, folder / name, _use_new_zipfile_serialization=zipped)
        whole = (folder / name).read_bytes()
        add(name, said).write_bytes(whole[: len(whole) // 2])
    add("noise.pt", "cannot be read").write_bytes(bytes(range(7, 255)) * 100)
    add("page.pt", "cannot be read").write_text("<html>not found</html>")
    add("empty.pt", "cannot be read").write_bytes(b"")
    add("folder.pt", "no regular file").mkdir()
    os.mkfifo(add("pipe.pt", "no regular file"))
    add("none.pt", "no such file")
    add("header.safetensors", "header").write_bytes(struct.pack("<Q", 2**60))
    add("noise.safetensors", "cannot be read").write_bytes(struct.pack("<Q", 20) + b"{" * 30)
    add("empty.safetensors", "cannot be read").write_bytes(b"")
    save_file({"a": torch.zeros(1000)}, folder / "cut.safetensors")
    whole = (folder / "cut.safetensors").read_bytes()
    add("cut.safetensors", "cannot be read").write_bytes(whole[:-100])
    header = {
        name: {"dtype": "F32", "shape": [10], "data_offsets": [0, 40]}  # both in one place
        for name in ("a", "b")
    }
    text = json.dumps(header).encode()
    add("twice.safetensors", "cannot be read").write_bytes(struct.pack("<Q", len(text)) + text + bytes(40))
    return wanted


CHILD = """
import json, resource, sys
from pathlib import Path
from tokenizers_vq.errors import UserError
from tokenizers_vq.storage import pickled
from tokenizers_vq.storage.foreign import read_tensors
pickled.MAX_STEPS = 800_000  # fewer than usual, which take seconds
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[2]),) * 2)
said = {}
for name in json.load(sys.stdin):
    try:
        said[name] = f"read {sorted(read_tensors(Path(sys.argv[1], name), ('state_dict',)))}"
    except UserError as error:
        said[name] = str(error)
print(json.dumps(said))
"""


def test_hostile_files_are_one_line_each_and_take_no_memory(tmp_path: Path) -> None:
    """Opened in a process that may not take more than `LIMIT`."""
    wanted = write_hostile(tmp_path)
    command = [sys.executable, "-c", CHILD, str(tmp_path), str(LIMIT)]
    child = subprocess.run(command, input=json.dumps(list(wanted)), capture_output=True, text=True, timeout=120)
    assert child.returncode == 0, child.stderr
    said = json.loads(child.stdout)
    for name, part in wanted.items():
        assert part in said[name] and str(tmp_path / name) in said[name] and "\n" not in said[name], (name, said[name])


def test_a_device_without_an_end_is_refused() -> None:
    with pytest.raises(UserError, match="no regular file"):
        read_tensors("/dev/zero")


def test_what_is_no_tensor_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(1), "b": "text"}}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"holds no weights \(its entry b is no tensor\): expected .* in state_dict or"):
        read_tensors(tmp_path / "x.pt", ("state_dict",))
    sparse = torch.eye(3).to_sparse()
    torch.save({"a": sparse}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="entry a is no tensor"):
        read_tensors(tmp_path / "x.pt")
    torch.save({"a": torch.ones(2, dtype=torch.complex64)}, tmp_path / "x.pt")
    assert isinstance(read_pt(tmp_path / "x.pt")["a"], StoredTensor)
    with pytest.raises(UserError, match=r"tensor a cannot be used \(it holds numbers of a kind that is not read\)"):
        read_tensors(tmp_path / "x.pt")
