"""The settings of published tokenizers: those of the authors' files, and those that no model has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from published_tokenizers import TAMING, TINY, random_weights

from tokenizers_vq import load_published
from tokenizers_vq.errors import UserError
from tokenizers_vq.published.load import PUBLISHED, _attempts


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("vqgan", {}, "unknown family 'vqgan': choose one of taming_vqgan, llamagen_vq, var_vae"),
        ("taming_vqgan", {"chanels": 3}, "unknown setting 'chanels': known are codebook_size, embed_dim"),
        ("taming_vqgan", {"ddconfig": {"chs": 3}}, "setting ddconfig has chs: known are z_channels, resolution"),
        ("taming_vqgan", {"in_channels": 1}, "setting in_channels is 1: only 3 can be imported"),
        ("taming_vqgan", {"ch": "wide"}, "settings has ch 'wide': give a value like the released 128"),
        (
            "taming_vqgan",
            {"ddconfig": {"ch_mult": [1, 2.5]}},
            r"setting ddconfig has ch_mult \[1, 2.5\]: give a value like",
        ),
        ("taming_vqgan", {"ddconfig": 3}, "setting ddconfig is 3: give values by name"),
        ("var_vae", {"ch_mult": []}, r"settings {'ch_mult': \[\]} cannot be used"),
        ("open_magvit2", {"codebook_size": 100}, "codebook_size is 100: 18 channels of one bit make 262144"),
        ("var_vae", {"using_znorm": True}, "setting using_znorm is True: only False"),
        (
            "taming_vqgan",
            {"ddconfig": {"double_z": True}},
            "double_z is True: only False can be imported, for means and variances are what a KL autoencoder makes",
        ),
        ("ibq", {"remap": "used.txt"}, "remap is 'used.txt': only None can be imported, for the remapped indices"),
        ("ibq", {"n_embed": 8, "codebook_size": 9}, "n_embed is 8|codebook_size is 9"),
        ("open_magvit2", {"embed_dim": 14, "ddconfig": {"z_channels": 18}}, "embed_dim is 14, z_channels 18: make"),
        (
            "ibq",
            {"ddconfig": {"num_res_blocks": 10**9}},
            "num_res_blocks 1000000000: no network of this family is that",
        ),
        ("ibq", {"ddconfig": {"ch_mult": [1] * 99}}, "no network of this family is that large"),
        (
            "llamagen_vq",
            {"encoder_ch_mult": [1, 2], "decoder_ch_mult": [1, 3]},
            "decoder_ch_mult is .* make them equal",
        ),
        ("ibq", {"model": {"params": {"what": 3}}}, "unknown setting 'what'"),
        ("infinity_vae", {"vae_type": 65}, "setting vae_type is 65: 65 bits of a code, there can be 1 to 64"),
        ("infinity_vae", {"base_ch": 40}, "setting base_ch is 40: give a multiple of 32"),
        ("infinity_vae", {"pn": "2M"}, "setting pn is '2M': choose one of 0.06M, 0.25M, 0.60M, 1M"),
        ("infinity_vae", {"h_div_w_template": 0}, "setting h_div_w_template is 0: give height by width"),
    ],
)
def test_settings_that_no_model_has(family: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_published(family, tmp_path / "any.pt", **changes)


LOSS = {"target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator", "params": {"disc_start": 250001}}

LIGHTNING = {"monitor": "val/rec_loss", "ckpt_path": None, "ignore_keys": [], "image_key": "image", "lossconfig": LOSS}

FULL_DD = {**TAMING, "double_z": False, "in_channels": 3, "out_ch": 3, "dropout": 0.0}

AUTHORS: dict[str, dict[str, Any]] = {  # as in the configuration files of the authors, at the sizes of `TINY`
    "taming_vqgan": {
        "model": {
            "base_learning_rate": 4.5e-6,
            "target": "taming.models.vqgan.VQModel",
            "params": {"embed_dim": 8, "n_embed": 50, "ddconfig": FULL_DD, **LIGHTNING},
        },
        "data": {"target": "main.DataModuleFromConfig", "params": {"batch_size": 3}},
    },
    "llamagen_vq": {
        "codebook_size": 50,
        "codebook_embed_dim": 8,
        "codebook_l2_norm": True,
        "codebook_show_usage": True,
        "commit_loss_beta": 0.25,
        "entropy_loss_ratio": 0.0,
        "encoder_ch_mult": [1, 2, 1],
        "decoder_ch_mult": [1, 2, 1],
        "z_channels": 16,
        "dropout_p": 0.0,
        "ch": 32,
        "num_res_blocks": 1,
        "image_size": 32,
    },
    "var_vae": {
        "vocab_size": 50,
        "z_channels": 16,
        "ch": 32,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "dropout": 0.0,
        "beta": 0.25,
        "using_znorm": False,
        "quant_conv_ks": 3,
        "quant_resi": 0.5,
        "share_quant_resi": 4,
        "default_qresi_counts": 0,
        "v_patch_nums": [1, 2, 3, 4, 5, 6, 8, 10, 13, 16],
        "test_mode": True,
    },
    "showo_magvitv2": {
        "_class_name": "MAGViTv2",
        "_diffusers_version": "0.30.1",
        "codebook_size": 64,
        "image_size": 32,
        **{
            part: {
                "attn_resolutions": [5],
                "dropout": 0.0,
                "in_ch": 3,
                "out_ch": 3,
                "double_z": False,
                "resolution": 32,
            }
            | TINY["showo_magvitv2"][part]
            for part in ("encoder", "decoder")
        },
    },
    "open_magvit2": {
        "seed_everything": True,
        "trainer": {"max_epochs": 270},
        "model": {
            "class_path": "taming.models.lfqgan.VQModel",
            "init_args": {
                "ddconfig": {
                    "double_z": False,
                    "z_channels": 6,
                    "resolution": 128,
                    "in_channels": 3,
                    "out_ch": 3,
                    "ch": 32,
                    "ch_mult": [1, 2, 2],
                    "num_res_blocks": 2,
                },
                "lossconfig": LOSS,
                "n_embed": 64,
                "embed_dim": 6,
                "learning_rate": 1e-4,
                "sample_minimization_weight": 1.0,
                "batch_maximization_weight": 1.0,
                "scheduler_type": "None",
                "use_ema": True,
                "resume_lr": None,
                "image_size": 32,
            },
        },
        "ckpt_path": None,
    },
    "infinity_vae": {
        "vqgan_ckpt": "infinity_vae_d32reg.pth",
        "schedule_mode": "dynamic",
        "codebook_dim": 6,
        "codebook_size": 64,
        "test_mode": True,
        "patch_size": 2,
        "encoder_ch_mult": [1, 2],
        "decoder_ch_mult": [1, 2],
        "base_ch": 32,
        "num_res_blocks": 1,
        "apply_spatial_patchify": 0,
        "pn": "0.06M",
    },
    "ibq": {
        "n_embed": 50,
        "embed_dim": 8,
        "ddconfig": {**FULL_DD, "num_res_blocks": 2},
        "learning_rate": 1e-4,
        "l2_normalize": False,
        "use_entropy_loss": True,
        "cosine_similarity": False,
        "entropy_temperature": 0.01,
        "sample_minimization_weight": 1.0,
        "batch_maximization_weight": 1.0,
        "beta": 0.25,
        "use_ema": True,
        "stage": None,
        **LIGHTNING,
    },
    "seed": {
        **TINY["seed"],
        "vit_model": "eva_clip_g",
        "drop_path_rate": 0,
        "use_grad_checkpoint": False,
        "vit_precision": "fp16",
        "freeze_vit": True,
        "cross_attention_freq": 2,
        "max_txt_len": 32,
        "recon_s": True,
        "blocks_for_image": True,
        "use_recon_s_for_image": False,
        "use_qformer_image": False,
    },
    "emu3_vq": {
        "attention_dropout": 0.0,
        "double_latent": False,
        "embed_dim": 4,
        "hidden_size": 64,
        "in_channels": 3,
        "latent_channels": 4,
        "model_type": "emu3_vqgan",
        "num_attention_heads": 1,
        "out_channels": 3,
        "temporal_downsample_factor": 4,
        "transformers_version": "5.23.0",
        **TINY["emu3_vq"],
    },
}


@pytest.mark.parametrize("family", list(PUBLISHED))
def test_the_authors_configuration_is_taken_as_it_is(family: str, tmp_path: Path) -> None:
    weights = random_weights(family, **TINY[family])
    torch.save(weights, tmp_path / "x.pt")
    ours = load_published(family, tmp_path / "x.pt", **TINY[family])
    theirs = load_published(family, tmp_path / "x.pt", **AUTHORS[family])
    assert ours.fingerprint() == theirs.fingerprint()


def test_a_codebook_of_another_released_model_is_a_setting_too() -> None:
    (config,) = set(_attempts(PUBLISHED["open_magvit2"], {"n_embed": 2**14}))
    assert config.quantizer.size == 2**14  # 14 bits are those of the third released model
