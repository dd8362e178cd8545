"""The folder of an adapter: what a tuning with LoRA learned, without the model that it was learned on.

out/
    config.json           the base model's folder and fingerprint, the adapters, the configuration of the tuned model
    adapter.safetensors   the thin matrices, and what was trained in full beside them

`UniTok.from_pretrained` opens it like a model: it opens the base and adds the adapters to its weights.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from tokenizers_vq.errors import Problems, UserError, shown
from tokenizers_vq.parts import freeze_the_rest, train_only, trainable_names
from tokenizers_vq.storage.digests import check_digest, check_own, read_configuration, with_digests
from tokenizers_vq.storage.files import part, read_stable, replace_parts, write_json
from tokenizers_vq.storage.schema import read_dataclass
from tokenizers_vq.storage.weights import build_empty, each_once, read_weights, write_weights

from ..config import ModelConfig
from ..model import CONFIG, UniTok
from ..reader.config import READER
from ..trunk.fusion import part_of_fusion
from .config import MOST_RANK, LoraConfig, as_patterns
from .lora import add_lora, linear_maps, lora_targets, merge_lora
from .quantized import quantize, rounded

WEIGHTS = "adapter.safetensors"
FAMILY, FORMAT = "unitok_adapter", 1
DEEPEST = 8
"""Adapters of adapters."""


@dataclass(frozen=True)
class Adapter:
    """What `config.json` of an adapter's folder says, but for the tuned model's own configuration."""

    base: str
    """Folder of the model that it was learned on, seen from the adapter's."""
    fingerprint: str
    """Of that model."""
    rank: int
    alpha: float
    targets: list[str]
    """The linear maps of the trunk that have one."""
    quantize: Literal["nf4", "int8"] | None = None
    """What the base's linear maps were held in while it was learned: see `quantized.py`."""

    def __post_init__(self) -> None:
        problems = Problems()
        problems.check_range("rank", self.rank, 1, MOST_RANK)
        problems.check(0 < self.alpha <= 10**6, f"alpha is {self.alpha}: choose a value above 0")
        problems.raise_if_any()

    def seen_from(self, folder: Path) -> Adapter:
        """With the path to the base from this folder: both may be moved together."""
        return replace(self, base=os.path.relpath(Path(self.base).resolve(), folder.resolve()))


def tune(model: UniTok, start: UniTok, patterns: Sequence[str], lora: LoraConfig) -> list[str]:
    """Makes ready what a run that starts from a model is to train: everything; the weights that match patterns alone;
    adapters, which are put in, and beside them the weights that match. Returns the linear maps that have an adapter.

    Raises:
        UserError: a pattern that matches nothing; weights that `start` lacks, and that would not be trained.
    """
    targets = [] if lora.rank is None else lora_targets(model.trunk, as_patterns(lora.targets), lora.rank)
    if patterns:
        train_only(model, patterns)
    if lora.rank is not None:
        if not patterns:
            model.requires_grad_(False)
        add_lora(model.trunk, targets, lora.rank, lora.alpha)
        if lora.quantize is not None:
            quantize(model.trunk, lora.quantize)
        freeze_the_rest(model, set(trainable_names(model)))
    fresh = _unlike(model.state_dict(), start.state_dict()) - set(trainable_names(model)) - _encoder(model)
    if fresh:
        raise UserError(
            f"{min(fresh)} is new to the model in --init, whole or in part, and would not be learned: name "
            f"'{_part(min(fresh))}' in --trainable too"
        )
    return targets


def _part(name: str) -> str:
    """A pattern of the part of a model that a weight is in."""
    return part_of_fusion(name) or f"{name.partition('.')[0]}.*"


def _encoder(model: UniTok) -> set[str]:
    """The names of the tensors of an encoder of pictures, which comes with what it has learned."""
    place = f"ports.{READER}.encoder."
    return {name for name in model.state_dict() if name.startswith(place)}


def _unlike(state: Mapping[str, torch.Tensor], before: Mapping[str, torch.Tensor]) -> set[str]:
    """The names of tensors that were not there before, or were smaller."""
    return {name for name, tensor in state.items() if name not in before or tensor.shape != before[name].shape}


def tuned_tensors(model: UniTok) -> dict[str, torch.Tensor]:
    """What a tuning changes in a model: the thin matrices, and weights that are trained in full."""
    names = set(trainable_names(model))
    state = each_once(model.state_dict())
    return {name: tensor for name, tensor in state if name in names}


def save_adapter(model: UniTok, adapter: Adapter, folder: Path) -> None:
    """Writes the folder of an adapter: all its parts are replaced or none. Other files in it stay.

    Raises:
        UserError: a weight is not finite, or the folder cannot be written.
    """

    def write(draft: Path) -> None:
        write_weights(tuned_tensors(model), draft / WEIGHTS)
        trained = sorted(name for name in tuned_tensors(model) if not _is_thin(name, adapter))
        values = {"format": FORMAT, "family": FAMILY, **asdict(adapter), "trained": trained}
        if adapter.quantize is None:  # then the folder is one as from before
            del values["quantize"]
        values["model"] = model.config.to_json()
        write_json(draft / CONFIG, with_digests(values, draft, CONFIG, WEIGHTS))

    replace_parts(folder, write)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, whole or damaged."""
    return part(folder, WEIGHTS).is_file()


def open_adapter(folder: Path, base: Path | None = None, depth: int = 0) -> UniTok:
    """The tuned model, in evaluation mode, its adapters added to the weights of the base. `base` is the base's folder,
    where it is not where the adapter says.

    Raises:
        UserError: files that are missing, foreign or damaged; a base that is not there, or another one.
    """
    return read_stable(part(folder, CONFIG), lambda: _open(folder, base, depth))


def read_adapter(folder: Path) -> tuple[Adapter, list[str], dict[str, Any]]:
    """(adapter, names of what was trained in full, configuration of the tuned model) of a folder whose files are what
    was written."""
    where = part(folder, CONFIG)
    values, files = read_configuration(where)
    check_own(values, files, where)
    family, version = values.pop("family", None), values.pop("format", None)
    if (family, version) != (FAMILY, FORMAT) or type(version) is not int:
        raise UserError(
            f"{where} is of family {shown(family)} and format {shown(version)}, no adapter of this version: restore the"
            " file, or update unitok"
        )
    check_digest(folder, WEIGHTS, files, "restore the adapter")
    trained, model = values.pop("trained", None), values.pop("model", None)
    if not isinstance(trained, list) or not all(isinstance(name, str) for name in trained):
        raise UserError(f"{where}: trained is {shown(trained)}, expected names: restore the file")
    return read_dataclass(Adapter, values, str(where)), trained, model


def _open(folder: Path, base: Path | None, depth: int) -> UniTok:
    where = part(folder, CONFIG)
    adapter, trained, values = read_adapter(folder)
    config = ModelConfig.from_json(values, f"{where}: model")
    place = base if base is not None else folder / adapter.base
    advice = f"bring it back, or join both with unitok merge {folder} --base DIR --out DIR"
    if not part(place, CONFIG).is_file():
        raise UserError(f"adapter {folder} was learned on the model {place}, which is not there: {advice}")
    if depth == DEEPEST:
        raise UserError(f"adapter {folder} stands on more than {DEEPEST} others: join some of them with unitok merge")
    start = open_adapter(place, depth=depth + 1) if is_adapter(place) else UniTok.from_pretrained(place)
    found = start.fingerprint()
    if found != adapter.fingerprint:
        raise UserError(
            f"adapter {folder} was learned on another model than {place} (fingerprint {found[:12]}, expected "
            f"{adapter.fingerprint[:12]}): {advice}"
        )
    model = build_empty(lambda: UniTok(config, start.image_tokenizer, start.text_tokenizer), str(where))
    foreign = f"{where} is of another trunk than {place}: restore the file"
    state, given = model.state_dict(), start.state_dict()
    grown = _unlike(state, given)
    wrong = {name for name in given if name not in state or state[name].shape[1:] != given[name].shape[1:]}
    wrong |= {name for name in given.keys() & grown if len(given[name]) > len(state[name])}
    thin = {f"trunk.{name}" for name in adapter.targets} - {f"trunk.{name}" for name in linear_maps(model.trunk)}
    thin |= {name for name in adapter.targets if adapter.targets.count(name) > 1}
    if wrong or thin or not grown <= set(trained) <= state.keys():
        raise UserError(foreign)
    model.start_from(start)
    if adapter.quantize is not None:
        rounded(model.trunk, adapter.quantize, {name.removeprefix("trunk.") for name in trained})
    add_lora(model.trunk, adapter.targets, adapter.rank, adapter.alpha)
    state = model.state_dict()
    wanted = {name: tensor for name, tensor in state.items() if name in trained or _is_thin(name, adapter)}
    weights = read_weights(part(folder, WEIGHTS), wanted, "weights and configuration do not fit: restore both")
    model.load_state_dict(weights, strict=False)
    merge_lora(model.trunk)
    return model.eval()


def _is_thin(name: str, adapter: Adapter) -> bool:
    """Whether a tensor is one of the thin matrices."""
    return any(name.startswith(f"trunk.{target}.lora.") for target in adapter.targets)


def holds_adapter(folder: Path, adapter: Adapter, model: UniTok) -> bool:
    """Whether a folder holds this adapter with the tensors of this model, whole."""
    tensors = tuned_tensors(model)
    try:
        found = read_adapter(folder)[0]
        given = read_weights(part(folder, WEIGHTS), tensors, "")
    except UserError:
        return False
    return found == adapter and all(torch.equal(given[name], tensor.cpu()) for name, tensor in tensors.items())
