"""A folder of each family of language models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from language_models import FAMILIES, save


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Family -> (folder, the authors' model)."""
    found = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp(family)
        found[family] = folder, save(family, folder)
    return found
