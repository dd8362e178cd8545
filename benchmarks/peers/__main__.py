"""Drawing and training beside the code of other projects: same shapes, fresh weights, in turns.

    OMP_NUM_THREADS=2 python benchmarks/peers --llamagen DIR --var DIR --open_muse DIR --showo DIR --out peers.json

Each DIR is a checkout of the project's public repository. A row whose peer is not given is left out. Each side runs in
a process of its own, so that neither changes the other's torch. The two take turns, and a number is the least time of
the rounds: what other programs do beside can only add to it. On one thread (OMP_NUM_THREADS=1) that is processor time,
on several it is time by the clock, for which the machine has to be idle. `r` is our time over theirs.

Theirs runs in float32 and in bf16, in the way in which their own programs use it; ours as `unitok.prepare` makes it to
draw, and under autocast to train; compiled too, where `--compile` of drawing changes anything, and in training. Nothing
is decoded to pixels on either side. Captions have as many ids here as the prompt of the peer has positions. The
tokenizer has a program of its own (benchmarks/tokenizer_speed.py).
"""

from __future__ import annotations

import argparse
import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path

import ours
import shares
import theirs
from rows import ROWS
from turns import compare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for peer in theirs.PEERS:
        parser.add_argument(f"--{peer}", metavar="DIR", default="", help=f"checkout of {peer}")
    parser.add_argument("--packages", metavar="DIR", default="", help=theirs.PACKAGES)
    parser.add_argument("--rows", default="", help="only rows whose name this regular expression finds")
    parser.add_argument("--rounds", type=int, default=5, help="of each form, at most")
    parser.add_argument("--seconds", type=float, default=20, help="after which a form has no more rounds")
    parser.add_argument("--profile", action="store_true", help="print where our time goes instead; needs no checkouts")
    parser.add_argument("--out", type=Path, help="JSON of all numbers")
    options = parser.parse_args()
    paths = {name: os.path.abspath(path) for name, path in vars(options).items() if name in theirs.PEERS and path}
    paths["packages"] = os.path.abspath(options.packages) if options.packages else ""
    rows = [row for row in ROWS if re.search(options.rows, " ".join(map(row.name, row.objectives)))]
    if options.profile:
        return shares.show(rows)
    rows = [row for row in rows if row.peer in paths]
    if not rows:
        parser.error("nothing to compare: give the checkout of a peer that the chosen rows have")
    results = []
    columns = ("fp32", "bf16", "both bf16", "fp32 compiled", "bf16 compiled")
    print(f"{'':<34}{'peer, s':>9}" + "".join(f"{name:>15}" for name in columns), flush=True)
    for row in rows:
        found = compare(row, paths, options.seconds, options.rounds)
        results.append(found)
        for objective, r in found["r"].items():
            numbers = "".join(f"{r[name]:>15.2f}" if name in r else f"{'':>15}" for name in columns)
            print(f"{row.name(objective):<34}{found['seconds']['peer fp32']:>9.3f}{numbers}", flush=True)
        if options.out:
            facts = {"date": datetime.now(UTC).date().isoformat(), **ours.machine()}
            options.out.write_text(json.dumps({**facts, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
