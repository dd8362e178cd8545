"""Pictures as codes, or by an encoder and each connector and fusion: what is understood after the same steps?

    python recipes/shapes/connectors.py runs/connectors

One trunk, from fresh weights, learns captions and questions of rendered scenes in the same order by reading.yaml, once
for each way to read a picture. Every part is a command of unitok, which is printed before it runs and keeps its output
in OUT/logs. What is there already is not done again, and a training that was stopped goes on. At the end stand
results.json and results.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers_vq.storage.files import read_json

HERE = Path(__file__).resolve().parent
QUERIES = 16
"""As many as the encoder has features, so that all readers take as many positions."""


def reader(connector: str, fusion: str = "sequence") -> list[str]:
    words = ["--reader.encoder", "embedded", "--reader.connector", connector, "--reader.fusion", fusion]
    return [*words, "--reader.queries", str(QUERIES)] if connector in ("qformer", "perceiver") else words


WAYS = {
    "codes": [],
    "linear": reader("linear"),
    "mlp": reader("mlp"),
    "qformer": reader("qformer"),
    "perceiver": reader("perceiver"),
    "cross_attention": reader("perceiver", "cross_attention"),
    "experts": reader("mlp", "experts"),
}
"""Name -> options of `train generator`."""
TASKS = {"image_to_text": "captions", "question": "questions"}
TIMED = 32
"""Records that the time of a picture is taken over."""


def run(words: Sequence[str], log: Path) -> None:
    """One command of unitok."""
    log.parent.mkdir(parents=True, exist_ok=True)
    print("unitok", shlex.join(words), flush=True)
    began = time.time()
    with log.open("w") as file:
        settings = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        code = subprocess.run(
            [sys.executable, "-m", "unitok", *words], stdout=file, stderr=file, env=settings
        ).returncode
    if code:
        raise SystemExit(f"{log.stem} ended with {code}: read {log}")
    print(f"  {time.time() - began:.0f} s", flush=True)


def train(words: Sequence[str], out: Path, log: Path) -> dict[str, Any]:
    """What run.json says of a training, which is begun, gone on with, or found done."""
    about = out / "run.json"
    if not about.exists() or not read_json(about)["finished"]:
        run(["train", *words, "--out", str(out), *(["--resume"] if out.exists() else [])], log)
    found: dict[str, Any] = read_json(about)
    return found


def look(model: Path) -> dict[str, Any]:
    """Positions that a picture takes, and for each task the processor seconds of one thread for a picture and what is
    written of it. Each is done twice, and the second time counts."""
    import torch

    from unitok.data.open import open_data
    from unitok.model import UniTok
    from unitok.sample.performing import perform

    torch.set_num_threads(1)
    loaded = UniTok.from_pretrained(model)
    data = open_data(f"shapes@val?limit={TIMED}", loaded.image_tokenizer.image_size)
    records = [data[number] for number in range(TIMED)]
    found: dict[str, Any] = {"positions": loaded.reader.length if loaded.reader else loaded.layout.length}
    for task in TASKS:
        for _ in range(2):
            began = time.process_time()
            perform(loaded, task, records)
            found[task] = (time.process_time() - began) / TIMED
    return found


def measure(way: str, options: argparse.Namespace, images: Path) -> dict[str, Any]:
    """Trains a model that reads pictures in one way, if it is not there yet, and gives its numbers."""
    model, looked = options.out / way, options.out / f"{way}-look.json"
    tasks = options.out / f"{way}-tasks-{options.limit}"
    words = ["generator", "--config", str(HERE / "reading.yaml"), "--run.steps", str(options.steps)]
    about = train([*words, "--image_tokenizer", str(images), *WAYS[way]], model, options.out / "logs" / f"{way}.log")
    if about["steps"] != options.steps:
        raise SystemExit(
            f"{model} was trained for {about['steps']} steps: choose another folder, or --steps {about['steps']}"
        )
    if not (tasks / "report.json").exists():
        words = ["eval", "tasks", f"shapes@val?limit={options.limit}", "--model", str(model), "--out", str(tasks)]
        run(words, options.out / "logs" / f"{way}-tasks.log")
    if not looked.exists():
        looked.write_text(json.dumps(look(model)))
    report, seen = read_json(tasks / "report.json"), read_json(looked)
    found: dict[str, Any] = {"positions": seen["positions"], "parameters": about["parameters"]}
    found["seconds_a_step"] = about["seconds"] / about["steps"]
    for task, name in TASKS.items():
        where = report["provenance"][f"{task}.exact"]
        found[name] = {"exact": report[task]["exact"], "interval": where.get("interval_over_captions")}
        found[name] |= {"loss": about["numbers"][f"loss/{task}"], "seconds_a_picture": seen[task]}
    return found


def table(results: dict[str, Any]) -> str:
    """The numbers in markdown."""
    rows = [
        "| read by | positions | weights trained | captions exact | questions exact | losses | ms each | s a step |"
    ]
    rows.append("|---" + "|---:" * 7 + "|")
    for way, found in results.items():
        parts = [found[name] for name in TASKS.values()]
        exact = [f"{100 * one['exact']:.1f} %" + _between(one["interval"]) for one in parts]
        losses = ", ".join(f"{one['loss']:.2f}" for one in parts)
        times = ", ".join(f"{1000 * one['seconds_a_picture']:.1f}" for one in parts)
        cells = [f"`{way}`", str(found["positions"]), f"{found['parameters']:,}", *exact, losses, times]
        rows.append(f"| {' | '.join(cells)} | {found['seconds_a_step']:.2f} |")
    return "\n".join(rows) + "\n"


def _between(interval: list[float] | None) -> str:
    return "" if interval is None else f" ({100 * interval[0]:.0f} to {100 * interval[1]:.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--image_tokenizer", type=Path, help="default: one is trained by tokenizer.yaml")
    parser.add_argument("--steps", type=int, default=400, help="of each generator")
    parser.add_argument("--limit", type=int, default=400, help="held-out pictures that are measured")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    images = options.image_tokenizer or options.out / "tokenizer"
    if options.image_tokenizer is None:
        train(
            ["tokenizer", "--config", str(HERE / "tokenizer.yaml"), "--run.threads", "1"],
            images,
            options.out / "logs" / "tokenizer.log",
        )
    results: dict[str, Any] = {}
    for way in options.ways:
        results[way] = measure(way, options, images)
        (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        (options.out / "results.md").write_text(table(results))
    print(table(results), end="")


if __name__ == "__main__":
    main()
