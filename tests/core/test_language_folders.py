"""Language models as trunks, from their folders and back: commands, GGUF, what cannot be read."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import FAMILIES, ROWS, WORDS, documents_of, model_on, save, settings_of, word_tokenizer

from tokenizers_vq.errors import UserError
from unitok.cli.main import main
from unitok.config import ModelConfig
from unitok.exporting.language import language_model
from unitok.model import UniTok
from unitok.sequence import document, lay_out
from unitok.trunk.hf import HFTrunk
from unitok.trunk.hf.reading import read_language_model
from unitok.vocabulary import Vocabulary


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
    assert refused("owner/none") == (
        "language model owner/none is no local folder and could not be fetched (the hub cannot be reached, and the "
        "cache has no copy): check name and network, or give a folder with config.json, model.safetensors and "
        "tokenizer.json"
    )

    language = read_language_model(f"hf:{folder}")
    larger = dataclasses.replace(language, texts=word_tokenizer([*WORDS, *map(str, range(20))]))
    with pytest.raises(UserError, match=r"has 34 ids, .* knows 24: give the tokenizer of this model"):
        model_on(larger, "next_token")
    with pytest.raises(UserError, match="text_length is 64, and the language model has learned 64 positions"):
        ModelConfig(HFTrunk.of(settings_of("gpt2")), "next_token", Vocabulary.of(9, 9).spans, text_length=64)


def test_one_of_the_hub_in_several_files(
    folders: dict[str, tuple[Path, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name; its weights come in parts with an index."""
    folder, theirs = folders["llama"]
    theirs.save_pretrained(tmp_path / "fetched", max_shard_size="20KB")
    shutil.copy(folder / "tokenizer.json", tmp_path / "fetched")
    assert (tmp_path / "fetched/model.safetensors.index.json").exists()
    asked: list[str] = []

    def fetch(name: str, **how: Any) -> str:
        asked.append(name)
        return str(tmp_path / "fetched")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    named, local = read_language_model("hf:owner/name"), read_language_model(f"hf:{folder}")
    assert asked == ["owner/name"] and named.fingerprint() == local.fingerprint()
    (part := next((tmp_path / "fetched").glob("model-00002*"))).unlink()
    with pytest.raises(UserError, match=part.name):
        read_language_model("hf:owner/name")


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
