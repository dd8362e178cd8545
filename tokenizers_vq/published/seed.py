"""The tokenizer of SEED-2 (arXiv 2310.01218), 32 codes of a picture; code Apache-2.0.

`seed_quantizer.pt` comes without the frozen vision transformer, which its authors take from BLIP-2's file
`eva_vit_g.pth`, and with tensors of its training, which they pass over. The branch that gives back what the queries say
(`pos_embed`, `blocks.`) serves training too, and is left out.
"""

from __future__ import annotations

import re

from torch import Tensor

from ..config import TokenizerConfig
from ..families.seed_config import SeedConfig
from ..quantizers.config import VQ
from .family import Family, Settings, Shape, Source, codebook_source

HEADS = 12
"""Of the queries and of the blocks behind the codes."""
ATTENTION = {"query": 0, "key": 1, "value": 2}
"""Our layer -> its place in the joint one of a published vision block."""
NAMES = (
    (r"^vision\.patches\.", "visual_encoder.patch_embed.proj."),
    (r"^vision\.class_token$", "visual_encoder.cls_token"),
    (r"^vision\.places$", "visual_encoder.pos_embed"),
    (r"^vision\.norm\.", "ln_vision."),
    (r"^vision\.blocks\.", "visual_encoder.blocks."),
    (r"^reader\.queries$", "query_tokens"),
    (r"^reader\.norm\.", "Qformer.bert.embeddings.LayerNorm."),
    (r"^reader\.layers\.", "Qformer.bert.encoder.layer."),
    (r"^to_code\.", "encode_task_layer."),
    (r"^decoder\.from_code\.", "decode_task_layer."),
    (r"^decoder\.places$", "pos_embed_image"),
    (r"^decoder\.blocks\.", "blocks_image."),
    (r"^decoder\.narrow\.", "image_down."),
    (r"^decoder\.out\.", "distill_image_proj."),
    # inside a vision block
    (r"(blocks(?:_image)?\.\d+)\.attention\.out\.", r"\1.attn.proj."),
    (r"(blocks(?:_image)?\.\d+)\.up\.", r"\1.mlp.fc1."),
    (r"(blocks(?:_image)?\.\d+)\.down\.", r"\1.mlp.fc2."),
    # inside a layer of the queries
    (r"\.among\.out\.", ".attention.output.dense."),
    (r"\.among_norm\.", ".attention.output.LayerNorm."),
    (r"\.among\.", ".attention.self."),
    (r"\.across\.out\.", ".crossattention.output.dense."),
    (r"\.across_norm\.", ".crossattention.output.LayerNorm."),
    (r"\.across\.", ".crossattention.self."),
    (r"(layer\.\d+)\.up\.", r"\1.intermediate_query.dense."),
    (r"(layer\.\d+)\.down\.", r"\1.output_query.dense."),
    (r"(layer\.\d+)\.norm\.", r"\1.output_query.LayerNorm."),
)
"""Patterns of our names -> the published ones, applied in turn."""


def _configure(settings: Settings) -> TokenizerConfig:
    vit, queries = settings["vit"], settings["qformer"]
    return SeedConfig(
        image_size=settings["img_size"],
        quantizer=VQ(codebook_size=settings["n_embed"], dim=settings["codebook_embed_dim"]),
        tokens=settings["num_query_token"],
        patch=vit["patch_size"],
        vision_width=vit["embed_dim"],
        vision_depth=vit["depth"],
        vision_heads=vit["num_heads"],
        vision_inner=int(vit["embed_dim"] * vit["mlp_ratio"]),
        width=queries["hidden_size"],
        depth=queries["num_hidden_layers"],
        heads=HEADS,
        inner=queries["intermediate_size"],
        look_every=settings["cross_attention_freq"],
        decoder_depth=settings["decode_depth"],
        embedding=settings["image_features_dim"],
    )


def _source(name: str, shape: Shape, config: TokenizerConfig) -> Source:
    assert isinstance(config, SeedConfig)
    book = codebook_source(name, shape)
    if book is not None:
        return book
    published = name
    for ours, theirs in NAMES:
        published = re.sub(ours, theirs, published)
    block, joint, layer = published.partition(".attention.")
    part, _, kind = layer.partition(".")
    if not joint or part not in ATTENTION:
        return Source(published, shape)
    if name.startswith("vision.") and kind == "bias":  # keys have none
        return Source(f"{block}.attn.{part[0]}_bias", shape)
    place, size = ATTENTION[part], shape[0]

    def own(tensor: Tensor) -> Tensor:
        return tensor[place * size : (place + 1) * size].clone()

    return Source(f"{block}.attn.qkv.{kind}", (3 * size, *shape[1:]), own)


FAMILY = Family(
    released=(
        {
            "img_size": 224,
            "num_query_token": 32,
            "cross_attention_freq": 2,
            "codebook_embed_dim": 32,
            "n_embed": 8192,
            "decode_depth": 4,
            "image_features_dim": 1024,
            "vit": {"patch_size": 14, "embed_dim": 1408, "depth": 39, "num_heads": 16, "mlp_ratio": 4.3637},
            "qformer": {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072},
        },
    ),
    configure=_configure,
    source=_source,
    ignored=("pos_embed", "blocks.", "Qformer.bert.embeddings.position_ids"),
    surplus=True,
    elsewhere={"eva_vit": ("visual_encoder.", "eva_vit_g.pth")},
    fixed={
        "vit_model": "eva_clip_g",
        "blocks_for_image": True,
        "use_qformer_image": False,
        "use_recon_s_for_image": False,
        "num_attention_heads": HEADS,
    },
    unused=frozenset(
        ("recon_s", "vit_precision", "freeze_vit", "drop_path_rate", "use_grad_checkpoint", "max_txt_len")
    ),
    files=("seed_quantizer.pt",),
)
