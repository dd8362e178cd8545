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
from unitok.trunk.hf import HFTrunk
from unitok.trunk.published import PublishedTrunk
from unitok.tuning.config import LoraConfig, as_patterns

if TYPE_CHECKING:
    from unitok.model import UniTok
    from unitok.objectives.base import Objective
    from unitok.trunk.hf.reading import LanguageModel
    from unitok.tuning.adapter import Adapter


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

    def begin(self, model: UniTok) -> Adapter | None:
        """Gives a fresh model what this one has learned, makes ready what is trained, and says which adapters."""
        from unitok.tuning.adapter import Adapter, tune

        model.start_from(self.model)
        targets = tune(model, self.model, self.trainable, self.lora)
        rank = self.lora.rank
        return None if rank is None else Adapter(str(self.folder), self.fingerprint, rank, self.lora.alpha, targets)


@dataclass(frozen=True)
class LanguageStart:
    """A language model that goes on learning as the trunk of a fresh generator."""

    language: LanguageModel
    fingerprint: str
    trainable: list[str]
    """Patterns of the weights that are trained; none: all."""

    @classmethod
    def of(cls, name: str, trainable: list[str]) -> LanguageStart:
        """The one of --trunk hf:NAME."""
        from unitok.trunk.hf.reading import read_language_model

        language = read_language_model(name)
        return cls(language, language.fingerprint(), trainable)

    def begin(self, model: UniTok) -> None:
        """Puts the language model into a fresh generator, and makes ready what is trained of it.

        Raises:
            UserError: a pattern that matches nothing; ids and ports, which are new, would not be trained.
        """
        from tokenizers_vq.parts import train_only, trainable_names

        self.language.fill(model)
        if self.trainable:
            new = {name for name in trainable_names(model) if not name.startswith("trunk.")}
            train_only(model, self.trainable)
            left = sorted(new - set(trainable_names(model)))
            if left:
                raise UserError(f"{left[0]} is new to the language model: name it in --trainable too, as in 'ids.*'")


def given_patterns(trainable: str | list[str] | None, init: Path | None, trunk: object = None) -> list[str]:
    """Those of --trainable; none of them trains everything."""
    patterns = [] if trainable is None else as_patterns(trainable)
    if trainable is not None and not patterns:
        raise UserError("--trainable names nothing: give names of weights, such as 'decoder.*', or leave it out")
    if patterns and init is None and not isinstance(trunk, str):
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
        "image_size": None,
        "objective": "next_token",
        "text_tokenizer": None,
        "text_vocabulary": 4096,
    }
    fresh |= {"text_length": 128, "trunk": dataclasses.asdict(small())}
    problems = Problems()
    for name, value in fresh.items():
        problems.check(settings[name] == value, f"--{name} is that of the model in --init: leave it out")
    problems.raise_if_any()


def settled(
    given: ObjectiveSettings, kind: type[Objective], trunk: TrunkConfig | HFTrunk | PublishedTrunk
) -> ObjectiveSettings:
    """Of a run that starts from a model. The authors of published ones hide and change nothing of the codes."""
    if isinstance(trunk, PublishedTrunk):
        left = {name: 0.0 for name in kind.settings if getattr(given, name) is None}
        given = dataclasses.replace(given, **left)
    return kind.settled(given)
