"""`make faults`: the whole trial, and a table of what was tried, what held and what fell."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from . import damage, disk, fuzz, hostile, kills, pairs, stops
from .trial import Case, Trial

KINDS = {
    "kills": kills,
    "stops": stops,
    "pairs": pairs,
    "damage": damage,
    "fuzz": fuzz,
    "hostile": hostile,
    "disk": disk,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--only", choices=KINDS, nargs="*", default=list(KINDS))
    parser.add_argument("--case", default="", help="only cases whose name holds this text")
    parser.add_argument("--seed", type=int, default=0, help="chooses what is drawn by chance")
    parser.add_argument("--share", type=float, default=1.0, help="share of the cases")
    given = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="unitok-faults-"))
    trial = Trial(scratch / "trial")
    fell: list[tuple[str, str]] = []
    print("| kind | command | tried | held | failed |\n|---|---|---:|---:|---:|", flush=True)
    try:
        trial.prepare()
        for kind in given.only:
            started = time.monotonic()
            cases = KINDS[kind].cases(trial, random.Random(given.seed), given.share)
            wanted = (case for case in cases if given.case in case.name)
            # A row is printed when it is done, also where the rest is cut.
            for row, group in groupby(wanted, key=lambda case: case.row):
                fell += [(kind, name) for name in attempts(kind, row, group, scratch)]
            print(f"{kind}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    finally:
        trial.close()
    for kind, name in fell:
        options = f"--only {kind} --seed {given.seed} --share {given.share:g} --case {name!r}"
        print(f'again: make faults FAULTS="{options}"', file=sys.stderr)
    if not fell:
        shutil.rmtree(scratch)
        return 0
    print(f"what was left behind: {scratch}", file=sys.stderr)
    return 1


def attempts(kind: str, row: str, cases: Iterator[Case], scratch: Path) -> list[str]:
    """Runs the cases of a row and prints it, as far as it came; the names of those that fell."""
    tried, fell = 0, list[str]()
    try:
        for case in cases:
            folder = scratch / f"{kind}-{row}-{tried}".replace(" ", "-")
            try:
                lines = case.run(folder)
            except Exception as error:
                lines = [f"the harness itself: {error!r}"]
            tried += 1
            if lines:
                fell.append(case.name)
                print("FELL", case.name, *lines, f"left in {folder}", sep="\n  ", file=sys.stderr, flush=True)
            else:
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        print(f"| {kind} | {row} | {tried} | {tried - len(fell)} | {len(fell)} |", flush=True)
    return fell


if __name__ == "__main__":
    sys.exit(main())
