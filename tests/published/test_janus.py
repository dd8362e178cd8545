"""Janus: logits, codes and pictures of transformers' own classes, on a tiny model that they saved."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    LlamaForCausalLM,
)

from tokenizers_vq.errors import UserError
from unitok.cli.main import main
from unitok.data.decoding import decode
from unitok.exporting.language import language_model
from unitok.importing import import_generator
from unitok.modalities import Picture
from unitok.model import UniTok
from unitok.objectives.base import Draw
from unitok.sample.pipeline import answer, draw_codes, score_codes
from unitok.sample.pipeline import caption as written
from unitok.sample.reading import ask
from unitok.sampling import SampleSettings
from unitok.sequence import document, lay_out
from unitok.tasks import documents
from unitok.trunk.published import published_family

from .foreign import CODES, SIDE, TEXTS, WORDS, stirred, survives, text_tokenizer
from .test_generators import GREEDY, some_codes

EOS, BOS, PAD = (
    f"<\uff5c{word}\uff5c>" for word in ("end\u2581of\u2581sentence", "begin\u2581of\u2581sentence", "\u2581pad\u2581")
)
SPECIALS = ("<unk>", BOS, EOS, PAD, "<begin_of_image>", "<end_of_image>", "<|User|>", "<|Assistant|>")
BOI, EOI, COLON = 4, 5, len(SPECIALS)
HERE = TEXTS - 1
"""Where transformers puts what it sees in a picture; no id of the text tokenizer."""
CAPTION = "w3 w7 w1"


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("janus")
    torch.manual_seed(0)
    text = {"model_type": "llama", "vocab_size": TEXTS, "hidden_size": 32, "intermediate_size": 48}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 500.0}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "max_position_embeddings": 256}
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
    vision |= {"projection_dim": 32, "num_image_tokens": SIDE * SIDE}
    images = {"embed_dim": 8, "num_embeddings": CODES, "latent_channels": 32, "base_channels": 32}
    images |= {"channel_multiplier": [1, 1, 2], "num_res_blocks": 1, "projection_dim": 32, "image_token_embed_dim": 32}
    config = JanusConfig(
        text_config=text, vision_config=vision, vq_config=images, image_token_id=HERE, tie_word_embeddings=False
    )
    model = stirred(JanusForConditionalGeneration(config))
    book = model.model.vqmodel.quantize.embedding.weight
    # transformers looks codes up without bringing latents to length 1, as the authors do: the same for such a book.
    book.data = torch.nn.functional.normalize(book.data, dim=-1)
    model.save_pretrained(folder)
    text_tokenizer(folder, SPECIALS)
    return model, folder


def ids_of(model: UniTok, caption: str) -> list[int]:
    return [1, *model.text_tokenizer.encode(f"<|User|>: {caption}\n\n<|Assistant|>:"), BOI]


@torch.inference_mode()
def forced(model: Any, prompt: list[int], codes: Tensor) -> Tensor:
    """Logits (L, V) where each of the codes (L,) stands."""
    texts = model.get_input_embeddings()(torch.tensor([prompt]))
    images = model.prepare_embeddings_for_image_generation(codes[None, :-1])
    hidden = model.model.language_model(inputs_embeds=torch.cat([texts, images], 1)).last_hidden_state
    return model.model.generation_head(hidden[0, len(prompt) - 1 :])


@torch.inference_mode()
def greedy(model: Any, prompt: list[int], scale: float) -> Tensor:
    config = GenerationConfig(
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        max_length=64,
        generation_kwargs={"boi_token_id": BOI},
        guidance_scale=scale,
        do_sample=False,
    )
    return model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        generation_mode="image",
        generation_config=config,
    )[0]


@torch.inference_mode()
def test_codes_have_the_logits_of_transformers(theirs: tuple[Any, Path]) -> None:
    model = import_generator("janus", theirs[1])
    codes = some_codes(SIDE * SIDE)
    found = score_codes(model, [CAPTION, "w5", ""], codes)
    for row, caption in enumerate((CAPTION, "w5", "")):
        wanted = forced(theirs[0], ids_of(model, caption), codes[row])
        torch.testing.assert_close(found[row], wanted, atol=1e-4, rtol=0)
    assert found.std() > 0.3


@torch.inference_mode()
def test_the_most_likely_codes_are_those_of_transformers(theirs: tuple[Any, Path]) -> None:
    """Guidance compares with padding in place of the caption."""
    model = import_generator("janus", theirs[1])
    drawn = []
    for scale in (1.5, 2.0, 5.0):
        found = draw_codes(model, [CAPTION, "w5"], SampleSettings(guidance=scale, **GREEDY), [0, 1])
        drawn.append(found)
        for row, caption in enumerate((CAPTION, "w5")):
            assert torch.equal(found[row], greedy(theirs[0], ids_of(model, caption), scale)), (scale, caption)
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])


@torch.inference_mode()
def test_texts_have_the_logits_of_transformers(theirs: tuple[Any, Path]) -> None:
    model = import_generator("janus", theirs[1])
    ids = [20, 11, 33, 9]
    [[segment]] = model.modalities()["text"].learned([ids], [], [False])
    hidden = model.states(lay_out([[document([segment])]], pad=model.vocabulary.pad))
    found = model.ids.scores(hidden[0], model.vocabulary.text_range)
    wanted = theirs[0](torch.tensor([[COLON, *ids]])).logits[0]
    size = model.text_tokenizer.size
    others = [place for place in range(size) if place != 2]
    torch.testing.assert_close(found[:, others], wanted[:, others], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[:, size], wanted[:, 2], atol=1e-4, rtol=0)  # the end is an id of its own here
    assert (found[:, 2] < -1000).all()


def prompt(model: UniTok, question: str, system: str = "") -> list[int]:
    """A talk's first turn about a picture, tokenized as a whole."""
    whole = f"{system}<|User|>: <begin_of_image> <end_of_image> \n{question}\n\n<|Assistant|>:"
    ids = model.text_tokenizer.encode(whole)
    end = ids.index(EOI)
    return [1, *ids[:end], *[HERE] * SIDE * SIDE, *ids[end:]]


def seen(pixels: Tensor) -> Tensor:
    return pixels[None] / 127.5 - 1


@torch.inference_mode()
def said(model: Any, ids: list[int], pixels: Tensor, most: int = 12) -> list[int]:
    """What transformers answers, the most likely each time."""
    config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=3, max_new_tokens=most, do_sample=False)
    config.suppress_tokens = list(range(COLON + 1 + WORDS, TEXTS))  # rows that no token has
    inputs, mask = torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.int64)
    found = model.generate(inputs, attention_mask=mask, pixel_values=seen(pixels), generation_config=config)[0]
    new = found[len(ids) :].tolist() if len(found) > most else found.tolist()
    return new[: new.index(2)] if 2 in new else new


def words_of(model: UniTok, ids: list[int]) -> str:
    return model.text_tokenizer.decode(ids)


def some_pictures(count: int) -> Tensor:
    random = torch.Generator().manual_seed(7)
    colours = torch.randint(200, (count, 3, 1, 1), generator=random)
    return (colours + torch.randint(56, (count, 3, SIDE * 4, SIDE * 4), generator=random)).to(torch.uint8)


@torch.inference_mode()
def test_answers_have_the_logits_of_transformers(theirs: tuple[Any, Path]) -> None:
    """Behind a picture and a question, of several pictures in one row."""
    model = import_generator("janus", theirs[1], settings={"system": "w1 w2 \n\n"})
    pictures, text = some_pictures(3), [20, 11, 33]
    task = "question"
    record = [{"image": Picture(one), "question": "w5 w6", "answer": text} for one in pictures]
    draws = [Draw(torch.Generator())] * 3
    made = documents([task] * 3, record, draws, model.modalities(), {}, {task: 0})
    for number, item in enumerate(made):
        hidden = model.states(lay_out([[item, made[0]]], pad=model.vocabulary.pad))[0, : len(item)]
        ids = [*prompt(model, "w5 w6", "w1 w2 \n\n"), *text]
        assert len(ids) == len(item)
        wanted = theirs[0](torch.tensor([ids]), pixel_values=seen(pictures[number])).logits[0, -4:]
        found = model.ids.scores(hidden[-4:], model.vocabulary.text_range)
        size = model.text_tokenizer.size
        others = [place for place in range(size) if place != 2]
        torch.testing.assert_close(found[:, others], wanted[:, others], atol=1e-4, rtol=0)
        torch.testing.assert_close(found[:, size], wanted[:, 2], atol=1e-4, rtol=0)


@torch.inference_mode()
def test_the_most_likely_answers_are_those_of_transformers(theirs: tuple[Any, Path]) -> None:
    """Captions are answers to a question of the model's."""
    model = import_generator("janus", theirs[1])
    length = model.config.text_length
    model.config.text_length = 12
    pictures = some_pictures(3)
    captions = written(model, pictures)
    wanted = [words_of(model, said(theirs[0], prompt(model, "Describe the image."), one)) for one in pictures]
    assert captions == wanted and len(set(captions)) > 1
    answers = answer(model, pictures, ["w5 w6", "w7", "w8 w9 w10"])
    pairs = zip(pictures, ["w5 w6", "w7", "w8 w9 w10"], strict=True)
    assert answers == [words_of(model, said(theirs[0], prompt(model, question), one)) for one, question in pairs]
    assert ask(model, pictures[0], ["w5 w6"]) == answers[:1]
    model.config.text_length = length


@torch.inference_mode()
def test_pictures_and_their_codes_are_those_of_transformers(theirs: tuple[Any, Path]) -> None:
    images = import_generator("janus", theirs[1]).image_tokenizer
    pictures = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    encoded = theirs[0].model.vqmodel.encode(pictures).image_tokens.view(3, -1)
    assert torch.equal(images.encode(pictures), encoded) and len(encoded.unique()) > 5
    wanted = theirs[0].model.vqmodel.decode(encoded)
    torch.testing.assert_close(images.decode(encoded), wanted, atol=1e-4, rtol=0)


AUTHORS = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.generation_embeddings\.", "gen_embed."),
    (r"^model\.generation_aligner\.fc1\.", "gen_aligner.layers.0."),
    (r"^model\.generation_aligner\.hidden_layers\.0\.", "gen_aligner.layers.2."),
    (r"^model\.generation_head\.proj_out\.", "gen_head.output_mlp_projector."),
    (r"^model\.generation_head\.", "gen_head."),
    (r"^model\.vision_model\.embeddings\.position_embedding\.weight$", "vision_model.vision_tower.pos_embed"),
    (r"^model\.vision_model\.embeddings\.patch_embedding\.", "vision_model.vision_tower.patch_embed.proj."),
    (r"^model\.vision_model\.post_layernorm\.", "vision_model.vision_tower.norm."),
    (r"^model\.vision_model\.encoder\.layers\.(\d+)\.", r"vision_model.vision_tower.blocks.\1."),
    (r"^(vision_model\..*)\.self_attn\.projection_layer\.", r"\1.attn.proj."),
    (r"^(vision_model\..*)\.self_attn\.", r"\1.attn."),
    (r"^(vision_model\..*)\.layer_norm", r"\1.norm"),
    (r"^model\.aligner\.fc1\.", "aligner.layers.0."),
    (r"^model\.aligner\.hidden_layers\.0\.", "aligner.layers.2."),
    (r"^(model\.vqmodel\..*)\.(?:down|up)\.(\d+)\.", r"\1.conv_blocks.\2."),
    (r"^(model\.vqmodel\..*)\.block\.", r"\1.res."),
    (r"^(model\.vqmodel\..*)\.mid\.block_1\.", r"\1.mid.0."),
    (r"^(model\.vqmodel\..*)\.mid\.attn_1\.", r"\1.mid.1."),
    (r"^(model\.vqmodel\..*)\.mid\.block_2\.", r"\1.mid.2."),
    (r"^model\.vqmodel\.", "gen_vision_model."),
)


def test_files_of_the_authors_are_the_same_model(theirs: tuple[Any, Path], tmp_path: Path) -> None:
    """Their names, and a configuration with other groups."""
    weights = {}
    for name, tensor in load_file(theirs[1] / "model.safetensors").items():
        for old, new in AUTHORS:
            name = re.sub(old, new, name)
        weights[name] = tensor
    place = "vision_model.vision_tower."
    for kind in ("weight", "bias"):
        parts = [weights.pop(f"{place}blocks.0.attn.{part}_proj.{kind}") for part in "qkv"]
        weights[f"{place}blocks.0.attn.qkv.{kind}"] = torch.cat(parts)
    weights[f"{place}pos_embed"] = weights[f"{place}pos_embed"][None]
    weights[f"{place}attn_pool.latent"] = torch.zeros(1, 1, 16)
    weights["gen_vision_model.quantize.codebook_used"] = torch.zeros(8)
    torch.save(weights, tmp_path / "pytorch_model.bin")
    config = json.loads((theirs[1] / "config.json").read_text())
    seen = {"num_attention_heads": 2, "params": {"image_size": 16}}
    ours = {"language_config": config["text_config"], "vision_config": seen}
    (tmp_path / "config.json").write_text(json.dumps({**ours, "vq_config": config["vq_config"]}))
    (tmp_path / "tokenizer.json").write_bytes((theirs[1] / "tokenizer.json").read_bytes())
    found = import_generator("janus", tmp_path)
    assert found.fingerprint() == import_generator("janus", theirs[1]).fingerprint()


class NotThere(RemoteEntryNotFoundError):
    def __init__(self) -> None:
        """Without the answer of a server."""


def test_several_files_from_the_hub_are_the_same_model(
    theirs: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs[0].save_pretrained(tmp_path, max_shard_size="200KB")
    (tmp_path / "tokenizer.json").write_bytes((theirs[1] / "tokenizer.json").read_bytes())
    files = [one.name for one in tmp_path.iterdir()]
    assert sum(name.endswith(".safetensors") for name in files) > 1
    fetched = []

    def fetch(repository: str, file: str) -> str:
        fetched.append((repository, file))
        if file not in files:
            raise NotThere
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, repository: files)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    found = import_generator("janus", "hf:deepseek-community/tiny")
    assert found.fingerprint() == import_generator("janus", theirs[1]).fingerprint()
    assert {file for _, file in fetched} >= {"config.json", "tokenizer.json", "model.safetensors.index.json"}
    files.remove("tokenizer.json")
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"^hf:deepseek-community/tiny has no tokenizer.json beside it"):
        import_generator("janus", "hf:deepseek-community/tiny")

    def offline(repository: str, file: str) -> str:
        if file == "config.json":
            raise OSError("no route to host")
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(
        UserError, match=r"config.json of hf:.* could not be fetched \(no route to host\): check network"
    ):
        import_generator("janus", "hf:deepseek-community/tiny")


def test_commands_take_the_folder(theirs: tuple[Any, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, drawn = tmp_path / "model", tmp_path / "drawn"
    assert main(["import", "janus", str(theirs[1]), "--out", str(out)]) == 0
    assert "16x16 pixels -> 4x4 codes" in capsys.readouterr().err
    model = UniTok.from_pretrained(out)
    assert model.config.tasks == ("text_to_image", "image_to_text", "question")
    assert model.config.sampling == {"guidance": 5.0}
    assert main(["sample", "--model", str(out), CAPTION, "--n", "2", "--out", str(drawn), "--temperature", "0"]) == 0
    picture = next((drawn / "pictures").glob("*.png"))
    (drawn / "pictures" / "metadata.jsonl").read_text()
    capsys.readouterr()
    assert main(["caption", "--model", str(out), str(picture)]) == 0
    pixels = decode(picture.read_bytes(), (16, 16))
    assert words_of(model, said(theirs[0], prompt(model, "Describe the image."), pixels)) in capsys.readouterr().out
    assert main(["ask", str(picture), "w3 w9", "--model", str(out)]) == 0
    assert words_of(model, said(theirs[0], prompt(model, "w3 w9"), pixels)) in capsys.readouterr().out

    words = ["--init", str(out), "--data", str(drawn / "pictures"), "--out", str(tmp_path / "tuned")]
    words += ["--run.steps", "2", "--run.batch_size", "2", "--run.workers", "0", "--run.precision", "fp32"]
    words += ["--tasks.image_to_text.share", "0", "--tasks.caption_dropout", "0.5", "--optim.lr", "1e-3"]
    assert main(["train", "generator", *words]) == 0
    tuned = UniTok.from_pretrained(tmp_path / "tuned")
    assert tuned.config.trunk == model.config.trunk
    assert not torch.equal(tuned.ids.deep.layer.weight, model.ids.deep.layer.weight)


def test_a_caption_that_training_leaves_out_is_padding_too(theirs: tuple[Any, Path]) -> None:
    model, codes = import_generator("janus", theirs[1]), some_codes(SIDE * SIDE)[:1]
    record = {"caption": CAPTION, "image": codes[0]}
    task, texts = "text_to_image", model.modalities()
    rows = []
    for share in (0.0, 1.0):
        draws = [Draw(torch.Generator().manual_seed(0))]
        [made] = documents([task], [record], draws, texts, {"text": share}, {task: 0})
        rows.append(made.inputs.tolist())
    caption = len(ids_of(model, CAPTION)) - 2
    assert len(rows[0]) == 1 + caption + SIDE * SIDE and model.vocabulary.pad not in rows[0]
    assert rows[1] == [rows[0][0], *[model.vocabulary.pad] * caption, *rows[0][1 + caption :]]


def test_released_models_have_the_tensors_of_transformers() -> None:
    table = published_family("janus")
    trunk, texts, codes = table.released()["Janus-Pro-1B"]
    config = JanusConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": texts,
            "hidden_size": trunk.width,
            "intermediate_size": trunk.inner,
            "num_hidden_layers": trunk.depth,
            "num_attention_heads": trunk.heads,
            "num_key_value_heads": trunk.heads,
        },
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        state = JanusForConditionalGeneration(config).state_dict()
    kept = {name: tuple(one.shape) for name, one in state.items() if not name.startswith(table.left_out)}
    assert kept == table.shapes(trunk, texts, codes)


def test_the_model_survives_its_folder(theirs: tuple[Any, Path], tmp_path: Path) -> None:
    survives(import_generator("janus", theirs[1]), [CAPTION, "w5", CAPTION], tmp_path / "model")


def test_what_is_missing_is_told(theirs: tuple[Any, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((theirs[1] / name).read_bytes())
    assert main(["import", "janus", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "has no tokenizer.json beside it" in capsys.readouterr().err and not (tmp_path / "out").exists()
    text_tokenizer(tmp_path, SPECIALS[:3])
    with pytest.raises(UserError, match=r"has no <begin_of_image>, <.*pad.*>: give the text tokenizer of the model"):
        import_generator("janus", tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"is no llamagen_vq of these settings: .*instead of"):
        import_generator("janus", tmp_path)
    with pytest.raises(UserError, match=r"setting wording is 'no place': give a text with one \{\}"):
        import_generator("janus", theirs[1], settings={"wording": "no place"})
    weights = load_file(theirs[1] / "model.safetensors")
    for name in ("model.aligner.fc1.bias", "model.vision_model.embeddings.position_embedding.weight"):
        torch.save({one: tensor for one, tensor in weights.items() if one != name}, tmp_path / "y.pt")
        for file in ("config.json", "tokenizer.json"):
            (tmp_path / file).write_bytes((theirs[1] / file).read_bytes())
        with pytest.raises(UserError, match=r"y.pt (lacks a part of how it|reads pictures by another network.*lacks)"):
            import_generator("janus", tmp_path / "y.pt")
    drawing = {name: one for name, one in weights.items() if not name.startswith(("model.vision_model", "model.align"))}
    torch.save(drawing, tmp_path / "z.pt")
    only = import_generator("janus", tmp_path / "z.pt")
    assert only.config.tasks == ("text_to_image", "text_only") and only.reader is None
    assert only.modalities()["text"].begin == only.vocabulary.bos  # type: ignore[attr-defined]
    del weights["model.generation_head.vision_head.bias"]
    torch.save(weights, tmp_path / "x.pt")
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((theirs[1] / name).read_bytes())
    said = r"x.pt is no janus: it lacks model.generation_head.vision_head.bias \(the nearest released model is Janus"
    with pytest.raises(UserError, match=said):
        import_generator("janus", tmp_path / "x.pt")


@torch.inference_mode()
def test_its_language_model_goes_back(theirs: tuple[Any, Path], tmp_path: Path) -> None:
    """With the authors' ids and tables."""
    language_model(import_generator("janus", theirs[1])).write(tmp_path)
    again, info = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys"))
    ids = torch.tensor([[1, 20, 11, 33, 9, 2]])
    size = again.config.vocab_size
    torch.testing.assert_close(again(ids).logits, theirs[0](ids).logits[..., :size], atol=1e-4, rtol=0)
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token == EOS and again.config.eos_token_id == 2
