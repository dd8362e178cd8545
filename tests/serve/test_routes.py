"""What the studio asks beyond OpenAI's API: a second model, an image tokenizer, larger pictures, boxes."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenizers_vq.errors import UserError
from tokenizers_vq.images import png_bytes, to_float, to_uint8
from unitok.boxes import written_out
from unitok.cli.main import main
from unitok.data.decoding import decode
from unitok.model import UniTok
from unitok.sample.inpainting import Sides, extend_all, inpaint_each
from unitok.sample.performing import pointed_first
from unitok.sample.pipeline import draw
from unitok.sample.reading import answers, ground, ground_caption
from unitok.sample.serving.answers import shown_parts
from unitok.sample.serving.models import Models, short_names
from unitok.sample.serving.reconstruction import reconstruct, shown_after
from unitok.sampling import SampleSettings

URL, IMAGES = "/v1/images/generations", "/v1/images/"


def pixels_of(base64_json: str) -> torch.Tensor:
    return decode(base64.b64decode(base64_json))


def refusal(answer: Any) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["message"], error["param"]


# --- two models ------------------------------------------------------------------------------------------------------


def test_a_request_names_its_model(make_model: Callable[..., UniTok], serve: Callable[..., Any]) -> None:
    first, second = make_model("maskgit"), make_model("next_scale", seed=1)
    body = {"prompt": "a red circle", "seed": 3, "steps": 2}
    with serve(first, other=second) as (client, parts):
        names = [one["id"] for one in client.get("/v1/models").json()["data"]]
        assert names == ["tiny", "other"]
        for asked, model, name in ((None, first, "tiny"), ("tiny", first, "tiny"), ("other", second, "other")):
            (found,) = client.post(URL, json={**body, "model": asked}).json()["data"]
            drawn = draw(model, [body["prompt"]], SampleSettings.of(model.config, {"steps": 2}), [3])
            assert base64.b64decode(found["b64_json"]) == png_bytes(drawn[0])
            assert (found["record"]["model"], found["record"]["model_sha256"]) == (name, model.fingerprint())
        status, said, field = refusal(client.post(URL, json={**body, "model": "third"}))
        assert (status, field) == (404, "model") and said == "there is no model 'third' here, only 'tiny' and 'other'"
        assert "unitok_open_jobs 0.0" in client.get("/metrics").text
        with pytest.raises(UserError, match="--name tiny is the name of two models"):
            Models([parts.served[0], parts.served[0]])
    with serve(None) as (client, _):
        assert client.get("/v1/models").json()["data"] == []
        assert refusal(client.post(URL, json=body))[::2] == (404, "model")


def test_names_of_folders_tell_them_apart() -> None:
    assert short_names([]) == []
    assert short_names([Path("/a/b/model"), Path("/c/b/model")]) == ["a/b/model", "c/b/model"]
    with pytest.raises(UserError, match="is given twice: give two different models"):
        short_names([Path("/a/b"), Path("/a/c/../b")])


def test_the_commands_open_two_models_and_a_training(
    make_model: Callable[..., UniTok],
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: None)
    for name in ("a", "b"):
        make_model("maskgit").save_pretrained(tmp_path / name / "generator")
    a, b = str(tmp_path / "a" / "generator"), str(tmp_path / "b" / "generator")
    assert main(["studio", "--model", a, "--other", b, "--run", str(run), "--port", "0"]) == 0
    assert f"serving a/generator and b/generator and the training {run} at http://127" in capsys.readouterr().out
    assert main(["serve", "--model", a, "--other", b, "--name", "first", "--port", "0"]) == 0
    assert "serving first and b/generator at http://127" in capsys.readouterr().out
    for words, message in (
        (["serve", "--model", a, "--other", a], "is given twice: give two different models"),
        (["serve", "--model", a, "--other", b, "--name", "b/generator"], "is the name of two models: choose another"),
        (["studio", "--other", b, "--run", str(run)], "nothing to open: give --model DIR"),
    ):
        assert main([*words, "--port", "0"]) == 2
        assert message in capsys.readouterr().err


# --- an image tokenizer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["next_token", "next_scale"])
def test_a_picture_becomes_codes_and_back(
    make_model: Callable[..., UniTok],
    serve: Callable[..., Any],
    picture: Callable[..., torch.Tensor],
    png: Callable[..., io.BytesIO],
    objective: str,
) -> None:
    model = make_model(objective)
    tokenizer, given = model.image_tokenizer, picture()
    codes = tokenizer.encode(to_float(given[None]))
    back = to_uint8(tokenizer.decode(codes))[0]
    with serve(model) as (client, parts):
        answer = client.post(IMAGES + "tokenizations", files={"image": png(given)})
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert parts.worker.steps == 0
    assert found["codes"] == codes[0].tolist() and found["grids"] == [list(grid) for grid in model.layout.scales]
    assert torch.equal(pixels_of(found["picture"]["b64_json"]), given)
    assert torch.equal(pixels_of(found["reconstruction"]["b64_json"]), back)
    difference = (given.double() - back.double()).abs()
    error = pixels_of(found["error"]["b64_json"])
    assert error.max() == 255 and torch.equal(error[0], error[2])
    assert error[0].argmax() == difference.mean(0).argmax()
    assert found["largest_error"] == pytest.approx(difference.mean(0).max().item(), abs=0.01)
    psnr = 10 * torch.log10(255**2 / difference.square().mean())
    assert found["psnr"] == pytest.approx(psnr.item(), abs=0.01)
    wanted = [1, 5, 21, 85] if objective == "next_scale" else [1, 2, 4, 8, 16, 32, 64]
    assert [one["codes"] for one in found["first"]] == wanted == shown_after(tokenizer)
    assert torch.equal(pixels_of(found["first"][-1]["b64_json"]), back)
    early = pixels_of(found["first"][2]["b64_json"])
    if objective == "next_scale":
        assert torch.equal(early, to_uint8(tokenizer.decode(codes[:, :21]))[0])
    else:  # four codes are the left half of the first row
        assert (early[:, 4:] == 128).all() and (early[:, :4, 16:] == 128).all() and (early[:, :4, :16] != 128).any()


def test_a_picture_that_comes_back_whole_has_no_psnr(make_model: Callable[..., UniTok]) -> None:
    tokenizer = make_model("maskgit").image_tokenizer
    fixed = torch.randn(1, 3, 32, 32)
    tokenizer.decode = lambda codes, *_: fixed  # type: ignore[method-assign]
    found = reconstruct(tokenizer, to_uint8(fixed)[0])
    assert found["psnr"] is None and found["largest_error"] == 0 and not found["error"].any()


# --- a picture with more around it -----------------------------------------------------------------------------------


def test_a_larger_picture_has_the_bytes_of_the_function(
    make_model: Callable[..., UniTok],
    serve: Callable[..., Any],
    picture: Callable[..., torch.Tensor],
    png: Callable[..., io.BytesIO],
) -> None:
    model, given = make_model("maskgit"), picture()
    form = {"prompt": "a red circle", "seed": 4, "n": 2, "right": 20, "top": 8, "steps": 2}
    settings = SampleSettings.of(model.config, {"steps": 2})
    wanted = extend_all(model, given, Sides(right=20, top=8), "a red circle", settings, [4, 5])
    with serve(model) as (client, parts):
        answer = client.post(IMAGES + "extensions", data=form, files={"image": png(given)})
        assert answer.status_code == 200, answer.text
        assert parts.worker.open == 0 and len(parts.worker._engine.free) == 8
        found = answer.json()
        assert found["size"] == "52x40"
        for one, canvas in zip(found["data"], wanted, strict=True):
            assert base64.b64decode(one["b64_json"]) == png_bytes(canvas)
        assert torch.equal(pixels_of(found["data"][0]["b64_json"])[:, 8:, :32], given)
        made_from = found["data"][1]["record"]["made_from"]
        assert made_from["right"] == 20 and made_from["top"] == 8 and len(made_from["sha256"]) == 64


def test_wrong_extensions(
    make_model: Callable[..., UniTok],
    serve: Callable[..., Any],
    picture: Callable[..., torch.Tensor],
    png: Callable[..., io.BytesIO],
) -> None:
    good = png(picture()).getvalue()
    small = png(picture(16, 16)).getvalue()
    wrong: list[tuple[dict[str, Any], bytes, str, str]] = [
        ({}, good, "left", "nothing to extend: give left, right, top or bottom in pixels"),
        ({"left": -1}, good, "left", "left is -1"),
        ({"left": "wide"}, good, "left", "left is 'wide'"),
        ({"left": 16_385}, good, "left", "left is 16385"),
        ({"left": 2000}, good, "n", "n is 1 and each picture takes 125 drawings: this server draws up to 16"),
        ({"left": 16, "n": 16, "best_of": 2}, good, "n", "n is 16 with best_of 2"),
        ({"left": 16, "best_of": 2}, good, "best_of", "best_of 2 chooses by a caption or by what is known"),
        ({"left": 16, "stream": True}, good, "stream", "stream is"),
        ({"left": 16, "size": "32x32"}, good, "size", "unknown field 'size'"),
        ({"left": 16}, small, "image", "the picture is 16 wide and 16 high"),
        ({"left": 16}, b"", "image", "image cannot be read as a picture: the file is empty"),
        ({"left": 16, "model": "other"}, good, "model", "there is no model 'other'"),
    ]
    with serve(make_model("maskgit")) as (client, parts):
        for fields, file, field, message in wrong:
            answer = client.post(IMAGES + "extensions", data={"prompt": "a", **fields}, files={"image": file})
            status, said, named = refusal(answer)
            assert (status, named) == (404 if field == "model" else 400, field) and message in said, (fields, said)
        assert parts.worker.steps == 0
    large = {"prompt": "a", "left": 16, "n": 4}
    with serve(make_model("maskgit"), pixels=2000) as (client, _):
        status, said, field = refusal(client.post(IMAGES + "extensions", data=large, files={"image": good}))
        assert (status, field) == (400, "n")
        assert "n is 4 and each picture has 48x32 pixels: this server draws up to 2,000 for a request" in said
    queries = {"tokenizations": {}, "extensions": {"prompt": "a", "left": 9}, "groundings": {"prompt": "a"}}
    with serve(make_model("maskgit")) as (client, _):
        for route, fields in queries.items():
            for files, message in (({}, "files are sent as"), ([("image", good)] * 2, "here are 2 images: send one")):
                status, said, named = refusal(client.post(IMAGES + route, data=fields, files=files))
                assert (status, named) == (400, "image") and message in said
            answer = client.post(IMAGES + route, data={**fields, "colour": 1}, files={"image": good})
            assert refusal(answer)[::2] == (400, "colour")
            assert refusal(client.post(IMAGES + route, data=fields, files={"other": good}))[::2] == (400, "other")


# --- where something is ----------------------------------------------------------------------------------------------


def test_boxes_of_a_phrase_and_of_a_caption(
    grounded: UniTok,
    serve: Callable[..., Any],
    picture: Callable[..., torch.Tensor],
    png: Callable[..., io.BytesIO],
) -> None:
    given = picture()
    with serve(grounded) as (client, _):
        answer = client.post(IMAGES + "groundings", data={"prompt": "the red circle"}, files={"image": png(given)})
        assert answer.status_code == 200, answer.text
        assert [one["box"] for one in answer.json()["parts"]] == ground(grounded, given, "the red circle")
        answer = client.post(IMAGES + "groundings", files={"image": png(given)})
        parts = [one.get("text", one.get("box")) for one in answer.json()["parts"]]
        assert parts == ground_caption(grounded, given)


def test_boxes_are_shares_of_the_whole_picture(
    grounded: UniTok,
    serve: Callable[..., Any],
    picture: Callable[..., torch.Tensor],
    png: Callable[..., io.BytesIO],
) -> None:
    """Of a picture twice as wide the model reads the middle half."""
    given = picture(32, 64)
    (box,) = ground(grounded, given[:, :, 16:48].contiguous(), "the red circle")[:1]
    with serve(grounded) as (client, _):
        files = {"image": png(given)}
        (first, *_) = client.post(IMAGES + "groundings", data={"prompt": "the red circle"}, files=files).json()["parts"]
    assert first["box"] == pytest.approx([0.25 + box[0] / 2, box[1], 0.25 + box[2] / 2, box[3]])


def test_what_was_pointed_at_is_told_with_an_answer(
    grounded: UniTok,
    serve: Callable[..., Any],
    picture: Callable[..., torch.Tensor],
    png: Callable[..., io.BytesIO],
) -> None:
    model, given = copy(grounded), picture(32, 64)
    model.config = replace(model.config, tasks=("pointed_question",))
    ((_, pointed),) = answers(model, given[:, :, 16:48].contiguous(), ["where is it"])
    assert pointed["boxes"]
    url = f"data:image/png;base64,{base64.b64encode(png(given).getvalue()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "where is it"}]
    with serve(model) as (client, _):
        answer = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": content}]})
    found = answer.json()["record"]["pointed"]
    whole = [[0.25 + left / 2, top, 0.25 + right / 2, bottom] for left, top, right, bottom in pointed["boxes"]]
    assert found.keys() == {"boxes"} and found["boxes"] == [pytest.approx(box) for box in whole]


def test_texts_of_a_document_are_told_with_their_boxes_apart() -> None:
    value: list[Any] = ["a cat", [0.1, 0.2, 0.5, 0.6], " and so on"]
    plain, grounded = shown_parts([("text", "so"), ("text", value)])
    assert plain == {"type": "text", "text": "so"}
    assert grounded == {"type": "text", "text": written_out(value), "named": value} and "0.1" in grounded["text"]


def test_a_model_that_points_fills_in_and_extends(
    grounded: UniTok,
    serve: Callable[..., Any],
    picture: Callable[..., torch.Tensor],
    png: Callable[..., io.BytesIO],
) -> None:
    model, given = copy(grounded), picture()
    model.config = replace(model.config, tasks=("pointed_inpaint",))
    settings, mask = SampleSettings(guidance=2.0), torch.zeros(32, 32, dtype=torch.bool)
    mask[8:, 8:24] = True
    ((_, filled, written),) = inpaint_each(model, given[None], mask[None], ["a circle"], settings, [3])
    told = pointed_first(model, "pointed_inpaint", written)
    (extended,) = extend_all(model, given, Sides(right=16), "a circle", settings, [3])
    fields, white = {"prompt": "a circle", "seed": 3, "guidance": 2}, (255 * mask).to(torch.uint8).expand(3, -1, -1)
    with serve(model) as (client, _):
        edited = client.post(IMAGES + "edits", data=fields, files={"image": png(given), "mask": png(white)})
        assert edited.status_code == 200, edited.text
        longer = client.post(IMAGES + "extensions", data={**fields, "right": 16}, files={"image": png(given)})
    (one,), (other,) = edited.json()["data"], longer.json()["data"]
    assert torch.equal(pixels_of(one["b64_json"]), filled) and one["record"]["pointed"] == told
    assert torch.equal(pixels_of(other["b64_json"]), extended)


def test_a_model_without_boxes_says_so(
    make_model: Callable[..., UniTok],
    serve: Callable[..., Any],
    picture: Callable[..., torch.Tensor],
    png: Callable[..., io.BytesIO],
) -> None:
    with serve(make_model()) as (client, _):
        for prompt, task in (("a circle", "ground"), ("", "ground_caption")):
            answer = client.post(IMAGES + "groundings", data={"prompt": prompt}, files={"image": png(picture())})
            assert refusal(answer)[0] == 400 and f"not {task}" in refusal(answer)[1]
