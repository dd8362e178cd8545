"""Published tokenizers compute what their authors' code does: the same codes, the same pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from published_tokenizers import (
    TAMING,
    TINY,
    VQGAN,
    Weights,
    agrees,
    conv,
    decoder,
    encoder,
    images,
    infinity,
    load,
    norm,
    random_weights,
    run_level,
    swish,
)
from torch import Tensor

from tokenizers_vq import load_published, load_tokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.published.load import PUBLISHED

LLAMAGEN = {"mid": ("0", "1", "2"), "block": "res", "down": "conv_blocks", "up": "conv_blocks", "turned": True}


def rows_of(z: Tensor) -> Tensor:
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])


def grid_of(rows: Tensor, like: Tensor) -> Tensor:
    return rows.view(len(like), *like.shape[2:], -1).permute(0, 3, 1, 2)


def by_distance(rows: Tensor, table: Tensor) -> Tensor:
    return (rows.square().sum(1, keepdim=True) + table.square().sum(1) - 2 * rows @ table.t()).argmin(1)


def one_grid(w: Weights, x: Tensor, levels: int, names: dict[str, Any], pick: Callable[..., Any]) -> tuple[Any, ...]:
    """Families with one grid between quant_conv and post_quant_conv: (codes (B, L), picture)."""
    z = conv(w, "quant_conv", encoder(w, x, levels, names))
    codes, vectors = pick(rows_of(z))
    return codes.view(len(x), -1), decoder(w, conv(w, "post_quant_conv", grid_of(vectors, z)), levels, names)


def llamagen(w: Weights, x: Tensor) -> tuple[Any, ...]:
    def pick(rows: Tensor) -> tuple[Tensor, Tensor]:
        table = F.normalize(w["quantize.embedding.weight"], dim=-1)
        codes = by_distance(F.normalize(rows, dim=-1), table)
        return codes, table[codes]

    return one_grid(w, x, 3, LLAMAGEN, pick)


def gumbel(w: Weights, x: Tensor) -> tuple[Any, ...]:
    def pick(rows: Tensor) -> tuple[Tensor, Tensor]:
        codes = (rows @ w["quantize.proj.weight"][:, :, 0, 0].t() + w["quantize.proj.bias"]).argmax(1)
        return codes, w["quantize.embed.weight"][codes]

    return one_grid(w, x, 2, VQGAN, pick)


def ibq(w: Weights, x: Tensor) -> tuple[Any, ...]:
    def pick(rows: Tensor) -> tuple[Tensor, Tensor]:
        table = w["quantize.embedding.weight"]
        codes = (rows @ table.t()).softmax(1).argmax(1)
        assert (codes != by_distance(rows, table)).float().mean() > 0.1  # norms differ: nearest is another code
        return codes, table[codes]

    return one_grid(w, x, 2, VQGAN, pick)


def var(w: Weights, x: Tensor) -> tuple[Any, ...]:
    f = conv(w, "quant_conv", encoder(w, x, 2, VQGAN))
    table, rest, f_hat, codes = w["quantize.embedding.weight"], f.clone(), torch.zeros_like(f), []
    sides = TINY["var_vae"]["patch_nums"]
    for k, (side, phi) in enumerate(zip(sides, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3], strict=True)):
        last = k == len(sides) - 1
        z = rest if last else F.interpolate(rest, (side, side), mode="area")
        index = by_distance(rows_of(z), table)
        h = grid_of(table[index], z)
        h = h if last else F.interpolate(h, f.shape[2:], mode="bicubic")
        h = 0.5 * h + 0.5 * conv(w, f"quantize.quant_resi.qresi_ls.{phi}", h)
        f_hat, rest = f_hat + h, rest - h
        codes.append(index.view(len(x), -1))
    return torch.cat(codes, 1), decoder(w, conv(w, "post_quant_conv", f_hat), 2, VQGAN)


def showo(w: Weights, x: Tensor) -> tuple[Any, ...]:
    z = conv(w, "encoder.quant_conv", encoder(w, x, 3, VQGAN))
    bits = rows_of(z) > 0
    codes = sum(bits[:, d].long() << (bits.shape[1] - 1 - d) for d in range(bits.shape[1]))
    signs = grid_of(bits.float() * 2 - 1, z)
    return codes.view(len(x), -1), decoder(w, conv(w, "decoder.post_quant_conv", signs), 3, VQGAN)


def open_magvit2(w: Weights, x: Tensor) -> tuple[Any, ...]:
    x = conv(w, "encoder.conv_in", x)
    for level in range(3):
        x = run_level(w, f"encoder.down.{level}", x)
        if level < 2:
            x = conv(w, f"encoder.down.{level}.downsample", x, stride=2, padding=1)
    x = run_level(w, "encoder", x, "mid_block")
    z = conv(w, "encoder.conv_out", swish(norm(w, "encoder.norm_out", x)))
    bits = rows_of(z) > 0
    codes = sum(bits[:, d].long() << d for d in range(bits.shape[1])).view(len(x), -1)
    vectors = grid_of(bits.float() * 2 - 1, z)
    mean = vectors.mean(dim=(2, 3))
    count = vectors.shape[2] * vectors.shape[3]
    deviation = ((vectors - mean[:, :, None, None]).square().sum(dim=(2, 3)) / (count - 1) + 1e-6).sqrt()
    x = run_level(w, "decoder", conv(w, "decoder.conv_in", vectors), "mid_block")
    for level in (2, 1, 0):
        name = f"decoder.adaptive.{level}"
        scale = F.linear(deviation, w[f"{name}.gamma.weight"], w[f"{name}.gamma.bias"])[:, :, None, None]
        bias = F.linear(mean, w[f"{name}.beta.weight"], w[f"{name}.beta.bias"])[:, :, None, None]
        x = run_level(w, f"decoder.up.{level}", scale * F.group_norm(x, 32, eps=1e-6) + bias)
        if level > 0:
            x = conv(w, f"decoder.up.{level}.upsample.conv1", x)
            batch, channels, height, width = x.shape
            x = x.view(batch, 2, 2, channels // 4, height, width)  # row, column, channel
            x = x.permute(0, 3, 4, 1, 5, 2).reshape(batch, channels // 4, 2 * height, 2 * width)
    return codes, conv(w, "decoder.conv_out", swish(norm(w, "decoder.norm_out", x)))


@pytest.mark.parametrize(
    ("family", "reference"),
    [
        ("llamagen_vq", llamagen),
        ("var_vae", var),
        ("showo_magvitv2", showo),
        ("open_magvit2", open_magvit2),
        ("ibq", ibq),
        ("infinity_vae", infinity),
    ],
)
@torch.no_grad()
def test_codes_and_pictures_are_the_authors(
    family: str, reference: Callable[..., tuple[Any, ...]], tmp_path: Path
) -> None:
    weights = random_weights(family, **TINY[family])
    wrappers = PUBLISHED[family].wrappers
    content: Any = weights
    for key in reversed(wrappers[-1].split(".") if wrappers else []):
        content = {key: content}
    tokenizer = load(tmp_path, family, content)
    agrees(tokenizer, images(), *reference(weights, images()))
    if family not in ("var_vae", "infinity_vae"):  # their references have the sides written in
        wide = images(32, 2, 64)
        agrees(tokenizer, wide, *reference(weights, wide))
    tokenizer.save_pretrained(tmp_path / "folder")
    assert load_tokenizer(tmp_path / "folder").fingerprint() == tokenizer.fingerprint()


@torch.no_grad()
def test_gumbel_takes_the_best_score(tmp_path: Path) -> None:
    settings = {**TINY["taming_vqgan"], "gumbel": True, "ddconfig": TAMING}
    weights = random_weights("taming_vqgan", **settings)
    assert weights["quantize.proj.weight"].shape == (50, 8, 1, 1)
    agrees(load(tmp_path, "taming_vqgan", {"state_dict": weights}), images(), *gumbel(weights, images()))


def taming_agrees(tmp_path: Path, dd: dict[str, Any], codebook_size: int, embed_dim: int, count: int) -> None:
    """Same codes and pictures as the package's own classes with the same random weights.

    Run by hand on 2026-11-24 at full size as well: f16-1024 as released, one picture of 256 px, 26 s on one core.
    """
    model = pytest.importorskip(
        "taming.modules.diffusionmodules.model",
        reason="the authors' package is missing: pip install 'unitok-vq[taming]'",
    )
    quantize = pytest.importorskip("taming.modules.vqvae.quantize", reason="taming-transformers is incomplete")
    torch.manual_seed(3)
    parts = torch.nn.ModuleDict(
        {
            "encoder": model.Encoder(**dd),
            "decoder": model.Decoder(**dd),
            "quantize": quantize.VectorQuantizer(codebook_size, embed_dim, beta=0.25),
            "quant_conv": torch.nn.Conv2d(dd["z_channels"], embed_dim, 1),
            "post_quant_conv": torch.nn.Conv2d(embed_dim, dd["z_channels"], 1),
        }
    ).eval()
    # Trained codebooks lie among the latents; the package's start, +-1/size, leaves the choice to rounding.
    torch.nn.init.normal_(parts["quantize"].embedding.weight, std=0.5)
    x = images(dd["resolution"], count)
    with torch.no_grad():
        quantized, _, (_, _, indices) = parts["quantize"](parts["quant_conv"](parts["encoder"](x)))
        picture = parts["decoder"](parts["post_quant_conv"](quantized))
    path = tmp_path / "last.ckpt"
    extra = {"loss.discriminator.main.0.weight": torch.zeros(3)}
    torch.save({"epoch": 3, "state_dict": {**parts.state_dict(), **extra}}, path)
    settings = {"codebook_size": codebook_size, "embed_dim": embed_dim, "ddconfig": dd}
    agrees(load_published("taming_vqgan", path, **settings), x, indices.view(count, -1), picture)


@pytest.mark.parametrize("changes", [{}, {"ch_mult": [1, 1, 2], "attn_resolutions": [16], "num_res_blocks": 2}])
def test_taming_agrees_with_its_own_package(changes: dict[str, Any], tmp_path: Path) -> None:
    dd = {**TAMING, "in_channels": 3, "out_ch": 3, "double_z": False, "dropout": 0.0, **changes}
    taming_agrees(tmp_path, dd, codebook_size=50, embed_dim=8, count=3)


def test_open_magvit2_learns_and_keeps_to_its_sizes(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, "open_magvit2", random_weights("open_magvit2", **TINY["open_magvit2"])).train()
    output = tokenizer(images())
    (output.reconstruction.square().mean() + sum(output.losses.values())).backward()
    assert all(weight.grad is not None for weight in tokenizer.parameters())
    with pytest.raises(UserError, match=r"image size 4x4 is a single code: .* use at least 4x8"):
        tokenizer.decode(torch.zeros(1, 1, dtype=torch.int64), tokenizer.layout_for(4, 4))
    with pytest.raises(UserError, match=r"tokenizer.image_size 30 is not a multiple of the tokenizer's stride 4"):
        load_published("open_magvit2", "any.pt", **{**TINY["open_magvit2"], "image_size": 30})
