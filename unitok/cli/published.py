"""`unitok import-tokenizer`. Free of torch until it runs, so that help is quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tokenizers_vq.errors import UserError
from tokenizers_vq.files import is_ours_alone

from ..lock import LOCK_FILE

if TYPE_CHECKING:
    from tokenizers_vq.base import ImageTokenizer

PARTS = ("config.json", "model.safetensors")
"""Of a tokenizer's folder."""
FamilyName = Literal["taming_vqgan", "llamagen_vq", "var_vae", "showo_magvitv2", "open_magvit2", "ibq"]


def import_tokenizer(*, family: FamilyName, file: str, out: Path, settings: dict[str, Any] | None = None) -> None:
    """Turn a published checkpoint into a tokenizer folder, for --image_tokenizer and --tokenizer of all commands.

    Gives the same codes as the authors' code. Which released model the file is shows in the shapes of its tensors; all
    of them are checked. docs/tokenizers.md lists models and licences.

    Args:
        family: Family of the checkpoint, such as taming_vqgan.
        file: Checkpoint (.pt, .pth, .ckpt, .bin, .safetensors), or hf:owner/name, or hf:owner/name/file.
        out: New folder for the tokenizer.
        settings: What differs from the released model, under its authors' names, as in '{"image_size": 512}'; their own
            configuration of the model may be given as it is.

    Example:
        unitok import-tokenizer showo_magvitv2 hf:showlab/magvitv2 --out runs/magvitv2
        unitok import-tokenizer var_vae vae_ch160v4096z32.pth --out runs/var
    """
    if _holds_more_than(out, LOCK_FILE, *PARTS):
        raise UserError(f"--out {out} is not empty: choose a new folder")
    odd = [name for name in settings or {} if not isinstance(name, str)]
    if odd:
        raise UserError(f"--settings has the name {odd[0]!r}: give settings under their authors' names")

    from tokenizers_vq.published import load_published

    tokenizer = load_published(family, file, **(settings or {}))
    if not _holds_more_than(out, LOCK_FILE):
        tokenizer.save_pretrained(out)
    elif _is(out, tokenizer):  # this command was killed after its work was done
        print(f"{out} holds this tokenizer already: nothing was written", file=sys.stderr)
    else:
        raise UserError(f"--out {out} holds another tokenizer, or a damaged one: choose a new folder")
    layout = tokenizer.layout
    grids = " + ".join(f"{height}x{width}" for height, width in layout.scales)
    height, width = tokenizer.image_size
    print(f"tokenizer: {out}")
    print(f"{height}x{width} pixels -> {grids} codes out of {tokenizer.codebook_size}", file=sys.stderr)


def _holds_more_than(folder: Path, *names: str) -> bool:
    return folder.is_dir() and not is_ours_alone(folder, frozenset(names))


def _is(folder: Path, tokenizer: ImageTokenizer) -> bool:
    """Whether a folder holds exactly this tokenizer."""
    from tokenizers_vq.base import load_tokenizer

    try:
        return load_tokenizer(folder).fingerprint() == tokenizer.fingerprint()
    except UserError:
        return False
