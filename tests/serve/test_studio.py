"""The studio: the page's files, and the page in a real browser (`make test-browser`).

    STUDIO_MODEL=runs/tasks/generator STUDIO_OTHER=runs/scales/generator STUDIO_RUN=runs/tasks/generator \
        STUDIO_SHOTS=docs/studio python -m pytest tests/serve/test_studio.py

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
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from unitok.model import UniTok
from unitok.sample.pipeline import draw
from unitok.sample.reading import ground
from unitok.sample.serving.api import Access
from unitok.sample.serving.page import FILES

CAPTION = "a small red circle left of a large blue square"
NAMES = (Path(os.environ.get("STUDIO_MODEL", "tiny")).name, Path(os.environ.get("STUDIO_OTHER", "other")).name)
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
        scripts = "".join(client.get(path).text for path in FILES if path.endswith(".js"))
        named = {f"/{name}" for name in re.findall(r'(?:src|href)="([^"#:]+)"', page.text)}
        named |= {f"/{name}" for name in re.findall(r'^import .*"\./([\w.]+)";$', scripts, re.MULTILINE)}
        assert named == FILES.keys() - {"/"}
        svg = "http://www.w3.org/2000/svg"  # a name, which nothing is loaded from
        assert not re.findall(r"https?://", page.text + client.get("/studio.css").text + scripts.replace(svg, ""))
        wanted = set(re.findall(r'\$\("([\w-]+)"\)', scripts))
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
def model(grounded: UniTok) -> UniTok:
    folder = os.environ.get("STUDIO_MODEL")
    return UniTok.from_pretrained(folder) if folder else grounded


@pytest.fixture(scope="module")
def other(make_model: Callable[..., UniTok]) -> UniTok:
    folder = os.environ.get("STUDIO_OTHER")
    return UniTok.from_pretrained(folder) if folder else make_model("next_scale", seed=1)


@pytest.fixture
def opened(browser: Any, model: UniTok, listen: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Opens the page in a new window, of a server of one model unless said otherwise."""
    with ExitStack() as stack:

        def page_of(one: UniTok | None = model, looks: dict[str, Any] | None = None, **server: Any) -> Any:
            listening = stack.enter_context(listen(one, context=2048, **{"names": NAMES, **server}))
            context = browser.new_context(**{"viewport": {"width": 1000, "height": 760}, **(looks or {})})
            stack.callback(context.close)
            page = context.new_page()
            page.troubles = []
            page.on("pageerror", lambda error: page.troubles.append(str(error)))
            stack.callback(lambda: pages.append(page))
            page.goto(listening.url)
            page.get_by_text(re.compile("pixels, learned|A training, and no model")).wait_for()
            page.server = listening
            return page

        pages: list[Any] = []
        yield page_of
    assert pages and [page.troubles for page in pages] == [[]] * len(pages)


@pytest.fixture
def page(opened: Callable[..., Any]) -> Any:
    return opened()


def shot(page: Any, name: str, whole: bool = True) -> None:
    folder = os.environ.get("STUDIO_SHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{folder}/{name}.png", full_page=whole)


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


def draw_one(page: Any, seed: int = 1) -> None:
    page.locator("#caption").fill(CAPTION)
    page.locator("#count").fill("1")
    page.locator("#seed").fill(str(seed))
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_role("button", name="Save", exact=True).wait_for(timeout=60_000)


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


def test_a_picture_is_asked_about(
    opened: Callable[..., Any],
    grounded: UniTok,
    png: Callable[..., io.BytesIO],
    picture: Callable[..., torch.Tensor],
) -> None:
    page = opened(grounded)
    page.get_by_role("tab", name="Ask").click()
    file = {"name": "a.png", "mimeType": "image/png", "buffer": png(picture()).getvalue()}
    page.locator("#ask-file").set_input_files(file)
    page.locator("#asked").wait_for()
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_text("Caption: ").wait_for(timeout=60_000)
    page.locator("#question").fill("how many?")
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_text("not question").wait_for()
    # Where things are.
    page.locator("#question").fill("the red circle")
    page.get_by_role("button", name="Find").click()
    page.get_by_text("the red circle: [1] (").wait_for(timeout=60_000)
    boxes = ground(grounded, picture(), "the red circle")
    frames = page.locator("#boxes span")
    assert frames.count() == len(boxes) > 0
    left, top, right, _ = boxes[0]
    around, frame = page.locator("#asked").bounding_box(), frames.first.bounding_box()
    assert frame["x"] == pytest.approx(around["x"] + left * around["width"], abs=1)
    assert frame["y"] == pytest.approx(around["y"] + top * around["height"], abs=1)
    assert frame["width"] >= (right - left) * around["width"] - 1


def test_codes_are_shown(page: Any, model: UniTok) -> None:
    draw_one(page)
    page.get_by_role("button", name="Look", exact=True).click(timeout=60_000)
    cells = page.locator("#codes button")
    cells.nth(model.layout.length - 1).wait_for(timeout=60_000)
    page.get_by_label("Show").select_option("entropies")
    cells.nth(9).click()
    page.get_by_text("It stands at").wait_for()
    assert "entropy" in (page.locator("#told-code").text_content() or "")
    shot(page, "look")
    page.get_by_label("Show").select_option("words")
    page.get_by_text('With "a" these codes are together').wait_for(timeout=60_000)
    page.locator("#word").select_option(label="red")
    page.get_by_text('With "red" these codes are together').wait_for()
    assert 'likelier with "red"' in (cells.nth(9).get_attribute("title") or "")
    shot(page, "words")
    page.get_by_label("Show").select_option("codes")
    page.get_by_text("different codes at").wait_for()


def test_a_picture_becomes_codes_and_back(
    opened: Callable[..., Any], other: UniTok, png: Callable[..., io.BytesIO], picture: Callable[..., torch.Tensor]
) -> None:
    page = opened(other, names=NAMES[::-1])  # several maps
    page.get_by_role("tab", name="Tokenizer").click()
    page.get_by_role("button", name="To codes and back").click()
    page.get_by_text("Choose a picture first.").wait_for()
    given = drawn(other) if os.environ.get("STUDIO_OTHER") else picture()
    # Dropped, not chosen.
    page.evaluate(
        """(bytes) => {
          const held = new DataTransfer();
          held.items.add(new File([new Uint8Array(bytes)], "a.png", {type: "image/png"}));
          document.getElementById("tokens").dispatchEvent(new DragEvent("drop", {dataTransfer: held}));
        }""",
        [*png(given).getvalue()],
    )
    page.get_by_text("PSNR ").wait_for(timeout=60_000)
    rows, columns = other.layout.scales[-1]
    assert page.locator("#tokens-codes button").count() == rows * columns
    page.locator("#first").fill("1")
    second = sum(down * across for down, across in other.layout.scales[:2])
    page.get_by_text(f"{second} of {other.layout.length}").wait_for()
    page.locator("#tokens-map").select_option("0")
    assert page.locator("#tokens-codes button").count() == 1
    page.locator("#tokens-map").select_option(str(len(other.layout.scales) - 1))
    shot(page, "tokenizer")


def drawn(model: UniTok) -> torch.Tensor:
    """A scene of the model's kind."""
    return draw(model, [CAPTION], seeds=[3])[0]


def test_a_training_is_watched(opened: Callable[..., Any], run: Path, png: Callable[..., io.BytesIO]) -> None:
    folder = Path(os.environ.get("STUDIO_RUN", run))
    page = opened(None, run=folder)
    assert page.get_by_role("tab").count() == 1 and page.get_by_role("tab", name="Watch").is_visible()
    page.locator("#plot polyline").wait_for()
    page.locator("#sample[src^=blob]").wait_for()
    shot(page, "watch")
    if folder != run:
        return
    page.get_by_text("run: step 40").wait_for()
    page.get_by_text("training (line): 2 at the last step, least 2 at step 40; validation (dots): 2.5").wait_for()
    page.get_by_text("step 40", exact=True).wait_for()
    # It goes on, and who looks at the newest sample sees the next one.
    (run / "samples" / "step-00000060.png").write_bytes(png(torch.zeros(3, 8, 8, dtype=torch.uint8)).getvalue())
    with (run / "log.jsonl").open("a") as log:
        log.write(json.dumps({"kind": "train", "step": 60, "loss": 1.5, "lr": 0.1}) + "\n")
    page.get_by_text("run: step 60").wait_for(timeout=10_000)
    page.get_by_text("step 60", exact=True).wait_for()
    page.locator("#curve").select_option("lr")
    page.get_by_text("lr; training (line): 0.1 at the last step").wait_for()
    page.locator("#sample-at").fill("0")
    page.get_by_text("step 20", exact=True).wait_for()
    page.get_by_alt_text("Samples of step 20").wait_for()


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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1000, 360])
def test_it_can_be_used_by_all(
    opened: Callable[..., Any],
    other: UniTok,
    run: Path,
    png: Callable[..., io.BytesIO],
    picture: Callable[..., torch.Tensor],
    scheme: str,
    width: int,
) -> None:
    """Labels, contrast, order: axe-core finds nothing in any part, and on a narrow screen nothing sticks out."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="make test-browser").Axe()
    page = opened(looks={"viewport": {"width": width, "height": 740}, "color_scheme": scheme}, other=other, run=run)
    draw_one(page)
    if (scheme, width) == ("dark", 360):
        shot(page, "phone", whole=False)
    page.get_by_role("button", name="Look", exact=True).click()
    page.locator("#codes button").first.wait_for(timeout=60_000)
    page.get_by_role("tab", name="Draw").click()
    page.get_by_role("button", name="Change", exact=True).click()
    page.locator("#easel").wait_for()
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
