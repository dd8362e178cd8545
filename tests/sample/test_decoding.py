"""Decoding equals the full pass, row by row, whatever the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import count_passes

from tokenizers_vq.base import build_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS
from tokenizers_vq.errors import UserError
from tokenizers_vq.images import to_float
from tokenizers_vq.quantizers.config import MultiVQ
from unitok.config import ModelConfig, TrunkConfig
from unitok.model import UniTok
from unitok.objectives import OBJECTIVES, get_objective
from unitok.objectives.base import Draw
from unitok.objectives.masked_token import PASSES
from unitok.objectives.orders import known_first, spread_order
from unitok.sample.engine import Engine
from unitok.sample.jobs import Job, Turn, job_for
from unitok.sample.pipeline import caption, draw, draw_codes, run, score_codes
from unitok.sampling import SampleSettings
from unitok.sequence import document, lay_out
from unitok.tasks import Piece, documents
from unitok.text import train_bpe
from unitok.vocabulary import Vocabulary

CAPTIONS = ["a small red circle", "a large blue square left of a small green triangle", "zebra"]


def full_pass(model: UniTok, text: str, image: list[Any]) -> torch.Tensor:
    """Logits (L, codebook) at the image's positions behind a caption, without a cache."""
    segments = [*model.modalities()["text"].given([text]), *image]
    batch = lay_out([[document(segments)]], pad=model.vocabulary.pad)
    hidden = model.hidden(batch.inputs, batch.places, batch.visibility(), None, batch.features, batch.stands)
    return model.ids.scores(hidden[0, -len(image[0]) :], model.vocabulary.image_range)


@pytest.mark.parametrize("key_heads", [1, 2])
@pytest.mark.parametrize("objective", ["next_token", "masked_token", "next_scale", "random_order", "var"])
@torch.inference_mode()
def test_logits_met_while_decoding_equal_teacher_forcing(
    make_model: Callable[..., UniTok], objective: str, key_heads: int
) -> None:
    model = make_model(objective, kv_heads=key_heads)
    met: list[torch.Tensor] = []
    settings = SampleSettings(guidance=1, steps=PASSES)
    codes = draw_codes(model, CAPTIONS, settings, [0, 1, 2], watch=lambda _, logits: met.append(logits))
    assert codes.min() >= 0 and codes.max() < model.vocabulary.codebook_size
    maps = {"var": [1, 4, 16, 64], "next_scale": [1, *[1] * 4, *[4] * 4, *[16] * 4]}
    if objective in maps:
        assert [logits.shape[1] for logits in met] == maps[objective]
    draws = [Draw(torch.Generator())] * 3
    images = model.objective.learned(codes, model.layout, model.vocabulary, draws)
    for row, text in enumerate(CAPTIONS):
        forced = full_pass(model, text, [images[row]])
        torch.testing.assert_close(torch.cat(met, 1)[row], forced, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_maskgit_logits_met_while_decoding_equal_the_full_pass(make_model: Callable[..., UniTok]) -> None:
    model = make_model("maskgit")
    met: list[torch.Tensor] = []
    settings = SampleSettings(guidance=1, steps=4)
    codes = draw_codes(model, CAPTIONS, settings, [0, 1, 2], watch=lambda _, logits: met.append(logits))
    assert len(met) == 4 and codes.min() >= 0 and codes.max() < model.vocabulary.codebook_size
    (image,) = model.objective.given(codes[:1], model.layout, model.vocabulary)
    image.ids = torch.full_like(image.ids, model.vocabulary.mask)
    for row, text in enumerate(CAPTIONS):
        torch.testing.assert_close(met[0][row], full_pass(model, text, [image]), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_random_order_is_that_of_its_seed_and_equals_teacher_forcing(make_model: Callable[..., UniTok]) -> None:
    """Logits come in the order of the codes, which differs from row to row."""
    model = make_model("random_order")
    met: list[torch.Tensor] = []
    settings = SampleSettings(guidance=1, random_order=True)
    codes = draw_codes(model, CAPTIONS, settings, [0, 1, 2], watch=lambda _, logits: met.append(logits))
    writer = model.objective.writer(model.layout, model.vocabulary, 3, torch.device("cpu"))
    for row, text in enumerate(CAPTIONS):
        writer.admit(row, row, settings)
        order = writer.order[row]
        assert order.tolist() != sorted(order.tolist()) and sorted(order.tolist()) == list(range(64))
        (image,) = model.objective.learned(codes[row : row + 1], model.layout, model.vocabulary, [])
        places = model.layout.coordinates()
        image.ids[1:] = codes[row, order[:-1]] + model.vocabulary.image_start
        image.places, image.stands = places[order], torch.cat([torch.zeros(1, 3), places[order[:-1]]])
        image.features = order
        forced = full_pass(model, text, [image])
        torch.testing.assert_close(torch.cat(met, 1)[row], forced, atol=1e-4, rtol=1e-4)
    assert not torch.equal(codes, draw_codes(model, CAPTIONS, SampleSettings(guidance=1), [0, 1, 2]))


@torch.inference_mode()
@pytest.mark.parametrize(
    ("objective", "sizes"), [("var", [1, 4, 16, 64]), ("next_scale", [1, *[1] * 4, *[4] * 4, *[16] * 4])]
)
def test_scales_are_drawn_in_passes_and_previews_are_what_comes_first(
    make_model: Callable[..., UniTok], monkeypatch: pytest.MonkeyPatch, objective: str, sizes: list[int]
) -> None:
    model = make_model(objective)
    passes = count_passes(model, monkeypatch)
    whole = draw_codes(model, CAPTIONS, SampleSettings(guidance=2), [0, 1, 2])
    assert [length for _, length in passes[1:]] == sizes, "the prompts, then the passes"
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
    passes = count_passes(model, monkeypatch)
    draw_codes(model, CAPTIONS, SampleSettings(guidance=1), [0, 1, 2])
    assert {rows for rows, _ in passes} == {3} and len(passes) == 1 + model.layout.length
    passes.clear()
    draw_codes(model, CAPTIONS, SampleSettings(guidance=2), [0, 1, 2])
    assert passes[0][0] == 4, "three captions and one empty prompt, which is encoded once"
    assert passes[1:] == [(6, 1)] * model.layout.length


def test_an_equal_prompt_is_encoded_once(make_model: Callable[..., UniTok], monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("masked_token")
    passes = count_passes(model, monkeypatch)
    draw_codes(model, ["a red circle"] * 9, SampleSettings(guidance=2, steps=2), list(range(9)), batch_size=3)
    assert [rows for rows, _ in passes] == [2, 6, 6, 6, 6, 6, 6], "one caption, one empty prompt, for three batches"


@pytest.mark.parametrize("steps", [1, 2, 7, 500])
@pytest.mark.parametrize("objective", ["masked_token", "maskgit"])
def test_every_code_is_drawn_in_as_many_passes_as_asked_for(
    make_model: Callable[..., UniTok], objective: str, steps: int
) -> None:
    model = make_model(objective)
    passes: list[torch.Tensor] = []
    settings = SampleSettings(guidance=1, steps=steps)
    codes = draw_codes(model, [""], settings, [0], watch=lambda _, logits: passes.append(logits))
    assert codes.min() >= 0
    assert len(passes) == min(steps, model.layout.length)


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_known_codes_stay(make_model: Callable[..., UniTok], objective: str) -> None:
    """Part of a picture is given: it stays, the rest is drawn and follows from it."""
    model = make_model(objective)
    whole, other = draw_codes(model, CAPTIONS[:2], SampleSettings(guidance=1, steps=4), [0, 1])
    kept = torch.rand(model.layout.length, generator=torch.Generator().manual_seed(0)) < 0.5

    def inpaint(known: torch.Tensor, **more: Any) -> torch.Tensor:
        settings = SampleSettings(guidance=2, steps=4, **more)
        return run(model, [job_for("text_to_image", {"caption": "a cat"}, 3, settings, known=known)])[0][0]

    for more in ({}, {"random_order": True}):
        first, second = (inpaint(torch.where(kept, codes, -1), **more) for codes in (whole, other))
        assert torch.equal(first[kept], whole[kept]) and torch.equal(second[kept], other[kept])
        assert not torch.equal(first[~kept], second[~kept])
    assert torch.equal(inpaint(whole), whole), "nothing is left to draw"


@pytest.mark.parametrize("objective", ["maskgit", "masked_token"])
def test_known_codes_score_all_others_as_a_pass_that_draws_them(
    make_model: Callable[..., UniTok], objective: str
) -> None:
    """Of each row others are known, of one none, of one all."""
    model = make_model(objective)
    codes = draw_codes(model, CAPTIONS, SampleSettings(guidance=1, steps=4), [0, 1, 2])
    known = torch.rand(codes.shape, generator=torch.Generator().manual_seed(0)) < torch.tensor([[0.3], [0.0], [0.8]])
    found = score_codes(model, CAPTIONS, codes, known, batch_size=2)
    assert found.shape == (*codes.shape, model.vocabulary.codebook_size)
    for row, text in enumerate(CAPTIONS):
        record, given = {"caption": model.text_ids(text)}, torch.where(known[row], codes[row], -1)
        met: list[torch.Tensor] = []
        engine = Engine(model, 1, 300, watch=lambda _, logits, met=met: met.append(logits[0]))  # type: ignore[misc]
        engine.add(job_for("text_to_image", record, 0, SampleSettings(guidance=1, steps=1), known=given))
        while engine.busy:
            engine.step()
        drawn = known_first(spread_order(model.layout), known[row])[known[row].sum() :]
        at = {"maskgit": torch.arange(model.layout.length), "masked_token": drawn}[objective]
        torch.testing.assert_close(found[row, at], met[-1], atol=1e-4, rtol=1e-4)
    everything = torch.ones_like(known)
    assert score_codes(model, CAPTIONS, codes, everything).isfinite().all()


def test_known_codes_that_cannot_be_are_told(make_model: Callable[..., UniTok]) -> None:
    codes = torch.zeros(1, 64, dtype=torch.int64)
    with pytest.raises(UserError, match="draws by next_token, where what is known of a code is what is drawn before"):
        score_codes(make_model("next_token"), ["a"], codes, codes > 0)
    with pytest.raises(UserError, match=r"known is torch.bool of \(64,\): give bool of \(1, 64\), as codes are"):
        score_codes(make_model("maskgit"), ["a"], codes, codes[0] > 0)


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_rows_of_all_kinds_run_side_by_side(make_model: Callable[..., UniTok], objective: str) -> None:
    """Texts beside images, each with its guidance, temperature and seed; rows come while others run. Each gives what it
    gives alone."""
    model = make_model(objective)
    model.config.text_length = 20
    codes = draw_codes(model, CAPTIONS, SampleSettings(guidance=1, steps=3), [0, 1, 2])
    kinds = [
        SampleSettings(guidance=1.0, steps=3),
        SampleSettings(guidance=2.5, temperature=0.7, steps=7),
        SampleSettings(guidance=0.0, top_k=5, steps=2),
        SampleSettings(guidance=3.0, top_p=0.6, steps=5),
    ]
    jobs = [job_for("text_to_image", {"caption": CAPTIONS[n % 3]}, n, kind) for n, kind in enumerate(kinds)]
    for n, image in enumerate(codes):
        writing = SampleSettings(guidance=1.0, temperature=1.3 * n, top_k=20)
        jobs.insert(2 * n, job_for("image_to_text", {"image": image}, n, writing))
    alone = [run(model, [job])[0][0] for job in jobs]
    engine = Engine(model, lanes=4, room=200)
    assert [engine.add(job) for job in jobs[:3]] == [0, 1, 2]
    found: dict[int, torch.Tensor] = {}
    steps, most = 0, 0
    while engine.busy:
        found |= {number: written[0] for number, written in engine.step()}
        steps += 1
        most = max(most, len(engine.running))
        if steps == 2:
            for job in jobs[3:]:
                engine.add(job)
    assert found.keys() == set(range(len(jobs))) and most >= 3
    for number, written in enumerate(alone):
        assert torch.equal(found[number], written), f"job {number}"
    assert sorted(engine.free) == [0, 1, 2, 3] and not engine.cache.used.any()
    with pytest.raises(UserError, match="guidance needs 2 rows at once, there are 1: raise batch_size"):
        small = Engine(model, lanes=1, room=200)
        small.add(jobs[3])
        small.step()


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
@torch.inference_mode()
def test_what_is_written_is_read_as_it_is_by_what_follows(make_model: Callable[..., UniTok], objective: str) -> None:
    """A picture, then a text about it, then another picture: each step of decoding sees what training shows it."""
    model = make_model(objective)
    model.config.text_length = 5
    met: list[torch.Tensor] = []
    settings = SampleSettings(guidance=1.0, temperature=0.0, steps=3)
    job = Job([[Piece("text", [5, 6], False)]], "image", 0, settings, then=[Turn([], "text"), Turn([], "image")])
    engine = Engine(model, 1, 300, watch=lambda _, logits: met.append(logits[0]))
    engine.add(job)
    written: list[torch.Tensor] = []
    while engine.busy:
        for _, values in engine.step():
            written = values
    image, text, _ = written
    parts = [("text", [5, 6]), ("image", image), ("text", text.tolist())]
    found = documents(
        ["interleaved"], [{"parts": parts}], [Draw(torch.Generator())], model.modalities(), {}, {"interleaved": 0}
    )
    batch = lay_out([found], pad=model.vocabulary.pad)
    hidden = model.hidden(batch.inputs, batch.places, batch.visibility(), None, batch.features, batch.stands)
    n = len(text)
    forced = model.ids.scores(hidden[0, -(n + 1) :], model.vocabulary.text_range)
    texts = [logits for logits in met if logits.shape[-1] == forced.shape[-1]]
    torch.testing.assert_close(torch.cat(texts)[: n + 1], forced[: len(texts)], atol=1e-4, rtol=1e-4)


def test_boxes_are_written_until_their_end(make_model: Callable[..., UniTok]) -> None:
    made = make_model("next_token")
    config = ModelConfig(made.config.trunk, "next_token", made.vocabulary.grown("location", 256).spans, 48)
    model = UniTok(config, made.image_tokenizer, made.text_tokenizer).eval()
    record = {"image": torch.zeros(64, dtype=torch.int64), "phrase": "the red circle"}
    settings = SampleSettings(guidance=1.0, temperature=2.0)
    first, second = (run(model, [job_for("ground", record, seed, settings)])[0][0] for seed in (0, 1))
    span = model.vocabulary["location"]
    for ids in (first, second):
        assert len(ids) <= 64 and ((ids >= span.start) & (ids < span.stop)).all()
        for box in model.modalities()["box"].value(ids):
            assert len(box) == 4 and all(0 <= side <= 1 for side in box)
    assert first.tolist() != second.tolist()
    with torch.no_grad():
        model.ids.head.weight[model.vocabulary.eos] = 100 * model.trunk.norm.weight
    job = Job([[Piece("text", [5], False)]], "box", 0, settings, then=[Turn([], "text")])
    assert len(run(model, [job])[0]) == 2, "what follows reads the boxes"


@pytest.mark.parametrize("objective", ["next_token", "masked_token", "maskgit", "random_order"])
def test_grids_draw_from_their_own_books(objective: str) -> None:
    """A generator over several codebooks draws no id of another grid, and the tokenizer refuses one."""
    torch.manual_seed(0)
    config = TOKENIZER_PRESETS["debug"]()
    tokenizer = build_tokenizer(
        type(config)(**{**vars(config), "quantizer": MultiVQ(codebook_size=16, dim=4, codebooks=2)})
    )
    assert tokenizer.layout.books == ((0, 16), (16, 16))
    text_tokenizer = train_bpe(CAPTIONS, 300)
    layout = tokenizer.layout
    ports = get_objective(objective, tokenizer).ports(layout)
    spans = Vocabulary.of(text_tokenizer.size, tokenizer.codebook_size).spans
    model = UniTok(
        ModelConfig(TrunkConfig(width=32, depth=1, heads=2), objective, spans, 48, "", ports), tokenizer, text_tokenizer
    ).eval()
    settings = SampleSettings(guidance=2.0, steps=4, random_order=True)
    codes = draw_codes(model, CAPTIONS, settings, [0, 1, 2])
    first, second = layout.split(codes)
    assert first.min() >= 0 and first.max() < 16 and second.min() >= 16 and second.max() < 32
    assert model.image_tokenizer.decode(codes).shape == (3, 3, 32, 32)
    with pytest.raises(UserError, match="code 3 is outside the codebook of 16: ids go from 16 to 31"):
        model.image_tokenizer.decode(codes.masked_fill(codes == codes[0, -1], 3))


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_a_model_whose_weights_are_no_numbers_draws_and_writes_nothing(
    make_model: Callable[..., UniTok], objective: str
) -> None:
    model = make_model(objective)
    with torch.no_grad():
        model.ids.embedding.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="logits are not finite: its weights are damaged"):
        draw(model, ["a red circle"], SampleSettings(steps=2))
    with pytest.raises(UserError, match="logits are not finite: its weights are damaged"):
        caption(model, torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
