"""Causal language models of transformers as trunks: each family, tiny and random, against the authors' own forward."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import FAMILIES, MARKS, documents_of, model_on, through_the_cache

from unitok.device import autocast
from unitok.model import UniTok
from unitok.objectives import OBJECTIVES
from unitok.ports import add_features
from unitok.prepare import prepare
from unitok.sample.pipeline import draw_codes
from unitok.sampling import SampleSettings
from unitok.sequence import document, lay_out
from unitok.trunk.hf.blocks import Rotary
from unitok.trunk.hf.reading import read_language_model
from unitok.trunk.native import rotate
from unitok.tuning.lora import add_lora, linear_maps, merge_lora


@pytest.fixture(scope="module")
def built(folders: dict[str, tuple[Path, Any]]) -> Callable[[str, str], UniTok]:
    read = {family: read_language_model(f"hf:{folder}") for family, (folder, _) in folders.items()}
    return lambda family, objective: model_on(read[family], objective)


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


@pytest.mark.parametrize("objective", ["next_token", "masked_token", "next_scale"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_and_steps_change_nothing(family: str, objective: str, built: Callable[[str, str], UniTok]) -> None:
    """Packed is unpacked; and a group after the other through the cache gives the states of all at once."""
    model = built(family, objective)
    items = documents_of(model)
    with torch.no_grad():
        alone = [model.states(lay_out([[item]], pad=model.vocabulary.pad))[0] for item in items]
        packed = model.states(lay_out([items], pad=model.vocabulary.pad))[0]
        torch.testing.assert_close(packed, torch.cat(alone), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(through_the_cache(model, items[0]), alone[0], atol=2e-5, rtol=1e-4)


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
    passes: list[int] = []
    model.trunk.blocks[0].register_forward_pre_hook(lambda *_: passes.append(1))
    kept = [weight.grad.clone() for weight in weights if weight.grad is not None]
    optimizer.zero_grad()
    (model(batch).sum() / len(batch.at)).backward()
    for weight, gradient in zip(weights, kept, strict=True):
        torch.testing.assert_close(weight.grad, gradient)
    assert len(passes) == 2, "a block is run again for its gradients"
    optimizer.step()
    assert model(batch).sum() / len(batch.at) < before


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_stand_beside_every_block(family: str, built: Callable[[str, str], UniTok]) -> None:
    """Fresh ones add nothing; merged ones what they add beside. GPT-2 holds its weights the other way round."""
    model = built(family, "next_token").eval()
    batch = lay_out([documents_of(model)], pad=model.vocabulary.pad)
    names = linear_maps(model.trunk)
    for block in (0, 1):
        inside = [name for name in names if name.startswith(f"blocks.{block}.")]
        matrices = [weight for weight in model.trunk.blocks[block].parameters() if weight.ndim == 2]
        assert len(inside) == len(matrices) >= 4
    with torch.no_grad():
        plain = model.states(batch)
        add_lora(model.trunk, names, rank=3, alpha=6.0)
        assert torch.equal(model.states(batch), plain)
        for name in names:
            torch.nn.init.normal_(model.trunk.get_parameter(f"{name}.lora.up"), std=0.1)
        beside = model.states(batch)
        assert not torch.allclose(beside, plain, atol=1e-2)
        merge_lora(model.trunk)
        torch.testing.assert_close(model.states(batch), beside, atol=2e-5, rtol=1e-4)
    assert linear_maps(model.trunk) == names


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
