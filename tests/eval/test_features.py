"""Feature networks: independence of the batch, direction of FID, local weights, what is said when there are none."""

from __future__ import annotations

import json
import pickle
import urllib.error
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_vq.errors import UserError
from unitok.data.shapes.dataset import ShapesDataset
from unitok.eval.feature_network import ImageTextNetwork, check_features, extract
from unitok.eval.metrics.clipscore import clip_score
from unitok.eval.metrics.frechet import frechet_distance
from unitok.eval.metrics.kid import kernel_distance
from unitok.eval.networks.features import EmbeddedNetwork, inception_file, load_features, load_image_text


@pytest.fixture(scope="module")
def network() -> ImageTextNetwork:
    return load_image_text("embedded")


def scenes(count: int, seed: int = 0) -> tuple[Tensor, list[str]]:
    dataset = ShapesDataset(split="val", seed=seed, length=1024)
    records = [dataset[index] for index in range(count)]
    return torch.stack([r.image for r in records if r.image is not None]), [r.caption or "" for r in records]


def test_features_do_not_depend_on_batch_or_order(network: EmbeddedNetwork) -> None:
    images, captions = scenes(24)
    whole = extract(network, [images])
    assert whole.shape == (24, network.dim)
    torch.testing.assert_close(extract(network, images.split(5)), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(extract(network, [images.flip(0)]).flip(0), whole, rtol=1e-4, atol=1e-5)
    alone = torch.cat([network.text_embeddings([caption]) for caption in captions])
    torch.testing.assert_close(network.text_embeddings(captions), alone, rtol=1e-4, atol=1e-5)


def test_pictures_of_any_size_are_taken(network: EmbeddedNetwork) -> None:
    images, _ = scenes(8)
    large = F.interpolate(images.float(), scale_factor=4, mode="bilinear").round().byte()
    near = F.cosine_similarity(network.image_embeddings(images), network.image_embeddings(large))
    assert near.min() > 0.9, "the same picture four times as large"
    assert network.features(images[:, :, :20, :]).shape == (8, network.dim)


def blur(images: Tensor, times: int) -> Tensor:
    x = images.float()
    for _ in range(times):
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return x.round().byte()


def noise(images: Tensor, sigma: float) -> Tensor:
    drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + sigma * drawn).round().clamp(0, 255).byte()


def test_damage_raises_fid_and_kid_and_more_damage_raises_it_more(network: EmbeddedNetwork) -> None:
    (real, _), (other, _) = scenes(240), scenes(240, seed=1)
    reference = extract(network, real.split(60))

    def distances(images: Tensor) -> tuple[float, float]:
        vectors = extract(network, images.split(60))
        return frechet_distance(reference, vectors), kernel_distance(reference, vectors, subsets=10).mean

    clean = distances(other)
    for damage in ([blur(other, 1), blur(other, 4)], [noise(other, 20), noise(other, 60)]):
        weak, strong = (distances(images) for images in damage)
        assert clean[0] < weak[0] < strong[0]
        assert clean[1] < weak[1] < strong[1]
    dropped = other[:1].expand(240, -1, -1, -1)
    assert distances(dropped)[0] > 3 * clean[0], "one picture over and over"


def test_names() -> None:
    with pytest.raises(
        UserError, match=r"--features is 'resnet': choose embedded, efficientnet_lite0, inception, clip:"
    ):
        load_features("resnet")
    with pytest.raises(UserError, match=r"--clip is 'resnet': choose"):
        load_image_text("resnet")
    with pytest.raises(UserError, match="reads no captions"):
        load_image_text("inception")
    with pytest.raises(UserError, match="--feature_weights is for --features inception, not for 'embedded'"):
        load_features("embedded", weights=Path("x.pth"))


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UserError, match="2 of 3 pictures have features that are not finite"):
        check_features(torch.tensor([[1.0], [torch.nan], [torch.inf]]), "test")
    with pytest.raises(UserError, match="no pictures to measure"):
        extract(load_features(), [])


# --- Inception --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inception_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with random weights in the published layout."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Blank(FeatureExtractorInceptionV3):  # type: ignore[misc, unused-ignore]
        def load_state_dict(self, *args: object, **kwargs: object) -> None:
            pass

    folder = tmp_path_factory.mktemp("inception")
    torch.save({}, folder / "empty.pth")
    torch.manual_seed(0)
    network = Blank("x", ["2048"], feature_extractor_weights_path=folder / "empty.pth")
    torch.save(network.state_dict(), folder / "inception.pth")
    return folder / "inception.pth"


def test_inception_from_a_local_file(inception_path: Path) -> None:
    network = load_features("inception", weights=inception_path)
    images, _ = scenes(2)
    vectors = network.features(images)
    assert vectors.shape == (2, 2048) and torch.isfinite(vectors).all()
    assert "Inception" in network.label and len(network.hash) == 64
    same, logits = network.features_and_logits(images)
    assert torch.equal(same, vectors) and logits is not None and logits.shape == (2, 1008)


def test_inception_without_network_says_which_file_and_option(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(UserError) as caught:
        load_features("inception")
    message = str(caught.value)
    assert inception_file() in message and "--feature_weights FILE" in message and "\n" not in message
    assert "http" not in message


def test_inception_weights_are_never_unpickled_as_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "sprung",))  # type: ignore[return-value]

    (tmp_path / "trap.pth").write_bytes(pickle.dumps(Trap()))
    torch.save({"trap": Trap()}, tmp_path / "trap2.pth")
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "foreign.pth")
    for name in ("trap.pth", "trap2.pth"):
        with pytest.raises(UserError, match="--feature_weights takes torch-fidelity's"):
            load_features("inception", weights=tmp_path / name)
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(UserError, match="does not fit Inception"):
        load_features("inception", weights=tmp_path / "foreign.pth")
    with pytest.raises(UserError, match="is not a file"):
        load_features("inception", weights=tmp_path / "none.pth")


# --- CLIP -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP with random weights, as a user would have it on disk."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz,"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**text, "image_size": 32, "patch_size": 8}
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    text_config = {**text, "vocab_size": len(words), "max_position_embeddings": 60, **ends}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text_config, vision_config=vision, projection_dim=16))
    model.save_pretrained(folder)
    size = {"shortest_edge": 32}
    processor = CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=processor, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def test_clip_score_equals_torchmetrics(clip_folder: Path) -> None:
    from torchmetrics.functional.multimodal import clip_score as reference
    from transformers import CLIPModel, CLIPProcessor

    class Pooled(CLIPModel):  # type: ignore[misc, unused-ignore]
        """torchmetrics 1.9 expects tensors, as transformers 4 returned them."""

        def get_image_features(self, *args: object, **kwargs: object) -> Tensor:
            return super().get_image_features(*args, **kwargs).pooler_output

        def get_text_features(self, *args: object, **kwargs: object) -> Tensor:
            return super().get_text_features(*args, **kwargs).pooler_output

    images, captions = scenes(18)
    images, captions = images[::3], captions[::3]  # of one object: torchmetrics cuts longer captions in another way
    captions[0] = "red"  # of another length, so that padding matters
    network = load_image_text(f"clip:{clip_folder}")
    loaded = (Pooled.from_pretrained(clip_folder).eval(), CLIPProcessor.from_pretrained(clip_folder))
    expected = reference(list(images), captions, model_name_or_path=lambda: loaded)
    ours = clip_score(network, images, captions, batch_size=4)
    assert ours.score == pytest.approx(max(0.0, float(expected)), abs=1e-4)
    one = reference(images[1], captions[1], model_name_or_path=lambda: loaded)
    assert float(ours.per_picture[1].clamp(min=0)) == pytest.approx(float(one), abs=1e-4)


def test_clip_features_and_long_captions(clip_folder: Path) -> None:
    network = load_image_text(f"clip:{clip_folder}")
    images, _ = scenes(3)
    assert network.features(images).shape == (3, 16) and str(clip_folder) in network.label
    assert network.text_embeddings(["circle " * 50, "a"]).shape == (2, 16)


def test_clip_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"features 'clip:.*neither a folder with a CLIP model.*--features clip:FOLDER"):
        load_features(f"clip:{tmp_path}")


def test_clip_score_refuses_what_does_not_pair(network: EmbeddedNetwork) -> None:
    images, captions = scenes(3)
    with pytest.raises(UserError, match="3 pictures and 2 captions"):
        clip_score(network, images, captions[:2])
    with pytest.raises(UserError, match="no pictures to score"):
        clip_score(network, images[:0], [])


# --- DINOv2 -----------------------------------------------------------------------------------------------------------


def test_dinov2_from_a_folder(tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=2
    )
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    network = load_features(f"dinov2:{tmp_path}")
    images = F.interpolate(scenes(3)[0].float(), size=(224, 224)).byte()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (images / 255 - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        expected = model(pixel_values=pixels).last_hidden_state[:, 0]  # the class token behind the last norm
    torch.testing.assert_close(network.features(images), expected, rtol=1e-4, atol=1e-5)
    assert network.dim == 32 and len(network.hash) == 64 and "not Inception" in network.label
    assert network.features(scenes(2)[0]).shape == (2, 32), "pictures of any size"
    with pytest.raises(UserError, match=r"features 'dinov2:.*none'.*--features dinov2:FOLDER"):
        load_features(f"dinov2:{tmp_path / 'none'}")
    with pytest.raises(UserError, match="--clip is 'dinov2', which reads no captions"):
        load_image_text("dinov2")
