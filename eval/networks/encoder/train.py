"""Trains the embedded dual encoder: CLIP's symmetric contrastive loss on `shapes` scenes and emoji.

    python -m unitok.eval.networks.encoder.train --emoji DIR --out encoder.safetensors --steps 2000

A third of a batch are scenes, each with false captions that get one attribute wrong, which are further negatives of
their own picture; captions of emoji outside the batch are negatives too. The weights written are a running average, so
a stopped run leaves a usable file.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor

from unitok.seeding import fold, keyed_generator

from .data import Batch, Emoji, Scenes, augment
from .measure import measure
from .model import DualEncoder, load_encoder, save_encoder


def contrastive_loss(model: DualEncoder, images: Tensor, batch: Batch) -> Tensor:
    """Mean of picture -> caption (false captions included) and caption -> picture cross entropies."""
    count = len(batch.captions)
    false = [caption for captions in batch.wrong for caption in captions]
    owner = torch.tensor([row for row, captions in enumerate(batch.wrong) for _ in captions], dtype=torch.int64)
    picture = model.image_embeddings(model.image(images))
    others = [caption for _, caption in batch.others]  # short ones: apart, so that they are not padded
    text = torch.cat([model.text_embeddings(batch.captions + false), model.text_embeddings(others)])
    logits = model.log_scale.exp().clamp(max=100) * picture @ text.T  # (B, B + false + others)
    true = batch.targets()
    weight = true.float() / true.sum(dim=1, keepdim=True)
    foreign = torch.ones(count, len(false), dtype=torch.bool)
    foreign[owner, torch.arange(len(false))] = False
    maybe_true = torch.tensor([[group == other for other, _ in batch.others] for group in batch.group])
    left_out = torch.cat([torch.zeros(count, count, dtype=torch.bool), foreign, maybe_true], dim=1)
    logits = logits.masked_fill(left_out, -torch.inf)
    to_text = torch.logsumexp(logits, dim=1) - (weight * logits[:, :count]).sum(dim=1)
    back = logits[:, :count].T
    weight = true.T.float() / true.T.sum(dim=1, keepdim=True)
    to_picture = torch.logsumexp(back, dim=1) - (weight * back).sum(dim=1)
    return (to_text.mean() + to_picture.mean()) / 2


def average_weights(average: DualEncoder, model: DualEncoder, decay: float) -> None:
    with torch.no_grad():
        for kept, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
            if new.is_floating_point():
                kept.lerp_(new, 1 - decay)
            else:
                kept.copy_(new)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(fold(args.seed, "encoder"))
    model = DualEncoder().to(memory_format=torch.channels_last)
    average = copy.deepcopy(model).eval()
    scenes, emoji = Scenes(args.seed), Emoji(args.emoji, "train", args.seed)
    matrices = [value for value in model.parameters() if value.ndim > 1]
    vectors = [value for value in model.parameters() if value.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    options = ("steps", "batch", "others", "lr", "seed")
    notes = {"command": " ".join(f"--{name} {getattr(args, name)}" for name in options)}
    start, seen, losses = time.time(), 0, []
    for step in range(args.steps):
        shown = min(1.0, (step + 1) / 100) * (0.02 + 0.98 * (1 + math.cos(math.pi * step / args.steps)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * shown
        batch = Batch()
        for kind, count in ((scenes, args.batch // 3), (emoji, args.batch - args.batch // 3)):
            for slot in range(count):
                kind.add(batch, step * count + slot)
        emoji.add_others(batch, args.others, step)
        images = augment(
            model.prepare(torch.stack(batch.images)),
            keyed_generator(args.seed, "encoder", "augment", step),
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = contrastive_loss(model, images, batch)
        if not torch.isfinite(loss):
            raise SystemExit(f"the loss is not finite at step {step}: lower --lr")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average_weights(average, model, min(0.995, (step + 1) / (step + 10)))
        seen += args.batch
        losses.append(float(loss.detach()))
        if (step + 1) % 50 == 0:
            speed = seen / (time.time() - start)
            print(f"step {step + 1} loss {sum(losses[-50:]) / 50:.3f} images/s {speed:.0f}", flush=True)
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            save_encoder(average, args.out, notes | {"steps": str(step + 1), "seconds": f"{time.time() - start:.0f}"})
    print(json.dumps(measure(load_encoder(args.out), args.emoji), indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emoji", type=Path, required=True, help="folder of the emoji data set (train-*.parquet)")
    parser.add_argument("--out", type=Path, required=True, help="file to write, rewritten as the run goes on")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=128, help="pictures per step, a third of them scenes")
    parser.add_argument("--others", type=int, default=384, help="captions of further emoji, as wrong ones, per step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=250)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
