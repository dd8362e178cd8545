"""Texts are written: captions and answers, greedily and by chance."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tokenizers_vq.errors import UserError
from unitok.model import UniTok
from unitok.objectives import OBJECTIVES
from unitok.sample.pipeline import answer, caption, caption_codes, draw, write_texts
from unitok.sampling import SampleSettings
from unitok.sequence import document, lay_out
from unitok.text import CaptionEncoder

CAPTIONS = ["a small red circle", "a large blue square left of a small green triangle", "zebra"]


@torch.inference_mode()
@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_captions_equal_greedy_full_passes_and_do_not_depend_on_the_batch(
    make_model: Callable[..., UniTok], objective: str
) -> None:
    model = make_model(objective)
    model.config.text_length = 6
    torch.manual_seed(3)
    codes = torch.randint(model.vocabulary.codebook_size, (3, model.layout.length))
    texts = caption_codes(model, codes)
    assert texts == [caption_codes(model, row[None])[0] for row in codes]
    for row, text in zip(codes, texts, strict=True):
        ids: list[int] = []
        for _ in range(6):
            found = model.modalities()
            batch = lay_out([[document([*found["image"].given([row]), *found["text"].given([ids])])]], pad=0)
            hidden = model.hidden(batch.inputs, batch.places, batch.visibility(), features=batch.features)
            best = int(model.ids.scores(hidden[0, -1], model.vocabulary.text_range).argmax())
            if best == model.vocabulary.eos:
                break
            ids.append(best)
        assert text == model.text_tokenizer.decode(ids)


def test_texts_are_drawn_as_codes_are(make_model: Callable[..., UniTok]) -> None:
    """With temperature, top-k and top-p, by their seeds."""
    model = make_model("next_token")
    codes = torch.randint(64, (3, 64), generator=torch.Generator().manual_seed(0))
    records = [{"image": row} for row in codes]
    settings = SampleSettings(guidance=1.0, temperature=1.0, top_k=50)
    texts = write_texts(model, "image_to_text", records, settings, [4, 5, 6])
    assert texts == [write_texts(model, "image_to_text", [r], settings, [4 + n])[0] for n, r in enumerate(records)]
    assert texts != write_texts(model, "image_to_text", records, settings, [1, 2, 3])
    greedy = write_texts(model, "image_to_text", records, SampleSettings(guidance=1.0, top_k=1), [1, 2, 3])
    assert greedy == caption_codes(model, codes)


def test_questions_are_answered(make_model: Callable[..., UniTok]) -> None:
    model = make_model("masked_token")
    pictures = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    one, two = answer(model, pictures, ["what colour is it", "how many are there"])
    assert one == answer(model, pictures[:1], ["what colour is it"])[0] and one != two
    with pytest.raises(UserError, match=r"has \d+ tokens, this model takes 48"):
        answer(model, pictures[:1], ["word " * 60])


def test_draw_gives_pictures_and_caption_reads_them(make_model: Callable[..., UniTok]) -> None:
    model = make_model("masked_token")
    pictures = draw(model, CAPTIONS, SampleSettings(steps=2), batch_size=2)
    assert pictures.dtype == torch.uint8 and pictures.shape == (3, 3, *model.image_tokenizer.image_size)
    one_by_one = draw(model, CAPTIONS, SampleSettings(steps=2), batch_size=1)
    assert torch.equal(pictures, one_by_one)
    assert len(caption(model, pictures, batch_size=2)) == 3
    with pytest.raises(UserError, match=r"pictures are \(3, 8, 8\), this model reads \(3, 32, 32\)"):
        caption(model, torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_a_long_caption_is_refused_with_its_length(make_model: Callable[..., UniTok]) -> None:
    model = make_model()
    with pytest.raises(UserError, match=r"has \d+ tokens, this model takes 48: shorten it"):
        draw(model, ["word " * 60])


def test_a_long_caption_of_data_is_cut_as_in_training(
    make_model: Callable[..., UniTok], caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model("masked_token")
    encoder = CaptionEncoder(model.text_tokenizer, model.config.text_length)
    long, settings = "a " * 60, SampleSettings(steps=2)
    pictures = draw(model, ["a red circle", long], settings, text_ids=encoder)
    assert encoder.too_long(long) and not encoder.too_long("a red circle")
    assert len(caplog.messages) == 1, "once, however many"
    assert " tokens is cut to 48 (text_length), longer ones will be too: a a a" in caplog.messages[0]
    beginning = model.text_tokenizer.decode(encoder(long))
    assert torch.equal(pictures[1], draw(model, [beginning], settings, [1])[0])
