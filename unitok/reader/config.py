"""What the reader of pictures can be told. Free of torch, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from tokenizers_vq.errors import Problems, shown

READER = "reader"
"""The port of pictures."""
KINDS = ("latents", "embedded", "hf")
CONNECTORS = ("linear", "mlp", "qformer", "perceiver")
FUSIONS = ("sequence", "cross_attention", "experts")
MOST_TILES = 8
CHOICES = "latents, embedded, or hf: and a folder, a config.json or a name of the hub"
HF = "hf:"


def _check(reader: ReaderSettings | ReaderConfig) -> Problems:
    problems = Problems()
    for name, value, choices in (("connector", reader.connector, CONNECTORS), ("fusion", reader.fusion, FUSIONS)):
        problems.check(value in choices, f"reader.{name} is {shown(value)}: choose one of {', '.join(choices)}")
    problems.check_range("reader.queries", reader.queries, 1, 2**14)
    problems.check_range("reader.depth", reader.depth, 1, 256)
    problems.check_range("reader.tiles", reader.tiles, 1, MOST_TILES)
    problems.check_range("reader.every", reader.every, 1, 1024)
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
    tiles: int = 1
    """n above 1: a picture is read whole and in n x n tiles, each in the size of the encoder (LLaVA-1.5-HD,
    arXiv:2310.03744), and takes 1 + n * n times the positions."""
    fusion: Literal["sequence", "cross_attention", "experts"] = "sequence"
    """How the trunk takes pictures in. sequence: among the texts. cross_attention: by gated layers before its blocks,
    which begin as nothing (Flamingo, arXiv:2204.14198). experts: among the texts, by weights of their own in every
    block, which begin as copies (CogVLM, arXiv:2311.03079). By both of these a text alone stays what it is to a trunk
    that is frozen: --trainable 'ports.*,trunk.*.gated.*', or 'ports.*,trunk.*.expert.*'."""
    every: int = 1
    """Of cross_attention: blocks from one gated layer to the next."""

    def __post_init__(self) -> None:
        problems, encoder = _check(self), self.encoder
        known = encoder is None or encoder in KINDS[:-1] or (encoder.startswith(HF) and len(encoder) > len(HF))
        problems.check(known, f"reader.encoder is {shown(encoder)}: choose {CHOICES}")
        for field in fields(self)[1:]:
            problems.check(
                encoder is not None or getattr(self, field.name) == field.default,
                f"reader.{field.name} says how an encoder is read: choose one with --reader.encoder ({CHOICES})",
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
    tiles: int = 1
    fusion: Literal["sequence", "cross_attention", "experts"] = "sequence"
    every: int = 1

    def __post_init__(self) -> None:
        problems = _check(self)
        problems.check(self.encoder in KINDS, f"reader.encoder is {shown(self.encoder)}: restore the file")
        problems.check(
            (self.vision is not None) == (self.encoder == KINDS[-1]),
            "reader.vision describes an hf encoder, and no other: restore the file",
        )
        problems.raise_if_any()

    def to_json(self) -> dict[str, Any]:
        """Without what came later, where that is not used: then fingerprints are those of models from before."""
        data = asdict(self)
        later = {"tiles": 1, "fusion": FUSIONS[0], "every": 1}
        return {name: value for name, value in data.items() if name not in later or value != later[name]}
