"""Emu3: codes, pictures, logits and drawn codes of transformers' own classes, on tiny models that they saved."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Emu3Config, Emu3ForConditionalGeneration, Emu3VQVAE, Emu3VQVAEConfig

from tokenizers_vq.base import load_tokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.published import load_published
from unitok.cli.main import main
from unitok.importing import import_generator
from unitok.model import UniTok
from unitok.objectives.base import Draw
from unitok.sample.inpainting import inpainting_job
from unitok.sample.pipeline import draw_codes, run, score_codes, value_of
from unitok.sampling import SampleSettings
from unitok.sequence import pack
from unitok.tasks import documents
from unitok.trunk.published import published_family

from .foreign import CODES, SIDE, TEXTS, stirred, survives, text_tokenizer
from .test_generators import GREEDY, some_codes
from .test_start import DRAW_ALONE, trains_on

PIXELS = 16
LENGTH = SIDE * SIDE
BOS, EOS, ROW_END, START, IMAGE, PAD = (
    "<|extra_203|>",
    "<|extra_204|>",
    "<|extra_200|>",
    "<|image start|>",
    "<|image token|>",
    "<|endoftext|>",
)
SPECIALS = (PAD, BOS, EOS, ROW_END, START, IMAGE)
CAPTIONS = ("w3 w7 w1", "w5", "")
VQ = {
    "codebook_size": CODES,
    "base_channels": 32,
    "channel_multiplier": [1, 2, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [2],
    "hidden_size": 64,
}


@pytest.fixture(scope="module")
def images() -> Any:
    """A tokenizer of transformers, also with batch norms that have seen something."""
    torch.manual_seed(0)
    model = stirred(Emu3VQVAE(Emu3VQVAEConfig(**VQ)))
    random = torch.Generator().manual_seed(2)
    for name, one in model.named_buffers():
        if name.endswith("running_mean"):
            one.copy_(0.3 * torch.randn(one.shape, generator=random))
        elif name.endswith("running_var"):
            one.copy_(0.5 + torch.rand(one.shape, generator=random))
    model.decoder.conv_out.weight.data *= 8
    # Codes near where latents are, so that pictures use many of them.
    latents = model.quant_conv(model.encoder(pictures(8)[:, None].repeat(1, 4, 1, 1, 1)).transpose(1, 2))
    rows = latents.detach().movedim(1, -1).flatten(0, -2)
    model.quantize.embedding.weight.data = rows[torch.randperm(len(rows), generator=random)[:CODES]].clone()
    return model


def pictures(number: int) -> Tensor:
    return torch.rand(number, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def test_pictures_have_the_codes_of_transformers_and_look_the_same(images: Any, tmp_path: Path) -> None:
    """A picture is four equal frames there; of those that come out the first is the picture."""
    images.save_pretrained(tmp_path / "theirs")
    ours = load_published("emu3_vq", tmp_path / "theirs", **VQ, image_size=PIXELS)
    seen = pictures(4)
    sizes = torch.tensor([[PIXELS, PIXELS]] * 4)
    wanted = torch.stack(images.encode(seen, sizes).image_tokens).flatten(1)
    assert ours.layout.scales == ((4, 4),)
    assert torch.equal(ours.encode(seen), wanted)
    assert len(wanted.unique()) > 15
    codes = torch.randint(CODES, (2, 16), generator=torch.Generator().manual_seed(3))
    found = ours.decode(codes)
    theirs = torch.cat([images.decode(one.view(1, 4, 4)) for one in codes])
    torch.testing.assert_close(found, theirs, atol=1e-4, rtol=0)
    assert found.std() > 0.1
    ours.save_pretrained(tmp_path / "ours")
    assert torch.equal(load_tokenizer(tmp_path / "ours").decode(codes), found)


def test_the_authors_own_file_is_the_same_tokenizer(images: Any, tmp_path: Path) -> None:
    """Their names and settings, and 1x1 convolutions in place of linear maps."""
    own = {}
    for name, one in images.state_dict().items():
        theirs = name.replace("middle_block.attn_norm.", "mid.attn_1.norm.").replace("middle_block", "mid")
        theirs = theirs.replace("down_block.down", "down").replace("up_block.up", "up").replace("_proj.", ".")
        theirs = re.sub(r"attn_norms\.(\d)", r"attn.\1.norm", theirs).replace(".out.", ".proj_out.")
        own[theirs] = one[:, :, None, None] if name.endswith("_proj.weight") else one
    assert "decoder.up.2.attn.0.norm.conv_y.weight" in own and "encoder.mid.attn_1.proj_out.bias" in own
    torch.save(own, tmp_path / "theirs.bin")
    images.save_pretrained(tmp_path)
    settings = {"codebook_size": CODES, "ch": 32, "ch_mult": [1, 2, 2], "num_res_blocks": 1, "attn_resolutions": [2]}
    found = load_published("emu3_vq", tmp_path / "theirs.bin", **settings, z_channels=4, double_z=False, image_size=16)
    wanted = load_published("emu3_vq", tmp_path / "model.safetensors", **VQ, image_size=16)
    assert found.fingerprint() == wanted.fingerprint()


@pytest.fixture(scope="module")
def theirs(images: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Any]:
    """A model of transformers, where it lies, and its text tokenizer."""
    folder = tmp_path_factory.mktemp("emu3")
    codes = [f"<|visual token {code:06d}|>" for code in torch.randperm(CODES).tolist()]
    texts = text_tokenizer(folder, [*SPECIALS, *codes], [f"{SIDE}*{SIDE}"])
    assert texts.get_vocab_size() <= TEXTS
    torch.manual_seed(0)
    text = {"vocab_size": TEXTS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_dropout": 0.0, "pad_token_id": 0}
    text |= {"bos_token_id": 1, "eos_token_id": 2}
    config = Emu3Config(text_config=text, vq_config=VQ, vocabulary_map=texts.get_vocab())
    model = stirred(Emu3ForConditionalGeneration(config))
    model.model.vqmodel.load_state_dict(images.state_dict())
    model.save_pretrained(folder)
    return model, folder, texts


def imported(folder: Path, **settings: Any) -> UniTok:
    return import_generator("emu3", folder, settings={"num_attention_heads": 4, "image_size": PIXELS, **settings})


def ids_of(texts: Any, caption: str) -> list[int]:
    """As transformers' processor prepares a prompt for drawing."""
    return texts.encode(f"{BOS} {caption} {START} {SIDE}*{SIDE} {IMAGE}").ids


@torch.inference_mode()
def last(theirs: tuple[Any, Path, Any], caption: str, codes: Tensor) -> Tensor:
    """Logits (n + 1, CODES) of the codes, (n,) and the one behind them; rows end as transformers reads pictures."""
    model, _, texts = theirs
    ids, prompt = torch.tensor([texts.token_to_id(f"<|visual token {code:06d}|>") for code in range(CODES)]), []
    prompt, at = ids_of(texts, caption), []
    at.append(len(prompt) - 1)
    for number, code in enumerate(codes.tolist()):
        prompt.append(int(ids[code]))
        if number % SIDE == SIDE - 1:
            prompt.append(texts.token_to_id(ROW_END))
        at.append(len(prompt) - 1)
    return model(input_ids=torch.tensor([prompt])).logits[0, at][:, ids]


def test_what_a_picture_is_read_as_has_row_ends(theirs: tuple[Any, Path, Any]) -> None:
    """The oracle above puts ids together as transformers does."""
    model, _, texts = theirs
    seen = pictures(1)
    found = model.model.get_image_tokens(seen, torch.tensor([[PIXELS, PIXELS]])).view(SIDE, SIDE + 1)
    assert found[:, -1].unique().tolist() == [texts.token_to_id(ROW_END)]
    codes = imported(theirs[1]).image_tokenizer.encode(seen).view(SIDE, SIDE)
    assert [texts.id_to_token(int(one)) for one in found[:, :-1].flatten()] == [
        f"<|visual token {code:06d}|>" for code in codes.flatten().tolist()
    ]


@torch.inference_mode()
def test_codes_have_the_logits_of_transformers(theirs: tuple[Any, Path, Any]) -> None:
    codes = some_codes(LENGTH)
    found = score_codes(imported(theirs[1]), CAPTIONS, codes)
    for row, caption in enumerate(CAPTIONS):
        torch.testing.assert_close(found[row], last(theirs, caption, codes[row, :-1]), atol=1e-4, rtol=0)
    assert found.std() > 0.3


@torch.inference_mode()
def greedy(theirs: tuple[Any, Path, Any], caption: str, scale: float, known: Tensor, negative: str = "") -> Tensor:
    """Guidance over log-probabilities, as transformers' processor has it, with an empty or negative caption and the
    same size."""
    codes = torch.zeros(0, dtype=torch.int64)
    for number in range(LENGTH):
        given, bare = (last(theirs, one, codes)[-1].log_softmax(-1) for one in (caption, negative))
        code = (bare + scale * (given - bare)).argmax() if known[number] < 0 else known[number]
        codes = torch.cat([codes, code[None]])
    return codes


@torch.inference_mode()
def test_the_most_likely_codes_are_those_of_transformers(theirs: tuple[Any, Path, Any]) -> None:
    model, drawn = imported(theirs[1]), []
    unknown = torch.full((LENGTH,), -1)
    for scale in (1.0, 3.0):
        for ahead in (0, 3):
            settings = SampleSettings(guidance=scale, ahead=ahead, **GREEDY)
            drawn.append(draw_codes(model, CAPTIONS[:2], settings, [0, 1]))
        for row, caption in enumerate(CAPTIONS[:2]):
            wanted = greedy(theirs, caption, scale, unknown)
            assert torch.equal(drawn[-2][row], wanted) and torch.equal(drawn[-1][row], wanted), (scale, caption)
    assert not torch.equal(drawn[0], drawn[2])
    settings = SampleSettings(guidance=3.0, negative="w9 w2", **GREEDY)
    found = draw_codes(model, CAPTIONS[:2], settings, [0, 1])
    for row, caption in enumerate(CAPTIONS[:2]):
        assert torch.equal(found[row], greedy(theirs, caption, 3.0, unknown, "w9 w2")), caption
    assert not torch.equal(found, drawn[2]), "the authors' guidance leads away from a caption"


@torch.inference_mode()
def test_known_codes_of_any_place_stay(theirs: tuple[Any, Path, Any]) -> None:
    """A pass of several known codes crosses the ends of rows, at other places in each picture."""
    model, settings = imported(theirs[1]), SampleSettings(guidance=3.0, **GREEDY)
    random = torch.Generator().manual_seed(4)
    known = torch.where(torch.rand(3, LENGTH, generator=random) < 0.6, some_codes(LENGTH), -1)
    known[0] = -1
    known[1, :11] = 3
    caption = value_of(model, CAPTIONS[0])
    found = run(model, [inpainting_job(model, one, torch.ones(2, 2).bool(), caption, 0, settings) for one in known])
    for one, (codes,) in zip(known, found, strict=True):
        assert torch.equal(codes, greedy(theirs, CAPTIONS[0], 3.0, one)), one


def test_a_training_step_has_the_loss_of_transformers_over_codes(theirs: tuple[Any, Path, Any]) -> None:
    """Row ends are not learned: they are given. A caption that is left out keeps the size of the picture."""
    model, codes = imported(theirs[1]), some_codes(LENGTH)
    records = [{"caption": caption, "image": one} for caption, one in zip(CAPTIONS, codes, strict=True)]
    draws = [Draw(torch.Generator())] * 3
    for dropped in (0.0, 1.0):
        made = documents(
            ["text_to_image"] * 3, records, draws, model.modalities(), {"text": dropped}, {"text_to_image": 0}
        )
        loss = model.train()(pack(made, pad=model.vocabulary.pad))[0] / codes.numel()
        seen = ["" if dropped else caption for caption in CAPTIONS]
        scores = torch.stack([last(theirs, one, row[:-1]) for one, row in zip(seen, codes, strict=True)])
        wanted = torch.nn.functional.cross_entropy(scores.flatten(0, 1), codes.flatten())
        torch.testing.assert_close(loss, wanted, atol=1e-5, rtol=0)


def test_a_folder_survives_and_commands_take_it(theirs: tuple[Any, Path, Any], tmp_path: Path) -> None:
    survives(imported(theirs[1]), CAPTIONS[:2], tmp_path / "again")
    settings = json.dumps({"image_size": PIXELS})
    argv = ["import", "emu3", str(theirs[1]), "--out", str(tmp_path / "model"), "--settings", settings]
    assert main(argv) == 0
    made = UniTok.from_pretrained(tmp_path / "model")
    assert made.config == imported(theirs[1]).config
    assert made.config.trunk.wording == f"{{}}{START}{SIDE}*{SIDE}" and made.config.sampling["guidance"] == 3.0
    assert main(["sample", "--model", str(tmp_path / "model"), "w5 w3", "--out", str(tmp_path / "drawn")]) == 0
    assert list((tmp_path / "drawn" / "pictures").glob("*.png"))
    trains_on(tmp_path / "model", tmp_path / "drawn" / "pictures", tmp_path / "tuned", *DRAW_ALONE)


def test_names_of_today_and_files_that_do_not_fit(theirs: tuple[Any, Path, Any], tmp_path: Path) -> None:
    """transformers writes files by other names than its classes have."""
    written = load_file(theirs[1] / "model.safetensors")
    today = {name: one.detach().clone() for name, one in theirs[0].state_dict().items()}
    assert not written.keys() & today.keys()
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((theirs[1] / name).read_bytes())
    save_file(today, tmp_path / "model.safetensors")
    assert imported(tmp_path).fingerprint() == imported(theirs[1]).fingerprint()
    lacking = {name: one for name, one in today.items() if name != "model.text_model.norm.weight"}
    save_file(lacking, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"is no emu3: it lacks model.text_model.norm.weight \(the nearest released"):
        imported(tmp_path)
    save_file({n: t for n, t in today.items() if "vqmodel" not in n}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"holds no image tokenizer: give the folder of one with --image_tokenizer$"):
        imported(tmp_path)
    save_file(today, tmp_path / "model.safetensors")
    texts = json.loads((tmp_path / "tokenizer.json").read_text())
    for token in [*texts["added_tokens"]]:
        if token["content"] == "<|visual token 000007|>":
            texts["added_tokens"].remove(token)
    place = texts["model"]["vocab"].pop("<|visual token 000007|>")
    texts["model"]["vocab"]["other"] = place
    (tmp_path / "tokenizer.json").write_text(json.dumps(texts))
    with pytest.raises(
        UserError, match=r"has no token <\|visual token 000007\|>: give the text tokenizer of the model$"
    ):
        imported(tmp_path)


def test_the_released_model_wants_the_published_tensors() -> None:
    table = published_family("emu3")
    shapes = table.shapes(*table.released()["Emu3-Gen"])
    assert len(shapes) == 9 * 32 + 4
    assert shapes["model.text_model.layers.31.self_attn.k_proj.weight"] == (1024, 4096)
    assert shapes["model.text_model.embed_tokens.weight"] == shapes["lm_head.weight"] == (184622, 4096)
