"""Lumina-mGPT: logits and codes of transformers' Chameleon on the authors' prompts, on a tiny model of that class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenizers_vq.errors import UserError
from tokenizers_vq.published.load import PUBLISHED as TOKENIZERS
from unitok.cli.main import main
from unitok.importing import import_generator
from unitok.model import UniTok
from unitok.objectives.base import Draw
from unitok.sample.pipeline import draw_codes, score_codes
from unitok.sampling import SampleSettings
from unitok.sequence import pack
from unitok.tasks import documents

from ..foreign import CODES, survives, text_tokenizer
from ..test_generators import GREEDY
from ..test_start import DRAW_ALONE, trains_on
from .chameleon_model import chameleon, image_tokenizer, scored, spelled

BREAK, TURN, ROW_END = "<racm3:break>", "<reserved08706>", "<reserved08799>"
SIZES = ("<reserved08801>", "<reserved08802>", "<reserved08803>")
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", BREAK, "<eoss>", TURN, ROW_END, *SIZES)
CAPTIONS = ("w3 w7 w1", "w5", "")
HEIGHT, WIDTH = 4, 6
"""Of a picture, in codes: two patches by three."""
PIXELS = (16, 24)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Any]:
    folder = tmp_path_factory.mktemp("lumina")
    words = text_tokenizer(folder, SPECIALS, [spelled(code) for code in range(CODES)])
    return chameleon(folder, words, image_tokenizer(PIXELS)), folder, words


def places(words: Any) -> Tensor:
    return torch.tensor([words.token_to_id(spelled(code)) for code in range(CODES)])


def prompt(words: Any, caption: str | None) -> list[int]:
    """Up to the width; None: what guidance compares with."""
    begun = [words.token_to_id(token) for token in (BREAK, SIZES[1], SIZES[2])]
    if caption is None:
        return begun
    text = f"Generate an image of 96x64 according to the following prompt:\n{caption}{TURN}"
    return [0, *words.encode(text, add_special_tokens=False).ids, *begun]


def rows(words: Any, codes: Tensor) -> list[int]:
    """Ids of the first codes of a picture, an end behind each row."""
    found: list[int] = []
    for number, code in enumerate(codes.tolist(), 1):
        found.append(int(places(words)[code]))
        found += [words.token_to_id(ROW_END)] if number % WIDTH == 0 else []
    return found


def logits(theirs: tuple[Any, Path, Any], caption: str | None, codes: Tensor) -> Tensor:
    """(n + 1, codes): of each code behind those before it, and of the one that follows."""
    begun, words = prompt(theirs[2], caption), theirs[2]
    found = scored(theirs[0], [*begun, *rows(words, codes)])[:, places(words)]
    at = [len(begun) - 1 + number + number // WIDTH for number in range(len(codes) + 1)]
    return found[at]


def some_codes(number: int) -> Tensor:
    return torch.randint(CODES, (number, HEIGHT * WIDTH), generator=torch.Generator().manual_seed(3))


@torch.inference_mode()
def test_codes_have_the_logits_of_transformers_on_the_authors_prompts(theirs: tuple[Any, Path, Any]) -> None:
    model, codes = import_generator("lumina", theirs[1], image_tokenizer(PIXELS)), some_codes(3)
    found = score_codes(model, CAPTIONS, codes)
    for row, caption in enumerate(CAPTIONS):
        torch.testing.assert_close(found[row], logits(theirs, caption, codes[row, :-1]), atol=1e-4, rtol=0)
    assert found.std() > 0.3 and not torch.equal(found[1], found[2])


@torch.inference_mode()
def test_the_most_likely_codes_are_those_of_the_authors_guidance(theirs: tuple[Any, Path, Any]) -> None:
    """It compares with begin, height and width alone, or with a caption that is not wanted."""
    model, drawn = import_generator("lumina", theirs[1], image_tokenizer(PIXELS)), []
    for scale, negative in ((1.0, ""), (4.0, ""), (4.0, "w9 w2")):
        settings = SampleSettings(guidance=scale, negative=negative, **GREEDY)
        drawn.append(draw_codes(model, CAPTIONS[:1], settings, [0]))
        wanted = torch.zeros(0, dtype=torch.int64)
        for _ in range(HEIGHT * WIDTH):
            cond, bare = (logits(theirs, one, wanted)[-1] for one in (CAPTIONS[0], negative or None))
            wanted = torch.cat([wanted, (bare + scale * (cond - bare)).argmax()[None]])
        assert torch.equal(drawn[-1][0], wanted), (scale, negative)
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])


def test_a_training_step_has_the_loss_of_transformers(theirs: tuple[Any, Path, Any]) -> None:
    model, codes = import_generator("lumina", theirs[1], image_tokenizer(PIXELS)), some_codes(3)
    records = [{"caption": caption, "image": one} for caption, one in zip(CAPTIONS, codes, strict=True)]
    draws = [Draw(torch.Generator())] * 3
    task = "text_to_image"
    for dropped in (0.0, 1.0):
        made = documents([task] * 3, records, draws, model.modalities(), {"text": dropped}, {task: 0})
        with torch.no_grad():
            loss = model.train()(pack(made, pad=model.vocabulary.pad))[0] / codes.numel()
            seen = [None if dropped else caption for caption in CAPTIONS]
            scores = torch.cat([logits(theirs, one, row[:-1]) for one, row in zip(seen, codes, strict=True)])
        torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(scores, codes.flatten()), atol=1e-5, rtol=0)


def test_commands_and_folders(theirs: tuple[Any, Path, Any], tmp_path: Path) -> None:
    survives(import_generator("lumina", theirs[1], image_tokenizer(PIXELS)), CAPTIONS[:2], tmp_path / "again")
    images, out = tmp_path / "images", tmp_path / "model"
    image_tokenizer(PIXELS).save_pretrained(images)
    argv = ["import", "lumina", str(theirs[1]), "--image_tokenizer", str(images), "--out", str(out)]
    assert main(argv) == 0
    model = UniTok.from_pretrained(out)
    assert model.config.sampling == {"guidance": 4.0, "top_k": 2000} and model.image_tokenizer.image_size == (16, 24)
    words = ["--model", str(out), "w5 w3", "--n", "2", "--negative", "w9", "--out", str(tmp_path / "drawn")]
    assert main(["sample", *words]) == 0
    assert len(list((tmp_path / "drawn" / "pictures").glob("*.png"))) == 2
    trains_on(out, tmp_path / "drawn" / "pictures", tmp_path / "tuned", *DRAW_ALONE)


def test_sizes_that_cannot_be_said_are_told(theirs: tuple[Any, Path, Any]) -> None:
    for size, said in (
        ((16, 20), "makes 4x5 codes, Lumina-mGPT draws one grid of an even height and width: import taming_vqgan with"),
        ((16, 32), "has no <reserved08804>: choose a smaller picture, or the model's text tokenizer"),
        ((32, 16), "has no <reserved08804>: choose a smaller picture, or the model's text tokenizer"),
    ):
        with pytest.raises(UserError, match=said):
            import_generator("lumina", theirs[1], image_tokenizer(size))


def test_the_tokenizer_takes_pictures_of_any_shape() -> None:
    table = TOKENIZERS["taming_vqgan"]
    released = table.released[-1]
    for given, size in ((None, (512, 512)), ([1024, 768], (1024, 768)), (768, (768, 768))):
        settings = table.settings(released, {} if given is None else {"image_size": given})
        assert table.configure(settings).size == size
    with pytest.raises(UserError, match="settings has image_size 'wide': give a value like"):
        table.settings(released, {"image_size": "wide"})
