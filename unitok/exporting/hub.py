"""What is sent to the Hugging Face hub: the files of a folder, a card, a picture. One commit holds all of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers_vq.base import ImageTokenizer, load_tokenizer
from tokenizers_vq.errors import UserError, shown
from tokenizers_vq.storage.files import part
from tokenizers_vq.storage.hub import from_hub, why

from ..model import CONFIG, IMAGE_TOKENIZER, TEXT_TOKENIZER, WEIGHTS, UniTok
from ..tuning.adapter import is_adapter

PARTS = (CONFIG, WEIGHTS, IMAGE_TOKENIZER, TEXT_TOKENIZER)


def open_either(folder: Path) -> UniTok | ImageTokenizer:
    """The model or the tokenizer in a folder.

    Raises:
        UserError: neither, an adapter, or damaged files.
    """
    if str(folder).startswith("hf:"):
        raise UserError(f"{folder} is on the hub already: give a local folder")
    if is_adapter(folder):
        raise UserError(
            f"{folder} is an adapter, which opens beside its base alone: join both with unitok merge {folder} --out DIR"
        )
    model = part(folder, TEXT_TOKENIZER).exists() or part(folder, IMAGE_TOKENIZER).exists()
    return UniTok.from_pretrained(folder) if model else load_tokenizer(folder)


def files_of(folder: Path) -> dict[str, Path]:
    """Name on the hub -> file, of what a model or a tokenizer is; checkpoints, logs and settings of a run are not."""
    found: dict[str, Path] = {}
    for name in PARTS:
        place = part(folder, name)
        inside = sorted(place.rglob("*")) if place.is_dir() else [place]
        found |= {f"{name}{str(file)[len(str(place)) :]}": file for file in inside if file.is_file()}
    return found


def send(name: str, files: dict[str, Path], private: bool, message: str) -> str:
    """Makes the repository if need be, and commits the files to it. Returns its address.

    Raises:
        UserError: no token, no permission, no network.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    with from_hub(
        lambda error: (
            f"{name} could not be sent ({why(error)}): check "
            "name, network and token (hf auth login, or HF_TOKEN with the right to write)"
        )
    ):
        api = HfApi()
        address = api.create_repo(name, private=private, exist_ok=True)
        operations = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=file) for path, file in files.items()]
        api.create_commit(name, operations, commit_message=message)
        return str(address)


def check_text_encoder(made: UniTok | ImageTokenizer, folder: Path) -> None:
    """Raises UserError for a model that reads captions through an encoder in a folder, which nobody else has."""
    encoder = made.config.text_encoder if isinstance(made, UniTok) else None
    if encoder is not None and encoder.revision is None:
        raise UserError(
            f"{folder} names its text encoder in {encoder.name}, which others do not have: name the one on the hub "
            f"with unitok merge {folder} --text_encoder hf:owner/name --out DIR"
        )


def check_name(name: str, licence: str) -> None:
    """Raises UserError for what the hub would refuse."""
    owner, _, model = name.partition("/")
    if not all(_is_word(word) for word in (owner, model)):
        raise UserError(f"the name is {shown(name)}: give owner/name, of letters, digits, and - . _ between them")
    if not _is_word(licence) or licence != licence.lower():
        raise UserError(
            f"--licence is {shown(licence)}: give a licence as the hub names it, such as mit, apache-2.0, cc-by-4.0 or "
            "other"
        )


def _is_word(text: str) -> bool:
    plain = text.replace("-", "").replace(".", "").replace("_", "")
    return 0 < len(text) <= 96 and plain.isascii() and plain.isalnum() and text[0].isalnum() and text[-1].isalnum()


def newest_picture(folder: Path, names: Sequence[str] = ("sheet.png", "samples/*.png")) -> Path | None:
    """The last pictures that a run drew, if there are any."""
    for name in names:
        if found := sorted(folder.glob(name)):
            return found[-1]
    return None
