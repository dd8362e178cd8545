"""Large pictures in tiles: what of the whole they keep, that seams do not show, and what is held meanwhile."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_vq import build_tokenizer, load_tokenizer
from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS, OpenMagvit2Config
from tokenizers_vq.config_base import TokenizerConfig
from tokenizers_vq.errors import UserError
from tokenizers_vq.quantizers.config import FSQ, LFQ
from tokenizers_vq.tiles import Tiles, run_in_windows

DEBUG = TOKENIZER_PRESETS["debug"]()
SMALL = Tiles(whole=32 * 32, side=32, overlap=16)


def made(config: TokenizerConfig, tiles: Tiles = SMALL) -> ImageTokenizer:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(config).eval()
    tokenizer.tiles = tiles
    return tokenizer


def pictures(height: int, width: int, count: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    rough = torch.rand(count, 3, 5, 7, generator=generator) * 2 - 1
    return F.interpolate(rough, (height, width), mode="bicubic").clamp(-1, 1)


def test_windows_cover_a_side_and_overlap() -> None:
    for length in range(1, 200):
        windows = Tiles(side=64, overlap=16).windows(length, own=48, stride=4)
        assert windows[0][0] == 0 and windows[-1][1] == length
        assert all(stop - start == min(length, 16) for start, stop in windows)
        assert all(one[1] - other[0] >= 4 for one, other in itertools.pairwise(windows))
    assert Tiles(side=64).windows(64, own=512, stride=8) == [(0, 64)], "a window is no smaller than a trained picture"


@pytest.mark.parametrize(("per_input", "per_output"), [(1, 4), (4, 1), (1, 1)])
def test_a_local_network_gives_what_it_gives_of_the_whole(per_input: int, per_output: int) -> None:
    """Convolutions whose field is a code's neighbours: blending, crops and places are exact, whatever the sides."""
    torch.manual_seed(0)
    near = nn.Conv2d(3, 8, 3, padding=1)

    def network(x: Tensor) -> Tensor:
        x = near(F.avg_pool2d(x, per_input))
        return F.interpolate(x, scale_factor=per_output)

    for height, width in ((30, 41), (8, 33), (64, 9)):
        x = torch.randn(2, 3, height * per_input, width * per_input)
        tiles = Tiles(side=16, overlap=8)
        rows, columns = (tiles.windows(length, 1, 1) for length in (height, width))
        torch.testing.assert_close(run_in_windows(network, x, rows, columns, per_input, per_output), network(x))


@torch.no_grad()
def test_patchwise_codes_are_those_of_the_whole() -> None:
    shapes = dataclasses.replace(TOKENIZER_PRESETS["shapes"](), channels=16, latent_dim=16)
    images = pictures(80, 132, count=2)
    assert torch.equal(made(shapes).encode(images), made(shapes, Tiles()).encode(images))


FAMILIES: dict[str, Callable[[], TokenizerConfig]] = {
    "one grid": lambda: DEBUG,
    "attention": lambda: dataclasses.replace(DEBUG, attention="lowest"),
    "scales": lambda: dataclasses.replace(DEBUG, scales=(1, 2, 4, 8)),
    "several books": lambda: dataclasses.replace(DEBUG, quantizer=FSQ(levels=(4, 4, 4, 4))),
    "vit": lambda: dataclasses.replace(
        DEBUG, backbone="vit", vit=dataclasses.replace(DEBUG.vit, patch=4, width=64, depth=1)
    ),
    "open_magvit2": lambda: OpenMagvit2Config(
        image_size=32, channels=8, channel_multipliers=(1, 1, 2), blocks=1, quantizer=LFQ(codebook_size=64)
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_in_tiles(family: str) -> None:
    tokenizer = made(FAMILIES[family]())
    images = pictures(72, 104, count=2)
    layout = tokenizer.layout_for(72, 104)
    codes = tokenizer.encode(images)
    assert codes.shape == (2, layout.length) and int(codes.max()) < tokenizer.codebook_size
    back = tokenizer.decode(codes, layout)
    assert back.shape == images.shape and bool(back.isfinite().all())
    # A picture does not depend on its batch, and small ones are not cut.
    assert torch.equal(tokenizer.encode(images[1:]), codes[1:])
    small = images[:, :, :32, :32]
    assert torch.equal(tokenizer.encode(small), made(FAMILIES[family](), Tiles()).encode(small))


@pytest.fixture(scope="module")
def trained() -> ImageTokenizer:
    """A network with group norms and attention that gives smooth pictures back; its codes are nearly continuous."""
    config = dataclasses.replace(DEBUG, attention="lowest", quantizer=FSQ(levels=(15, 15, 15, 15)))
    tokenizer = made(config).train()
    optimizer = torch.optim.AdamW(tokenizer.parameters(), 4e-3)
    for step in range(80):
        generator = torch.Generator().manual_seed(step)
        size = int(torch.randint(3, 7, (), generator=generator))
        images = F.interpolate(torch.rand(4, 3, size, size, generator=generator) * 2 - 1, (32, 32), mode="bicubic")
        optimizer.zero_grad()
        output = tokenizer(images)
        ((output.reconstruction - images) ** 2).mean().add(sum(output.losses.values())).backward()
        optimizer.step()
    return tokenizer.eval()


@torch.no_grad()
def test_seams_do_not_show(trained: ImageTokenizer) -> None:
    """From code to code, the error changes no more at the ends of windows than where the whole has no end; and the
    picture is as near to its original. Windows side by side show the seams that this test is for."""

    def through(part: Tensor, tiles: Tiles) -> Tensor:
        trained.tiles = tiles
        return trained.decode(trained.encode(part), trained.layout_for(*part.shape[2:]))

    def steps(back: Tensor, ends: list[int]) -> float:
        return float((back - images).diff(dim=3).abs().mean((0, 1, 2))[torch.tensor(ends) - 1].mean())

    rough = torch.rand(2, 3, 18, 18, generator=torch.Generator().manual_seed(3)) * 2 - 1
    images = F.interpolate(rough, (160, 160), mode="bicubic")
    whole, tiles = through(images, Tiles()), Tiles(whole=0, side=48, overlap=16)
    tiled = through(images, tiles)
    assert float((tiled - images).square().mean()) < 1.05 * float((whole - images).square().mean())
    ends = sorted({4 * end for window in tiles.windows(40, 32, 4) for end in window} - {0, 160})
    assert len(ends) == 8 and steps(tiled, ends) < 1.1 * steps(whole, ends)
    beside = torch.cat([through(part, Tiles()) for part in images.split(32, 3)], 3)
    ends = list(range(32, 160, 32))
    assert steps(beside, ends) > 1.2 * steps(whole, ends)


def test_no_gradients_stay(trained: ImageTokenizer) -> None:
    trained.tiles = SMALL
    assert not trained.decode(torch.zeros(1, 20 * 20, dtype=torch.int64), trained.layout_for(80, 80)).requires_grad


def test_another_size_is_another_tokenizer(tmp_path: Path) -> None:
    for number, config in enumerate((DEBUG, dataclasses.replace(DEBUG, scales=(1, 2, 4, 8)))):
        tokenizer = made(config, Tiles())
        folder = tmp_path / str(number)
        tokenizer.save_pretrained(folder)
        larger = load_tokenizer(folder, image_size=48)
        assert larger.image_size == (48, 48) and larger.layout == tokenizer.layout_for(48, 48)
        assert larger.fingerprint() != tokenizer.fingerprint() == load_tokenizer(folder, image_size=32).fingerprint()
        images = pictures(48, 48)
        assert torch.equal(larger.encode(images), tokenizer.encode(images))
        with pytest.raises(
            UserError, match="image size 50 is not a multiple of the tokenizer's stride 4: use 48 or 52"
        ):
            load_tokenizer(folder, image_size=50)
