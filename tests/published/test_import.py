"""`unitok import` of generators: folders like any other, and one line for what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tokenizers_vq.base import build_tokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.published import PUBLISHED as TOKENIZERS
from tokenizers_vq.published.load import released_configs
from unitok.cli.main import main
from unitok.importing import import_generator, likeness_to_families
from unitok.model import UniTok
from unitok.sample.pipeline import draw_codes, score_codes
from unitok.sampling import SampleSettings
from unitok.trunk.published import PUBLISHED, published_family

from .tiny import CLASSES, SIDES, Weights, llamagen_weights, tokenizer, var_weights


def shards(folder: Path, weights: Weights, ending: str) -> Path:
    """Two files and their index."""
    names, listed = sorted(weights), {}
    for number, some in enumerate((names[::2], names[1::2])):
        file = f"part-{number}{ending}"
        part = {name: weights[name].contiguous() for name in some}
        save_file(part, folder / file) if ending == ".safetensors" else torch.save(part, folder / file)
        listed |= dict.fromkeys(some, file)
    index = folder / f"pytorch_model{ending}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    return index


def test_command_makes_a_model_that_commands_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, out = tmp_path / "images", tmp_path / "model"
    tokenizer(SIDES).save_pretrained(images)
    torch.save(var_weights(False), tmp_path / "var.pth")
    settings, recipe = tmp_path / "authors.yaml", tmp_path / "recipe.yaml"
    settings.write_text("patch_nums: [1, 2, 3, 4]\nmodel: {depth: 2, drop_path: 0.1}\n")
    recipe.write_text(f"settings: {settings}\n")
    argv = ["import", "var", str(tmp_path / "var.pth"), "--image_tokenizer", str(images), "--out", str(out)]
    assert main([*argv, "--settings", str(settings)]) == 0
    said, noted = capsys.readouterr()
    assert said == f"model: {out}\n"
    assert "settings that the import does not need: depth, drop_path\n" in noted and "1x1 + 2x2 + 3x3 + 4x4" in noted
    (tmp_path / "authors.json").write_text('{\n\t"patch_nums": [1, 2, 3, 4], "depth": 2}')
    for words in (["--settings", str(tmp_path / "authors.json")], ["--config", str(recipe)]):
        assert main([*argv, *words]) == 0
        said = capsys.readouterr().err
        assert "does not need: depth" in said and "holds this generator already: nothing was written" in said

    drawn = tmp_path / "drawn"
    assert main(["sample", "--model", str(out), "3", "7", "--n", "2", "--out", str(drawn), "--top_k", "0"]) == 0
    records = [json.loads(line) for line in (drawn / "pictures" / "metadata.jsonl").read_text().splitlines()]
    assert [(one["caption"], one["seed"]) for one in records] == [("3", 0), ("3", 1), ("7", 0), ("7", 1)]
    assert records[0]["settings"]["guidance"] == 2.5 and records[0]["settings"]["guidance_rises"]
    capsys.readouterr()
    assert main(["sample", "--model", str(out), "a dog", "--out", str(tmp_path / "dog")]) == 2
    assert "the caption 'a dog' is no class of this model: give a number from 0 to 9\n" in capsys.readouterr().err
    assert not (tmp_path / "dog").exists()
    assert main(["caption", "--model", str(out), str(drawn / "pictures" / "3-s0.png")]) == 2
    assert "image_to_text" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["llamagen", "var"])
def test_folders_are_inverse_and_draws_do_not_depend_on_their_batch(family: str, tmp_path: Path) -> None:
    scales, weights = {"llamagen": ((), llamagen_weights()), "var": (SIDES, var_weights(True))}[family]
    torch.save(weights, tmp_path / "x.pt")
    settings = {"n_head": 4} if family == "llamagen" else {}
    model = import_generator(family, tmp_path / "x.pt", tokenizer(scales), settings)
    model.save_pretrained(tmp_path / "model")
    loaded = UniTok.from_pretrained(tmp_path / "model")
    assert loaded.config == model.config and loaded.fingerprint() == model.fingerprint()
    drawn = SampleSettings(guidance=2.0, top_k=20, top_p=0.9)
    together = draw_codes(loaded, ["3", 0, "9", 3], drawn, [0, 1, 2, 3])
    assert torch.equal(
        together, torch.cat([draw_codes(model, [label], drawn, [n]) for n, label in enumerate((3, 0, 9, 3))])
    )
    known = together[:1]
    assert torch.equal(score_codes(model, [3], known), score_codes(loaded, ["3"], known))


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
def test_several_files_with_an_index_are_one(ending: str, tmp_path: Path) -> None:
    weights = llamagen_weights()
    index = shards(tmp_path, weights, ending)
    images = tokenizer()
    torch.save({"module": {f"_fsdp_wrapped_module.{name}": one for name, one in weights.items()}}, tmp_path / "one.pth")
    found = import_generator("llamagen", tmp_path / "one.pth", images, {"n_head": 4})
    stale = {name: one + 1 for name, one in weights.items()}
    for content in ({"ema": weights}, {"model": weights, "ema": stale}):
        torch.save(content, tmp_path / "one.pth")
        again = import_generator("llamagen", tmp_path / "one.pth", images, {"n_head": 4})
        assert again.fingerprint() == found.fingerprint(), content.keys()
    (tmp_path / "one.pth").unlink()
    for path in (index, tmp_path):
        assert import_generator("llamagen", path, images, {"n_head": 4}).fingerprint() == found.fingerprint()
    index.write_text('{"weight_map": {"a": "../a.bin"}}')
    with pytest.raises(UserError, match=r"lists no files of weights beside it: fetch it again$"):
        import_generator("llamagen", index, images)


def refused(tmp_path: Path, family: str, weights: Weights, scales: tuple[int, ...] = (), **settings: Any) -> str:
    torch.save(weights, tmp_path / "x.pt")
    with pytest.raises(UserError) as error:
        import_generator(family, tmp_path / "x.pt", tokenizer(scales), settings)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{tmp_path}/")


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    weights = llamagen_weights()
    short = {name: one for name, one in var_weights(False).items() if not name.startswith("blocks.1.")}
    said = refused(tmp_path, "var", {**short, "blocks.1.ada_gss": torch.zeros(1)}, SIDES)
    assert said == (
        "x.pt is no var: it lacks blocks.1.ada_lin.1.bias, blocks.1.ada_lin.1.weight, blocks.1.attn.mat_qkv.weight and "
        "9 more; it has unexpected blocks.1.ada_gss (the nearest released model is var_d16.pth); give another family "
        "or file"
    )
    lacking = {name: one for name, one in weights.items() if name != "layers.1.ffn_norm.weight"}
    said = refused(tmp_path, "llamagen", {**lacking, "more": torch.zeros(1)}, n_head=4)
    assert said == (
        "x.pt is no llamagen: it lacks layers.1.ffn_norm.weight; it has unexpected more (the nearest released model is "
        "c2i_B_256.pt); give another family or file"
    )
    assert "no tensor says how many heads this one has: give --settings" in refused(tmp_path, "llamagen", weights)
    assert "trunk.width is 32 with trunk.heads 5" in refused(tmp_path, "llamagen", weights, n_head=5)
    assert "setting n_head is 'four': give a whole number" in refused(tmp_path, "llamagen", weights, n_head="four")
    said = refused(tmp_path, "llamagen", weights, n_head=4, image_size=384)
    assert "the model draws 24x24 codes, the image tokenizer makes 4x4: import the tokenizer with" in said
    said = refused(tmp_path, "llamagen", weights, SIDES, n_head=4)
    assert "makes 1x1 + 2x2 + 3x3 + 4x4 codes, LlamaGen draws one square grid" in said
    fewer = {name: one[:40] if one.shape[0] == 50 else one for name, one in weights.items()}
    said = refused(tmp_path, "llamagen", fewer, n_head=4)
    assert said == (
        "x.pt draws 40 codes, the image tokenizer has 50: give the folder that unitok import llamagen_vq made"
    )
    said = refused(tmp_path, "llamagen", {**weights, "norm.weight": weights["norm.weight"] * float("nan")}, n_head=4)
    assert "holds weights that no generator works with: norm.weight has NaN" in said
    said = refused(tmp_path, "var", var_weights(False), (1, 2, 4))
    assert said.startswith("the model draws 30 codes a picture, the image tokenizer makes 21: import the tokenizer")
    torch.save(weights, tmp_path / "c2i_B_384.pt")
    with pytest.raises(UserError, match=r"c2i_B_384.pt draws 24x24 codes, the image tokenizer makes 4x4: import"):
        import_generator("llamagen", tmp_path / "c2i_B_384.pt", tokenizer(), {"n_head": 4})


def test_a_file_of_another_family_says_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = llamagen_weights()
    looks = "it looks like {}; give that family, or another file"
    for family, scales in (("var", SIDES), ("open_magvit2_ar", ()), ("chameleon", ()), ("infinity", SIDES)):
        assert refused(tmp_path, family, weights, scales) == f"x.pt is no {family}: {looks.format('llamagen')}"
    assert looks.format("var") in refused(tmp_path, "llamagen", var_weights(True), n_head=4)
    images = {f"module.{name}": torch.zeros(1) for name in names_of_tokenizer("llamagen_vq")}
    assert looks.format("llamagen_vq") in refused(tmp_path, "llamagen", images, n_head=4)
    assert main(["import", "taming_vqgan", str(tmp_path / "x.pt"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.endswith(f"x.pt is no taming_vqgan: {looks.format('llamagen_vq')}\n")
    assert not (tmp_path / "out").exists()
    nobody = refused(tmp_path, "var", {"a": torch.zeros(1), **var_weights(False, depth=0)}, SIDES)
    assert "looks like" not in nobody and "it lacks blocks.0" in nobody


def names_of_tokenizer(family: str) -> list[str]:
    config = released_configs(family)[0]
    with torch.device("meta"):
        return [
            TOKENIZERS[family].source(n, tuple(t.shape), config).name
            for n, t in build_tokenizer(config).state_dict().items()
        ]


@pytest.mark.parametrize("family", PUBLISHED)
def test_a_released_model_looks_like_its_family(family: str) -> None:
    """Lumina-mGPT has the network of Chameleon; all others differ from each other."""
    table = published_family(family)
    for sizes in table.released().values():
        shapes = table.shapes(*sizes)
        found = likeness_to_families({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, {})
        best = {name for name, one in found.items() if one == max(found.values())}
        assert best == ({"chameleon", "lumina"} if family in ("chameleon", "lumina") else {family})
        assert found[family] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["llamagen", "x.pt"], "llamagen draws codes of an image tokenizer: give its folder with --image_tokenizer"),
        (["ibq", "x.pt", "--image_tokenizer", "y"], "ibq is a tokenizer itself: leave --image_tokenizer out"),
        (["var", "x.pt", "--image_tokenizer", "y"], "no image tokenizer at y"),
        (["var", "x.pt", "--settings", "none.yaml"], "--settings: 'none.yaml' cannot be read (No such file"),
        (["ibq", "x.pt", "--settings", "none.json"], "--settings: cannot read none.json: No such file"),
        (["ibq", "x.pt", "--settings", "[3]"], "--settings: '[3]' cannot be read"),
    ],
)
def test_nothing_is_written_for_nonsense(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", *words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize(
    ("family", "file", "count", "some"),
    [
        ("llamagen", "c2i_B_256.pt", 88, {"layers.11.feed_forward.w2.weight": (768, 2048)}),
        ("llamagen", "c2i_3B_384.pt", 172, {"layers.23.feed_forward.w1.weight": (8704, 3200)}),
        ("llamagen", "t2i_XL_stage1_256.pt", 258, {"cls_embedding.uncond_embedding": (120, 2048)}),
        ("var", "var_d16.pth", 202, {"pos_1LC": (1, 680, 1024), "blocks.15.ada_lin.1.weight": (6144, 1024)}),
        ("var", "var_d36.pth", 408, {"pos_1LC": (1, 2240, 2304), "blocks.35.ada_gss": (1, 1, 6, 2304)}),
    ],
)
def test_released_models_want_the_published_tensors(family: str, file: str, count: int, some: dict[str, Any]) -> None:
    """Counts and shapes of the authors' code, without what follows from the sizes."""
    table = published_family(family)
    shapes = table.shapes(*table.released()[file])
    assert len(shapes) == count and shapes.items() >= some.items()


def test_an_unknown_kind_of_trunk_is_told(tmp_path: Path) -> None:
    torch.save(llamagen_weights(), tmp_path / "x.pt")
    import_generator("llamagen", tmp_path / "x.pt", tokenizer(), {"n_head": 4}).save_pretrained(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    del config["files"]
    for kind, message in (
        ("llama", "trunk kind is 'llama': known are native, llamagen, var, janus"),
        (3, "trunk kind is 3"),
    ):
        config["trunk"]["kind"] = kind
        (tmp_path / "m" / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=message):
            UniTok.from_pretrained(tmp_path / "m")
    assert dict(config["vocabulary"])["text"] == CLASSES
