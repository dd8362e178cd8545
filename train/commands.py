"""The commands that train. Free of torch until one runs, so that help is quick."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from tokenizers_vq.config import ConvVQConfig, LossConfig

from .config import AugmentConfig, OptimConfig, RunConfig


def train_tokenizer(
    *,
    data: str,
    out: Path,
    preset: str = "small",
    tokenizer: ConvVQConfig,
    losses: LossConfig,
    augment: AugmentConfig,
    optim: OptimConfig,
    run: RunConfig,
    val_data: str | None = None,
) -> None:
    """Train a VQ image tokenizer on a folder of pictures.

    The output folder becomes the tokenizer: give it to --image_tokenizer of the other commands. Beside it stand
    checkpoints, log.jsonl, TensorBoard files, sample grids (originals above reconstructions) and loss.png. Ctrl-C saves;
    the same command with --run.resume true goes on. Several GPUs: torchrun --nproc-per-node 8 -m unitok train tokenizer ...

    Args:
        data: Pictures to learn from, such as shapes or pictures/ or hf:owner/name@train. Captions are not read.
        out: New folder for the tokenizer.
        preset: Starting values of --tokenizer.*
        tokenizer: The network.
        losses: What it is trained for.
        augment: Changes of the training pictures.
        optim: How the weights move.
        run: How long, on what, how often.
        val_data: Pictures to measure on, such as shapes@val.

    Example:
        unitok train tokenizer --data shapes --val_data shapes@val --preset shapes --out runs/tokenizer --run.steps 2000
    """
    settings = _settings(locals())
    from .folder import RunFolder

    folder = RunFolder(out)
    folder.claim(run.resume)

    from unitok.data.open import open_data

    from .distributed import join
    from .loop import train
    from .tokenizer import TokenizerTrainee

    dataset = open_data(data, tokenizer.size, captions=False)
    validation = open_data(val_data, tokenizer.size, captions=False) if val_data else None
    with join(run.device, run.threads) as world:
        trainee = TokenizerTrainee(tokenizer, losses, augment, dataset, validation, run, world)
        _print_parameters({name: part for name, part in trainee.tokenizer.named_children()}, world.is_main)
        facts = train(trainee, dataset, folder, settings, optim, run, world)
        if world.is_main:
            _print_result("tokenizer", out, facts)


def _settings(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a command as plain data; what names a place to write to is no setting of the run."""
    return {
        name: dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
        for name, value in arguments.items()
        if name not in ("out", "preset")
    }


def _print_parameters(parts: dict[str, Any], is_main: bool) -> None:
    if is_main:
        counts = {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()}
        text = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        print(f"parameters: {sum(counts.values()):,} ({text})", file=sys.stderr)


def _print_result(kind: str, out: Path, facts: dict[str, Any]) -> None:
    """Results go to stdout: where the model is, and its last numbers."""
    print(f"{kind}: {out}")
    print(f"steps: {facts['steps']}  seconds: {facts['seconds']}")
    for name, value in facts["numbers"].items():
        print(f"{name}: {value:.4g}")
