"""Checkpoints: a directory of safetensors and one JSON file, complete or not there at all.

    checkpoints/step-00001000/
        model.safetensors       the weights that train, those of an opponent too
        average.safetensors     their moving average
        optimizer.safetensors   moments of AdamW and Muon, by weight name
        sums.safetensors        what the current log interval has summed up so far
        state.json              format, step, settings, versions

No generator state is needed: every draw is keyed by the step (unitok/seeding.py).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from tokenizers_vq.errors import UserError

from .optim import AveragedWeights

FORMAT = "unitok-checkpoint-1"


@dataclass
class TrainState:
    """Everything that a step changes."""

    model: nn.Module
    average: AveragedWeights
    optimizers: list[torch.optim.Optimizer]
    step: int
    """Steps done."""
    sums: dict[str, torch.Tensor]


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Fills a folder under a temporary name and renames it; after a failure nothing is left behind.

    Raises:
        UserError: the disk is full, or the place cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        fill(temporary)
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be written ({reason}): free some space, then resume the run") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save(folder: Path, state: TrainState, about: dict[str, Any], keep: int) -> Path:
    """Writes the checkpoint of `state.step` into `folder`, then removes all but the newest `keep`."""
    path = folder / f"step-{state.step:08d}"

    def fill(temporary: Path) -> None:
        save_file(_weights(state.model), temporary / "model.safetensors")
        if state.average.decay:
            save_file(_weights(state.average.model), temporary / "average.safetensors")
        save_file(_moments(state.model, state.optimizers), temporary / "optimizer.safetensors")
        save_file(state.sums, temporary / "sums.safetensors")
        text = json.dumps({"format": FORMAT, "step": state.step, **about}, indent=2)
        (temporary / "state.json").write_text(text, encoding="utf-8")

    write_folder(path, fill)
    for old in all_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def all_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path.parent for path in folder.glob("step-*/state.json"))


def read_about(path: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint."""
    try:
        about = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not a checkpoint that can be read ({error}): delete it and resume again") from error
    if about.get("format") != FORMAT:
        raise UserError(f"{path} has format {about.get('format')!r}, this version reads {FORMAT!r}")
    return about


def load(path: Path, state: TrainState) -> None:
    """Puts a checkpoint into a freshly built `state`."""
    about = read_about(path)
    device = next(state.model.parameters()).device
    try:
        parts = {part.stem: load_file(part, device=str(device)) for part in path.glob("*.safetensors")}
        _put_weights(state.model, parts["model"])
        if state.average.decay:
            _put_weights(state.average.model, parts["average"])
        _put_moments(state.model, state.optimizers, parts["optimizer"])
    except (KeyError, RuntimeError, ValueError, OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"checkpoint {path} does not fit this run: {reason[:300]}") from error
    state.sums.update(parts["sums"])
    state.step = about["step"]


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict with every tensor once (tied weights have two names) and contiguous, as safetensors wants it."""
    tensors: dict[str, torch.Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() == 0 or place not in seen:
            seen.add(place)
            tensors[name] = tensor.contiguous()
    return tensors


def _put_weights(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    expected = set(_weights(model))
    if expected != set(tensors):
        raise KeyError(f"weights {sorted(expected ^ set(tensors))[:4]} are on one side only")
    model.load_state_dict(tensors, strict=False)


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
    for optimizer in optimizers:
        for weight, name in _names(model, optimizer).items():
            moments = {}
            for key in ("step", "exp_avg", "exp_avg_sq", "momentum_buffer"):
                value = tensors.get(f"{name}.{key}")
                if value is None:
                    continue  # of the other optimizer, or a weight that has had no gradient yet
                # The moments keep the memory format of their weight: the fused kernel reads them side by side.
                moments[key] = value if key == "step" else torch.empty_like(weight).copy_(value)
            if moments:
                optimizer.state[weight] = moments
