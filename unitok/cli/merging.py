"""`unitok merge`. Free of torch until it runs, so that help is quick."""

from __future__ import annotations

import sys
from pathlib import Path

from tokenizers_vq.errors import UserError

from .importing import check_free, write_made


def merge(
    *,
    model: Path,
    out: Path,
    base: Path | None = None,
    image_tokenizer: Path | None = None,
    text_encoder: str | None = None,
) -> None:
    """Join what was tuned apart into one ordinary model folder: an adapter with the model that it was learned on, a
    model with a tokenizer whose decoder was trained on; or name another text encoder.

    The other commands take an adapter as it is, too: --model runs/adapter.

    Args:
        model: Folder of an adapter, as written by unitok train generator with --lora.rank, or of a model.
        out: New folder for the model.
        base: Folder of the model that the adapter was learned on; by default where the adapter says.
        image_tokenizer: Folder of a tokenizer that makes the same codes as the model's own, as written by unitok train
            tokenizer with --trainable 'decoder.*'.
        text_encoder: Folder of the text encoder of a model that reads captions as states, or hf:owner/name: where its
            folder names none, or it has moved.

    Example:
        unitok merge runs/adapter --out runs/tuned
        unitok merge runs/generator --image_tokenizer runs/decoder --out runs/tuned
    """
    check_free(out)
    from tokenizers_vq.storage.hub import local_folder

    from ..model import UniTok
    from ..tuning.adapter import is_adapter, open_adapter

    model = local_folder(model)
    adapter = is_adapter(model)
    if not adapter and image_tokenizer is None and text_encoder is None:
        raise UserError(
            f"{model} holds no adapter: give the folder of a run with --lora.rank, or --image_tokenizer, or "
            "--text_encoder"
        )
    if not adapter and base is not None:
        raise UserError(f"{model} holds no adapter: leave --base out")
    made = open_adapter(model, base) if adapter else UniTok.from_pretrained(model)
    if image_tokenizer is not None:
        from tokenizers_vq.base import load_tokenizer

        made = made.with_tokenizer(load_tokenizer(image_tokenizer))
    if text_encoder is not None:
        made.config.text_encoder = made.caption_states.named(text_encoder)
    write_made(out, made, lambda: UniTok.from_pretrained(out).fingerprint(), "generator")
    print(f"model: {out}")
    count = sum(weight.numel() for module in (made.trunk, made.ids, made.ports) for weight in module.parameters())
    print(f"{count:,} parameters", file=sys.stderr)
