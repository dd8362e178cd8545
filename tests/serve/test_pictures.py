"""Pictures over HTTP: the same bytes as on the command line, whoever else is served."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image

from tokenizers_vq.images import png_bytes
from unitok.cli.main import main
from unitok.model import UniTok
from unitok.objectives import OBJECTIVES
from unitok.sample.best_of import candidate_seeds
from unitok.sample.inpainting import inpaint
from unitok.sample.jobs import job_for
from unitok.sample.pictures import codes_of
from unitok.sample.pipeline import decoded, draw, run, score_codes
from unitok.sample.serving.fields import ImageFields
from unitok.sampling import GivenSettings, SampleSettings
from unitok.trunk.attention import attention_to_words

URL = "/v1/images/generations"
EDITS = "/v1/images/edits"


def bytes_of(answer: Any) -> list[bytes]:
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(one["b64_json"]) for one in answer.json()["data"]]


def events_of(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_a_picture_has_the_bytes_of_the_command_line(
    make_model: Callable[..., UniTok], serve: Callable[..., Any], tmp_path: Path
) -> None:
    make_model("masked_token").save_pretrained(tmp_path / "model")
    words = ["sample", "a red circle", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--n", "2"]
    assert main([*words, "--seed", "5", "--guidance", "2", "--top_k", "40", "--steps", "3"]) == 0
    wanted = [(tmp_path / "out" / "pictures" / f"a-red-circle-s{seed}.png").read_bytes() for seed in (5, 6)]
    body = {"prompt": "a red circle", "n": 2, "seed": 5, "guidance": 2, "top_k": 40, "steps": 3}
    with serve(UniTok.from_pretrained(tmp_path / "model")) as (client, parts):
        answer = client.post(URL, json=body)
        assert bytes_of(answer) == wanted
        records = [one["record"] for one in answer.json()["data"]]
    lines = [json.loads(line) for line in (tmp_path / "out" / "pictures" / "metadata.jsonl").read_text().splitlines()]
    for record, line in zip(records, lines, strict=True):
        assert record == {key: line[key] for key in record} | {"model": "tiny"}
    assert answer.json()["size"] == "32x32"
    assert [line["pictures_sent"] for line in parts.lines] == [2]


@pytest.mark.parametrize("objective", ["next_token", "masked_token", "next_scale"])
def test_a_picture_does_not_depend_on_who_else_is_served(
    make_model: Callable[..., UniTok], serve: Callable[..., Any], objective: str
) -> None:
    """More requests than there are lanes, of different lengths and settings, that come and go beside each other."""
    model = make_model(objective)
    asked = [
        {"prompt": "a small red circle"[: 3 + 2 * i], "seed": i, "guidance": [1, 2, 3.5][i % 3], "steps": 2 + i % 4}
        | ({"top_k": 50} if i % 2 else {"temperature": 0.7})
        for i in range(5)
    ]
    with serve(model, lanes=4) as (client, parts), ThreadPoolExecutor(5) as pool:
        together = [bytes_of(one)[0] for one in pool.map(lambda body: client.post(URL, json=body), asked)]
        assert parts.worker.open == 0 and len(parts.worker._engine.free) == 4
    for body, found in zip(asked, together, strict=True):
        settings = SampleSettings(**{key: body[key] for key in body.keys() - {"prompt", "seed"}})
        assert found == png_bytes(draw(model, [body["prompt"]], settings, [body["seed"]])[0])


def test_without_a_seed_one_of_chance_is_told(make_model: Callable[..., UniTok], serve: Callable[..., Any]) -> None:
    with serve(make_model("maskgit")) as (client, _):
        body = {"prompt": "a", "steps": 2}
        first, other = (client.post(URL, json=body) for _ in range(2))
        seed = first.json()["data"][0]["record"]["seed"]
        assert seed != other.json()["data"][0]["record"]["seed"]
        assert bytes_of(client.post(URL, json={**body, "seed": seed})) == bytes_of(first)


def test_the_best_of_several(make_model: Callable[..., UniTok], serve: Callable[..., Any]) -> None:
    model = make_model("maskgit")
    settings = SampleSettings(best_of=3, steps=2)
    with serve(model) as (client, _):
        found = bytes_of(client.post(URL, json={"prompt": "a", "n": 2, "seed": 4, "best_of": 3, "steps": 2}))
        assert found == [png_bytes(one) for one in draw(model, ["a", "a"], settings, [4, 5])]
        answer = client.post(URL, json={"prompt": "a", "n": 6, "best_of": 3})
        assert answer.status_code == 400 and "n is 6 with best_of 3: this server draws up to 16" in answer.text
    alone = [draw(model, ["a"], SampleSettings(steps=2), [seed])[0] for seed in candidate_seeds(4, 3)]
    assert found[0] in [png_bytes(one) for one in alone]


def test_a_request_takes_every_setting_of_the_command() -> None:
    asked, options = get_type_hints(ImageFields), get_type_hints(GivenSettings)
    assert {name: asked[name] for name in options} == options


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_a_stream_tells_steps_and_shows_partial_pictures(
    make_model: Callable[..., UniTok], serve: Callable[..., Any], objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unitok.sample.serving.worker.EVENTS_A_SECOND", 1e9)
    monkeypatch.setattr("unitok.sample.serving.worker.PARTIAL_SHARE", 1.0)
    body = {"prompt": "a red circle", "seed": 1, "steps": 8, "n": 2}
    with serve(make_model(objective)) as (client, _):
        whole = bytes_of(client.post(URL, json=body))
        answer = client.post(URL, json={**body, "stream": True, "partial_images": 2})
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = events_of(answer.text)
    for place in range(2):
        *steps, last = [event for event in events if event["picture"] == place]
        assert last["type"] == "image_generation.completed" and last["record"]["seed"] == 1 + place
        assert base64.b64decode(last["b64_json"]) == whole[place]
        numbers = [event["step"] for event in steps]
        assert numbers == sorted(set(numbers)) and numbers[-1] < steps[0]["steps"]
        partial = [event for event in steps if "b64_json" in event]
        assert {event["type"] for event in partial} == {"image_generation.partial_image"}
        assert [event["partial_image_index"] for event in partial] == [0, 1]
        assert [event["step"] * 3 // event["steps"] for event in partial] == [1, 2]
        first, second = (pixels(event["b64_json"]) for event in partial)
        assert not np.array_equal(first, second)


def pixels(encoded: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


def test_steps_are_told_ten_times_a_second_at_most(
    make_model: Callable[..., UniTok], serve: Callable[..., Any]
) -> None:
    with serve(make_model("next_token")) as (client, parts):
        client.post(URL, json={"prompt": "a"})  # the first is slower
        answer = client.post(URL, json={"prompt": "a", "stream": True, "partial_images": 0})
        seconds = parts.lines[-1]["seconds"]
    steps = [event for event in events_of(answer.text) if event["type"] == "image_generation.progress"]
    assert 1 <= len(steps) <= 1 + 10 * seconds < 64, "of 64 steps"


# --- edits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transparent", [False, True])
def test_a_part_is_drawn_anew(
    make_model: Callable[..., UniTok],
    serve: Callable[..., Any],
    picture: Callable[..., torch.Tensor],
    png: Callable[..., io.BytesIO],
    transparent: bool,
) -> None:
    model, given = make_model("masked_token"), picture()
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[4:20, 8:24] = True
    image = Image.fromarray((mask.numpy() * 255).astype(np.uint8))
    if transparent:  # as OpenAI has it: what is clear is drawn anew, whatever colours the rest has
        image = Image.fromarray(given.permute(1, 2, 0).numpy())
        image.putalpha(Image.fromarray((~mask.numpy() * 255).astype(np.uint8)))
    file = io.BytesIO()
    image.save(file, "PNG")
    drawings = 1 + transparent
    fields = {"prompt": "a red circle", "seed": 7, "n": 2, "steps": 3, "guidance": 2, "best_of": drawings}
    with serve(model) as (client, _):
        answer = client.post(EDITS, data=fields, files={"image": png(given), "mask": file.getvalue()})
    wanted = inpaint(
        model,
        given.repeat(2, 1, 1, 1),
        mask.repeat(2, 1, 1),
        ["a red circle"] * 2,
        SampleSettings(2.0, steps=3, best_of=drawings),
        [7, 8],
    )
    assert bytes_of(answer) == [png_bytes(one) for one in wanted]
    assert answer.json()["data"][0]["record"]["made_from"].keys() == {"sha256", "mask_sha256"}


def test_a_picture_is_changed_by_an_instruction(
    make_model: Callable[..., UniTok],
    serve: Callable[..., Any],
    picture: Callable[..., torch.Tensor],
    png: Callable[..., io.BytesIO],
) -> None:
    model, sources = make_model("maskgit"), [picture(seed=1), picture(seed=2)]
    settings = SampleSettings([2.0, 1.5], steps=3)
    record = {"source": list(codes_of(model, torch.stack(sources))), "instruction": model.text_ids("a red circle")}
    codes = run(model, [job_for("edit", record, 3, settings)])[0][0]
    wanted = png_bytes(decoded(model, codes[None], 0)[0])
    fields = {"prompt": "a red circle", "seed": "3", "steps": "3", "guidance": ["2", "1.5"], "stream": "true"}
    files = [("image[]", png(one)) for one in sources]
    with serve(model) as (client, _):
        events = events_of(client.post(EDITS, data=fields, files=files).text)
        model.config.tasks = ("text_to_image",)
        refused = client.post(EDITS, data=fields, files=files)
    assert events[-1]["type"] == "image_edit.completed" and base64.b64decode(events[-1]["b64_json"]) == wanted
    assert len(events[-1]["record"]["source"]) == 2
    assert refused.status_code == 400 and "learned text_to_image, not edit: send a mask" in refused.text


def test_a_model_that_points_changes_a_picture_behind_its_boxes(
    grounded: UniTok, serve: Callable[..., Any], picture: Callable[..., torch.Tensor], png: Callable[..., io.BytesIO]
) -> None:
    """There is room for both."""
    model, source = copy(grounded), picture(seed=1)
    model.config = replace(model.config, tasks=("pointed_edit",), text_length=24)
    settings = SampleSettings([2.0, 1.5])
    record = {"source": codes_of(model, source[None])[0], "instruction": model.text_ids("a red circle")}
    [[boxes, codes]] = run(model, [job_for("pointed_edit", record, 3, settings)])
    assert len(boxes)
    fields = {"prompt": "a red circle", "seed": "3", "guidance": ["2", "1.5"], "stream": "true"}
    with serve(model) as (client, _):
        events = events_of(client.post(EDITS, data=fields, files=[("image[]", png(source))]).text)
        [facts] = client.get("/v1/models").json()["data"]
    assert facts["tasks"] == ["edit", "pointed_edit"], "it does both, as the studio sees it"
    assert base64.b64decode(events[-1]["b64_json"]) == png_bytes(decoded(model, codes[None], 0)[0])
    assert events[-1]["record"]["pointed"] == {"boxes": model.modalities()["box"].value(boxes)}


# --- inspections -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["next_token", "next_scale"])
def test_what_a_model_thinks_of_a_picture(
    make_model: Callable[..., UniTok],
    serve: Callable[..., Any],
    picture: Callable[..., torch.Tensor],
    png: Callable[..., io.BytesIO],
    objective: str,
) -> None:
    model, given = make_model(objective), picture()
    codes = codes_of(model, given[None])
    odds = score_codes(model, ["a red circle"], codes)[0].softmax(-1)
    with serve(model) as (client, parts):
        answer = client.post("/v1/images/inspections", data={"prompt": "a red circle"}, files={"image": png(given)})
        found = answer.json()
        assert answer.status_code == 200 and found["codes"] == codes[0].tolist()
        assert found["grids"] == [list(grid) for grid in model.layout.scales]
        own = odds.gather(-1, codes[0].cpu()[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(found["probabilities"]), own, rtol=1e-3, atol=1e-6)
        bits = -(odds * odds.log2()).sum(-1)
        torch.testing.assert_close(torch.tensor(found["entropies"]), bits, rtol=1e-3, atol=1e-3)
        refused = client.post("/v1/images/inspections", data={"prompt": "word " * 400}, files={"image": png(given)})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "prompt"
        two = [("image", png(given)), ("image", png(given))]
        refused = client.post("/v1/images/inspections", data={"prompt": "a"}, files=two)
        assert refused.status_code == 400 and "here are 2 images: send one" in refused.json()["error"]["message"]
        refused = client.post("/v1/images/inspections", data={"seed": "3"}, files={"image": png(given)})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "seed"
        assert client.post("/v1/images/inspections", files={"image": png(given)}).status_code == 200
        assert parts.worker.open == 0


@pytest.mark.parametrize("objective", ["next_token", "next_scale"])
def test_what_a_word_is_worth(
    make_model: Callable[..., UniTok],
    serve: Callable[..., Any],
    picture: Callable[..., torch.Tensor],
    png: Callable[..., io.BytesIO],
    objective: str,
) -> None:
    model, given = make_model(objective), picture()
    codes = codes_of(model, given[None])

    def bits(caption: str) -> torch.Tensor:
        odds = score_codes(model, [caption], codes)[0].double().log_softmax(-1)
        return odds.gather(-1, codes[0][:, None])[:, 0] / torch.tensor(2.0).log()

    with serve(model) as (client, _):

        def ask(prompt: str, **fields: Any) -> Any:
            data = {"prompt": prompt, **fields}
            return client.post("/v1/images/inspections", data=data, files={"image": png(given)})

        found = ask("a  red circle", words=True).json()
        assert [one["word"] for one in found["words"]] == ["a", "red", "circle"]
        wanted = bits("a  red circle") - bits("a circle")
        assert found["words"][1]["bits"] == pytest.approx(wanted.tolist(), rel=1e-3, abs=1e-3)
        assert wanted.abs().max() > 0.01, "the word counts"
        looks = attention_to_words(model, "a  red circle", codes[0])
        assert looks is not None
        assert found["words"][1]["attention"] == pytest.approx(looks[1][1].tolist(), rel=1e-3)
        assert ask("", words=True).json()["words"] == []
        assert "words" not in ask("a red circle").json()
        refused = ask("a " * 33, words=True)
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "prompt"
        assert "33 words: what 32 are worth is told at most" in refused.text
        assert ask("a", words="maybe").json()["error"]["param"] == "words"
