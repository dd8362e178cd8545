"""unitok: unified discrete-token image and text models.

`train`, `sample` and `eval` stand at the top level of the repository and install as `unitok.train`, `unitok.sample` and
`unitok.eval`. In a checkout the folder `unitok/` comes before an installed package, so there the three are found here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

__version__ = "0.1.0"

_CHECKOUT = Path(__file__).resolve().parent.parent


class _TopLevelRooms:
    """Import hook, asked last: finds the three packages, and nothing else, at the top level of the checkout."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name in ("unitok.train", "unitok.sample", "unitok.eval"):
            return PathFinder.find_spec(name, [str(_CHECKOUT)])
        return None


if (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "train").is_dir():
    sys.meta_path.append(_TopLevelRooms())
