"""The page: its files, keys, wrong settings, and whether all can use it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from studio_page import CAPTION, draw_one, shot

from unitok.model import UniTok
from unitok.sample.serving.api import Access
from unitok.sample.serving.page import FILES


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
        scripts = "".join(client.get(path).text for path in FILES if path.endswith(".js"))
        named = {f"/{name}" for name in re.findall(r'(?:src|href)="([^"#:]+)"', page.text)}
        named |= {f"/{name}" for name in re.findall(r'^import .*"\./([\w.]+)";$', scripts, re.MULTILINE)}
        assert named == FILES.keys() - {"/"}
        svg = "http://www.w3.org/2000/svg"  # a name, which nothing is loaded from
        assert not re.findall(r"https?://", page.text + client.get("/studio.css").text + scripts.replace(svg, ""))
        wanted = set(re.findall(r'\$\("([\w-]+)"\)', scripts))
        assert wanted <= set(re.findall(r'id="([\w-]+)"', page.text))


def test_keys_lead_through_the_tabs(page: Any) -> None:
    page.get_by_role("tab", name="Draw").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("tab", name="Compare").get_attribute("aria-selected") == "true"
    assert page.get_by_role("tabpanel").count() == 1
    page.keyboard.press("End")
    last = page.get_by_role("tab", selected=True)
    assert last.evaluate("tab => tab === [...document.querySelectorAll('[role=tab]:not([hidden])')].at(-1)")
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("tab", name="Draw").get_attribute("aria-selected") == "true"


def test_wrong_settings_and_a_server_that_is_gone_are_said(page: Any) -> None:
    page.locator("#caption").fill(CAPTION)
    page.get_by_text("Settings").first.click()
    page.locator("#settings [data-setting=top_p]").fill("7")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text("top_p is 7").wait_for()
    assert page.locator("#drawn figure").count() == 0
    page.locator("#settings [data-setting=top_p]").fill("")
    page.route("**/v1/**", lambda route: route.abort())
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text("The server does not answer. Start it again").wait_for()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1000), ("dark", 360)])
def test_it_can_be_used_by_all(
    opened: Callable[..., Any],
    pointing: UniTok,
    other: UniTok,
    run: Path,
    png: Callable[..., io.BytesIO],
    picture: Callable[..., torch.Tensor],
    scheme: str,
    width: int,
) -> None:
    """Labels, contrast, order: axe-core finds nothing in any part, and on a narrow screen nothing sticks out."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="make test-browser").Axe()
    page = opened(
        pointing, looks={"viewport": {"width": width, "height": 740}, "color_scheme": scheme}, other=other, run=run
    )
    draw_one(page)
    if (scheme, width) == ("dark", 360):
        shot(page, "phone", whole=False)
    page.get_by_role("button", name="Look", exact=True).click()
    page.locator("#codes button").first.click(timeout=60_000)
    page.get_by_role("tab", name="Draw").click()
    page.get_by_role("button", name="Change", exact=True).click()
    page.locator("#easel").wait_for()
    page.locator("#wish").fill("make the circle green")
    page.locator("#change-count").fill("1")
    page.get_by_role("button", name="Follow the instruction").click()
    page.locator("#changed .boxes span").first.wait_for(timeout=60_000)
    page.get_by_role("tab", name="Tokenizer").click()
    file = {"name": "a.png", "mimeType": "image/png", "buffer": png(picture()).getvalue()}
    page.locator("#tokens-file").set_input_files(file)
    page.get_by_text("PSNR ").wait_for(timeout=60_000)
    page.get_by_role("tab", name="Compare").click()
    page.locator("#compare-caption").fill(CAPTION)
    page.locator("#compare-count").fill("1")
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_role("button", name="Better").nth(1).click(timeout=60_000)
    for tab in page.get_by_role("tab").all():
        tab.click()
        found = axe.run(page)
        assert found.violations_count == 0, f"{tab.text_content()}: {found.generate_report()}"
        inner, outer = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert inner <= outer, f"{tab.text_content()}: nothing sticks out"


def test_a_key_is_asked_for(browser: Any, listen: Callable[..., Any], model: UniTok) -> None:
    with listen(model, Access(keys=["secret"])) as server:
        page = browser.new_page()
        page.goto(server.url)
        key, use = page.get_by_label("This server asks for a key"), page.get_by_role("button", name="Use it")
        key.fill("wrong")
        use.click()
        page.get_by_text("send it as Authorization: Bearer KEY").wait_for()
        key.fill("secret")
        use.click()
        page.get_by_text("pixels, learned").wait_for()
        assert not key.is_visible() and page.get_by_role("alert").count() == 0
        draw_one(page)
        page.close()


def test_drawing_can_be_stopped(page: Any, slowly: None, wait_until: Callable[[Callable[[], bool]], None]) -> None:
    page.locator("#caption").fill(CAPTION)
    page.locator("#count").fill("16")
    draws = page.get_by_role("button", name="Draw", exact=True)
    draws.click()
    page.get_by_role("progressbar").first.wait_for()
    page.get_by_role("button", name="Stop").first.click()
    page.wait_for_function("!document.querySelector('#draw progress')")
    assert draws.is_enabled() and page.get_by_role("alert").count() == 0
    wait_until(lambda: page.server.parts.worker.open == 0)
    draw_one(page)
