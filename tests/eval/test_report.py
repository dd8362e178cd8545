"""Reports: values and provenance in the JSON, a self-contained page."""

from __future__ import annotations

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from tokenizers_vq.errors import UserError
from unitok.eval.report import Figure, Item, Number, Report, Section
from unitok.eval.reports.figures import with_errors
from unitok.eval.reports.output import claim_folder, print_report, write_report


class Page(HTMLParser):
    """Checks that tags close in order; collects texts and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture
def report() -> Report:
    picture = torch.zeros(3, 16, 24, dtype=torch.uint8)
    picture[0] = 200
    numbers = {
        "fid": Number("FID (unitok-embedded v1)", 12.345, "", "lower", {"pictures": 50, "features_sha256": "ab" * 32}),
        "attribute_accuracy": Number("Attribute accuracy", {"shape": 0.5, "colour": 1.0}, "%", "higher"),
    }
    items = [Item([picture, picture], 'a <b>"bold"</b> caption', False, "wrong: size"), Item([picture], "plain")]
    section = Section("generation", "Generation", numbers, [Figure("Drawn", items)], ["few pictures"])
    return Report("Test & report", [section], {"seconds": 1.5})


def test_json_has_plain_values_and_their_provenance(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["generation"] == {"fid": 12.345, "attribute_accuracy": {"shape": 0.5, "colour": 1.0}}
    assert data["seconds"] == 1.5 and data["warnings"] == ["few pictures"] and "created" in data
    origin = data["provenance"]["generation.fid"]
    assert "torch " in origin.pop("versions")
    assert origin == {
        "label": "FID (unitok-embedded v1)",
        "metric": "fid",
        "unit": "",
        "better": "lower",
        "pictures": 50,
        "features_sha256": "ab" * 32,
    }
    assert {"torch", "torchmetrics", "python"} <= data["versions"].keys()


def test_page_is_well_formed_and_needs_nothing_else(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    joined = " ".join(page.texts)
    for expected in ("Test & report", "FID (unitok-embedded v1)", "12.35", "50.0 %", "few pictures", "wrong: size"):
        assert expected in joined
    assert '"bold"' in joined and ("b", {}) not in page.tags, "captions are escaped"
    assert not any(tag in ("script", "link", "iframe") for tag, _ in page.tags)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 3 and all("href" not in attributes for _, attributes in page.tags)
    source = images[0]["src"] or ""
    assert source.startswith("data:image/png;base64,")
    picture = Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1])))
    assert picture.size == (24, 16) and picture.getpixel((0, 0)) == (200, 0, 0)
    assert int(images[0]["width"] or 0) % 24 == 0, "small pictures are enlarged by a whole factor"


def test_table_is_printed_to_stdout_and_warnings_to_stderr(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report)
    printed = capsys.readouterr()
    assert "FID (unitok-embedded v1)" in printed.out and "Attribute accuracy: colour" in printed.out
    assert "few pictures" in printed.err and "few pictures" not in printed.out


def test_output_folder_is_checked_first(tmp_path: Path) -> None:
    claim_folder(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "report.json").write_text("{}")
    with pytest.raises(UserError, match="already holds a report: choose another folder"):
        claim_folder(tmp_path / "old")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        claim_folder(tmp_path / "file")


def test_columns_and_legend_and_sheet(tmp_path: Path) -> None:
    """Numbers of several side by side, the best marked; pictures with labels; the figure as a PNG of its own."""
    original = torch.full((3, 64, 64), 100, dtype=torch.uint8)
    figure = with_errors("By each", ["a", "b"], [(original, [original, original + 20], "grey")], "grey.png")
    number = Number("PSNR", {"a": 30.0, "b": 20.0}, "dB", "higher")
    count = Number("Parameters", {"a": 1234567, "b": 12})
    section = Section("tokenizers", "Tokenizers", {"psnr": number, "parameters": count}, [figure], columns=("a", "b"))
    write_report(Report("Two", [section]), tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert '<td class="value best">30.00 dB</td><td class="value">20.00 dB</td>' in text
    assert '<td class="value">1,234,567</td>' in text
    words = Page(text).texts
    assert [word for word in words if word in ("original", "a", "b", "error")] == [
        *("a", "b"),  # heads of columns
        *("original", "a", "error", "b", "error"),
    ]
    assert any("0 (black) to 32 of 255 levels or more" in word for word in words), "20 of 255 lies within 32"
    sheet = Image.open(tmp_path / "grey.png")
    assert sheet.height >= 5 * 128 and sheet.width > 128
