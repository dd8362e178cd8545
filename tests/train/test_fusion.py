"""Training the weights that a frozen trunk has for pictures alone, by the recipes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import MARKS, model_on, save
from language_recipes import RUN, run_recipe

from tokenizers_vq.images import save_png
from unitok.cli.main import main
from unitok.model import UniTok
from unitok.sequence import document, lay_out
from unitok.trunk.fusion import part_of_fusion
from unitok.trunk.hf.reading import read_language_model


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("language")
    return folder, save("llama", folder, max_position_embeddings=512)


@pytest.mark.parametrize("recipe", ["flamingo", "cogvlm"])
def test_a_frozen_language_model_learns_to_read_pictures_and_speaks_as_before(
    recipe: str,
    language: tuple[Path, Any],
    tmp_path: Path,
    tiny_tokenizer_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, theirs = language
    out = tmp_path / "out"
    assert run_recipe(recipe, out, tiny_tokenizer_folder, trunk=f"hf:{folder}") == 0
    model, before = UniTok.from_pretrained(out), model_on(read_language_model(f"hf:{folder}"), "next_token")
    own = {name: weight for name, weight in model.state_dict().items() if name.startswith("trunk.")}
    alone = {name for name in own if part_of_fusion(name)}
    old = before.state_dict()
    assert all(torch.equal(own[name], old[name]) for name in own.keys() - alone)
    if recipe == "flamingo":
        assert all(own[name].any() for name in alone if ".gate_" in name)
    else:  # they began as copies
        bases = {name: old[name.replace(".expert", "")] for name in alone}
        changed = {name for name, base in bases.items() if not torch.equal(own[name], base)}
        assert len(changed) > len(alone) / 2 and all((own[name] - bases[name]).abs().max() < 0.1 for name in alone)
    ids = [1, 2, 3, 4, 5, 6]
    found = []
    for one in (model, before):
        batch = lay_out([[document(one.modalities()["text"].given([ids]))]], pad=one.vocabulary.pad)
        with torch.no_grad():
            found.append(one.ids.scores(one.states(batch), slice(0, one.text_tokenizer.size)))
    assert torch.equal(*found)
    with torch.no_grad():
        expected = theirs(torch.tensor([[MARKS["bos_token_id"], *ids]])).logits[..., : model.text_tokenizer.size]
    torch.testing.assert_close(found[0], expected, atol=2e-5, rtol=1e-5)
    save_png(tmp_path / "a.png", torch.full((3, 32, 32), 200, dtype=torch.uint8))
    capsys.readouterr()
    assert main(["caption", str(tmp_path / "a.png"), "--model", str(out)]) == 0


def test_a_resumed_run_is_an_unbroken_one(
    language: tuple[Path, Any], tmp_path: Path, tiny_tokenizer_folder: Path
) -> None:
    out, trunk = tmp_path / "out", f"hf:{language[0]}"
    assert run_recipe("cogvlm", out, tiny_tokenizer_folder, trunk=trunk) == 0
    whole = UniTok.from_pretrained(out).fingerprint()
    shutil.rmtree(out / "checkpoints" / "step-00000004")
    (out / "model.safetensors").unlink()
    assert run_recipe("cogvlm", out, tiny_tokenizer_folder, "--resume", trunk=trunk) == 0
    assert UniTok.from_pretrained(out).fingerprint() == whole


def test_what_is_new_has_to_be_trained(
    language: tuple[Path, Any], tmp_path: Path, tiny_tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trunk = f"hf:{language[0]}"

    def refused(recipe: str, message: str, **changed: Any) -> None:
        capsys.readouterr()
        assert run_recipe(recipe, tmp_path / "no", tiny_tokenizer_folder, **changed) == 2
        assert message in " ".join(capsys.readouterr().err.split())

    new = "is new to the language model: name it in --trainable too, as in"
    refused("flamingo", f"{new} 'trunk.*.gated.*'", trunk=trunk, trainable="ports.*")
    refused("cogvlm", f"{new} 'trunk.*.expert.*'", trunk=trunk, trainable="ports.*")
    refused("cogvlm", f"{new} 'ports.*'", trunk=trunk, trainable="trunk.*.expert.*")
    drawing = {"text_to_image": {"share": 0.5}, "image_to_text": {"share": 0.5}}
    refused("cogvlm", f"{new} 'ids.*'", trunk=trunk, tasks=drawing)
    out = tmp_path / "plain"
    own = {"trunk": {"width": 32, "depth": 1, "heads": 2}, "text_vocabulary": 300, "reader": None, "trainable": None}
    assert run_recipe("cogvlm", out, tiny_tokenizer_folder, **own, tasks=drawing, run={**RUN, "steps": 1}) == 0
    start: dict[str, Any] = {"init": str(out), "image_tokenizer": None, "trunk": None, "text_length": None}
    message = "is new to the model in --init, whole or in part, and would not be learned: name 'trunk.*.gated.*' in"
    refused("flamingo", message, **start, trainable="ports.*")
    assert run_recipe("flamingo", tmp_path / "yes", tiny_tokenizer_folder, **start, run={**RUN, "steps": 1}) == 0
