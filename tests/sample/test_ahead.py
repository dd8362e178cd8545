"""Codes that are guessed ahead: the same pictures in fewer passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tokenizers_vq.base import build_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS
from tokenizers_vq.errors import UserError
from tokenizers_vq.quantizers.config import MultiVQ
from unitok.model import UniTok
from unitok.objectives import get_objective
from unitok.objectives.base import Writer
from unitok.sample.engine import Engine
from unitok.sample.jobs import Job, Turn, job_for
from unitok.sample.pipeline import run
from unitok.sampling import SampleSettings
from unitok.tasks import Piece
from unitok.vocabulary import Vocabulary

OBJECTIVES = ["next_token", "random_order"]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_pictures_are_the_same_in_fewer_passes(
    make_model: Callable[..., UniTok], objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that guess differently side by side, with known codes, guidance that ends, and a picture that follows."""
    model = make_model(objective)
    codes = run(model, [job_for("text_to_image", {"caption": "a cat"}, 1, SampleSettings(guidance=1.0))])[0][0]
    known = torch.where(torch.arange(len(codes)) % 7 < 2, codes, -1)

    def jobs(*ahead: int) -> list[Job]:
        found = []
        kinds = [{"temperature": 0.0}, {"temperature": 0.3}, {"top_p": 0.5, "guided_codes": 21}, {"random_order": True}]
        for number, (kind, most) in enumerate(zip(kinds, ahead, strict=True)):
            settings = SampleSettings(**{"guidance": 2.0, "ahead": most, **kind})
            task = {"caption": "a red circle"}
            found.append(job_for("text_to_image", task, number, settings, known=known if number == 1 else None))
        found[0].then = [Turn([Piece("text", [5, 6], False)], "image")]
        return found

    passes = 0
    forward = Engine._forward

    def counted(*args: object) -> torch.Tensor:
        nonlocal passes
        passes += 1
        return forward(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "_forward", counted)
    plain = run(model, jobs(0, 0, 0, 0))
    for one, other in zip(plain, run(model, jobs(3, 5, 8, 200)), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    passes = 0
    run(model, jobs(8, 0, 0, 0)[:1])
    assert passes < 2 * len(codes)


def test_all_that_is_guessed_right_stands_after_one_pass(make_model: Callable[..., UniTok]) -> None:
    """A model that always says the same code: the second pass finds all guesses right."""
    model = make_model()
    writer: Writer = model.modalities()["image"].writer(1, model.device)
    writer.admit(0, 0, SampleSettings(temperature=0.0, ahead=7))
    length = model.layout.length
    logits = torch.zeros(1, length, model.vocabulary.codebook_size)
    logits[..., 3] = 1.0
    passes, seen = [], 0
    while not writer.finished([0]):
        asked = writer.ask([0], torch.tensor([0]))
        n = asked.ids.shape[1]
        back = writer.take([0], torch.tensor([0]), [logits[:, :n]])
        assert back is not None
        seen += n - back[0]
        passes.append(n - back[0])
        assert writer.finished([0]) or writer.before(0) == seen
        assert writer.progress(0).step == seen and int((writer.progress(0).so_far >= 0).sum()) == seen
    assert passes[0] == 1 and set(passes[1:-1]) == {8} and sum(passes) == length
    assert writer.written(0).tolist() == [3] * length


def test_grids_with_books_of_their_own() -> None:
    """Guesses end where codes of another codebook begin."""
    config = replace(TOKENIZER_PRESETS["debug"](), quantizer=MultiVQ(dim=8, codebook_size=16, codebooks=2))
    torch.manual_seed(0)
    tokenizer = build_tokenizer(config).eval()
    vocabulary = Vocabulary.of(10, tokenizer.codebook_size)
    objective = get_objective("next_token", tokenizer)
    length = tokenizer.layout.length
    logits = torch.randn(length, 16, generator=torch.Generator().manual_seed(0)) * 3
    found = []
    for ahead in (0, 9):
        writer = objective.writer(tokenizer.layout, vocabulary, 1, torch.device("cpu"))
        writer.admit(0, 0, SampleSettings(ahead=ahead))
        while not writer.finished([0]):
            at, asked = writer.before(0), writer.ask([0], torch.tensor([0]))
            (ids, here), n = asked.spans[0], asked.ids.shape[1]
            assert (ids.start == vocabulary.image_start) == (at < length // 2) and here == slice(0, n)
            writer.take([0], torch.tensor([0]), [logits[None, at : at + n]])
        found.append(writer.written(0).clone())
    assert torch.equal(found[0], found[1])


def test_a_number_below_zero_is_refused() -> None:
    with pytest.raises(UserError, match="--ahead is -1: choose 0 or more"):
        SampleSettings(ahead=-1)
