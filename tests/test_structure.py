"""The shape of the house: imports point one way, and what is imported is declared."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from unitok.objectives import OBJECTIVES
from unitok.tasks import TASKS

ROOT = Path(__file__).resolve().parent.parent

# Which rooms a room may import. `unitok` stands for what is in unitok/ itself, the lower half of the house.
MAY_IMPORT = {
    "tokenizers_vq": {"tokenizers_vq"},
    "unitok": {"tokenizers_vq", "unitok"},
    "unitok.sample": {"tokenizers_vq", "unitok", "unitok.sample"},
    "unitok.eval": {"tokenizers_vq", "unitok", "unitok.sample", "unitok.eval"},
    "unitok.train": {"tokenizers_vq", "unitok", "unitok.sample", "unitok.train"},
    # The command line runs all rooms, and no other room knows of it.
    "unitok.cli": {"tokenizers_vq", "unitok", "unitok.sample", "unitok.eval", "unitok.train", "unitok.cli"},
}
FOLDERS = {room: ROOT / room.removeprefix("unitok.") for room in MAY_IMPORT} | {"unitok.cli": ROOT / "unitok" / "cli"}
# Inside eval/: the ground that every part of it may stand on, and which folder may import which.
EVAL_GROUND = {"feature_network", "pictures", "provenance", "report"}
EVAL_MAY_IMPORT = {"metrics": {"metrics"}, "networks": {"metrics", "networks"}, "reports": {"metrics", "reports"}}
LONGEST_FILE = 400
FULLEST_FOLDER = 20
# Inside tokenizers_vq/: a folder imports none that stands behind it.
TOKENIZERS_ORDER = ("storage", "quantizers", "networks", "losses", "families", "published")


def sources() -> Iterator[tuple[str, Path]]:
    """(room, file) of every source file that installs."""
    for room, folder in FOLDERS.items():
        within = [other for other in FOLDERS.values() if other != folder and other.is_relative_to(folder)]
        for path in sorted(folder.rglob("*.py")):
            # `python -m unitok` is the command line, at the place where Python looks for it.
            if path != ROOT / "unitok" / "__main__.py" and not any(path.is_relative_to(other) for other in within):
                yield room, path


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imports(room: str, path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of every import in a file, also inside functions."""
    inside = path.relative_to(FOLDERS[room]).parent.parts
    package = [*room.split("."), *inside]
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield node.lineno, module
            if module in ("unitok", ""):  # `from unitok import train` names a room too
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def room_of(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] == "unitok" and ".".join(parts[:2]) in MAY_IMPORT:
        return ".".join(parts[:2])
    return parts[0] if parts[0] in MAY_IMPORT else None


def test_imports_point_one_way() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for room, path in sources()
        for line, module in imports(room, path)
        if (target := room_of(module)) is not None and target not in MAY_IMPORT[room]
    ]
    assert wrong == []


def test_imports_inside_eval_point_one_way() -> None:
    wrong = []
    for room, path in sources():
        parts = path.relative_to(ROOT).parts
        if room != "unitok.eval" or (parts[1] not in EVAL_MAY_IMPORT and path.stem not in EVAL_GROUND):
            continue
        allowed = EVAL_GROUND | EVAL_MAY_IMPORT.get(parts[1], set())
        for line, module in imports(room, path):
            if room_of(module) == room and (module.split(".")[2:3] or [""])[0] not in allowed:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    assert wrong == []


def test_imports_inside_tokenizers_vq_point_one_way() -> None:
    wrong = []
    for room, path in sources():
        folder = path.relative_to(ROOT).parts[1]
        if room != "tokenizers_vq" or folder not in TOKENIZERS_ORDER:
            continue
        behind = TOKENIZERS_ORDER[TOKENIZERS_ORDER.index(folder) + 1 :]
        for line, module in imports(room, path):
            if room_of(module) == room and (module.split(".")[1:2] or [""])[0] in behind:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    assert wrong == []


def test_imported_packages_are_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [name for key, group in project["optional-dependencies"].items() if key != "dev" for name in group]
    declared = {name_of(requirement) for requirement in [*project["dependencies"], *extras]}
    installed = packages_distributions()
    wrong = []
    for room, path in sources():
        for line, module in imports(room, path):
            top = module.split(".")[0]
            if top in sys.stdlib_module_names or room_of(module) is not None:
                continue
            if not declared & {name_of(distribution) for distribution in installed.get(top, [top])}:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    assert wrong == []


def name_of(requirement: str) -> str:
    """The normalised project name of a requirement or distribution."""
    return re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-").replace(".", "-")


def test_no_file_holds_two_rooms() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for _, path in sources()}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_no_folder_is_too_full() -> None:
    counts = Counter(
        str(path.parent.relative_to(ROOT))
        for path in {path for folder in FOLDERS.values() for path in folder.rglob("*.py")}
    )
    assert {name: count for name, count in counts.items() if count > FULLEST_FOLDER} == {}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_the_checks_above_see_the_room(room: str) -> None:
    assert any(room_of(module) == room for name, path in sources() if name == room for _, module in imports(name, path))


def test_nothing_is_chosen_by_the_name_of_an_objective_or_a_task() -> None:
    """What differs between them stands in their classes and tables; comparing a name is how a further one costs many
    files."""
    names = {*OBJECTIVES, *TASKS}
    wrong = []
    for _, path in sources():
        for node in nodes(path):
            if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
                compared = [part.value for part in [node.left, *node.comparators] if isinstance(part, ast.Constant)]
                wrong += [
                    f"{path.relative_to(ROOT)}:{node.lineno} compares {one!r}" for one in compared if one in names
                ]
    assert wrong == []
