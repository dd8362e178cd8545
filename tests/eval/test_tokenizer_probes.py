"""pFID and the linear probe: near codes by their definition, predictions by a slow reference, and the command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tokenizers_vq.base import ImageTokenizer, build_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS
from tokenizers_vq.errors import UserError
from tokenizers_vq.images import save_png
from tokenizers_vq.quantizers.config import BSQ, FSQ, LFQ, VQ, Cosine, MultiVQ, QuantizerConfig, SimVQ
from unitok.cli.main import main
from unitok.data.shapes.dataset import ShapesDataset
from unitok.eval.metrics.perturbed import Perturbation
from unitok.eval.metrics.probe import PENALTIES, code_products, probe


def tokenizer(quantizer: QuantizerConfig | None = None, scales: tuple[int, ...] = ()) -> ImageTokenizer:
    torch.manual_seed(0)
    config = TOKENIZER_PRESETS["debug"]()
    config = dataclasses.replace(config, scales=scales, **({} if quantizer is None else {"quantizer": quantizer}))
    return build_tokenizer(config).eval()


@pytest.mark.parametrize(
    "quantizer",
    [
        VQ(codebook_size=32, dim=4),
        Cosine(codebook_size=32, dim=4),
        SimVQ(codebook_size=32, dim=4),
        FSQ(levels=(4, 4, 2)),
        LFQ(codebook_size=32),
        BSQ(codebook_size=32),
        MultiVQ(codebook_size=16, codebooks=2, dim=2),
    ],
    ids=lambda quantizer: type(quantizer).__name__,
)
def test_codes_are_replaced_by_near_ones_of_their_codebook(quantizer: QuantizerConfig) -> None:
    one = tokenizer(quantizer)
    tables = one.code_vectors()
    books, size, _ = tables.shape
    assert books * size == one.codebook_size and books == quantizer.grids
    grid = one.layout.grid
    if books == 1:  # the vectors are those that are decoded
        codes = torch.arange(size).expand(1, -1).repeat_interleave(grid[0] * grid[1], 1)[:, : one.layout.length]
        vectors = one.quantizer.vectors(codes, grid)[0].flatten(1).T  # type: ignore[operator, union-attr]
        torch.testing.assert_close(vectors.float(), tables[0][codes[0]])
    codes = torch.cat([torch.randint(size, (3, n)) + size * (i % books) for i, n in enumerate(one.layout.lengths)], 1)
    changed = Perturbation(one, share=0.5, among=4)(codes, first=0)
    for row, new in zip(codes, changed, strict=True):
        assert 0 < int((row != new).sum()) <= round(0.5 * len(row))
        for code, other in zip(row.tolist(), new.tolist(), strict=True):
            book, own = divmod(code, size)
            distance = (tables[book] - tables[book][own]).norm(dim=1)
            nearer = int((distance < distance[other - book * size] - 1e-5).sum())
            assert other // size == book and nearer < 4


def test_the_picture_decides_and_not_its_batch() -> None:
    one = tokenizer(scales=(1, 2, 8))
    codes = torch.randint(64, (4, one.layout.length))
    disturb = Perturbation(one, share=0.25, among=8)
    whole = disturb(codes, first=10)
    assert torch.equal(torch.cat([disturb(codes[:1], 10), disturb(codes[1:], 11)]), whole)
    assert not torch.equal(disturb(codes, first=0), whole)
    assert one.decode(whole).shape == (4, 3, 32, 32)


def test_shares_and_numbers_of_codes_are_checked() -> None:
    with pytest.raises(UserError, match=r"--pfid is 1\.5: choose a share"):
        Perturbation(tokenizer(), 1.5, 4)
    with pytest.raises(UserError, match="--pfid_among is 65: choose from 2 to 64"):
        Perturbation(tokenizer(), 0.5, 65)


def slow_ridge(features: Tensor, labels: list[str]) -> list[bool]:
    """Leave-one-out by leaving one out: a regression for each picture."""
    centred = features - features.mean(0)
    centred = centred / centred.square().sum(1).mean().sqrt()
    rows = torch.cat([centred, torch.ones(len(centred), 1)], 1).double()
    names = sorted(set(labels))
    wanted = torch.nn.functional.one_hot(torch.tensor([names.index(one) for one in labels]), len(names)).double()
    best, right = float("inf"), []
    for penalty in PENALTIES:
        predicted = []
        for index in range(len(rows)):
            keep = torch.arange(len(rows)) != index
            inner = rows[keep].T @ rows[keep] + penalty * torch.eye(rows.shape[1], dtype=torch.float64)
            predicted.append(rows[index] @ torch.linalg.solve(inner, rows[keep].T @ wanted[keep]))
        error = float((torch.stack(predicted) - wanted).square().mean())
        if error < best:
            best, right = error, (torch.stack(predicted).argmax(1) == wanted.argmax(1)).tolist()
    return right


def test_the_probe_equals_a_regression_for_each_picture() -> None:
    generator = torch.Generator().manual_seed(0)
    tables = torch.randn(1, 16, 3, generator=generator)
    codes = torch.randint(16, (30, 2), generator=generator)
    labels = ["high" if float(tables[0, row[0], 0]) > 0 else "low" for row in codes]
    for number in range(0, 30, 7):
        labels[number] = "other"
    found = probe(code_products(tables, codes), labels)
    assert found.right == slow_ridge(tables[0][codes].flatten(1), labels)
    assert found.classes == 3 and found.accuracy == sum(map(bool, found.right)) / 30
    assert found.chance == max(labels.count(name) for name in set(labels)) / 30


def test_a_class_without_another_picture_is_left_out() -> None:
    products = torch.eye(5, dtype=torch.float64)
    found = probe(products, ["a", "a", "b", "b", "alone"])
    assert found.right[4] is None and found.classes == 2
    assert probe(products, ["a", "a", "b", "b", None]).right[4] is None
    with pytest.raises(UserError, match="--label gives 5 classes, of which 0 have two pictures or more"):
        probe(products, list("abcde"))


def test_eval_tokenizer_measures_both(tmp_path: Path) -> None:
    dataset = ShapesDataset(split="val")
    for index in range(12):
        image = dataset[index].image
        assert image is not None
        (tmp_path / "pictures" / ("dark" if index % 2 else "light")).mkdir(parents=True, exist_ok=True)
        dimmed = image // 4 if index % 2 else image
        save_png(tmp_path / "pictures" / ("dark" if index % 2 else "light") / f"{index}.png", dimmed)
    tokenizer().save_pretrained(tmp_path / "tokenizer")
    words = ["eval", "tokenizer", "--tokenizer", str(tmp_path / "tokenizer"), "--data", str(tmp_path / "pictures")]
    words += ["--lpips", "none", "--pfid", "0.5", "--pfid_among", "16", "--label", "label"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    numbers, facts = report["tokenizer"], report["provenance"]["tokenizer.pfid"]
    assert numbers["pfid"] != pytest.approx(numbers["rfid"], rel=1e-2)
    assert numbers["probe"] == {"right": 1.0, "always the largest class": 0.5}, "dark and light are plain to see"
    assert facts["share of codes"] == 0.5 and "each one of 16 near ones" in facts["label"]
