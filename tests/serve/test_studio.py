"""The studio: the page's files, and the page in a real browser (`make test-browser`).

    STUDIO_MODEL=runs/tasks/generator STUDIO_SHOTS=docs/studio python -m pytest tests/serve/test_studio.py

also writes the pictures of docs/studio.md.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from unitok.model import UniTok
from unitok.sample.serving.api import Access
from unitok.sample.serving.page import FILES

CAPTION = "a small red circle left of a large blue square"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def test_the_page_needs_no_key_and_says_nothing(make_model: Callable[..., UniTok], serve: Callable[..., Any]) -> None:
    with serve(make_model(), Access(keys=["secret"])) as (client, _):
        assert client.get("/v1/models").status_code == 401
        page = client.get("/")
        assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
        for path in FILES:
            answer = client.get(path)
            assert answer.status_code == 200
            assert "script-src 'self'" in answer.headers["content-security-policy"]
            assert "tiny" not in answer.text
        # Nothing comes from elsewhere, and nothing is named that is not there.
        named = {f"/{name}" for name in re.findall(r'(?:src|href)="([^"#:]+)"', page.text)}
        assert named == FILES.keys() - {"/"}
        assert not re.findall(r"https?://", page.text + client.get("/studio.css").text)
        wanted = set(re.findall(r'\$\("([\w-]+)"\)', client.get("/studio.js").text))
        assert wanted <= set(re.findall(r'id="([\w-]+)"', page.text))


# --- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: make test-browser")
    if CHROMIUM is None:
        pytest.skip("needs a browser: chromium or google-chrome on the PATH")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def model(make_model: Callable[..., UniTok]) -> UniTok:
    folder = os.environ.get("STUDIO_MODEL")
    if folder:
        return UniTok.from_pretrained(folder)
    made = make_model()
    made.config = type(made.config)(**{**vars(made.config), "tasks": ("text_to_image", "image_to_text", "edit")})
    return made


@pytest.fixture
def page(browser: Any, model: UniTok, listen: Callable[..., Any]) -> Iterator[Any]:
    with listen(model, context=2048) as server:
        opened = browser.new_page(viewport={"width": 1000, "height": 760})
        opened.troubles = []
        opened.on("pageerror", lambda error: opened.troubles.append(str(error)))
        opened.goto(server.url)
        opened.get_by_text("pixels, learned").wait_for()
        opened.server = server
        yield opened
        assert opened.troubles == []
        opened.close()


def shot(page: Any, name: str, whole: bool = True) -> None:
    folder = os.environ.get("STUDIO_SHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{folder}/{name}.png", full_page=whole)


def test_pictures_appear_and_can_be_drawn_again(page: Any, tmp_path: Path) -> None:
    page.get_by_label("Caption").first.fill(CAPTION)
    page.get_by_label("Seed").first.fill("3")
    page.get_by_label("beside it without guidance").check()
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_role("progressbar").first.wait_for()
    saves = page.get_by_role("button", name="Save", exact=True)
    saves.nth(7).wait_for(timeout=60_000)
    page.get_by_role("button", name="Better").first.click()
    shot(page, "draw")
    with page.expect_download() as download:
        saves.first.click()
    data = Path(download.value.path()).read_bytes()
    picture = Image.open(io.BytesIO(data))
    record = json.loads(picture.text["unitok"])  # type: ignore[attr-defined]
    assert record["caption"] == CAPTION and record["seed"] == 3 and picture.size[0] >= 32
    kinds = [data[at : at + 4] for at in chunks(data)]
    assert kinds[0] == b"IHDR" and kinds[-1] == b"IEND"
    with page.expect_download() as download:
        page.get_by_role("button", name="Save votes").click()
    (vote,) = Path(download.value.path()).read_text().splitlines()
    assert json.loads(vote)["better"]["settings"]["guidance"] != json.loads(vote)["worse"]["settings"]["guidance"] == 1


def chunks(png: bytes) -> Iterator[int]:
    """Where the chunks of a PNG file have their kind."""
    at = 8
    while at < len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        yield at + 4
        at += 12 + size


def test_a_part_is_drawn_anew(page: Any) -> None:
    page.get_by_label("Caption").first.fill(CAPTION)
    page.get_by_label("Pictures").first.fill("1")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_role("button", name="Change", exact=True).click(timeout=60_000)
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


def test_a_picture_is_asked_about(
    page: Any, png: Callable[..., io.BytesIO], picture: Callable[..., torch.Tensor]
) -> None:
    page.get_by_role("tab", name="Ask").click()
    file = {"name": "a.png", "mimeType": "image/png", "buffer": png(picture()).getvalue()}
    page.locator("#ask-file").set_input_files(file)
    page.locator("#asked").wait_for()
    page.locator("#ask-form").get_by_role("button", name="Ask").click()
    page.get_by_text("Caption: ").wait_for(timeout=60_000)
    page.locator("#question").fill("how many?")
    page.locator("#ask-form").get_by_role("button", name="Ask").click()
    if "question" in page.server.parts.service.model.config.tasks:
        page.get_by_text("how many?: ").wait_for(timeout=60_000)
    else:
        page.get_by_text("not question").wait_for()


def test_codes_are_shown(page: Any, model: UniTok) -> None:
    page.get_by_label("Caption").first.fill(CAPTION)
    page.get_by_label("Pictures").first.fill("1")
    page.get_by_label("Seed").first.fill("1")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_role("button", name="Look", exact=True).click(timeout=60_000)
    cells = page.locator("#codes button")
    cells.nth(model.layout.length - 1).wait_for(timeout=60_000)
    page.get_by_label("Show").select_option("entropies")
    cells.nth(9).click()
    page.get_by_text("It stands at").wait_for()
    assert "entropy" in (page.locator("#told-code").text_content() or "")
    shot(page, "look")


def test_keys_lead_through_the_tabs(page: Any) -> None:
    page.get_by_role("tab", name="Draw").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("tab", name="Change").get_attribute("aria-selected") == "true"
    assert page.get_by_role("tabpanel").count() == 1


def test_wrong_settings_and_a_server_that_is_gone_are_said(page: Any) -> None:
    page.get_by_label("Caption").first.fill(CAPTION)
    page.get_by_text("Settings").first.click()
    page.locator("[data-setting=top_p]").fill("7")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text("top_p is 7").wait_for()
    assert page.locator("#drawn figure").count() == 0
    page.locator("[data-setting=top_p]").fill("")
    page.route("**/v1/**", lambda route: route.abort())
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text("The server does not answer. Start it again").wait_for()


def test_a_narrow_dark_screen(browser: Any, model: UniTok, listen: Callable[..., Any]) -> None:
    with listen(model, context=2048) as server:
        context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme="dark")
        page = context.new_page()
        page.goto(server.url)
        page.get_by_text("pixels, learned").wait_for()
        page.get_by_label("Caption").first.fill(CAPTION)
        page.get_by_role("button", name="Draw", exact=True).click()
        page.get_by_role("button", name="Save", exact=True).nth(3).wait_for(timeout=60_000)
        inner, outer = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert inner <= outer, "nothing sticks out"
        shot(page, "phone", whole=False)
        context.close()
