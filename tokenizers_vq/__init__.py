"""tokenizers_vq: image tokenizers, pixels <-> discrete codes. Names are loaded when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import ImageTokenizer, TokenizerOutput, build_tokenizer, load_tokenizer
    from .config import TOKENIZER_PRESETS, ConvVQConfig, OpenMagvit2Config
    from .config_base import TokenizerConfig
    from .errors import UserError
    from .layout import Layout
    from .loss_config import LossConfig
    from .published import PUBLISHED, load_published
    from .quantizer_config import BSQ, FSQ, IBQ, LFQ, VQ, Cosine, Gumbel, MultiVQ, QuantizerConfig, SimVQ
    from .query_config import QueryVQConfig
    from .seed_config import SeedConfig
    from .usage import CodebookUsage
    from .vit_config import ViTConfig

_HOMES = {
    "ImageTokenizer": "base",
    "TokenizerOutput": "base",
    "build_tokenizer": "base",
    "load_tokenizer": "base",
    "TOKENIZER_PRESETS": "config",
    "ConvVQConfig": "config",
    "OpenMagvit2Config": "config",
    "TokenizerConfig": "config_base",
    "PUBLISHED": "published",
    "QueryVQConfig": "query_config",
    "load_published": "published",
    "SeedConfig": "seed_config",
    "LossConfig": "loss_config",
    "QuantizerConfig": "quantizer_config",
    "VQ": "quantizer_config",
    "Cosine": "quantizer_config",
    "SimVQ": "quantizer_config",
    "FSQ": "quantizer_config",
    "LFQ": "quantizer_config",
    "BSQ": "quantizer_config",
    "IBQ": "quantizer_config",
    "Gumbel": "quantizer_config",
    "MultiVQ": "quantizer_config",
    "UserError": "errors",
    "Layout": "layout",
    "CodebookUsage": "usage",
    "ViTConfig": "vit_config",
}

__all__ = [
    "BSQ",
    "FSQ",
    "IBQ",
    "LFQ",
    "PUBLISHED",
    "TOKENIZER_PRESETS",
    "VQ",
    "CodebookUsage",
    "ConvVQConfig",
    "Cosine",
    "Gumbel",
    "ImageTokenizer",
    "Layout",
    "LossConfig",
    "MultiVQ",
    "OpenMagvit2Config",
    "QuantizerConfig",
    "QueryVQConfig",
    "SeedConfig",
    "SimVQ",
    "TokenizerConfig",
    "TokenizerOutput",
    "UserError",
    "ViTConfig",
    "build_tokenizer",
    "load_published",
    "load_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
