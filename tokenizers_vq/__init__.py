"""tokenizers_vq: image tokenizers, pixels <-> discrete codes. Names are loaded when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import ImageTokenizer, TokenizerOutput, build_tokenizer, load_tokenizer
    from .config import TOKENIZER_PRESETS, ConvVQConfig, OpenMagvit2Config
    from .config_base import TokenizerConfig
    from .errors import UserError
    from .families.query_config import QueryVQConfig
    from .families.seed_config import SeedConfig
    from .layout import Layout
    from .losses.config import LossConfig
    from .networks.vit_config import ViTConfig
    from .published import PUBLISHED, load_published
    from .quantizers.config import BSQ, FSQ, IBQ, LFQ, VQ, Cosine, Gumbel, MultiVQ, QuantizerConfig, SimVQ
    from .usage import CodebookUsage

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
    "QueryVQConfig": "families.query_config",
    "load_published": "published",
    "SeedConfig": "families.seed_config",
    "LossConfig": "losses.config",
    "QuantizerConfig": "quantizers.config",
    "VQ": "quantizers.config",
    "Cosine": "quantizers.config",
    "SimVQ": "quantizers.config",
    "FSQ": "quantizers.config",
    "LFQ": "quantizers.config",
    "BSQ": "quantizers.config",
    "IBQ": "quantizers.config",
    "Gumbel": "quantizers.config",
    "MultiVQ": "quantizers.config",
    "UserError": "errors",
    "Layout": "layout",
    "CodebookUsage": "usage",
    "ViTConfig": "networks.vit_config",
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
