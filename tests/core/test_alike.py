"""Codes whose vectors in the image tokenizer are alike share what is learned of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tokenizers_vq.base import build_tokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.quantizers.config import FSQ, LFQ, VQ
from unitok import ports
from unitok.config import CODES, PortConfig
from unitok.device import learns_on_cpu
from unitok.model import UniTok
from unitok.objectives import OBJECTIVES
from unitok.ports import IdPort, standard, vectors_of_codes
from unitok.prepare import prepare
from unitok.sample.pipeline import draw_codes, score_codes
from unitok.sampling import SampleSettings
from unitok.vocabulary import Vocabulary

SPAN = slice(10, 18)
VECTORS = torch.tensor([[0.0, 0], [0, 1], [0, 2], [9, 0], [9, 1], [9, 2], [4, 9], [5, 9]])


def with_codes(model: UniTok, size: int | None = None) -> UniTok:
    """A model whose codes have vectors."""
    size = size or model.image_tokenizer.code_vectors().shape[-1]
    config = replace(model.config, ports={**model.config.ports, CODES: PortConfig("codes", size)})
    torch.manual_seed(0)
    found = UniTok(config, model.image_tokenizer, model.text_tokenizer).eval()
    for parameter in found.parameters():
        if parameter.ndim == 2 and parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return found


def test_what_is_learned_of_a_code_is_learned_of_those_like_it() -> None:
    torch.manual_seed(0)
    port = IdPort(20, 32, False, codes=(SPAN, VECTORS)).double()
    assert port.codes is not None
    hidden = torch.randn(1, 32, dtype=torch.double)
    before = port.scores(hidden, SPAN)[0]
    port.losses(hidden, torch.tensor([SPAN.start + 3]), SPAN).sum().backward()
    with torch.no_grad():
        for weight in port.codes.parameters():
            weight -= 0.05 * weight.grad if weight.grad is not None else 0
    gain = port.scores(hidden, SPAN)[0] - before
    assert gain[3] > gain[4] > gain[5] > gain[2], "by their vectors"
    vectors = port(torch.arange(20)) - port.embedding.weight
    assert not vectors[:10].any() and not vectors[18:].any(), "other ids are as they were"
    assert (vectors[13] - vectors[14]).norm() < (vectors[13] - vectors[11]).norm()
    port.zero_grad()
    port(torch.arange(3)).sum().backward()
    assert all(weight.grad is not None for weight in port.codes.parameters()), "also of a batch without codes"


def test_levels_of_codes_are_what_they_have_in_common(make_model: Callable[..., UniTok]) -> None:
    config = replace(make_model().image_tokenizer.config, quantizer=FSQ(levels=(5, 3)))
    tokenizer = build_tokenizer(config)
    features, vectors = tokenizer.code_features(), tokenizer.code_vectors()[0]
    assert features.shape == (15, 8) and (features.sum(1) == 2).all()
    for one, other in itertools.product(range(15), repeat=2):
        alike = int((vectors[one] == vectors[other]).sum())
        assert features[one] @ features[other] == alike, "as many as there are levels that both have"
    plain = make_model().image_tokenizer
    assert torch.equal(plain.code_features(), plain.code_vectors()[0].float()), "vectors that are learned stay"
    few = build_tokenizer(replace(config, quantizer=VQ(codebook_size=12, dim=4)))
    assert torch.equal(few.code_features(), few.code_vectors()[0].float()), "few codes are no levels"
    bits = build_tokenizer(replace(config, quantizer=LFQ(codebook_size=16)))
    assert bits.code_features().shape == (16, 4), "a bit is one number"


def test_models_from_before_read_the_vectors_themselves(make_model: Callable[..., UniTok]) -> None:
    made = make_model()
    tokenizer = build_tokenizer(replace(made.image_tokenizer.config, quantizer=FSQ(levels=(5, 3))))
    vocabulary = Vocabulary.of(text_size=10, codebook_size=15)
    for size, wanted in ((8, tokenizer.code_features()), (2, tokenizer.code_vectors()[0])):
        found = vectors_of_codes({CODES: PortConfig("codes", size)}, vocabulary, tokenizer)
        assert found is not None and torch.equal(found[1], wanted)


def test_vectors_are_brought_to_one_scale() -> None:
    found = standard(torch.tensor([[1.0, 100, 7], [3, 300, 7]]))
    assert found.tolist() == [[-1, -1, 0], [1, 1, 0]]


def test_losses_in_pieces_are_those_of_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    port = IdPort(20, 32, False, codes=(SPAN, VECTORS))
    hidden, targets = torch.randn(50, 32, requires_grad=True), torch.randint(SPAN.start, SPAN.stop, (50,))
    plain = port.losses(hidden, targets, SPAN)
    plain.sum().backward()
    gradients = {name: weight.grad.clone() for name, weight in port.named_parameters() if weight.grad is not None}
    port.zero_grad()
    monkeypatch.setattr(ports, "PIECE", 100)
    assert learns_on_cpu(hidden)
    pieces = port.losses(hidden, targets, SPAN)
    pieces.sum().backward()
    torch.testing.assert_close(pieces, plain)
    assert gradients.keys() == {"head.weight", "codes.write.weight"}
    for name, weight in port.named_parameters():
        if name in gradients:
            torch.testing.assert_close(weight.grad, gradients[name])


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_a_model_draws_as_it_is_scored_and_opens_as_it_was(
    make_model: Callable[..., UniTok], objective: str, tmp_path: Path
) -> None:
    model = with_codes(make_model(objective))
    plain = SampleSettings(guidance=1.0, temperature=0.0, steps=4)
    drawn = draw_codes(model, ["a red circle"], plain, [0])
    learned = sum(weight.numel() for part in (model.ids, model.ports, model.trunk) for weight in part.parameters())
    features = sum(port.vectors for port in model.config.ports.values())
    assert model.config.trunk.parameters(model.vocabulary.size, features)["total"] == learned
    model.save_pretrained(tmp_path / "model")
    again = UniTok.from_pretrained(tmp_path / "model")
    assert again.fingerprint() == model.fingerprint()
    assert torch.equal(draw_codes(again, ["a red circle"], plain, [0]), drawn)
    if objective in ("next_token", "next_scale"):  # each code is drawn once, from those before it
        scores = score_codes(model, ["a red circle"], drawn)
        assert torch.equal(scores.argmax(-1), drawn)
    assert prepare(again, "bf16") == "bf16"
    assert again.ids.pack is not None
    hidden = torch.randn(1, 3, 32)
    span = again.vocabulary.image_range
    torch.testing.assert_close(again.ids.scores(hidden, span), model.ids.scores(hidden, span), atol=0.1, rtol=0.02)


def test_vectors_of_another_tokenizer_are_refused(make_model: Callable[..., UniTok]) -> None:
    with pytest.raises(UserError, match="code vectors of 7 numbers, its image tokenizer has 64 of"):
        with_codes(make_model(), 7)
