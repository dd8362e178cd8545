"""Published checkpoints give the codes and pictures of their authors' arithmetic.

taming_vqgan is compared with the package taming-transformers itself. The other families are compared with plain
functional code, written here from descriptions of the authors' code, which shares nothing with ours. Weights are random
and drawn by the published names, so a name that goes astray is noticed. By hand, the same comparisons were run once at
the full size of each family (docs/tokenizers.md).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from published_tokenizers import TINY, agrees, images, infinity, load, random_weights
from safetensors.torch import save_file

from tokenizers_vq import load_published, load_tokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.published.load import PUBLISHED, _compare, _configure, _sources
from unitok.cli.importing import FamilyName
from unitok.cli.main import main
from unitok.objectives.infinity import Infinity
from unitok.trunk.published import PUBLISHED as GENERATORS


@torch.no_grad()
def test_infinity_folds_and_has_its_authors_shapes(tmp_path: Path) -> None:
    changes = {"vae_type": 3, "apply_spatial_patchify": 1}
    weights = random_weights("infinity_vae", **{**TINY["infinity_vae"], **changes})
    kind = {"norm": "norm", "conv": "conv", "nin": "conv"}
    wrapped = {}
    for name, tensor in weights.items():
        *inside, layer, part = name.split(".")
        wrapped[".".join([*inside, layer, kind[layer[: 3 if layer.startswith("nin") else 4]], part])] = tensor
    assert "encoder.down.0.downsample.conv.conv.weight" in wrapped and "encoder.norm_out.norm.bias" in wrapped
    wrapped |= {f"{part}.lfq.mask": torch.ones(3, dtype=torch.int64) for part in ("quantizer", "quantize")}
    tokenizer = load(tmp_path, "infinity_vae", {"vae": wrapped}, **changes)
    assert tokenizer.codebook_size == 2**12 and tokenizer.stride == 4
    agrees(tokenizer, images(64), *infinity(weights, images(64), 2))
    plain = load(tmp_path, "infinity_vae", weights, **changes)
    assert plain.fingerprint() == tokenizer.fingerprint()
    for ratio, size, last in ((0.75, "0.25M", (27, 36)), (1.28, "1M", (70, 56)), (0.3, "0.06M", (9, 27))):
        settings = {**changes, "pn": size, "h_div_w_template": ratio}
        assert load(tmp_path, "infinity_vae", weights, **settings).layout.grid == last


@torch.no_grad()
def test_codes_of_many_bits_are_codes_like_any_other(tmp_path: Path) -> None:
    """32 bits a code, and 56 where 14 are folded: written, read, counted and refused as all codes are."""
    weights = random_weights("infinity_vae", **{**TINY["infinity_vae"], "vae_type": 32})
    tokenizer = load(tmp_path, "infinity_vae", weights, vae_type=32)
    codes = tokenizer.encode(images())
    assert tokenizer.codebook_size == 2**32 and codes.max() > 2**31
    assert tokenizer.counted == 2**16 and torch.equal(tokenizer.countable(codes), codes >> 16)
    torch.testing.assert_close(tokenizer.decode(codes), torch.cat([tokenizer.decode(one) for one in codes.split(1)]))
    with pytest.raises(UserError, match=r"code 4294967296 is outside the codebook of 4294967296"):
        tokenizer.decode(codes.clamp(min=2**32))
    with pytest.raises(UserError, match=r"codes of 32 bits have no table of vectors"):
        tokenizer.code_vectors()
    weights = random_weights("infinity_vae", **{**TINY["infinity_vae"], "vae_type": 14})
    folded = load(tmp_path, "infinity_vae", weights, vae_type=14, apply_spatial_patchify=1)
    codes = folded.encode(images(64))
    assert folded.codebook_size == 2**56 and codes.max() > 2**55
    picture = folded.decode(codes)
    for bit in (0, 13, 31, 55):  # of the last code: none is lost
        flipped = codes.clone()
        flipped[:, -1] ^= 1 << bit
        assert not torch.equal(folded.decode(flipped), picture), bit


@torch.no_grad()
def test_codes_of_64_bits_have_a_sign(tmp_path: Path) -> None:
    """As plain arithmetic in float64 has them: the first bit is the sign of the whole number."""
    weights = random_weights("infinity_vae", **{**TINY["infinity_vae"], "vae_type": 64})
    tokenizer, exact = load(tmp_path, "infinity_vae", weights, vae_type=64), {n: w.double() for n, w in weights.items()}
    codes, picture = infinity(exact, images().double())
    agrees(tokenizer, images(), codes, picture.float())
    assert tokenizer.codebook_size == 2**64 and 0.2 < (codes < 0).float().mean() < 0.8
    assert torch.equal(tokenizer.countable(codes), (codes >> 48) & 0xFFFF) and tokenizer.counted == 2**16
    flipped = codes.clone()
    flipped[:, -1] ^= torch.iinfo(torch.int64).min
    assert not torch.equal(tokenizer.decode(flipped), tokenizer.decode(codes)), "the sign is a bit"
    tokenizer.save_pretrained(tmp_path / "folder")
    assert torch.equal(load_tokenizer(tmp_path / "folder").encode(images()), codes)
    with pytest.raises(
        UserError, match=r"^the image tokenizer makes codes of 64 bits, a model draws codes of up to 62"
    ):
        Infinity.for_tokenizer(tokenizer)


RELEASED = [  # (family, number in `released`, tensors of the published file without training losses, some of them)
    (
        "taming_vqgan",
        0,
        343,
        {"quantize.embedding.weight": (1024, 256), "decoder.up.4.attn.2.q.weight": (512, 512, 1, 1)},
    ),
    ("taming_vqgan", 3, 301, {"quantize.proj.weight": (8192, 256, 1, 1), "quantize.embed.weight": (8192, 256)}),
    ("llamagen_vq", 0, 343, {"encoder.mid.2.conv1.weight": (512, 512, 3, 3), "quant_conv.weight": (8, 256, 1, 1)}),
    ("llamagen_vq", 1, 299, {"decoder.conv_blocks.0.upsample.conv.weight": (512, 512, 3, 3)}),
    ("var_vae", 0, 323, {"encoder.mid.attn_1.qkv.bias": (1920,), "post_quant_conv.weight": (32, 32, 3, 3)}),
    (
        "showo_magvitv2",
        0,
        380,
        {"decoder.up.3.block.3.conv1.weight": (256, 256, 3, 3), "encoder.quant_conv.bias": (13,)},
    ),
    (
        "open_magvit2",
        0,
        339,
        {"decoder.adaptive.1.gamma.weight": (256, 18), "encoder.conv_out.weight": (18, 512, 1, 1)},
    ),
    ("infinity_vae", 0, 268, {"encoder.conv_out.weight": (32, 512, 3, 3), "decoder.conv_in.weight": (512, 32, 3, 3)}),
    ("infinity_vae", 3, 224, {"encoder.conv_out.bias": (14,), "decoder.up.3.block.0.conv1.weight": (512, 512, 3, 3)}),
    ("infinity_vae", 4, 268, {"encoder.conv_out.weight": (64, 512, 3, 3), "decoder.conv_in.weight": (512, 64, 3, 3)}),
    ("ibq", 2, 543, {"decoder.up.4.attn.4.k.bias": (512,), "quantize.embedding.weight": (16384, 256)}),
    (
        "emu3_vq",
        0,
        487,
        {
            "decoder.up_block.up.3.attn_norms.2.conv_y.weight": (1024, 4, 1, 1),
            "encoder.time_conv.1.conv.conv.weight": (4, 4, 4, 3, 3),
            "encoder.middle_block.attn_1.out_proj.weight": (1024, 1024),
        },
    ),
]


@pytest.mark.parametrize(("family", "number", "count", "some"), RELEASED)
def test_released_models_want_the_published_tensors(family: str, number: int, count: int, some: dict[str, Any]) -> None:
    table = PUBLISHED[family]
    sources = _sources(table, _configure(table, table.released[number], {}))
    shapes = {source.name: source.shape for source in sources.values() if source.shape is not None}
    assert some.items() <= shapes.items()
    assert len({source.name for source in sources.values()}) == count


def test_the_released_model_is_told_by_its_shapes() -> None:
    table = PUBLISHED["taming_vqgan"]
    sources = [_sources(table, _configure(table, released, {})) for released in table.released]
    for wanted in range(len(sources)):
        with torch.device("meta"):
            file = {s.name: torch.empty(s.shape) for s in sources[wanted].values() if s.shape is not None}
        assert [_compare(table, file, each)[0] == 0 for each in sources].index(True) == wanted


# --- hub and command -------------------------------------------------------------------------------------------------


def hub(monkeypatch: pytest.MonkeyPatch, files: list[str], folder: Path) -> list[tuple[str, str]]:
    """A hub whose every repository has these files; returns the list of what is fetched."""
    fetched: list[tuple[str, str]] = []

    def fetch(repository: str, file: str) -> str:
        fetched.append((repository, file))
        return str(folder / file)

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, repository: files)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    return fetched


def test_command_makes_a_folder_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = random_weights("showo_magvitv2", **TINY["showo_magvitv2"])
    weights |= {"quantize.embedding": torch.ones(64, 6), "quantize.power_vals": 2 ** torch.arange(5, -1, -1)}
    save_file(weights, tmp_path / "pytorch_model.safetensors")
    fetched = hub(monkeypatch, ["config.json", "pytorch_model.bin", "pytorch_model.safetensors"], tmp_path)
    settings = tmp_path / "tiny.yaml"
    settings.write_text(f"settings: {TINY['showo_magvitv2']}\n")
    argv = ["import", "showo_magvitv2", "hf:showlab/magvitv2", "--out", str(tmp_path / "out")]
    assert main([*argv, "--config", str(settings)]) == 0
    assert fetched == [("showlab/magvitv2", "pytorch_model.safetensors")]
    out, err = capsys.readouterr()
    assert out == f"tokenizer: {tmp_path / 'out'}\n" and "32x32 pixels -> 8x8 codes out of 64" in err
    assert load_tokenizer(tmp_path / "out").codebook_size == 64


def test_command_goes_on_after_a_kill_at_its_very_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder is whole by then, and only the lock is left over."""
    file, out = tmp_path / "x.safetensors", tmp_path / "out"
    save_file(random_weights("llamagen_vq", **TINY["llamagen_vq"]), file)
    argv = ["import", "llamagen_vq", str(file), "--out", str(out)]
    argv += ["--settings", json.dumps(TINY["llamagen_vq"])]
    assert main(argv) == 0
    written = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / ".lock").touch()
    (out / ".config.json.4000000.tmp").touch()
    assert main(argv) == 0
    assert f"{out} holds this tokenizer already: nothing was written" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == written

    weights = random_weights("llamagen_vq", **TINY["llamagen_vq"])
    save_file({name: tensor + 1 for name, tensor in weights.items()}, file)
    assert main(argv) == 2
    assert "holds another tokenizer, or a damaged one: choose a new folder" in capsys.readouterr().err
    (out / "notes.txt").touch()
    assert main(argv) == 2
    assert "is not empty: choose a new folder" in capsys.readouterr().err
    assert {name: (out / name).read_bytes() for name in written} == written


def test_hub_problems_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, ["a.ckpt", "b.ckpt"], tmp_path)
    with pytest.raises(UserError, match=r"hf:o/n has a.ckpt, b.ckpt: name one, as in hf:o/n/FILE$"):
        load_published("taming_vqgan", "hf:o/n")
    with pytest.raises(UserError, match=r"'hf:n' names no repository: write hf:owner/name or hf:owner/name/file$"):
        load_published("taming_vqgan", "hf:n")

    def offline(*words: Any) -> str:
        raise OSError("no route to host\nmore")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(UserError, match=r"could not be fetched \(no route to host\): check name and network"):
        load_published("taming_vqgan", "hf:o/n/a.ckpt")


def test_command_knows_every_family() -> None:
    assert list(get_args(FamilyName)) == [*PUBLISHED, *GENERATORS]
