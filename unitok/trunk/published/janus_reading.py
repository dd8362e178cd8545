"""How Janus reads pictures: SigLIP and two layers behind it, which its authors call the aligner.

A picture stands in a user's turn, between the marks of a picture; every position sees those before it alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from tokenizers_vq.errors import UserError

from ...reader.config import ReaderConfig
from .family import Settings, Weights, layers

VISION, ALIGNER = "model.vision_model.", "model.aligner."
TABLE = f"{VISION}embeddings.position_embedding.weight"
HEAD = 64
"""Size of a head of SigLIP, unless a setting says how many there are."""
POOL = "vision_model.vision_tower.attn_pool."
"""What the authors' files hold beside; it makes one vector of a picture, which Janus does not use."""
RENAMED = (
    (r"^vision_model\.vision_tower\.pos_embed$", TABLE),
    (r"^vision_model\.vision_tower\.patch_embed\.proj\.", f"{VISION}embeddings.patch_embedding."),
    (r"^vision_model\.vision_tower\.norm\.", f"{VISION}post_layernorm."),
    (r"^vision_model\.vision_tower\.blocks\.", f"{VISION}encoder.layers."),
    (rf"^({re.escape(VISION)}encoder\.layers\.\d+)\.attn\.proj\.", r"\1.self_attn.projection_layer."),
    (rf"^({re.escape(VISION)}encoder\.layers\.\d+)\.attn\.", r"\1.self_attn."),
    (rf"^({re.escape(VISION)}encoder\.layers\.\d+)\.norm([12])\.", r"\1.layer_norm\2."),
    (r"^aligner\.layers\.0\.", f"{ALIGNER}fc1."),
    (r"^aligner\.layers\.2\.", f"{ALIGNER}hidden_layers.0."),
)
"""Names of the authors' files -> those of transformers."""
CONNECTOR = {"fc1": "enter", "hidden_layers.0": "leave"}
"""The aligner's layers -> those of our connector."""


class Reading(NamedTuple):
    """What a model reads pictures by."""

    config: ReaderConfig
    weights: Mapping[str, Tensor]
    """By our names, without the place in the model."""


def separated(weights: Weights) -> Weights:
    """The authors' tensors in the shapes of transformers: queries, keys and values apart, a table without a batch."""
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name.startswith(VISION) and ".qkv." in name:
            found |= {
                name.replace("qkv", f"{kind}_proj"): part for kind, part in zip("qkv", tensor.chunk(3), strict=True)
            }
        elif not name.startswith(POOL):
            found[name] = tensor[0] if name == TABLE and tensor.ndim == 3 else tensor
    return found


def reading(weights: Weights, settings: Settings, where: str) -> Reading | None:
    """The encoder and the connector of a file; None where it holds none. Sizes are read off the tensors.

    Raises:
        UserError: some of the tensors are there and others are missing.
    """
    theirs = {name: tensor for name, tensor in weights.items() if name.startswith((VISION, ALIGNER))}
    if not theirs:
        return None
    try:
        patches = theirs[f"{VISION}embeddings.patch_embedding.weight"]
        width, patch = patches.shape[0], patches.shape[2]
        side = round(len(theirs[TABLE]) ** 0.5) * patch
        hidden = len(theirs[f"{VISION}encoder.layers.0.mlp.fc1.weight"])
    except (KeyError, IndexError) as error:
        raise UserError(f"{where} lacks a part of how it reads pictures ({error}): give the whole file") from None
    given = settings.get("vision_config")
    given = given if isinstance(given, Mapping) else {}
    config: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": layers(
            {name: tuple(one.shape) for name, one in theirs.items()}, f"{VISION}encoder.layers."
        ),
        "num_attention_heads": given.get("num_attention_heads", max(1, width // HEAD)),
        "image_size": side,
        "patch_size": patch,
        "mlp_ratio": hidden / width,
        "layer_norm_eps": given.get("layer_norm_eps", 1e-6),
        "use_qk_norm": any(name.endswith("q_norm.weight") for name in theirs),
        "attention_bias": any(name.endswith("q_proj.bias") for name in theirs),
    }
    description = {"class": "JanusVisionModel", "config": config, "size": [side, side], "plain": True}
    description |= {"mean": [0.5] * 3, "deviation": [0.5] * 3}
    ours: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        if name.startswith(VISION):
            ours[f"encoder.tower.model.{name.removeprefix(VISION)}"] = tensor
        else:
            layer, _, kind = name.removeprefix(ALIGNER).rpartition(".")
            ours[f"connector.{CONNECTOR.get(layer, layer)}.{kind}"] = tensor
    return Reading(ReaderConfig(encoder="hf", connector="mlp", vision=description), ours)
