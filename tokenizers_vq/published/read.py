"""Checkpoint files of others: from the hub or the disk, as plain tensors and nothing else."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from torch import Tensor

from ..errors import UserError
from ..storage.files import parse_json, read_bytes
from ..storage.foreign import read_tensors
from ..storage.hub import from_hub, why

INDEX = ".index.json"
"""End of the name of the list that says which of several files holds which tensor."""
ENDINGS = (INDEX, ".safetensors", ".pt", ".pth", ".ckpt", ".bin")
MAX_INDEX = 2**26
"""Bytes of an index."""
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Where trainers in general put weights: Lightning, plain torch, DeepSpeed."""
MARKS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of a name that DDP, compilation, FSDP and recomputed activations put in, at any place and in any order."""


def locate(path: str, usual: tuple[str, ...] = ()) -> Path:
    """The file on this machine: one of weights, or the index of several. `hf:owner/name/file` is fetched from the
    Hugging Face hub into the user's cache, with all files of an index; `hf:owner/name`, like a folder, takes the first
    of the `usual` files that is there, or the only one that holds weights.

    Raises:
        UserError: no such file, no such repository, no network, or several files to choose from.
    """
    if not path.startswith("hf:"):
        if Path(path).is_dir():
            return Path(path) / _choose(path, sorted(one.name for one in Path(path).iterdir()), usual)
        if not Path(path).is_file():
            raise UserError(f"no file {path}: give a checkpoint, or hf:owner/name/file to fetch one from the hub")
        return Path(path)
    owner, _, rest = path.removeprefix("hf:").partition("/")
    name, _, file = rest.partition("/")
    if not owner or not name:
        raise UserError(f"{path!r} names no repository: write hf:owner/name or hf:owner/name/file")
    from huggingface_hub import HfApi, hf_hub_download

    repository = f"{owner}/{name}"
    with from_hub(
        lambda error: (
            f"{path} could not be fetched ({why(error)}): "
            "check name and network, or download the file and give its path"
        )
    ):
        if not file:
            file = _choose(path, HfApi().list_repo_files(repository), usual)
        found = Path(hf_hub_download(repository, file))
        for part in parts_of(found):
            hf_hub_download(repository, f"{file.rpartition('/')[0]}/{part}".lstrip("/"))
        return found


def beside(path: str, file: Path, name: str) -> Path:
    """Where a further file of a model lies: beside the file of weights that `locate` found for a path, fetched from
    there if need be. It may not exist.

    Raises:
        UserError: the hub cannot be reached.
    """
    if path.startswith("hf:"):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import RemoteEntryNotFoundError

        owner, model, *inside = path.removeprefix("hf:").split("/")
        with (
            from_hub(lambda error: f"{name} of {path} could not be fetched ({why(error)}): check network"),
            suppress(RemoteEntryNotFoundError),
        ):
            hf_hub_download(f"{owner}/{model}", "/".join([*inside[:-1], name]))
    return file.parent / name


def _choose(path: str, files: list[str], usual: tuple[str, ...]) -> str:
    weights = [file for file in files if file.endswith(ENDINGS)]
    for file in usual:
        if file in weights:
            return file
    indices = [file for file in weights if file.endswith(INDEX)]
    if len(weights) == 1 or len(indices) == 1:
        return (indices or weights)[0]
    what = f"has {', '.join(weights[:10])}" if weights else f"has no file that ends in {', '.join(ENDINGS)}"
    raise UserError(f"{path} {what}: name one, as in {path}/FILE")


def parts_of(path: Path) -> list[str]:
    """The names of the files that an index lists, which stand beside it; none for a file of weights.

    Raises:
        UserError: an index that lists no files, or files elsewhere.
    """
    if not path.name.endswith(INDEX):
        return []
    values = parse_json(read_bytes(path, MAX_INDEX), str(path))
    listed = values.get("weight_map") if isinstance(values, dict) else None
    names = list(dict.fromkeys(listed.values())) if isinstance(listed, dict) else []
    fit = [one for one in names if isinstance(one, str) and Path(one).name == one and one.endswith(ENDINGS[1:])]
    if not names or len(fit) != len(names):
        raise UserError(f"{path} lists no files of weights beside it: fetch it again")
    return fit


def read_weights(path: Path, wrappers: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, or of all files of an index, by their authors' names. `wrappers` are the dotted keys
    that may hold them, beside those that trainers in general use.

    Raises:
        UserError: damaged, not a checkpoint, or without tensors by name.
    """
    weights: dict[str, Tensor] = {}
    for file in [path.parent / part for part in parts_of(path)] or [path]:
        for name, tensor in read_tensors(file, tuple(dict.fromkeys([*wrappers, *WRAPPERS]))).items():
            plain = ".".join(part for part in name.split(".") if part not in MARKS)
            if plain in weights:
                raise UserError(
                    f"{path} holds {plain} twice, once as {name}: save the weights of one of the two modules"
                )
            weights[plain] = tensor
    return weights
