"""Repositories of the hub that are not open to everybody: one line says what to do, wherever a name is given."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from tokenizers_vq.errors import UserError
from tokenizers_vq.published import load_published
from tokenizers_vq.storage.hub import from_hub
from unitok.cli.main import main
from unitok.importing import import_generator
from unitok.text import load_text_tokenizer

from .infinity_arithmetic import SQUARE, images_of, infinity_weights
from .tiny import tokenizer

PAGE = "https://hub/meta/closed"
ASK = (
    f"{PAGE} is not open to everybody (gated): ask for access on that page, then log in with hf auth "
    "login, or set HF_TOKEN to a token that may read it"
)


def answer(kind: type[HfHubHTTPError], status: int, method: str = "GET", address: str = "") -> HfHubHTTPError:
    """The error that huggingface_hub makes of an answer."""
    url = address or f"{PAGE}/resolve/main/config.json"
    response: Any = SimpleNamespace(
        status_code=status, headers={}, url=url, request=SimpleNamespace(method=method, url=url)
    )
    return kind(f"{status} Client Error.\n\nCannot access gated repo for url {url}.", response=response)


def refuse(*_: Any, **__: Any) -> None:
    raise answer(GatedRepoError, 403)


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("hf_hub_download", "snapshot_download", "HfApi.list_repo_files"):
        monkeypatch.setattr(f"huggingface_hub.{name}", refuse)


@pytest.mark.usefixtures("closed")
def test_every_way_to_the_hub_says_to_ask_for_access(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(infinity_weights(), tmp_path / "x.pth")
    tries: list[Callable[[], object]] = [
        lambda: load_published("taming_vqgan", "hf:meta/closed"),
        lambda: load_published("taming_vqgan", "hf:meta/closed/a.ckpt"),
        lambda: import_generator("llamagen", "hf:meta/closed/a.pt", tokenizer()),
        lambda: import_generator("infinity", tmp_path / "x.pth", images_of(SQUARE), None, "hf:meta/closed"),
    ]
    for one in tries:
        with pytest.raises(UserError) as error:
            one()
        assert str(error.value) == ASK
    (tmp_path / "a.txt").write_text("a text\n")
    for words in (
        ["sample", "--model", "hf:meta/closed", "3"],
        ["eval", "text", str(tmp_path / "a.txt"), "--trunk", "hf:meta/closed"],
    ):
        assert main([*words, "--out", str(tmp_path / "out")]) == 2
        assert ASK in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("unitok.text.Tokenizer", SimpleNamespace(from_pretrained=refuse))
    with pytest.raises(UserError, match=re.escape(ASK)):
        load_text_tokenizer("meta/closed")


def test_what_is_said_depends_on_the_answer() -> None:
    def said(error: Exception) -> str:
        with pytest.raises(UserError) as caught, from_hub(lambda error: "something else"):
            raise error
        return str(caught.value)

    wrapped = OSError("You are trying to access a gated repo.")
    wrapped.__cause__ = answer(GatedRepoError, 401)
    assert said(wrapped) == ASK and said(answer(HfHubHTTPError, 403)) == ASK
    missing = said(answer(RepositoryNotFoundError, 401, address="https://hub/api/models/meta/closed/revision/main"))
    assert missing == (
        f"{PAGE} is not there, or is private: check the name; if it is private, log in with hf auth login, or set "
        "HF_TOKEN"
    )
    data = said(answer(GatedRepoError, 403, address="https://hub/api/datasets/meta/closed?x=1"))
    assert data.startswith("https://hub/datasets/meta/closed is not open")
    assert said(answer(GatedRepoError, 403, address="https://hub/closed/resolve/main/a")).startswith(
        "https://hub/closed "
    )
    for other in (OSError("no route"), answer(HfHubHTTPError, 500), answer(HfHubHTTPError, 403, "POST")):
        assert said(other) == "something else"
