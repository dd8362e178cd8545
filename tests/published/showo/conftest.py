"""A tiny Show-o in its authors' layout, and the same as a model of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unitok.importing import import_generator
from unitok.model import UniTok

from ..tiny import tokenizer
from .showo_model import tiny_showo


@pytest.fixture(scope="package")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """(the authors' network, its folder)."""
    folder = tmp_path_factory.mktemp("showo")
    return tiny_showo(folder), folder


@pytest.fixture(scope="package")
def model(theirs: tuple[Any, Path]) -> UniTok:
    return import_generator("showo", theirs[1], tokenizer())
