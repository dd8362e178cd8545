"""Stories of `shapes`: texts and pictures in turns, and who judges them.

    a large blue square                                        its picture
    add a small red cross left of the square                   the picture after that
    make the small red cross large                             the picture after that

The first text is the caption of a scene, each further one an instruction in the language of edits. A story is made
backwards from its last scene, and no scene comes twice.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch

from ...seeding import fold
from .checker import judge, read_picture, scene_of
from .edits import change_of, edit_to, judge_change
from .scenes import Scene, describe, parse


@dataclass(frozen=True)
class Step:
    """A text and the scene that it leads to."""

    text: str
    scene: Scene


@dataclass(frozen=True)
class StepVerdict:
    """How far one step of a story is right."""

    text: bool
    """It is a caption (the first), or an instruction that can be applied to what the picture before shows."""
    picture: bool
    """It shows what the text says or makes of the picture before; never so where the text is wrong."""

    @property
    def all(self) -> bool:
        return self.text and self.picture


def story(scene: Scene, seed: int, index: int, split: str, steps: int = 3) -> tuple[Step, ...]:
    """The story that ends in a scene and belongs to one key; in "train" no scene has a held-out combination.

    Args:
        steps: at least 1; a longer story ends in the shorter one of the same key, but for the caption.
    """
    draw = random.Random(fold("shapes", "story", seed, split, index)).random
    scenes, told = [scene], []
    for _ in range(steps - 1):
        made = edit_to(scenes[-1], split, draw, seen=scenes)
        told.append(Step(made.instruction, scenes[-1]))
        scenes.append(made.before)
    return (Step(describe(scenes[-1]), scenes[-1]), *reversed(told))


def story_verdict(texts: Sequence[str], pictures: Sequence[np.ndarray | torch.Tensor]) -> list[StepVerdict]:
    """Judges a story step by step, each from the picture before it as the checker reads it.

    A step without a text or without a picture is wrong in what it lacks.

    Args:
        texts: any texts.
        pictures: uint8, as `read_picture` takes them.

    Raises:
        UserError: a picture of another type or shape.
    """
    verdicts: list[StepVerdict] = []
    before: Scene | None = None
    for text, picture in zip_longest(texts, pictures):
        found = None if picture is None else read_picture(picture)
        if not verdicts:
            facts = None if text is None else parse(text)
            shown = facts is not None and found is not None and judge(found, facts).all
            verdicts.append(StepVerdict(facts is not None, shown))
        else:
            change = None if text is None or before is None else change_of(text, before)
            shown = change is not None and found is not None and judge_change(found, change).all
            verdicts.append(StepVerdict(change is not None, shown))
        before = None if found is None else scene_of(found)
    return verdicts
