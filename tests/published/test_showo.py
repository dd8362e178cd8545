"""Show-o: transformers' Phi with norms of queries and keys, under the masks and in the passes of the authors' code,
written here from its description."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PhiConfig, PhiForCausalLM

from tokenizers_vq.errors import UserError
from unitok.cli.main import main
from unitok.importing import import_generator
from unitok.model import UniTok
from unitok.objectives.base import Draw
from unitok.sample.pipeline import caption_codes, draw_codes, score_codes
from unitok.sampling import SampleSettings
from unitok.seeding import keyed_generator
from unitok.sequence import document, lay_out
from unitok.tasks import documents
from unitok.trunk.published import published_family

from .foreign import CODES, SIDE, stirred, survives, text_tokenizer
from .test_generators import some_codes
from .test_start import trains_on
from .tiny import SIDES, tokenizer

LENGTH = SIDE * SIDE
P = 42
"""Ids of the text tokenizer; the authors' marks stand behind them."""
END, PAD, SOI, EOI, T2I, MMU, FIRST = 0, P, P + 1, P + 2, P + 5, P + 6, P + 10
MASK = FIRST + CODES
ROOM = 9
"""Positions of the authors' texts, with padding in front."""
CAPTIONS = ("w3 w7 w1", "w5", "")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("showo")
    torch.manual_seed(0)
    config = PhiConfig(
        vocab_size=MASK + 1,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        qk_layernorm=True,
        attn_implementation="eager",
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    assert config.rope_parameters["partial_rotary_factor"] == 0.5
    model = stirred(PhiForCausalLM(config))
    torch.save({f"showo.{name}": one for name, one in model.state_dict().items()}, folder / "pytorch_model.bin")
    facts = {"_class_name": "Showo", "llm_vocab_size": P, "codebook_size": CODES, "vocab_size": MASK + 1}
    (folder / "config.json").write_text(json.dumps({**facts, "llm_model_path": "microsoft/phi-1_5"}))
    text_tokenizer(folder, ("<|endoftext|>",))
    return model, folder


@pytest.fixture(scope="module")
def model(theirs: tuple[Any, Path]) -> UniTok:
    return import_generator("showo", theirs[1], tokenizer())


@torch.inference_mode()
def run(model: Any, ids: list[int], sees: Tensor) -> Tensor:
    """Logits (T, all ids) under a mask (T, T)."""
    bias = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)
    return model(torch.tensor([ids]), attention_mask=bias[None, None], use_cache=False).logits[0]


def drawing(model: Any, text: list[int], codes: Tensor) -> Tensor:
    """Logits (L, V) of a picture whose codes (L,) are -1 where they are hidden."""
    caption = [T2I, END, *text, END]
    padding = ROOM - len(caption)
    image = [SOI, *torch.where(codes < 0, MASK, codes + FIRST).tolist(), EOI]
    ids = [*[PAD] * padding, *caption, *image]
    place = torch.arange(len(ids))
    sees = place[:, None] >= place
    sees[padding:, :padding] = False
    sees[ROOM:] = place >= padding
    return run(model, ids, sees)[ROOM + 1 : -1, FIRST:MASK]


def reading(model: Any, codes: Tensor, text: list[int]) -> Tensor:
    """Logits (n + 1, all ids) behind the begin of a text and each of its ids."""
    ids = [MMU, SOI, *(codes + FIRST).tolist(), EOI, END, *text]
    image = LENGTH + 3
    place = torch.arange(len(ids))
    return run(model, ids, (place[:, None] >= place) | (place < image))[image:]


@torch.inference_mode()
def test_codes_have_the_authors_logits(theirs: tuple[Any, Path], model: UniTok) -> None:
    """Also where some codes are known."""
    codes = some_codes(LENGTH)
    found = score_codes(model, CAPTIONS, codes)
    hidden = torch.full((LENGTH,), -1)
    for row, caption in enumerate(CAPTIONS):
        text = model.text_tokenizer.encode(caption)
        torch.testing.assert_close(found[row], drawing(theirs[0], text, hidden), atol=1e-4, rtol=0)
        half = codes[row].masked_fill(torch.arange(LENGTH) % 3 == 0, -1)
        [given] = model.modalities()["text"].given([text])
        [image] = model.objective.learned(
            codes[row : row + 1], model.layout, model.vocabulary, [Draw(torch.Generator().manual_seed(0))]
        )
        image.ids[1:-1] = model.vocabulary.known_ids(half)
        hid = model.states(lay_out([[document((given, image))]], pad=model.vocabulary.pad))[0, len(given) + 1 : -1]
        scores = model.ids.scores(hid, model.vocabulary.image_range)
        torch.testing.assert_close(scores, drawing(theirs[0], text, half), atol=1e-4, rtol=0)
    assert found.std() > 0.3


def passes(model: Any, text: list[int], scale: float, steps: int, seed: int, temperature: float) -> Tensor:
    """The authors' loop, with the random numbers of ours."""
    draws = torch.rand(steps, 2, LENGTH, generator=keyed_generator(seed, "masked_token"))
    codes = torch.full((LENGTH,), -1)
    for step in range(steps):
        logits = (1 + scale) * drawing(model, text, codes) - scale * drawing(model, [], codes)
        chances = logits.softmax(-1)
        point = draws[step, 0].double()[:, None]
        found = (chances.double().cumsum(-1) <= point * chances.double().sum(-1, keepdim=True)).sum(-1)
        unknown = codes < 0
        found = torch.where(unknown, found, codes)
        picked = chances.gather(-1, found[:, None])[:, 0]
        picked = torch.where(unknown, picked, torch.finfo(torch.float32).max)
        done = (step + 1) / steps
        count = max(1, min(int(unknown.sum()) - 1, math.floor(LENGTH * math.cos(math.pi / 2 * done))))
        temperature = temperature * (1 - done)
        gumbel = -torch.log(-torch.log(draws[step, 1].clamp(1e-9, 1 - 1e-7)))
        confidence = picked.clamp(min=1e-20).log() + temperature * gumbel
        codes = found.masked_fill(confidence < confidence.sort().values[count], -1)
    return found


@torch.inference_mode()
def test_pictures_are_those_of_the_authors_passes(theirs: tuple[Any, Path], model: UniTok) -> None:
    drawn = []
    for scale, steps in ((0.0, 5), (1.75, 5), (5.0, 12)):
        settings = SampleSettings(guidance=1 + scale, steps=steps)
        drawn.append(draw_codes(model, CAPTIONS[:2], settings, [3, 4]))
        for row, caption in enumerate(CAPTIONS[:2]):
            wanted = passes(theirs[0], model.text_tokenizer.encode(caption), scale, steps, 3 + row, 1.0)
            assert torch.equal(drawn[-1][row], wanted), (scale, steps, caption)
    assert len({tuple(one.flatten().tolist()) for one in drawn}) == 3


@torch.inference_mode()
def test_captions_have_the_logits_and_ids_of_the_authors(
    theirs: tuple[Any, Path], model: UniTok, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.config, "text_length", 12)
    codes, text = some_codes(LENGTH), [20, 11, 33]
    task = "image_to_text"
    draws = [Draw(torch.Generator())]
    [made] = documents([task], [{"image": codes[0], "caption": text}], draws, model.modalities(), {}, {task: 0})
    hidden = model.states(lay_out([[made]], pad=model.vocabulary.pad))[0, LENGTH + 3 :]
    found, wanted = model.ids.scores(hidden, model.vocabulary.text_range), reading(theirs[0], codes[0], text)
    torch.testing.assert_close(found[:, 1:P], wanted[:, 1:P], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[:, P], wanted[:, END], atol=1e-4, rtol=0)  # the end is an id of its own here
    written = caption_codes(model, codes)
    for row in range(len(codes)):
        ids: list[int] = []
        while len(ids) < model.config.text_length:
            chosen = int(reading(theirs[0], codes[row], ids)[-1, :P].argmax())
            if chosen == END:
                break
            ids.append(chosen)
        assert written[row] == model.text_tokenizer.decode(ids)


def test_the_model_survives_its_folder_and_commands_take_it(
    theirs: tuple[Any, Path], model: UniTok, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    survives(model, CAPTIONS, tmp_path / "again")
    tokenizer().save_pretrained(tmp_path / "images")
    words = ["--image_tokenizer", str(tmp_path / "images"), "--out", str(tmp_path / "model")]
    assert main(["import", "showo", str(theirs[1]), *words]) == 0
    assert UniTok.from_pretrained(tmp_path / "model").fingerprint() == model.fingerprint()
    words = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "drawn")]
    assert main(["sample", CAPTIONS[0], "--n", "1", *words]) == 0
    records = [json.loads(line) for line in (tmp_path / "drawn/pictures/metadata.jsonl").read_text().splitlines()]
    assert records[0]["settings"]["guidance"] == 2.75 and records[0]["settings"]["steps"] == 18
    capsys.readouterr()
    picture = next((tmp_path / "drawn" / "pictures").glob("*.png"))
    assert main(["caption", "--model", str(tmp_path / "model"), str(picture)]) == 0
    trains_on(tmp_path / "model", picture.parent, tmp_path / "tuned", "--tasks.text_only.share", "0")


def test_a_training_step_reaches_every_weight(theirs: tuple[Any, Path]) -> None:
    model = import_generator("showo", theirs[1], tokenizer()).train()
    record = {"image": some_codes(LENGTH)[0], "caption": CAPTIONS[0]}
    tasks = ["text_to_image", "image_to_text"]
    draws = [Draw(torch.Generator().manual_seed(row)) for row in range(2)]
    made = documents(tasks, [record] * 2, draws, model.modalities(), {}, {task: n for n, task in enumerate(tasks)})
    losses = model(lay_out([[one] for one in made], pad=model.vocabulary.pad))
    losses.sum().backward()
    assert all(weight.grad is not None for weight in model.trunk.parameters()) and bool((losses[:2] > 0).all())


def test_released_models_have_the_published_tensors() -> None:
    table = published_family("showo")
    shapes = table.shapes(*table.released()["show-o"])
    assert len(shapes) == 437
    assert shapes["showo.model.embed_tokens.weight"] == (58498, 2048) and shapes["showo.lm_head.bias"] == (58498,)
    assert shapes["showo.model.layers.23.self_attn.q_layernorm.weight"] == (64,)


def test_what_does_not_fit_is_told(theirs: tuple[Any, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"makes 1x1 \+ 2x2 \+ 3x3 \+ 4x4 codes, Show-o draws one square grid"):
        import_generator("showo", theirs[1], tokenizer(SIDES))
    with pytest.raises(UserError, match="draws 43 codes, the image tokenizer has 50: give the folder that unitok imp"):
        import_generator("showo", theirs[1], tokenizer(), {"llm_vocab_size": P + 7})
    weights = torch.load(theirs[1] / "pytorch_model.bin", weights_only=True)
    torch.save({**weights, "mm_projector.0.weight": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes((theirs[1] / "config.json").read_bytes())
    with pytest.raises(UserError, match=r"it has unexpected mm_projector.0.weight \(the nearest released model is"):
        import_generator("showo", tmp_path, tokenizer())
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"has no tokenizer.json beside it.*or name it with --settings"):
        import_generator("showo", tmp_path, tokenizer())
    named = {"text_tokenizer": str(theirs[1])}
    found = import_generator("showo", tmp_path, tokenizer(), named)
    assert found.fingerprint() == import_generator("showo", theirs[1], tokenizer()).fingerprint()
