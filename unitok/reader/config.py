"""What the reader of pictures can be told. Free of torch, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tokenizers_vq.errors import Problems, shown

READER = "reader"
"""The port of pictures."""
KINDS = ("latents", "embedded", "hf")
CONNECTORS = ("linear", "mlp", "qformer", "perceiver")
CHOICES = "latents, embedded, or hf: and a folder, a config.json or a name of the hub"
HF = "hf:"


def _check(connector: object, queries: int, depth: int) -> Problems:
    problems = Problems()
    problems.check(
        connector in CONNECTORS, f"reader.connector is {shown(connector)}: choose one of {', '.join(CONNECTORS)}"
    )
    problems.check_range("reader.queries", queries, 1, 2**14)
    problems.check_range("reader.depth", depth, 1, 256)
    return problems


@dataclass(frozen=True, kw_only=True)
class ReaderSettings:
    """Pictures that are given are read by a vision encoder and a connector (LLaVA, arXiv:2304.08485; Janus, 2410.13848)
    in place of their codes. Pictures that are drawn stay codes."""

    encoder: str | None = None
    """null = pictures are read as codes. latents: what the image tokenizer sees before it chooses codes; embedded: the
    small network of this repository; hf:NAME: a CLIP, SigLIP or DINOv2 model, as a folder, as a config.json alone for
    fresh weights, or as owner/name on the hub. Its weights stay as they are, unless --trainable names them
    ('ports.reader.encoder.*')."""
    connector: Literal["linear", "mlp", "qformer", "perceiver"] = "mlp"
    """linear or mlp (two layers): a position for each feature. qformer (BLIP-2, arXiv:2301.12597) or perceiver
    (Flamingo, arXiv:2204.14198): learned queries read the features, and each is a position."""
    queries: int = 32
    """Of qformer and perceiver."""
    depth: int = 2
    """Blocks of qformer and perceiver."""

    def __post_init__(self) -> None:
        problems, encoder = _check(self.connector, self.queries, self.depth), self.encoder
        known = encoder is None or encoder in KINDS[:-1] or (encoder.startswith(HF) and len(encoder) > len(HF))
        problems.check(known, f"reader.encoder is {shown(encoder)}: choose {CHOICES}")
        problems.check(
            encoder is not None or (self.connector, self.queries, self.depth) == ("mlp", 32, 2),
            f"reader.connector says how an encoder is read: choose one with --reader.encoder ({CHOICES})",
        )
        problems.raise_if_any()


NO_READER = ReaderSettings()


@dataclass(frozen=True, kw_only=True)
class ReaderConfig:
    """What `config.json` of a model says of its reader."""

    encoder: Literal["latents", "embedded", "hf"]
    connector: Literal["linear", "mlp", "qformer", "perceiver"]
    queries: int = 32
    depth: int = 2
    vision: dict[str, Any] | None = None
    """Of an hf encoder: what builds it again, as `tokenizers_vq.networks.vision` writes it."""

    def __post_init__(self) -> None:
        problems = _check(self.connector, self.queries, self.depth)
        problems.check(self.encoder in KINDS, f"reader.encoder is {shown(self.encoder)}: restore the file")
        problems.check(
            (self.vision is not None) == (self.encoder == KINDS[-1]),
            "reader.vision describes an hf encoder, and no other: restore the file",
        )
        problems.raise_if_any()
