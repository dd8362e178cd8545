"""What a run takes from the model that it starts from. Free of torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers_vq.config import TOKENIZER_PRESETS
from tokenizers_vq.config_base import TokenizerConfig
from tokenizers_vq.errors import Problems, UserError
from unitok.config import ObjectiveSettings, TrunkConfig, small
from unitok.trunk.published import PublishedTrunk
from unitok.tuning.config import LoraConfig, as_patterns

if TYPE_CHECKING:
    from unitok.model import UniTok
    from unitok.objectives.base import Objective


@dataclass(frozen=True)
class Start:
    """A generator that is trained on."""

    model: UniTok
    folder: Path
    fingerprint: str
    trainable: list[str]
    """Patterns of the weights that are trained; none: all, or the adapters alone."""
    lora: LoraConfig

    @classmethod
    def of(cls, name: Path, trainable: list[str], lora: LoraConfig) -> Start:
        """The model of --init: a folder, or hf:owner/name."""
        from unitok.model import UniTok, model_folder

        folder = model_folder(name)
        model = UniTok.from_pretrained(folder)
        return cls(model, folder, model.fingerprint(), trainable, lora)


def given_patterns(trainable: str | list[str] | None, init: Path | None) -> list[str]:
    """Those of --trainable; none of them trains everything."""
    patterns = [] if trainable is None else as_patterns(trainable)
    if trainable is not None and not patterns:
        raise UserError("--trainable names nothing: give names of weights, such as 'decoder.*', or leave it out")
    if patterns and init is None:
        raise UserError("--trainable trains a part of a model that has learned: give its folder with --init")
    return patterns


def check_tokenizer_start(tokenizer: TokenizerConfig) -> None:
    """Raises UserError for a network, where that of --init is taken."""
    if tokenizer != TOKENIZER_PRESETS["small"]():
        raise UserError("--tokenizer and --preset are those of the tokenizer in --init: leave them out")


def check_start(settings: dict[str, Any]) -> None:
    """Raises UserError for what a generator that is started from brings itself."""
    fresh: dict[str, Any] = {
        "image_tokenizer": None,
        "objective": "next_token",
        "text_tokenizer": None,
        "text_vocabulary": 4096,
    }
    fresh |= {"text_length": 128, "trunk": dataclasses.asdict(small())}
    problems = Problems()
    for name, value in fresh.items():
        problems.check(settings[name] == value, f"--{name} is that of the model in --init: leave it out")
    problems.raise_if_any()


def settled(given: ObjectiveSettings, kind: type[Objective], trunk: TrunkConfig | PublishedTrunk) -> ObjectiveSettings:
    """Of a run that starts from a model. The authors of published ones hide and change nothing of the codes."""
    if isinstance(trunk, PublishedTrunk):
        left = {name: 0.0 for name in kind.settings if getattr(given, name) is None}
        given = dataclasses.replace(given, **left)
    return kind.settled(given)
