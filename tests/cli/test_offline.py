"""Nothing is fetched unless it is asked for: commands that need no network work without one, and do not try."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenizers_vq.images import save_png
from unitok.cli.main import main
from unitok.model import UniTok

COMMANDS = [
    "train tokenizer --preset debug --data PICTURES --run.steps 2 --run.batch_size 2 --run.workers 0 --out OUT",
    "train generator --preset debug --image_tokenizer TOKENIZER --data PICTURES --run.steps 2 --run.batch_size 3 "
    "--run.workers 0 --out OUT",
    "encode --image_tokenizer TOKENIZER --data PICTURES --out OUT --workers 0",
    "sample circle --model MODEL --n 1 --out OUT",
    "caption PICTURES/0.png --model MODEL",
    "eval tokenizer --tokenizer TOKENIZER --data PICTURES --out OUT",
    "compare-tokenizers TOKENIZER MODEL --data PICTURES --out OUT",
    "eval generator --model MODEL --data PICTURES --guidance 1 --out OUT",
    "eval suite --model MODEL --data PICTURES --out OUT",
    "data check PICTURES --out OUT",
    "eval fid PICTURES PICTURES",
    "eval retrieval PICTURES PICTURES",
    "eval clipscore PICTURES",
    "eval text PICTURES/0.txt --model MODEL",
    "eval statistics PICTURES --out OUT/statistics.npz",
]


@pytest.fixture(scope="module")
def places(make_model: Callable[..., UniTok], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("offline")
    make_model().save_pretrained(folder / "model")
    make_model().image_tokenizer.save_pretrained(folder / "tokenizer")
    for index in range(6):
        save_png(folder / "pictures" / f"{index}.png", torch.full((3, 32, 32), 40 * index, dtype=torch.uint8))
        (folder / "pictures" / f"{index}.txt").write_text("a red circle")
    return {name.upper(): str(folder / name) for name in ("model", "tokenizer", "pictures")}


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Addresses that were looked up or called; none can be reached."""
    found: list[Any] = []

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            found.append(address)
        raise OSError("no network")

    def unknown(host: Any, *rest: Any, **options: Any) -> None:
        found.append(host)
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_do_without_a_network(
    command: str,
    places: dict[str, str],
    attempts: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))  # with nothing in it
    for name, place in {**places, "OUT": str(tmp_path / "out")}.items():
        command = command.replace(name, place)
    assert main(command.split()) == 0, capsys.readouterr().err
    assert not attempts
