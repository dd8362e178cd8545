"""An image tokenizer is served without a model."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenizers_vq.errors import UserError
from unitok.model import UniTok
from unitok.sample.serving.alone import is_tokenizer


@pytest.fixture(scope="module")
def model(make_model: Callable[..., UniTok]) -> UniTok:
    return make_model()


def test_it_makes_of_a_picture_what_a_model_with_it_does(
    model: UniTok,
    serve: Callable[..., Any],
    png: Callable[..., io.BytesIO],
    picture: Callable[..., torch.Tensor],
) -> None:
    def of(one: Any) -> Any:
        with serve(one) as (client, _):
            answers = [
                client.post("/v1/images/tokenizations", files={"image": png(picture(seed=seed))}) for seed in (1, 2, 1)
            ]
            assert client.get("/health").json() == {"status": "ok"}
            assert "unitok_steps 0.0" in client.get("/metrics").text
        assert [answer.status_code for answer in answers] == [200] * 3
        return [answer.json() for answer in answers]

    alone = of(model.image_tokenizer)
    assert alone == of(model) and alone[0] == alone[2] != alone[1]


def test_it_says_what_it_is_and_draws_nothing(
    model: UniTok, serve: Callable[..., Any], png: Callable[..., io.BytesIO], picture: Callable[..., torch.Tensor]
) -> None:
    with serve(model.image_tokenizer) as (client, _):
        (facts,) = client.get("/v1/models").json()["data"]
        assert facts["objective"] is None and facts["tasks"] == [] and facts["size"] == "32x32"
        assert facts["model_sha256"] == model.image_tokenizer.fingerprint()
        image = {"image": png(picture()).getvalue()}
        message = {"role": "user", "content": "what is there?"}
        refusals = [
            client.post("/v1/images/generations", json={"prompt": "a bee"}),
            client.post("/v1/images/edits", data={"prompt": "a bee"}, files=image),
            client.post("/v1/images/extensions", data={"prompt": "a bee", "left": "8"}, files=image),
            client.post("/v1/images/inspections", data={"prompt": "a bee"}, files=image),
            client.post("/v1/images/groundings", data={"prompt": "a bee"}, files=image),
            client.post("/v1/chat/completions", json={"messages": [message]}),
        ]
        for refusal in refusals:
            assert refusal.status_code == 400
            assert refusal.json()["error"]["message"] == (
                "tiny is an image tokenizer alone, which draws and writes nothing: ask /v1/images/tokenizations, or "
                "start the server with the folder of a model"
            )
        broken = client.post("/v1/images/tokenizations", files={"image": b"no picture"})
        assert broken.status_code == 400 and broken.json()["error"]["param"] == "image"


def test_it_stands_beside_a_model(
    model: UniTok, serve: Callable[..., Any], png: Callable[..., io.BytesIO], picture: Callable[..., torch.Tensor]
) -> None:
    with serve(model, other=model.image_tokenizer) as (client, _):
        assert client.post("/v1/images/generations", json={"prompt": "a", "size": "auto"}).status_code == 200
        found = client.post(
            "/v1/images/tokenizations", data={"model": "other"}, files={"image": png(picture()).getvalue()}
        )
        assert found.json()["model"] == "other"


def test_folders_are_told_apart(model: UniTok, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    assert not is_tokenizer(tmp_path / "model") and is_tokenizer(tmp_path / "model/image_tokenizer")
    assert not is_tokenizer(tmp_path) and not is_tokenizer(Path("hf:owner/name"))
    (tmp_path / "config.json").write_text('{"family": ["conv_vq"]}')
    assert not is_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json"):
        is_tokenizer(tmp_path)


def test_the_command_opens_it(model: UniTok, tmp_path: Path) -> None:
    model.image_tokenizer.save_pretrained(tmp_path / "vq")
    words = [sys.executable, "-m", "unitok", "studio", "--model", str(tmp_path / "vq"), "--port", "0"]
    words = ["bash", "-c", 'ulimit -Sn 256 && exec "$@"', "bash", *words]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as run:
        try:
            assert run.stdout is not None
            found = re.fullmatch(
                r"serving vq at (http://[\d.:]+)/v1, in a browser at .*", run.stdout.readline().strip()
            )
            assert found is not None
            with urllib.request.urlopen(f"{found[1]}/v1/models", timeout=10) as answer:
                (facts,) = json.load(answer)["data"]
            assert (facts["id"], facts["objective"]) == ("vq", None)
            limits = Path(f"/proc/{run.pid}/limits")
            if limits.exists():
                files = re.search(r"Max open files +(\d+) +(\d+)", limits.read_text())
                assert files is not None and int(files[1]) == min(int(files[2]), 65_536), "room for silent clients"
        finally:
            run.send_signal(signal.SIGINT)
        assert run.wait(30) == 0
