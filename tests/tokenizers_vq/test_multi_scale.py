"""Multi-scale quantization: the published arithmetic, the schedule, learning, and what is decoded on the way."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_vq import build_tokenizer
from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS, config_from_dict, config_to_dict
from tokenizers_vq.errors import UserError
from tokenizers_vq.layout import Layout
from tokenizers_vq.losses.config import LossConfig
from tokenizers_vq.losses.reconstruction import TokenizerLoss
from tokenizers_vq.quantizers.config import BSQ, FSQ, VQ, Cosine, SimVQ
from tokenizers_vq.quantizers.multi_scale import MultiScaleQuantizer
from tokenizers_vq.quantizers.scales import residual_conv_of
from unitok.objectives import get_objective

DEBUG = TOKENIZER_PRESETS["debug"]()  # 32 px, stride 4: 8x8 codes


def tiny(**changes: Any) -> ImageTokenizer:
    torch.manual_seed(0)
    return build_tokenizer(dataclasses.replace(DEBUG, **{"scales": (1, 2, 3, 4, 6, 8), **changes}))


def quantizer_of(tokenizer: ImageTokenizer) -> MultiScaleQuantizer:
    assert isinstance(tokenizer.quantizer, MultiScaleQuantizer)
    return tokenizer.quantizer


def pictures(count: int = 4, height: int = 32, width: int = 32) -> Tensor:
    """Smooth random pictures (N, 3, H, W) in [-1, 1]."""
    small = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return F.interpolate(small, (height, width), mode="bicubic").clamp(-1, 1)


def published(f: Tensor, codebook: Tensor, convs: list[Any], sides: list[int], table: list[int]) -> tuple[Any, ...]:
    """The released VAR tokenizer's loop, from its description: (codes of each scale, inputs of each scale, f_hat)."""
    rest, f_hat = f.clone(), torch.zeros_like(f)
    codes, seen = [], []
    for k, side in enumerate(sides):
        last = k == len(sides) - 1
        seen.append(F.interpolate(f_hat, size=(side, side), mode="area").flatten(2).transpose(1, 2))
        z = rest if last else F.interpolate(rest, size=(side, side), mode="area")
        flat = z.permute(0, 2, 3, 1).reshape(-1, f.shape[1])
        index = torch.cdist(flat, codebook).argmin(1)
        h = codebook[index].view(len(f), side, side, -1).permute(0, 3, 1, 2)
        h = h if last else F.interpolate(h, size=f.shape[2:], mode="bicubic")
        h = 0.5 * h + 0.5 * convs[table[k]](h)
        f_hat, rest = f_hat + h, rest - h
        codes.append(index.view(len(f), -1))
    return torch.cat(codes, 1), torch.cat(seen, 1), f_hat


def test_the_arithmetic_is_the_published_one() -> None:
    sides = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16]
    tokenizer = tiny(image_size=64, scales=tuple(sides), quantizer=VQ(codebook_size=128, dim=6)).eval()
    quantizer = quantizer_of(tokenizer)
    f = torch.randn(3, 6, 16, 16)
    codebook = quantizer.book.codebook
    wanted, seen, f_hat = published(f, codebook, list(quantizer.convs), sides, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3])
    assert tokenizer.layout.length == 680 and len(quantizer.convs) == 4
    codes = quantizer.nearest(f)
    assert (codes == wanted).float().mean() > 0.999, "equal but for ties in float32"
    codes = wanted
    torch.testing.assert_close(quantizer.vectors(codes, tokenizer.layout), f_hat, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(quantizer.seen_before(codes, tokenizer.layout), seen, atol=1e-6, rtol=1e-5)


def test_without_residuals_each_map_is_the_picture_on_its_grid() -> None:
    sides = [1, 2, 3, 4, 6, 8]
    quantizer = quantizer_of(tiny(scale_residual=False, quantizer=VQ(codebook_size=128, dim=6)).eval())
    layout = tiny().layout
    f, book = torch.randn(3, 6, 8, 8), quantizer.book.codebook
    codes = quantizer.nearest(f)
    for side, part in zip(sides, layout.split(codes), strict=True):
        rows = F.interpolate(f, (side, side), mode="area").permute(0, 2, 3, 1).reshape(-1, 6)
        assert (part.flatten() == torch.cdist(rows, book).argmin(1)).float().mean() > 0.99, (
            "equal but for ties in float32"
        )
    last = book[codes[:, -64:]].view(3, 8, 8, 6).permute(0, 3, 1, 2)
    torch.testing.assert_close(quantizer.vectors(codes, layout), 0.5 * last + 0.5 * quantizer.convs[3](last))
    other = codes.clone()
    other[:, :-64] = 0
    assert torch.equal(quantizer.vectors(other, layout), quantizer.vectors(codes, layout)), "the last map alone"
    seen = quantizer.seen_before(codes, layout)
    wanted = quantizer.shrink(quantizer.vectors(codes[:, :30], layout), 4, layout)  # after 1 + 4 + 9 + 16 codes
    torch.testing.assert_close(seen[:, 30:66], wanted)
    written, told, _ = quantizer.rewrite(codes, layout, torch.zeros(3, 130, 6))
    assert torch.equal(written, codes) and torch.equal(told[:, :1], seen[:, :1])
    noisy, changed, wrong = quantizer.rewrite(codes, layout, torch.randn(3, 130, 6))
    assert (wrong != codes).float().mean() > 0.5 and torch.equal(noisy, codes), (
        "a mistake in one map leaves the others as they are"
    )
    assert (changed != seen).any(-1)[:, 1:].float().mean() > 0.5


@pytest.mark.parametrize(("convs", "scales", "table"), [(1, 4, [0] * 4), (2, 4, [0, 0, 1, 1]), (4, 4, [0, 1, 2, 3])])
def test_scales_share_convolutions_with_their_neighbours(convs: int, scales: int, table: list[int]) -> None:
    assert [residual_conv_of(scale, convs, scales) for scale in range(scales)] == table
    assert residual_conv_of(0, convs, 1) == 0
    assert [residual_conv_of(scale, 10, 10) for scale in range(10)] == list(range(10))


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("quantizer", [VQ(codebook_size=64, dim=4), SimVQ(codebook_size=64, dim=4)])
def test_codes_give_the_reconstruction_and_every_parameter_learns(quantizer: Any, residual: bool) -> None:
    tokenizer = tiny(quantizer=quantizer, scale_residual=residual)
    images = pictures()
    loss, parts = TokenizerLoss(LossConfig())(images, tokenizer(images))
    loss.backward()
    assert parts.keys() == {"l2", "commitment", "codebook"}
    assert [name for name, value in tokenizer.named_parameters() if value.grad is None or not value.grad.any()] == []
    tokenizer.eval()
    out = tokenizer(images)
    codes = tokenizer.encode(images)
    assert codes.shape == (4, 130) and torch.equal(codes, out.codes)
    torch.testing.assert_close(tokenizer.decode(codes), out.reconstruction, atol=1e-5, rtol=1e-4)
    assert torch.equal(torch.cat([tokenizer.encode(image[None]) for image in images]), codes)


@pytest.mark.parametrize("quantizer", [VQ(codebook_size=64, dim=4), SimVQ(codebook_size=64, dim=4)])
def test_training_makes_each_scale_add_to_the_picture(quantizer: Any) -> None:
    tokenizer = tiny(quantizer=quantizer, scale_dropout=0.3).train()
    images, losses = pictures(4), TokenizerLoss(LossConfig())
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=4e-3)
    for _ in range(120):
        loss, _ = losses(images, tokenizer(images))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokenizer.eval()
    codes = tokenizer.encode(images)
    errors = [F.mse_loss(tokenizer.decode(codes, up_to_scale=k), images).item() for k in range(1, 7)]
    assert errors[-1] < 0.6 * errors[0] and errors[-1] < 0.06, errors
    assert errors[-1] == min(errors), errors


def test_a_prefix_of_the_codes_is_enough_for_the_coarse_picture() -> None:
    tokenizer = tiny().eval()
    codes = tokenizer.encode(pictures())
    assert torch.equal(tokenizer.decode(codes, up_to_scale=6), tokenizer.decode(codes))
    assert torch.equal(tokenizer.decode(codes[:, :14], up_to_scale=3), tokenizer.decode(codes, up_to_scale=3))
    assert not torch.equal(tokenizer.decode(codes, up_to_scale=2), tokenizer.decode(codes, up_to_scale=3))
    for wrong in (0, 7):
        with pytest.raises(UserError, match=f"up_to_scale is {wrong}: this tokenizer has 6 scales"):
            tokenizer.decode(codes, up_to_scale=wrong)
    with pytest.raises(UserError, match=r"codes have shape \(4, 13\), but layout 1x1 \+ 2x2 .* takes \(images, 14\)"):
        tokenizer.decode(codes[:, :13], up_to_scale=3)
    with pytest.raises(UserError, match="up_to_scale is 2: this tokenizer has 1 scales"):
        tiny(scales=()).decode(codes[:, :64], up_to_scale=2)


def test_dropped_scales_change_training_alone() -> None:
    images = pictures()
    plain, dropped = (tiny(scale_dropout=share) for share in (0.0, 1.0))
    dropped.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert torch.equal(plain.eval()(images).reconstruction, dropped.eval()(images).reconstruction)
        torch.manual_seed(0)
        assert not torch.equal(plain.train()(images).reconstruction, dropped.train()(images).reconstruction)


def test_accumulated_micro_batches_move_the_codebook_as_one_batch() -> None:
    first = tiny(quantizer=VQ(codebook_size=64, dim=4, revive_below=0.0)).train()
    images = pictures(8)
    first(images)  # k-means
    second = copy.deepcopy(first)
    first(images)
    second(images[:4], accumulate=True)
    second(images[4:])
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_evaluation_never_moves_the_codebook() -> None:
    tokenizer = tiny().train()
    before = tokenizer.fingerprint()
    with torch.no_grad():
        tokenizer(pictures())
    tokenizer.encode(pictures())
    tokenizer.eval()(pictures())
    assert tokenizer.fingerprint() == before
    tokenizer.train()(pictures())
    assert tokenizer.fingerprint() != before


def test_rectangles_and_other_sizes() -> None:
    tokenizer = tiny(image_size=(16, 32), scales=(1, 2, 4, 8)).eval()
    assert tokenizer.layout == Layout(((1, 1), (1, 2), (2, 4), (4, 8)))
    images = pictures(2, 16, 32)
    assert tokenizer.decode(tokenizer.encode(images)).shape == images.shape
    pairs = tiny(image_size=(16, 32), scales=((1, 1), (1, 8), (4, 8)))
    assert pairs.layout.scales == ((1, 1), (1, 8), (4, 8))
    square = tiny(scales=(1, 2, 4, 8)).eval()
    layout = square.layout_for(64, 32)
    assert layout.scales[0] == (1, 1) and layout.grid == (16, 8) and len(layout.scales) == 4
    images = pictures(2, 64, 32)
    codes = square.encode(images)
    assert codes.shape == (2, layout.length) and square.decode(codes, layout).shape == images.shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales": (1, 2, 4)}, r"scales ends at 4x4, but 32x32 pixels at stride 4 make a grid of 8x8: let it end"),
        ({"scales": (1, 4, 2, 8)}, r"scales goes from 4x4 to 2x2: let it increase"),
        ({"scales": (1, 4, 4, 8)}, r"scales goes from 4x4 to 4x4: let it increase"),
        ({"scales": (1, 8, 16)}, r"scales has 16x16, but 32x32 pixels at stride 4 make a grid of 8x8: leave out"),
        ({"scales": (0, 8)}, r"scales is \[0, 8\]: give numbers of at least 1"),
        ({"quantizer": FSQ()}, r"scales with FSQ: choose VQ or SimVQ"),
        ({"quantizer": Cosine()}, r"scales with Cosine: choose VQ or SimVQ"),
        ({"scale_convs": 0}, r"scale_convs is 0: choose 1 or more"),
        ({"scale_dropout": 1.5}, r"scale_dropout is 1.5: choose a share from 0 to 1"),
    ],
)
def test_bad_schedules_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny(**changes)


def test_a_file_from_before_there_were_scales_is_read() -> None:
    config = dataclasses.replace(DEBUG, scales=(1, (2, 2), 8))
    values = config_to_dict(config)
    assert config_from_dict(values) == config
    old = {key: value for key, value in config_to_dict(DEBUG).items() if not key.startswith("scale")}
    assert config_from_dict(old) == DEBUG


BITS = BSQ(codebook_size=2**30, entropy_weight=0.0)


def test_scales_of_bits_learn() -> None:
    """30 bits a code, which no table holds: gradients reach all weights, and pictures come back better."""
    tokenizer = tiny(quantizer=BITS, scales=(1, 2, 4, 8), latent_dim=30, quant_kernel=0, channels=16).train()
    optimizer, x, errors = torch.optim.AdamW(tokenizer.parameters(), 2e-3), pictures(8), []
    for _ in range(12):
        output = tokenizer(x)
        error = F.mse_loss(output.reconstruction, x)
        (error + sum(output.losses.values())).backward()
        assert all(weight.grad is not None for weight in tokenizer.parameters())
        optimizer.step()
        optimizer.zero_grad()
        errors.append(error.item())
    assert errors[-1] < 0.6 * errors[0]
    assert torch.equal(tokenizer.eval()(x).codes, tokenizer.encode(x)) and tokenizer.encode(x).max() >= 2**20
    coarse = [F.mse_loss(tokenizer.decode(tokenizer.encode(x), up_to_scale=k), x).item() for k in (1, 4)]
    assert coarse[1] < coarse[0]
    assert config_from_dict(config_to_dict(tokenizer.config)) == tokenizer.config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantizer": BITS, "scale_residual": False}, "BSQ writes what is left over, in all scales"),
        ({"quantizer": BITS, "scale_dropout": 0.1}, "BSQ writes what is left over, in all scales"),
        ({"quantizer": BITS, "quant_kernel": 0}, "the quantizer takes 30 channels: make them equal"),
        (
            {"quantizer": BITS, "scale_fold": 2, "scales": (1, 2, 4)},
            "scale_fold makes codes of 120 bits: choose at most 64",
        ),
        ({"scale_fold": 2, "scales": (1, 2, 4)}, "scale_fold is 2: only BSQ with scales folds"),
    ],
)
def test_what_scales_of_bits_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(DEBUG, **{"scales": (1, 2, 4, 8), **changes})


def test_a_model_of_codebooks_refuses_bits() -> None:
    for name in ("var", "next_scale"):
        with pytest.raises(
            UserError, match=f"objective {name} needs a tokenizer with a codebook, the scales of this one"
        ):
            get_objective(name, tiny(quantizer=BITS, scales=(1, 2, 4, 8)))
