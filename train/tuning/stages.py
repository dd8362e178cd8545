"""Training in stages. Each is an ordinary run in a folder of its own, which starts from the model of the one before.

out/stage1, out/stage2, ...     as any run; the last one is the model

Nothing else is written, so a stage is resumed as any run is, and one that is finished is found finished. The last line
of its log.jsonl says that it has ended.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers_vq.errors import Problems, UserError, shown
from tokenizers_vq.storage.files import is_ours_alone
from tokenizers_vq.storage.schema import read_value
from unitok.config import ObjectiveSettings, TasksConfig, small
from unitok.processes import refused_together
from unitok.reader.config import NO_READER, ReaderSettings
from unitok.sampling import GivenSettings
from unitok.tuning.config import LoraConfig, as_patterns

from ..config import AugmentConfig, OptimConfig, RunConfig, SourceConfig
from .start import check_reached, given_patterns, settled, thaw

if TYPE_CHECKING:
    from unitok.model import UniTok

Arguments = dict[str, Any]
"""Those of `train_generator`, by name."""

KINDS: dict[str, Any] = {
    "data": str | list[SourceConfig],
    "val_data": str | list[str] | None,
    "objective_settings": ObjectiveSettings,
    "tasks": TasksConfig,
    "augment": AugmentConfig,
    "sampling": GivenSettings,
    "trainable": str | list[str] | None,
    "lora": LoraConfig,
    "optim": OptimConfig,
    "run": RunConfig,
}
"""What a stage may have of its own."""

FROM_THE_START: Arguments = {
    "image_tokenizer": None,
    "image_size": None,
    "objective": "next_token",
    "trunk": small(),
    "text_tokenizer": None,
    "text_vocabulary": 4096,
    "text_length": 128,
    "reader": NO_READER,
}
"""Arguments of a run that starts from a model, which brings these itself."""


def run_stages(train: Callable[..., None], common: Arguments, stages: list[dict[str, Any]]) -> None:
    """Runs `train` for each stage, with the arguments that all stages have in common and its own.

    Raises:
        UserError: a folder that holds other things; a stage that cannot be run, before the first one is.
    """
    out: Path = common["out"]
    with refused_together():
        plan = planned(common, stages)
        _check_folder(out, plan[0]["out"], common["resume"])
        if len(plan) > 1:
            _check_ahead(plan)
    from ..folder import RunFolder
    from ..log import log_stage

    main = int(os.environ.get("RANK", "0")) == 0
    for number, arguments in enumerate(plan, start=1):
        stage, steps = f"{number} of {len(plan)}", arguments["run"].steps
        if main:
            print(f"stage {stage}: {arguments['out']}", file=sys.stderr)
        train(**arguments)
        if main:
            log_stage(RunFolder(arguments["out"]).log, steps, stage)
            print(f"stage {stage} ends after {steps} steps", file=sys.stderr)


def planned(common: Arguments, stages: list[dict[str, Any]]) -> list[Arguments]:
    """The arguments of every stage. What is a group of settings is changed where a stage has other ones.

    Raises:
        UserError: no stage, unknown keys, values that cannot be.
    """
    problems = Problems()
    problems.check(bool(stages), "stages is an empty list: give at least one stage, or leave it out")
    plan: list[Arguments] = []
    for number, stage in enumerate(stages, start=1):
        where = f"stage {number}"
        arguments = {**common, "out": common["out"] / f"stage{number}", "stages": None}
        if plan:
            arguments |= {**FROM_THE_START, "init": plan[-1]["out"]}
        for name in sorted(stage.keys() - KINDS.keys()):
            problems.check(False, f"{where} has an unknown key {shown(name)}: a stage may have {', '.join(KINDS)}")
        for name in stage.keys() & KINDS.keys():
            value = stage[name]
            if dataclasses.is_dataclass(KINDS[name]) and isinstance(value, Mapping):
                value = _changed(dataclasses.asdict(common[name]), value)
            try:
                arguments[name] = read_value(KINDS[name], value, where, name)
            except UserError as error:  # it speaks of a file of ours
                problems.check(False, str(error).replace("; restore the file", "").replace("; update unitok, or", ":"))
        try:
            given_patterns(arguments["trainable"], arguments["init"], arguments["trunk"], arguments["reader"])
        except UserError as error:
            problems.check(False, f"{where}: {error}")
        plan.append(arguments)
    problems.raise_if_any()
    return plan


def _changed(values: Any, other: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values, with the other ones in their places."""
    found = dict(values) if isinstance(values, Mapping) else {}
    for name, value in other.items():
        found[name] = _changed(found.get(name), value) if isinstance(value, Mapping) else value
    return found


def _check_folder(out: Path, first: Path, resume: bool) -> None:
    from ..folder import UNUSED

    used = out.is_dir() and not is_ours_alone(out, UNUSED)
    if used and not resume:
        kind = "already holds stages: add --resume to go on with them, or" if first.is_dir() else "is not empty:"
        raise UserError(f"--out {out} {kind} choose another folder")
    if used and not first.is_dir():
        raise UserError(f"--out {out} holds no stages to resume (no {first.name}): choose the folder of a run")


def _check_ahead(plan: list[Arguments]) -> None:
    """Raises UserError for what would stop a later stage, hours after the first has begun."""
    model = _like_the_first(plan[0])
    problems = Problems()
    for number, stage in enumerate(plan[1:], start=2):
        try:
            _check_stage(model, stage)
        except UserError as error:
            problems.check(False, f"stage {number}: {error}")
    problems.raise_if_any()


def _check_stage(model: UniTok, stage: Arguments) -> None:
    """Looks for the data of a stage, and for what it names of the model."""
    from tokenizers_vq.parts import trained_names
    from unitok.data.mixture import sources_of
    from unitok.objectives import objective_class
    from unitok.tuning.lora import lora_targets

    from ..data import open_sources

    lora: LoraConfig = stage["lora"]
    names: set[str] = set()
    if patterns := given_patterns(stage["trainable"], stage["init"]):
        thaw(model, patterns)
        names = trained_names(model, patterns)
    if lora.rank is not None:
        lora_targets(model.trunk, as_patterns(lora.targets), lora.rank)
    settled(stage["objective_settings"], objective_class(model.config.objective), model.config.trunk)
    sources = sources_of(open_sources(stage["data"], stage["tasks"], model.image_tokenizer.image_size))
    if names and lora.rank is None:
        check_reached(names, {task for source in sources for task, share in source.tasks.items() if share})


def _like_the_first(arguments: Arguments) -> UniTok:
    """A model with the names and sizes of that of the first stage, whatever its texts and tasks."""
    from tokenizers_vq.base import load_tokenizer
    from tokenizers_vq.storage.weights import build_empty
    from unitok.boxes import LOCATION, SPANS, WAVES
    from unitok.config import CODES, ModelConfig, PortConfig
    from unitok.model import UniTok
    from unitok.objectives import get_objective
    from unitok.reader.encoders import read_encoder
    from unitok.text import number_tokenizer
    from unitok.trunk.hf.reading import read_language_model
    from unitok.vocabulary import Vocabulary

    reader: ReaderSettings = arguments["reader"]
    if arguments["init"] is not None:
        start = UniTok.from_pretrained(arguments["init"])
        if reader.encoder is None:
            return start
        images, texts = start.image_tokenizer, start.text_tokenizer
        config = dataclasses.replace(start.config, reader=read_encoder(reader, images)[0])
        return build_empty(lambda: UniTok(config, images, texts), "the recipe")
    if arguments["image_tokenizer"] is None:
        raise UserError("a generator draws codes of an image tokenizer: give its folder with --image_tokenizer")
    images = load_tokenizer(arguments["image_tokenizer"], image_size=arguments["image_size"])
    texts = number_tokenizer(1)
    vocabulary = Vocabulary.of(texts.size, images.codebook_size)
    for name, size in {name: size for spans in SPANS.values() for name, size in spans.items()}.items():
        vocabulary = vocabulary.grown(name, size)
    objective = arguments["objective"]
    ports = {**get_objective(objective, images).ports(images.layout), LOCATION: PortConfig("waves", WAVES)}
    if arguments["code_vectors"]:
        ports[CODES] = PortConfig(CODES, images.code_features().shape[-1])
    trunk = arguments["trunk"]
    trunk = read_language_model(trunk).trunk if isinstance(trunk, str) else trunk
    config = ModelConfig(trunk, objective, vocabulary.spans, ports=ports)
    if reader.encoder is not None:
        config = dataclasses.replace(config, reader=read_encoder(reader, images)[0])
    return build_empty(lambda: UniTok(config, images, texts), "the recipe")
