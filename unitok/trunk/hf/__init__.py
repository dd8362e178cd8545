"""What a causal language model of transformers says about itself, where it is the trunk of a model. Free of torch, and
of transformers until there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tokenizers_vq.errors import Problems, UserError, shown

from ..traits import Traits

if TYPE_CHECKING:
    from ..base import Trunk

FEWEST_PAIRS = 4
"""Rotary pairs of a head that hold order, row and column."""


SLIDING = "sliding_attention"
LAYERS = (SLIDING, "full_attention")
"""How transformers calls the layers that it may have."""


@dataclass(frozen=True)
class Parts:
    """How the authors of a language model call its parts."""

    embedding: str = "embed_tokens"
    layers: str = "layers"
    norm: str = "norm"
    positions: str = ""
    """A table of positions, where they are learned; else they are rotary."""
    head_bias: bool = False
    scaled: bool = False
    """Whether vectors of ids are multiplied by the root of the width."""


LANGUAGE_MODELS = {
    "llama": Parts(),
    "mistral": Parts(),
    "qwen2": Parts(),
    "qwen3": Parts(),
    "phi": Parts(norm="final_layernorm", head_bias=True),
    "gemma": Parts(scaled=True),
    "gemma3_text": Parts(scaled=True),
    "gpt2": Parts(embedding="wte", layers="h", norm="ln_f", positions="wpe"),
}
"""`model_type` of transformers -> its parts."""


@dataclass
class HFTrunk(Traits):
    """A causal language model of transformers; it stands whole in `config.json`."""

    kind: ClassVar[str] = "hf"
    captions: ClassVar[Literal["text"]] = "text"
    state_width: ClassVar[int] = 0
    wording: ClassVar[str] = "{}"
    left_out: ClassVar[str] = ""

    language_model: dict[str, Any]
    """Its own configuration, by its authors' names."""
    attention: Literal["sdpa", "flex", "xformers"] = "sdpa"
    """Attention backend; flex and xformers need a CUDA device."""

    def __post_init__(self) -> None:
        self.read = _read(self.language_model)
        """The same, as transformers reads it."""
        problems = Problems()
        for name, value, most in (
            ("hidden_size", self.width, 2**16),
            ("num_hidden_layers", self.depth, 1024),
            ("num_attention_heads", self.heads, 2**12),
            ("num_key_value_heads", self.key_heads, 2**12),
            ("vocab_size", self.read.vocab_size, 2**22),
        ):
            problems.check_range(f"the language model's {name}", value, 1, most)
        problems.raise_if_any()
        problems.check(
            self.heads % self.key_heads == 0 and 1 <= self.head_size <= 2**12,
            f"the language model has {self.heads} heads of {self.head_size} numbers and {self.key_heads} key heads: "
            "restore its config.json",
        )
        parts = [rope.get("partial_rotary_factor", 1.0) for rope in self._ropes()]
        turned = [int(self.head_size * part) // 2 if isinstance(part, float | int) else 0 for part in parts]
        problems.check(
            bool(self.parts.positions) or min(turned) >= FEWEST_PAIRS,
            f"the language model turns {min(turned)} pairs of each head: it needs {FEWEST_PAIRS} for rows and columns",
        )
        for kind in sorted({rope.get("rope_type", "default") for rope in self._ropes()} & {"dynamic", "longrope"}):
            problems.check(
                False,
                f"the language model's rotary positions are of type {kind!r}, which change with the length of a text: "
                "take a model of another type",
            )
        others = sorted({str(kind) for kind in self._layers} - {*LAYERS})
        problems.check(
            not others, f"the language model has layers of {', '.join(others)}: taken are {', '.join(LAYERS)}"
        )
        for window in {window for window in self.windows if window is not None}:
            problems.check_range("the language model's sliding_window", window, 1, 2**31)
            problems.check(
                self.attention != "flex", "the language model has layers with a window, which flex lacks: choose sdpa"
            )
        problems.check(
            not getattr(self.read, "use_bidirectional_attention", False),
            "the language model sees texts in both directions, so it cannot write them: take a causal one",
        )
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            problems.check(
                not getattr(self.read, name, None),
                f"the language model has {name}, which is not known here: take another",
            )
        problems.raise_if_any()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> HFTrunk:
        """The trunk of a config.json of transformers, its values settled, without those that say nothing about it.

        Raises:
            UserError: a type of models that is not known here, or values that transformers refuses.
        """
        from transformers import PretrainedConfig

        read = _read(values)
        known = type(read)().to_dict().keys() - PretrainedConfig().to_dict().keys() | {"model_type"}
        return cls({name: value for name, value in read.to_dict().items() if name in known and name[0] != "_"})

    @property
    def parts(self) -> Parts:
        return LANGUAGE_MODELS[self.read.model_type]

    @property
    def width(self) -> int:
        return self.read.hidden_size

    @property
    def depth(self) -> int:
        return self.read.num_hidden_layers

    @property
    def heads(self) -> int:
        return self.read.num_attention_heads

    @property
    def key_heads(self) -> int:
        return getattr(self.read, "num_key_value_heads", None) or self.heads

    @property
    def head_size(self) -> int:
        given = getattr(self.read, "head_dim", None)
        return self.width // self.heads if given is None else given

    @property
    def windows(self) -> list[int | None]:
        """How many positions each layer sees of a text, the last one included; None: all."""
        window = getattr(self.read, "sliding_window", None)
        return [window if kind == SLIDING else None for kind in self._layers]

    @property
    def _layers(self) -> Sequence[Any]:
        """The kinds of its layers. Where its configuration does not tell them apart, all have its window."""
        return getattr(self.read, "layer_types", None) or [SLIDING] * self.depth

    @property
    def tied_head(self) -> bool:
        return bool(self.read.tie_word_embeddings)

    @property
    def places(self) -> int | None:
        """How many positions it has learned; None: they are rotary, and have no end."""
        return self.read.max_position_embeddings if self.parts.positions else None

    @property
    def head_bias(self) -> bool:
        return self.parts.head_bias

    def build(self) -> Trunk:
        """A trunk with fresh weights. Raises UserError for values that its authors' code cannot work with."""
        from .blocks import LanguageTrunk

        try:
            return LanguageTrunk(self)
        except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
            said = " ".join(str(error).split())[:200]
            raise UserError(f"the language model cannot be built ({said}): restore its config.json") from error

    def parameters(self, vocabulary_size: int, features: int = 0) -> dict[str, int]:
        """Parameter counts by part, as `TrunkConfig.parameters`."""
        import torch

        with torch.device("meta"):
            blocks = sum(weight.numel() for weight in self.build().parameters())
        head = vocabulary_size * (self.width * (not self.tied_head) + self.head_bias)
        counts = {"embedding": (vocabulary_size + features) * self.width, "blocks": blocks, "head": head}
        return {**counts, "total": sum(counts.values())}

    def _ropes(self) -> list[Mapping[str, Any]]:
        """The settings of its rotary positions; a model may have several."""
        found = getattr(self.read, "rope_parameters", None) or {}
        inner = [one for one in found.values() if isinstance(one, Mapping)]
        return inner or [found]


def _read(values: Mapping[str, Any]) -> Any:
    """The configuration as transformers reads it; no code of others runs."""
    name = values.get("model_type")
    if not isinstance(name, str) or name not in LANGUAGE_MODELS:
        raise UserError(f"the language model is of type {shown(name)}: taken are {', '.join(LANGUAGE_MODELS)}")
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(**values)
    except Exception as error:  # it raises what its checks and those of its fields do
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"the language model's configuration cannot be read ({said}): restore its config.json"
        ) from error
