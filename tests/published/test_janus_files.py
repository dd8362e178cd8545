"""Janus: its files, by transformers' and the authors' names, the hub, commands, and what they refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors.torch import load_file
from transformers import AutoTokenizer, JanusConfig, JanusForConditionalGeneration, LlamaForCausalLM

from tokenizers_vq.errors import UserError
from unitok.cli.main import main
from unitok.data.decoding import decode
from unitok.exporting.language import language_model
from unitok.importing import import_generator
from unitok.model import UniTok
from unitok.trunk.published import published_family

from .foreign import survives, text_tokenizer
from .janus_model import CAPTION, EOS, SPECIALS, prompt, said, tiny_janus, words_of


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("janus")
    return tiny_janus(folder), folder


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
