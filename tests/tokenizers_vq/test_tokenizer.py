"""The convolutional VQ tokenizer and the contract of every tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokenizers_vq import build_tokenizer, load_tokenizer
from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS, ConvVQConfig
from tokenizers_vq.errors import UserError
from tokenizers_vq.layout import Layout
from tokenizers_vq.losses.config import LossConfig
from tokenizers_vq.losses.reconstruction import TokenizerLoss
from tokenizers_vq.networks import conv
from tokenizers_vq.quantizers.config import FSQ, QUANTIZERS, VQ, Cosine

DEBUG = TOKENIZER_PRESETS["debug"]()


def tiny(**changes: object) -> ImageTokenizer:
    torch.manual_seed(0)
    return build_tokenizer(dataclasses.replace(DEBUG, **changes))


def pictures(count: int = 2, height: int = 32, width: int = 32) -> Tensor:
    """Smooth random pictures (N, 3, H, W) in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(count, 3, 4, 4, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(small, (height, width), mode="bilinear")


# --- shapes and sizes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stem", [1, 2, 4])
@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("attention", ["none", "middle", "lowest"])
def test_every_stride_and_other_sizes(stem: int, levels: int, attention: str) -> None:
    tokenizer = tiny(stem=stem, channels=8, channel_multipliers=(1, 2, 3)[:levels], attention=attention, latent_dim=8)
    stride = stem * 2 ** (levels - 1)
    assert tokenizer.stride == tokenizer.config.stride == stride
    assert tokenizer.layout == Layout(((32 // stride, 32 // stride),))
    images = pictures(2, 16, 48)
    layout = tokenizer.layout_for(16, 48)
    assert layout.scales == ((16 // stride, 48 // stride),)
    codes = tokenizer.encode(images)
    assert codes.shape == (2, layout.length)
    assert tokenizer.decode(codes, layout).shape == images.shape
    assert tokenizer(images).reconstruction.shape == images.shape


def test_default_size_may_be_a_rectangle() -> None:
    tokenizer = tiny(image_size=(16, 40))
    assert tokenizer.image_size == (16, 40)
    assert tokenizer.layout.scales == ((4, 10),)
    assert tokenizer.decode(tokenizer.encode(pictures(1, 16, 40))).shape == (1, 3, 16, 40)


def test_published_wiring() -> None:
    """The base preset has exactly taming's f16 layers (names and shapes), except for the short code vectors."""
    config = ConvVQConfig(quantizer=VQ(codebook_size=1024, dim=256))
    with torch.device("meta"):
        tokenizer = build_tokenizer(config)
    shapes = {name: tuple(value.shape) for name, value in tokenizer.named_parameters()}
    assert shapes["encoder.conv_in.weight"] == (128, 3, 3, 3)
    assert shapes["encoder.down.2.block.0.nin_shortcut.weight"] == (256, 128, 1, 1)
    assert shapes["encoder.down.4.attn.1.proj_out.weight"] == (512, 512, 1, 1)
    assert shapes["encoder.mid.attn_1.norm.weight"] == (512,)
    assert shapes["decoder.up.4.attn.2.q.weight"] == (512, 512, 1, 1)
    assert shapes["decoder.up.1.upsample.conv.weight"] == (128, 128, 3, 3)
    assert shapes["decoder.up.3.block.0.nin_shortcut.weight"] == (256, 512, 1, 1)
    assert "encoder.down.4.downsample.conv.weight" not in shapes
    assert "decoder.up.0.upsample.conv.weight" not in shapes
    assert sum(name.startswith("decoder.up.0.block.") and name.endswith("conv1.weight") for name in shapes) == 3
    assert sum(value.numel() for value in tokenizer.encoder.parameters()) == 29_298_176
    assert sum(value.numel() for value in tokenizer.decoder.parameters()) == 42_449_795


def test_attention_block_is_plain_softmax_attention() -> None:
    from tokenizers_vq.networks.conv import AttentionBlock

    torch.manual_seed(0)
    block, x = AttentionBlock(32), torch.randn(2, 32, 3, 5)
    h = block.norm(x)
    q, k, v = (layer(h).flatten(2) for layer in (block.q, block.k, block.v))  # (B, C, N)
    weights = torch.softmax(torch.einsum("bcn,bcm->bnm", q, k) * 32**-0.5, dim=-1)
    wanted = x + block.proj_out(torch.einsum("bnm,bcm->bcn", weights, v).reshape(2, 32, 3, 5))
    torch.testing.assert_close(block(x), wanted)


# --- encode, decode, forward ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_decode_of_encode_is_the_reconstruction(kind: str) -> None:
    tokenizer = tiny(quantizer=QUANTIZERS[kind]()).eval()
    images = pictures()
    out = tokenizer(images)
    codes = tokenizer.encode(images)
    assert codes.dtype == torch.int64
    assert torch.equal(codes, out.codes)
    assert codes.max() < tokenizer.codebook_size == tokenizer.config.quantizer.size
    torch.testing.assert_close(tokenizer.decode(codes), out.reconstruction, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_encode_ignores_autocast_mode_and_batch_mates_and_changes_nothing(kind: str) -> None:
    tokenizer = tiny(quantizer=QUANTIZERS[kind]())
    images = pictures(4)
    before = tokenizer.fingerprint()
    codes = tokenizer.eval().encode(images)
    tokenizer.train()
    assert torch.equal(tokenizer.encode(images), codes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.encode(images), codes)
    assert torch.equal(torch.cat([tokenizer.encode(image[None]) for image in images]), codes)
    assert torch.equal(tokenizer.encode(images.double()), codes)
    assert tokenizer.training
    assert tokenizer.fingerprint() == before


@pytest.mark.parametrize("before", [True, False])
def test_codes_are_made_without_tf32_and_the_program_keeps_its_choice(
    before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", before)
    tokenizer = tiny().eval()
    encode, seen = tokenizer._encode, []
    monkeypatch.setattr(
        tokenizer, "_encode", lambda images: seen.append(torch.backends.cudnn.allow_tf32) or encode(images)
    )
    tokenizer.encode(pictures(1))
    assert seen == [False] and torch.backends.cudnn.allow_tf32 is before


def test_reconstruction_is_float32_under_autocast() -> None:
    tokenizer = tiny()
    with torch.autocast("cpu", torch.bfloat16):
        out = tokenizer(pictures())
        assert out.reconstruction.dtype == torch.float32
        assert tokenizer.decode(out.codes).dtype == torch.float32


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_every_parameter_gets_a_gradient(kind: str) -> None:
    tokenizer = tiny(quantizer=QUANTIZERS[kind](), attention="lowest")
    loss, _ = TokenizerLoss(LossConfig())(pictures(), tokenizer(pictures()))
    loss.backward()
    without = [name for name, value in tokenizer.named_parameters() if value.grad is None or not value.grad.any()]
    # A bias before a softmax over keys shifts all scores of a query alike.
    assert [name for name in without if not name.endswith("k.bias")] == []
    assert tokenizer.last_layer.grad is not None


@pytest.mark.parametrize("quantizer", [VQ(codebook_size=64, dim=4), Cosine(codebook_size=64, dim=4)])
def test_training_lowers_the_error(quantizer: VQ) -> None:
    tokenizer = tiny(quantizer=quantizer).train()
    images, losses = pictures(8), TokenizerLoss(LossConfig(l1=0.1))
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=3e-3)
    errors = []
    for _ in range(50):
        out = tokenizer(images)
        loss, parts = losses(images, out)
        assert set(parts) == {"l1", "l2", "commitment"}
        torch.testing.assert_close(sum(parts.values()), loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(parts["l2"].item())
    assert errors[-1] < 0.4 * errors[0], errors
    assert tokenizer.encode(images).unique().numel() > 16


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 30, 32), "image size 30x32 is not a multiple .* stride 4: use height 28 or 32, width 32$"),
        (torch.zeros(3, 32, 32), r"images have shape \(3, 32, 32\): give \(images, 3, height, width\)"),
        (torch.zeros(1, 1, 32, 32), r"images have shape \(1, 1, 32, 32\)"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), r"images are torch.uint8: convert them with .*to_float first"),
    ],
)
def test_wrong_images_are_refused(images: Tensor, message: str) -> None:
    tokenizer = tiny()
    for use in (tokenizer.encode, tokenizer):
        with pytest.raises(UserError, match=message):
            use(images)


def test_wrong_codes_are_refused() -> None:
    tokenizer = tiny()
    with pytest.raises(UserError, match=r"codes have shape \(1, 63\), but layout 8x8 takes \(images, 64\)"):
        tokenizer.decode(torch.zeros(1, 63, dtype=torch.int64))
    with pytest.raises(UserError, match=r"code 64 is outside the codebook of 64: ids go from 0 to 63"):
        tokenizer.decode(torch.full((1, 64), 64))
    with pytest.raises(UserError, match=r"codes are torch.float32"):
        tokenizer.decode(torch.zeros(1, 64))


# --- folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_saving_and_loading_is_exact(kind: str, tmp_path: Path) -> None:
    tokenizer = tiny(quantizer=QUANTIZERS[kind]())
    tokenizer(pictures())  # the codebook has moved
    tokenizer.save_pretrained(tmp_path / "new" / "tokenizer")
    assert sorted(path.name for path in (tmp_path / "new" / "tokenizer").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    random = torch.get_rng_state()
    loaded = load_tokenizer(tmp_path / "new" / "tokenizer")
    assert torch.equal(torch.get_rng_state(), random)
    assert not loaded.training
    assert loaded.config == tokenizer.config
    assert loaded.fingerprint() == tokenizer.fingerprint()
    for name, value in tokenizer.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert torch.equal(loaded.encode(pictures()), tokenizer.encode(pictures()))


def test_fingerprint_sees_weights_and_configuration() -> None:
    tokenizer = tiny()
    first = tokenizer.fingerprint()
    assert len(first) == 64
    assert tiny().fingerprint() == first
    assert tiny(image_size=64).fingerprint() != first
    with torch.no_grad():
        tokenizer.last_layer[0, 0, 0, 0] += 1e-6
    assert tokenizer.fingerprint() != first


def damage(change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: (f / "config.json").unlink(),
            "no image tokenizer at .*: it lacks config.json; expected config.json",
        ),
        (
            lambda f: (f / "model.safetensors").unlink(),
            "it lacks model.safetensors; .*as `unitok train tokenizer` writes",
        ),
        (lambda f: (f / "config.json").write_text("{"), r"config.json is not valid JSON .*: restore the file"),
        (lambda f: (f / "config.json").write_text("[1]"), "config.json holds a list, not a configuration"),
        (
            lambda f: (f / "config.json").write_text('{"model_type": "gpt2"}'),
            "is of family None, not an image tokenizer",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b"abc"), "cannot be read as safetensors .*: .*restore both"),
        (damage(lambda w: w.pop("encoder.conv_in.bias")), "lacks encoder.conv_in.bias: weights and configuration"),
        (damage(lambda w: w.update(foreign=torch.zeros(1))), "has unexpected foreign: weights and configuration"),
        (
            damage(lambda w: w.update({"encoder.conv_in.bias": torch.zeros(7)})),
            r"has encoder.conv_in.bias \(7,\) instead of \(16,\)",
        ),
        (damage(lambda w: [w.pop(name) for name in list(w)[:30]]), "lacks .* and 25 more: weights"),
    ],
)
def test_foreign_and_damaged_folders_are_refused(
    spoil: Callable[[Path], None], message: str, without_digests: Callable[[Path], None], tmp_path: Path
) -> None:
    tiny().save_pretrained(tmp_path)
    without_digests(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path)


def test_missing_folder_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no image tokenizer at .*nothing: it is not a folder"):
        load_tokenizer(tmp_path / "nothing")


def test_failed_save_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny()
    tokenizer.save_pretrained(tmp_path)

    def full_disk(tensors: dict[str, Tensor], path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tokenizers_vq.storage.weights.save_file", full_disk)
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device; .*free space"):
        tiny(channels=32).save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).fingerprint() == tokenizer.fingerprint()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("stem", "multipliers"), [(4, (1,)), (2, (1, 2)), (1, (1, 1, 2))])
def test_patchwise_codes_depend_on_their_patch_alone(stem: int, multipliers: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    config = ConvVQConfig(
        image_size=16,
        stem=stem,
        patchwise=True,
        channels=16,
        channel_multipliers=multipliers,
        blocks=1,
        attention="middle",
        latent_dim=8,
        quantizer=FSQ(levels=(8, 5, 5, 5)),
    )
    tokenizer = build_tokenizer(config).eval()
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    images[1, :, 4:8, 8:12] = images[0, :, 12:16, 20:24]  # one patch of stride 4, moved
    codes = tokenizer.encode(images).view(2, 4, 6)
    assert codes[1, 1, 2] == codes[0, 3, 5]
    changed = images.clone()
    changed[:, :, 4:8, 8:12] *= -1
    differs = tokenizer.encode(changed).view(2, 4, 6) != codes
    assert differs[:, 1, 2].any() and differs.sum() == differs[:, 1, 2].sum()
    assert tokenizer.decode(codes.flatten(1), tokenizer.layout_for(16, 24)).shape == images.shape


@pytest.mark.parametrize(("finer", "blocks"), [((1, 2), [2, 2]), ((1, 2, 4), [2, 2, 2]), ((1, 1, 2, 4), [2, 2, 2, 2])])
def test_a_decoder_may_have_finer_levels_than_its_encoder(
    tmp_path: Path, finer: tuple[int, ...], blocks: list[int]
) -> None:
    settings = {"stem": 8, "channels": 8, "channel_multipliers": (4,), "blocks": 1, "attention": "middle"}
    tokenizer = tiny(**settings, decoder_multipliers=finer)
    config = tokenizer.config
    assert isinstance(config, ConvVQConfig) and config.stride == 8
    assert config.decoder_levels == [(8 * factor, count) for factor, count in zip(finer, blocks, strict=True)]
    assert config.decoder_stem == 8 // 2 ** (len(finer) - 1)
    plain, images = tiny(**settings), pictures()
    plain.encoder.load_state_dict(tokenizer.encoder.state_dict())
    plain.quant_conv.load_state_dict(tokenizer.quant_conv.state_dict())
    assert torch.equal(plain.encode(images), tokenizer.encode(images)), "the encoder is the same"
    out = tokenizer(images)
    out.reconstruction.square().mean().backward()
    assert out.reconstruction.shape == images.shape
    assert all(parameter.grad is not None for parameter in tokenizer.decoder.parameters())
    tokenizer.save_pretrained(tmp_path)
    codes = tokenizer.eval().encode(images)
    with torch.no_grad():
        torch.testing.assert_close(load_tokenizer(tmp_path).decode(codes), tokenizer.decode(codes))


@pytest.mark.parametrize("multipliers", [(1,), (1, 2)])
def test_patches_of_one_position_train_as_convolutions_do(
    multipliers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As rows: what comes out and what is learned are those of the published operations."""
    config = ConvVQConfig(
        image_size=16, stem=4, patchwise=True, channels=8, channel_multipliers=multipliers, blocks=1, attention="none",
        latent_dim=8, quantizer=FSQ(levels=(3, 3)),
    )  # fmt: skip
    torch.manual_seed(0)
    monkeypatch.setattr(conv, "WIDE", 1)
    encoder, x = conv.Encoder(config).double(), torch.rand(3, 3, 16, 16, dtype=torch.float64)
    found = {}
    for way in ("rows", "convolutions"):
        if way == "convolutions":
            monkeypatch.setattr(conv, "_rows", lambda x: None)
        z = encoder(x)
        found[way] = [z, *torch.autograd.grad(z.square().sum(), list(encoder.parameters()))]
    for mine, theirs in zip(*found.values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
