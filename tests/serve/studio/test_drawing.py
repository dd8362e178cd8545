"""Pictures are drawn, compared, voted for and filled in, in a real browser."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from studio_page import CAPTION, NAMES, draw_one, shot

from unitok.model import UniTok


def test_pictures_appear_and_can_be_drawn_again(page: Any) -> None:
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


def chunks(png: bytes) -> Iterator[int]:
    """Where the chunks of a PNG file have their kind."""
    at = 8
    while at < len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        yield at + 4
        at += 12 + size


def test_a_part_is_drawn_anew(page: Any, model: UniTok) -> None:
    draw_one(page)
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
