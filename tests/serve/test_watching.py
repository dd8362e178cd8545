"""A training that is watched: its curves and samples, and nothing outside of its folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenizers_vq.errors import UserError
from tokenizers_vq.images import png_bytes
from unitok.cli.main import main
from unitok.sample.serving.api import Access
from unitok.sample.serving.watching import MOST_POINTS, Watched

SAMPLE = "/v1/run/samples"


def line(step: int, loss: Any, kind: str = "train") -> dict[str, Any]:
    return {"kind": kind, "step": step, "loss": loss, "time": 1.0, "note": "a text", "good": True}


def write(folder: Path, lines: list[dict[str, Any]], end: str = "") -> None:
    (folder / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines) + end)


def test_curves_and_samples_as_they_are_now(
    run: Path, serve: Callable[..., Any], picture: Callable[..., torch.Tensor]
) -> None:
    with serve(None, run=run) as (client, _):
        facts = client.get("/v1/run").json()
        assert facts["curves"] == {"train loss": [[20, 3.0], [40, 2.0]], "val loss": [[40, 2.5]]}
        assert (facts["name"], facts["step"], facts["samples"]) == ("run", 40, [20, 40])
        answer = client.get(SAMPLE, params={"step": 40})
        assert answer.content == png_bytes(picture(seed=40))
        assert (answer.headers["content-type"], answer.headers["x-content-type-options"]) == ("image/png", "nosniff")
        # It goes on: a line that is written, one that is half there, and numbers that are none.
        write(run, [line(20, 3.0), line(40, float("nan")), line(60, float("inf")), line(80, 10**400)], '{"kind": "tr')
        (run / "samples" / "step-00000060.png").write_bytes(png_bytes(picture(seed=60)))
        facts = client.get("/v1/run").json()
        assert facts["curves"] == {"train loss": [[20, 3.0]]} and facts["samples"] == [20, 40, 60]
        # It has only begun.
        (run / "log.jsonl").unlink()
        assert client.get("/v1/run").json()["curves"] == {}
    names = {path.name for path in run.rglob("*")}
    assert names == {"samples", "step-00000020.png", "step-00000040.png", "step-00000060.png"}, "it is only read"


def test_a_long_log_is_thinned_by_means(run: Path) -> None:
    steps = 3 * MOST_POINTS
    write(run, [line(step, float(step)) for step in range(steps)])
    points = Watched(run).facts()["curves"]["train loss"]
    assert len(points) == MOST_POINTS and points[0] == [2, 1.0] and points[-1] == [steps - 1, steps - 2.0]


def test_nothing_outside_of_the_folder_is_read(run: Path, serve: Callable[..., Any]) -> None:
    secret = run.parent / "secret.png"
    secret.write_bytes(png_bytes(torch.zeros(3, 4, 4, dtype=torch.uint8)))
    (run / "samples" / "step-00000099.png").symlink_to(secret)
    os.mkfifo(run / "samples" / "step-00000098.png")
    (run / "samples" / "step-00000097.png").write_text("no picture")
    (run / "samples" / "step-00000096.png").mkdir()
    with serve(None, run=run) as (client, _):
        for step in ("99", "98", "97", "96", "95", "-1", "9" * 300):
            answer = client.get(SAMPLE, params={"step": step})
            assert answer.status_code == 404, (step, answer.text)
        for step in ("../../secret", "40/../40", "4e1", "0x28", "40.png", "%2e%2e", "9" * 5000, "\0", ""):
            answer = client.get(SAMPLE, params={"step": step})
            assert answer.status_code == 400 and answer.json()["error"]["param"] == "step", (step, answer.text)
        assert client.get(SAMPLE).json()["error"]["param"] == "step"
        for path in (
            "/v1/run/samples/../../secret.png",
            "/v1/run/samples/%2e%2e/%2e%2e/secret.png",
            "/v1/run/run.json",
        ):
            assert client.get(path).status_code == 404
    # Links in the place of the log and of the folder of samples.
    (run / "log.jsonl").unlink()
    (run / "log.jsonl").symlink_to(run.parent / "other.jsonl")
    (run.parent / "other.jsonl").write_text(json.dumps(line(1, 1.0)) + "\n")
    (run / "samples").rename(run.parent / "elsewhere")
    (run / "samples").symlink_to(run.parent / "elsewhere")
    with serve(None, run=run) as (client, _):
        answer = client.get("/v1/run")
        assert answer.status_code == 404 and "leads out of the training's folder" in answer.text
        assert client.get(SAMPLE, params={"step": 40}).status_code == 404
    assert Watched(run).samples() == []


def test_too_much_is_not_read(run: Path, serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unitok.sample.serving.watching.LARGEST_LOG", 100)
    with serve(None, run=run) as (client, _):
        answer = client.get("/v1/run")
        assert answer.status_code == 400 and "log.jsonl has more than 100 bytes" in answer.text


def test_a_training_needs_a_key_and_may_not_be_there(run: Path, serve: Callable[..., Any]) -> None:
    with serve(None, Access(keys=["secret"]), run=run) as (client, _):
        assert client.get("/v1/run").status_code == 401 and client.get(SAMPLE, params={"step": 40}).status_code == 401
    with serve(None) as (client, _):
        for path in ("/v1/run", SAMPLE + "?step=40"):
            answer = client.get(path)
            assert answer.status_code == 404 and "start the studio with --run DIR" in answer.text


def test_what_is_no_training_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["studio", "--run", str(tmp_path), "--port", "0"]) == 2
    assert "holds no training (run.json or log.jsonl): give the --out of unitok train" in capsys.readouterr().err
    assert main(["studio", "--port", "0"]) == 2
    assert "nothing to open: give --model DIR" in capsys.readouterr().err
    with pytest.raises(UserError, match="holds no training"):
        Watched(tmp_path / "nothing")
