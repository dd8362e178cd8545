"""Is this version slower or larger than an older one? Both are measured in turns, so a busy machine hurts both alike.

    python benchmarks/guard.py v0.1.0
    python benchmarks/guard.py HEAD~20 --only tokenizer decode --preset emoji --rounds 5

The older commit is installed into a folder of its own, beside the packages that are there. Then `unitok bench` runs for
it, for the installed version, and again. A case is compared by the least of its times and of its memory. The exit code
is 1 where it takes 15 % more time or 5 % more memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("tokenizer", "train", "decode")
NUMBERS = ("seconds_median", "peak_memory_gb")


def install(commit: str, folder: Path) -> Path:
    """The folder for PYTHONPATH of a commit's packages."""
    tree, packages = folder / "tree", folder / "packages"
    tree.mkdir()
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit], stdout=subprocess.PIPE, check=True)
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive.stdout, check=True)
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*words, "--target", str(packages), str(tree)], check=True)
    return packages


def bench(packages: Path | None, what: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The cases of `unitok bench`, of the version in a folder, or of the installed one."""
    words = [sys.executable, "-m", "unitok", "bench", what, "--preset", options.preset, "--rounds", "3"]
    words += ["--precision", options.precision, *(["--threads", str(options.threads)] if options.threads else [])]
    environment = {**os.environ, **({"PYTHONPATH": str(packages)} if packages else {})}
    with tempfile.TemporaryDirectory() as nowhere:  # not in a checkout, whose packages would come first
        done = subprocess.run(words, cwd=nowhere, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout)["results"]
    return rows


def least(rounds: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Each case with the least of its numbers over several rounds."""
    found: dict[str, dict[str, Any]] = {}
    for row in (row for rows in rounds for row in rows):
        known = found.setdefault(row["case"], {"case": row["case"], **{name: row[name] for name in NUMBERS}})
        known.update({name: min(known[name], row[name]) for name in NUMBERS})
    return list(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="the older version")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--preset", default="shapes")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=2, help="of each version, in turns")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        sides = {"before": install(options.commit, Path(name)), "now": None}
        rounds: dict[str, list[list[dict[str, Any]]]] = {side: [] for side in sides}
        for number in range(options.rounds):
            for what in options.only:
                for side in list(sides) if number % 2 == 0 else list(sides)[::-1]:
                    rounds[side].append(bench(sides[side], what, options))
    before, now = (least(rounds[side]) for side in sides)
    olds = {row["case"]: row for row in before}
    for new in now:
        if new["case"] in olds:
            old = olds[new["case"]]
            time, memory = (new[number] / old[number] for number in NUMBERS)
            print(f"{new['case']:<24}{old['seconds_median']:>10.4f} s  time {time:5.2f}  memory {memory:5.2f}")

    from unitok.cli.bench import worse_than

    worse = worse_than(before, now)
    for line in worse:
        print(line, file=sys.stderr)
    raise SystemExit(1 if worse else 0)


if __name__ == "__main__":
    main()
