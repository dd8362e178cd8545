"""The studio in a real browser (`make test-browser`).

    STUDIO_MODEL=runs/tasks/generator STUDIO_OTHER=runs/scales/generator STUDIO_RUN=runs/tasks/generator \
        STUDIO_SHOTS=docs/studio python -m pytest tests/serve/studio

also writes the pictures of docs/studio.md. The model must be one that points, the other one of several maps.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from copy import copy
from dataclasses import replace
from typing import Any

import pytest
from studio_page import CHROMIUM, NAMES

from tokenizers_vq.base import ImageTokenizer
from unitok.model import UniTok
from unitok.sample.engine import Engine


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: make test-browser")
    if CHROMIUM is None:
        pytest.skip("needs a browser: chromium or google-chrome on the PATH")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes as long as with a model of some size: so its progress can be seen, and it can be stopped."""
    step = Engine.step

    def slow(engine: Engine) -> Any:
        time.sleep(0.03)
        return step(engine)

    monkeypatch.setattr(Engine, "step", slow)


@pytest.fixture(scope="module")
def model(grounded: UniTok) -> UniTok:
    folder = os.environ.get("STUDIO_MODEL")
    return UniTok.from_pretrained(folder) if folder else grounded


@pytest.fixture(scope="module")
def pointing(grounded: UniTok) -> UniTok:
    """A model that points before it answers and draws."""
    folder = os.environ.get("STUDIO_MODEL")
    if folder:
        return UniTok.from_pretrained(folder)
    model = copy(grounded)
    tasks = ("text_to_image", "image_to_text", "pointed_question", "pointed_edit", "ground", "interleaved")
    model.config = replace(model.config, tasks=tasks)
    return model


@pytest.fixture(scope="module")
def other(make_model: Callable[..., UniTok]) -> UniTok:
    folder = os.environ.get("STUDIO_OTHER")
    return UniTok.from_pretrained(folder) if folder else make_model("next_scale", seed=1)


@pytest.fixture
def opened(browser: Any, model: UniTok, listen: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Opens the page in a new window, of a server of one model unless said otherwise."""
    with ExitStack() as stack:

        def page_of(
            one: UniTok | ImageTokenizer | None = model, looks: dict[str, Any] | None = None, **server: Any
        ) -> Any:
            listening = stack.enter_context(listen(one, context=2048, **{"names": NAMES, **server}))
            context = browser.new_context(**{"viewport": {"width": 1000, "height": 760}, **(looks or {})})
            stack.callback(context.close)
            page = context.new_page()
            page.troubles = []
            page.on("pageerror", lambda error: page.troubles.append(str(error)))
            stack.callback(lambda: pages.append(page))
            page.goto(listening.url)
            page.get_by_text(re.compile("pixels, learned|image tokenizer|A training, and no model")).wait_for()
            page.server = listening
            return page

        pages: list[Any] = []
        yield page_of
    assert pages and [page.troubles for page in pages] == [[]] * len(pages)


@pytest.fixture
def page(opened: Callable[..., Any]) -> Any:
    return opened()
