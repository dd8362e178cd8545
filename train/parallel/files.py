"""Tensors in shards as files, by torch.distributed.checkpoint: a folder of safetensors, one from each process.

    model/shard-00001-model-00001-of-00001.safetensors      of the first process
    model/shard-00002-model-00001-of-00001.safetensors      of the second

Each file says which part of a tensor it holds, so any number of processes can read them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor

from tokenizers_vq.errors import UserError
from tokenizers_vq.storage.files import sha256_of
from tokenizers_vq.storage.weights import check_finite
from unitok.processes.world import World

from .tensors import local


def write_shards(folder: Path | None, parts: Mapping[str, Mapping[str, Tensor]], world: World) -> dict[str, str]:
    """Writes each part into a folder of its name in `folder`, which the first process names. All processes come here.

    Returns:
        The digests of all files, by name.

    Raises:
        UserError: a weight is not finite, or the disk of some process is full.
    """
    import torch.distributed.checkpoint as dcp  # here, for it takes most of a second
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    place = Path(world.from_main(lambda: str(folder)))
    why = "the training has diverged: lower optim.lr and start again"
    for name, tensors in parts.items():
        world.together(partial(check_finite, local(tensors), f"{name} is not written", why))
        try:
            # As an error of its own an OSError of one process arrives in all of them.
            writer = HuggingFaceStorageWriter(str(place / name), save_distributed=True)
            dcp.save(dict(tensors), storage_writer=writer, process_group=world.group)
        except CheckpointException as error:
            rank, (cause, _) = min(error.failures.items())
            if world.rank != rank:
                raise SystemExit(2) from error
            raise UserError(
                f"cannot write {place / name}: {getattr(cause, 'strerror', None) or _said(cause)}; free some space, "
                "then run the same command again with --resume"
            ) from error
    own = [file for name in parts for file in sorted((place / name).glob(f"shard-{world.rank + 1:05d}-*"))]
    digests = {file.relative_to(place).as_posix(): sha256_of(file) for file in own}
    return {name: digest for one in world.gather(digests) for name, digest in one.items()}


def read_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fills tensors, or the parts of them that this process holds, with what `write_shards` wrote.

    Raises:
        UserError: the files cannot be read, or do not fit.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    found = sizes(folder)
    problems = [f"it lacks {name}" for name in sorted(tensors.keys() - found.keys())]
    problems += [f"it holds {name}, which this run has not" for name in sorted(found.keys() - tensors.keys())]
    problems += [
        f"{name} is {tuple(found[name])} instead of {tuple(tensor.shape)}"
        for name, tensor in tensors.items()
        if name in found and found[name] != tensor.shape
    ]
    if problems:
        raise UserError(f"{folder} does not fit this run: {problems[0]}: {ADVICE}")
    try:
        reader = HuggingFaceStorageReader(str(folder))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is no mistake
            dcp.load(dict(tensors), storage_reader=reader, no_dist=not dist.is_initialized())
    except (CheckpointException, SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{folder} cannot be read ({_said(error)}): {ADVICE}") from error
    check_finite(local(tensors), f"{folder} holds NaN or infinity", ADVICE)


def sizes(folder: Path) -> dict[str, torch.Size]:
    """Name -> size of the tensors that `write_shards` wrote. Raises UserError for a folder that cannot be read."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    try:
        found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        return {name: about.size for name, about in found.items()}  # type: ignore[union-attr]
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} cannot be read ({_said(error)}): {ADVICE}") from error


ADVICE = "the checkpoint is damaged or of another run: start again in another --out"


def _said(error: BaseException) -> str:
    for _, (cause, _) in sorted(getattr(error, "failures", {}).items()):
        return _said(cause)
    return " ".join(str(error).split())[:200] or type(error).__name__
