"""Causal language models of transformers as trunks: each family, tiny and random, against the authors' own forward."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from tokenizers_vq.base import ImageTokenizer, build_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS
from tokenizers_vq.errors import UserError
from unitok.cli.main import main
from unitok.config import ModelConfig, ObjectiveSettings
from unitok.device import autocast
from unitok.exporting.language import language_model
from unitok.model import UniTok
from unitok.objectives import OBJECTIVES, get_objective, objective_class
from unitok.objectives.base import Draw
from unitok.ports import add_features
from unitok.prepare import prepare
from unitok.sample.pipeline import draw_codes
from unitok.sampling import SampleSettings
from unitok.sequence import Document, document, lay_out
from unitok.tasks import TASKS, documents
from unitok.text import TextTokenizer
from unitok.trunk.hf import LANGUAGE_MODELS, HFTrunk
from unitok.trunk.hf.blocks import Rotary
from unitok.trunk.hf.reading import LanguageModel, read_language_model
from unitok.trunk.native import rotate
from unitok.vocabulary import Vocabulary

FAMILIES = list(LANGUAGE_MODELS)
WORDS = ["a", "small", "large", "red", "green", "blue", "circle", "square", "left", "right", "of", "and"]
ROWS = 24
"""Of the language model's embedding: more than its tokenizer has ids."""
PARTS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": ROWS}
MARKS = {"bos_token_id": 13, "eos_token_id": 12, "pad_token_id": None}
NUMBERS = {task: number for number, task in enumerate(TASKS)}


def settings_of(family: str) -> dict[str, Any]:
    grouped = {"intermediate_size": 48, "num_key_value_heads": 1, "max_position_embeddings": 64}
    own: dict[str, dict[str, Any]] = {
        "gemma": {"head_dim": 24},
        "gemma3_text": {
            "head_dim": 16,
            "query_pre_attn_scalar": 9,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "gpt2": {"n_positions": 64},
        "llama": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}},
        "qwen3": {"head_dim": 24},
    }
    found = {"model_type": family, **PARTS, **MARKS, **(grouped if family != "gpt2" else {}), **own.get(family, {})}
    return found


def word_tokenizer(words: list[str] = WORDS) -> TextTokenizer:
    """One id a word, and the marks of the language model behind them."""
    names = [*words, "<end>", "<begin>"]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return TextTokenizer(tokenizer)


def save(family: str, folder: Path, **changed: Any) -> Any:
    """Writes a language model as its authors do; gives it, with weights that make a wrong mask or place visible."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(**{**settings_of(family), **changed})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, mean=float("norm" in name and "gemma" not in family), std=0.2)
    model.save_pretrained(folder)
    word_tokenizer().save(folder)
    return model


def image_tokenizer(objective: str) -> ImageTokenizer:
    """4x4 codes, or maps of 1, 2 and 4 a side."""
    scales = (1, 2, 4) if objective_class(objective).sets_scales else ()
    torch.manual_seed(0)
    return build_tokenizer(dataclasses.replace(TOKENIZER_PRESETS["debug"](), image_size=16, scales=scales)).eval()


def model_on(language: LanguageModel, objective: str) -> UniTok:
    """A model with the tiny image tokenizer of an objective on a language model."""
    images, texts = image_tokenizer(objective), language.texts or word_tokenizer()
    vocabulary = Vocabulary.of(texts.size, images.codebook_size)
    config = ModelConfig(
        language.trunk,
        objective,
        vocabulary.spans,
        16,
        images.fingerprint(),
        get_objective(objective, images).ports(images.layout),
        ("text_to_image", "image_to_text", "interleaved"),
    )
    torch.manual_seed(1)
    model = UniTok(config, images, texts)
    language.fill(model)
    return model.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Family -> (folder, the authors' model)."""
    found = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp(family)
        found[family] = folder, save(family, folder)
    return found


@pytest.fixture(scope="module")
def built(folders: dict[str, tuple[Path, Any]]) -> Callable[[str, str], UniTok]:
    read = {family: read_language_model(f"hf:{folder}") for family, (folder, _) in folders.items()}
    return lambda family, objective: model_on(read[family], objective)


def documents_of(model: UniTok) -> list[Document]:
    """A document that draws a picture, and one of texts and a picture that is learned and followed."""
    codes = torch.arange(model.layout.length) % model.vocabulary.codebook_size
    parts = [("text", "a red circle"), ("image", codes), ("text", "and a blue square")]
    records: list[dict[str, Any]] = [{"caption": "a small blue square", "image": codes}, {"parts": parts}]
    draws = [Draw(torch.Generator().manual_seed(seed), 0.0) for seed in (0, 1)]
    found = model.modalities(settings=type(model.objective).settled(ObjectiveSettings()))
    return documents(["text_to_image", "interleaved"], records, draws, found, {}, NUMBERS)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_alone_has_the_authors_logits(
    family: str, folders: dict[str, tuple[Path, Any]], built: Callable[[str, str], UniTok]
) -> None:
    theirs, model = folders[family][1], built(family, "next_token")
    ids = model.text_ids("a small red circle left of a large green square")
    (segment,) = model.modalities()["text"].given([ids])
    batch = lay_out([[document([segment])]], pad=model.vocabulary.pad)
    with torch.no_grad():
        logits = model.ids.scores(model.states(batch), model.vocabulary.text_range)
        expected = theirs(torch.tensor([[MARKS["bos_token_id"], *ids]])).logits
    texts = model.text_tokenizer.size
    torch.testing.assert_close(logits[..., :texts], expected[..., :texts], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(logits[..., texts], expected[..., MARKS["eos_token_id"]], atol=2e-5, rtol=1e-5)
    assert logits.std() > 0.1


def test_rows_of_ids(folders: dict[str, tuple[Path, Any]], built: Callable[[str, str], UniTok]) -> None:
    """The text's are the language model's, those of `bos` and `eos` too; new ones stand near their mean, and differ."""
    for family in ("phi", "gpt2"):
        theirs, model = folders[family][1], built(family, "next_token")
        old, new, vocabulary = theirs.get_input_embeddings().weight, model.ids.embedding.weight, model.vocabulary
        texts = model.text_tokenizer.size
        assert torch.equal(new[:texts], old[:texts])
        assert torch.equal(new[vocabulary.bos], old[13]) and torch.equal(new[vocabulary.eos], old[12])
        codes = new[vocabulary.image_range]
        assert 0 < (codes - old[:texts].mean(0)).std() < 0.15 * old.std()
        assert len(codes.unique(dim=0)) == len(codes)
        tied = model.ids.head.weight is new
        assert tied == theirs.config.tie_word_embeddings == ("ids.head.weight" not in model._state())
        if family == "phi":
            assert torch.equal(model.ids.head.bias[:texts], theirs.lm_head.bias[:texts])


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_exactly_what_may_be_seen(family: str, built: Callable[[str, str], UniTok]) -> None:
    model = built(family, "masked_token" if FAMILIES.index(family) % 2 else "next_token")
    short, long = documents_of(model)
    batch = lay_out([[long, short]], pad=model.vocabulary.pad)
    x = add_features(model.ids(batch.inputs), model.ports, batch.features).detach().requires_grad_()
    seen = batch.visibility()
    hidden = model.trunk(x, batch.places, seen, None, batch.stands)
    n = hidden.shape[1]
    for q in [*range(0, n, n // 9), n - 1]:
        (gradient,) = torch.autograd.grad(hidden[0, q].sum(), x, retain_graph=True)
        assert torch.equal(gradient[0].abs().sum(-1) > 0, seen.mask[0, 0, q]), q


@pytest.mark.parametrize("objective", ["masked_token", "next_scale"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_and_steps_change_nothing(family: str, objective: str, built: Callable[[str, str], UniTok]) -> None:
    """Packed is unpacked; and a group after the other through the cache gives the states of all at once."""
    model = built(family, objective)
    items = documents_of(model)
    with torch.no_grad():
        alone = [model.states(lay_out([[item]], pad=model.vocabulary.pad))[0] for item in items]
        packed = model.states(lay_out([items], pad=model.vocabulary.pad))[0]
        torch.testing.assert_close(packed, torch.cat(alone), atol=2e-5, rtol=1e-4)

        item = items[0]
        batch = lay_out([[item]], pad=model.vocabulary.pad)
        x = add_features(model.ids(batch.inputs), model.ports, batch.features)
        cache, steps, start = model.trunk.cache(2, len(item)), [], 0
        for n in item.groups.unique_consecutive(return_counts=True)[1].tolist():
            here, seen = slice(start, start + n), cache.extend([1], n)
            stands = None if batch.stands is None else batch.stands[:, here]
            steps.append(model.trunk(x[:, here], batch.places[:, here], seen, cache, stands)[0])
            start += n
        torch.testing.assert_close(torch.cat(steps), alone[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("objective", ["next_token", "masked_token", "next_scale"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_teaches_all_of_it(family: str, objective: str, built: Callable[[str, str], UniTok]) -> None:
    model = built(family, objective).train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.02)
    batch = lay_out([documents_of(model)], pad=model.vocabulary.pad)
    before = model(batch).sum() / len(batch.at)
    before.backward()
    still = [name for name, weight in model.named_parameters() if weight.requires_grad and not _learns(weight)]
    assert still == []
    model.trunk.checkpointing = True
    kept = [weight.grad.clone() for weight in weights if weight.grad is not None]
    optimizer.zero_grad()
    (model(batch).sum() / len(batch.at)).backward()
    for weight, gradient in zip(weights, kept, strict=True):
        torch.testing.assert_close(weight.grad, gradient)
    optimizer.step()
    assert model(batch).sum() / len(batch.at) < before


def _learns(weight: torch.Tensor) -> bool:
    return weight.grad is not None and bool(weight.grad.any())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_gives_the_model_back_and_a_batch_draws_as_alone(
    family: str, built: Callable[[str, str], UniTok], tmp_path: Path
) -> None:
    objective = list(OBJECTIVES)[FAMILIES.index(family) % len(OBJECTIVES)]
    model = built(family, objective)
    model.save_pretrained(tmp_path)
    again = UniTok.from_pretrained(tmp_path)
    assert again.config == model.config and again.fingerprint() == model.fingerprint()
    captions, settings = ["a red circle", "a small blue square left of a circle"], SampleSettings(guidance=1.5, steps=6)
    texts = [model.text_ids(caption) for caption in captions]
    together = draw_codes(model, texts, settings, [3, 4])
    for number, text in enumerate(texts):
        assert torch.equal(draw_codes(again, [text], settings, [3 + number])[0], together[number])
    assert prepare(again, "bf16") == "bf16"
    assert draw_codes(again, texts, settings, [3, 4]).shape == together.shape


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "phi", "gpt2"])
def test_bf16_autocast_gives_the_same_loss(family: str, built: Callable[[str, str], UniTok]) -> None:
    """Norms of some families leave queries in float32 there."""
    model = built(family, "masked_token").train()
    batch = lay_out([documents_of(model)], pad=model.vocabulary.pad)
    exact = model(batch).sum()
    with autocast(model.device, "bf16"):
        rounded = model(batch).sum()
        rounded.backward()
        assert model.trunk.cache(1, 4).keys.dtype == torch.bfloat16
    assert abs(rounded - exact) < 0.05 * exact and model.ids.embedding.weight.grad is not None


def test_a_position_is_seen_where_it_stands() -> None:
    """Turned to its place and then further is turned to where it stands; text turns as the authors' positions do."""
    rotary = Rotary(torch.tensor([1.0, 0.5, 0.25, 0.125]), scale=1.0)
    places, stands = torch.rand(2, 1, 5, 3) * 9
    key = torch.randn(1, 2, 5, 8)
    there, here, between = (rotary.further(one, torch.float32) for one in (stands, places, stands - places))
    torch.testing.assert_close(rotate(rotate(key, here), between), rotate(key, there), atol=1e-5, rtol=1e-5)
    text = torch.tensor([[[3.0, 0.0, 0.0]]])
    assert rotary.angles(text).flatten().tolist() == [3.0, 1.5, 0.75, 0.375]
    code = text + torch.tensor([0.0, 2.0, 4.0])
    assert rotary.angles(code).flatten().tolist() == [3.0, 2.5, 0.75, 0.875]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rows_and_columns_of_a_picture_are_known(family: str, built: Callable[[str, str], UniTok]) -> None:
    """Also where the objective has no port for them."""
    model = built(family, "next_token")
    batch = lay_out([documents_of(model)[:1]], pad=model.vocabulary.pad)
    states = model.states(batch)
    for axis in (0, 1, 2):
        moved = batch.places.clone()
        moved[:, -1, axis] += 1
        found = model.states(dataclasses.replace(batch, places=moved))
        assert torch.equal(found[:, :-1], states[:, :-1]) and not torch.allclose(found[:, -1], states[:, -1])


def test_bad_input(folders: dict[str, tuple[Path, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folders["llama"][0]

    def refused(name: str | Path) -> str:
        with pytest.raises(UserError) as raised:
            read_language_model(f"hf:{name}")
        assert "\n" not in str(raised.value)
        return str(raised.value)

    def copy(name: str, **config: Any) -> Path:
        there = tmp_path / name
        shutil.copytree(folder, there)
        values = json.loads((there / "config.json").read_text())
        (there / "config.json").write_text(json.dumps({**values, **config}))
        return there

    assert "is of type 'bert': taken are llama, mistral, qwen2" in refused(copy("bert", model_type="bert"))
    assert "has embed_tokens.weight (24, 32) instead of (99, 32)" in refused(copy("larger", vocab_size=99))
    assert "it lacks layers.2." in refused(copy("deeper", num_hidden_layers=3))
    assert "num_hidden_layers is 2000: choose" in refused(copy("tower", num_hidden_layers=2000))
    assert "turns 2 pairs of each head: it needs 4" in refused(copy("narrow", head_dim=4))
    odd = {"rope_type": "default", "rope_theta": "far"}
    assert "the language model cannot be built (" in refused(copy("far", rope_parameters=odd))
    assert "cannot be read (" in refused(copy("odd", hidden_size="wide"))
    dynamic = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0}
    assert "of type 'dynamic', which change with the length" in refused(copy("dynamic", rope_parameters=dynamic))
    (bare := copy("bare") / "model.safetensors").unlink()
    assert "has no model.safetensors: give the folder of a whole language model" in refused(bare.parent)
    word_tokenizer([*WORDS, *map(str, range(20))]).save(copy("words"))
    assert "has 34 ids, its embedding 24 rows" in refused(tmp_path / "words")
    assert "no file" in refused(tmp_path / "none.gguf") and "no file" in refused(tmp_path / "none.json")
    assert "no folder" in refused(tmp_path / "none")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "is no local folder and could not be fetched" in refused("owner/none")

    language = read_language_model(f"hf:{folder}")
    larger = dataclasses.replace(language, texts=word_tokenizer([*WORDS, *map(str, range(20))]))
    with pytest.raises(UserError, match=r"has 34 ids, .* knows 24: give the tokenizer of this model"):
        model_on(larger, "next_token")
    with pytest.raises(UserError, match="text_length is 64, and the language model has learned 64 positions"):
        ModelConfig(HFTrunk.of(settings_of("gpt2")), "next_token", Vocabulary.of(9, 9).spans, text_length=64)


def test_a_configuration_alone_has_fresh_weights(folders: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    language = read_language_model(f"hf:{folders['qwen3'][0] / 'config.json'}")
    (tmp_path / "kept.json").write_text(json.dumps(language.trunk.language_model))
    assert read_language_model(f"hf:{tmp_path / 'kept.json'}").trunk == language.trunk
    assert language.texts is None and not language.weights
    model = model_on(language, "next_token")
    counts = language.trunk.parameters(model.vocabulary.size)
    assert counts["total"] == sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    batch = lay_out([documents_of(model)], pad=model.vocabulary.pad)
    assert model(batch).isfinite().all()


def test_the_command_trains_and_resumes(
    folders: dict[str, tuple[Path, Any]],
    make_model: Callable[..., UniTok],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_model().image_tokenizer.save_pretrained(tmp_path / "tokenizer")
    words = ["train", "generator", "--data", "shapes?limit=8", "--image_tokenizer", str(tmp_path / "tokenizer")]
    words += ["--out", str(tmp_path / "run"), "--run.batch_size", "4", "--run.workers", "0", "--run.precision", "fp32"]
    words += ["--optim.lr", "1e-30", "--text_length", "32"]
    words += ["--objective", "masked_token"]  # which draws the grids in few passes
    assert main([*words, "--trunk", f"hf:{folders['qwen2'][0]}", "--run.steps", "1"]) == 0
    model = UniTok.from_pretrained(tmp_path / "run")
    assert model.config.trunk.kind == "hf" and model.text_tokenizer.size == len(WORDS) + 2
    theirs = folders["qwen2"][1].get_input_embeddings().weight[: model.text_tokenizer.size]
    assert torch.allclose(model.ids.embedding.weight[: len(theirs)], theirs, 0, 1e-20)

    assert main([*words, "--trunk", f"hf:{folders['qwen2'][0]}", "--run.steps", "2", "--resume"]) == 0
    capsys.readouterr()
    assert main([*words, "--trunk", f"hf:{folders['qwen3'][0]}", "--run.steps", "3", "--resume"]) == 2
    assert "trunk" in capsys.readouterr().err

    words = [str(tmp_path / "part") if word == str(tmp_path / "run") else word for word in words]
    words += ["--run.steps", "1", "--trunk", f"hf:{folders['qwen2'][0]}", "--optim.lr", "0.1"]
    assert main([*words, "--trainable", "trunk.*"]) == 2
    assert "is new to the language model: name it in --trainable too, as in 'ids.*'" in capsys.readouterr().err
    assert main([*words, "--trainable", "ids.*,ports.*"]) == 0
    part = UniTok.from_pretrained(tmp_path / "part").state_dict()
    for name, weight in model.state_dict().items():
        assert torch.allclose(part[name], weight, 0, 1e-20) == (not name.startswith(("ids.", "ports."))), name
    assert main([*words[:4], "--out", str(tmp_path / "b"), "--init", "x", "--trunk", "hf:y"]) == 2
    assert "--trunk is that of the model in --init: leave it out" in capsys.readouterr().err


def test_a_gguf_file(tmp_path: Path) -> None:
    """Its weights, settings and tokenizer; the rotary pairs of its queries and keys lie in another order."""
    import gguf

    theirs = save("llama", tmp_path / "folder", rope_parameters={"rope_type": "default", "rope_theta": 100.0})
    words = ["a", "b", "ab", *[f"w{number}" for number in range(9)], "<end>", "<begin>"]
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(100.0)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(ROWS)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*words, *[f"more{number}" for number in range(ROWS - len(words))]])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(13)
    writer.add_eos_token_id(12)
    parts = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    parts |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    parts |= {"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    names |= {f"model.layers.{n}.{ours}": f"blk.{n}.{name}" for n in (0, 1) for ours, name in parts.items()}
    state = theirs.state_dict()
    for ours, name in names.items():
        weight = state[f"{ours}.weight"]
        if name.endswith(("attn_q", "attn_k")):
            weight = weight.unflatten(0, (-1, 2, 8)).transpose(1, 2).flatten(0, 2)
        writer.add_tensor(f"{name}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    language = read_language_model(f"hf:{tmp_path / 'tiny.gguf'}")
    assert language.texts is not None and language.texts.size == ROWS and language.texts.encode("aab") == [0, 2]
    model = model_on(language, "next_token")
    batch = lay_out([[document(model.modalities()["text"].given([[0, 2, 5]]))]], pad=model.vocabulary.pad)
    with torch.no_grad():
        logits = model.ids.scores(model.states(batch), model.vocabulary["text"])
        torch.testing.assert_close(logits, theirs(torch.tensor([[13, 0, 2, 5]])).logits, atol=2e-5, rtol=1e-5)

    (tmp_path / "tiny.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(UserError, match=r"tiny.gguf cannot be read \(.*\): give another GGUF file"):
        read_language_model(f"hf:{tmp_path / 'tiny.gguf'}")


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_language_model_goes_back_as_its_own_class(
    family: str, folders: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    """With the rows of the new ids, and the logits that the model has."""
    from transformers import AutoModelForCausalLM

    model = model_on(read_language_model(f"hf:{folders[family][0]}"), "next_token")
    language_model(model).write(tmp_path)
    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(theirs) is type(folders[family][1]) and not any(
        info[key] for key in ("missing_keys", "unexpected_keys")
    )
    assert theirs.config.vocab_size == model.vocabulary.size and theirs.config.eos_token_id == model.vocabulary.eos
    [[segment]] = model.modalities()["text"].learned(["small red circle left of blue"], [], [])
    row = lay_out([[document([segment])]], pad=model.vocabulary.pad)
    wanted = model.ids.scores(model.states(row)[0], slice(0, model.vocabulary.size))
    torch.testing.assert_close(theirs(row.inputs).logits[0], wanted, atol=1e-4, rtol=0)
    assert read_language_model(f"hf:{tmp_path}").trunk.width == model.config.trunk.width  # and it comes in again
