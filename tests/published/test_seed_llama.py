"""SEED-LLaMA: logits, codes and captions of transformers' Llama, on tiny models that it saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tokenizers_vq.base import build_tokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.families.seed import SeedTokenizer
from tokenizers_vq.families.seed_config import SeedConfig
from tokenizers_vq.quantizers.config import VQ
from unitok.cli.main import main
from unitok.exporting.language import language_model
from unitok.importing import import_generator
from unitok.model import UniTok
from unitok.objectives.base import Draw
from unitok.sample.pipeline import caption_codes, draw_codes, score_codes
from unitok.sampling import SampleSettings
from unitok.sequence import lay_out
from unitok.tasks import documents

from .foreign import (
    CODES,
    TEXTS,
    WORDS,
    loss_among,
    mean_losses,
    released_as_in_transformers,
    stirred,
    survives,
    text_tokenizer,
)
from .test_generators import GREEDY, some_codes
from .tiny import tokenizer

SPECIALS = ("<unk>", "<s>", "</s>")
BOS, EOS, FIRST = 1, 2, 4 + WORDS
"""Ids; codes stand behind the words, and the marks behind the codes."""
BOI, EOI, LENGTH = FIRST + CODES, FIRST + CODES + 1, 5
MARKS = ["<img>", "</img>"]
NAMES = [f"<img_{code:05d}>" for code in range(CODES)]
CAPTIONS = ("w3 w7 w1", "w5", "")
SETTINGS = {"NUM_IMG_CODES": CODES}


@pytest.fixture(scope="module")
def images() -> SeedTokenizer:
    config = SeedConfig(
        image_size=28,
        quantizer=VQ(codebook_size=CODES, dim=8),
        tokens=LENGTH,
        patch=7,
        vision_width=16,
        vision_depth=1,
        vision_heads=2,
        vision_inner=24,
        width=24,
        depth=2,
        heads=2,
        inner=32,
        decoder_depth=1,
        embedding=12,
    )
    torch.manual_seed(0)
    made = stirred(build_tokenizer(config))
    assert isinstance(made, SeedTokenizer)
    return made


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("seed_llama")
    words = text_tokenizer(folder, SPECIALS)
    words.add_tokens([*NAMES, *MARKS])
    assert [words.token_to_id(token) for token in (NAMES[0], *MARKS)] == [FIRST, BOI, EOI]
    words.save(str(folder / "tokenizer.json"))
    config = LlamaConfig(
        vocab_size=TEXTS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    torch.manual_seed(0)
    model = stirred(LlamaForCausalLM(config))
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def model(theirs: tuple[Any, Path], images: SeedTokenizer) -> UniTok:
    return import_generator("seed_llama", theirs[1], images, SETTINGS)


def prompt(model: UniTok, caption: str) -> list[int]:
    return [BOS, *model.text_tokenizer.encode(caption), BOI]


@torch.inference_mode()
def logits(model: Any, ids: list[int]) -> Tensor:
    found: Tensor = model(torch.tensor([ids])).logits[0]
    return found


@torch.inference_mode()
def test_codes_have_the_logits_of_transformers(theirs: tuple[Any, Path], model: UniTok) -> None:
    codes = some_codes(LENGTH)
    found = score_codes(model, CAPTIONS, codes)
    for row, caption in enumerate(CAPTIONS):
        begin = prompt(model, caption)
        wanted = logits(theirs[0], [*begin, *(FIRST + codes[row, :-1]).tolist()])
        torch.testing.assert_close(found[row], wanted[len(begin) - 1 :, FIRST:BOI], atol=1e-4, rtol=0)
    assert found.std() > 0.3


@torch.inference_mode()
def test_the_most_likely_codes_are_those_of_transformers(theirs: tuple[Any, Path], model: UniTok) -> None:
    """Prompts of several lengths are drawn side by side; ids are those that `generate` takes among the codes."""
    found = draw_codes(model, CAPTIONS, SampleSettings(guidance=1.0, **GREEDY), [0, 1, 2])
    for row, caption in enumerate(CAPTIONS):
        begin = prompt(model, caption)
        written = theirs[0].generate(
            torch.tensor([begin]),
            attention_mask=torch.ones(1, len(begin), dtype=torch.int64),
            max_new_tokens=LENGTH,
            do_sample=False,
            suppress_tokens=[place for place in range(TEXTS) if not FIRST <= place < BOI],
            pad_token_id=0,
        )
        assert (found[row] + FIRST).tolist() == written[0, len(begin) :].tolist(), caption
    assert len(found.unique()) > 2


@torch.inference_mode()
def test_captions_have_the_logits_and_ids_of_transformers(
    theirs: tuple[Any, Path], model: UniTok, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes, ids = some_codes(LENGTH), [10, 31, 28]
    monkeypatch.setattr(model.config, "text_length", 8)
    pictures = [[BOS, BOI, *(FIRST + one).tolist(), EOI] for one in codes]
    task, draws = "image_to_text", [Draw(torch.Generator())]
    [made] = documents([task], [{"image": codes[0], "caption": ids}], draws, model.modalities(), {}, {task: 0})
    hidden = model.states(lay_out([[made]], pad=model.vocabulary.pad))[0, LENGTH + 2 :]
    found = model.ids.scores(hidden, model.vocabulary.text_range)
    wanted = logits(theirs[0], [*pictures[0], *ids])[LENGTH + 2 :]
    size = model.text_tokenizer.size
    closed = [EOS, *range(FIRST, EOI + 1)]
    others = [place for place in range(size) if place not in closed]
    torch.testing.assert_close(found[:, others], wanted[:, others], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[:, size], wanted[:, EOS], atol=1e-4, rtol=0)  # the end is an id of its own here
    assert (found[:, closed] < -1000).all()
    for picture, written in zip(pictures, caption_codes(model, codes), strict=True):
        row: list[int] = []
        while len(row) < 8:
            last = logits(theirs[0], picture + row)[-1]
            last[FIRST:] = -torch.inf  # no picture inside a caption, and no ids that the tokenizer lacks
            if (chosen := int(last.argmax())) == EOS:
                break
            row.append(chosen)
        assert written == model.text_tokenizer.decode(row)


def test_a_training_step_has_the_loss_of_transformers(theirs: tuple[Any, Path], model: UniTok) -> None:
    """Over codes behind captions, and over captions behind pictures. It takes all ids for likely; what it says of those
    that cannot stand there is taken off."""
    codes, words = some_codes(LENGTH), model.text_tokenizer
    tasks = ["text_to_image"] * 3 + ["image_to_text"] * 3
    records = [{"image": one, "caption": text} for one, text in zip(codes, CAPTIONS, strict=True)] * 2
    rows = [([*prompt(model, text)], (FIRST + one).tolist()) for one, text in zip(codes, CAPTIONS, strict=True)]
    rows += [
        ([BOS, BOI, *(FIRST + one).tolist(), EOI], [*words.encode(text), EOS])
        for one, text in zip(codes, CAPTIONS, strict=True)
    ]
    with torch.no_grad():
        found = mean_losses(model, tasks, records)
        for task, can_stand in (("text_to_image", range(FIRST, BOI)), ("image_to_text", range(FIRST))):
            mine = [row for row, one in zip(rows, tasks, strict=True) if one == task]
            longest = max(len(begin) + len(learned) for begin, learned in mine)
            ids, labels = torch.zeros(3, longest, dtype=torch.int64), torch.full((3, longest), -100)
            for row, (begin, learned) in enumerate(mine):
                ids[row, : len(begin) + len(learned)] = torch.tensor([*begin, *learned])
                labels[row, len(begin) : len(begin) + len(learned)] = torch.tensor(learned)
            out = theirs[0](ids, labels=labels)  # nothing sees the filler behind it
            logits = out.logits[:, :-1][labels[:, 1:] >= 0]
            torch.testing.assert_close(found[task], loss_among(out.loss, logits, [*can_stand]), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_a_caption_stands_in_the_wording_of_the_model(
    theirs: tuple[Any, Path], images: SeedTokenizer, model: UniTok
) -> None:
    worded = import_generator("seed_llama", theirs[1], images, {**SETTINGS, "wording": "w9 : {} w8"})
    codes = some_codes(LENGTH)[:1]
    torch.testing.assert_close(score_codes(worded, ["w3"], codes), score_codes(model, ["w9 : w3 w8"], codes))


def test_the_command_makes_a_model_that_reads_encodes_and_learns(
    theirs: tuple[Any, Path], images: SeedTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens, out, pictures = tmp_path / "images", tmp_path / "model", tmp_path / "pictures"
    images.save_pretrained(tokens)
    argv = ["import", "seed_llama", str(theirs[1]), "--out", str(out), "--settings", json.dumps(SETTINGS)]
    assert main(argv) == 2
    assert "seed_llama draws codes of an image tokenizer: give its folder" in capsys.readouterr().err
    assert not out.exists()
    assert main([*argv, "--image_tokenizer", str(tokens)]) == 0
    assert UniTok.from_pretrained(out).config.sampling == {"guidance": 1.0, "temperature": 1.0, "top_p": 0.5}
    pictures.mkdir()
    for name in ("a", "b"):
        Image.linear_gradient("L").convert("RGB").rotate(90 * len(name)).save(pictures / f"{name}.png")
        (pictures / f"{name}.txt").write_text("w3 w5\n")
    assert main(["caption", "--model", str(out), str(pictures / "a.png")]) == 0
    for words in (
        ["inpaint", str(pictures / "a.png"), "--model", str(out), "--caption", "w3", "--box", "0,0,9,9"],
        ["eval", "generator", "--model", str(out), "--data", str(pictures)],
        ["eval", "suite", "--model", str(out), "--data", str(pictures)],
    ):
        made = tmp_path / "made"
        capsys.readouterr()
        assert main([*words, "--out", str(made)]) == 2, words
        err = capsys.readouterr().err
        assert len(err.strip().splitlines()) == 1 and not made.exists(), err
        assert "makes an image embedding of codes, no pixels" in err or "have no place in the picture" in err
    tasks = ["eval", "tasks", "shapes@val?limit=3", "--model", str(out), "--out", str(made)]
    assert main(tasks) == 0
    assert "note: left out: text_to_image; the SEED tokenizer makes an image embedding" in capsys.readouterr().err
    report = json.loads((made / "report.json").read_text())
    assert report["provenance"].keys() == {"image_to_text.exact"} and "left out: text_to_image" in report["warnings"][0]
    assert main(["serve", "--model", str(out), "--port", "0"]) == 2
    assert "makes an image embedding of codes, no pixels" in capsys.readouterr().err
    capsys.readouterr()
    run = ["train", "generator", "--init", str(out), "--data", "shapes?limit=4", "--val_data", "shapes@val?limit=2"]
    run += ["--out", str(tmp_path / "tuned"), "--run.steps", "2", "--run.batch_size", "2", "--run.device", "cpu"]
    assert main([*run, "--tasks.text_only.share", "0"]) == 0
    said = capsys.readouterr().out  # drawings could be judged, if there were any
    assert "val exact/image_to_text" in said and "val exact/text_to_image" not in said
    tuned = UniTok.from_pretrained(tmp_path / "tuned")
    before = UniTok.from_pretrained(out)
    assert not torch.equal(tuned.ids.head.weight, before.ids.head.weight)
    assert tuned.image_tokenizer.fingerprint() == images.fingerprint()


def test_the_command_draws_codes_and_image_embeddings(
    model: UniTok, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file for each picture, all of them in one, and the records; run again, it makes what is damaged anew."""
    model.save_pretrained(tmp_path / "model")
    out, captions = tmp_path / "drawn", CAPTIONS[:2]
    words = ["sample", *captions, "--n", "2", "--model", str(tmp_path / "model"), "--out", str(out)]
    assert main(words) == 0
    said, noted = capsys.readouterr()
    assert said == f"{out / 'codes.safetensors'}\n" and not (out / "pictures").exists()
    assert "note: codes and image embeddings, no pictures: the SEED tokenizer makes an image embedding" in noted
    wanted = draw_codes(model, [captions[0]] * 2 + [captions[1]] * 2, SampleSettings.of(model.config), [0, 1, 0, 1])
    found = load_file(out / "codes.safetensors")
    assert torch.equal(found["codes"], wanted) and len(wanted.unique(dim=0)) == 4
    torch.testing.assert_close(found["embeddings"], model.image_tokenizer.embed(wanted))
    records = [json.loads(line) for line in (out / "codes" / "metadata.jsonl").read_text().splitlines()]
    assert [(one["caption"], one["seed"]) for one in records] == [(text, seed) for text in captions for seed in (0, 1)]
    files = [out / "codes" / one["file_name"] for one in records]
    for file, codes, embedding in zip(files, found["codes"], found["embeddings"], strict=True):
        assert load_file(file).keys() == {"codes", "embedding"}
        assert torch.equal(load_file(file)["codes"], codes) and torch.equal(load_file(file)["embedding"], embedding)
    (whole, torn), before = files[:2], files[0].stat().st_mtime_ns
    torn.write_bytes(torn.read_bytes()[:-1])
    (out / "codes.safetensors").unlink()
    assert main(words) == 0 and whole.stat().st_mtime_ns == before
    again = load_file(out / "codes.safetensors")
    assert all(torch.equal(again[name], found[name]) for name in found)
    capsys.readouterr()
    assert main([*words, "--top_p", "0.9"]) == 2
    assert "already holds pictures of another model or other settings" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["seed-llama-8b", "seed-llama-14b"])
def test_released_models_have_the_tensors_of_transformers(name: str) -> None:
    released_as_in_transformers("seed_llama", name, LlamaForCausalLM, LlamaConfig)


@torch.inference_mode()
def test_the_model_goes_back_as_it_came(
    theirs: tuple[Any, Path], images: SeedTokenizer, model: UniTok, tmp_path: Path
) -> None:
    """As Llama, with texts, codes and marks under the authors' ids; and it comes in again."""
    language_model(model).write(tmp_path)
    again, info = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys"))
    ids = [BOS, 9, 31, BOI, *(FIRST + some_codes(LENGTH)[0]).tolist(), EOI, 12, EOS]
    wanted = logits(theirs[0], ids)[:, : EOI + 1]  # rows without a token stay behind
    torch.testing.assert_close(logits(again, ids), wanted, atol=1e-4, rtol=0)
    words = AutoTokenizer.from_pretrained(tmp_path)
    assert words.convert_tokens_to_ids([NAMES[-1], *MARKS]) == [BOI - 1, BOI, EOI] and words.eos_token_id == EOS
    assert import_generator("seed_llama", tmp_path, images, SETTINGS).fingerprint() == model.fingerprint()


def test_the_model_survives_its_folder(model: UniTok, tmp_path: Path) -> None:
    survives(model, CAPTIONS, tmp_path / "model")


def test_what_does_not_fit_is_told(theirs: tuple[Any, Path], images: SeedTokenizer, tmp_path: Path) -> None:
    folder = theirs[1]
    with pytest.raises(UserError, match=r"codes of a .* tokenizer become pictures, not embeddings: call decode"):
        tokenizer().embed(torch.zeros(1, 16, dtype=torch.int64))
    with pytest.raises(UserError, match="the image tokenizer makes 4x4 codes, SEED-LLaMA draws one row of them: give"):
        import_generator("seed_llama", folder, tokenizer(), SETTINGS)
    with pytest.raises(UserError, match="draws 8192 codes, the image tokenizer has 50"):
        import_generator("seed_llama", folder, images)
    with pytest.raises(UserError, match="setting NUM_IMG_CODES is 'many': give a whole number above 0, such as 8192"):
        import_generator("seed_llama", folder, images, {"NUM_IMG_CODES": "many"})
    with pytest.raises(UserError, match=r"setting wording is 'USER:': give a text with one \{\}"):
        import_generator("seed_llama", folder, images, {**SETTINGS, "wording": "USER:"})
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(UserError, match=r"has no tokenizer\.json beside it, which turns captions into ids"):
        import_generator("seed_llama", tmp_path, images, SETTINGS)
    text_tokenizer(tmp_path, SPECIALS, [*MARKS, *NAMES[:-1]])
    with pytest.raises(UserError, match="has no token of code 49, such as <img_00000> of code 0"):
        import_generator("seed_llama", tmp_path, images, SETTINGS)
    text_tokenizer(tmp_path, SPECIALS, NAMES)
    with pytest.raises(UserError, match="has no <img>, </img>: give the text tokenizer of the model"):
        import_generator("seed_llama", tmp_path, images, SETTINGS)
    adapters = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 32)}
    torch.save(adapters, tmp_path / "adapter_model.bin")
    with pytest.raises(
        UserError,
        match=r"holds low-rank adapters \(.*\), not a whole model: merge them into it with peft's merge_and_unload",
    ):
        import_generator("seed_llama", tmp_path / "adapter_model.bin", images, SETTINGS)
