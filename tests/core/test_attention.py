"""The group rule: the mask itself, its backends, and causality through gradients."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tokenizers_vq.base import build_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS
from tokenizers_vq.layout import Layout
from tokenizers_vq.quantizer_config import VQ
from unitok.attention import allowed, attend, visibility
from unitok.config import TrunkConfig
from unitok.objectives import get_objective
from unitok.sequence import Document, DocumentBuilder, lay_out
from unitok.transformer import Transformer
from unitok.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text_size=20, codebook_size=16)
LAYOUT = Layout(((2, 2),))
TOKENIZER = build_tokenizer(TOKENIZER_PRESETS["debug"]())
SCALED = build_tokenizer(
    dataclasses.replace(
        TOKENIZER_PRESETS["debug"](), image_size=8, scales=(1, 2), quantizer=VQ(codebook_size=16, dim=4)
    )
)
SCALED_FEATURES = get_objective("next_scale", SCALED).features


def brute_force(groups: list[int], documents: list[int]) -> list[list[bool]]:
    """The rule as a loop."""
    n = len(groups)
    return [
        [documents[q] == documents[k] and documents[k] >= 0 and groups[k] <= groups[q] for k in range(n)]
        for q in range(n)
    ]


def test_mask_is_the_rule() -> None:
    groups, documents = [0, 1, 2, 2, 0, 0, 1, 0], [0, 0, 0, 0, 1, 1, 1, -1]
    mask = allowed(*(torch.tensor([x]) for x in (groups, documents, groups, documents)))
    assert mask[0, 0].tolist() == brute_force(groups, documents)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_causal_shortcut_equals_the_mask(key_heads: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 6, 8), torch.randn(2, key_heads, 6, 8), torch.randn(2, key_heads, 6, 8)
    groups = torch.arange(6).repeat(2, 1)
    documents = torch.zeros_like(groups)
    rule = groups, documents, groups, documents
    short = visibility(*rule, causal=True)
    assert short.mask is None
    torch.testing.assert_close(attend(q, k, v, short), attend(q, k, v, visibility(*rule)))


def test_flex_equals_sdpa() -> None:
    """FlexAttention has no CPU backward, but its forward runs here."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 128, 16).unbind(0)
    groups = torch.randint(0, 60, (1, 128)).sort().values
    documents = (torch.arange(128) // 50).clamp(max=1)[None]
    rule = groups, documents, groups, documents
    flex = attend(q, k, v, visibility(*rule, backend="flex"))
    torch.testing.assert_close(flex, attend(q, k, v, visibility(*rule)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("key_heads", [1, 4])
def test_bf16_training_on_a_cpu_equals_float32(key_heads: int, causal: bool) -> None:
    """The path by matrix products: same values and gradients, also where padding sees nobody."""
    torch.manual_seed(0)
    groups = torch.arange(7).repeat(2, 1) if causal else torch.tensor([[0, 1, 2, 2, 0, 1, 0], [0, 0, 0, 1, 2, 3, 4]])
    documents = torch.zeros_like(groups) if causal else torch.tensor([[0, 0, 0, 0, 1, 1, -1], [0] * 7])
    seen = visibility(groups, documents, groups, documents, causal=causal)
    tensors = [torch.randn(2, heads, 7, 8) for heads in (4, key_heads, key_heads)]
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = (tensor.detach().to(dtype).requires_grad_() for tensor in tensors)
        out = attend(q, k, v, seen)
        kept = out.float() * (documents >= 0)[:, None, :, None]
        kept.square().sum().backward()
        results.append([kept, q.grad, k.grad, v.grad])
    for exact, rounded in zip(*results, strict=True):
        assert exact is not None and rounded is not None
        error = (rounded.float() - exact).norm() / exact.norm()
        assert error < 2e-2, error


def documents_of_every_kind() -> dict[str, Document]:
    codes = torch.tensor([[3, 1, 4, 1]])
    generators = [torch.Generator().manual_seed(0)]
    found = {}
    for name in ("next_token", "masked_token"):
        segments = get_objective(name, TOKENIZER).segments(codes, LAYOUT, VOCABULARY, generators)
        builder = DocumentBuilder().text([5, 6], bos=VOCABULARY.bos)
        found[name] = builder.image(segments.inputs[0], segments.targets[0], segments.groups, LAYOUT).build()
    codes = torch.tensor([[3, 1, 4, 1, 5]])
    segments = get_objective("next_scale", SCALED).segments(codes, SCALED.layout, VOCABULARY, generators)
    assert segments.features is not None
    builder = DocumentBuilder().text([5, 6], bos=VOCABULARY.bos)
    builder.image(segments.inputs[0], segments.targets[0], segments.groups, SCALED.layout, segments.features[0])
    found["next_scale"] = builder.build()
    codes = codes[:, :4]
    context = DocumentBuilder().image(VOCABULARY.image_ids(codes[0]), None, torch.zeros(4, dtype=torch.int64), LAYOUT)
    found["image_to_text"] = context.text([5, 6], bos=VOCABULARY.bos, eos=VOCABULARY.eos).build()
    found["text_only"] = DocumentBuilder().text([5, 6, 7], bos=VOCABULARY.bos, eos=VOCABULARY.eos).build()
    return found


@pytest.mark.parametrize("kind", ["next_token", "masked_token", "next_scale", "image_to_text", "text_only"])
def test_gradients_reach_exactly_what_may_be_seen(kind: str) -> None:
    """Through two blocks a position depends on position k exactly where the rule allows it (the rule is transitive)."""
    document = documents_of_every_kind()[kind]
    other = documents_of_every_kind()["text_only"]
    batch = lay_out([[document, other]], pad=VOCABULARY.pad)
    torch.manual_seed(0)
    transformer = Transformer(TrunkConfig(width=32, depth=2, heads=2), VOCABULARY.size, SCALED_FEATURES).double()
    embedded: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0]

    transformer.embedding.register_forward_hook(keep)
    logits = transformer(batch)
    expected = torch.tensor(brute_force(batch.groups[0].tolist(), batch.documents[0].tolist()))
    for q in range(logits.shape[1]):
        (gradient,) = torch.autograd.grad(logits[0, q].sum(), embedded[0], retain_graph=True)
        reached = gradient[0].abs().sum(-1) > 0
        assert reached.tolist() == expected[q].tolist(), f"position {q}"
