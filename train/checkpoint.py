"""Checkpoints: a directory of safetensors and one JSON file, complete or not there at all.

    checkpoints/step-00001000/
        model.safetensors       what training changes, of an opponent too
        average.safetensors     their moving average
        optimizer.safetensors   moments of AdamW and Muon, by weight name
        sums.safetensors        what the current log interval has summed up so far
        text_tokenizer/         of a generator
        state.json              format, step, settings, versions, numbers, and the digests of all files

Of a model in shards the first three are folders (`parallel/files.py`). Either kind is read by any number of processes.
No generator state is needed: every draw is keyed by the step (unitok/seeding.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from tokenizers_vq.errors import UserError
from tokenizers_vq.storage.digests import FILES, check_digest, check_own, take_digests, with_digests
from tokenizers_vq.storage.files import plain, read_json, remove_folder, write_folder, write_json
from tokenizers_vq.storage.weights import check_finite, read_weights, write_weights

from .optim import AveragedWeights, learning_tensors
from .parallel.files import read_shards, sizes
from .parallel.tensors import put

FORMAT, SHARDS = "unitok-checkpoint-2", "unitok-checkpoint-2-shards"
MODEL, AVERAGE, OPTIMIZER, SUMS = (f"{name}.safetensors" for name in ("model", "average", "optimizer", "sums"))
ABOUT = "state.json"


@dataclass
class TrainState:
    """Everything that a step changes."""

    model: nn.Module
    average: AveragedWeights
    optimizers: list[torch.optim.Optimizer]
    step: int
    """Steps done."""
    sums: dict[str, torch.Tensor]

    def parts(self) -> dict[str, dict[str, torch.Tensor]]:
        """The large tensors, by file, without its ending, and name."""
        parts = {"model": learning_tensors(self.model)}
        if self.average.decay:
            parts["average"] = self.average.tensors
        return {**parts, "optimizer": _moments(self.model, self.optimizers)}


class Saved(Protocol):
    """What is written of a state: itself, or a copy of it."""

    @property
    def step(self) -> int: ...

    @property
    def sums(self) -> dict[str, torch.Tensor]: ...

    def parts(self) -> dict[str, dict[str, torch.Tensor]]: ...


Write = Callable[[Path, dict[str, dict[str, torch.Tensor]]], dict[str, str]]
"""Writes the parts of a state into a folder, and gives the digests of its files."""


def save(
    folder: Path,
    state: Saved,
    about: dict[str, Any],
    keep: int,
    fill: Callable[[Path], None] | None = None,
    write_shards: Write | None = None,
) -> Path:
    """Writes the checkpoint of `state.step` into `folder`, then removes all but the newest `keep`. `fill` adds what
    else the run needs to go on; `write_shards` writes the state of a model in shards.

    Raises:
        UserError: a weight is not finite, the disk is full, or the place cannot be written.
    """
    path = folder / checkpoint_name(state.step)

    def write(draft: Path) -> None:
        shards: dict[str, str] = {}
        if write_shards:
            shards = write_shards(draft, state.parts())
        else:
            for name, tensors in state.parts().items():
                write_weights(tensors, draft / f"{name}.safetensors")
        write_weights(state.sums, draft / SUMS)
        if fill:
            fill(draft)
        names = sorted(place.relative_to(draft).as_posix() for place in draft.rglob("*") if place.is_file())
        values = plain({"format": SHARDS if write_shards else FORMAT, "step": state.step, **about})
        values = with_digests(values, draft, ABOUT, *(name for name in names if name not in shards))
        write_json(draft / ABOUT, {**values, FILES: {**values[FILES], **shards}})

    write_folder(path, write)
    keep_newest(folder, state.step, keep)
    return path


def keep_newest(folder: Path, step: int, keep: int) -> None:
    """Removes all checkpoints up to `step` but the newest `keep`.

    Later ones do not count: the run goes on from an older one because they are damaged, and comes past them again.
    """
    done = [path for path in all_checkpoints(folder) if path.name <= checkpoint_name(step)]
    for old in done[:-keep]:
        remove_folder(old)


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def all_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-*/{ABOUT}"))


def newest_whole(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files are what was written; tells of newer ones that are damaged.

    Raises:
        UserError: there are checkpoints, but none is whole.
    """
    damaged: list[str] = []
    for path in reversed(all_checkpoints(folder)):
        try:
            check(path)
        except UserError as error:
            damaged.append(str(error))
            continue
        for message in damaged:
            say(f"{message}: going on from {path} instead")
        return path
    if damaged:
        raise UserError(
            f"{damaged[0]}, and no other checkpoint in {folder} is whole: restore it, or start again in another --out"
        )
    return None


def read_about(path: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint.

    Raises:
        UserError: it cannot be read, or is not what was written.
    """
    return _read_about(path)[0]


def _read_about(path: Path) -> tuple[dict[str, Any], dict[str, str] | None]:
    where = path / ABOUT
    values = read_json(where)
    if not isinstance(values, dict):
        raise UserError(f"{where} holds a {type(values).__name__}, not the facts of a checkpoint")
    files = take_digests(values, where)
    check_own(values, files, where)
    if values.get("format") not in (FORMAT, SHARDS):
        raise UserError(f"{path} has format {values.get('format')!r}, this version reads {FORMAT!r} and {SHARDS!r}")
    step = values.get("step")
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise UserError(f"{where}: step is {step!r}, expected a whole number")
    seconds = values.setdefault("seconds", 0.0)  # older checkpoints do not name them
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < float("inf"):
        raise UserError(f"{where}: seconds is {str(seconds)[:40]!r}, expected a number from 0 on")
    for name in ("settings", "numbers", "unreadable"):
        if not isinstance(values.setdefault(name, {}), dict):
            raise UserError(f"{where}: {name} is {str(values[name])[:40]!r}, expected names and values")
    return values, files


def check(path: Path) -> None:
    """Compares all files of a checkpoint with their digests. Raises UserError, without advice, at the first damage."""
    try:
        _, files = _read_about(path)
        for name in files or (MODEL, OPTIMIZER, SUMS):
            if name != ABOUT:
                check_digest(path, name, files, "")
    except UserError as error:
        reason = str(error).removesuffix(": ").removesuffix(": restore the file")
        raise UserError(f"checkpoint {path} is damaged ({reason})") from error


def load(path: Path, state: TrainState) -> dict[str, Any]:
    """Puts a checkpoint into a freshly built `state`; returns what its JSON says.

    Raises:
        UserError: it does not fit this run, or holds a number that is not finite.
    """
    about = read_about(path)
    device = next(state.model.parameters()).device
    advice = "the checkpoint is damaged or of another run: start again in another --out"
    try:
        if about["format"] == SHARDS:
            _load_shards(path, state)
        else:
            _put(learning_tensors(state.model), path / MODEL, advice)
            if state.average.decay:
                _put(state.average.tensors, path / AVERAGE, advice)
            moments = _read_tensors(path / OPTIMIZER, device, advice)
            _put_moments(state.model, state.optimizers, moments)
        state.sums.update(_read_tensors(path / SUMS, device, advice))
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"checkpoint {path} does not fit this run: {reason[:300]}") from error
    state.step = about["step"]
    return about


def _load_shards(path: Path, state: TrainState) -> None:
    folder = path / "optimizer"
    for name, tensors in state.parts().items():
        if path / name != folder:  # a fresh optimizer has no moments yet
            read_shards(path / name, tensors)
    weights = {
        name: weight for optimizer in state.optimizers for weight, name in _names(state.model, optimizer).items()
    }
    moments = {}
    for full, size in sizes(folder).items():
        weight = weights[full.rpartition(".")[0]]
        moments[full] = torch.empty_like(weight) if len(size) else torch.empty((), device=weight.device)
    read_shards(folder, moments)
    _put_moments(state.model, state.optimizers, moments)


def _read_tensors(path: Path, device: torch.device, advice: str) -> dict[str, torch.Tensor]:
    try:
        tensors = load_file(path, device=str(device))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())[:200]}): {advice}") from error
    check_finite(tensors, f"{path} holds NaN or infinity", advice)
    return tensors


@torch.no_grad()
def _put(tensors: dict[str, torch.Tensor], path: Path, advice: str) -> None:
    """Fills tensors with those of a file."""
    for name, value in read_weights(path, tensors, advice).items():
        put(tensors[name], value)


def _names(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[torch.Tensor, str]:
    used = {weight for group in optimizer.param_groups for weight in group["params"]}
    return {weight: name for name, weight in model.named_parameters() if weight in used}


def _moments(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for optimizer in optimizers:
        names = _names(model, optimizer)
        for weight, moments in optimizer.state.items():
            tensors |= {f"{names[weight]}.{key}": value.contiguous() for key, value in moments.items()}
    return tensors


def _put_moments(model: nn.Module, optimizers: list[torch.optim.Optimizer], tensors: dict[str, torch.Tensor]) -> None:
    by_weight: dict[str, dict[str, torch.Tensor]] = {}
    for full, value in tensors.items():
        name, _, key = full.rpartition(".")
        by_weight.setdefault(name, {})[key] = value
    for optimizer in optimizers:
        for weight, name in _names(model, optimizer).items():
            moments = {}
            for key, value in by_weight.pop(name, {}).items():
                if value.ndim and (value.shape, value.dtype) != (weight.shape, weight.dtype):
                    found = f"{tuple(value.shape)} {value.dtype} instead of {tuple(weight.shape)} {weight.dtype}"
                    raise KeyError(f"{name}.{key} is {found}")
                # The moments keep the memory format of their weight: the fused kernel reads them side by side.
                moments[key] = torch.empty_like(weight) if value.ndim else value
                if value.ndim:
                    put(moments[key], value)
            if moments:  # none: a weight that has had no gradient yet
                optimizer.state[weight] = moments
    if by_weight:
        raise KeyError(f"state of the optimizer for weights that there are not: {sorted(by_weight)[:4]}")
