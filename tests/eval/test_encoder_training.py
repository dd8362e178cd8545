"""What the embedded encoder's loss counts as right and wrong, with a model that knows the answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unitok.eval.networks.encoder.data import Batch, augment
from unitok.eval.networks.encoder.model import split_words, word_pieces
from unitok.eval.networks.encoder.train import contrastive_loss

WORDS = ["red", "blue", "crab", "sun", "false"]


def knowing_model() -> Any:
    """Embeds a caption as its first word, and a picture as the number it is."""

    def text(captions: list[str]) -> Tensor:
        return F.one_hot(torch.tensor([WORDS.index(split_words(c)[0]) for c in captions]), len(WORDS)).float()

    return SimpleNamespace(
        log_scale=torch.tensor(5.0),
        image=lambda images: F.one_hot(images, len(WORDS)).float(),
        image_embeddings=lambda features: features,
        text_embeddings=text,
    )


def batch(rows: list[tuple[str, list[str], str, str]], others: list[tuple[str, str]]) -> tuple[Tensor, Batch]:
    made = Batch(others=others)
    for caption, wrong, group, style in rows:
        made.add(torch.zeros(1), caption, wrong, group, style)
    return torch.tensor([WORDS.index(split_words(row[0])[0]) for row in rows]), made


def test_right_pairs_cost_nothing_and_wrong_captions_much() -> None:
    images, made = batch([("red", ["false"], "", ""), ("blue", [], "", "")], [("sun", "sun")])
    assert float(contrastive_loss(knowing_model(), images, made)) < 1e-3
    swapped = images.flip(0)
    assert float(contrastive_loss(knowing_model(), swapped, made)) > 50


def test_a_false_caption_counts_against_its_own_picture_alone() -> None:
    _, made = batch([("red", ["false"], "", ""), ("blue", [], "", "")], [("sun", "sun")])
    fooled = {
        name: torch.tensor([WORDS.index(word) for word in words])
        for name, words in {"own": ["false", "blue"], "foreign": ["red", "false"]}.items()
    }
    own, foreign = (float(contrastive_loss(knowing_model(), fooled[name], made)) for name in ("own", "foreign"))
    assert own > 25, "the picture looks like its own false caption"
    assert foreign < 5, "a picture that looks like nothing in question costs what guessing costs"


def test_emoji_of_one_name_fit_each_other_unless_another_style_is_named() -> None:
    _, made = batch(
        [
            ("crab, noto style", [], "crab", "noto"),
            ("crab", [], "crab", "fluent"),
            ("sun", [], "sun", "noto"),
            ("red", [], "", ""),
            ("blue", [], "", ""),
        ],
        [],
    )
    expected = torch.eye(5, dtype=torch.bool)
    expected[0, 1] = True  # the noto crab is "crab" too, but the fluent crab is not of noto style
    assert torch.equal(made.targets(), expected)


def test_augmentation_is_keyed_and_small() -> None:
    images = torch.rand(4, 3, 64, 64) * 2 - 1
    smooth = F.interpolate(images[:, :, ::16, ::16], size=64, mode="bilinear")
    one, same, other = (augment(smooth, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert one.abs().max() <= 1 and (one - smooth).abs().mean() < 0.3


def test_words_share_pieces_when_they_share_letters() -> None:
    crab, crabs, sun = (set(word_pieces(word, 4096, 12)) for word in ("crab", "crabs", "sun"))
    assert len(crab & crabs) >= 3 and len(crab & sun) == 0
    assert 0 not in crab and max(crab) <= 4096
    assert split_words("A crab, noto style") == ["a", "crab", ",", "noto", "style"]
    assert len(word_pieces("x" * 50, 4096, 12)) == 12
