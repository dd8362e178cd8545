"""Pictures that are read by an encoder and a connector, in every place where a model meets them."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reading_models import LANGUAGE, made, pictures, reading, states, values

from tokenizers_vq.errors import UserError
from tokenizers_vq.images import to_float
from unitok.config import ModelConfig, TrunkConfig
from unitok.modalities import PASSAGE, Picture
from unitok.model import UniTok
from unitok.objectives import OBJECTIVES
from unitok.reader.config import CONNECTORS, READER, ReaderConfig, ReaderSettings
from unitok.reader.encoders import read_encoder
from unitok.sample.best_of import reading_scores
from unitok.sample.documents import DocumentWriter, write_documents
from unitok.sample.pictures import as_read
from unitok.sample.pipeline import caption, caption_codes, draw_codes
from unitok.sampling import SampleSettings
from unitok.sequence import Document, pack
from unitok.tasks import TASKS, draws_pictures, pieces, reads_pictures
from unitok.train.tuning.start import ReaderStart
from unitok.trunk.hf import HFTrunk

ENCODERS = ("latents", "embedded", "clip", "siglip", "dinov2", "dinov2_with_registers")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, save_vision: Callable[[str, Path], str]) -> dict[str, str]:
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ENCODERS[2:]}
    hub = {kind: f"hf:{save_vision(kind, folder)}" for kind, folder in folders.items()}
    return {"latents": "latents", "embedded": "embedded", **hub}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_what_stands_at_a_picture_is_the_connector_of_the_encoder(
    make_model: Callable[..., UniTok], sources: dict[str, str], encoder: str
) -> None:
    """The slow way: the authors' model by itself, its patches, two layers; no vector of an id beside them."""
    model = reading(make_model(), sources[encoder])
    images = pictures(2)
    if encoder in ("latents", "embedded"):
        floats = to_float(images)
        if encoder == "latents":
            wanted = model.image_tokenizer.continuous(floats)
            ours = model.image_tokenizer.quantizer.nearest(wanted.transpose(1, 2).unflatten(2, (8, 8)))
            assert torch.equal(ours, model.image_tokenizer.encode(floats))
        else:
            from unitok.eval.networks.encoder.model import load_encoder

            network = load_encoder()
            wanted = model.reader.encoder(floats)  # type: ignore[union-attr]
            torch.testing.assert_close(wanted.mean(1), network.image(network.prepare(images)), atol=1e-5, rtol=0)
    else:
        import transformers as hf

        folder = sources[encoder].removeprefix("hf:")
        registers = hf.Dinov2WithRegistersModel
        kinds = (hf.CLIPVisionModel, hf.SiglipVisionModel, hf.Dinov2Model, registers)
        kind = dict(zip(ENCODERS[2:], kinds, strict=True))[encoder]
        theirs = kind.from_pretrained(folder).eval()
        pixels = F.interpolate(images / 255.0, (24, 24), mode="bilinear", antialias=True)
        mean, deviation = (torch.tensor(one)[:, None, None] for one in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
        seen = theirs(pixel_values=(pixels - mean) / deviation).last_hidden_state
        assert seen.shape[1] == 9 + (encoder != "siglip") + 4 * (kind is registers)
        wanted = F.layer_norm(seen, seen.shape[-1:])[:, -9:]
    state = {name.removeprefix("ports.reader.connector."): one for name, one in model.state_dict().items()}
    hidden = F.gelu(F.linear(wanted, state["enter.weight"], state["enter.bias"]))
    wanted = F.linear(hidden, state["leave.weight"], state["leave.bias"])
    found: list[torch.Tensor] = []
    hook = model.trunk.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    items = [made(model, "image_to_text", {"image": Picture(image), "caption": [1, 2]}) for image in images]
    states(model, *items)
    hook.remove()
    n = wanted.shape[1]
    assert len(items[0]) == n + 3
    for row, start in enumerate((0, len(items[0]))):
        torch.testing.assert_close(found[0][0, start : start + n], wanted[row], atol=2e-5, rtol=0)


@pytest.mark.parametrize("connector", CONNECTORS)
def test_a_step_moves_the_connector_and_leaves_the_encoder(
    make_model: Callable[..., UniTok], sources: dict[str, str], connector: str
) -> None:
    model = reading(make_model(), sources["clip"], connector).train()
    assert not model.reader.encoder.training and model.reader.connector.training  # type: ignore[union-attr]
    one, other = values(model, 2)
    items = [
        made(model, "question", {"image": one, "question": [5, 6], "answer": [7]}),
        made(model, "text_to_image", {"image": other, "caption": [1, 2]}),
    ]
    model(pack(items, pad=model.vocabulary.pad)).sum().backward()
    for name, weight in model.named_parameters():
        if name.startswith("ports.reader.connector"):
            assert weight.grad is not None and weight.grad.abs().max() > 0, name
        if name.startswith("ports.reader.encoder"):
            assert not weight.requires_grad and weight.grad is None, name
    model.zero_grad(set_to_none=True)
    model(pack(items[1:], pad=model.vocabulary.pad)).sum().backward()  # no picture is read: every weight has a gradient
    learned = [weight for name, weight in model.named_parameters() if name.startswith("ports.reader.connector")]
    assert all(weight.grad is not None and not weight.grad.any() for weight in learned)


@pytest.mark.parametrize("encoder", ["clip", "embedded"])
def test_an_encoder_learns_where_its_own_name_says_so(
    make_model: Callable[..., UniTok], sources: dict[str, str], encoder: str
) -> None:
    model = reading(make_model(), sources[encoder])
    _, read = read_encoder(ReaderSettings(encoder=sources[encoder]), model.image_tokenizer)
    ReaderStart(read, None, ["*"]).begin(model)
    assert not any(weight.requires_grad for weight in model.reader.encoder.parameters())  # type: ignore[union-attr]
    ReaderStart(read, None, ["ports.reader.connector.*", "ports.reader.encoder.tower.*"]).begin(model)
    model.train()
    item = made(model, "image_to_text", {"image": values(model, 1)[0], "caption": [1, 2]})
    model(pack([item], pad=model.vocabulary.pad)).sum().backward()
    moved = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert any(name.startswith("ports.reader.encoder.tower.") for name in moved)
    assert all(name.startswith("ports.reader.") for name in moved)


@pytest.mark.parametrize("connector", ["mlp", "qformer"])
@pytest.mark.parametrize("objective", ["next_token", "masked_token", "next_scale"])
def test_a_picture_is_seen_by_what_follows_it_and_by_nothing_else(
    make_model: Callable[..., UniTok], objective: str, connector: str
) -> None:
    """Also a picture that is learned: its private copy holds codes, and what follows sees the pixels."""
    model = reading(make_model(objective), "latents", connector)
    first, second, changed = values(model, 3)
    apart = made(model, "question", {"image": first, "question": [5], "answer": [6]})

    def story(value: Picture) -> Document:
        return made(model, "interleaved", {"parts": [("text", [1, 2]), ("image", value), ("text", [3])]})

    before, after = story(second), story(second._replace(pixels=changed.pixels))
    old, new = states(model, apart, before, apart), states(model, apart, after, apart)
    learned = 3 + (len(before) - 3 - 2 - len(model.seen))  # type: ignore[arg-type]
    differs = (old - new).abs().amax(1) > 0
    start = len(apart)
    assert not differs[: start + learned].any() and not differs[start + len(before) :].any()
    assert differs[start + learned : start + len(before)].all()
    recoded = states(model, apart, story(second._replace(codes=changed.codes)), apart)
    differs = (old - recoded).abs().amax(1) > 0
    assert differs[start + 3 : start + learned].any() and not differs[start + learned :].any()


@pytest.mark.parametrize("connector", ["linear", "perceiver"])
@pytest.mark.parametrize("kind", ["native", "hf"])
def test_documents_that_share_a_row_have_the_states_of_each_alone(
    make_model: Callable[..., UniTok], kind: str, connector: str
) -> None:
    trunk: Any = TrunkConfig(width=32, depth=2, heads=2) if kind == "native" else HFTrunk.of(LANGUAGE)
    model = reading(make_model(), "embedded", connector, trunk=trunk)
    items = [
        made(model, "question", {"image": image, "question": [5, 6], "answer": [7] * n})
        for n, image in enumerate(values(model, 3), start=1)
    ]
    together, start = states(model, *items), 0
    for item in items:
        alone = states(model, item)
        torch.testing.assert_close(together[start : start + len(item)], alone, atol=2e-5, rtol=0)
        start += len(item)


@pytest.mark.parametrize("connector", CONNECTORS)
@pytest.mark.parametrize("kind", ["native", "hf"])
@torch.inference_mode()
def test_what_is_written_by_the_cache_is_what_one_pass_finds_likeliest(
    make_model: Callable[..., UniTok], kind: str, connector: str
) -> None:
    """And pictures that are read together give the texts of each alone."""
    trunk: Any = TrunkConfig(width=32, depth=2, heads=2) if kind == "native" else HFTrunk.of(LANGUAGE)
    model = reading(make_model(), "latents", connector, trunk=trunk)
    images = pictures(3)
    texts = caption(model, images)
    assert texts == [caption(model, image[None])[0] for image in images]
    for image, text in zip(images, texts, strict=True):
        ids: list[int] = []
        while len(ids) < model.config.text_length:
            item = made(model, "image_to_text", {"image": Picture(image), "caption": ids})
            last = model.ids.scores(states(model, item)[-1], model.vocabulary.text_range).argmax().item()
            if last == model.vocabulary.eos:
                break
            ids.append(int(last))
        assert model.text_tokenizer.decode(ids) == text


@pytest.mark.parametrize("encoder", ENCODERS[:-1])
@pytest.mark.parametrize("connector", ["linear", "qformer"])
def test_a_folder_gives_the_model_back_to_the_bit(
    make_model: Callable[..., UniTok], sources: dict[str, str], encoder: str, connector: str, tmp_path: Path
) -> None:
    """Without the files that the encoder came from."""
    source = sources[encoder]
    if source.startswith("hf:"):
        moved = tmp_path / "encoder"
        shutil.copytree(source.removeprefix("hf:"), moved)
        source = f"hf:{moved}"
    model = reading(make_model(), source, connector)
    model.save_pretrained(tmp_path / "model")
    shutil.rmtree(tmp_path / "encoder", ignore_errors=True)
    loaded = UniTok.from_pretrained(tmp_path / "model")
    assert loaded.config == model.config and loaded.fingerprint() == model.fingerprint()
    item = made(model, "image_to_text", {"image": values(model, 1)[0], "caption": [1, 2]})
    assert torch.equal(states(loaded, item), states(model, item))
    names = json.loads((tmp_path / "model" / "config.json").read_text())["reader"]
    assert names["encoder"] == encoder if encoder in ("latents", "embedded") else names["encoder"] == "hf"
    assert "reader" not in make_model().config.to_json()


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
@torch.inference_mode()
def test_a_picture_that_was_drawn_is_read_as_one_that_was_given(
    make_model: Callable[..., UniTok], objective: str
) -> None:
    """The engine gives the codes back and reads the picture that they make; more positions than codes have room."""
    model = reading(make_model(objective), "embedded", "qformer")
    settings = SampleSettings(steps=2)
    (codes,) = draw_codes(model, ["a small red circle"], settings, [0])
    read = model.modalities()["image"].value(codes)
    assert isinstance(read, Picture) and torch.equal(read.pixels, model.pictures(codes[None])[0])
    assert caption_codes(model, codes[None]) == caption(model, read.pixels[None])
    (score,) = reading_scores(model, codes[None], [1, 2])
    wanted = model(pack([made(model, "image_to_text", {"image": read, "caption": [1, 2]})], pad=model.vocabulary.pad))
    torch.testing.assert_close(-score, wanted.sum(), atol=1e-4, rtol=0)


@torch.inference_mode()
def test_documents_go_on_behind_pictures_that_are_read(make_model: Callable[..., UniTok]) -> None:
    settings = dataclasses.replace(SampleSettings(), guidance=1.0)
    model = reading(make_model("maskgit"), "latents", "perceiver")
    writer = DocumentWriter(model, dataclasses.replace(settings, steps=2), settings, pictures=2, context=512)
    (image,) = as_read(model, pictures(1))
    begun = [[("text", "a small"), ("image", image), ("text", "red")], [("text", "circle")]]
    found = dict(write_documents(writer, begun, [0, 1]))
    alone = dict(write_documents(writer, begun[:1], [0]))
    shown = [
        value.tolist() if kind == "image" and not isinstance(value, Picture) else value for kind, value in found[0]
    ]
    again = [
        value.tolist() if kind == "image" and not isinstance(value, Picture) else value for kind, value in alone[0]
    ]
    assert shown == again and isinstance(found[0][1][1], Picture)


def test_which_tasks_read_and_which_draw() -> None:
    assert [task for task in TASKS if not reads_pictures([task])] == [
        "text_to_image",
        "text_only",
        "layout_to_image",
        "inpaint",
        "pointed_inpaint",
        "pointed_text_to_image",
    ]
    assert [task for task in TASKS if draws_pictures([task])] == [
        "text_to_image",
        "edit",
        "interleaved",
        "layout_to_image",
        "inpaint",
        "pointed_edit",
        "pointed_inpaint",
        "pointed_text_to_image",
    ]
    assert [piece.modality for piece in pieces("interleaved", {"parts": [("image", 1)]})] == [PASSAGE, "image", PASSAGE]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"encoder": "clip"}, "reader.encoder is 'clip': choose latents, embedded, or hf: and a folder"),
        ({"encoder": "hf:"}, "reader.encoder is 'hf:': choose"),
        ({"encoder": "latents", "connector": "conv"}, "reader.connector is 'conv': choose one of linear, mlp"),
        ({"connector": "linear"}, "reader.connector says how an encoder is read: choose one with --reader.encoder"),
        ({"encoder": "latents", "queries": 0}, "reader.queries is 0: choose"),
        ({"encoder": "latents", "depth": 0}, "reader.depth is 0: choose"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        ReaderSettings(**given)


def test_encoders_that_cannot_be_read(
    make_model: Callable[..., UniTok],
    save_vision: Callable[[str, Path], str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = make_model().image_tokenizer

    def refused(name: object, message: str) -> None:
        with pytest.raises(UserError, match=re.escape(message)):
            read_encoder(ReaderSettings(encoder=f"hf:{name}"), images)

    (tmp_path / "empty").mkdir()
    refused(
        tmp_path / "empty", "has no config.json and no preprocessor_config.json and no model.safetensors: give the "
    )
    refused(tmp_path / "config.json", "is not there: give the config.json of a vision model")
    save_vision("vit", tmp_path / "vit")
    refused(tmp_path / "vit", "is a model of type 'vit': give one of clip")
    save_vision("siglip", tmp_path / "siglip")
    (tmp_path / "siglip" / "model.safetensors").unlink()
    refused(tmp_path / "siglip", "siglip has no model.safetensors: give the folder of a vision model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(
        "owner/none",
        "reader.encoder owner/none is neither a folder with a CLIP, SigLIP or DINOv2 model (config.json, "
        "model.safetensors, preprocessor_config.json) nor one of the hub that can be fetched from here (the hub cannot "
        "be reached, and the cache has no copy): fetch it on a machine with a network and give its folder",
    )
    for kind, where in (("dinov2", lambda values: values), ("clip", lambda values: values["vision_config"])):
        save_vision(kind, tmp_path / kind)
        whole = json.loads((tmp_path / kind / "config.json").read_text())
        for change, message in (
            (
                {"hidden_size": 64},
                f"reader.encoder {tmp_path / kind} is 32 wide by its weights and 64 by its config.json",
            ),
            ({"num_hidden_layers": 3}, "has weights that are not those of its config.json (no encoder.layer"),
        ):
            values = json.loads(json.dumps(whole))
            where(values).update(change)
            (tmp_path / kind / "config.json").write_text(json.dumps(values))
            capfd.readouterr()
            refused(tmp_path / kind, message)
            assert capfd.readouterr().err == "", "transformers says nothing beside it"
    config, encoder = read_encoder(ReaderSettings(encoder=f"hf:{tmp_path / 'siglip' / 'config.json'}"), images)
    assert encoder(torch.zeros(1, 3, 32, 32)).shape == (1, 9, 32) and config.vision is not None


def test_folders_whose_reader_does_not_fit(
    make_model: Callable[..., UniTok], sources: dict[str, str], tmp_path: Path, without_digests: Callable[[Path], None]
) -> None:
    model = reading(make_model(), sources["siglip"])
    model.save_pretrained(tmp_path)
    without_digests(tmp_path)
    whole = json.loads((tmp_path / "config.json").read_text())

    def refused(change: Callable[[dict[str, Any]], object], message: str) -> None:
        values = json.loads(json.dumps(whole))
        change(values["reader"])
        (tmp_path / "config.json").write_text(json.dumps(values))
        with pytest.raises(UserError, match=message):
            UniTok.from_pretrained(tmp_path)

    refused(lambda reader: reader.update(connector="conv"), "reader: connector is 'conv': expected one of")
    refused(lambda reader: reader.pop("vision"), "reader.vision describes an hf encoder")
    refused(lambda reader: reader["vision"].update({"class": "AutoModel"}), "reader.vision does not describe a vision")
    refused(lambda reader: reader["vision"].update(size=[24]), "reader.vision does not describe a vision")
    refused(lambda reader: reader["vision"].update(mean=[1.0]), "reader.vision does not describe a vision")
    refused(lambda reader: reader["vision"]["config"].update(patch_size=0), "reader.vision does not describe a vision")
    refused(lambda reader: reader["vision"]["config"].update(hidden_size="x"), "reader.vision does not describe a vis")
    refused(
        lambda reader: reader["vision"]["config"].update(hidden_size=64), "for an encoder 32 wide, and .* is 64 wide"
    )
    refused(lambda reader: reader.update(encoder="embedded", vision=None), "encoder 32 wide, and .* is 160 wide: wei")


def test_a_reader_is_an_entry_in_the_registries() -> None:
    from unitok.reader.config import KINDS
    from unitok.reader.connectors import CONNECTORS as BUILT
    from unitok.reader.encoders import ENCODERS as KNOWN
    from unitok.reader.encoders import READ

    assert tuple(BUILT) == CONNECTORS and tuple(KNOWN) == tuple(READ) == KINDS
    config = ModelConfig.from_json(
        ModelConfig(
            TrunkConfig(width=32, depth=1, heads=2),
            "next_token",
            (("text", 9), *((name, 1) for name in ("eos", "bos", "boi", "mask", "pad")), ("image", 4)),
            reader=ReaderConfig(encoder="latents", connector="linear"),
        ).to_json(),
        "here",
    )
    assert config.reader == ReaderConfig(encoder="latents", connector="linear") and READER == "reader"
