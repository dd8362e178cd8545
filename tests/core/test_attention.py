"""The group rule: the mask itself, its backends, and causality through gradients."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from tokenizers_vq.base import build_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS
from tokenizers_vq.layout import Layout
from tokenizers_vq.quantizers.config import VQ
from unitok.config import ObjectiveSettings, TrunkConfig
from unitok.modalities import Modality
from unitok.model import modalities
from unitok.objectives import OBJECTIVES, get_objective, objective_class
from unitok.objectives.base import Draw
from unitok.ports import IdPort, add_features, build_ports
from unitok.sequence import Document, lay_out
from unitok.tasks import TASKS, documents
from unitok.trunk.native import Transformer
from unitok.trunk.rule import FOREVER, allowed, attend, once, visibility
from unitok.vocabulary import Vocabulary

VOCABULARY = Vocabulary.of(text_size=20, codebook_size=16)
LAYOUT = Layout(((2, 2),))
TOKENIZER = build_tokenizer(TOKENIZER_PRESETS["debug"]())
SCALED = build_tokenizer(
    dataclasses.replace(
        TOKENIZER_PRESETS["debug"](), image_size=8, scales=(1, 2), quantizer=VQ(codebook_size=16, dim=4)
    )
)
NUMBERS = {task: number for number, task in enumerate(TASKS)}


def brute_force(groups: list[int], documents: list[int], until: list[int] | None = None) -> list[list[bool]]:
    """The rule as a loop."""
    n = len(groups)
    until = until or [FOREVER] * n
    return [
        [documents[q] == documents[k] and documents[k] >= 0 and groups[k] <= groups[q] <= until[k] for k in range(n)]
        for q in range(n)
    ]


def test_mask_is_the_rule() -> None:
    groups, documents, until = [0, 1, 2, 2, 0, 0, 1, 0], [0, 0, 0, 0, 1, 1, 1, -1], [9, 1, 9, 9, 0, 9, 9, 9]
    g, d, u = (torch.tensor([values]) for values in (groups, documents, until))
    assert allowed(g, d, g, d)[0, 0].tolist() == brute_force(groups, documents)
    assert allowed(g, d, g, d, u)[0, 0].tolist() == brute_force(groups, documents, until)
    assert torch.equal(visibility(g, d, u).mask, allowed(g, d, g, d, u))


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_causal_shortcut_equals_the_mask(key_heads: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 6, 8), torch.randn(2, key_heads, 6, 8), torch.randn(2, key_heads, 6, 8)
    groups = torch.arange(6).repeat(2, 1)
    documents = torch.zeros_like(groups)
    rule = groups, documents
    short = visibility(*rule, causal=True)
    assert short.mask is None
    torch.testing.assert_close(attend(q, k, v, short), attend(q, k, v, visibility(*rule)))


def test_flex_equals_sdpa() -> None:
    """FlexAttention has no CPU backward, but its forward runs here."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 128, 16).unbind(0)
    groups = torch.randint(0, 60, (1, 128)).sort().values
    documents = (torch.arange(128) // 50).clamp(max=1)[None]
    rule = groups, documents, groups + torch.randint(0, 9, groups.shape)
    flex = attend(q, k, v, visibility(*rule, backend="flex"))
    torch.testing.assert_close(flex, attend(q, k, v, visibility(*rule)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("key_heads", [1, 4])
def test_bf16_training_on_a_cpu_equals_float32(key_heads: int, causal: bool) -> None:
    """The path by matrix products: same values and gradients, also where padding sees nobody."""
    torch.manual_seed(0)
    groups = torch.arange(7).repeat(2, 1) if causal else torch.tensor([[0, 1, 2, 2, 0, 1, 0], [0, 0, 0, 1, 2, 3, 4]])
    documents = torch.zeros_like(groups) if causal else torch.tensor([[0, 0, 0, 0, 1, 1, -1], [0] * 7])
    seen = visibility(groups, documents, causal=causal)
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


def modalities_of(
    objective: str, settings: ObjectiveSettings | None = None
) -> tuple[dict[str, Modality], torch.Tensor]:
    """(modalities, codes of an image) of an objective."""
    tokenizer = SCALED if objective in ("next_scale", "var") else TOKENIZER
    layout = SCALED.layout if objective in ("next_scale", "var") else LAYOUT
    codes = torch.tensor([3, 1, 4, 1, 5])[: layout.length]
    return modalities(VOCABULARY, list, 9, layout, get_objective(objective, tokenizer), settings), codes


def document_of(task: str, objective: str, settings: ObjectiveSettings | None = None, **record: object) -> Document:
    found, codes = modalities_of(objective, settings)
    record = {"caption": [5, 6], "image": codes, "source": codes, "instruction": [7], **record}
    draw = Draw(torch.Generator().manual_seed(0), 0.0)
    return documents([task], [record], [draw], found, {}, NUMBERS)[0]


def dependences(document: Document, others: list[Document], objective: str) -> tuple[list[list[bool]], object]:
    """Which position of a row depends on which, through gradients of two blocks; and the batch."""
    batch = lay_out([[document, *others]], pad=VOCABULARY.pad)
    torch.manual_seed(0)
    config = TrunkConfig(width=32, depth=2, heads=2)
    layout = SCALED.layout if objective in ("next_scale", "var") else LAYOUT
    ports = get_objective(objective, SCALED if objective in ("next_scale", "var") else TOKENIZER).ports(layout)
    table, trunk = IdPort(VOCABULARY.size, 32, tied=False).double(), Transformer(config).double()
    x = add_features(table(batch.inputs), build_ports(ports, 32).double(), batch.features).detach().requires_grad_()
    hidden = trunk(x, batch.places, batch.visibility(), None, batch.stands)
    found = []
    for q in range(hidden.shape[1]):
        (gradient,) = torch.autograd.grad(hidden[0, q].sum(), x, retain_graph=True)
        found.append((gradient[0].abs().sum(-1) > 0).tolist())
    return found, batch


@pytest.mark.parametrize("objective", list(OBJECTIVES))
@pytest.mark.parametrize("task", ["text_to_image", "image_to_text", "text_only", "edit"])
def test_gradients_reach_exactly_what_may_be_seen(task: str, objective: str) -> None:
    """A position depends on position k exactly where the rule allows it (the rule is transitive)."""
    found, batch = dependences(document_of(task, objective), [document_of("text_only", objective)], objective)
    until = None if batch.until is None else batch.until[0].tolist()
    assert found == brute_force(batch.groups[0].tolist(), batch.documents[0].tolist(), until)


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_what_follows_a_drawn_image_sees_it_as_it_is(objective: str) -> None:
    """The last code too, and never the copy that is masked, noised or shifted."""
    settings = ObjectiveSettings(code_dropout=0.9) if objective != "maskgit" else ObjectiveSettings()
    settings = objective_class(objective).settled(settings)
    _, codes = modalities_of(objective)
    parts = [("text", [5]), ("image", codes), ("text", [6, 7]), ("image", codes), ("text", [8])]
    document = document_of("interleaved", objective, settings, parts=parts)
    found, batch = dependences(document, [], objective)
    until = batch.until[0].tolist()
    assert found == brute_force(batch.groups[0].tolist(), batch.documents[0].tolist(), until)
    given = modalities_of(objective)[0]["image"].given([codes])[0]
    n, clean = len(codes), len(given)
    starts = [2, 2 + n + clean + 3]
    last = found[-1]
    for start in starts:
        assert not any(last[start : start + n]), "the learned copy is private"
        assert all(last[start + n : start + n + clean]), "the clean copy is seen, its last code too"
        here = slice(start + n, start + n + clean)
        assert torch.equal(batch.inputs[0, here], given.ids)
        assert not any(any(row[start : start + n]) for row in found[start + n :])
    # The second image stands where it would stand without the private copy of the first.
    order = batch.places[0, :, 0]
    assert order[starts[0]] == order[starts[0] + n] == 2
    assert order[starts[1]] == order[starts[1] + n] == 2 + given.steps + 3


def test_a_learned_image_at_the_end_needs_no_second_copy() -> None:
    for objective in OBJECTIVES:
        codes = modalities_of(objective)[1]
        assert len(document_of("text_to_image", objective)) == 3 + len(codes)


def test_what_is_added_to_the_scores_leaves_no_row_without_a_number() -> None:
    """Rows of minus infinity throughout, as of padding, are NaN in some kernels of a GPU."""
    groups, documents = torch.arange(8).repeat(2, 1), torch.tensor([[0] * 5 + [-1] * 3, [0] * 4 + [1] * 4])
    q, k, v = torch.randn(3, 2, 2, 8, 16).unbind(0)
    seen = visibility(groups, documents)
    assert not seen.mask.any(-1).all()
    bias = once(seen, q.dtype)
    assert bias.isfinite().any(-1).all() and bias is once(seen, q.dtype), "it is made once"
    real = documents >= 0
    assert torch.equal(bias[:, 0][real] == 0, seen.mask[:, 0][real])
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    torch.testing.assert_close(
        found.transpose(1, 2)[real], attend(q, k, v, visibility(groups, documents)).transpose(1, 2)[real]
    )
