"""Decoding equals the full pass, row by row, whatever the batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tokenizers_vq.errors import UserError
from tokenizers_vq.images import to_float
from unitok.model import UniTok
from unitok.objectives import OBJECTIVES
from unitok.sample import masked_token, next_scale, next_token
from unitok.sample.pipeline import DECODERS, caption, caption_codes, draw, draw_codes
from unitok.sample.prompts import encode_prompts
from unitok.sampling import SampleSettings
from unitok.sequence import lay_out
from unitok.tasks import image_to_text_prompts, text_to_image_prompt
from unitok.text import CaptionEncoder

CAPTIONS = ["a small red circle", "a large blue square left of a small green triangle", "zebra"]


def test_every_objective_has_a_decoder() -> None:
    assert DECODERS.keys() == OBJECTIVES.keys()


@pytest.mark.parametrize("key_heads", [1, 2])
@torch.inference_mode()
def test_next_token_logits_met_while_decoding_equal_teacher_forcing(
    make_model: Callable[..., UniTok], key_heads: int
) -> None:
    model = make_model("next_token", kv_heads=key_heads)
    prompts = [text_to_image_prompt(model.text_ids(text), model.vocabulary) for text in CAPTIONS]
    met: list[torch.Tensor] = []
    encoded = encode_prompts(model, prompts, room=model.layout.length)
    codes = next_token.decode(model, encoded, [0, 1, 2], SampleSettings(guidance=1), met.append)
    assert codes.min() >= 0 and codes.max() < model.vocabulary.codebook_size
    segments = model.objective.segments(codes, model.layout, model.vocabulary, [])
    for row, text in enumerate(CAPTIONS):
        builder = text_to_image_prompt(model.text_ids(text), model.vocabulary)
        builder.image(segments.inputs[row], segments.targets[row], segments.groups, model.layout)
        logits = model.transformer(lay_out([[builder.build()]], pad=model.vocabulary.pad))
        forced = logits[0, -model.layout.length :, model.vocabulary.image_range]
        torch.testing.assert_close(torch.cat(met, 1)[row], forced, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_next_scale_logits_met_while_decoding_equal_teacher_forcing(make_model: Callable[..., UniTok]) -> None:
    model = make_model("next_scale")
    prompts = [text_to_image_prompt(model.text_ids(text), model.vocabulary) for text in CAPTIONS]
    met: list[torch.Tensor] = []
    encoded = encode_prompts(model, prompts, room=model.layout.length)
    codes = next_scale.decode(model, encoded, [0, 1, 2], SampleSettings(guidance=1), met.append)
    assert [logits.shape[1] for logits in met] == [1, 4, 16, 64]
    segments = model.objective.segments(codes, model.layout, model.vocabulary, [])
    assert segments.features is not None
    for row, text in enumerate(CAPTIONS):
        builder = text_to_image_prompt(model.text_ids(text), model.vocabulary)
        features = segments.features[row]
        builder.image(segments.inputs[row], segments.targets[row], segments.groups, model.layout, features)
        logits = model.transformer(lay_out([[builder.build()]], pad=model.vocabulary.pad))
        forced = logits[0, -model.layout.length :, model.vocabulary.image_range]
        torch.testing.assert_close(torch.cat(met, 1)[row], forced, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_next_scale_takes_a_pass_for_each_scale_and_draws_previews(
    make_model: Callable[..., UniTok], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("next_scale")
    passes: list[int] = []
    hidden = model.transformer.hidden
    monkeypatch.setattr(
        model.transformer, "hidden", lambda ids, *rest: (passes.append(ids.shape[1]), hidden(ids, *rest))[1]
    )
    whole = draw_codes(model, CAPTIONS, SampleSettings(guidance=2), [0, 1, 2])
    assert passes[1:] == [1, 4, 16, 64], "the prompt, then one pass a scale"
    coarse = draw_codes(model, CAPTIONS, SampleSettings(guidance=2, scales=2), [0, 1, 2])
    assert torch.equal(coarse, whole[:, :5])
    preview = draw(model, CAPTIONS, SampleSettings(guidance=2, scales=2), [0, 1, 2])
    assert preview.shape == (3, 3, 32, 32)
    wanted = model.image_tokenizer.decode(whole, up_to_scale=2)
    assert (to_float(preview) - wanted.clamp(-1, 1)).abs().max() < 0.01
    with pytest.raises(UserError, match="--scales is 5: this model has 4"):
        draw(model, CAPTIONS, SampleSettings(scales=5))


def test_settings_per_scale(make_model: Callable[..., UniTok]) -> None:
    settings = SampleSettings(guidance=4, temperature=[1.0, 0.5, 0.5, 0.0], top_k=[0, 9, 9, 1], guidance_rises=True)
    assert [settings.at_scale(scale, 4).guidance for scale in range(4)] == [1, 2, 3, 4]
    assert settings.at_scale(1, 4).temperature == 0.5 and settings.at_scale(3, 4).top_k == 1
    model = make_model("next_scale")
    assert draw_codes(model, CAPTIONS, settings, [0, 1, 2]).shape == (3, 85)
    greedy = SampleSettings(temperature=[0.0] * 4, guidance=2, guidance_rises=True)
    assert torch.equal(draw_codes(model, CAPTIONS, greedy, [0, 1, 2]), draw_codes(model, CAPTIONS, greedy, [3, 4, 5]))
    with pytest.raises(UserError, match=r"--temperature is \[1.0, 0.5\]: give one value, or 4, one for each scale"):
        draw(model, CAPTIONS, SampleSettings(temperature=[1.0, 0.5]))
    with pytest.raises(UserError, match=r"--top-k is \[1, 2\]: give one value, or 1, one for each scale"):
        draw(make_model("next_token"), CAPTIONS, SampleSettings(top_k=[1, 2]))


@torch.inference_mode()
def test_masked_token_logits_met_while_decoding_equal_the_full_pass(make_model: Callable[..., UniTok]) -> None:
    model = make_model("masked_token")
    vocabulary = model.vocabulary
    prompts = [text_to_image_prompt(model.text_ids(text), vocabulary) for text in CAPTIONS]
    met: list[torch.Tensor] = []
    encoded = encode_prompts(model, prompts, room=model.layout.length)
    settings = SampleSettings(guidance=1, steps=4)
    codes = masked_token.decode(model, encoded, [0, 1, 2], settings, met.append)
    assert len(met) == 4 and codes.min() >= 0 and codes.max() < vocabulary.codebook_size
    inputs = torch.full((model.layout.length,), vocabulary.mask)
    for row, text in enumerate(CAPTIONS):
        builder = text_to_image_prompt(model.text_ids(text), vocabulary)
        builder.image(inputs, None, model.objective.groups(model.layout), model.layout)
        logits = model.transformer(lay_out([[builder.build()]], pad=vocabulary.pad))
        full = logits[0, -model.layout.length :, vocabulary.image_range]
        torch.testing.assert_close(met[0][row], full, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_rows_of_a_ragged_batch_give_what_they_give_alone(
    make_model: Callable[..., UniTok], objective: str, guidance: float
) -> None:
    model = make_model(objective)
    settings = SampleSettings(guidance=guidance, steps=5, top_k=50, top_p=0.95)
    together = draw_codes(model, CAPTIONS, settings, [7, 8, 9])
    for row, text in enumerate(CAPTIONS):
        assert torch.equal(draw_codes(model, [text], settings, [7 + row])[0], together[row])
    assert torch.equal(together, draw_codes(model, CAPTIONS, settings, [7, 8, 9]))
    assert not torch.equal(together, draw_codes(model, CAPTIONS, settings, [1, 2, 3]))


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_guidance_of_zero_ignores_the_caption(make_model: Callable[..., UniTok], objective: str) -> None:
    model = make_model(objective)
    off = SampleSettings(guidance=0, steps=3)
    codes = draw_codes(model, CAPTIONS, off, [5, 5, 5])
    assert torch.equal(codes[0], codes[1]) and torch.equal(codes[0], codes[2])
    guided = draw_codes(model, CAPTIONS, SampleSettings(guidance=1, steps=3), [5, 5, 5])
    assert not torch.equal(guided[0], guided[1])


def test_guidance_of_one_runs_a_single_pass(make_model: Callable[..., UniTok], monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("next_token")
    rows: list[int] = []
    hidden = model.transformer.hidden
    monkeypatch.setattr(model.transformer, "hidden", lambda ids, *rest: (rows.append(len(ids)), hidden(ids, *rest))[1])
    draw_codes(model, CAPTIONS, SampleSettings(guidance=1), [0, 1, 2])
    assert set(rows) == {3} and len(rows) == 1 + model.layout.length
    rows.clear()
    draw_codes(model, CAPTIONS, SampleSettings(guidance=2), [0, 1, 2])
    assert set(rows) == {6} and len(rows) == 1 + model.layout.length


@pytest.mark.parametrize("steps", [1, 2, 7, 500])
def test_masked_token_fixes_every_code_in_the_steps_it_has(make_model: Callable[..., UniTok], steps: int) -> None:
    model = make_model("masked_token")
    passes: list[torch.Tensor] = []
    prompts = [text_to_image_prompt([], model.vocabulary)]
    with torch.inference_mode():
        encoded = encode_prompts(model, prompts, room=model.layout.length)
        codes = masked_token.decode(model, encoded, [0], SampleSettings(guidance=1, steps=steps), passes.append)
    assert codes.min() >= 0
    assert len(passes) == min(steps, model.layout.length)


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
            (builder,) = image_to_text_prompts(row[None], model.layout, model.vocabulary, model.objective)
            builder.text(ids, bos=model.vocabulary.bos)
            logits = model.transformer(lay_out([[builder.build()]], pad=model.vocabulary.pad))
            best = int(logits[0, -1, model.vocabulary.text_range].argmax())
            if best == model.vocabulary.eos:
                break
            ids.append(best)
        assert text == model.text_tokenizer.decode(ids)


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


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_a_model_whose_weights_are_no_numbers_draws_and_writes_nothing(
    make_model: Callable[..., UniTok], objective: str
) -> None:
    model = make_model(objective)
    with torch.no_grad():
        model.transformer.embedding.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="logits are not finite: its weights are damaged"):
        draw(model, ["a red circle"], SampleSettings(steps=2))
    with pytest.raises(UserError, match="logits are not finite: its weights are damaged"):
        caption(model, torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
