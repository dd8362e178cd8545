"""What the tests of the studio share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

CAPTION = "a small red circle left of a large blue square"
NAMES = (Path(os.environ.get("STUDIO_MODEL", "tiny")).name, Path(os.environ.get("STUDIO_OTHER", "other")).name)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def shot(page: Any, name: str, whole: bool = True) -> None:
    folder = os.environ.get("STUDIO_SHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{folder}/{name}.png", full_page=whole)


def draw_one(page: Any, seed: int = 1) -> None:
    page.locator("#caption").fill(CAPTION)
    page.locator("#count").fill("1")
    page.locator("#seed").fill(str(seed))
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_role("button", name="Save", exact=True).wait_for(timeout=60_000)
