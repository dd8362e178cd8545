"""What the page shows of pictures, of a tokenizer and of a training, in a real browser."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from studio_page import CAPTION, NAMES, draw_one, shot

from unitok.model import UniTok
from unitok.sample.pipeline import draw
from unitok.sample.reading import ground


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
    patches = page.locator("#look .patches canvas")
    equals = page.locator("#codes button.same").count()
    assert patches.count() == min(equals, 12) and patches.first.get_attribute("aria-label").endswith("row 2, column 2")
    (height, width), (rows, columns) = model.image_tokenizer.image_size, model.layout.scales[-1]
    assert patches.first.evaluate("one => [one.width, one.height]") == [width // columns, height // rows]
    assert "entropy" in (page.locator("#told-code").text_content() or "")
    shot(page, "look")
    page.get_by_label("Show").select_option("words")
    page.get_by_text('With "a" these codes are together').wait_for(timeout=60_000)
    page.locator("#word").select_option(label="red")
    page.get_by_text('With "red" these codes are together').wait_for()
    assert 'likelier with "red"' in (cells.nth(9).get_attribute("title") or "")
    shot(page, "words")
    page.get_by_label("Show").select_option("attention")
    page.get_by_text("% of its attention, the mean").wait_for(timeout=60_000)
    page.locator("#word").select_option(label="red")
    page.get_by_text('the model gives "red"').wait_for()
    assert 'of its attention on "red"' in (cells.nth(9).get_attribute("title") or "")
    shot(page, "attention")
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


def test_an_image_tokenizer_alone_has_its_tab(
    opened: Callable[..., Any], other: UniTok, png: Callable[..., io.BytesIO], picture: Callable[..., torch.Tensor]
) -> None:
    page = opened(other.image_tokenizer)
    assert page.get_by_role("tab").count() == 1 and page.get_by_role("tab", name="Tokenizer").is_visible()
    file = {"name": "a.png", "mimeType": "image/png", "buffer": png(picture()).getvalue()}
    page.locator("#tokens input[type=file]").first.set_input_files(file)
    page.get_by_role("button", name="To codes and back").click()
    page.get_by_text("PSNR ").wait_for(timeout=60_000)


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


def test_a_document_goes_on_with_boxes_over_its_pictures(opened: Callable[..., Any], pointing: UniTok) -> None:
    page = opened(pointing)
    page.get_by_role("tab", name="Tell").click()
    page.locator("#beginning").fill("a small red circle")
    page.locator("#most").fill("2")
    page.locator("#tell-seed").fill("1")
    with page.expect_response("**/v1/chat/completions", timeout=60_000) as answer:
        page.get_by_role("button", name="Go on").click()
    parts = answer.value.json()["choices"][0]["message"]["parts"]
    page.locator("#told > *").first.wait_for()
    pictures, pending = [], 0
    for part in parts:
        if part["type"] == "text":
            pending += sum(not isinstance(one, str) for one in part.get("named", ()))
        else:
            pictures.append(pending)
            pending = 0
    cards = page.locator("#told figure")
    assert [cards.nth(at).locator(".boxes span").count() for at in range(cards.count())] == pictures
    assert "a small red circle" in (page.locator("#told").text_content() or "")
    assert any(pictures) or not os.environ.get("STUDIO_MODEL")
    shot(page, "tell")
