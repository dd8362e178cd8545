"""Published generators give the logits, codes and losses of their authors' arithmetic.

Each family is compared with plain functional code, written here from descriptions of the authors' code, which shares
nothing with ours. Weights are random and small, by the published names, so a name that goes astray is noticed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.quantizers.multi_scale import MultiScaleQuantizer
from unitok import prepare as prepare_module
from unitok.conditions import TextStates
from unitok.importing import import_generator
from unitok.model import UniTok
from unitok.sample.pipeline import draw_codes, score_codes
from unitok.sampling import SampleSettings

from .foreign import mean_losses
from .tiny import CLASSES, CODES, SIDES, Weights, llamagen_weights, tokenizer, var_weights

GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 0.0}


# --- LlamaGen, as a function of the checkpoint -----------------------------------------------------------------------


def root_mean_square(w: Weights, name: str, x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * w[f"{name}.weight"]


def rope(heads: int, width: int, side: int, condition: int) -> Tensor:
    """(condition + side * side, D/2, 2)."""
    half = width // heads // 2
    frequency = 1.0 / (10000 ** (torch.arange(0, half, 2).float() / half))
    table = torch.zeros(condition + side * side, half, 2)
    for p in range(side * side):
        angles = torch.cat([p // side * frequency, p % side * frequency])
        table[condition + p] = torch.stack([angles.cos(), angles.sin()], -1)
    return table


def turn(x: Tensor, table: Tensor) -> Tensor:
    """x (B, T, H, D)."""
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    c, s = table[None, :, None, :, 0], table[None, :, None, :, 1]
    real, imaginary = pairs[..., 0] * c - pairs[..., 1] * s, pairs[..., 1] * c + pairs[..., 0] * s
    return torch.stack([real, imaginary], -1).flatten(3)


def llamagen(w: Weights, prefix: Tensor, codes: Tensor, heads: int, side: int, mask: Tensor | None = None) -> Tensor:
    """Logits (B, n + 1, V): prefix (B, P, C) vectors of the condition, codes (B, n) behind it; mask (B, P)."""
    x = torch.cat([prefix, w["tok_embeddings.weight"][codes]], 1)
    batch, length, width = x.shape
    table = rope(heads, width, side, prefix.shape[1])[:length]
    sees = torch.ones(length, length, dtype=torch.bool).tril().repeat(batch, 1, 1)
    if mask is not None:
        sees[:, :, : prefix.shape[1]] &= mask[:, None]
        sees |= torch.eye(length, dtype=torch.bool)
    for layer in range(max(int(name.split(".")[1]) for name in w if name.startswith("layers.")) + 1):
        start = f"layers.{layer}."
        h = root_mean_square(w, f"{start}attention_norm", x) @ w[f"{start}attention.wqkv.weight"].T
        q, k, v = (one.reshape(batch, length, heads, -1) for one in h.split(width, -1))
        q, k = turn(q, table), turn(k, table)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(width // heads)
        weights = scores.masked_fill(~sees[:, None], -math.inf).softmax(-1)
        out = torch.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, length, width)
        x = x + out @ w[f"{start}attention.wo.weight"].T
        h = root_mean_square(w, f"{start}ffn_norm", x)
        gate, up = h @ w[f"{start}feed_forward.w1.weight"].T, h @ w[f"{start}feed_forward.w3.weight"].T
        x = x + (F.silu(gate) * up) @ w[f"{start}feed_forward.w2.weight"].T
    return (root_mean_square(w, "norm", x) @ w["output.weight"].T)[:, prefix.shape[1] - 1 :]


def llamagen_greedy(run: Callable[..., Tensor], length: int, scale: float, interval: int = -1) -> Tensor:
    """Codes (B, length); `run(codes, guided)` gives logits (B, n + 1, V) with the condition, or without."""
    codes = torch.zeros(3, 0, dtype=torch.int64)
    for number in range(length):
        logits = run(codes, True)[:, -1]
        if scale > 1 and not (interval > -1 and number - 1 > interval):
            bare = run(codes, False)[:, -1]
            logits = bare + (logits - bare) * scale
        codes = torch.cat([codes, logits.argmax(-1, keepdim=True)], 1)
    return codes


def classes_of(w: Weights, labels: list[int]) -> Tensor:
    return w["cls_embedding.embedding_table.weight"][torch.tensor(labels)][:, None]


def imported(tmp_path: Path, family: str, content: Any, images: ImageTokenizer, **settings: Any) -> UniTok:
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    return import_generator(family, path, images, settings)


LABELS = [3, 0, 9]


@torch.inference_mode()
def test_llamagen_classes(tmp_path: Path) -> None:
    w = llamagen_weights()
    model = imported(tmp_path, "llamagen", {"model": {**w, "freqs_cis": torch.zeros(17, 4, 2)}}, tokenizer(), n_head=4)
    wanted = llamagen(w, classes_of(w, LABELS), some_codes(16)[:, :-1], 4, 4)
    torch.testing.assert_close(score_codes(model, LABELS, some_codes(16)), wanted, atol=1e-4, rtol=0)
    null = classes_of(w, [CLASSES] * 3)
    wanted = llamagen(w, null, some_codes(16)[:, :-1], 4, 4)
    torch.testing.assert_close(score_codes(model, [""] * 3, some_codes(16)), wanted, atol=1e-4, rtol=0)

    def run(codes: Tensor, conditional: bool) -> Tensor:
        return llamagen(w, classes_of(w, LABELS) if conditional else null, codes, 4, 4)

    agrees_with_greedy(model, LABELS, run)


def agrees_with_greedy(model: UniTok, conditions: list[Any], run: Callable[..., Tensor]) -> None:
    found = []
    for scale, interval in ((1.0, -1), (2.0, -1), (3.0, -1), (3.0, 0), (3.0, 4)):
        guided = interval + 2 if interval > -1 else 0
        settings = SampleSettings(guidance=scale, guided_codes=guided, **GREEDY)
        found.append(draw_codes(model, conditions, settings, [0, 1, 2]))
        assert torch.equal(found[-1], llamagen_greedy(run, 16, scale, interval)), (scale, interval)
    assert len({tuple(codes.flatten().tolist()) for codes in found}) == 5, "each setting draws something else"


def captioned(w: Weights) -> tuple[list[TextStates], Callable[..., Tensor]]:
    """Captions of other lengths, and the logits (B, n + 1, V) of codes (B, n) behind them, or behind what stands for
    captions that are left out."""
    random = torch.Generator().manual_seed(5)
    features, lengths = torch.randn(3, 120, 12, generator=random), [1, 7, 120]
    mask = torch.arange(120) >= 120 - torch.tensor(lengths)[:, None]
    features = features * mask[..., None]
    bare = w["cls_embedding.uncond_embedding"].expand(3, -1, -1)

    def run(codes: Tensor, conditional: bool) -> Tensor:
        hidden = (features if conditional else bare) @ w["cls_embedding.cap_proj.fc1.weight"].T
        prefix = F.gelu(hidden, approximate="tanh") @ w["cls_embedding.cap_proj.fc2.weight"].T
        return llamagen(w, prefix, codes, 4, 4, mask)

    return [TextStates.of(*pair) for pair in zip(features, mask, strict=True)], run


@torch.inference_mode()
def test_llamagen_captions(tmp_path: Path) -> None:
    """Captions of other lengths: the authors pad them in front to 120 states, and hide the padding."""
    w = llamagen_weights(caption=12)
    model = imported(tmp_path, "llamagen", {f"module.{name}": one for name, one in w.items()}, tokenizer(), n_head=4)
    captions, run = captioned(w)
    scores = score_codes(model, captions, some_codes(16))
    torch.testing.assert_close(scores, run(some_codes(16)[:, :-1], True), atol=1e-4, rtol=0)
    scores = score_codes(model, [one.left_out() for one in captions], some_codes(16))
    torch.testing.assert_close(scores, run(some_codes(16)[:, :-1], False), atol=1e-4, rtol=0)
    agrees_with_greedy(model, captions, run)
    with pytest.raises(UserError, match=r"121 states of 12 numbers, this model takes up to 120 of 12$"):
        score_codes(model, [TextStates.of(torch.zeros(121, 12))], some_codes(16)[:1])
    with pytest.raises(UserError, match=r"give unitok.conditions.TextStates from Python$"):
        draw_codes(model, ["a red circle"], SampleSettings(), [0])


def some_codes(length: int) -> Tensor:
    return torch.randint(CODES, (3, length), generator=torch.Generator().manual_seed(3))


def some_loss(model: UniTok, codes: Tensor, captions: list[Any], dropped: float = 0.0) -> Tensor:
    """The mean loss of a training step; a number is a class."""
    texts = [str(one) if isinstance(one, int) else one for one in captions]
    records = [{"caption": text, "image": one} for text, one in zip(texts, codes, strict=True)]
    return mean_losses(model, ["text_to_image"] * len(codes), records, dropped)["text_to_image"]


def losses_agree(
    model: UniTok,
    w: Weights,
    codes: Tensor,
    name: str,
    ours: Tensor,
    run: Callable[[], Tensor],
    captions: list[Any] | None = None,
    dropped: float = 0.0,
) -> None:
    """The loss, and the gradient of one of the weights."""
    w[name].requires_grad_()
    loss = some_loss(model, codes, captions or LABELS, dropped)
    wanted = F.cross_entropy(run().flatten(0, 1), codes.flatten())
    torch.testing.assert_close(loss, wanted, atol=1e-5, rtol=0)
    loss.backward()
    wanted.backward()
    assert ours.grad is not None and w[name].grad is not None and w[name].grad.abs().max() > 1e-4
    torch.testing.assert_close(ours.grad.flatten(), w[name].grad.flatten(), atol=1e-6, rtol=1e-4)


def test_a_training_step_of_llamagen_has_the_authors_loss(tmp_path: Path) -> None:
    w, codes = llamagen_weights(), some_codes(16)
    model = imported(tmp_path, "llamagen", w, tokenizer(), n_head=4)
    name, ours = "layers.0.attention.wqkv.weight", model.get_parameter("trunk.blocks.0.attention.qkv.weight")
    losses_agree(model, w, codes, name, ours, lambda: llamagen(w, classes_of(w, LABELS), codes[:, :-1], 4, 4))


@pytest.mark.parametrize("dropped", [False, True])
def test_a_training_step_of_llamagen_with_captions_has_the_authors_loss(dropped: bool, tmp_path: Path) -> None:
    """Also where captions are left out: the authors have states in their place, and hide as many as before."""
    w, codes = llamagen_weights(caption=12), some_codes(16)
    model = imported(tmp_path, "llamagen", w, tokenizer(), n_head=4)
    captions, run = captioned(w)
    name, ours = "cls_embedding.cap_proj.fc1.weight", model.get_parameter("ports.caption.enter.weight")
    losses_agree(model, w, codes, name, ours, lambda: run(codes[:, :-1], not dropped), captions, float(dropped))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("name", "ours"),
    [("pos_1LC", "trunk.positions.weight"), ("word_embed.weight", "ports.image.projection.weight")],
)
def test_a_training_step_of_var_has_the_authors_loss(shared: bool, name: str, ours: str, tmp_path: Path) -> None:
    w, images, codes = var_weights(shared), tokenizer(SIDES), some_codes(30)
    model = imported(tmp_path, "var", w, images)
    seen = [one.detach() for one in var_inputs(images, codes)]
    losses_agree(model, w, codes, name, model.get_parameter(ours), lambda: var(w, LABELS, seen))


@pytest.mark.parametrize("family", ["llamagen", "var"])
def test_a_prepared_model_scores_the_same(family: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Layers with a bias, and a head with one, in another form of their weights."""
    monkeypatch.setattr(prepare_module, "LARGE", 1)
    if family == "var":
        model, codes = imported(tmp_path, "var", var_weights(False), tokenizer(SIDES)), some_codes(30)
    else:
        model, codes = imported(tmp_path, "llamagen", llamagen_weights(), tokenizer(), n_head=4), some_codes(16)
    plain = score_codes(model, LABELS, codes)
    keys = model.state_dict().keys()
    assert prepare_module.prepare(model, "fp32") == "fp32" and model.state_dict().keys() == keys
    torch.testing.assert_close(score_codes(model, LABELS, codes), plain, rtol=1e-4, atol=1e-4)


# --- VAR, as a function of the checkpoint ----------------------------------------------------------------------------


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def var_inputs(images: ImageTokenizer, codes: Tensor) -> list[Tensor]:
    """What the maps from the second on see, (B, p * p, D) each, from the codes of the maps before, as far as they are
    there."""
    book, convs = images.quantizer.book, images.quantizer.convs
    assert isinstance(images.quantizer, MultiScaleQuantizer)
    total, found, start = torch.zeros(len(codes), 8, SIDES[-1], SIDES[-1]), [], 0
    for number, side in enumerate(SIDES[:-1]):
        if start + side * side > codes.shape[1]:
            break
        part = book.vectors(codes[:, start : start + side * side], (side, side))
        part = F.interpolate(part, (SIDES[-1],) * 2, mode="bicubic")
        ticks = [abs(tick - number / (len(SIDES) - 1)) for tick in torch.linspace(1 / 12, 11 / 12, 4).tolist()]
        phi = convs[ticks.index(min(ticks))] if len(convs) == 4 else convs[number]
        total = total + 0.5 * part + 0.5 * phi(part)
        after = SIDES[number + 1]
        found.append(F.interpolate(total, (after, after), mode="area").flatten(2).transpose(1, 2))
        start += side * side
    return found


def var(w: Weights, labels: list[int], seen: list[Tensor], heads: int = 4) -> Tensor:
    """Logits (B, n, V) of the first maps."""
    condition = w["class_emb.weight"][torch.tensor(labels)]
    x = [condition[:, None] + w["pos_start"], *(linear(w, "word_embed", one) for one in seen)]
    scale = torch.tensor([number for number, side in enumerate(SIDES) for _ in range(side * side)])
    h = torch.cat(x, 1)
    batch, length, width = h.shape
    scale = scale[:length]
    h = h + w["lvl_embed.weight"][scale] + w["pos_1LC"][:, :length]
    sees = scale[:, None] >= scale
    act = F.silu(condition)
    for layer in range(max(int(name.split(".")[1]) for name in w if name.startswith("blocks.")) + 1):
        start = f"blocks.{layer}."
        if "shared_ada_lin.1.weight" in w:
            six = linear(w, "shared_ada_lin.1", act).view(-1, 1, 6, width) + w[f"{start}ada_gss"]
        else:
            six = linear(w, f"{start}ada_lin.1", act).view(-1, 1, 6, width)
        gamma1, gamma2, scale1, scale2, shift1, shift2 = six.unbind(2)
        y = F.layer_norm(h, (width,), eps=1e-6) * (scale1 + 1) + shift1
        bias = torch.cat([w[f"{start}attn.q_bias"], torch.zeros(width), w[f"{start}attn.v_bias"]])
        qkv = F.linear(y, w[f"{start}attn.mat_qkv.weight"], bias).view(batch, length, 3, heads, -1)
        q, k, v = qkv.unbind(2)
        sharp = w[f"{start}attn.scale_mul_1H11"].clamp(max=math.log(100)).exp().view(1, 1, heads, 1)
        q, k = q / q.norm(dim=-1, keepdim=True) * sharp, k / k.norm(dim=-1, keepdim=True)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k).masked_fill(~sees, -math.inf).softmax(-1)
        y = linear(w, f"{start}attn.proj", torch.einsum("bhqk,bkhd->bqhd", scores, v).reshape(batch, length, width))
        h = h + y * gamma1
        y = F.layer_norm(h, (width,), eps=1e-6) * (scale2 + 1) + shift2
        y = linear(w, f"{start}ffn.fc2", F.gelu(linear(w, f"{start}ffn.fc1", y), approximate="tanh"))
        h = h + y * gamma2
    by, shift = linear(w, "head_nm.ada_lin.1", act).view(-1, 1, 2, width).unbind(2)
    return linear(w, "head", F.layer_norm(h, (width,), eps=1e-6) * (by + 1) + shift)


def var_greedy(w: Weights, images: ImageTokenizer, labels: list[int], scale: float) -> Tensor:
    """The authors' guidance: t rises from 0 at the first map to their scale at the last."""
    codes = torch.zeros(len(labels), 0, dtype=torch.int64)
    for number, side in enumerate(SIDES):
        t = scale * number / (len(SIDES) - 1)
        seen = var_inputs(images, codes)
        both = [var(w, some, seen)[:, -side * side :] for some in (labels, [CLASSES] * len(labels))]
        codes = torch.cat([codes, ((1 + t) * both[0] - t * both[1]).argmax(-1)], 1)
    return codes


@pytest.mark.parametrize("shared", [False, True])
@torch.inference_mode()
def test_var(shared: bool, tmp_path: Path) -> None:
    w, images = var_weights(shared), tokenizer(SIDES)
    extra = {"lvl_1L": torch.zeros(1, 30, dtype=torch.int64), "blocks.0.attn.zero_k_bias": torch.zeros(32)}
    model = imported(tmp_path, "var", {"trainer": {"var_wo_ddp": {**w, **extra}}}, images)
    codes = some_codes(30)
    wanted = var(w, LABELS, var_inputs(images, codes))
    torch.testing.assert_close(score_codes(model, LABELS, codes), wanted, atol=1e-4, rtol=0)
    wanted = var(w, [CLASSES] * 3, var_inputs(images, codes))
    torch.testing.assert_close(score_codes(model, [""] * 3, codes), wanted, atol=1e-4, rtol=0)
    for scale in (0.0, 1.0, 2.0):
        settings = SampleSettings(guidance=1 + scale, guidance_rises=True, **GREEDY)
        assert torch.equal(draw_codes(model, LABELS, settings, [0, 1, 2]), var_greedy(w, images, LABELS, scale)), scale
