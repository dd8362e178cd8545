"""What tests do to models: weights that show mistakes, and passes that are counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unitok.model import UniTok


def stir(model: UniTok) -> UniTok:
    """Fresh weights predict nearly the same everywhere; larger ones make a wrong mask or place visible."""
    for parameter in model.parameters():
        if parameter.ndim == 2 and parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def count_passes(model: UniTok, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(rows, positions) of every pass of the trunk."""
    passes: list[tuple[int, int]] = []
    hidden = model.hidden

    def counted(ids: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        passes.append(tuple(ids.shape))  # type: ignore[arg-type]
        return hidden(ids, *rest, **named)

    monkeypatch.setattr(model, "hidden", counted)
    return passes
