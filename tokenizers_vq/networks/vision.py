"""Vision models of transformers, frozen unless a run trains them: pictures -> features."""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..storage.hub import from_hub, why

TOWERS = {
    "clip": "CLIPVisionModel",
    "clip_vision_model": "CLIPVisionModel",
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
}
"""Model type of a configuration -> class of the vision part."""
LARGEST = 2**13
"""Pixels along a side."""
MODELS = frozenset({*TOWERS.values(), "JanusVisionModel"})
"""Classes that a description may name."""


class VisionTower(nn.Module):
    """(B, 3, H, W) in [-1, 1] -> (B, P, F) float32: the last states of all positions, class token included, each
    normalised to mean 0 and deviation 1 (a few channels of these models are many times larger than the rest), unless
    the description says otherwise."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: nn.Module, description: dict[str, Any]) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.description = description
        """Plain data that builds it again: class, configuration, size, mean and deviation of the pixels, and, where its
        states come as they are, `"plain": true`. Beside it the width of the vectors of the model's text tower, None
        without one."""
        self.size = tuple(description["size"])
        self.register_buffer("mean", torch.tensor(description["mean"])[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(description["deviation"])[:, None, None], persistent=False)
        with torch.no_grad():
            _, self.length, self.width = self(torch.zeros(1, 3, *self.size)).shape

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.float()
        if tuple(images.shape[2:]) != self.size:
            pixels = F.interpolate(pixels, self.size, mode="bilinear", antialias=True, align_corners=False)
        pixels = ((pixels.clamp(-1, 1) + 1) / 2 - self.mean) / self.deviation
        states: Tensor = self.model(pixel_values=pixels).last_hidden_state.float()
        return states if self.description.get("plain") is True else F.layer_norm(states, states.shape[-1:])

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (rows, columns): the last positions; those before are a class token and the like."""
        patch: Any = getattr(self.model.config, "patch_size", None)
        high, wide = patch if isinstance(patch, list | tuple) else (patch, patch)
        if not high or not wide or (self.size[0] // high) * (self.size[1] // wide) > self.length:
            return 1, self.length
        return self.size[0] // high, self.size[1] // wide


def build_vision(description: dict[str, Any], option: str) -> VisionTower:
    """The model that a description tells of, with fresh weights.

    Args:
        description: `VisionTower.description`, of a file.
        option: where it stands, for errors.

    Raises:
        UserError: it describes no vision model.
    """
    import transformers  # heavy, and only needed here
    from huggingface_hub.errors import StrictDataclassError

    try:
        if description["class"] not in MODELS:
            raise ValueError(f"{description['class']!r} is none of {', '.join(sorted(MODELS))}")
        size, colours = description["size"], (*description["mean"], *description["deviation"])
        if not (len(size) == 2 and all(type(side) is int and 0 < side <= LARGEST for side in size)):
            raise ValueError(f"size {size} is no height and width")
        if not (len(colours) == 6 and all(type(value) in (int, float) for value in colours)):
            raise ValueError("mean and deviation are no three numbers each")
        kind = getattr(transformers, description["class"])
        return VisionTower(kind(kind.config_class.from_dict(description["config"])), description)
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError, StrictDataclassError) as error:
        raise UserError(
            f"{option} does not describe a vision model ({type(error).__name__}: {error}): restore config.json, or "
            "leave the key out"
        ) from None


def load_vision(source: str, option: str = "tokenizer.vision") -> VisionTower:
    """The vision part of a CLIP, SigLIP or DINOv2 model in a folder or on the hub; of a config.json alone, with fresh
    weights.

    Args:
        source: where it is.
        option: what named it, for errors.

    Raises:
        UserError: it cannot be read, or is another kind of model.
    """
    import transformers  # heavy, and only needed here

    transformers.utils.logging.disable_progress_bar()  # it comes in between what a command says
    with from_hub(
        lambda error: (
            f"{option} {source} is neither a folder with a CLIP, SigLIP or DINOv2 model (config.json, "
            "model.safetensors, preprocessor_config.json) nor one of the hub that can be fetched from here "
            f"({why(error)}): fetch it on a machine with a network and give its folder"
        ),
        quiet=("huggingface_hub", "transformers"),  # which has a table of tensors for what is said below
    ):
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        if config.model_type not in TOWERS:
            raise UserError(f"{option} {source} is a model of type {config.model_type!r}: give one of {_types()}")
        kind = getattr(transformers, TOWERS[config.model_type])
        if source.endswith(".json"):
            model = kind(getattr(config, "vision_config", config))
            pixels: dict[str, Any] = {"size": {"height": model.config.image_size, "width": model.config.image_size}}
            pixels |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_center_crop": False}
        else:
            how: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
            model, loaded = kind.from_pretrained(source, dtype=torch.float32, use_safetensors=True, **how)
            _check_loaded(f"{option} {source}", model.config.hidden_size, loaded)
            pixels, _ = transformers.BaseImageProcessor.get_image_processor_dict(source)
    return VisionTower(
        model,
        {
            "class": TOWERS[config.model_type],
            "config": json.loads(model.config.to_json_string(use_diff=False)),
            "size": _size(pixels, f"{option} {source}"),
            "mean": list(pixels.get("image_mean") or [0.0] * 3),
            "deviation": list(pixels.get("image_std") or [1.0] * 3),
            "text_width": _text_width(config),
        },
    )


def _check_loaded(what: str, width: int, loaded: dict[str, Any]) -> None:
    """Raises UserError for weights that are not those of a configuration: transformers would go on with random ones."""
    wrong = sorted((name, *map(tuple, shapes)) for name, *shapes in loaded["mismatched_keys"])
    for name, given, expected in wrong:
        if "norm" in name and expected == (width,):
            raise UserError(
                f"{what} is {given[0]} wide by its weights and {width} by its config.json: fetch both again"
            )
    told = [f"{name} {given} instead of {expected}" for name, given, expected in wrong]
    told += [f"no {name}" for name in sorted(loaded["missing_keys"])]
    if told:
        raise UserError(
            f"{what} has weights that are not those of its config.json ({told[0]}; {len(told)} in all): "
            "fetch both again"
        )


def _types() -> str:
    return ", ".join(TOWERS)


def _text_width(config: Any) -> int | None:
    if config.model_type == "clip":
        return config.projection_dim
    if config.model_type == "siglip":
        return config.text_config.projection_size or config.text_config.hidden_size
    return None


def _size(pixels: dict[str, Any], source: str) -> list[int]:
    """[height, width] of the pictures that a model's processor makes."""
    size = pixels.get("crop_size") if pixels.get("do_center_crop", True) else None
    size = size or pixels.get("size") or {}
    if isinstance(size, int):
        size = {"shortest_edge": size}
    side = size.get("shortest_edge", 0)
    height, width = size.get("height", side), size.get("width", side)
    if not height or not width:
        raise UserError(f"{source}: its preprocessor_config.json names no size of pictures")
    return [height, width]
