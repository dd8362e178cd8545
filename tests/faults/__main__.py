"""`make faults`: the whole trial, and a table of what was tried, what held and what fell."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from . import damage, disk, fuzz, hostile, kills, pairs
from .trial import Case, Trial

KINDS = {"kills": kills, "damage": damage, "fuzz": fuzz, "hostile": hostile, "disk": disk, "pairs": pairs}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--only", choices=KINDS, nargs="*", default=list(KINDS))
    parser.add_argument("--case", default="", help="only cases whose name holds this text")
    parser.add_argument("--seed", type=int, default=0, help="chooses what is drawn by chance")
    parser.add_argument("--share", type=float, default=1.0, help="share of the cases")
    given = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="unitok-faults-"))
    trial = Trial(scratch / "trial")
    table: dict[str, list[tuple[str, list[str]]]] = {}
    try:
        trial.prepare()
        for kind in given.only:
            started = time.monotonic()
            table[kind] = []
            for number, case in enumerate(KINDS[kind].cases(trial, random.Random(given.seed), given.share)):
                if given.case in case.name:
                    table[kind].append((case.name, attempt(case, scratch / f"{kind}-{number}")))
                    if table[kind][-1][1]:
                        print("FELL", *table[kind][-1], sep="\n  ", flush=True)
            print(f"{kind}: {len(table[kind])} in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    finally:
        trial.close()
    print(f"\n| {'kind':8} | tried | held | fell |\n|---|---:|---:|---:|")
    for kind, rows in table.items():
        fell = sum(bool(lines) for _, lines in rows)
        print(f"| {kind:8} | {len(rows)} | {len(rows) - fell} | {fell} |")
    for name in (name for rows in table.values() for name, lines in rows if lines):
        print(f'again: make faults FAULTS="--case {name!r}"')
    if not any(lines for rows in table.values() for _, lines in rows):
        shutil.rmtree(scratch)
        return 0
    print(f"what was left behind: {scratch}")
    return 1


def attempt(case: Case, folder: Path) -> list[str]:
    """Runs one case; an error of the harness itself is a fall too."""
    fell = case.run(folder)
    if not fell:
        shutil.rmtree(folder, ignore_errors=True)
    return fell


if __name__ == "__main__":
    sys.exit(main())
