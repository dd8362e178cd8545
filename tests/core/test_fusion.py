"""Weights of a trunk for pictures alone: gated cross-attention and experts, on our trunk and on language models."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from language_models import settings_of
from reading_models import LANGUAGE, assert_likeliest, made, pictures, reading, states, values

from tokenizers_vq.errors import UserError
from tokenizers_vq.parts import train_only
from unitok.config import ModelConfig, TrunkConfig
from unitok.modalities import Picture
from unitok.model import UniTok
from unitok.prepare import prepare
from unitok.reader.config import FUSIONS, ReaderConfig, ReaderSettings
from unitok.sample.documents import DocumentWriter, write_documents
from unitok.sample.pictures import as_read
from unitok.sample.pipeline import caption, draw_codes
from unitok.sampling import SampleSettings
from unitok.sequence import Document, lay_out, pack
from unitok.trunk.fusion import FUSIONS as BUILT
from unitok.trunk.fusion import Gated, part_of_fusion
from unitok.trunk.hf import HFTrunk
from unitok.trunk.native import rotate
from unitok.tuning.lora import add_lora, linear_maps, merge_lora

OWN = FUSIONS[1:]
"""Those with weights for pictures alone."""
TRUNKS: dict[str, Callable[[], Any]] = {
    "native": lambda: TrunkConfig(width=32, depth=2, heads=2, kv_heads=1),
    "llama": lambda: HFTrunk.of(LANGUAGE),
    "gpt2": lambda: HFTrunk.of({**settings_of("gpt2"), "n_positions": 256}),
    "gemma3": lambda: HFTrunk.of({**settings_of("gemma3_text"), "sliding_window": 3}),
}
MakeModel = Callable[..., UniTok]


def on(make_model: MakeModel, trunk: str, fusion: str, objective: str = "next_token", **more: Any) -> UniTok:
    return reading(make_model(objective), fusion=fusion, trunk=TRUNKS[trunk](), **more)


def plain(model: UniTok) -> UniTok:
    """The same trunk and ids without a reader."""
    other = UniTok(dataclasses.replace(model.config, reader=None), model.image_tokenizer, model.text_tokenizer)
    other.load_state_dict({name: one for name, one in model.state_dict().items() if name in other.state_dict()})
    return other.eval()


def question(model: UniTok, picture: Picture, *answer: int) -> Document:
    return made(model, "question", {"image": picture, "question": [5, 6], "answer": list(answer)})


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("fusion", OWN)
def test_without_pictures_the_trunk_is_what_it_was_to_the_bit(make_model: MakeModel, fusion: str, trunk: str) -> None:
    """Whatever the weights for pictures have learned: in texts, and in pictures that are drawn."""
    model = on(make_model, trunk, fusion)
    other = plain(model)
    picture = values(model, 1)[0]
    text = made(model, "text_only", {"caption": [1, 2, 3]})
    drawn = made(model, "text_to_image", {"caption": [1, 2], "image": picture})
    for items in ([text], [drawn], [text, drawn]):
        assert torch.equal(states(model, *items), states(other, *items))
    beside = states(model, question(model, picture, 7), text)[-len(text) :]  # in one row with a picture
    torch.testing.assert_close(beside, states(other, text), atol=1e-5, rtol=0)
    if trunk in ("native", "llama"):
        settings = SampleSettings(guidance=1.0)
        codes = [draw_codes(one, ["a small red circle"], settings, [3]) for one in (model, other)]
        assert torch.equal(*codes)


@pytest.mark.parametrize("trunk", TRUNKS)
@torch.inference_mode()
def test_gates_begin_closed(make_model: MakeModel, trunk: str) -> None:
    """Then what follows a picture is what would stand there without one."""
    model = on(make_model, trunk, "cross_attention")
    item = question(model, values(model, 1)[0], 7, 8)
    opened = states(model, item)
    for layer in model.trunk.modules():
        if isinstance(layer, Gated):
            assert layer.gate_attention.item() == pytest.approx(0.7)
            layer.gate_attention.zero_()
            layer.gate_mlp.zero_()
    closed = states(model, item)
    m = model.reader.length  # type: ignore[union-attr]
    batch = lay_out([[item]], pad=model.vocabulary.pad)
    without = dataclasses.replace(
        batch,
        inputs=batch.inputs[:, m:],
        groups=batch.groups[:, m:],
        documents=batch.documents[:, m:],
        places=batch.places[:, m:],
        features={},
    )
    torch.testing.assert_close(closed[m:], plain(model).states(without)[0], atol=1e-5, rtol=0)
    assert (opened[m:] - closed[m:]).abs().amax(1).min() > 1e-3
    fresh = UniTok(model.config, model.image_tokenizer, model.text_tokenizer)
    assert not any(weight.any() for name, weight in fresh.named_parameters() if ".gated.gate_" in name)


@pytest.mark.parametrize("trunk", TRUNKS)
@torch.inference_mode()
def test_experts_begin_as_copies(make_model: MakeModel, trunk: str) -> None:
    """Then pictures are what they are to the trunk without experts."""
    model = on(make_model, trunk, "experts")
    assert model.fusion is not None and model.config.reader is not None
    item = question(model, values(model, 1)[0], 7, 8)
    before = states(model, item)
    model.fusion.begin(model.trunk)
    other = UniTok(
        dataclasses.replace(model.config, reader=dataclasses.replace(model.config.reader, fusion="sequence")),
        model.image_tokenizer,
        model.text_tokenizer,
    )
    other.load_state_dict({name: one for name, one in model.state_dict().items() if not part_of_fusion(name)})
    torch.testing.assert_close(states(model, item), states(other.eval(), item), atol=1e-5, rtol=0)
    assert (states(model, item) - before).abs().max() > 1e-2


@torch.inference_mode()
def test_a_gated_layer_is_what_its_authors_write_down(make_model: MakeModel) -> None:
    """The slow way: one position, one head, one picture after the other."""
    model = on(make_model, "native", "cross_attention")
    layer = model.trunk.blocks[1].gated
    given: list[tuple[Any, ...]] = []
    hook = layer.register_forward_hook(lambda _, inputs, output: given.append((*inputs, output)))  # type: ignore[union-attr]
    first, second = values(model, 2)
    item = made(model, "interleaved", {"parts": [("text", [1, 2]), ("image", first), ("text", [3]), ("image", second)]})
    batch = lay_out([[item, question(model, second, 7)]], pad=model.vocabulary.pad)
    model.states(batch)
    hook.remove()
    (x, looks, _, found), seen = given[0], batch.visibility().mask[0, 0]
    state = layer.state_dict()  # type: ignore[union-attr]

    def norm(name: str, vector: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(vector, vector.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    shown = dict(zip(looks.at.tolist(), looks.vectors, strict=True))
    assert len(shown) == 3 * model.reader.length  # type: ignore[union-attr]
    changed = 0
    for q in range(0, x.shape[1], 3):
        visible = [vector for k, vector in shown.items() if seen[q, k]]
        y = x[0, q]
        if visible:
            changed += 1
            pairs = [(state["key_value.weight"] @ norm("norm_pictures", vector)).split(16) for vector in visible]
            heads = []
            for query in (state["query.weight"] @ norm("norm", y)).split(16):
                shares = torch.stack([query @ key / math.sqrt(16) for key, _ in pairs]).softmax(0)
                heads.append(sum(share * value for share, (_, value) in zip(shares, pairs, strict=True)))
            y = y + math.tanh(0.7) * (state["out.weight"] @ torch.cat(heads))  # type: ignore[arg-type]
            inner = F.gelu(state["mlp.0.weight"] @ norm("norm_mlp", y))
            y = y + math.tanh(0.7) * (state["mlp.2.weight"] @ inner)
        torch.testing.assert_close(found[0, q], y, atol=2e-5, rtol=0)
    assert 0 < changed < x.shape[1] / 3


@torch.inference_mode()
def test_a_block_with_experts_is_what_its_authors_write_down(make_model: MakeModel) -> None:
    """The slow way: each position by the maps that are its own, then one attention over all."""
    model = on(make_model, "native", "experts")
    block: Any = model.trunk.blocks[0]
    item = question(model, values(model, 1)[0], 7, 8)
    given: list[tuple[Any, ...]] = []
    hook = block.register_forward_hook(lambda _, inputs, output: given.append((*inputs, output)))
    states(model, item)
    hook.remove()
    (x, turns, seen, *_, found), m = given[0], model.reader.length  # type: ignore[union-attr]

    def mapped(layer: Any, vectors: torch.Tensor) -> torch.Tensor:
        rows = [
            (layer.expert.weight if place < m else layer.weight) @ vector for place, vector in enumerate(vectors[0])
        ]
        return torch.stack(rows)[None]

    qkv = mapped(block.attention.qkv, block.attention_norm(x)).view(1, -1, 4, 16).transpose(1, 2)
    q, k = (
        rotate(block.attention.query_norm(qkv[:, :2]), turns[0]),
        rotate(block.attention.key_norm(qkv[:, 2:3]), turns[1]),
    )
    scores = (q @ k.transpose(2, 3) / 4).masked_fill(~seen.mask, -torch.inf).softmax(-1)
    h = x + mapped(block.attention.out, (scores @ qkv[:, 3:]).transpose(1, 2).flatten(2))
    gate, up = mapped(block.mlp.gate_up, block.mlp_norm(h)).chunk(2, -1)
    torch.testing.assert_close(found, h + mapped(block.mlp.down, F.silu(gate) * up), atol=2e-5, rtol=0)


@pytest.mark.parametrize("objective", ["next_token", "masked_token", "next_scale"])
@pytest.mark.parametrize("fusion", OWN)
def test_a_picture_is_seen_by_what_follows_it_and_by_nothing_else(
    make_model: MakeModel, fusion: str, objective: str
) -> None:
    model = reading(make_model(objective), fusion=fusion)
    first, second, changed = values(model, 3)
    apart = question(model, first, 7)

    def story(value: Picture) -> Document:
        return made(model, "interleaved", {"parts": [("text", [1, 2]), ("image", value), ("text", [3])]})

    before, after = story(second), story(second._replace(pixels=changed.pixels))
    old, new = states(model, apart, before, apart), states(model, apart, after, apart)
    start, end = len(apart), len(apart) + len(before)
    follows = end - 2 - model.reader.length  # type: ignore[union-attr]
    differs = (old - new).abs().amax(1) > 0
    assert not differs[:follows].any() and not differs[end:].any() and differs[follows:end].all()
    recoded = (states(model, apart, story(second._replace(codes=changed.codes)), apart) - old).abs().amax(1) > 0
    assert recoded[start + 3 : follows].any() and not recoded[follows:].any()


@pytest.mark.parametrize("trunk", ["native", "gpt2", "gemma3"])
@pytest.mark.parametrize("fusion", OWN)
@torch.inference_mode()
def test_rows_and_steps_change_nothing(make_model: MakeModel, fusion: str, trunk: str) -> None:
    """Packed is unpacked; and texts by the cache, also behind prompts in two passes, are what one pass finds."""
    every = 2 if trunk == "native" else 1
    model = on(make_model, trunk, fusion, connector="perceiver", every=every)
    assert model.trunk.further == sum(isinstance(one, Gated) for one in model.trunk.modules())
    assert model.trunk.further == (fusion == "cross_attention") * 2 / every
    images = values(model, 3)
    items = [question(model, image, *[7] * n) for n, image in enumerate(images, start=1)]
    together, start = states(model, *items), 0
    for item in items:
        alone = states(model, item)
        torch.testing.assert_close(together[start : start + len(item)], alone, atol=2e-5, rtol=0)
        start += len(item)
    asked = [model.text_ids(text) for text in ("a small red circle", "blue", "left of")]
    assert_likeliest(model, "image_to_text", "caption", [{"image": image} for image in images])
    records = [{"image": image, "question": words} for image, words in zip(images, asked, strict=True)]
    assert_likeliest(model, "question", "answer", records)


@pytest.mark.parametrize("fusion", OWN)
@torch.inference_mode()
def test_documents_go_on_behind_pictures(make_model: MakeModel, fusion: str) -> None:
    """A picture that was drawn is read by the weights for pictures; two documents are each of them alone."""
    model = reading(make_model("maskgit"), "latents", "perceiver", fusion)
    settings = dataclasses.replace(SampleSettings(), guidance=1.0)
    writer = DocumentWriter(model, dataclasses.replace(settings, steps=2), settings, pictures=2, context=512)
    (image,) = as_read(model, pictures(1))
    begun = [[("text", "a small"), ("image", image), ("text", "red")], [("text", "circle")]]
    found = dict(write_documents(writer, begun, [0, 1]))
    for number in (0, 1):
        alone = dict(write_documents(writer, begun[number : number + 1], [number]))[0]
        assert [kind for kind, _ in found[number]] == [kind for kind, _ in alone]
        for (_, one), (_, other) in zip(found[number], alone, strict=True):
            assert torch.equal(one.codes, other.codes) if isinstance(one, Picture) and one.codes is not None else True
            assert one == other if isinstance(one, str) else True


@pytest.mark.parametrize("trunk", ["native", "gpt2"])
@pytest.mark.parametrize("fusion", OWN)
def test_gradients_reach_what_should_learn_alone(make_model: MakeModel, fusion: str, trunk: str) -> None:
    """Of a frozen trunk: connector and weights for pictures. Recomputing blocks changes no gradient; a batch without
    pictures gives each of them one, of 0."""
    model = on(make_model, trunk, fusion).train()
    patterns = ["ports.reader.*", "trunk.*.gated.*" if fusion == "cross_attention" else "trunk.*.expert.*"]
    train_only(model, patterns)
    learned = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert all(name.startswith("ports.reader.connector.") or part_of_fusion(name) for name in learned)
    one, other = values(model, 2)
    batch = pack([question(model, one, 7), question(model, other, 8, 9)], pad=model.vocabulary.pad)
    grads = []
    for model.trunk.checkpointing in (False, True):
        model.zero_grad(set_to_none=True)
        model(batch).sum().backward()
        grads.append({name: weight.grad for name, weight in learned.items() if weight.grad is not None})
    assert grads[0].keys() == grads[1].keys() == learned.keys()
    for name, gradient in grads[0].items():
        torch.testing.assert_close(grads[1][name], gradient)
    still = {name for name, gradient in grads[0].items() if not gradient.any()}
    # Nobody looks at what the last block makes of a picture but for its keys and values.
    last = f"trunk.blocks.{len(model.trunk.blocks) - 1}."
    assert all(name.startswith(last) and fusion == "experts" for name in still)
    assert all(weight.grad is None for name, weight in model.named_parameters() if name not in learned)
    model.zero_grad(set_to_none=True)
    model(pack([made(model, "text_only", {"caption": [1, 2]})], pad=model.vocabulary.pad)).sum().backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in learned.values())


@pytest.mark.parametrize("fusion", OWN)
def test_a_frozen_trunk_learns_to_tell_pictures_apart(make_model: MakeModel, fusion: str) -> None:
    """From closed gates and copies on; a trunk that sees no picture cannot do better than by chance."""
    model = on(make_model, "llama", fusion, connector="perceiver")
    for name, weight in model.named_parameters():
        if ".gated.gate_" in name:
            torch.nn.init.zeros_(weight)
    assert model.fusion is not None
    model.fusion.begin(model.trunk)
    with torch.no_grad():
        model.ids.embedding.weight.mul_(4)  # the head, which is frozen, can be sure
    train_only(
        model.train(), ["ports.reader.*", "trunk.*.gated.*" if fusion == "cross_attention" else "trunk.*.expert.*"]
    )
    items = [question(model, picture, 7 + number) for number, picture in enumerate(values(model, 2))]
    batch = lay_out([items], pad=model.vocabulary.pad)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        loss = model(batch).sum() / len(batch.at)
        loss.backward()
        optimizer.step()
    assert loss < 0.1 < math.log(2) / 2  # of an answer and its end; the answer is one of two


@pytest.mark.parametrize("trunk", ["native", "llama"])
@pytest.mark.parametrize("fusion", OWN)
@torch.inference_mode()
def test_folders_adapters_and_prepared_models(
    make_model: MakeModel, fusion: str, trunk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = on(make_model, trunk, fusion)
    item = question(model, values(model, 1)[0], 7)
    wanted = states(model, item)
    model.save_pretrained(tmp_path)
    assert torch.equal(states(UniTok.from_pretrained(tmp_path), item), wanted)
    add_lora(model.trunk, linear_maps(model.trunk), 2, 4.0)
    for name, weight in model.named_parameters():
        if ".lora.up" in name:
            torch.nn.init.normal_(weight, std=0.1)
    tuned = states(model, item)
    assert (tuned - wanted).abs().max() > 1e-2
    merge_lora(model.trunk)
    torch.testing.assert_close(states(model, item), tuned, atol=2e-5, rtol=0)
    ready = UniTok.from_pretrained(tmp_path)
    monkeypatch.setattr("unitok.prepare.LARGE", 1)
    assert prepare(ready, "fp32") == "fp32"
    torch.testing.assert_close(states(ready, item), wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("connector", ["linear", "qformer"])
@torch.inference_mode()
def test_pictures_are_read_whole_and_in_tiles(make_model: MakeModel, connector: str) -> None:
    """Each crop by itself, one after the other; features of tiles stand where they lie."""
    model = reading(make_model(), "embedded", connector, tiles=2)
    reader = model.reader
    assert reader is not None
    image = pictures(2)
    crops = [image, *(image[:, :, y : y + 16, x : x + 16] for y in (0, 16) for x in (0, 16))]
    parts = [reader.connector(reader.encoder(one / 127.5 - 1)) for one in crops]
    torch.testing.assert_close(reader(image), torch.cat(parts, 1).flatten(0, 1), atol=2e-5, rtol=0)
    places = reader.places(model.layout)
    assert len(places) == reader.length == 5 * parts[0].shape[1]
    if connector == "linear":  # 4x4 of the whole, then 4x4 of each quarter; codes are 8x8
        assert places[:2].tolist() == [[0.0, 0.5, 0.5], [0.0, 0.5, 2.5]]
        assert places[16:20].tolist() == [[1.0, 0.0, float(column)] for column in range(4)]
        assert places[32].tolist() == [1.0, 0.0, 4.0] and places[48].tolist() == [1.0, 4.0, 0.0]
    else:
        assert places[:, 0].unique(return_counts=True)[1].tolist() == [reader.length // 5] * 5
    assert len(caption(model, image)) == 2
    latents = reading(make_model(), "latents", tiles=2).reader
    assert latents is not None and latents(image).shape[0] == 2 * 5 * 64


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fusion": "late"}, "reader.fusion is 'late': choose one of sequence, cross_attention, experts"),
        ({"fusion": "experts", "encoder": None}, "reader.fusion says how an encoder is read: choose one with"),
        ({"every": 0}, "reader.every is 0: choose"),
        ({"tiles": 9}, "reader.tiles is 9: choose"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        ReaderSettings(**{"encoder": "latents", **given})


def test_models_that_cannot_be(make_model: MakeModel) -> None:
    with pytest.raises(UserError, match=re.escape("reader.tiles is 3, and pictures are 32x32: choose a divisor of")):
        reading(make_model(), tiles=3)
    flex = TrunkConfig(width=32, depth=1, heads=2, attention="flex")
    with pytest.raises(UserError, match=re.escape("reader.fusion is experts, and trunk.attention is flex: choose")):
        reading(make_model(), fusion="experts", trunk=flex)


def test_a_fusion_is_an_entry_in_the_registry() -> None:
    """And a model without one has the configuration, and so the fingerprint, of before."""
    assert tuple(BUILT) == FUSIONS
    spans = (("text", 9), *((name, 1) for name in ("eos", "bos", "boi", "mask", "pad")), ("image", 4))
    for reader in (
        ReaderConfig(encoder="latents", connector="mlp"),
        ReaderConfig(encoder="latents", connector="mlp", fusion="experts", tiles=2),
    ):
        config = ModelConfig(TrunkConfig(width=32, depth=1, heads=2), "next_token", spans, reader=reader)
        assert ModelConfig.from_json(config.to_json(), "here").reader == reader
        assert ("fusion" in config.to_json()["reader"]) == (reader.fusion == "experts")
