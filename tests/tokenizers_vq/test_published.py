"""Published checkpoints give the codes and pictures of their authors' arithmetic.

taming_vqgan is compared with the package taming-transformers itself. The other families are compared with plain
functional code, written here from descriptions of the authors' code, which shares nothing with ours. Weights are random
and drawn by the published names, so a name that goes astray is noticed. By hand, the same comparisons were run once at
the full size of each family (docs/tokenizers.md).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from tokenizers_vq import load_published, load_tokenizer
from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.published.family import Source
from tokenizers_vq.published.load import PUBLISHED, _attempts, _compare, _configure, _sources
from unitok.cli.importing import FamilyName
from unitok.cli.main import main
from unitok.trunk.published import PUBLISHED as GENERATORS

Weights = dict[str, Tensor]

TAMING = {
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "resolution": 32,
    "attn_resolutions": [16],
    "z_channels": 16,
}
TINY: dict[str, dict[str, Any]] = {
    "taming_vqgan": {"codebook_size": 50, "embed_dim": 8, "ddconfig": TAMING},
    "llamagen_vq": {
        "codebook_size": 50,
        "codebook_embed_dim": 8,
        "ch": 32,
        "ch_mult": [1, 2, 1],
        "num_res_blocks": 1,
        "z_channels": 16,
        "image_size": 32,
    },
    "var_vae": {
        "vocab_size": 50,
        "z_channels": 16,
        "ch": 32,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "patch_nums": [1, 2, 3, 4, 5, 6, 8, 10, 13, 16],
    },
    "showo_magvitv2": {
        "codebook_size": 64,
        "image_size": 32,
        "encoder": {"ch": 32, "z_channels": 6, "ch_mult": [1, 2, 2], "num_res_blocks": [2, 1, 2]},
        "decoder": {"ch": 32, "z_channels": 6, "ch_mult": [1, 1, 2], "num_res_blocks": [1, 2, 1]},
    },
    "open_magvit2": {
        "codebook_size": 64,
        "image_size": 32,
        "ddconfig": {"ch": 32, "ch_mult": [1, 2, 2], "num_res_blocks": 2, "z_channels": 6},
    },
    "ibq": {"codebook_size": 50, "embed_dim": 8, "ddconfig": {**TAMING, "num_res_blocks": 2}},
    "seed": {  # compared with its authors' arithmetic in test_seed.py
        "img_size": 28,
        "num_query_token": 5,
        "n_embed": 50,
        "codebook_embed_dim": 8,
        "decode_depth": 1,
        "image_features_dim": 20,
        "vit": {"patch_size": 14, "embed_dim": 32, "depth": 1, "num_heads": 4, "mlp_ratio": 2.0},
        "qformer": {"hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 64},
    },
    "infinity_vae": {"vae_type": 6, "base_ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "pn": "0.06M"},
    "emu3_vq": {
        "codebook_size": 50,
        "base_channels": 32,
        "channel_multiplier": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [1],
        "image_size": 32,
    },
}


def sources_of(family: str, **settings: Any) -> dict[str, Source]:
    table = PUBLISHED[family]
    return _sources(table, _configure(table, table.released[0], settings))


def random_weights(family: str, **settings: Any) -> Weights:
    """A checkpoint by its published names; the weights keep activations near 1 and make neighbouring codes differ."""
    shapes = {s.name: s.shape for s in sources_of(family, **settings).values() if s.shape is not None}
    random = torch.Generator().manual_seed(1)
    weights = {}
    for name, shape in sorted(shapes.items()):
        tensor = torch.randn(shape, generator=random)
        if "norm" in name:
            weights[name] = tensor * 0.2 + (1 if name.endswith("weight") else 0)
        elif name.startswith("quantize.") and "qresi" not in name:
            weights[name] = tensor
        elif len(shape) > 1:
            weights[name] = tensor / tensor[0].numel() ** 0.5
        else:
            weights[name] = tensor * 0.1
    return weights


def images(side: int = 32, count: int = 3, width: int | None = None) -> Tensor:
    small = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1
    return F.interpolate(small, (side, width or side), mode="bicubic").clamp(-1, 1)


def load(tmp_path: Path, family: str, content: Any, **changes: Any) -> ImageTokenizer:
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    return load_published(family, path, **{**TINY[family], **changes})


# --- the authors' arithmetic, as functions of the checkpoint ---------------------------------------------------------


def conv(w: Weights, name: str, x: Tensor, **options: Any) -> Tensor:
    kernel = w[f"{name}.weight"]
    options = {"padding": kernel.shape[-1] // 2, **options}
    return F.conv2d(x, kernel, w.get(f"{name}.bias"), **options)


def norm(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def residual(w: Weights, name: str, x: Tensor) -> Tensor:
    h = conv(w, f"{name}.conv1", swish(norm(w, f"{name}.norm1", x)))
    h = conv(w, f"{name}.conv2", swish(norm(w, f"{name}.norm2", h)))
    return h + (conv(w, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in w else x)


def attend(w: Weights, name: str, x: Tensor) -> Tensor:
    h = norm(w, f"{name}.norm", x)
    if f"{name}.qkv.weight" in w:
        q, k, v = conv(w, f"{name}.qkv", h).flatten(2).chunk(3, dim=1)
    else:
        q, k, v = (conv(w, f"{name}.{part}", h).flatten(2) for part in "qkv")
    scores = (torch.bmm(q.transpose(1, 2), k) * x.shape[1] ** -0.5).softmax(dim=2)  # (B, query, key)
    return x + conv(w, f"{name}.proj_out", torch.bmm(v, scores.transpose(1, 2)).reshape(x.shape))


def run_level(w: Weights, name: str, x: Tensor, block: str = "block") -> Tensor:
    index = 0
    while f"{name}.{block}.{index}.conv1.weight" in w:
        x = residual(w, f"{name}.{block}.{index}", x)
        if f"{name}.attn.{index}.norm.weight" in w:
            x = attend(w, f"{name}.attn.{index}", x)
        index += 1
    return x


def down(w: Weights, name: str, x: Tensor) -> Tensor:
    return conv(w, name, F.pad(x, (0, 1, 0, 1)), stride=2, padding=0)


def up(w: Weights, name: str, x: Tensor) -> Tensor:
    return conv(w, name, x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


VQGAN = {"mid": ("block_1", "attn_1", "block_2"), "block": "block", "down": "down", "up": "up", "turned": False}
LLAMAGEN = {"mid": ("0", "1", "2"), "block": "res", "down": "conv_blocks", "up": "conv_blocks", "turned": True}


def encoder(w: Weights, x: Tensor, levels: int, names: dict[str, Any]) -> Tensor:
    x = conv(w, "encoder.conv_in", x)
    for level in range(levels):
        x = run_level(w, f"encoder.{names['down']}.{level}", x, names["block"])
        if level < levels - 1:
            x = down(w, f"encoder.{names['down']}.{level}.downsample.conv", x)
    return conv(w, "encoder.conv_out", swish(norm(w, "encoder.norm_out", middle(w, "encoder", x, names))))


def decoder(w: Weights, x: Tensor, levels: int, names: dict[str, Any]) -> Tensor:
    x = middle(w, "decoder", conv(w, "decoder.conv_in", x), names)
    for level in reversed(range(levels)):
        name = f"decoder.{names['up']}.{levels - 1 - level if names['turned'] else level}"
        x = run_level(w, name, x, names["block"])
        if level > 0:
            x = up(w, f"{name}.upsample.conv", x)
    return conv(w, "decoder.conv_out", swish(norm(w, "decoder.norm_out", x)))


def middle(w: Weights, part: str, x: Tensor, names: dict[str, Any]) -> Tensor:
    first, *attention, last = (f"{part}.mid.{name}" for name in names["mid"])
    x = residual(w, first, x)
    return residual(w, last, attend(w, attention[0], x) if attention else x)


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


def infinity(w: Weights, x: Tensor, fold: int = 1) -> tuple[Any, ...]:
    """The authors treat a picture as a video of one frame."""
    names = {**VQGAN, "mid": ("block_1", "block_2")}
    z = encoder(w, x, 2, names)
    rest, total, codes = z[:, :, None], torch.zeros_like(z[:, :, None]), []
    sides = [1, 2, 4, 6, 8, 12, 16]
    for k, side in enumerate(sides):
        grid = (1, side * fold, side * fold)
        down = rest if k == len(sides) - 1 else F.interpolate(rest, grid, mode="area")
        bits = F.normalize(down, dim=1)[:, :, 0] > 0
        signs = torch.where(bits, 1.0, -1.0)[:, :, None] / z.shape[1] ** 0.5
        part = F.interpolate(signs, z[:, :, None].shape[2:], mode="trilinear")
        rest, total = rest - part, total + part
        tokens = F.pixel_unshuffle(bits.float(), fold).long()  # (B, D, h, w)
        number = tokens.shape[1]
        codes.append(sum(tokens[:, d] << (number - 1 - d) for d in range(number)).flatten(1))
    return torch.cat(codes, 1), decoder(w, total[:, :, 0], 2, names)


def agrees(tokenizer: ImageTokenizer, x: Tensor, codes: Tensor, picture: Tensor) -> None:
    ours = tokenizer.encode(x)
    assert torch.equal(ours, codes)
    assert len(ours.unique()) > 5  # codes vary, else equality says little
    layout = tokenizer.layout_for(*x.shape[2:])
    torch.testing.assert_close(tokenizer.decode(ours, layout).detach(), picture, atol=1e-4, rtol=0)


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


@torch.no_grad()
def test_infinity_folds_and_has_its_authors_shapes(tmp_path: Path) -> None:
    changes = {"vae_type": 3, "apply_spatial_patchify": 1}
    weights = random_weights("infinity_vae", **{**TINY["infinity_vae"], **changes})
    kind = {"norm": "norm", "conv": "conv", "nin": "conv"}
    wrapped = {}
    for name, tensor in weights.items():
        *inside, layer, part = name.split(".")
        wrapped[".".join([*inside, layer, kind[layer[: 3 if layer.startswith("nin") else 4]], part])] = tensor
    assert "encoder.down.0.downsample.conv.conv.weight" in wrapped and "encoder.norm_out.norm.bias" in wrapped
    wrapped |= {f"{part}.lfq.mask": torch.ones(3, dtype=torch.int64) for part in ("quantizer", "quantize")}
    tokenizer = load(tmp_path, "infinity_vae", {"vae": wrapped}, **changes)
    assert tokenizer.codebook_size == 2**12 and tokenizer.stride == 4
    agrees(tokenizer, images(64), *infinity(weights, images(64), 2))
    plain = load(tmp_path, "infinity_vae", weights, **changes)
    assert plain.fingerprint() == tokenizer.fingerprint()
    for ratio, size, last in ((0.75, "0.25M", (27, 36)), (1.28, "1M", (70, 56)), (0.3, "0.06M", (9, 27))):
        settings = {**changes, "pn": size, "h_div_w_template": ratio}
        assert load(tmp_path, "infinity_vae", weights, **settings).layout.grid == last


@torch.no_grad()
def test_codes_of_many_bits_are_codes_like_any_other(tmp_path: Path) -> None:
    """32 bits a code, and 56 where 14 are folded: written, read, counted and refused as all codes are."""
    weights = random_weights("infinity_vae", **{**TINY["infinity_vae"], "vae_type": 32})
    tokenizer = load(tmp_path, "infinity_vae", weights, vae_type=32)
    codes = tokenizer.encode(images())
    assert tokenizer.codebook_size == 2**32 and codes.max() > 2**31
    assert tokenizer.counted == 2**16 and torch.equal(tokenizer.countable(codes), codes >> 16)
    torch.testing.assert_close(tokenizer.decode(codes), torch.cat([tokenizer.decode(one) for one in codes.split(1)]))
    with pytest.raises(UserError, match=r"code 4294967296 is outside the codebook of 4294967296"):
        tokenizer.decode(codes.clamp(min=2**32))
    with pytest.raises(UserError, match=r"codes of 32 bits have no table of vectors"):
        tokenizer.code_vectors()
    weights = random_weights("infinity_vae", **{**TINY["infinity_vae"], "vae_type": 14})
    folded = load(tmp_path, "infinity_vae", weights, vae_type=14, apply_spatial_patchify=1)
    codes = folded.encode(images(64))
    assert folded.codebook_size == 2**56 and codes.max() > 2**55
    picture = folded.decode(codes)
    for bit in (0, 13, 31, 55):  # of the last code: none is lost
        flipped = codes.clone()
        flipped[:, -1] ^= 1 << bit
        assert not torch.equal(folded.decode(flipped), picture), bit


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


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["open_magvit2", "ibq"])
def test_the_moving_average_is_the_model(family: str, tmp_path: Path) -> None:
    weights = random_weights(family, **TINY[family])
    file: Weights = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    file |= {"model_ema." + name.replace(".", ""): tensor for name, tensor in weights.items()}
    file |= {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(7, dtype=torch.int32)}
    file |= {"loss.perceptual.weight": torch.zeros(2)}
    file |= {"model_ema.lossdiscriminatormain0weight": torch.zeros(2), "model_ema.lossperceptualweight": torch.zeros(2)}
    averaged = load(tmp_path, family, {"state_dict": file})
    assert averaged.fingerprint() == load(tmp_path, family, weights).fingerprint()
    del file["model_ema.encoderconv_inweight"]
    with pytest.raises(UserError, match=r"it lacks encoder\.conv_in\.weight"):
        load(tmp_path, family, {"state_dict": file})


RELEASED = [  # (family, number in `released`, tensors of the published file without training losses, some of them)
    (
        "taming_vqgan",
        0,
        343,
        {"quantize.embedding.weight": (1024, 256), "decoder.up.4.attn.2.q.weight": (512, 512, 1, 1)},
    ),
    ("taming_vqgan", 3, 301, {"quantize.proj.weight": (8192, 256, 1, 1), "quantize.embed.weight": (8192, 256)}),
    ("llamagen_vq", 0, 343, {"encoder.mid.2.conv1.weight": (512, 512, 3, 3), "quant_conv.weight": (8, 256, 1, 1)}),
    ("llamagen_vq", 1, 299, {"decoder.conv_blocks.0.upsample.conv.weight": (512, 512, 3, 3)}),
    ("var_vae", 0, 323, {"encoder.mid.attn_1.qkv.bias": (1920,), "post_quant_conv.weight": (32, 32, 3, 3)}),
    (
        "showo_magvitv2",
        0,
        380,
        {"decoder.up.3.block.3.conv1.weight": (256, 256, 3, 3), "encoder.quant_conv.bias": (13,)},
    ),
    (
        "open_magvit2",
        0,
        339,
        {"decoder.adaptive.1.gamma.weight": (256, 18), "encoder.conv_out.weight": (18, 512, 1, 1)},
    ),
    ("infinity_vae", 0, 268, {"encoder.conv_out.weight": (32, 512, 3, 3), "decoder.conv_in.weight": (512, 32, 3, 3)}),
    ("infinity_vae", 3, 224, {"encoder.conv_out.bias": (14,), "decoder.up.3.block.0.conv1.weight": (512, 512, 3, 3)}),
    ("ibq", 2, 543, {"decoder.up.4.attn.4.k.bias": (512,), "quantize.embedding.weight": (16384, 256)}),
    (
        "emu3_vq",
        0,
        487,
        {
            "decoder.up_block.up.3.attn_norms.2.conv_y.weight": (1024, 4, 1, 1),
            "encoder.time_conv.1.conv.conv.weight": (4, 4, 4, 3, 3),
            "encoder.middle_block.attn_1.out_proj.weight": (1024, 1024),
        },
    ),
]


@pytest.mark.parametrize(("family", "number", "count", "some"), RELEASED)
def test_released_models_want_the_published_tensors(family: str, number: int, count: int, some: dict[str, Any]) -> None:
    table = PUBLISHED[family]
    sources = _sources(table, _configure(table, table.released[number], {}))
    shapes = {source.name: source.shape for source in sources.values() if source.shape is not None}
    assert some.items() <= shapes.items()
    assert len({source.name for source in sources.values()}) == count


def test_the_released_model_is_told_by_its_shapes() -> None:
    table = PUBLISHED["taming_vqgan"]
    sources = [_sources(table, _configure(table, released, {})) for released in table.released]
    for wanted in range(len(sources)):
        with torch.device("meta"):
            file = {s.name: torch.empty(s.shape) for s in sources[wanted].values() if s.shape is not None}
        assert [_compare(table, file, each)[0] == 0 for each in sources].index(True) == wanted


def test_missing_unexpected_and_misshapen_tensors_are_listed_in_one_line(tmp_path: Path) -> None:
    weights = random_weights("var_vae", **TINY["var_vae"])
    del weights["encoder.mid.attn_1.qkv.weight"]
    weights |= {"encoder.extra": torch.zeros(1), "encoder.conv_in.bias": torch.zeros(5)}
    with pytest.raises(UserError) as caught:
        load(tmp_path, "var_vae", weights)
    message = str(caught.value)
    assert "\n" not in message
    assert (
        "it lacks encoder.mid.attn_1.qkv.weight; it has unexpected encoder.extra; it has encoder.conv_in.bias (5,) "
        in (message)
    )
    assert "instead of (32,)" in message and message.endswith("the settings that the model was trained with")


class Callback:
    """What a Lightning file may hold."""


class Pickled(torch.nn.Module):
    """A model that was saved whole."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.weights = weights

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.weights


def marked(weights: Weights, *marks: str) -> Weights:
    """The names as wrappers of modules change them: every mark in front of all, the last one inside as well."""
    front = "".join(f"{mark}." for mark in marks)
    return {front + name.replace("encoder.", f"encoder.{marks[-1]}.", 1): t for name, t in weights.items()}


TRAINED: dict[str, tuple[str, Callable[[Weights], Any]]] = {  # as trainers save: the family, and its file
    "own run": (
        "llamagen_vq",
        lambda w: {"model": w, "args": argparse.Namespace(lr=1e-4), "optimizer": {"state": {}}, "steps": 3},
    ),
    "own run with an average": (
        "llamagen_vq",
        lambda w: {"model": {n: t + 1 for n, t in w.items()}, "ema": w, "args": argparse.Namespace()},
    ),
    "DDP": ("llamagen_vq", lambda w: {"model": marked(w, "module")}),
    "compiled": ("llamagen_vq", lambda w: {"model": marked(w, "_orig_mod")}),
    "DDP, compiled": ("ibq", lambda w: {"state_dict": marked(w, "module", "_orig_mod")}),
    "compiled, DDP": ("open_magvit2", lambda w: {"model": {"state_dict": marked(w, "_orig_mod", "module")}}),
    "DeepSpeed": ("showo_magvitv2", lambda w: {"module": w, "dp_world_size": 8}),
    "FSDP": ("var_vae", lambda w: marked(w, "_fsdp_wrapped_module")),
    "VAR": ("var_vae", lambda w: {"epoch": 3, "trainer": {"vae_local": w, "var_wo_ddp": {"a": torch.ones(1)}}}),
    "Lightning": (
        "taming_vqgan",
        lambda w: {"state_dict": w, "callbacks": {Callback: {"best": Callback()}}, "hyper_parameters": Callback()},
    ),
}


@pytest.mark.parametrize("kind", TRAINED)
def test_checkpoints_are_taken_as_their_trainers_write_them(kind: str, tmp_path: Path) -> None:
    family, content = TRAINED[kind]
    weights = random_weights(family, **TINY[family])
    assert load(tmp_path, family, content(weights)).fingerprint() == load(tmp_path, family, weights).fingerprint()


def test_two_modules_of_one_name_are_refused(tmp_path: Path) -> None:
    weights = random_weights("ibq", **TINY["ibq"])
    with pytest.raises(UserError, match=r"holds \S+ twice, once as module\.\S+: save the weights of one of the two"):
        load(tmp_path, "ibq", {**weights, **marked(weights, "module")})


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: {"state_dict": model}])
def test_the_advice_for_a_pickled_model_works(
    wrap: Callable[[Any], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = random_weights("ibq", **TINY["ibq"])
    with pytest.raises(UserError, match=r"holds an object \('\S+Pickled'\).*and give weights\.pt$") as caught:
        load(tmp_path, "ibq", wrap(Pickled(weights)))
    line = str(caught.value).split("save its weights with ")[1].split(" and give ")[0]
    monkeypatch.chdir(tmp_path)
    exec(line, {"torch": torch})
    assert (
        load_published("ibq", "weights.pt", **TINY["ibq"]).fingerprint() == load(tmp_path, "ibq", weights).fingerprint()
    )


def test_weights_that_no_tokenizer_works_with(tmp_path: Path) -> None:
    weights = random_weights("ibq", **TINY["ibq"])
    for value, said in ((float("nan"), "NaN"), (float("inf"), "infinite values")):
        broken = {**weights, "decoder.conv_in.bias": torch.full_like(weights["decoder.conv_in.bias"], value)}
        with pytest.raises(UserError, match=rf"no tokenizer works with: decoder\.conv_in\.bias has {said}: fetch it"):
            load(tmp_path, "ibq", broken)
    with pytest.raises(
        UserError, match=r"has whole numbers where weights should be: decoder\.conv_in\.bias \(torch.int64"
    ):
        load(tmp_path, "ibq", {**weights, "decoder.conv_in.bias": weights["decoder.conv_in.bias"].long()})


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*none.pt: give a checkpoint, or hf:owner/name/file"):
        load_published("ibq", tmp_path / "none.pt")
    for name in ("text.ckpt", "text.safetensors"):
        (tmp_path / name).write_text("<html>not found</html>")
        with pytest.raises(UserError, match=r"cannot be read as a checkpoint .* fetch the file again"):
            load_published("ibq", tmp_path / name)
    with pytest.raises(
        UserError, match=r"holds no weights .* expected tensors by name in state_dict or .* or the file itself"
    ):
        load(tmp_path, "ibq", {"epoch": 3})


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("vqgan", {}, "unknown family 'vqgan': choose one of taming_vqgan, llamagen_vq, var_vae"),
        ("taming_vqgan", {"chanels": 3}, "unknown setting 'chanels': known are codebook_size, embed_dim"),
        ("taming_vqgan", {"ddconfig": {"chs": 3}}, "setting ddconfig has chs: known are z_channels, resolution"),
        ("taming_vqgan", {"in_channels": 1}, "setting in_channels is 1: only 3 can be imported"),
        ("taming_vqgan", {"ch": "wide"}, "settings has ch 'wide': give a value like the released 128"),
        (
            "taming_vqgan",
            {"ddconfig": {"ch_mult": [1, 2.5]}},
            r"setting ddconfig has ch_mult \[1, 2.5\]: give a value like",
        ),
        ("taming_vqgan", {"ddconfig": 3}, "setting ddconfig is 3: give values by name"),
        ("var_vae", {"ch_mult": []}, r"settings {'ch_mult': \[\]} cannot be used"),
        ("open_magvit2", {"codebook_size": 100}, "codebook_size is 100: 18 channels of one bit make 262144"),
        ("var_vae", {"using_znorm": True}, "setting using_znorm is True: only False"),
        (
            "taming_vqgan",
            {"ddconfig": {"double_z": True}},
            "double_z is True: only False can be imported, for means and variances are what a KL autoencoder makes",
        ),
        ("ibq", {"remap": "used.txt"}, "remap is 'used.txt': only None can be imported, for the remapped indices"),
        ("ibq", {"n_embed": 8, "codebook_size": 9}, "n_embed is 8|codebook_size is 9"),
        ("open_magvit2", {"embed_dim": 14, "ddconfig": {"z_channels": 18}}, "embed_dim is 14, z_channels 18: make"),
        (
            "ibq",
            {"ddconfig": {"num_res_blocks": 10**9}},
            "num_res_blocks 1000000000: no network of this family is that",
        ),
        ("ibq", {"ddconfig": {"ch_mult": [1] * 99}}, "no network of this family is that large"),
        (
            "llamagen_vq",
            {"encoder_ch_mult": [1, 2], "decoder_ch_mult": [1, 3]},
            "decoder_ch_mult is .* make them equal",
        ),
        ("ibq", {"model": {"params": {"what": 3}}}, "unknown setting 'what'"),
        ("infinity_vae", {"vae_type": 64}, "setting vae_type is 64: 64 bits of a code, there can be 1 to 62"),
        ("infinity_vae", {"base_ch": 40}, "setting base_ch is 40: give a multiple of 32"),
        ("infinity_vae", {"pn": "2M"}, "setting pn is '2M': choose one of 0.06M, 0.25M, 0.60M, 1M"),
        ("infinity_vae", {"h_div_w_template": 0}, "setting h_div_w_template is 0: give height by width"),
    ],
)
def test_settings_that_no_model_has(family: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_published(family, tmp_path / "any.pt", **changes)


LOSS = {"target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator", "params": {"disc_start": 250001}}
LIGHTNING = {"monitor": "val/rec_loss", "ckpt_path": None, "ignore_keys": [], "image_key": "image", "lossconfig": LOSS}
FULL_DD = {**TAMING, "double_z": False, "in_channels": 3, "out_ch": 3, "dropout": 0.0}
AUTHORS: dict[str, dict[str, Any]] = {  # as in the configuration files of the authors, at the sizes of `TINY`
    "taming_vqgan": {
        "model": {
            "base_learning_rate": 4.5e-6,
            "target": "taming.models.vqgan.VQModel",
            "params": {"embed_dim": 8, "n_embed": 50, "ddconfig": FULL_DD, **LIGHTNING},
        },
        "data": {"target": "main.DataModuleFromConfig", "params": {"batch_size": 3}},
    },
    "llamagen_vq": {
        "codebook_size": 50,
        "codebook_embed_dim": 8,
        "codebook_l2_norm": True,
        "codebook_show_usage": True,
        "commit_loss_beta": 0.25,
        "entropy_loss_ratio": 0.0,
        "encoder_ch_mult": [1, 2, 1],
        "decoder_ch_mult": [1, 2, 1],
        "z_channels": 16,
        "dropout_p": 0.0,
        "ch": 32,
        "num_res_blocks": 1,
        "image_size": 32,
    },
    "var_vae": {
        "vocab_size": 50,
        "z_channels": 16,
        "ch": 32,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "dropout": 0.0,
        "beta": 0.25,
        "using_znorm": False,
        "quant_conv_ks": 3,
        "quant_resi": 0.5,
        "share_quant_resi": 4,
        "default_qresi_counts": 0,
        "v_patch_nums": [1, 2, 3, 4, 5, 6, 8, 10, 13, 16],
        "test_mode": True,
    },
    "showo_magvitv2": {
        "_class_name": "MAGViTv2",
        "_diffusers_version": "0.30.1",
        "codebook_size": 64,
        "image_size": 32,
        **{
            part: {
                "attn_resolutions": [5],
                "dropout": 0.0,
                "in_ch": 3,
                "out_ch": 3,
                "double_z": False,
                "resolution": 32,
            }
            | TINY["showo_magvitv2"][part]
            for part in ("encoder", "decoder")
        },
    },
    "open_magvit2": {
        "seed_everything": True,
        "trainer": {"max_epochs": 270},
        "model": {
            "class_path": "taming.models.lfqgan.VQModel",
            "init_args": {
                "ddconfig": {
                    "double_z": False,
                    "z_channels": 6,
                    "resolution": 128,
                    "in_channels": 3,
                    "out_ch": 3,
                    "ch": 32,
                    "ch_mult": [1, 2, 2],
                    "num_res_blocks": 2,
                },
                "lossconfig": LOSS,
                "n_embed": 64,
                "embed_dim": 6,
                "learning_rate": 1e-4,
                "sample_minimization_weight": 1.0,
                "batch_maximization_weight": 1.0,
                "scheduler_type": "None",
                "use_ema": True,
                "resume_lr": None,
                "image_size": 32,
            },
        },
        "ckpt_path": None,
    },
    "infinity_vae": {
        "vqgan_ckpt": "infinity_vae_d32reg.pth",
        "schedule_mode": "dynamic",
        "codebook_dim": 6,
        "codebook_size": 64,
        "test_mode": True,
        "patch_size": 2,
        "encoder_ch_mult": [1, 2],
        "decoder_ch_mult": [1, 2],
        "base_ch": 32,
        "num_res_blocks": 1,
        "apply_spatial_patchify": 0,
        "pn": "0.06M",
    },
    "ibq": {
        "n_embed": 50,
        "embed_dim": 8,
        "ddconfig": {**FULL_DD, "num_res_blocks": 2},
        "learning_rate": 1e-4,
        "l2_normalize": False,
        "use_entropy_loss": True,
        "cosine_similarity": False,
        "entropy_temperature": 0.01,
        "sample_minimization_weight": 1.0,
        "batch_maximization_weight": 1.0,
        "beta": 0.25,
        "use_ema": True,
        "stage": None,
        **LIGHTNING,
    },
    "seed": {
        **TINY["seed"],
        "vit_model": "eva_clip_g",
        "drop_path_rate": 0,
        "use_grad_checkpoint": False,
        "vit_precision": "fp16",
        "freeze_vit": True,
        "cross_attention_freq": 2,
        "max_txt_len": 32,
        "recon_s": True,
        "blocks_for_image": True,
        "use_recon_s_for_image": False,
        "use_qformer_image": False,
    },
    "emu3_vq": {
        "attention_dropout": 0.0,
        "double_latent": False,
        "embed_dim": 4,
        "hidden_size": 64,
        "in_channels": 3,
        "latent_channels": 4,
        "model_type": "emu3_vqgan",
        "num_attention_heads": 1,
        "out_channels": 3,
        "temporal_downsample_factor": 4,
        "transformers_version": "5.23.0",
        **TINY["emu3_vq"],
    },
}


@pytest.mark.parametrize("family", list(PUBLISHED))
def test_the_authors_configuration_is_taken_as_it_is(family: str, tmp_path: Path) -> None:
    weights = random_weights(family, **TINY[family])
    torch.save(weights, tmp_path / "x.pt")
    ours = load_published(family, tmp_path / "x.pt", **TINY[family])
    theirs = load_published(family, tmp_path / "x.pt", **AUTHORS[family])
    assert ours.fingerprint() == theirs.fingerprint()


def test_a_codebook_of_another_released_model_is_a_setting_too() -> None:
    (config,) = set(_attempts(PUBLISHED["open_magvit2"], {"n_embed": 2**14}))
    assert config.quantizer.size == 2**14  # 14 bits are those of the third released model


# --- hub and command -------------------------------------------------------------------------------------------------


def hub(monkeypatch: pytest.MonkeyPatch, files: list[str], folder: Path) -> list[tuple[str, str]]:
    """A hub whose every repository has these files; returns the list of what is fetched."""
    fetched: list[tuple[str, str]] = []

    def fetch(repository: str, file: str) -> str:
        fetched.append((repository, file))
        return str(folder / file)

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, repository: files)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    return fetched


def test_command_makes_a_folder_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = random_weights("showo_magvitv2", **TINY["showo_magvitv2"])
    weights |= {"quantize.embedding": torch.ones(64, 6), "quantize.power_vals": 2 ** torch.arange(5, -1, -1)}
    save_file(weights, tmp_path / "pytorch_model.safetensors")
    fetched = hub(monkeypatch, ["config.json", "pytorch_model.bin", "pytorch_model.safetensors"], tmp_path)
    settings = tmp_path / "tiny.yaml"
    settings.write_text(f"settings: {TINY['showo_magvitv2']}\n")
    argv = ["import", "showo_magvitv2", "hf:showlab/magvitv2", "--out", str(tmp_path / "out")]
    assert main([*argv, "--config", str(settings)]) == 0
    assert fetched == [("showlab/magvitv2", "pytorch_model.safetensors")]
    out, err = capsys.readouterr()
    assert out == f"tokenizer: {tmp_path / 'out'}\n" and "32x32 pixels -> 8x8 codes out of 64" in err
    assert load_tokenizer(tmp_path / "out").codebook_size == 64


def test_command_goes_on_after_a_kill_at_its_very_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder is whole by then, and only the lock is left over."""
    file, out = tmp_path / "x.safetensors", tmp_path / "out"
    save_file(random_weights("llamagen_vq", **TINY["llamagen_vq"]), file)
    argv = ["import", "llamagen_vq", str(file), "--out", str(out)]
    argv += ["--settings", json.dumps(TINY["llamagen_vq"])]
    assert main(argv) == 0
    written = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / ".lock").touch()
    (out / ".config.json.4000000.tmp").touch()
    assert main(argv) == 0
    assert f"{out} holds this tokenizer already: nothing was written" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == written

    weights = random_weights("llamagen_vq", **TINY["llamagen_vq"])
    save_file({name: tensor + 1 for name, tensor in weights.items()}, file)
    assert main(argv) == 2
    assert "holds another tokenizer, or a damaged one: choose a new folder" in capsys.readouterr().err
    (out / "notes.txt").touch()
    assert main(argv) == 2
    assert "is not empty: choose a new folder" in capsys.readouterr().err
    assert {name: (out / name).read_bytes() for name in written} == written


def test_hub_problems_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, ["a.ckpt", "b.ckpt"], tmp_path)
    with pytest.raises(UserError, match=r"hf:o/n has a.ckpt, b.ckpt: name one, as in hf:o/n/FILE$"):
        load_published("taming_vqgan", "hf:o/n")
    with pytest.raises(UserError, match=r"'hf:n' names no repository: write hf:owner/name or hf:owner/name/file$"):
        load_published("taming_vqgan", "hf:n")

    def offline(*words: Any) -> str:
        raise OSError("no route to host\nmore")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(UserError, match=r"could not be fetched \(no route to host\): check name and network"):
        load_published("taming_vqgan", "hf:o/n/a.ckpt")


def test_command_knows_every_family() -> None:
    assert list(get_args(FamilyName)) == [*PUBLISHED, *GENERATORS]
