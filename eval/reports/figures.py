"""What a tokenizer does, to look at: error maps, how often codes occur, and sheets of pictures for PNG files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tokenizers_vq.images import to_pil, wrap
from tokenizers_vq.usage import CodebookUsage

from ..report import Figure, Item

ERROR_RANGES = (8, 16, 32, 64, 128, 255)
"""An error map's brightest colour stands for one of these many levels of 255: so two reports often share a scale."""
COVERED = 0.99
"""Share of the pixels whose error lies within the scale."""
COLOURS = "inferno"
SHEET_ITEMS, SHEET_SIDE = 8, 128
"""Items of a sheet; small pictures are enlarged by a whole factor to about so many pixels."""


def errors(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of the three colours of pictures uint8 (..., 3, H, W): (..., H, W), in levels of 255."""
    return (a.float() - b.float()).abs().mean(dim=-3)


def error_range(maps: Sequence[Tensor]) -> int:
    """The smallest scale that covers nearly all the errors of some maps."""
    values = torch.cat([one.flatten() for one in maps]).sort().values
    reached = float(values[min(len(values) - 1, int(COVERED * len(values)))])
    return next(level for level in ERROR_RANGES if reached <= level)


def colour(values: Tensor) -> Tensor:
    """(H, W) in [0, 1], larger ones cut -> uint8 (3, H, W): black, through red, to light yellow."""
    from matplotlib import colormaps

    table = torch.from_numpy(colormaps[COLOURS](range(256))[:, :3])  # (256, 3)
    return (table[(values.clamp(0, 1) * 255).round().long()] * 255).round().to(torch.uint8).permute(2, 0, 1)


def with_errors(
    title: str, names: Sequence[str], rows: Sequence[tuple[Tensor, Sequence[Tensor], str]], file: str
) -> Figure:
    """A figure of originals, each with its reconstructions and their error maps, all on one scale.

    Args:
        title: of the figure.
        names: of whom the reconstructions are; one without a name is called "reconstruction".
        rows: an original uint8 (3, H, W), its reconstructions, a text.
        file: name of the PNG.
    """
    maps = [[errors(original, back) for back in backs] for original, backs, _ in rows]
    top = error_range([one for some in maps for one in some])
    items = []
    for (original, backs, text), some in zip(rows, maps, strict=True):
        pairs = [[back, colour(one / top)] for back, one in zip(backs, some, strict=True)]
        items.append(Item([original, *(picture for pair in pairs for picture in pair)], text))
    labels = [label for name in names for label in (name or "reconstruction", "error")]
    bar = colour(torch.linspace(0, 1, 256).expand(14, -1))
    most = f"{top} of 255 levels" + (" or more" if top < 255 else "")
    legend = Item([bar], f"error: 0 (black) to {most} (light), mean of the three colours")
    return Figure(title, items, ("original", *labels), legend, file)


def codebook_figure(usages: Mapping[str, CodebookUsage], file: str) -> Figure:
    """How often codes occur, the most frequent first, on a log scale; one curve for each of `usages`."""
    from matplotlib.figure import Figure as Plot

    plot = Plot(figsize=(7.5, 4), dpi=160)
    axes = plot.add_subplot()
    colours = _colours(len(usages))
    lowest = 1.0
    for (name, usage), shade in zip(usages.items(), colours, strict=True):
        counts = usage.counts.cpu().sort(descending=True).values
        size, total = len(counts), int(counts.sum())
        used = int((counts > 0).sum())
        # A step for each code; what never occurs has no height on a log scale, and the curve ends before it.
        edges = [100 * index / size for index in range(used + 1)]
        times = (counts[:used].double() * size / total).tolist()
        lowest = min(lowest, *times[-1:])
        label = f"{name}: {used:,} of {size:,}"
        axes.stairs(times, edges, baseline=None, color=shade, label=label, linewidth=1.6)
        if len(usages) == 1:
            axes.stairs(times, edges, baseline=lowest / 2, fill=True, color=shade, alpha=0.2)
    axes.axhline(1, color="0.4", linestyle="--", linewidth=1, label="all equally often")
    axes.set_yscale("log")
    axes.set_ylim(bottom=lowest / 2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlim(0, 100)
    axes.set_xlabel("codes, the most frequent first (% of the codebook)")
    axes.set_ylabel("occurs so many times its even share")
    axes.grid(alpha=0.25)
    axes.legend(fontsize="small")
    text = "Codes used, of those there are. The flatter and longer, the better the codebook is used."
    return Figure("How often codes occur", [_item(plot, text)], file=file)


def sweep_figure(
    guidances: Sequence[float],
    clipscore: Sequence[tuple[float, float]],
    fid: Sequence[tuple[float, float]],
    labels: tuple[str, str],
    file: str,
) -> Figure:
    """FID against CLIPScore, one point for each guidance scale, joined in their order.

    Args:
        guidances: the scales, ascending.
        clipscore, fid: value and standard deviation at each.
        labels: names of the two numbers, as in the table.
        file: name of the PNG.
    """
    plot, axes = _plot()
    x, x_spread = zip(*clipscore, strict=True)
    y, y_spread = zip(*fid, strict=True)
    axes.errorbar(x, y, yerr=y_spread, xerr=x_spread, color="0.6", capsize=2, linewidth=1.4, zorder=1)
    axes.scatter(x, y, s=45, color=_ordered(len(x)), zorder=2)
    for number, (guidance, *place) in enumerate(zip(guidances, x, y, strict=True)):
        above = number % 2 == 0  # neighbours may lie so close that their names would cover each other
        axes.annotate(
            f"{guidance:g}", place, xytext=(7, 7 if above else -15), textcoords="offset points", weight="bold"
        )
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.margins(0.12)
    text = "Each point is a guidance scale. Down is nearer to the data, right is nearer to the caption."
    if any(x_spread) or any(y_spread):
        text += " Bars: standard deviation over the seeds."
    return Figure("FID against CLIPScore", [_item(plot, text)], file=file)


def category_figure(title: str, bars: Mapping[str, Mapping[str, float]], share: bool, file: str) -> Figure:
    """Bars side by side: a group for each category, in it one bar for each of those compared, in their order.

    Args:
        title: of the figure.
        bars: of each of those compared, a value for every category.
        share: values are 0 to 1 and shown times 100.
        file: name of the PNG.
    """
    names = list(next(iter(bars.values())))
    plot, axes = _plot(height=max(2.5, 1 + 0.16 * len(names) * (len(bars) + 1)))
    thick = 0.8 / len(bars)
    for row, ((label, values), shade) in enumerate(zip(bars.items(), _ordered(len(bars)), strict=True)):
        places = [number - 0.4 + thick * (row + 0.5) for number in range(len(names))]
        found = axes.barh(places, [values[name] * (100 if share else 1) for name in names], thick, color=shade)
        axes.bar_label(found, fmt="%.1f", padding=3, fontsize="x-small")
        found.set_label(label)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(left=0, right=109 if share else None)
    if share:
        axes.set_xlabel("right (%)")
        axes.set_xticks(range(0, 101, 20))
    if len(bars) > 1:
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return Figure(title, [_item(plot, "")], file=file)


def _plot(height: float = 4) -> tuple[Any, Any]:
    """An empty plot, and its axes."""
    from matplotlib.figure import Figure as Plot

    plot = Plot(figsize=(7.5, height), dpi=160)
    axes = plot.add_subplot()
    axes.set_axisbelow(True)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return plot, axes


def _item(plot: Any, text: str) -> Item:
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", bbox_inches="tight")
    return Item([_tensor(Image.open(buffer))], text)


def _colours(count: int) -> list[tuple[float, ...] | str]:
    if count <= 10:
        return [f"C{index}" for index in range(count)]
    return [*_ordered(count)]


def _ordered(count: int) -> list[tuple[float, ...]]:
    """Colours of what has an order, dark to light."""
    from matplotlib import colormaps

    return [tuple(row) for row in colormaps["viridis"](torch.linspace(0.2, 0.9, count).numpy())]


def sheet(figure: Figure) -> Tensor:
    """The first items of a figure as one picture uint8 (3, H, W): a column for each item, a row for each of the labels,
    the legend below. Without labels the text of each item stands below its column, green where it is right and red
    where it is wrong; one picture without labels stays as it is."""
    items = figure.items[:SHEET_ITEMS]
    if not figure.labels and len(items) == 1 and len(items[0].pictures) == 1:
        return items[0].pictures[0]
    font = ImageFont.load_default(14)
    _, height, width = items[0].pictures[0].shape
    scale = max(1, round(SHEET_SIDE / max(height, width)))
    across, down, gap = width * scale, height * scale, 4
    texts = [wrap(label, font, 130) for label in figure.labels]
    left = 10 + round(max((font.getlength(line) for lines in texts for line in lines), default=0))
    rows = max(len(item.pictures) for item in items)
    legend = 34 if figure.legend is not None else 0
    below = [[] if figure.labels else wrap(f"{item.text} {item.detail}".strip(), font, across) for item in items]
    room = 18 * max(map(len, below))
    size = (left + len(items) * (across + gap), rows * (down + gap) + room + legend)
    words = figure.legend.text if figure.legend is not None else ""
    image = Image.new("RGB", (max(size[0], round(font.getlength(words)) + 280), size[1]), "white")
    draw = ImageDraw.Draw(image)
    for row, lines in enumerate(texts):
        draw.text((4, row * (down + gap) + down / 2), "\n".join(lines), fill="black", font=font, anchor="lm")
    for column, item in enumerate(items):
        for row, picture in enumerate(item.pictures):
            enlarged = to_pil(picture).resize((across, down), Image.Resampling.NEAREST)
            at = (left + column * (across + gap), row * (down + gap))
            image.paste(enlarged, at)
            draw.rectangle((*at, at[0] + across - 1, at[1] + down - 1), outline="#cccccc")
        at = (left + column * (across + gap) + 2, rows * (down + gap))
        colour = {True: "#1a7f37", False: "#cf222e", None: "black"}[item.right]
        draw.multiline_text(at, "\n".join(below[column]), fill=colour, font=font)
    if figure.legend is not None:
        bar = to_pil(figure.legend.pictures[0])
        top = size[1] - legend + 10
        image.paste(bar, (4, top))
        draw.text((14 + bar.width, top + bar.height / 2), words, fill="black", font=font, anchor="lm")
    return _tensor(image)


def _tensor(image: Image.Image) -> Tensor:
    """PIL -> uint8 (3, H, W)."""
    rgb = image.convert("RGB")
    flat = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
    return flat.reshape(rgb.height, rgb.width, 3).permute(2, 0, 1)
