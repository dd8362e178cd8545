"""A report as one HTML file that needs nothing else: pictures inlined, no scripts, no links."""

from __future__ import annotations

import base64
import io
from html import escape

from torch import Tensor

from tokenizers_vq.images import to_pil

from ..provenance import versions
from ..report import Figure, Item, Number, Report, Section

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #888; --good: #2a8f4f; --bad: #c9372c; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; } p.facts, small, td.from { color: var(--soft); font-size: .85rem; }
table { border-collapse: collapse; width: 100%; } td { padding: .35rem .8rem .35rem 0; vertical-align: top; }
tr + tr td { border-top: 1px solid var(--line); }
td.value { font-variant-numeric: tabular-nums; font-weight: 600; white-space: nowrap; text-align: right; }
th { text-align: right; padding: .35rem .8rem .35rem 0; overflow-wrap: anywhere; vertical-align: bottom; }
table.columns td.value { font-weight: 400; } table.columns td.best { font-weight: 600; color: var(--good); }
td.bar { width: 12rem; } .bar div { background: #4c8bf5; height: .7rem; border-radius: .35rem; margin-top: .45rem; }
.items { display: flex; flex-wrap: wrap; gap: .9rem; }
figure { margin: 0; } figcaption { font-size: .8rem; line-height: 1.3; max-width: 17rem; }
.plot figcaption { max-width: none; }
.picture { display: inline-block; vertical-align: top; } .picture small { display: block; font-size: .7rem; }
.legend { display: flex; align-items: center; gap: .6rem; margin: .6rem 0 .9rem; }
.items img { image-rendering: pixelated; border: 1px solid var(--line); border-radius: 4px; margin-right: 2px; }
.right::before { content: "\\2713 "; color: var(--good); } .wrong::before { content: "\\2717 "; color: var(--bad); }
p.warning { border-left: 4px solid #d9a400; padding-left: .8rem; }
"""
ARROWS = {"higher": " &uarr;", "lower": " &darr;", "": ""}
SHOWN_SIDE = 128
"""Small pictures are enlarged by a whole factor to about this many pixels."""
PLOT = 512
"""Wider ones have room for a longer line of text below."""
LARGEST_SIDE = 960
"""Large pictures (plots) are shown at most this wide."""


def render(report: Report) -> str:
    """The whole file."""
    facts = " &middot; ".join(
        f"{escape(key.replace('_', ' '))} {escape(str(value))}" for key, value in report.facts.items()
    )
    made = ", ".join(f"{name} {version}" for name, version in versions().items())
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(report.title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body>\n"
        f'<h1>{escape(report.title)}</h1><p class="facts">{facts}</p>\n'
        + "\n".join(_section(section) for section in report.sections)
        + f'\n<p class="facts">{escape(made)}</p></body></html>\n'
    )


def _section(section: Section) -> str:
    parts = [f"<section><h2>{escape(section.title)}</h2>"]
    parts += [f'<p class="warning">{escape(text)}</p>' for text in section.warnings]
    if section.numbers:
        parts.append(_columns(section) if section.columns else _plain(section))
        parts.append(_provenance(section))
    parts += [_figure(figure) for figure in section.figures]
    return "\n".join([*parts, "</section>"])


def _plain(section: Section) -> str:
    return f"<table>{''.join(_rows(number) for number in section.numbers.values())}</table>"


def _columns(section: Section) -> str:
    """A number in each row, what has it in each column; the best of a row is marked."""
    rows = ["<tr><td></td>" + "".join(f"<th>{escape(name)}</th>" for name in section.columns) + "</tr>"]
    for number in section.numbers.values():
        assert isinstance(number.value, dict)
        pick = {"higher": max, "lower": min}.get(number.better)
        best = pick(number.value.values()) if pick and len(set(number.value.values())) > 1 else None
        cells = "".join(
            f'<td class="value{" best" if value == best else ""}">{escape(number.show(value, name))}</td>'
            for name, value in ((name, number.value[name]) for name in section.columns)
        )
        rows.append(f"<tr><td>{escape(number.label)}{ARROWS[number.better]}</td>{cells}</tr>")
    return f'<table class="columns">{"".join(rows)}</table>'


def _rows(number: Number) -> str:
    arrow = ARROWS[number.better]
    if not isinstance(number.value, dict):
        return _row(f"{escape(number.label)}{arrow}", number, number.value)
    return "".join(_row(f"{escape(number.label)}: {escape(k)}{arrow}", number, v, k) for k, v in number.value.items())


def _row(label: str, number: Number, value: float, part: str = "") -> str:
    bar = f'<div style="width:{100 * min(max(value, 0), 1):.1f}%"></div>' if number.unit == "%" else ""
    return (
        f'<tr><td>{label}</td><td class="bar">{bar}</td><td class="value">{escape(number.show(value, part))}</td></tr>'
    )


def _provenance(section: Section) -> str:
    """Where the numbers come from, folded away; hashes are cut, report.json has them whole."""
    rows = []
    for number in section.numbers.values():
        facts = [f"{key} {_short(key, value)}" for key, value in number.provenance.items() if value is not None]
        rows.append(f'<tr><td>{escape(number.label)}</td><td class="from">{escape(", ".join(facts))}</td></tr>')
    summary = "<summary><small>where these numbers come from</small></summary>"
    return f"<details>{summary}<table>{''.join(rows)}</table></details>"


def _short(key: str, value: object) -> str:
    return str(value)[:12] if key.endswith("sha256") else str(value)


def _figure(figure: Figure) -> str:
    items = "".join(_item(item, figure.labels) for item in figure.items)
    legend = ""
    if figure.legend is not None:
        bar = _picture(figure.legend.pictures[0], "scale of colours")
        legend = f'<div class="legend">{bar}<small>{escape(figure.legend.text)}</small></div>'
    return f'<h3>{escape(figure.title)}</h3>{legend}<div class="items">{items}</div>'


def _item(item: Item, labels: tuple[str, ...]) -> str:
    mark = {None: "", True: ' class="right"', False: ' class="wrong"'}[item.right]
    detail = f"<br><small>{escape(item.detail)}</small>" if item.detail else ""
    pictures = [_picture(picture, item.text) for picture in item.pictures]
    if labels:
        pairs = zip(pictures, labels, strict=True)
        pictures = [f'<span class="picture">{picture}<small>{escape(label)}</small></span>' for picture, label in pairs]
    plot = ' class="plot"' if max(picture.shape[2] for picture in item.pictures) > PLOT else ""
    return f"<figure{plot}>{''.join(pictures)}<figcaption{mark}>{escape(item.text)}{detail}</figcaption></figure>"


def _picture(picture: Tensor, text: str) -> str:
    """uint8 (3, H, W) as an image element with its PNG inside."""
    _, height, width = picture.shape
    file = io.BytesIO()
    to_pil(picture).save(file, format="PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    scale = max(1, round(SHOWN_SIDE / max(height, width))) * min(1, LARGEST_SIDE / width)
    size = f'width="{round(width * scale)}" height="{round(height * scale)}"'
    return f'<img {size} alt="{escape(text, quote=True)}" src="data:image/png;base64,{data}">'
