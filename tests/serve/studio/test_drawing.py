"""Pictures are drawn, compared, voted for and filled in, in a real browser."""

from __future__ import annotations

import base64
import io
import json
import shlex
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from studio_page import CAPTION, NAMES, draw_one, shot

from unitok.cli.main import main
from unitok.data.decoding import decode
from unitok.model import UniTok
from unitok.sample.reading import answers


def test_pictures_appear_and_can_be_drawn_again(page: Any, slowly: None) -> None:
    page.locator("#caption").fill(CAPTION)
    page.locator("#seed").fill("3")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_role("progressbar").first.wait_for()
    saves = page.get_by_role("button", name="Save", exact=True)
    saves.nth(3).wait_for(timeout=60_000)
    shot(page, "draw")
    with page.expect_download() as download:
        saves.first.click()
    data = Path(download.value.path()).read_bytes()
    picture = Image.open(io.BytesIO(data))
    record = json.loads(picture.text["unitok"])  # type: ignore[attr-defined]
    assert record["caption"] == CAPTION and record["seed"] == 3 and picture.size[0] >= 32
    kinds = [data[at : at + 4] for at in chunks(data)]
    assert kinds[0] == b"IHDR" and kinds[-1] == b"IEND"


def test_two_settings_are_compared_and_voted_for(page: Any) -> None:
    """One model: without guidance is what is offered first."""
    page.get_by_role("tab", name="Compare").click()
    page.locator("#compare-caption").fill(CAPTION)
    page.locator("#compare-seed").fill("3")
    page.locator("#blind").check()
    page.get_by_role("button", name="Compare", exact=True).click()
    votes = page.get_by_role("button", name="Better")
    votes.nth(3).wait_for(timeout=60_000)
    captions = page.locator("#compared figcaption")
    assert [captions.nth(number).is_visible() for number in range(4)] == [False] * 4, "nothing says which is which"
    votes.first.click()
    assert [captions.nth(number).is_visible() for number in range(4)] == [True, True, False, False]
    votes.nth(1).click()
    page.get_by_text("1 vote: ").wait_for()
    votes.nth(2).click()
    page.get_by_text("2 votes: ").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save votes").click()
    first, second = map(json.loads, Path(download.value.path()).read_text().splitlines())
    for vote, seed in ((first, 3), (second, 4)):
        assert vote["better"]["seed"] == vote["worse"]["seed"] == seed
        scales = {side: vote[side]["settings"]["guidance"] for side in ("better", "worse")}
        assert scales["better"] != scales["worse"] and 1 in scales.values()
        assert (vote["side"] == "b") == (scales["better"] == 1)


def test_two_models_are_compared(opened: Callable[..., Any], other: UniTok) -> None:
    page = opened(other=other)
    page.get_by_role("tab", name="Compare").click()
    assert page.locator("#model-b").input_value() == NAMES[1]
    page.locator("#compare-caption").fill(CAPTION)
    page.locator("#compare-seed").fill("3")
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_role("button", name="Better").nth(3).wait_for(timeout=60_000)
    page.get_by_role("button", name="Better").nth(1).click()
    shot(page, "compare")
    facts = [page.locator("#compared small").nth(number).text_content() for number in range(4)]
    assert [fact.split(",")[:2] for fact in facts] == [[name, f" seed {seed}"] for seed in (3, 4) for name in NAMES]
    with page.expect_download() as download:
        page.get_by_role("button", name="Save votes").click()
    (vote,) = map(json.loads, Path(download.value.path()).read_text().splitlines())
    assert (vote["side"], vote["better"]["model"], vote["worse"]["model"]) == ("b", NAMES[1], NAMES[0])
    # The choice above is that of all other parts.
    page.locator("#which").select_option(NAMES[1])
    page.get_by_text(f"{NAMES[1]}: ").wait_for()
    page.get_by_role("tab", name="Draw").click()
    page.locator("#caption").fill(CAPTION)
    page.locator("#count").fill("1")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.locator("#drawn small").get_by_text(f"{NAMES[1]}, seed").wait_for(timeout=60_000)


def copied(page: Any, figure: Any, name: str) -> str:
    """What a button of a picture copies."""
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    figure.get_by_role("button", name=name, exact=True).click()
    return str(page.evaluate("window.copied"))


def by_command(text: str, model: UniTok, folder: Path) -> bytes:
    """The picture that a copied command draws."""
    model.save_pretrained(folder / "MODEL")
    program, *words = shlex.split(text)
    places = {name: str(folder / name) for name in ("MODEL", "PICTURE.png", "MASK.png", "drawn")}
    assert program == "unitok" and main([places.get(word, word) for word in words]) == 0
    (drawn,) = (folder / "drawn" / "pictures").glob("*.png")
    return drawn.read_bytes()


def chunks(png: bytes) -> Iterator[int]:
    """Where the chunks of a PNG file have their kind."""
    at = 8
    while at < len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        yield at + 4
        at += 12 + size


def test_a_part_is_drawn_anew(page: Any, model: UniTok, tmp_path: Path) -> None:
    draw_one(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save", exact=True).click()
    download.value.save_as(tmp_path / "PICTURE.png")
    page.get_by_role("button", name="Change", exact=True).click()
    page.get_by_role("button", name="Fill what is painted").click()
    page.get_by_text("Nothing is painted: paint what is to be drawn anew").wait_for()
    page.get_by_label("Box, in pixels").fill("16, 8, 32, 24")
    page.get_by_role("button", name="Mark the box").click()
    box = page.locator("#mask").bounding_box()
    page.mouse.move(box["x"] + 10, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(box["x"] + 40, box["y"] + 12)
    page.mouse.up()
    page.locator("#wish").fill("a small red circle left of a large green square")
    page.get_by_role("button", name="Fill what is painted").click()
    page.locator("#changed").get_by_role("button", name="Save").nth(3).wait_for(timeout=60_000)
    assert page.get_by_role("alert").count() == 0
    shot(page, "change")
    # Its command and its curl draw it again, from the files that the page saves.
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the mask").click()
    download.value.save_as(tmp_path / "MASK.png")
    again = page.locator("#changed figure").nth(1)
    wanted = again.locator("img").get_attribute("src").partition(",")[2]
    assert by_command(copied(page, again, "Command"), model, tmp_path) == base64.b64decode(wanted)
    if shutil.which("curl"):
        words = shlex.split(copied(page, again, "curl"))
        answer = subprocess.run(words, cwd=tmp_path, capture_output=True, check=True, timeout=60).stdout
        assert json.loads(answer)["data"][0]["b64_json"] == wanted
    page.locator("#wish").fill("make the circle green")
    page.get_by_role("button", name="Follow the instruction").click()
    page.locator("#changed").get_by_role("button", name="Save").nth(3).wait_for(timeout=60_000)
    # A side is added: half a picture on the right unless said otherwise.
    width, height = (length for length in reversed(model.image_tokenizer.image_size))
    assert page.locator("#add-right").input_value() == str(width // 2)
    page.locator("#wish").fill(CAPTION)
    page.locator("#change-count").fill("2")
    page.get_by_role("button", name="Extend").click()
    page.locator("#changed").get_by_role("button", name="Save").nth(1).wait_for(timeout=60_000)
    sizes = page.locator("#changed img").evaluate_all("all => all.map((one) => [one.naturalWidth, one.naturalHeight])")
    assert sizes == [[width + width // 2, height]] * 2
    page.locator("#add-right").fill("0")
    page.get_by_role("button", name="Extend").click()
    page.get_by_text("nothing to extend: give left, right, top or bottom").wait_for()
    assert page.locator("#changed figure").count() == 0


def test_where_a_model_looked_is_drawn(opened: Callable[..., Any], pointing: UniTok) -> None:
    """Boxes over what it changed, and over what it was asked about."""
    page = opened(pointing)
    draw_one(page, seed=3)
    page.locator("#drawn").get_by_role("button", name="Change", exact=True).click()
    page.locator("#wish").fill("make the circle green")
    page.locator("#change-count").fill("2")
    page.get_by_role("button", name="Follow the instruction").click()
    page.locator("#changed").get_by_role("button", name="Save").nth(1).wait_for(timeout=60_000)
    shot(page, "edit")
    card = page.locator("#changed figure").first
    frames, toggle = card.locator(".boxes span"), card.get_by_role("button", name="Boxes", exact=True)
    assert frames.count() > 0 and card.get_by_text("after a look at [1] (").is_visible()
    around, first = card.locator("img").bounding_box(), frames.first.bounding_box()
    assert around["x"] - 1 <= first["x"] and first["y"] + first["height"] <= around["y"] + around["height"] + 20
    toggle.click()
    assert toggle.get_attribute("aria-pressed") == "false" and not frames.first.is_visible()
    with page.expect_download() as download:
        card.get_by_role("button", name="Save", exact=True).click()
    picture = Image.open(Path(download.value.path()))
    boxes = json.loads(picture.text["unitok"])["pointed"]["boxes"]  # type: ignore[attr-defined]
    assert len(boxes) == frames.count()
    # The drawn picture is asked about.
    page.get_by_role("tab", name="Draw").click()
    page.locator("#drawn").get_by_role("button", name="Ask", exact=True).click()
    page.locator("#asked[src^=data]").wait_for()
    question = "what colour is the square"
    page.locator("#question").fill(question)
    page.get_by_role("button", name="Ask", exact=True).last.click()
    page.locator("#answers p").wait_for(timeout=60_000)
    shot(page, "ask")
    source = decode(base64.b64decode(page.locator("#asked").get_attribute("src").partition(",")[2]))
    ((text, pointed),) = answers(pointing, source, [question])
    frames, around = page.locator("#boxes span"), page.locator("#asked").bounding_box()
    assert frames.count() == len(pointed["boxes"]) > 0
    for number, (left, top, _, _) in enumerate(pointed["boxes"]):
        place = frames.nth(number).bounding_box()
        assert place["x"] == pytest.approx(around["x"] + left * around["width"], abs=1)
        assert place["y"] == pytest.approx(around["y"] + top * around["height"], abs=1)
    said = page.locator("#answers p").first.text_content()
    assert said.startswith(f"{question}: ") and "after a look at [1] (" in said
    assert " ".join(text.split()) in " ".join(said.split())
