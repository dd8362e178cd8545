"""SEED's tokenizer gives the codes and image embeddings of its authors' arithmetic, written here as plain functions of
the checkpoint, which share nothing with ours. It makes no pixels, and says so wherever they are asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_vq import load_published, load_tokenizer
from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.published.load import PUBLISHED, _configure, _sources
from unitok.cli.main import main

Weights = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
SIZE, CODES, TOKENS, EMBEDDING, HEADS = 28, 50, 5, 20, 12
TINY: dict[str, Any] = {
    "img_size": SIZE,
    "num_query_token": TOKENS,
    "n_embed": CODES,
    "codebook_embed_dim": 8,
    "decode_depth": 2,
    "image_features_dim": EMBEDDING,
    "vit": {"patch_size": 7, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2.5},
    "qformer": {"hidden_size": 48, "num_hidden_layers": 3, "intermediate_size": 64},
}


def linear(name: str, out: int, size: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (out, size)} | ({f"{name}.bias": (out,)} if bias else {})


def both(name: str, size: int) -> Shapes:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def published(given: dict[str, Any]) -> Shapes:
    """Names and shapes of the authors' model: of `seed_quantizer.pt`, and of the vision transformer."""
    vit, queries = given["vit"], given["qformer"]
    wide, width, tokens = vit["embed_dim"], queries["hidden_size"], given["num_query_token"]
    code = given["codebook_embed_dim"]
    places = 1 + (given["img_size"] // vit["patch_size"]) ** 2
    found: Shapes = {
        "query_tokens": (1, tokens, width),
        "pos_embed": (1, tokens, width),
        "pos_embed_image": (1, tokens, width),
        "visual_encoder.cls_token": (1, 1, wide),
        "visual_encoder.pos_embed": (1, places, wide),
        "visual_encoder.patch_embed.proj.weight": (wide, 3, vit["patch_size"], vit["patch_size"]),
        "visual_encoder.patch_embed.proj.bias": (wide,),
        "quantize.embedding.weight": (given["n_embed"], code),
    }
    for block in range(vit["depth"]):
        start = f"visual_encoder.blocks.{block}."
        found |= {f"{start}attn.q_bias": (wide,), f"{start}attn.v_bias": (wide,)}
        found |= linear(f"{start}attn.qkv", 3 * wide, wide, bias=False) | linear(f"{start}attn.proj", wide, wide)
        found |= feed_forward(start, wide, int(wide * vit["mlp_ratio"]))
    found |= both("ln_vision", wide) | both("Qformer.bert.embeddings.LayerNorm", width)
    for layer in range(queries["num_hidden_layers"]):
        start = f"Qformer.bert.encoder.layer.{layer}."
        for part in ("attention", "crossattention")[: 1 if layer % 2 else 2]:
            seen = width if part == "attention" else wide
            for name, size in (("query", width), ("key", seen), ("value", seen)):
                found |= linear(f"{start}{part}.self.{name}", width, size)
            found |= linear(f"{start}{part}.output.dense", width, width)
            found |= both(f"{start}{part}.output.LayerNorm", width)
        found |= linear(f"{start}intermediate_query.dense", queries["intermediate_size"], width)
        found |= linear(f"{start}output_query.dense", width, queries["intermediate_size"])
        found |= both(f"{start}output_query.LayerNorm", width)
    found |= linear("encode_task_layer.0", width, width) | linear("encode_task_layer.2", code, width)
    found |= linear("decode_task_layer.0", code, code) | linear("decode_task_layer.2", width, code)
    for part in ("blocks", "blocks_image"):
        for block in range(given["decode_depth"]):
            start = f"{part}.{block}."
            found |= linear(f"{start}attn.qkv", 3 * width, width) | linear(f"{start}attn.proj", width, width)
            found |= feed_forward(start, width, 4 * width)
    for place, (out, size) in enumerate([(256, width), (128, 256), (32, 128)]):
        found |= linear(f"image_down.{2 * place}", out, size, bias=False)
    return found | linear("distill_image_proj", given["image_features_dim"], 32 * tokens)


def feed_forward(start: str, width: int, inner: int) -> Shapes:
    found = both(f"{start}norm1", width) | both(f"{start}norm2", width)
    return found | linear(f"{start}mlp.fc1", inner, width) | linear(f"{start}mlp.fc2", width, inner)


def random_weights(seed: int = 1) -> Weights:
    random = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in published(TINY).items():
        noise = torch.randn(shape, generator=random)
        if "norm" in name.lower() or "ln_vision" in name:
            found[name] = 0.2 * noise + (1 if name.endswith("weight") else 0)
        elif "embed" in name or "token" in name:
            found[name] = noise
        else:  # what the queries see of the picture counts
            strength = 3 if "crossattention" in name or "task_layer" in name or "patch" in name else 1
            found[name] = strength * noise / noise[0].numel() ** 0.5 if noise.ndim > 1 else 0.2 * noise
    return found | {"Qformer.bert.embeddings.position_ids": torch.arange(512)[None]}


def images(count: int = 4, size: int = SIZE) -> Tensor:
    small = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1
    return F.interpolate(small, (size, size), mode="bicubic").clamp(-1, 1)


def load(folder: Path, weights: Weights, **changes: Any) -> ImageTokenizer:
    torch.save(weights, folder / "seed_quantizer.pt")
    return load_published("seed", folder / "seed_quantizer.pt", **{**TINY, **changes})


# --- the authors' arithmetic ------------------------------------------------------------------------------------------


def apply(w: Weights, name: str, x: Tensor) -> Tensor:
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def norm(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + eps).sqrt()
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | float = 0.0) -> Tensor:
    size = q.shape[-1] // heads
    q, k, v = (t.view(*t.shape[:2], heads, size).transpose(1, 2) for t in (q, k, v))
    scores = q @ k.transpose(-2, -1) / size**0.5 + mask
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def vision_block(w: Weights, start: str, x: Tensor, heads: int) -> Tensor:
    h = norm(w, f"{start}norm1", x, 1e-6)
    q, k, v = (h @ w[f"{start}attn.qkv.weight"].T).chunk(3, -1)
    if f"{start}attn.qkv.bias" in w:
        one, two, three = w[f"{start}attn.qkv.bias"].chunk(3)
        q, k, v = q + one, k + two, v + three
    else:
        q, v = q + w[f"{start}attn.q_bias"], v + w[f"{start}attn.v_bias"]
    x = x + apply(w, f"{start}attn.proj", attend(q, k, v, heads))
    h = norm(w, f"{start}norm2", x, 1e-6)
    return x + apply(w, f"{start}mlp.fc2", F.gelu(apply(w, f"{start}mlp.fc1", h)))


def bert_attention(w: Weights, start: str, x: Tensor, y: Tensor, mask: Tensor | float = 0.0) -> Tensor:
    q, k, v = (apply(w, f"{start}self.{n}", t) for n, t in (("query", x), ("key", y), ("value", y)))
    h = apply(w, f"{start}output.dense", attend(q, k, v, HEADS, mask))
    return norm(w, f"{start}output.LayerNorm", x + h, 1e-12)


def codes_of(w: Weights, x: Tensor) -> Tensor:
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    x = ((x + 1) / 2 - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]
    patch = w["visual_encoder.patch_embed.proj.weight"]
    x = F.conv2d(x, patch, w["visual_encoder.patch_embed.proj.bias"], stride=patch.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([w["visual_encoder.cls_token"].repeat(len(x), 1, 1), x], 1) + w["visual_encoder.pos_embed"]
    for block in range(TINY["vit"]["depth"]):
        x = vision_block(w, f"visual_encoder.blocks.{block}.", x, TINY["vit"]["num_heads"])
    seen = norm(w, "ln_vision", x, 1e-5)
    later = -10_000.0 * torch.ones(TOKENS, TOKENS).triu(1)
    q = norm(w, "Qformer.bert.embeddings.LayerNorm", w["query_tokens"].repeat(len(x), 1, 1), 1e-12)
    for layer in range(TINY["qformer"]["num_hidden_layers"]):
        start = f"Qformer.bert.encoder.layer.{layer}."
        q = bert_attention(w, f"{start}attention.", q, q, later)
        if layer % 2 == 0:
            q = bert_attention(w, f"{start}crossattention.", q, seen)
        h = apply(w, f"{start}output_query.dense", F.gelu(apply(w, f"{start}intermediate_query.dense", q)))
        q = norm(w, f"{start}output_query.LayerNorm", q + h, 1e-12)
    z = apply(w, "encode_task_layer.2", apply(w, "encode_task_layer.0", q).tanh())
    return (z[:, :, None] - w["quantize.embedding.weight"]).square().sum(-1).argmin(-1)


def embedding_of(w: Weights, codes: Tensor) -> Tensor:
    x = w["quantize.embedding.weight"][codes]
    x = apply(w, "decode_task_layer.2", apply(w, "decode_task_layer.0", x).tanh()) + w["pos_embed_image"]
    for block in range(TINY["decode_depth"]):
        x = vision_block(w, f"blocks_image.{block}.", x, HEADS)
    x = apply(w, "image_down.4", apply(w, "image_down.2", apply(w, "image_down.0", x).relu()).relu())
    return apply(w, "distill_image_proj", x.flatten(1))


# --- tests ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_codes_and_embeddings_are_the_authors(tmp_path: Path) -> None:
    weights = random_weights()
    tokenizer = load(tmp_path, weights)
    codes = tokenizer.encode(images())
    assert torch.equal(codes, codes_of(weights, images())) and codes.shape == (4, TOKENS)
    assert len(codes.unique()) > 5  # codes vary, else equality says little
    found, wanted = tokenizer.embed(codes), embedding_of(weights, codes)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    assert found.shape == (4, EMBEDDING) and found.std(0).min() > 0.01
    tokenizer.save_pretrained(tmp_path / "folder")
    again = load_tokenizer(tmp_path / "folder")
    assert again.fingerprint() == tokenizer.fingerprint() and torch.equal(again.embed(codes), found)


def test_the_released_model_has_the_published_tensors() -> None:
    """Every tensor of the authors' model is one that is read, or of the branch that serves training."""
    table = PUBLISHED["seed"]
    wanted = published(dict(table.released[0]))
    sources = _sources(table, _configure(table, table.released[0], {}))
    read = {source.name: source.shape for source in sources.values() if source.shape is not None}
    assert {name: wanted[name] for name in read} == read and len(read) == 831
    left = wanted.keys() - read.keys()
    assert left == {"pos_embed", *(name for name in wanted if name.startswith("blocks."))}


def test_the_vision_transformer_may_lie_in_a_second_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its authors read it from that of BLIP-2, which has more blocks than they use, and no names in front."""
    weights, start = random_weights(), "visual_encoder."
    whole = load(tmp_path, weights)
    first = {name: tensor for name, tensor in weights.items() if not name.startswith(start)}
    second = {name.removeprefix(start): tensor.half() for name, tensor in weights.items() if name.startswith(start)}
    halves = {**first, **{start + name: tensor.float() for name, tensor in second.items()}}
    unused = {name.replace("blocks.1.", "blocks.2."): one for name, one in second.items() if "blocks.1." in name}
    torch.save(first, tmp_path / "first.pt")
    torch.save({**second, **unused, "norm.weight": torch.ones(32)}, tmp_path / "eva_vit_g.pth")
    out, settings = tmp_path / "out", {**TINY, "eva_vit": str(tmp_path / "eva_vit_g.pth")}
    argv = ["import", "seed", str(tmp_path / "first.pt"), "--out", str(out), "--settings"]
    assert main([*argv, json.dumps(TINY)]) == 2
    assert "holds no visual_encoder, which its authors read from eva_vit_g.pth: give" in capsys.readouterr().err
    assert main([*argv, json.dumps({**settings, "eva_vit": 3})]) == 2
    assert "setting eva_vit is 3: give the path of a file, or hf:owner/name/file" in capsys.readouterr().err
    assert not out.exists()
    assert main([*argv, json.dumps(settings)]) == 0
    assert "28x28 pixels -> 1x5 codes out of 50" in capsys.readouterr().err
    found = load_tokenizer(out)
    assert found.fingerprint() == load(tmp_path, halves).fingerprint() != whole.fingerprint()
    torch.save({name: one for name, one in second.items() if "blocks.1." not in name}, tmp_path / "eva_vit_g.pth")
    with pytest.raises(UserError, match=r"it lacks visual_encoder\.blocks\.1\.attn\.proj\.bias"):
        load_published("seed", tmp_path / "first.pt", **settings)


@torch.no_grad()
def test_earlier_codes_do_not_depend_on_later_queries(tmp_path: Path) -> None:
    weights = random_weights()
    codes = load(tmp_path, weights).encode(images())
    weights["query_tokens"][:, 3:] = weights["query_tokens"][:, :2]
    others = load(tmp_path, weights).encode(images())
    assert torch.equal(codes[:, :3], others[:, :3]) and not torch.equal(codes, others)


def test_what_cannot_be_imported_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = random_weights()
    del weights["ln_vision.bias"]
    with pytest.raises(UserError, match=r"is no seed of these settings: it lacks ln_vision\.bias"):
        load(tmp_path, weights)
    whole = random_weights()
    found = load(tmp_path, {**whole, "itm_head.bias": torch.ones(2), "Qformer.cls.bias": torch.ones(1)})
    told = "left out what is not of the tokenizer, 2 tensors: Qformer.cls.bias, itm_head.bias\n"
    assert found.fingerprint() == load(tmp_path, whole).fingerprint() and capsys.readouterr().err.endswith(told)
    for changes, told in (
        ({"use_qformer_image": True}, "setting use_qformer_image is True: only False can be imported"),
        ({"vit_model": "clip_L"}, "setting vit_model is 'clip_L': only 'eva_clip_g' can be imported"),
        ({"img_size": 30}, "tokenizer.image_size 30 is not a multiple of the tokenizer's stride 7: use 28 or 35"),
        ({"qformer": {**TINY["qformer"], "hidden_size": 50}}, r"tokenizer.width is 50: choose a multiple of"),
        ({"n_embed": 60}, r"it has quantize.embedding.weight \(50, 8\) instead of \(60, 8\)"),
    ):
        with pytest.raises(UserError, match=told):
            load(tmp_path, random_weights(), **changes)


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, random_weights())
    with pytest.raises(UserError, match="image size 35x35: this tokenizer reads 28x28 alone, scale the pictures to it"):
        tokenizer.encode(images(size=35))
    with pytest.raises(UserError, match=r"codes have shape \(2, 4\): give \(images, 5\)"):
        tokenizer.embed(torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(UserError, match="code 50 is outside the codebook of 50"):
        tokenizer.embed(torch.full((1, TOKENS), CODES))


def test_commands_that_need_pixels_say_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = load(tmp_path, random_weights())
    codes = tokenizer.encode(images())
    told = "the SEED tokenizer makes an image embedding of codes, no pixels: a diffusion model"
    for wanted in (lambda: tokenizer.decode(codes), lambda: tokenizer(images())):
        with pytest.raises(UserError, match=told):
            wanted()
    folder, out = str(tmp_path / "folder"), tmp_path / "out"
    tokenizer.save_pretrained(folder)
    tokenizer.save_pretrained(other := str(tmp_path / "other"))
    configs = [str(tmp_path / f"{name}.yaml") for name in ("one", "two")]
    for config in configs:
        Path(config).write_text(f"data: shapes?limit=4\nimage_tokenizer: {folder}\nout: unused\npreset: debug\n")
    for argv in (
        ["eval", "tokenizer", "--tokenizer", folder, "--data", "shapes?limit=4"],
        ["compare-tokenizers", folder, other, "--data", "shapes?limit=4"],
        ["train", "tokenizer", "--init", folder, "--data", "shapes?limit=4"],
        ["compare", "--generators", json.dumps(configs), "--val_data", "shapes@val?limit=4"],
    ):
        assert main([*argv, "--out", str(out)]) == 2, argv
        err = capsys.readouterr().err
        assert told in err and len(err.strip().splitlines()) == 1, err
        assert not (out / "config.json").exists() and not (out / "report.html").exists()
    assert main(["encode", "--data", "shapes?limit=4", "--image_tokenizer", folder, "--out", str(tmp_path / "c")]) == 0
