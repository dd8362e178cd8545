"""What goes out is what other programs open, with the same codes, pictures and logits."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from tokenizers_vq.base import ImageTokenizer, build_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS, ConvVQConfig
from tokenizers_vq.errors import UserError
from tokenizers_vq.quantizers.config import BSQ, FSQ, IBQ, LFQ, VQ, Cosine, Gumbel, MultiVQ, QuantizerConfig, SimVQ
from unitok.cli.main import main
from unitok.config import PortConfig
from unitok.exporting.graphs import Decoder, Encoder
from unitok.exporting.language import language_model
from unitok.exporting.vq_model import vq_model
from unitok.model import UniTok
from unitok.sequence import document, lay_out
from unitok.trunk.rule import Visibility, visibility
from unitok.vocabulary import Vocabulary

TEXT = "a large blue square left of a small green triangle"


def tokenizer(quantizer: QuantizerConfig, **changed: Any) -> ImageTokenizer:
    """A tiny VQGAN whose norms count."""
    settings = {"image_size": 16, "channels": 32, "channel_multipliers": (1, 2), "blocks": 1, "latent_dim": 16}
    torch.manual_seed(0)
    made = build_tokenizer(ConvVQConfig(**{**settings, "quantizer": quantizer, **changed})).eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            weight += 0.2 * torch.randn_like(weight) if "norm" in name else 0
    return made


def pictures(of: ImageTokenizer, count: int = 3) -> Tensor:
    return torch.rand(count, 3, *of.image_size, generator=torch.Generator().manual_seed(2)) * 2 - 1


# --- diffusers -------------------------------------------------------------------------------------------------------

NETWORKS: dict[str, tuple[QuantizerConfig, dict[str, Any]]] = {
    "vq": (VQ(codebook_size=50, dim=8), {}),
    "cosine": (Cosine(codebook_size=50, dim=8), {"attention": "middle"}),
    "simvq": (SimVQ(codebook_size=50, dim=8), {"attention": "none", "blocks": 2}),
    "lfq": (LFQ(codebook_size=64), {"attention": "middle", "attention_levels": (0,)}),
    "bsq": (BSQ(codebook_size=64), {"channels": 16, "channel_multipliers": (1, 1)}),
    "ibq": (IBQ(codebook_size=50, dim=8), {"image_size": (16, 32)}),
    "gumbel": (Gumbel(codebook_size=50, dim=8), {}),
}


@pytest.mark.parametrize("name", NETWORKS)
@torch.inference_mode()
def test_diffusers_makes_the_same_codes_and_pictures(name: str, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    own = tokenizer(NETWORKS[name][0], **NETWORKS[name][1])
    vq_model(own).write(tmp_path)
    theirs, info = diffusers.VQModel.from_pretrained(str(tmp_path), output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    images, codes = pictures(own), own.encode(pictures(own))
    latents = theirs.eval().encode(images).latents
    assert torch.equal(theirs.quantize(latents)[2][2].view(3, -1), codes) and len(codes.unique()) > 5
    wanted = own.decode(codes)
    torch.testing.assert_close(theirs.decode(latents).sample, wanted, atol=1e-4, rtol=0)
    batch, width, *grid = latents.shape
    decoded = theirs.decode(codes.flatten(), force_not_quantize=True, shape=(batch, *grid, width)).sample
    torch.testing.assert_close(decoded, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["vq", "ibq", "gumbel"])
@torch.inference_mode()
def test_the_nearest_row_of_the_table_is_the_code(name: str, tmp_path: Path) -> None:
    """Without diffusers: the table that is written, searched as VQModel does."""
    own = tokenizer(NETWORKS[name][0])
    latents = own.encoder(pictures(own, 8))
    vq_model(own).write(tmp_path)
    written = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    rows = F.conv2d(latents, written["quant_conv.weight"], written["quant_conv.bias"]).permute(0, 2, 3, 1).flatten(0, 2)
    table = written["quantize.embedding.weight"]
    assert torch.equal(torch.cdist(rows, table).argmin(1), own.encode(pictures(own, 8)).flatten())
    back = F.conv2d(table[:, :, None, None], written["post_quant_conv.weight"])
    wanted = F.conv2d(own.code_vectors()[0][:, :, None, None], own.post_quant_conv.weight)
    torch.testing.assert_close(back, wanted, atol=1e-5, rtol=0)


REFUSED: dict[str, tuple[QuantizerConfig, dict[str, Any], str]] = {
    "a stem": (VQ(), {"stem": 2}, "stem is 2"),
    "patches": (VQ(), {"patchwise": True}, "it is patchwise"),
    "scales": (VQ(), {"scales": (1, 2, 8)}, "it has several scales"),
    "a kernel": (VQ(), {"quant_kernel": 3}, "quant_kernel is 3"),
    "fsq": (FSQ(), {}, "its quantizer is fsq"),
    "multi_vq": (MultiVQ(), {}, "its quantizer is multi_vq"),
    "blocks": (VQ(), {"blocks_of_levels": (1, 2)}, "its levels differ in their numbers of blocks"),
    "decoder": (VQ(), {"decoder_multipliers": (1, 1)}, "its decoder has other channels than the encoder"),
    "groups": (VQ(), {"channels": 16, "channel_multipliers": (1, 2)}, "its norms have 4 and 32 groups"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_diffusers_cannot_compute_is_told(name: str) -> None:
    quantizer, changed, reason = REFUSED[name]
    with pytest.raises(UserError, match=rf"^VQModel of diffusers cannot compute this tokenizer \({reason}.*--to onnx"):
        vq_model(tokenizer(quantizer, **changed))


# --- transformers ----------------------------------------------------------------------------------------------------


@torch.inference_mode()
def logits(model: UniTok, text: str) -> tuple[Tensor, Tensor]:
    """(ids, logits of all ids) of a text that stands alone."""
    [[segment]] = model.modalities()["text"].learned([text], [], [])
    row = lay_out([[document([segment])]], pad=model.vocabulary.pad)
    return row.inputs, model.ids.scores(model.states(row), slice(0, model.vocabulary.size))


@pytest.mark.parametrize("objective", ["next_token", "masked_token", "next_scale"])
def test_a_trunk_of_ours_is_a_qwen3(objective: str, make_model: Callable[..., UniTok], tmp_path: Path) -> None:
    model = make_model(objective, kv_heads=1, tied_head=objective == "masked_token")
    language_model(model).write(tmp_path)
    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(theirs, Qwen3ForCausalLM)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids, wanted = logits(model, TEXT)
    with torch.inference_mode():
        torch.testing.assert_close(theirs(ids).logits, wanted, atol=1e-4, rtol=0)
        turned = theirs(ids, position_ids=torch.arange(ids.shape[1])[None] * 2).logits
    assert (turned - wanted).abs().max() > 0.01  # so positions count
    words = AutoTokenizer.from_pretrained(tmp_path)
    assert words(TEXT).input_ids == ids[0].tolist() and words.eos_token_id == model.vocabulary.eos


@torch.inference_mode()
def test_transformers_writes_texts_alone(make_model: Callable[..., UniTok], tmp_path: Path) -> None:
    """`generate` never takes an id that cannot stand in a text."""
    model = make_model()
    language_model(model).write(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids, _ = logits(model, "a")
    found = theirs.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    allowed = model.vocabulary.text_range
    assert all(allowed.start <= one < allowed.stop for one in found.tolist())
    written = ids[0].tolist()
    for one in found.tolist():
        row = torch.tensor([written])
        states = model.hidden(row, _in_line(row), _causal(row))
        assert int(model.ids.scores(states[0, -1], allowed).argmax()) + allowed.start == one
        written.append(one)


def _in_line(ids: Tensor) -> Tensor:
    order = torch.arange(ids.shape[1])[None]
    return torch.stack([order, torch.zeros_like(order), torch.zeros_like(order)], -1)


def _causal(ids: Tensor) -> Visibility:
    order = torch.arange(ids.shape[1])[None]
    return visibility(order, torch.zeros_like(order), causal=True)


def test_waves_of_boxes_are_in_the_rows(make_model: Callable[..., UniTok], tmp_path: Path) -> None:
    plain = make_model(tied_head=True)
    spans = Vocabulary(plain.config.vocabulary).grown("location", 8).grown("box", 1)
    ports = {**plain.config.ports, "location": PortConfig("waves", 6)}
    config = dataclasses.replace(plain.config, vocabulary=spans.spans, ports=ports)
    torch.manual_seed(3)
    model = UniTok(config, plain.image_tokenizer, plain.text_tokenizer).eval()
    torch.nn.init.normal_(model.ids.waves["location"].read.weight)
    language_model(model).write(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[model.vocabulary.bos, 5, *range(spans["location"].start, spans["location"].stop), 7]])
    with torch.inference_mode():
        states = model.hidden(ids, _in_line(ids), _causal(ids))
        wanted = torch.cat([model.ids.scores(states, spans[name]) for name, _ in spans.spans], -1)
        torch.testing.assert_close(theirs(ids).logits, wanted, atol=1e-4, rtol=0)


# --- onnx ------------------------------------------------------------------------------------------------------------


def test_onnxruntime_makes_the_same_codes_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    import onnxruntime

    torch.manual_seed(0)
    own = build_tokenizer(TOKENIZER_PRESETS["debug"]()).eval()
    own.save_pretrained(tmp_path / "tokenizer")
    assert main(["export", str(tmp_path / "tokenizer"), "--to", "onnx", "--out", str(tmp_path / "onnx")]) == 0
    assert capsys.readouterr().out.startswith("onnxruntime: ")
    for count in (1, 3):
        images = pictures(own, count)
        encoder, decoder = (
            onnxruntime.InferenceSession(tmp_path / "onnx" / f"{name}.onnx") for name in ("encoder", "decoder")
        )
        [codes] = encoder.run(None, {"images": images.numpy()})
        assert torch.equal(torch.from_numpy(codes), own.encode(images))
        [made] = decoder.run(None, {"codes": codes})
        torch.testing.assert_close(torch.from_numpy(made), own.decode(torch.from_numpy(codes)), atol=1e-4, rtol=0)
    facts = json.loads((tmp_path / "onnx" / "config.json").read_text())
    assert facts["grids"] == [[8, 8]] and facts["codebook_size"] == 64 and facts["image_size"] == [32, 32]


def test_the_graphs_take_any_number_of_pictures() -> None:
    """What ONNX files are made of, without the packages that write them."""
    torch.manual_seed(0)
    own = build_tokenizer(dataclasses.replace(TOKENIZER_PRESETS["debug"](), scales=(1, 8))).eval()
    codes = own.encode(pictures(own))
    for module, example, wanted in ((Encoder(own), pictures(own), codes), (Decoder(own), codes, own.decode(codes))):
        with torch.no_grad():
            graph = torch.export.export(module, (example[:2],), dynamic_shapes=({0: torch.export.Dim("pictures")},))
            torch.testing.assert_close(graph.module()(example), wanted, atol=1e-4, rtol=0)


# --- the command -----------------------------------------------------------------------------------------------------


def test_bad_requests_are_told_in_a_line(
    make_model: Callable[..., UniTok],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*words: str, out: str = "out") -> str:
        assert main(["export", *words, "--out", str(tmp_path / out)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1 and not (tmp_path / "out").exists()
        return said

    model = make_model()
    model.save_pretrained(tmp_path / "model")
    model.image_tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert "stem is 2" in refused(str(tmp_path / "model"), "--to", "diffusers")
    assert "model folder" in refused(str(tmp_path / "none"), "--to", "transformers")
    assert "no image tokenizer at" in refused(str(tmp_path / "none"), "--to", "onnx")
    assert "to is 'caffe': expected one of" in refused(str(tmp_path / "model"), "--to", "caffe")
    assert "is not empty: choose a new folder" in refused(str(tmp_path / "model"), "--to", "onnx", out="tokenizer")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "pip install unitok-vq[onnx]" in refused(str(tmp_path / "model"), "--to", "onnx")


def test_trunks_that_no_class_has_are_told(make_model: Callable[..., UniTok]) -> None:
    model = make_model()
    model.config.trunk = type("Odd", (), {"kind": "var"})()
    with pytest.raises(UserError, match=r"^the trunk of this model is that of var, which unitok does not write"):
        language_model(model)


def test_an_export_leaves_the_model_as_it_was(make_model: Callable[..., UniTok], tmp_path: Path) -> None:
    model = make_model()
    before = model.fingerprint()
    language_model(model).write(tmp_path)
    assert model.fingerprint() == before
