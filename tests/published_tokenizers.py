"""Small tokenizers of each published family, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_vq import load_published
from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.published.family import Source
from tokenizers_vq.published.load import PUBLISHED, _configure, _sources

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
