"""Draws docs/architecture.png from the code: `python docs/architecture.py`.

It reads the source files. Numbers of files, lines and imports are counted. The places of the boxes, the words in them
and the stations of the two walks are written here. A file that a walk names must exist.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).resolve().parent.parent
OUT = Path(__file__).with_suffix(".png")
ROOMS = {
    "unitok.cli": "unitok/cli",
    "unitok.train": "train",
    "unitok.sample": "sample",
    "unitok.eval": "eval",
    "unitok": "unitok",
    "tokenizers_vq": "tokenizers_vq",
}
"""Room -> its folder. A file belongs to the first room whose folder holds it."""
COLOURS = {
    "unitok/cli": "#e9ddf3",
    "train": "#fde3cf",
    "sample": "#fbf0c4",
    "eval": "#d9efd9",
    "unitok": "#d6e6f5",
    "tokenizers_vq": "#e4e4e4",
}
INK, LINE, SOFT = "#222222", "#5b6570", "#ffffff"


class Box(NamedTuple):
    left: float
    bottom: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def top(self) -> float:
        return self.bottom + self.height


class Step(NamedTuple):
    """A station of a walk."""

    title: str
    text: str
    file: str
    colour: str


# --- what the code says ---------------------------------------------------------------------------------------------


def sources() -> Iterator[tuple[str, Path]]:
    """(room, file) of every source file."""
    for path in sorted({path for folder in ROOMS.values() for path in (ROOT / folder).rglob("*.py")}):
        if path != ROOT / "unitok" / "__main__.py":  # the command line, where Python looks for it
            yield next(room for room, folder in ROOMS.items() if path.is_relative_to(ROOT / folder)), path


def imported_rooms(room: str, path: Path) -> Iterator[str]:
    """The room of every import in a file, also inside functions."""
    package = [*room.split("."), *path.relative_to(ROOT / ROOMS[room]).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            modules = [".".join([*base, *([node.module] if node.module else [])])]
        for module in modules:
            found = next((name for name in ROOMS if f"{module}.".startswith(f"{name}.")), None)
            if found is not None:
                yield found


def imports_between() -> Counter[tuple[str, str]]:
    """(folder, folder) -> number of import statements."""
    return Counter(
        (ROOMS[room], ROOMS[other]) for room, path in sources() for other in imported_rooms(room, path) if other != room
    )


def size_of(folder: str, inner: bool = True) -> tuple[int, int]:
    """(files, lines) in a folder; without `inner` only of its own files."""
    room = next(room for room, place in ROOMS.items() if folder == place or folder.startswith(f"{place}/"))
    found = [path for name, path in sources() if name == room and path.is_relative_to(ROOT / folder)]
    found = [path for path in found if inner or path.parent == ROOT / folder]
    return len(found), sum(map(lines_of, found))


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def said(folder: str, inner: bool = True) -> str:
    files, lines = size_of(folder, inner)
    return f"{files} files, {lines:,} lines"


# --- drawing --------------------------------------------------------------------------------------------------------


class Panel:
    """Boxes, texts and arrows, in inches from the lower left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
        self.axes: Any = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_xlim(0, width)
        self.axes.set_ylim(0, height)
        self.axes.axis("off")

    def box(self, box: Box, colour: str, strong: bool = True) -> None:
        patch = FancyBboxPatch(
            (box.left, box.bottom),
            box.width,
            box.height,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=colour,
            edgecolor=LINE,
            linewidth=1.2 if strong else 0.7,
        )
        self.axes.add_patch(patch)

    def text(self, x: float, y: float, text: str, size: float = 10.5, **more: Any) -> None:
        self.axes.text(x, y, text, **{"fontsize": size, "color": INK, "va": "center", "linespacing": 1.35, **more})

    def arrow(self, start: tuple[float, float], end: tuple[float, float], label: str = "", at: float = 0.5) -> None:
        """`at`: the share of the way at which the label stands."""
        style = {"arrowstyle": "-|>", "color": LINE, "lw": 1.6, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 14}
        self.axes.annotate("", end, start, arrowprops=style, zorder=5)
        if label:
            x, y = start[0] + at * (end[0] - start[0]), start[1] + at * (end[1] - start[1])
            patch = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}
            self.text(x, y, label, 9.5, ha="center", bbox=patch, zorder=6)

    def room(self, box: Box, folder: str, what: str) -> None:
        self.box(box, COLOURS[folder])
        self.text(box.left + 0.12, box.top - 0.2, f"{folder}/", 12, weight="bold")
        self.text(box.right - 0.12, box.top - 0.2, said(folder), 9.5, ha="right")
        self.text(box.left + 0.12, box.top - 0.3, what, 10, va="top")

    def part(self, box: Box, title: str, size: str, what: str) -> None:
        self.box(box, SOFT, strong=False)
        self.text(box.left + 0.1, box.top - 0.17, title, 10.5, weight="bold")
        self.text(box.right - 0.1, box.top - 0.17, size, 9, ha="right")
        self.text(box.left + 0.1, box.top - 0.28, what, 9.5, va="top")

    def walk(self, steps: Sequence[Step], bottom: float, height: float, gaps: Sequence[float]) -> list[Box]:
        """Stations from left to right over the whole width, so far apart; an arrow in each gap but the wide ones."""
        each = (RIGHT - LEFT - sum(gaps)) / len(steps)
        boxes: list[Box] = []
        for number, step in enumerate(steps):
            box = Box(LEFT + number * each + sum(gaps[:number]), bottom, each, height)
            self.box(box, COLOURS[step.colour])
            x = box.left + box.width / 2
            self.text(x, box.top - 0.2, step.title, 11, ha="center", weight="bold")
            self.text(x, box.top - 0.36, step.text, 9.2, ha="center", va="top")
            self.text(x, box.bottom + 0.07, existing(step.file), 8.3, ha="center", va="bottom", family="monospace")
            if boxes and gaps[number - 1] < WIDE:
                self.arrow((boxes[-1].right, bottom + height / 2), (box.left, bottom + height / 2))
            boxes.append(box)
        return boxes


def existing(files: str) -> str:
    """The names of files and folders that are there, one a line."""
    missing = [name for name in files.split() if not (ROOT / name).exists()]
    if missing:
        raise SystemExit(f"{', '.join(missing)}: not there any more, correct the walk in {Path(__file__).name}")
    return files.replace(" ", "\n")


# --- the picture ----------------------------------------------------------------------------------------------------

LEFT, RIGHT = 0.3, 11.7
WIDE = 0.9
"""Gap of two stations that call each other."""

TO_LOSS = [
    Step("record", "named fields:\ncaption, image, ...", "unitok/data/", "unitok"),
    Step("template", "parts of its task,\ngiven or learned", "unitok/tasks.py", "unitok"),
    Step("segments", "ids, groups, places,\ntargets, features", "unitok/objectives/ unitok/modalities.py", "unitok"),
    Step("rows", "documents side by\nside, padded", "train/packing.py unitok/sequence.py", "train"),
    Step("ports", "ids and features\nbecome vectors", "unitok/ports.py", "unitok"),
    Step("trunk", "blocks under the\ngroup rule", "unitok/trunk/", "unitok"),
    Step("losses", "over the ids that can\nstand there, by task", "unitok/model.py", "unitok"),
]
TO_VALUE = [
    Step(
        "prompt",
        "given parts: all of\nthem, and without\nsome conditions",
        "unitok/tasks.py sample/pipeline.py",
        "sample",
    ),
    Step("engine", "rows and lanes,\nguidance", "sample/engine.py", "sample"),
    Step(
        "ports, trunk",
        "last states and logits;\nkeys and values stay\nin the cache",
        "unitok/ports.py unitok/trunk/",
        "unitok",
    ),
    Step(
        "writer", "chooses codes or ids,\nasks for the next\npositions", "unitok/choose.py unitok/objectives/", "unitok"
    ),
    Step("value", "codes become a\npicture, ids become\na text", "sample/pipeline.py", "sample"),
]
CORE = {
    "vocabulary": "named spans of ids",
    "sequence": "segments, documents, rows",
    "modalities": "text, image, box: values to segments",
    "tasks": "records to documents",
    "ports": "ids and features to vectors, and scores",
    "model": "UniTok: forward, model folders",
    "choose": "logits to ids",
    "sampling": "settings of drawing",
    "config": "settings of a model and its tasks",
    "text": "the text tokenizer",
}


def draw_rooms(panel: Panel) -> None:
    """The rooms in layers; arrows point to what is imported."""
    panel.text(LEFT, 13.18, "Rooms", 15, weight="bold")
    panel.text(1.2, 13.16, "An arrow points to what is imported. Its number counts the import statements.", 10.5)
    count = imports_between()
    cli = Box(LEFT, 12.2, RIGHT - LEFT, 0.65)
    train = Box(0.75, 10.5, 3.0, 0.95)
    sample = Box(4.75, 10.5, 2.5, 0.95)
    evaluation = Box(8.25, 10.5, 3.0, 0.95)
    core = Box(1.35, 6.1, 9.3, 3.7)
    images = Box(LEFT, 4.4, RIGHT - LEFT, 0.95)
    panel.room(cli, "unitok/cli", "commands, their options and YAML files, demo, compare")
    panel.room(train, "train", "loop, checkpoints, resume, logs,\nbatches of tasks, optimizers")
    panel.room(sample, "sample", "the engine; captions to pictures,\npictures to captions and answers")
    panel.room(evaluation, "eval", "pictures, features, statistics,\nnumbers, reports")
    panel.room(core, "unitok", "")
    panel.room(
        images,
        "tokenizers_vq",
        "pixels and codes: networks, quantizers, layouts, losses, published checkpoints\n"
        "for all rooms: files, digests, weights, errors",
    )

    def down(x: float, upper: Box, lower: Box, pair: tuple[str, str], at: float = 0.5) -> None:
        panel.arrow((x, upper.bottom), (x, lower.top), str(count[pair]), at)

    down(2.25, cli, train, ("unitok/cli", "train"))
    down(6.0, cli, sample, ("unitok/cli", "sample"))
    down(9.75, cli, evaluation, ("unitok/cli", "eval"))
    down(4.0, cli, core, ("unitok/cli", "unitok"), 0.156)
    down(0.52, cli, images, ("unitok/cli", "tokenizers_vq"))
    down(2.25, train, core, ("train", "unitok"))
    down(6.0, sample, core, ("sample", "unitok"))
    down(9.75, evaluation, core, ("eval", "unitok"))
    down(1.05, train, images, ("train", "tokenizers_vq"))
    down(10.95, evaluation, images, ("eval", "tokenizers_vq"))
    down(7.0, sample, images, ("sample", "tokenizers_vq"), 0.07)
    down(3.7, core, images, ("unitok", "tokenizers_vq"))
    y = sample.bottom + sample.height / 2
    panel.arrow((train.right, y), (sample.left, y), str(count["train", "sample"]))
    panel.arrow((evaluation.left, y), (sample.right, y), str(count["eval", "sample"]))
    draw_core(panel, core)


def draw_core(panel: Panel, core: Box) -> None:
    """The folders inside unitok/, on both sides of the gap that an arrow passes through."""
    left = Box(core.left + 0.15, core.bottom + 0.15, 5.3, core.height - 0.55)
    panel.part(left, "unitok/*.py", said("unitok", inner=False), "")
    for number, (name, what) in enumerate(CORE.items()):
        y = left.top - 0.48 - 0.275 * number
        panel.text(left.left + 0.12, y, existing(f"unitok/{name}.py").removeprefix("unitok/"), 9.5, family="monospace")
        panel.text(left.left + 1.35, y, what, 9.5)
        panel.text(left.right - 0.12, y, str(lines_of(ROOT / "unitok" / f"{name}.py")), 9.5, ha="right")
    x, width, height = 7.25, core.right - 0.15 - 7.25, (left.height - 0.24) / 3
    parts = {
        "unitok/objectives": "what is predicted at the positions\nof an image, and the writer that\ndraws in that way",
        "unitok/trunk": "the group rule, the cache,\nthe transformer",
        "unitok/data": "specs, records, sources, loader,\ncode shards; shapes/: scenes,\nquestions, the exact checker",
    }
    for number, (folder, text) in enumerate(parts.items()):
        box = Box(x, left.top - height - number * (height + 0.12), width, height)
        panel.part(box, f"{folder}/", said(folder), text)


def draw_walks(panel: Panel) -> None:
    panel.text(LEFT, 3.9, "From a record to the losses", 13, weight="bold")
    panel.walk(TO_LOSS, 2.4, 1.25, [0.22] * 6)
    panel.text(LEFT, 1.95, "From a prompt to a value", 13, weight="bold")
    boxes = panel.walk(TO_VALUE, 0.3, 1.4, [0.35, 0.35, 1.1, 0.35])
    trunk, writer = boxes[2:4]
    y = trunk.bottom + trunk.height / 2
    panel.arrow((trunk.right, y + 0.2), (writer.left, y + 0.2))
    panel.arrow((writer.left, y - 0.2), (trunk.right, y - 0.2))
    middle = (trunk.right + writer.left) / 2
    panel.text(middle, y + 0.36, "logits", 9.2, ha="center")
    panel.text(middle, y - 0.38, "positions", 9.2, ha="center")


def main() -> None:
    panel = Panel(12, 13.45)
    draw_rooms(panel)
    draw_walks(panel)
    panel.figure.savefig(OUT, metadata={"Software": None})
    print(f"{OUT.relative_to(ROOT)}: {OUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
