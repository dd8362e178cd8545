"""Configurations: presets, checks with their messages, and the round trip through config.json."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from tokenizers_vq.config import (
    ADDED,
    TOKENIZER_PRESETS,
    ConvVQConfig,
    config_from_dict,
    config_to_dict,
)
from tokenizers_vq.config_base import check_size
from tokenizers_vq.errors import UserError
from tokenizers_vq.losses.config import LossConfig
from tokenizers_vq.networks.vit_config import ViTConfig
from tokenizers_vq.quantizers.config import BSQ, FSQ, IBQ, LFQ, QUANTIZERS, VQ, MultiVQ, SimVQ


def test_a_key_that_was_added_later_is_written_only_where_it_says_something() -> None:
    """Or every new key would change the fingerprints of all older tokenizers."""
    plain = TOKENIZER_PRESETS["debug"]()
    assert not ADDED & config_to_dict(plain).keys()
    assert not ADDED & config_to_dict(plain)["quantizer"].keys()
    scaled = config_to_dict(replace(plain, scales=(1, 8)))
    assert ADDED & scaled.keys() == {"scales"} and config_from_dict(scaled).scales == (1, 8)
    learned = config_to_dict(replace(plain, quantizer=VQ(learned=True)))
    assert learned["quantizer"]["learned"] is True and config_from_dict(learned).quantizer == VQ(learned=True)


@pytest.mark.parametrize("name", TOKENIZER_PRESETS)
def test_every_preset_survives_json(name: str) -> None:
    config = TOKENIZER_PRESETS[name]()
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_every_quantizer_survives_json(kind: str) -> None:
    config = ConvVQConfig(image_size=(64, 96), channel_multipliers=(1, 2), quantizer=QUANTIZERS[kind]())
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


def test_derived_numbers() -> None:
    assert ConvVQConfig().stride == 16
    assert ConvVQConfig(stem=2, channel_multipliers=(1, 2)).stride == 4
    assert ConvVQConfig(image_size=(256, 128)).size == (256, 128)
    assert (FSQ(levels=(8, 5, 5, 5)).size, FSQ(levels=(8, 5, 5, 5)).width) == (1000, 4)
    assert (LFQ(codebook_size=4096).size, LFQ(codebook_size=4096).width) == (4096, 12)
    assert (VQ(codebook_size=10, dim=3).size, VQ(codebook_size=10, dim=3).width) == (10, 3)


def test_sizes_that_the_stride_does_not_divide_name_the_nearest() -> None:
    check_size(32, 48, 16)
    with pytest.raises(
        UserError, match=r"image size 100 is not a multiple of the tokenizer's stride 16: use 96 or 112$"
    ):
        check_size(100, 100, 16)
    with pytest.raises(UserError, match=r"image size 64x70 .* stride 8: use height 64, width 64 or 72$"):
        check_size(64, 70, 8)
    with pytest.raises(UserError, match=r"image size 3 .* stride 4: use 4$"):
        check_size(3, 3, 4)
    with pytest.raises(UserError, match=r"tokenizer.image_size 250 .* stride 16: use 240 or 256"):
        ConvVQConfig(image_size=250)


def test_several_problems_are_reported_together() -> None:
    with pytest.raises(UserError) as caught:
        ConvVQConfig(channels=0, blocks=0, attention="all")
    for part in ("3 problems", "channels is 0", "blocks is 0", "attention is 'all': choose none, middle or lowest"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VQ(codebook_size=1), "codebook_size is 1: choose 2 or more"),
        (lambda: VQ(decay=1.0), r"decay is 1.0: choose a value above 0 and below 1, such as 0.99"),
        (lambda: VQ(revive_below=2.0), r"revive_below is 2.0: choose 0 \(never\)"),
        (lambda: SimVQ(commitment_weight=-1.0), "commitment_weight is -1.0: choose 0 or more"),
        (lambda: LFQ(codebook_size=1000), "codebook_size is 1000: lfq needs a power of two, such as 1024"),
        (lambda: BSQ(codebook_size=5), "codebook_size is 5: bsq needs a power of two, such as 8"),
        (lambda: IBQ(diversity=-1.0), "diversity is -1.0: choose 0 or more"),
        (lambda: LFQ(commitment_weight=-1.0), "commitment_weight is -1.0: choose 0 or more"),
        (lambda: FSQ(levels=(8, 1)), r"levels is \[8, 1\]"),
        (lambda: FSQ(levels=(256,) * 4), "make 4294967296 codes: choose at most 16777216"),
        (lambda: MultiVQ(codebooks=0), "codebooks is 0: choose 1 or more"),
        (lambda: ViTConfig(patch=0), "vit.patch is 0: choose 1 or more"),
        (lambda: ViTConfig(width=100), "vit.width is 100: choose a multiple of 64"),
        (lambda: ConvVQConfig(backbone="mlp"), "backbone is 'mlp': choose conv or vit"),
        (lambda: ConvVQConfig(backbone="vit", patchwise=True), "patchwise is true, but the vit backbone looks across"),
        (
            lambda: ConvVQConfig(stem=4, channel_multipliers=(4,), decoder_multipliers=(1, 1, 2, 4)),
            "decoder_multipliers has 4 levels: give 1 as the encoder has, or up to 3, finer ones first",
        ),
        (lambda: ConvVQConfig(channel_multipliers=(1, 1), decoder_multipliers=(1,)), "1 levels: give 2 as the encoder"),
        (
            lambda: ConvVQConfig(stem=2, channel_multipliers=(2,), decoder_multipliers=(1, 2), attention_levels=(0,)),
            "attention_levels would mean other resolutions",
        ),
        (
            lambda: ConvVQConfig(
                stem=4, channel_multipliers=(4,), decoder_multipliers=(1, 2), decoder_blocks_of_levels=(1,)
            ),
            r"decoder_blocks_of_levels is \[1\]: give 2 numbers",
        ),
        (lambda: LossConfig(l1=-1.0), "losses.l1 is -1.0: choose 0 or more"),
        (lambda: LossConfig(l1=0.0, l2=0.0), "both 0: give at least one a weight"),
    ],
)
def test_wrong_values_say_what_is_allowed(make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_foreign_config_files_are_refused() -> None:
    good = config_to_dict(TOKENIZER_PRESETS["debug"]())
    with pytest.raises(UserError, match=r"here is of family 'gpt2', not an image tokenizer"):
        config_from_dict({**good, "family": "gpt2"}, where="here")
    with pytest.raises(UserError, match=r"here has format 99, this version of unitok reads 1"):
        config_from_dict({**good, "format": 99}, where="here")
    with pytest.raises(UserError, match=r"here has an unknown key 'chanels': known are .*channels"):
        config_from_dict({**good, "chanels": 3}, where="here")
    with pytest.raises(UserError, match=r"here lacks the key 'blocks'"):
        config_from_dict({key: value for key, value in good.items() if key != "blocks"}, where="here")
    with pytest.raises(
        UserError,
        match=r"here has quantizer kind 'kmeans': known are vq, cosine, multi_vq, simvq, fsq, lfq, bsq, ibq, gumbel",
    ):
        config_from_dict({**good, "quantizer": {"kind": "kmeans"}}, where="here")
    with pytest.raises(UserError, match=r"here: channels is .many.: expected a whole number; restore the file"):
        config_from_dict({**good, "channels": "many"}, where="here")


def test_configs_do_not_import_torch() -> None:
    code = "import sys, tokenizers_vq, tokenizers_vq.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
