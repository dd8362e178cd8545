"""The peers' side: their own modules, out of the checkouts that are given."""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import types
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rows import Row

Works = dict[str, Callable[[], object]]
"""Precision -> the work of a row."""
PACKAGES = "folder with the older packages that Show-o needs: transformers 4.44, diffusers 0.30 and what they ask for"


def _from(folder: str, module: str) -> Any:
    """A module of a checkout."""
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(module)


def _both(work: Callable[[], object]) -> Works:
    """A work as it is, and under autocast."""
    import torch

    def run(half: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
            work()

    return {"fp32": lambda: run(False), "bf16": lambda: run(True)}


def _steps(model: Any, loss: Callable[[], Any]) -> Works:
    """A step of training: the loss, alone under autocast, then backward and AdamW."""
    import torch

    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], fused=True)

    def run(half: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return {"fp32": lambda: run(False), "bf16": lambda: run(True)}


def llamagen(row: Row, paths: dict[str, str]) -> Works:
    """LlamaGen (arXiv:2406.06525) with a class as the prompt."""
    import torch

    gpt = _from(paths["llamagen"], "autoregressive.models.gpt")
    generate = _from(paths["llamagen"], "autoregressive.models.generate").generate
    none = dict.fromkeys(("token_dropout_p", "resid_dropout_p", "ffn_dropout_p"), 0.0)
    sizes = {"dim": row.width, "n_layer": row.depth, "n_head": row.width // 64}

    def fresh() -> Any:
        return gpt.Transformer(gpt.ModelArgs(**sizes, vocab_size=row.codebook, block_size=row.codes, **none))

    classes = torch.arange(row.batch)
    if row.work == "train":
        model = fresh().train()
        codes = torch.randint(row.codebook, (row.batch, row.codes))
        return _steps(model, lambda: model(codes[:, :-1], classes, targets=codes)[1])
    settings = {"cfg_scale": 2.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "sample_logits": True}
    single, half = fresh().eval(), fresh().eval().to(torch.bfloat16)  # as its programs do
    return {
        "fp32": lambda: generate(single, classes, row.codes, **settings),
        "bf16": lambda: generate(half, classes, row.codes, **settings),
    }


def var(row: Row, paths: dict[str, str]) -> Works:
    """VAR (arXiv:2404.02905)."""
    import torch
    import torch.nn.functional as F

    models = _from(paths["var"], "models")
    tokenizer = models.VQVAE(vocab_size=row.codebook, ch=32, v_patch_nums=row.maps)
    tokenizer.fhat_to_img = lambda f: f  # nothing is decoded
    sizes = {"depth": row.depth, "embed_dim": row.width, "num_heads": row.width // 64}
    model = models.VAR(tokenizer, **sizes, patch_nums=row.maps, attn_l2_norm=True)
    classes = torch.arange(row.batch)
    if row.work == "train":
        model.train()
        seen = torch.randn(row.batch, row.codes - 1, 32)
        codes = torch.randint(row.codebook, (row.batch * row.codes,))
        return _steps(model, lambda: F.cross_entropy(model(classes, seen).flatten(0, 1), codes))
    model.eval()
    return _both(lambda: model.autoregressive_infer_cfg(row.batch, classes, cfg=2.0))


def open_muse(row: Row, paths: dict[str, str]) -> Works:
    """open-muse's MaskGIT with a caption's states beside it."""
    import torch

    muse = _from(paths["open_muse"], "muse")
    model = muse.MaskGitTransformer(
        vocab_size=row.codebook + 1,
        hidden_size=row.width,
        num_hidden_layers=row.depth,
        num_attention_heads=row.width // 64,
        intermediate_size=row.width * 8 // 3,
        max_position_embeddings=row.codes,
        add_cross_attention=True,
        encoder_hidden_size=row.width,
        codebook_size=row.codebook,
        num_vq_tokens=row.codes,
    ).eval()
    states = torch.randn(row.batch, row.prompt, row.width)
    drawn = torch.no_grad()(
        lambda: model.generate2(encoder_hidden_states=states, timesteps=row.steps, guidance_scale=2.0)
    )
    return _both(drawn)


def showo(row: Row, paths: dict[str, str]) -> Works:
    """Show-o (arXiv:2408.12528): a caption and a picture in one row."""
    if paths["packages"]:
        sys.path.insert(0, paths["packages"])
    import torch
    import torch.nn.functional as F

    # Its package imports all of its models, and packages for them, when it is imported: this one imports none.
    package = types.ModuleType("models")
    package.__path__ = [str(Path(paths["showo"]) / "models")]
    sys.modules["models"] = package
    kind = _from(paths["showo"], "models.modeling_showo").Showo
    mask_for = _from(paths["showo"], "training.prompting_utils").create_attention_mask_predict_next

    special = 10
    first = row.text + special
    vocabulary = first + row.codebook + 1
    sizes = {
        "model_type": "phi",
        "vocab_size": row.text,
        "hidden_size": row.width,
        "intermediate_size": 4 * row.width,
        "num_hidden_layers": row.depth,
        "num_attention_heads": row.width // 64,
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(sizes))
        model = kind(
            w_clip_vit=False,
            vocab_size=vocabulary,
            llm_vocab_size=row.text,
            llm_model_path=folder,
            codebook_size=row.codebook,
            num_vq_tokens=row.codes,
        )
    pad, begin, end = (row.text + number for number in range(3))
    text = torch.arange(row.prompt + 1).expand(row.batch, -1)  # with the mark of the task
    codes = torch.randint(row.codebook, (row.batch, row.codes)) + first

    def line(image: Any) -> Any:
        marks = [torch.full((row.batch, 1), mark) for mark in (begin, end)]
        return torch.cat([text, marks[0], image, marks[1]], 1)

    marks = {"pad_id": pad, "soi_id": begin, "eoi_id": end, "rm_pad_in_image": True}
    if row.work == "train":
        model.train()
        hidden = torch.rand(codes.shape) < 0.64  # the mean of the cosine schedule
        rows = line(codes.masked_fill(hidden, vocabulary - 1))
        targets = line(codes.masked_fill(~hidden, -100))[:, row.prompt + 1 :]
        targets[:, [0, -1]] = -100
        mask = mask_for(rows, **marks)

        def loss() -> Any:
            logits = model(rows, attention_mask=mask)[:, row.prompt + 1 :]
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)

        return _steps(model, loss)
    model.eval()
    numbers = {"num_vq_tokens": row.codes, "num_new_special_tokens": special, "llm_vocab_size": row.text}
    config = types.SimpleNamespace(
        model=types.SimpleNamespace(showo=types.SimpleNamespace(**numbers)),
        dataset=types.SimpleNamespace(preprocessing=types.SimpleNamespace(max_seq_length=row.prompt)),
    )
    empty = line(torch.full_like(codes, vocabulary - 1))
    mask = mask_for(torch.cat([empty, empty]), **marks)

    @torch.no_grad()
    def draw() -> None:
        model.t2i_generate(empty.clone(), empty.clone(), mask, timesteps=row.steps, guidance_scale=2.0, config=config)

    return _both(draw)


PEERS: dict[str, Callable[[Row, dict[str, str]], Works]] = {
    "llamagen": llamagen,
    "var": var,
    "open_muse": open_muse,
    "showo": showo,
}
