"""The query tokenizer: who depends on whom, prefixes, frozen vision models, folders, refusals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_vq import build_tokenizer, load_tokenizer
from tokenizers_vq.config import config_from_dict, config_to_dict
from tokenizers_vq.errors import UserError
from tokenizers_vq.families.query import QueryVQTokenizer
from tokenizers_vq.families.query_config import QueryVQConfig
from tokenizers_vq.layout import Layout
from tokenizers_vq.losses.config import LossConfig
from tokenizers_vq.losses.reconstruction import TokenizerLoss
from tokenizers_vq.quantizers.config import FSQ, QUANTIZERS, VQ, MultiVQ

DEBUG = QueryVQConfig(
    image_size=32,
    stem=4,
    channels=16,
    channel_multipliers=(1,),
    blocks=1,
    attention="none",
    latent_dim=16,
    quantizer=FSQ(levels=(8, 5, 5, 5)),
    tokens=8,
    width=32,
    depth=2,
    heads=2,
)

ONE_CODE = [kind for kind, quantizer in QUANTIZERS.items() if quantizer().grids == 1]


def tiny(**changes: Any) -> QueryVQTokenizer:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(dataclasses.replace(DEBUG, **changes))
    assert isinstance(tokenizer, QueryVQTokenizer)
    return tokenizer


def pictures(count: int = 4, side: int = 32) -> Tensor:
    """Smooth random pictures (N, 3, side, side) in [-1, 1]."""
    small = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return F.interpolate(small, (side, side), mode="bilinear")


# --- the contract ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ONE_CODE)
def test_codes_give_the_reconstruction_whoever_is_beside(kind: str) -> None:
    tokenizer, images = tiny(quantizer=QUANTIZERS[kind]()), pictures()
    before = tokenizer.fingerprint()
    assert torch.equal(tokenizer.train().encode(images), tokenizer.eval().encode(images))
    out, codes = tokenizer(images), tokenizer.encode(images)
    assert tokenizer.layout == Layout(((1, 8),)) and codes.shape == (4, 8) and torch.equal(codes, out.codes)
    torch.testing.assert_close(tokenizer.decode(codes), out.reconstruction, atol=1e-5, rtol=1e-4)
    assert torch.equal(torch.cat([tokenizer.encode(image[None]) for image in images]), codes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.encode(images), codes)
        assert tokenizer(images).reconstruction.dtype == torch.float32
    assert tokenizer.fingerprint() == before


@pytest.mark.parametrize("kind", ONE_CODE)
def test_saving_and_loading_is_exact(kind: str, tmp_path: Path) -> None:
    tokenizer = tiny(quantizer=QUANTIZERS[kind]()).train()
    tokenizer(pictures())
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.config == tokenizer.config and loaded.fingerprint() == tokenizer.fingerprint()
    assert torch.equal(loaded.encode(pictures()), tokenizer.encode(pictures()))


def test_every_parameter_learns() -> None:
    tokenizer = tiny(prefix_dropout=1.0).train()
    loss, _ = TokenizerLoss(LossConfig())(pictures(), tokenizer(pictures()))
    loss.backward()
    assert [name for name, value in tokenizer.named_parameters() if value.grad is None or not value.grad.any()] == []


# --- who depends on whom --------------------------------------------------------------------------------------------


def test_a_query_depends_on_the_queries_before_it_alone() -> None:
    tokenizer = tiny().eval()
    features = tokenizer.features(pictures())
    before = tokenizer.latents(features)[:, :, 0]
    for late in (0, 3, 7):
        changed = tiny().eval()
        changed.load_state_dict(tokenizer.state_dict())
        with torch.no_grad():
            changed.reader.queries.weight[late] *= -1
        differs = (changed.latents(features)[:, :, 0] - before).abs().amax((0, 1))
        assert (differs[:late] == 0).all() and (differs[late:] > 0).all()


def test_the_first_codes_are_enough_for_a_picture() -> None:
    tokenizer = tiny().eval()
    codes = tokenizer.encode(pictures())
    vectors = tokenizer.quantizer.vectors(codes, (1, 8))
    assert tokenizer.known_after(tokenizer.layout) == list(range(1, 9))
    for n in range(1, 9):
        # As in training, where the codes from n on are there but not shown.
        hidden = tokenizer.paint(tokenizer.tokens(vectors, torch.full((4,), n)))
        torch.testing.assert_close(tokenizer.decode(codes[:, :n]), hidden)
        more = torch.cat([codes[:, :n], (codes[:, n:] + 1) % 1000], 1)
        torch.testing.assert_close(tokenizer.decode(more[:, :n]), hidden)
        assert n == 8 or not torch.equal(tokenizer.decode(codes[:, : n + 1]), tokenizer.decode(codes[:, :n]))


def test_multi_scale_codes_are_cut_between_scales() -> None:
    from tokenizers_vq.config import TOKENIZER_PRESETS

    scaled = build_tokenizer(dataclasses.replace(TOKENIZER_PRESETS["debug"](), scales=(1, 2, 8))).eval()
    codes = scaled.encode(pictures())
    assert scaled.known_after(scaled.layout) == [1, 5, 69]
    assert torch.equal(scaled.decode(codes[:, :5]), scaled.decode(codes, up_to_scale=2))
    with pytest.raises(UserError, match=r"shape \(4, 4\), but .* takes \(images, 69\), or the first 1 or 5 codes"):
        scaled.decode(codes[:, :4])


def test_dropped_codes_are_drawn_in_training_alone() -> None:
    tokenizer = tiny(prefix_dropout=1.0)
    known = tokenizer._drop_codes(4000, torch.device("cpu"))
    assert known.min() == 1 and known.max() == 7
    assert 0.25 < (known == 1).float().mean() < 0.42  # log 2 of log 8
    assert (tiny(prefix_dropout=0.0)._drop_codes(100, torch.device("cpu")) == 8).all()
    images = pictures()
    whole = tokenizer.eval()(images).reconstruction
    torch.testing.assert_close(whole, tokenizer.decode(tokenizer.encode(images)), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(tokenizer.train()(images).reconstruction, whole)


def test_training_puts_the_most_into_the_first_codes() -> None:
    """Plain colours, from dark to bright: the first code can tell them apart."""
    tokenizer, images = tiny(prefix_dropout=0.5, tokens=4).train(), torch.linspace(-0.9, 0.9, 8)[:, None, None, None]
    images = images.expand(-1, 3, 32, 32)
    losses, optimizer = TokenizerLoss(LossConfig()), torch.optim.AdamW(tokenizer.parameters(), lr=3e-3)
    for _ in range(60):
        loss, _ = losses(images, tokenizer(images))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokenizer.eval()
    codes = tokenizer.encode(images)
    errors = [F.mse_loss(tokenizer.decode(codes[:, :n]), images).item() for n in (1, 2, 4)]
    assert max(errors) < 0.5 * images.var(), errors


# --- frozen vision models -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "places"), [("clip", 10), ("siglip", 9), ("dinov2", 10)])
def test_codes_of_a_frozen_vision_model(kind: str, places: int, tmp_path: Path, save_vision: Any) -> None:
    import transformers as hf

    source = save_vision(kind, tmp_path / "vision")
    tokenizer = tiny(vision=source).train()
    assert tokenizer.vision is not None and not tokenizer.vision.training and tokenizer.encoder is None
    images = pictures()
    features = tokenizer.features(images)
    assert features.shape == (4, places, 32)

    # The same by hand: the whole model of transformers, pixels as its processor makes them.
    model = hf.AutoModel.from_pretrained(source).eval()
    pixels = F.interpolate(images, (24, 24), mode="bilinear", antialias=True, align_corners=False).clamp(-1, 1)
    mean, deviation = (torch.tensor(v)[:, None, None] for v in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
    pixels = ((pixels + 1) / 2 - mean) / deviation
    tower = getattr(model, "vision_model", model)
    with torch.no_grad():
        states = tower(pixel_values=pixels).last_hidden_state
    wanted = (states - states.mean(-1, keepdim=True)) / states.std(-1, keepdim=True, unbiased=False)
    torch.testing.assert_close(features, wanted, atol=1e-4, rtol=1e-3)

    frozen = {name: value.clone() for name, value in tokenizer.vision.state_dict().items()}
    optimizer = torch.optim.AdamW([w for w in tokenizer.parameters() if w.requires_grad], lr=3e-3)
    errors = []
    for _ in range(30):
        loss, parts = TokenizerLoss(LossConfig())(images, tokenizer(images))
        assert parts.keys() == {"l2", "features"}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(parts["features"].item())
    assert errors[-1] < 0.6 * errors[0]
    assert all(torch.equal(value, frozen[name]) for name, value in tokenizer.vision.state_dict().items())

    tokenizer.eval().save_pretrained(tmp_path / "out")
    for path in sorted((tmp_path / "vision").iterdir()):
        path.unlink()  # the tokenizer's folder is enough
    loaded = load_tokenizer(tmp_path / "out")
    assert loaded.fingerprint() == tokenizer.fingerprint()
    assert torch.equal(loaded.encode(images), tokenizer.encode(images))
    torch.testing.assert_close(loaded(images).losses["features"], tokenizer(images).losses["features"])


def test_without_feature_loss_nothing_recalls_the_features(tmp_path: Path, save_vision: Any) -> None:
    tokenizer = tiny(vision=save_vision("dinov2", tmp_path), feature_weight=0.0)
    assert tokenizer.recaller is None and tokenizer(pictures()).losses == {}


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantizer": MultiVQ()}, "codes for each place: queries have one code each, choose another quantizer"),
        ({"tokens": 0}, r"tokenizer.tokens is 0: choose 1 or more"),
        ({"heads": 0}, r"tokenizer.heads is 0: choose 1 or more"),
        ({"heads": 3}, r"tokenizer.width is 32: choose a multiple of tokenizer.heads \(3\)"),
        ({"prefix_dropout": 1.5}, r"tokenizer.prefix_dropout is 1.5: choose a share from 0 to 1"),
        ({"feature_weight": -1.0}, r"tokenizer.feature_weight is -1.0: choose 0 \(off\) or more"),
        ({"image_size": 30}, r"tokenizer.image_size 30 is not a multiple .* stride 4: use 28 or 32"),
        ({"vision": "/nowhere"}, r"tokenizer.vision /nowhere is neither a folder with a CLIP, SigLIP or DINOv2 model"),
        ({"vision": "x", "vision_model": {"class": "?"}}, r"tokenizer.vision_model does not describe a vision model"),
    ],
)
def test_bad_configurations_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        tiny(**changes)
    assert "\n" not in str(caught.value)


def test_other_models_and_processors_are_refused(tmp_path: Path, save_vision: Any) -> None:
    with pytest.raises(UserError, match=r"is a model of type 'vit': give one of clip, clip_vision_model, siglip"):
        tiny(vision=save_vision("vit", tmp_path / "vit"))
    source = save_vision("clip", tmp_path / "clip")
    (tmp_path / "clip" / "preprocessor_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"its preprocessor_config.json names no size of pictures"):
        tiny(vision=source)


def test_other_sizes_and_cuts_are_refused() -> None:
    tokenizer = tiny().eval()
    with pytest.raises(UserError, match=r"image size 64x64: this tokenizer's queries know 32x32 alone, scale the"):
        tokenizer.encode(pictures(1, 64))
    with pytest.raises(UserError, match=r"shape \(1, 9\), but layout 1x8 takes \(images, 8\), or the first 1 to 7"):
        tokenizer.decode(torch.zeros(1, 9, dtype=torch.int64))
    with pytest.raises(UserError, match=r"takes \(images, 8\): pass"):
        tiny(prefix_dropout=0.0).decode(torch.zeros(1, 3, dtype=torch.int64))


def test_the_configuration_survives_json() -> None:
    config = dataclasses.replace(DEBUG, quantizer=VQ(), vision="x", vision_model={"class": "y", "size": [1, 2]})
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config
