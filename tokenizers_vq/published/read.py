"""Checkpoint files of others: from the hub or the disk, as plain tensors and nothing else."""

from __future__ import annotations

import logging
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import UserError

ENDINGS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")


def locate(path: str, usual: tuple[str, ...] = ()) -> Path:
    """The file on this machine. `hf:owner/name/file` is fetched from the Hugging Face hub into the user's cache;
    `hf:owner/name` takes the first of the `usual` files that is there, or the only one that holds weights.

    Raises:
        UserError: no such file, no such repository, no network, or several files to choose from.
    """
    if not path.startswith("hf:"):
        if not Path(path).is_file():
            raise UserError(f"no file {path}: give a checkpoint, or hf:owner/name/file to fetch one from the hub")
        return Path(path)
    owner, _, rest = path.removeprefix("hf:").partition("/")
    name, _, file = rest.partition("/")
    if not owner or not name:
        raise UserError(f"{path!r} names no repository: write hf:owner/name or hf:owner/name/file")
    from huggingface_hub import HfApi, hf_hub_download

    repository = f"{owner}/{name}"
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.CRITICAL)  # it tells of every retry, and the error below says it once
    try:
        if not file:
            file = _choose(path, HfApi().list_repo_files(repository), usual)
        return Path(hf_hub_download(repository, file))
    except UserError:
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(
            f"{path} could not be fetched ({reason}): check name and network, or download the file and give its path"
        ) from None
    finally:
        hub.setLevel(level)


def _choose(path: str, files: list[str], usual: tuple[str, ...]) -> str:
    weights = [file for file in files if file.endswith(ENDINGS)]
    for file in usual:
        if file in weights:
            return file
    if len(weights) == 1:
        return weights[0]
    what = f"has {', '.join(weights[:10])}" if weights else f"has no file that ends in {', '.join(ENDINGS)}"
    raise UserError(f"{path} {what}: name one, as in {path}/FILE")


def read_weights(path: Path, wrappers: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, floats as float32. `wrappers` are the dotted keys that may hold them.

    Raises:
        UserError: damaged, not a checkpoint, or with Python objects that would have to be run to be read.
    """
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))  # what would have to be imported
        if foreign is None:
            raise UserError(f"{path} cannot be read as a checkpoint (it is none of torch): fetch it again") from None
        raise UserError(_foreign(path, foreign[1], wrappers)) from None
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(f"{path} cannot be read as a checkpoint ({reason}): fetch it again") from None
    weights = _unwrap(content, wrappers)
    if not isinstance(weights, dict) or not weights or not all(isinstance(t, Tensor) for t in weights.values()):
        places = " or ".join([*wrappers, "the file itself"])
        raise UserError(f"{path} holds no weights: expected tensors by name in {places}")
    return {str(name): t.float() if t.is_floating_point() else t for name, t in weights.items()}


def _unwrap(content: Any, wrappers: tuple[str, ...]) -> Any:
    for wrapper in wrappers:
        inner = content
        for key in wrapper.split("."):
            inner = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            return inner
    return content


def _foreign(path: Path, name: str, wrappers: tuple[str, ...]) -> str:
    keys = "".join(f"[{key!r}]" for key in wrappers[-1].split(".")) if wrappers else ""
    export = f"torch.save(torch.load({path.name!r}, map_location='cpu', weights_only=False){keys}, 'weights.pt')"
    return (
        f"{path} holds Python objects ({name}) beside its weights, and reading them would run foreign code: where you "
        f"trust it, export the weights with {export} and import weights.pt"
    )
