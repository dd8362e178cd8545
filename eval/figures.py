"""What a tokenizer does, to look at: error maps, how often codes occur, and sheets of pictures for PNG files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tokenizers_vq.images import to_pil, wrap
from tokenizers_vq.usage import CodebookUsage

from .report import Figure, Item

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
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", bbox_inches="tight")
    text = "Codes used, of those there are. The flatter and longer, the better the codebook is used."
    return Figure("How often codes occur", [Item([_tensor(Image.open(buffer))], text)], file=file)


def _colours(count: int) -> list[tuple[float, ...] | str]:
    from matplotlib import colormaps

    if count <= 10:
        return [f"C{index}" for index in range(count)]
    return [tuple(row) for row in colormaps["viridis"](torch.linspace(0, 0.9, count).numpy())]


def sheet(figure: Figure) -> Tensor:
    """The first items of a figure as one picture uint8 (3, H, W): a column for each item, a row for each of the labels,
    the legend below. A figure without labels that is one picture stays as it is."""
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
    size = (left + len(items) * (across + gap), rows * (down + gap) + legend)
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
