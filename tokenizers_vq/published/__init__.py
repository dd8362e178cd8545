"""Published checkpoints: read with their authors' names, checked, and turned into tokenizers like any other."""

from __future__ import annotations

from .load import PUBLISHED, load_published

__all__ = ["PUBLISHED", "load_published"]
