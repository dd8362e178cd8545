"""What cannot be served: a clear answer with the right status, and the server goes on."""

from __future__ import annotations

import base64
import io
import tempfile
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

from unitok.model import UniTok
from unitok.sample.serving.api import Access

URL, EDITS, CHAT = "/v1/images/generations", "/v1/images/edits", "/v1/chat/completions"
QUICK = {"prompt": "a red circle", "steps": 2}


def goes_on(client: Any) -> bool:
    return client.post(URL, json=QUICK).status_code == 200


def refusal(answer: Any) -> tuple[int, str, str | None]:
    """(status, message, field), in the shape of OpenAI's errors."""
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and "\n" not in error["message"]
    return answer.status_code, error["message"], error["param"]


def test_wrong_fields_are_named(make_model: Callable[..., UniTok], serve: Callable[..., Any]) -> None:
    wrong: list[tuple[dict[str, Any], str, str]] = [
        ({"prompt": "a", "quality": "hd"}, "quality", "unknown field 'quality': leave it out"),
        ({"n": 1}, "prompt", "prompt is missing"),
        ({"prompt": None}, "prompt", "prompt is None: input should be a valid string"),
        ({"prompt": "a", "n": "2"}, "n", "n is '2': input should be a valid integer"),
        ({"prompt": "a", "n": 0}, "n", "n is 0: input should be greater than or equal to 1"),
        ({"prompt": "a", "n": 17}, "n", "n is 17: this server draws up to 16 for a request"),
        ({"prompt": "a", "n": True}, "n", "n is True: input should be a valid integer"),
        ({"prompt": "a", "seed": 2**63}, "seed", "seed is 9223372036854775808: input should be less"),
        ({"prompt": "a", "size": "64x64"}, "size", "size is '64x64': this model draws 32x32 or auto"),
        (
            {"prompt": "a", "response_format": "url"},
            "response_format",
            "'url': this server keeps no files, b64_json is",
        ),
        ({"prompt": "a", "model": "other"}, "model", "there is no model 'other' here, only 'tiny'"),
        ({"prompt": "a", "guidance": -1}, "guidance", "guidance is -1.0: choose a scale from 0 to 1000"),
        ({"prompt": "a", "guidance": [1, 2]}, "guidance", "this task has 1 condition(s) that can be left out"),
        ({"prompt": "a", "top_k": 1.5}, "top_k", "top_k is 1.5: input should be a valid integer"),
        ({"prompt": "a", "top_p": 7}, "top_p", "top_p is 7.0: choose a value in (0, 1], or 0 to keep all codes"),
        ({"prompt": "a", "temperature": [1, 1]}, "temperature", "give one value, or 1, one for each scale"),
        ({"prompt": "a", "scales": 2}, "scales", "scales is 2: this model has 1"),
        ({"prompt": "a", "partial_images": 101}, "partial_images", "partial_images is 101: input should be less than"),
        ({"prompt": "word " * 99}, "prompt", "has 495 tokens, this model takes 48: shorten it"),
        ({"prompt": "a" * 32_001}, "prompt", "string should have at most 32000 characters"),
    ]
    with serve(make_model("maskgit")) as (client, parts):
        for body, field, message in wrong:
            status, said, named = refusal(client.post(URL, json=body))
            assert (status, named) == (404 if field == "model" else 400, field) and message in said, (body, said)
        for content in (b"{", b"[" * 100_000, b"\xff", b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}"):
            headers = {"content-type": "application/json"}
            assert refusal(client.post(URL, content=content, headers=headers))[0] == 400
        assert refusal(client.post(URL, content=b"a=b"))[0] == 400, "nothing but JSON"
        body = b'{"prompt": "a", "guidance": NaN, "temperature": Infinity}'
        status, said, _ = refusal(client.post(URL, content=body, headers={"content-type": "application/json"}))
        assert status == 400 and "nan" in said
        assert refusal(client.get("/v1/nothing"))[0] == 404 and refusal(client.get(URL))[0] == 405
        assert parts.worker.steps == 0, "nothing of it came to the model"
        assert goes_on(client)


def test_files_that_are_no_pictures_or_do_not_fit(
    make_model: Callable[..., UniTok],
    serve: Callable[..., Any],
    picture: Callable[..., torch.Tensor],
    png: Callable[..., io.BytesIO],
) -> None:
    good, white = png(picture()).getvalue(), png(torch.full((3, 32, 32), 255, dtype=torch.uint8)).getvalue()
    black = png(torch.zeros(3, 32, 32, dtype=torch.uint8)).getvalue()
    wide = png(torch.full((3, 32, 40), 255, dtype=torch.uint8)).getvalue()
    aside = torch.zeros(3, 32, 96, dtype=torch.uint8)
    aside[:, :, :20] = 255
    wrong: list[tuple[dict[str, Any], str, str]] = [
        ({"mask": white}, "image", "image is missing: send the picture as a file"),
        ({"image": b"", "mask": white}, "image", "image cannot be read as a picture: the file is empty"),
        ({"image": good[:-200], "mask": white}, "image", "image cannot be read as a picture: cannot be decoded"),
        ({"image": b"GIF89a nothing", "mask": white}, "image", "image cannot be read as a picture"),
        (
            {"image": bomb(20_000, 20_000), "mask": white},
            "image",
            "image cannot be read as a picture: too large: the limit is 16777216 pixels",
        ),
        ({"image": good, "mask": bomb(5000, 5000)}, "mask", "too large: 5000x5000 is more than 16777216 pixels"),
        ({"image": good, "mask": wide}, "mask", "mask is 40 wide and 32 high, image is 32 wide and 32 high: make the"),
        ({"image": good, "mask": black}, "mask", "mask has no transparent and no white pixel"),
        (
            {"image": png(picture(32, 96)).getvalue(), "mask": png(aside).getvalue()},
            "mask",
            "is cut off when the image",
        ),
        ({"image": good, "mask": white, "other": good}, "other", "unknown file 'other': send image and mask"),
    ]
    with serve(make_model("maskgit")) as (client, parts):
        for files, field, message in wrong:
            status, said, named = refusal(client.post(EDITS, data=QUICK, files=files))
            assert (status, named) == (400, field) and message in said, said
        files = {"image": good, "mask": white}
        for fields, field in (({**QUICK, "n": "two"}, "n"), ({"steps": 2}, "prompt"), ({**QUICK, "best": 1}, "best")):
            assert refusal(client.post(EDITS, data=fields, files=files))[::2] == (400, field)
        two = [("image", good), ("image", good), ("mask", white)]
        assert "a mask goes with one image, here are 2 and 1" in refusal(client.post(EDITS, data=QUICK, files=two))[1]
        many = [("image", good)] * 9
        assert "Too many files" in refusal(client.post(EDITS, data=QUICK, files=many))[1]
        broken = {"content-type": "multipart/form-data; boundary=x"}
        assert refusal(client.post(EDITS, content=b"--x\r\nnonsense", headers=broken))[0] == 400
        no_boundary = {"content-type": "multipart/form-data"}
        assert refusal(client.post(EDITS, content=b"--x", headers=no_boundary))[0] == 400
        assert "files are sent as multipart/form-data" in refusal(client.post(EDITS, json=QUICK))[1]
        assert parts.worker.steps == 0 and goes_on(client)


def bomb(height: int, width: int) -> bytes:
    """A PNG of a few kilobytes that says it has so many pixels."""
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    data = zlib.compress(bytes(10**6))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_a_large_upload_stays_in_memory(
    make_model: Callable[..., UniTok], serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_file(*_: Any) -> None:
        raise AssertionError("a file is written")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", no_file)
    image, mask = io.BytesIO(), io.BytesIO()
    Image.effect_noise((1500, 1500), 100).save(image, "PNG")
    Image.new("L", (1500, 1500), 255).save(mask, "PNG")
    assert len(image.getvalue()) > 1.5 * 2**20
    with serve(make_model("maskgit")) as (client, _):
        files = {"image": image.getvalue(), "mask": mask.getvalue()}
        assert client.post(EDITS, data=QUICK, files=files).status_code == 200


def test_a_body_that_is_too_large(make_model: Callable[..., UniTok], serve: Callable[..., Any]) -> None:
    with serve(make_model("maskgit"), megabytes=0.01) as (client, _):
        for content in (b" " * 10_001, iter([b" " * 6000] * 3)):  # one that says its length, and one that does not
            answer = client.post(URL, content=content, headers={"content-type": "application/json"})
            assert answer.headers["connection"] == "close"
            assert refusal(answer)[:2] == (
                413,
                "the request is larger than 10,000 bytes, the most that this server takes",
            )
        assert goes_on(client)


def test_the_queue_is_full(
    make_model: Callable[..., UniTok], serve: Callable[..., Any], wait_until: Callable[..., None]
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with serve(make_model("next_token"), queue=4, pictures=4) as (client, parts), ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.post, URL, json={"prompt": "a", "n": 3})
        wait_until(lambda: parts.worker.open == 3)
        answer = client.post(URL, json={"prompt": "a", "n": 2})
        assert refusal(answer)[0] == 429 and 1 <= int(answer.headers["retry-after"]) <= 60
        assert answer.json()["error"]["type"] == "rate_limit_error"
        assert client.post(URL, json={"prompt": "a", "n": 1}).status_code == 200
        assert running.result().status_code == 200
        assert client.post(URL, json={"prompt": "a", "n": 2}).status_code == 200


def test_a_request_that_takes_too_long_is_given_up(
    make_model: Callable[..., UniTok], serve: Callable[..., Any], wait_until: Callable[..., None]
) -> None:
    with serve(make_model("next_token"), seconds=0.3, pictures=64) as (client, parts):
        status, said, _ = refusal(client.post(URL, json={"prompt": "a", "n": 16, "best_of": 4}))
        assert status == 504 and "this took longer than 0.3 seconds" in said
        wait_until(lambda: parts.worker.open == 0)
        stream = client.post(URL, json={"prompt": "a", "n": 16, "best_of": 4, "stream": True})
        assert stream.status_code == 200 and "event: error" in stream.text and "0.3 seconds" in stream.text
        wait_until(lambda: len(parts.worker._engine.free) == 8)


def test_keys(make_model: Callable[..., UniTok], serve: Callable[..., Any]) -> None:
    with serve(make_model("maskgit"), Access(keys=["one", "two"])) as (client, _):
        for headers in (
            {},
            {"Authorization": "Bearer three"},
            {"Authorization": "one"},
            {"Authorization": "Basic one"},
        ):
            answer = client.post(URL, json=QUICK, headers=headers)
            assert refusal(answer)[0] == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        assert client.get("/metrics").status_code == 401 and client.get("/health").status_code == 200
        for key in ("one", "two"):
            assert client.post(URL, json=QUICK, headers={"Authorization": f"Bearer {key}"}).status_code == 200


def test_other_pages_may_ask_only_if_they_are_named(
    make_model: Callable[..., UniTok], serve: Callable[..., Any]
) -> None:
    model = make_model("maskgit")
    asks = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    for origins, allowed in (((), None), (("https://example.org",), "https://example.org")):
        with serve(model, Access(keys=["one"], origins=origins)) as (client, _):
            assert client.options(URL, headers=asks).headers.get("access-control-allow-origin") == allowed


def test_lines_and_numbers_of_requests(make_model: Callable[..., UniTok], serve: Callable[..., Any]) -> None:
    model = make_model("maskgit")
    for prompts in (False, True):
        with serve(model, Access(prompts=prompts)) as (client, parts):
            client.post(URL, json={"prompt": "a secret", "n": 2, "steps": 2})
            client.post(URL, json={"prompt": "a secret" * 99})
            client.get("/v1/" + "x" * 99)
            numbers = client.get("/metrics").text
        assert [(line["path"], line["status"]) for line in parts.lines] == [
            (URL, 200), (URL, 400), ("other", 404), ("/metrics", 200)
        ]  # fmt: skip
        assert parts.lines[0]["pictures_sent"] == 2 and ("secret" in str(parts.lines)) == prompts
        assert "unitok_pictures_total 2.0" in numbers and "unitok_open_jobs 0.0" in numbers
        assert f'unitok_requests_total{{path="{URL}",status="400"}} 1.0' in numbers


def test_a_failure_of_the_model_is_told_and_the_server_goes_on(
    make_model: Callable[..., UniTok], serve: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model("maskgit")
    with serve(model) as (client, parts):
        scores = model.ids.scores

        def broken(*_: Any) -> torch.Tensor:
            raise RuntimeError("the machine is broken")

        def nothing(hidden: torch.Tensor, ids: slice, *more: Any) -> torch.Tensor:
            return scores(hidden, ids, *more) * float("nan")

        for failing, message in ((broken, "the server failed to write this"), (nothing, "logits are not finite")):
            model.ids.scores = failing  # type: ignore[method-assign, assignment]
            status, said, _ = refusal(client.post(URL, json={**QUICK, "n": 3}))
            assert status == 500 and message in said
            model.ids.scores = scores  # type: ignore[method-assign]
            assert parts.worker.open == 0 and goes_on(client) and len(parts.worker._engine.free) == 8
    assert "the machine is broken" in capsys.readouterr().err


# --- chat ------------------------------------------------------------------------------------------------------------


def messages(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def test_chats_that_the_model_did_not_learn(
    make_model: Callable[..., UniTok],
    serve: Callable[..., Any],
    picture: Callable[..., torch.Tensor],
    png: Callable[..., io.BytesIO],
) -> None:
    url = f"data:image/png;base64,{base64.b64encode(png(picture()).getvalue()).decode()}"
    image, text = {"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "how many?"}
    model = make_model("maskgit")
    model.config.tasks = ("text_to_image", "image_to_text")
    with serve(model) as (client, _):
        for body, field, message in (
            (messages(text), "messages", "this model reads one picture: send one message with it"),
            (messages(image, image), "messages", "this model reads one picture: send one message with it"),
            (messages(image, text), "messages", "this model learned text_to_image, image_to_text, not question"),
            ({**messages(image), "stream": True}, "stream", "stream is True"),
            ({**messages(image), "max_tokens": 9}, "max_tokens", "unknown field 'max_tokens'"),
            ({**messages(image), "pictures": 9}, "pictures", "pictures is of the task interleaved: leave it out"),
            ({**messages(image), "task": "question"}, "task", "a question needs a text beside the picture"),
            ({**messages(image, text), "task": "image_to_text"}, "task", "image_to_text has none"),
            ({**messages(image), "task": "interleaved"}, "task", "text_to_image, image_to_text, not interleaved"),
            ({**messages(image), "task": "edit"}, "task", "task is 'edit'"),
            ({**messages(image), "top_p": 2.0}, "top_p", "top_p is 2.0: choose a value in (0, 1]"),
            ({"messages": []}, "messages", "messages is []"),
            ({"messages": [{"role": "tool", "content": "a"}]}, "messages", "messages is 'tool'"),
            (messages({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}), "messages[0].content",
             "must hold its picture, as data:image/png;base64,...: this server fetches nothing"),
            (messages({"type": "image_url", "image_url": {"url": "data:image/png;base64,%%%"}}), "messages[0].content",
             "messages[0].content is not valid base64"),
            (messages({"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}), "messages[0].content",
             "messages[0].content cannot be read as a picture"),
        ):  # fmt: skip
            status, said, named = refusal(client.post(CHAT, json=body))
            assert (status, named) == (400, field) and message in said, said
        assert client.post(CHAT, json=messages(image)).status_code == 200
