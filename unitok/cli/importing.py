"""`unitok import`. Free of torch until it runs, so that help is quick."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tokenizers_vq.errors import UserError, shown
from tokenizers_vq.storage.files import is_ours_alone, read_json

from ..lock import LOCK_FILE
from ..trunk.published import PUBLISHED
from .yaml_file import read_yaml

if TYPE_CHECKING:
    from tokenizers_vq.base import ImageTokenizer

    from ..model import UniTok

PARTS = ("config.json", "model.safetensors", "image_tokenizer", "text_tokenizer")
"""Of the folder of a tokenizer or a generator."""
FamilyName = Literal[
    "taming_vqgan",
    "llamagen_vq",
    "var_vae",
    "showo_magvitv2",
    "open_magvit2",
    "ibq",
    "seed",
    "infinity_vae",
    "emu3_vq",
    "llamagen",
    "var",
    "janus",
    "chameleon",
    "lumina",
    "showo",
    "seed_llama",
    "infinity",
    "open_magvit2_ar",
    "ibq_ar",
    "emu3",
]


def import_published(
    *,
    family: FamilyName,
    file: str,
    out: Path,
    image_tokenizer: Path | None = None,
    settings: dict[str, Any] | Path | None = None,
    text_encoder: str | None = None,
) -> None:
    """Turn a published checkpoint into a folder like any other: a tokenizer for --image_tokenizer and --tokenizer, or a
    generator (llamagen, var, janus, chameleon, lumina, showo, seed_llama, infinity, open_magvit2_ar,
    ibq_ar, emu3) for --model.

    Gives the same codes as the authors' code. Which released model the file is shows in the shapes of its tensors; all
    of them are checked. docs/tokenizers.md and docs/published.md list models and licences.

    Args:
        family: Family of the checkpoint, such as taming_vqgan or llamagen.
        file: Checkpoint (.pt, .pth, .ckpt, .bin, .safetensors, or the .index.json of several), or its folder, or
            hf:owner/name, or hf:owner/name/file.
        out: New folder for the tokenizer or the generator.
        image_tokenizer: Of a generator: folder of the tokenizer that it was trained with, imported before; not needed
            where the file holds it (janus, emu3).
        settings: What the file does not say, under its authors' names, as in '{"image_size": 512}'; or a YAML or JSON
            file with it, such as their own configuration of the model as it is.
        text_encoder: Of a generator that reads captions as states (infinity, llamagen of captions): folder of the text
            encoder, or hf:owner/name. The model keeps its name and digest, not its weights.

    Example:
        unitok import showo_magvitv2 hf:showlab/magvitv2 --out runs/magvitv2
        unitok import var_vae vae_ch160v4096z32.pth --out runs/var_vae
        unitok import var var_d16.pth --image_tokenizer runs/var_vae --out runs/var
        unitok import janus hf:deepseek-community/Janus-Pro-1B --out runs/janus_pro_1b
    """
    check_free(out)
    settings = _read_settings(settings) if isinstance(settings, Path) else settings
    odd = [name for name in settings or {} if not isinstance(name, str)]
    if odd:
        raise UserError(f"--settings has the name {odd[0]!r}: give settings under their authors' names")
    if family in PUBLISHED:
        _import_generator(family, file, out, image_tokenizer, settings or {}, text_encoder)
    elif image_tokenizer is not None:
        raise UserError(f"{family} is a tokenizer itself: leave --image_tokenizer out")
    elif text_encoder is not None:
        raise UserError(f"{family} is a tokenizer, and reads no captions: leave --text_encoder out")
    else:
        _import_tokenizer(family, file, out, settings or {})


def _read_settings(path: Path) -> dict[str, Any]:
    """The settings in a file. Raises UserError where it cannot be read, or holds something else."""
    try:
        found = read_json(path) if path.suffix == ".json" else read_yaml(path)
    except UserError as error:
        raise UserError(f"--settings: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"--settings {path} holds {shown(found)}: give a file of settings by their names")
    return found


def _import_tokenizer(family: str, file: str, out: Path, settings: dict[str, Any]) -> None:
    from tokenizers_vq.base import load_tokenizer
    from tokenizers_vq.published import load_published

    tokenizer = load_published(family, file, **settings)
    write_made(out, tokenizer, lambda: load_tokenizer(out).fingerprint(), "tokenizer")
    print(f"tokenizer: {out}")
    print(f"{_what(tokenizer)} codes out of {tokenizer.codebook_size}", file=sys.stderr)


def _import_generator(
    family: str,
    file: str,
    out: Path,
    image_tokenizer: Path | None,
    settings: dict[str, Any],
    text_encoder: str | None,
) -> None:
    from tokenizers_vq.base import load_tokenizer

    from ..importing import import_generator, unused_settings
    from ..model import UniTok

    images = None if image_tokenizer is None else load_tokenizer(image_tokenizer)
    model = import_generator(family, file, images, settings, text_encoder)
    unused = unused_settings(family, settings)
    if unused:
        print(f"settings that the import does not need: {', '.join(unused)}", file=sys.stderr)
    write_made(out, model, lambda: UniTok.from_pretrained(out).fingerprint(), "generator")
    print(f"model: {out}")
    count = sum(weight.numel() for module in (model.trunk, model.ids, model.ports) for weight in module.parameters())
    print(f"{count:,} parameters, {_what(model.image_tokenizer)} codes", file=sys.stderr)
    if model.config.trunk.state_width and text_encoder is None:
        print(
            f"captions are states of {model.config.trunk.text_encoder}: to draw them, import with --text_encoder, or "
            f"name one later with unitok merge {out} --text_encoder",
            file=sys.stderr,
        )


def _what(tokenizer: ImageTokenizer) -> str:
    grids = " + ".join(f"{height}x{width}" for height, width in tokenizer.layout.scales)
    height, width = tokenizer.image_size
    return f"{height}x{width} pixels -> {grids}"


def check_free(out: Path) -> None:
    """Raises UserError for a folder that holds other things than a model or a tokenizer."""
    if _holds_more_than(out, LOCK_FILE, *PARTS):
        raise UserError(f"--out {out} is not empty: choose a new folder")


def write_made(out: Path, made: ImageTokenizer | UniTok, held: Callable[[], str], kind: str) -> None:
    """Writes a folder; `held` is the fingerprint of what it holds already."""
    if not holds_more_than_a_lock(out):
        made.save_pretrained(out)
        return
    try:
        same = held() == made.fingerprint()
    except UserError:
        same = False
    if not same:
        raise UserError(f"--out {out} holds another {kind}, or a damaged one: choose a new folder")
    # This command was killed after its work was done.
    print(f"{out} holds this {kind} already: nothing was written", file=sys.stderr)


def holds_more_than_a_lock(folder: Path) -> bool:
    """Whether a folder that is to be written holds something already."""
    return _holds_more_than(folder, LOCK_FILE)


def _holds_more_than(folder: Path, *names: str) -> bool:
    return folder.is_dir() and not is_ours_alone(folder, frozenset(names))
