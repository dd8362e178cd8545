"""Chameleon is asked about one picture or several: ids of transformers' own processor, answers of its own model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import ChameleonProcessor, PreTrainedTokenizerFast
from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil

from tokenizers_vq.images import save_png
from unitok.cli.main import main
from unitok.importing import import_generator
from unitok.model import UniTok
from unitok.sample.pictures import as_read
from unitok.sample.prompts import document_of
from unitok.sample.reading import ask
from unitok.tasks import asked, prompt

from .chameleon_model import image_tokenizer
from .test_chameleon import BOI, EOI, IDS, LENGTH, TURN, saved

IMAGE = "<image>"


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, ChameleonProcessor]:
    model, folder = saved(tmp_path_factory.mktemp("chameleon"))
    words = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    words.add_special_tokens(
        {"sep_token": "<reserved08706>", "additional_special_tokens": [IMAGE, "<racm3:break>", "<eoss>"]}
    )
    words.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    pixels = ChameleonImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return model, folder, ChameleonProcessor(pixels, words, image_seq_length=LENGTH, image_token=IMAGE)


@pytest.fixture(scope="module")
def model(theirs: tuple[Any, Path, ChameleonProcessor]) -> UniTok:
    return import_generator("chameleon", theirs[1], image_tokenizer())


def some_pictures(number: int) -> torch.Tensor:
    return torch.randint(256, (number, 3, 16, 16), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)


def their_ids(processor: ChameleonProcessor, model: UniTok, pictures: torch.Tensor, question: str) -> list[int]:
    """The prompt that their processor makes, with our codes in the places that it keeps for those of pictures."""
    given = [one.permute(1, 2, 0).numpy() for one in pictures]
    ids = processor(images=given, text=IMAGE * len(given) + question)["input_ids"]
    ids = torch.as_tensor(ids)[0].clone()
    here = ids == processor.image_token_id
    ids[here] = IDS[torch.stack([*as_read(model, pictures)]).flatten()]
    return ids.tolist()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_prompt_has_the_ids_of_their_processor(
    count: int, theirs: tuple[Any, Path, ChameleonProcessor], model: UniTok
) -> None:
    pictures, modalities = some_pictures(count), model.modalities()
    codes = as_read(model, pictures)
    _, record = asked("question", {"image": codes if count > 1 else codes[0], "question": "w3 w7"}, modalities)
    made = document_of(prompt("question", record), modalities)
    names = {"bos": 0, "boi": BOI, "eoi": EOI, "turn": TURN}
    place = {model.vocabulary[name].start: here for name, here in names.items()}
    place |= {model.vocabulary.image_start + code: int(here) for code, here in enumerate(IDS)}
    found = [place.get(one, one) for one in made.inputs.tolist()]
    assert [*found, TURN] == their_ids(theirs[2], model, pictures, "w3 w7")
    assert made.places[:, 0].tolist() == list(range(len(found))), "in one line"
    assert made.groups.tolist() == list(range(len(found))), "each sees those before it alone"


@torch.inference_mode()
def test_answers_are_those_of_transformers(
    theirs: tuple[Any, Path, ChameleonProcessor], model: UniTok, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several questions share their pictures."""
    monkeypatch.setattr(model.config, "text_length", 6)
    size, questions = model.text_tokenizer.size, ["w3 w7", "w1"]
    said = []
    for count in (1, 2):
        pictures = some_pictures(count)
        answers = ask(model, pictures if count > 1 else pictures[0], questions)
        for question, answer in zip(questions, answers, strict=True):
            begin, row = their_ids(theirs[2], model, pictures, question), []
            while len(row) < 6:
                chosen = int(theirs[0](torch.tensor([begin + row])).logits[0, -1, :size].argmax())
                if chosen == 2:
                    break
                row.append(chosen)
            assert answer == model.text_tokenizer.decode(row), (count, question)
        said += answers
    assert len(set(said)) > 2


def test_the_command_asks_about_several_pictures(
    model: UniTok, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.config, "text_length", 6)
    model.save_pretrained(tmp_path / "model")
    pictures = some_pictures(2)
    for name, one in zip("ab", pictures, strict=True):
        save_png(tmp_path / f"{name}.png", one)
    argv = ["ask", str(tmp_path / "a.png"), "w3 w7", "--model", str(tmp_path / "model")]
    more, several = ["--also", str(tmp_path / "b.png")], ["--also", f'["{tmp_path / "b.png"}", "{tmp_path / "a.png"}"]']
    for words, given in ((more, pictures), (several, pictures[[0, 1, 0]])):
        capsys.readouterr()
        assert main([*argv, *words]) == 0
        assert capsys.readouterr().out == f"w3 w7\t{ask(model, given, ['w3 w7'])[0]}\n"
    assert main([*argv, *more, "--out", str(tmp_path / "out")]) == 2
    assert "--out holds records of one picture each: leave it out with --also" in capsys.readouterr().err
    assert main([*argv, "--also", str(tmp_path / "c.png")]) == 2
    assert "c.png is not a file" in capsys.readouterr().err and not (tmp_path / "out").exists()
