"""`unitok merge`. Free of torch until it runs, so that help is quick."""

from __future__ import annotations

import sys
from pathlib import Path

from tokenizers_vq.errors import UserError

from .importing import check_free, write_made


def merge(*, adapter: Path, out: Path, base: Path | None = None) -> None:
    """Join an adapter and the model that it was learned on into an ordinary model folder.

    The other commands take an adapter as it is, too: --model runs/adapter. A model folder needs no second one.

    Args:
        adapter: Folder of the adapter, as written by unitok train generator with --lora.rank.
        out: New folder for the model.
        base: Folder of the model that it was learned on; by default where the adapter says.

    Example:
        unitok merge runs/adapter --out runs/tuned
    """
    check_free(out)
    from ..model import UniTok
    from ..tuning.adapter import is_adapter, open_adapter

    if not is_adapter(adapter):
        raise UserError(f"{adapter} holds no adapter: give the folder of a run with --lora.rank")
    model = open_adapter(adapter, base)
    write_made(out, model, lambda: UniTok.from_pretrained(out).fingerprint(), "generator")
    print(f"model: {out}")
    count = sum(weight.numel() for module in (model.trunk, model.ids, model.ports) for weight in module.parameters())
    print(f"{count:,} parameters", file=sys.stderr)
