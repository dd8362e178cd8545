"""What the embedded encoder can do, in numbers: retrieval among the emoji, false captions of scenes."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor

from unitok.data.shapes.dataset import ShapesDataset
from unitok.data.shapes.scenes import describe
from unitok.seeding import fold

from ...metrics.alignment import nearest_group
from .data import EDITS, STYLES, Emoji, edit, is_true, picture
from .model import DualEncoder


@torch.no_grad()
def picture_embeddings(model: DualEncoder, images: Tensor, size: int = 128) -> Tensor:
    parts = [model.image_embeddings(model.image(model.prepare(part))) for part in images.split(size)]
    return torch.cat(parts)


@torch.no_grad()
def caption_embeddings(model: DualEncoder, captions: list[str], size: int = 256) -> Tensor:
    return torch.cat([model.text_embeddings(captions[i : i + size]) for i in range(0, len(captions), size)])


def emoji_retrieval(model: DualEncoder, folder: Path) -> dict[str, float]:
    """Held-out emoji pictures: is the right caption the nearest (top 1) or among the five nearest of all 1,914?"""
    val, train = Emoji(folder, "val"), Emoji(folder, "train")
    names = sorted({row["text"] for row in val.rows + train.rows})
    right = torch.tensor([names.index(row["text"]) for row in val.rows])
    pictures = picture_embeddings(model, val.images)
    result = {"captions": float(len(names))}
    plain = pictures @ caption_embeddings(model, names).T  # (val, names)
    styled = torch.zeros_like(plain)
    for style in STYLES:
        rows = [i for i, row in enumerate(val.rows) if row["style"] == style]
        styled[rows] = pictures[rows] @ caption_embeddings(model, [f"{name}, {style} style" for name in names]).T
    for label, scores in {"plain": plain, "styled": styled}.items():
        rank = (scores > scores.gather(1, right[:, None])).sum(dim=1)
        result[f"{label}_top1"] = (rank < 1).float().mean().item()
        result[f"{label}_top5"] = (rank < 5).float().mean().item()
    return result


@torch.no_grad()
def emoji_neighbours(model: DualEncoder, folder: Path) -> dict[str, float]:
    """Held-out emoji pictures: is the nearest train picture, by the pooled feature, one of the same emoji?"""
    vectors, names = [], []
    for split in ("val", "train"):
        emoji = Emoji(folder, split)
        names.append([row["text"] for row in emoji.rows])
        vectors.append(torch.cat([model.image(model.prepare(part)) for part in emoji.images.split(128)]))
    return nearest_group(vectors[0], names[0], vectors[1], names[1])


def scene_discrimination(model: DualEncoder, count: int = 500, seed: int = 1) -> dict[str, float]:
    """Held-out scenes at 32 px: how often is the true caption nearer than one that is false in one attribute?

    False captions are canonical sentences like the true ones, so the caption alone does not give them away.
    """
    dataset = ShapesDataset(split="val", seed=seed, length=count)
    scenes = [dataset.scene(index) for index in range(count)]
    pictures = picture_embeddings(model, torch.stack([picture(scene, 32) for scene in scenes]))
    true = caption_embeddings(model, [describe(scene) for scene in scenes])
    result = {}
    for what in EDITS:
        edited = [edit(scene, what, random.Random(fold(seed, what, i))) for i, scene in enumerate(scenes)]
        captions = [describe(other) if other else "" for other in edited]
        rows = [i for i, text in enumerate(captions) if text and not is_true(text, scenes[i])]
        false = caption_embeddings(model, [captions[i] for i in rows])
        result[what] = ((pictures[rows] * (true[rows] - false)).sum(dim=1) > 0).float().mean().item()
    return result


def measure(model: DualEncoder, emoji: Path) -> dict[str, dict[str, float]]:
    """All of it, by data set."""
    return {
        "emoji captions": emoji_retrieval(model, emoji),
        "emoji neighbours": emoji_neighbours(model, emoji),
        "shapes": scene_discrimination(model),
    }
