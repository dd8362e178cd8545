"""What a GPU computes, and how fast: one JSON in four minutes.

    python benchmarks/gpu --out gpu.json

Each part runs in a process of its own under its own limit. Every result is written to the file as soon as it is there,
so a run that is cut loses only what was not measured yet; a part that fails leaves the others alone. First, alone:

    decode     the roofline; `base` draws, captured and not, one picture and 64, with its share of the roofline

then, side by side, what measures no time:

    codes              tokenizers in float32: the share of codes and the pixels that are those of the CPU
    logits             each objective in float32: the largest difference from the CPU's, and the share of codes drawn
                       alike; and captured steps against those that are not
    bf16               each objective: loss and drawn codes in bf16 against float32
    attention          FlexAttention and xFormers against SDPA, forward and backward
    compile small, compile base    a loss with compiled blocks against an eager one, and the seconds of compiling

and, alone again, with what was compiled there:

    train      `base` and `small`, eager and compiled: tokens/s, share of the matmul rate, peak memory
    tokenizer  `base` encodes, decodes, is trained; milliseconds of each backend of attention

`--device cpu --tiny` shows on any machine that it works.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock, Timer
from typing import Any

HERE = Path(__file__).resolve().parent
SIDE_BY_SIDE = {"codes": 45, "logits": 45, "bf16": 45, "attention": 60, "compile small": 60, "compile base": 70}
"""Part that measures no time -> its seconds at most."""
FIRST = {"decode": 130}
LAST = {"train": 70, "tokenizer": 50}
"""Parts that do, the most wanted first."""
SLOWER = 10
"""Times these limits on a CPU."""
LEAST = 10
"""Seconds without which a part is not begun."""
ROOFLINE = "roofline"


class Results:
    """What was found so far, on disk at any time."""

    def __init__(self, out: Path, facts: dict[str, Any]) -> None:
        self.out, self.facts, self.started = out, facts, time.monotonic()
        self.rows: list[dict[str, Any]] = []
        self.lock = Lock()

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self.started, 1)

    def add(self, row: dict[str, Any]) -> None:
        with self.lock:
            self.rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
            whole = {**self.facts, "seconds": self.seconds, "results": self.rows}
            half_written = self.out.with_name(self.out.name + ".part")
            half_written.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
            os.replace(half_written, self.out)

    def roofline(self) -> dict[str, Any]:
        """That of this run, or one of nothing."""
        return next((row[ROOFLINE] for row in self.rows if ROOFLINE in row), {})


def run(part: str, options: argparse.Namespace, limit: float, results: Results) -> None:
    """Runs a part in a process, and adds each line that it prints, and how it ended."""
    left = options.budget - results.seconds
    if left < LEAST:
        results.add({"part": part, "failed": f"left out: {left:.0f} of {options.budget} seconds were left"})
        return
    limit = min(limit * (SLOWER if options.device == "cpu" else 1), left)
    words = [sys.executable, str(HERE), "--only", part, "--device", options.device, *["--tiny"] * options.tiny]
    words += ["--roofline", json.dumps(results.roofline())]
    started, late = time.monotonic(), False

    def stop() -> None:
        nonlocal late
        late = True
        process.kill()

    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    timer = Timer(limit, stop)
    timer.start()
    with ThreadPoolExecutor(1) as reader:
        assert process.stdout is not None and process.stderr is not None
        said = reader.submit(process.stderr.read)
        for line in process.stdout:
            if line.startswith("{"):  # a compiler may say something of its own
                results.add({"part": part, **json.loads(line)})
        process.wait()
        timer.cancel()
        last = (said.result().strip().splitlines() or ["no message"])[-1]
    end: dict[str, Any] = {"part": part, "seconds": round(time.monotonic() - started, 1)}
    if late:
        end["failed"] = f"took longer than {limit:g} s"
    elif process.returncode:
        end["failed"] = last
    results.add(end)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = [*FIRST, *SIDE_BY_SIDE, *LAST]
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--parts", nargs="+", choices=every, default=every)
    parser.add_argument("--budget", type=float, default=235, help="seconds of all parts together (default 235)")
    parser.add_argument("--only", choices=every, help="run one part in this process, without a limit")
    parser.add_argument("--roofline", type=json.loads, default={}, help="JSON: the rates by which shares are counted")
    parser.add_argument("--tiny", action="store_true", help="small models, one objective, few rounds")
    options = parser.parse_args()
    if options.only:
        import checks
        import speeds

        parts = {**checks.PARTS, **speeds.PARTS}
        for row in parts[options.only](options.device, options.tiny, options.roofline):
            print(json.dumps(row), flush=True)
        return
    results = Results(options.out, {"device": options.device, "tiny": options.tiny})

    def one_by_one(limits: dict[str, int]) -> None:
        for part, limit in limits.items():
            if part in options.parts:
                run(part, options, limit, results)

    one_by_one(FIRST)
    if options.device == "cpu":  # there they would only crowd each other out
        one_by_one(SIDE_BY_SIDE)
    else:
        with ThreadPoolExecutor(len(SIDE_BY_SIDE)) as pool:
            for part, limit in SIDE_BY_SIDE.items():
                pool.submit(one_by_one, {part: limit})
    one_by_one(LAST)


if __name__ == "__main__":
    main()
