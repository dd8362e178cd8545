"""What the embedded encoder learns from: captioned pictures, rendered `shapes` scenes and emoji."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_vq.errors import UserError
from unitok.data.shapes.dataset import ShapesDataset
from unitok.data.shapes.scenes import (
    COLOURS,
    SHAPES,
    SIZES,
    Scene,
    describe,
    matches,
    parse,
    relation,
    render,
)
from unitok.seeding import fold

STYLES = ("noto", "twemoji", "openmoji", "fluent")
EDITS = ("shape", "colour", "size", "relation", "binding")
"""What a false caption of a scene gets wrong; `binding` exchanges an attribute of two objects."""


def say(scene: Scene, order: Sequence[int]) -> str:
    """A caption that names the objects in this order; true, though canonical for one order only."""
    subject, *others = (scene.objects[i] for i in order)
    return str(subject.kind) + " and".join(f" {relation(subject, other)} {other.kind}" for other in others)


def edit(scene: Scene, what: str, chance: random.Random) -> Scene | None:
    """A scene that differs in one attribute, or None where it cannot: colours stay distinct, as in every scene."""
    things = list(scene.objects)
    i = chance.randrange(len(things))
    if what in ("shape", "colour", "size"):
        choices: list[str] = {"shape": list(SHAPES), "colour": list(COLOURS), "size": list(SIZES)}[what]
        used = {thing.kind.colour for thing in things} if what == "colour" else {getattr(things[i].kind, what)}
        value = chance.choice([name for name in choices if name not in used])
        things[i] = replace(things[i], kind=replace(things[i].kind, **{what: value}))
        return Scene(tuple(things))
    if len(things) == 1:
        return None
    j = chance.choice([number for number in range(len(things)) if number != i])
    if what == "relation":  # exchange two places, or turn the second about the first by a right angle
        first, second = things[i], things[j]
        if chance.random() < 0.5:
            things[i], things[j] = replace(first, x=second.x, y=second.y), replace(second, x=first.x, y=first.y)
        else:
            sign = chance.choice((-1, 1))
            x, y = first.x - sign * (second.y - first.y), first.y + sign * (second.x - first.x)
            things[j] = replace(second, x=x, y=y)
        return Scene(tuple(things))
    for name in chance.sample(("shape", "colour", "size"), 3):
        one, two = getattr(things[i].kind, name), getattr(things[j].kind, name)
        if one != two:
            things[i] = replace(things[i], kind=replace(things[i].kind, **{name: two}))
            things[j] = replace(things[j], kind=replace(things[j].kind, **{name: one}))
            break
    return Scene(tuple(things))


def is_true(caption: str, scene: Scene) -> bool:
    """Whether a caption made by `say` or `describe` is true: some edits change nothing that a caption says."""
    facts = parse(caption)
    assert facts is not None, caption
    return matches(facts, scene)


@dataclass
class Batch:
    """Pictures with what may be said of them."""

    images: list[Tensor] = field(default_factory=list)
    """uint8 (3, H, W)."""
    captions: list[str] = field(default_factory=list)
    wrong: list[list[str]] = field(default_factory=list)
    """For each picture, captions that are false in one attribute."""
    others: list[tuple[str, str]] = field(default_factory=list)
    """(group, caption) of pictures that are not in the batch: false of all pictures of other groups."""
    group: list[str] = field(default_factory=list)
    """Pictures of one group ("" is none) fit each other's captions, unless those name another style."""
    style: list[str] = field(default_factory=list)

    def add(self, image: Tensor, caption: str, wrong: list[str], group: str, style: str) -> None:
        self.images.append(image)
        self.captions.append(caption)
        self.wrong.append(wrong)
        self.group.append(group)
        self.style.append(style)

    def targets(self) -> Tensor:
        """(B, B) bool: [i, j] is True when caption j is true of picture i."""
        rows = []
        for i in range(len(self.captions)):
            row = []
            for j, caption in enumerate(self.captions):
                named = f"{self.style[j]} style" in caption
                same_style = not named or self.style[i] == self.style[j]
                same_group = self.group[i] != "" and self.group[i] == self.group[j]
                row.append(i == j or caption == self.captions[i] or (same_group and same_style))
            rows.append(row)
        return torch.tensor(rows)


class Scenes:
    """Rendered scenes, at 32 and 64 px in turn, each with three false captions."""

    def __init__(self, seed: int, split: str = "train") -> None:
        self.scenes = ShapesDataset(split=split, seed=fold(seed, "encoder") % 2**31)
        self.seed = seed

    def add(self, batch: Batch, index: int) -> None:
        """Scene `index`, its objects named in a random order half of the time."""
        chance = random.Random(fold(self.seed, "encoder", "scene", index))
        scene = self.scenes.scene(index)
        count, canonical = len(scene.objects), chance.random() < 0.5

        def caption(of: Scene) -> str:
            return describe(of) if canonical else say(of, chance.sample(range(count), count))

        kinds = (*chance.sample(EDITS[:3], 1 if count > 1 else 3), "relation", "binding")
        edited = [edit(scene, what, chance) for what in kinds]
        wrong = [text for text in (caption(other) for other in edited if other) if not is_true(text, scene)]
        batch.add(picture(scene, (32, 64)[index % 2]), caption(scene), wrong, "", "")


def picture(scene: Scene, size: int) -> Tensor:
    """The scene drawn at a size, as uint8 (3, 64, 64)."""
    image = torch.from_numpy(render(scene, size)).permute(2, 0, 1)
    if size != 64:
        image = F.interpolate(image[None].float(), size=(64, 64), mode="bilinear", antialias=True)[0].round().byte()
    return image


class Emoji:
    """Emoji pictures (64x64) with captions of several kinds: the name, the name and the style, tags, the category."""

    def __init__(self, folder: Path, split: str, seed: int = 0) -> None:
        import pyarrow.parquet as parquet
        from PIL import Image
        from torchvision.transforms.functional import pil_to_tensor

        files = sorted(folder.glob(f"{split}-*.parquet"))
        if not files:
            raise UserError(f"{folder} holds no {split}-*.parquet: give the folder of the emoji data set")
        self.rows = [row for file in files for row in parquet.read_table(file).to_pylist()]
        pictures = [Image.open(io.BytesIO(row.pop("image")["bytes"])).convert("RGB") for row in self.rows]
        self.images = torch.stack([pil_to_tensor(picture) for picture in pictures])
        self.seed = seed

    def add(self, batch: Batch, index: int) -> None:
        """Picture `index` of an endless run; each epoch has its own order."""
        epoch, place = divmod(index, len(self.rows))
        order = torch.randperm(
            len(self.rows), generator=torch.Generator().manual_seed(fold(self.seed, "encoder", epoch))
        )
        number = int(order[place])
        row, chance = self.rows[number], random.Random(fold(self.seed, "encoder", "emoji", index))
        style, kind = row["style"], chance.random()
        tags = list(row["tags"] or [])
        if kind < 0.15 and tags:
            words = ", ".join(chance.sample(tags, min(len(tags), chance.randint(1, 4))))
        elif kind < 0.2:
            words = " ".join([row["category"], row["subcategory"]]).replace("-", " ")
        else:
            words = row["text"]
        caption = words if chance.random() < 0.3 else f"{words}, {style} style"
        other = chance.choice([name for name in STYLES if name != style])
        wrong = [f"{words}, {other} style"] if caption != words else []
        batch.add(self.images[number], caption, wrong, row["text"], style)

    def add_others(self, batch: Batch, count: int, step: int) -> None:
        """Names in styles of pictures anywhere in the data set: text is cheap, and more wrong captions teach more."""
        chance = random.Random(fold(self.seed, "encoder", "others", step))
        for row in chance.sample(self.rows, count):
            batch.others.append((row["text"], f"{row['text']}, {row['style']} style"))


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Small shifts, scales, blurs and changes of colour, so that near pictures get near features.

    Nothing is mirrored, for left is not right. images: float (B, 3, S, S) in [-1, 1].
    """

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    count = len(images)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = draw(0.93, 1.07, count)
    theta[:, :, 2] = draw(-0.08, 0.08, count, 2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    x = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x = torch.lerp(x, blurred, draw(-0.6, 0.6, count, 1, 1, 1).clamp(min=0))
    x = x * draw(0.92, 1.08, count, 1, 1, 1) + draw(-0.06, 0.06, count, 3, 1, 1)
    noise = torch.randn(x.shape, generator=generator) * draw(-0.06, 0.06, count, 1, 1, 1).clamp(min=0)
    return (x + noise).clamp(-1, 1).contiguous(memory_format=torch.channels_last)
