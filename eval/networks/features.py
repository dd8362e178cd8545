"""Networks that turn pictures (and captions) into vectors. Every number carries the label of its network.

embedded                   the small dual encoder of this repository, offline; knows only what encoder/README.md says
efficientnet_lite0         EfficientNet-Lite0, learned on ImageNet, from two packages: real pictures' features, offline
inception                  the network of the published FID, weights by download or `--feature_weights FILE`
clip:<hub id or folder>    a CLIP model of transformers
dinov2:<hub id or folder>  a DINOv2 model of transformers; dinov2 alone is DINOv2_DEFAULT
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_vq.errors import UserError
from tokenizers_vq.images import to_float
from tokenizers_vq.networks import efficientnet
from tokenizers_vq.storage.foreign import fetch, read_tensors
from tokenizers_vq.storage.hub import from_hub

from ..feature_network import FeatureNetwork, ImageTextNetwork
from .encoder.model import load_encoder

INCEPTION_DIM = 2048
DINOV2_DEFAULT = "facebook/dinov2-large"
"""The ViT-L/14 of the published FD-DINOv2 (Stein et al. 2023, arXiv:2306.04675)."""
DINOV2_SIZE = 224
CHOICES = "embedded, efficientnet_lite0, inception, clip:<hub id or folder>, dinov2, or dinov2:<hub id or folder>"


class EmbeddedNetwork(ImageTextNetwork):
    """The dual encoder in `encoder/`. Its feature is the pooled vector before the projection into the common space."""

    name = "embedded"
    label = "unitok-embedded v1 features, not Inception"
    pair_label = "unitok-embedded v1, not OpenAI CLIP"

    def __init__(self, device: torch.device) -> None:
        self.encoder = load_encoder()
        super().__init__(self.encoder, device)
        self.dim = self.encoder.config.image_width
        self.image_size = self.encoder.config.image_size
        self.resize = f"bilinear, antialiased, to {self.image_size}x{self.image_size}"

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        return self.encoder.image(self.encoder.prepare(images)).cpu()

    @torch.inference_mode()
    def image_embeddings(self, images: Tensor) -> Tensor:
        return self.encoder.image_embeddings(self.encoder.image(self.encoder.prepare(images))).cpu()

    @torch.inference_mode()
    def text_embeddings(self, captions: list[str]) -> Tensor:
        return self.encoder.text_embeddings(captions).cpu()


class EfficientNetNetwork(FeatureNetwork):
    """EfficientNet-Lite0's pooled features. Pictures become 224x224, bicubic, without a crop."""

    name = efficientnet.NAME
    label = "EfficientNet-Lite0 pool features, not Inception"
    dim = efficientnet.WIDTH
    image_size = efficientnet.SIDE
    resize = f"bicubic, antialiased, to {image_size}x{image_size}"

    def __init__(self, device: torch.device) -> None:
        super().__init__(efficientnet.EfficientNetLite0(), device)

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        pixels = resized(images.to(self.device), self.image_size)
        return cast("Tensor", self.module(to_float(pixels))).float().cpu()


class InceptionNetwork(FeatureNetwork):
    """torch-fidelity's port of the TensorFlow Inception that the published FID uses; 2048-dimensional pool features."""

    name = "inception"
    label = "Inception pool features, weights of torch-fidelity"
    dim = INCEPTION_DIM
    image_size = 299
    resize = "bilinear as in TensorFlow 1, to 299x299"

    def __init__(self, device: torch.device, weights: Path | None = None) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        # torch-fidelity itself unpickles the file with weights_only=False; it is given a copy of what was read safely.
        copy = io.BytesIO()
        torch.save(inception_weights(weights), copy)
        copy.seek(0)
        try:
            network = FeatureExtractorInceptionV3(
                "inception", [str(INCEPTION_DIM), "logits_unbiased"], feature_extractor_weights_path=copy
            )
        except RuntimeError as error:
            raise UserError(
                f"--feature_weights {weights} does not fit Inception: give torch-fidelity's {inception_file()}"
            ) from error
        super().__init__(network, device)

    def features(self, images: Tensor) -> Tensor:
        return self.features_and_logits(images)[0]

    @torch.inference_mode()
    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        features, logits = self.module(images.to(self.device))
        return features.cpu(), logits.cpu()


def inception_file() -> str:
    """Published file name of torch-fidelity's Inception weights."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return URL_INCEPTION_V3.rsplit("/", 1)[1]


def inception_weights(path: Path | None) -> dict[str, Tensor]:
    """State dict from a local file, else from torch's cache, else by download. Nothing in the file is executed."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    name = inception_file()
    if path is None:
        try:
            path = fetch(URL_INCEPTION_V3)
        except (OSError, RuntimeError) as error:  # no network is an OSError (URLError)
            raise UserError(
                f"features 'inception' need the weights {name}, which are not in {torch.hub.get_dir()}"
                f"/checkpoints and could not be downloaded ({error}): fetch that file from torch-fidelity's releases "
                "on a machine with a network and pass --feature_weights FILE, or use --features embedded"
            ) from error
    if not path.is_file():
        raise UserError(f"--feature_weights {path} is not a file: give torch-fidelity's {name}")
    try:
        state = read_tensors(path)
    except UserError as error:
        raise UserError(f"{error}; --feature_weights takes torch-fidelity's {name}") from None
    return state


class ClipNetwork(ImageTextNetwork):
    """A CLIP model of transformers with its own preprocessing; its feature is the projected image embedding."""

    def __init__(self, source: str, device: torch.device) -> None:
        from transformers import CLIPModel, CLIPProcessor

        with from_hub(
            lambda error: (
                f"features 'clip:{source}': it is neither a folder with a CLIP model (config.json, "
                "model.safetensors, preprocessor_config.json, tokenizer files) nor a model of the hub that can be "
                f"fetched from here ({type(error).__name__}): fetch it on a machine with a network and give "
                "--features clip:FOLDER"
            )
        ):
            model = CLIPModel.from_pretrained(source)
            self.processor = CLIPProcessor.from_pretrained(source)
        super().__init__(model, device)
        self.name = f"clip:{source}"
        self.label = f"features of CLIP {source}, not Inception"
        self.pair_label = f"CLIP {source}"
        self.dim = model.config.projection_dim
        self.image_size = model.config.vision_config.image_size
        self.longest = model.config.text_config.max_position_embeddings
        self.resize = f"its CLIPProcessor's, to {self.image_size}x{self.image_size}"

    def features(self, images: Tensor) -> Tensor:
        return self._image_features(images).float().cpu()

    def image_embeddings(self, images: Tensor) -> Tensor:
        return F.normalize(self.features(images), dim=-1)

    @torch.inference_mode()
    def text_embeddings(self, captions: list[str]) -> Tensor:
        tokens = self.processor(
            text=captions, return_tensors="pt", padding=True, truncation=True, max_length=self.longest
        )
        tokens = {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}
        return F.normalize(_pooled(cast("Any", self.module).get_text_features(**tokens)).float(), dim=-1).cpu()

    @torch.inference_mode()
    def _image_features(self, images: Tensor) -> Tensor:
        pixels = self.processor(images=list(images.cpu()), return_tensors="pt")["pixel_values"]
        return _pooled(cast("Any", self.module).get_image_features(pixel_values=pixels.to(self.device)))


class DinoNetwork(FeatureNetwork):
    """A DINOv2 model of transformers; its feature is the normalised class token. Pictures become 224x224 as FD-DINOv2
    has them, whatever the model's own preprocessing says: bicubic, without a crop."""

    def __init__(self, source: str, device: torch.device) -> None:
        from transformers import Dinov2Model

        with from_hub(
            lambda error: (
                f"features 'dinov2:{source}': it is neither a folder with a DINOv2 model (config.json, "
                f"model.safetensors) nor a model of the hub that can be fetched from here ({type(error).__name__}): "
                "fetch it on a machine with a network and give --features dinov2:FOLDER"
            )
        ):
            model = Dinov2Model.from_pretrained(source)
        super().__init__(model, device)
        self.name = f"dinov2:{source}"
        self.label = f"class token of DINOv2 {source}, not Inception"
        self.dim = model.config.hidden_size
        self.image_size = DINOV2_SIZE
        self.resize = f"bicubic, antialiased, to {DINOV2_SIZE}x{DINOV2_SIZE}"
        statistics = (efficientnet.MEAN, efficientnet.STD)
        self.mean, self.std = (torch.tensor(values, device=device).view(3, 1, 1) for values in statistics)

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        pixels = (resized(images.to(self.device), DINOV2_SIZE) / 255 - self.mean) / self.std
        return cast("Any", self.module)(pixel_values=pixels).pooler_output.float().cpu()


def resized(images: Tensor, side: int) -> Tensor:
    """uint8 (B, 3, H, W) -> float (B, 3, side, side) in 0 to 255, bicubic, antialiased; pictures of that size stay."""
    x = images.float()
    if x.shape[-2:] != (side, side):
        x = F.interpolate(x, (side, side), mode="bicubic", antialias=True, align_corners=False)
    return x.clamp(0, 255)


def _pooled(output: Any) -> Tensor:
    """transformers 5 returns an output object whose pooler_output is what transformers 4 returned."""
    return output if isinstance(output, Tensor) else output.pooler_output


def load_features(
    name: str = "embedded", device: torch.device | str = "cpu", weights: Path | None = None
) -> FeatureNetwork:
    """The network of that name.

    Args:
        name: see the top of this module.
        device: where it computes.
        weights: local file with the weights, for `inception` alone.

    Raises:
        UserError: an unknown name, or weights that cannot be had.
    """
    device = torch.device(device)
    if weights is not None and name != "inception":
        raise UserError(f"--feature_weights is for --features inception, not for {name!r}: leave it out")
    if name == "embedded":
        return EmbeddedNetwork(device)
    if name == efficientnet.NAME:
        return EfficientNetNetwork(device)
    if name == "inception":
        return InceptionNetwork(device, weights)
    if name.startswith("clip:") and name != "clip:":
        return ClipNetwork(name.removeprefix("clip:"), device)
    if name == "dinov2":
        return DinoNetwork(DINOV2_DEFAULT, device)
    if name.startswith("dinov2:") and name != "dinov2:":
        return DinoNetwork(name.removeprefix("dinov2:"), device)
    raise UserError(f"--features is {name!r}: choose {CHOICES}")


def load_image_text(name: str = "embedded", device: torch.device | str = "cpu") -> ImageTextNetwork:
    """Like `load_features`, for networks that read captions too."""
    if name in ("inception", efficientnet.NAME) or name.startswith("dinov2"):
        raise UserError(f"--clip is {name!r}, which reads no captions: choose embedded or clip:<hub id or folder>")
    try:
        return cast("ImageTextNetwork", load_features(name, device))
    except UserError as error:
        message = str(error).replace("--features", "--clip").replace(CHOICES, "embedded or clip:<hub id or folder>")
        raise UserError(message) from error
