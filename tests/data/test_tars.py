"""Tars of others: names as they are meant, links, and headers that lie."""

from __future__ import annotations

import io
import struct
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tokenizers_vq.errors import UserError
from unitok.data import RecordDataset, open_data


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), (value, value, value)).save(stream, "PNG")
    return stream.getvalue()


def write_tar(path: Path, *members: tuple[str, bytes], **links: Any) -> str:
    """Members in their order; a member whose data begin with "->" is a link."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            if data.startswith(b"->"):
                member.type, member.linkname = links.get("kind", tarfile.SYMTYPE), data[2:].decode()
                tar.addfile(member)
            else:
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return str(path)


def found(data: RecordDataset) -> dict[str, str | None]:
    records = [data[index] for index in range(len(data))]
    return {record.name: f"[{record.problem}]" if record.problem else record.caption for record in records}


def test_dots_in_names(tmp_path: Path) -> None:
    spec = write_tar(
        tmp_path / "a.tar",
        *((f"shot 1.{i}.{ext}", data) for i in range(3) for ext, data in (("png", png(i)), ("txt", b"%d" % i))),
        ("shot 1.3.png", png(3)),
    )
    assert found(open_data(spec, 4)) == {
        "a.tar/shot 1.0.png": "0",
        "a.tar/shot 1.1.png": "1",
        "a.tar/shot 1.2.png": "2",
        "a.tar/shot 1.3.png": "[has no caption]",
    }


def test_captions_are_chosen_in_each_sample(tmp_path: Path) -> None:
    spec = write_tar(
        tmp_path / "a.tar",
        ("0.png", png(0)), ("0.txt", b"txt"), ("0.json", b'{"caption": "json"}'),
        ("1.json", b'{"caption": null}'), ("1.png", png(1)), ("1.txt", b"txt"),
        ("./2.PNG", png(2)), ("./2.TXT", "é".encode("utf-16")),
        ("3.png", png(3)), ("3.txt", b"caf\xe9"),
        ("4.png", png(4)), ("4.caption", b"dot caption"), ("4.json", b'{"caption": NaN}'),
        ("5.png", png(5)), ("5.json", b"[" * 100_000),
    )  # fmt: skip
    assert list(found(open_data(spec, 4)).values()) == [
        "json",
        "txt",
        "é",
        "[3.txt is not UTF-8 text: save it as UTF-8]",
        "dot caption",
        "[5.json is nested too deep]",
    ]


def test_links_lead_to_members_only(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spec = write_tar(
        tmp_path / "a.tar",
        ("d/0.png", png(7)), ("d/0.txt", b"zero"), ("d/1.png", b"->0.png"), ("d/1.txt", b"one"),
        ("2.png", b"->/etc/passwd"), ("2.txt", b"two"), ("3.heic", b"x"), ("3.txt", b"three"),
        ("../../4.png", png(4)), ("../../4.txt", b"four"),
    )  # fmt: skip
    data = open_data(spec, 4)
    assert found(data) == {"a.tar/d/0.png": "zero", "a.tar/d/1.png": "one", "a.tar/../../4.png": "four"}
    assert [name for name, _ in data.left_out] == ["a.tar/2.png", "a.tar/3.heic"]
    assert "3 pictures; left out 1 (a.tar/2.png): is no plain file in its tar" in capfd.readouterr().err


def test_names_that_are_not_text(tmp_path: Path) -> None:
    spec = write_tar(tmp_path / "a.tar", ("caf\udce9.png", png(0)), ("caf\udce9.txt", b"t"), ("a\nb.png", png(1)))
    assert list(found(open_data(spec, 4))) == ["a.tar/caf\\xe9.png", "a.tar/a\\x0ab.png"]


def header(name: str, size: int, kind: bytes = b"0") -> bytes:
    """One header; a negative size is written as GNU does."""
    member = tarfile.TarInfo(name)
    member.size, member.type = max(size, 0), kind
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    if size < 0:
        block[124:136] = b"\xff" * 4 + struct.pack(">q", size)
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


SPARSE = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n20 GNU.sparse.name=a\n26 GNU.sparse.realsize=10\n"
HOSTILE = {
    "a negative size": header("n.png", -512) + b"\0" * 1024,
    "a size beyond the file": header("h.png", 2**40) + b"\0" * 512,
    "a name of four gigabytes": header("././@LongLink", 2**32, b"L") + b"\0" * 512,
    "headers of headers": (header("p", 512, b"x") + b"\0" * 512) * 3000,
    "a map without end": header("p", 512, b"x")
    + SPARSE.ljust(512, b"\0")
    + header("s", 512)
    + b"99999\n"
    + b"1\n" * 253,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_headers_are_one_line(tmp_path: Path, what: str) -> None:
    data = png(1)
    member = header("ok.png", len(data)) + data.ljust(512, b"\0")
    (tmp_path / "a.tar").write_bytes(member + HOSTILE[what] + b"\0" * 1024)
    with pytest.raises(UserError, match=r"a\.tar (cannot be read as an uncompressed tar|is damaged)") as caught:
        open_data(str(tmp_path), 4)
    assert "\n" not in str(caught.value)
