"""Does a trunk that knows language learn to draw from fewer examples? Runs the whole comparison and writes its numbers.

    python recipes/language/compare.py data/emoji models/SmolLM2-135M-Instruct.Q4_1.gguf runs/language/compared

Three models of one shape learn the same emoji in the same steps: `fresh` begins with random weights, `adapted` keeps
the language model as it is and learns thin matrices beside it (LoRA) and the ids, `whole` learns all of it on. Every
part is a command of unitok, which is printed before it runs and keeps its output in OUT/logs. What is there already is
not done again. At the end stand results.json, results.md, losses.png and pictures.png.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers_vq.storage.files import JSON_LIMIT, log_entries, parse_json, read_bytes, read_json

HERE = Path(__file__).resolve().parent
ARMS = ("fresh", "adapted", "whole")
CAPTION = "{text}, {style} style"
WORDS = "{words}, {style} style"
SHOWN = 12
"""Pictures of a model on the sheet."""
FIRST = 15
"""One step of so many of `adapted` is a step of its ids alone."""


@dataclass(frozen=True)
class Places:
    """What is read and where what is written."""

    data: Path
    out: Path

    @property
    def language(self) -> Path:
        return self.out / "language"

    @property
    def tokenizer(self) -> Path:
        return self.out / "tokenizer"

    @property
    def words(self) -> Path:
        return self.out / "other_words"

    def model(self, arm: str) -> Path:
        return self.out / arm / "stage2" if arm == "adapted" else self.out / arm

    def split(self, name: str) -> str:
        return f"{self.data}@{name}?caption={CAPTION}"


@dataclass(frozen=True)
class Job:
    """One command, and the file that is there when it is done."""

    name: str
    done: Path
    words: list[str]

    def run(self, out: Path, threads: int) -> None:
        if self.done.exists():
            return
        words = [*self.words, "--resume"] if self.words[0] == "train" and (out / self.name).exists() else self.words
        log = out / "logs" / f"{self.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        print("unitok", *(f"'{word}'" if set(word) & set(" {}[]*&") else word for word in words), flush=True)
        began = time.time()
        with log.open("w") as file:
            settings = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
            code = subprocess.run([sys.executable, "-m", "unitok", *words], stdout=file, stderr=file, env=settings)
        if code.returncode:
            raise SystemExit(f"{self.name} ended with {code.returncode}; {log} ends with:\n{_tail(log)}")
        print(f"  {self.name}: {time.time() - began:.0f} s", flush=True)


def run_all(jobs: Sequence[Job], out: Path, at_once: int, threads: int) -> None:
    """Runs commands side by side, at most so many at once; ends with the first that fails."""
    with ThreadPoolExecutor(max(1, at_once)) as pool:
        for done in [pool.submit(job.run, out, threads) for job in jobs]:
            try:
                done.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def unpack_language_model(gguf: Path, folder: Path) -> None:
    """Writes a GGUF file as a folder of transformers: it is read once, and its configuration alone makes `fresh`."""
    from safetensors.torch import save_file

    from unitok.trunk.hf.reading import read_language_model

    if (folder / "model.safetensors").exists():
        return
    language = read_language_model(f"hf:{gguf}")
    assert language.texts is not None, "a GGUF file has its tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(language.trunk.language_model))
    language.texts.save(folder)
    save_file({name: tensor.contiguous() for name, tensor in language.weights.items()}, folder / "model.safetensors")


def write_other_words(data: Path, folder: Path) -> None:
    """Writes the held-out pictures that have other words, as a folder with metadata.jsonl."""
    import pyarrow.parquet as pq

    if (folder / "metadata.jsonl").exists():
        return
    rows = [row for file in sorted(data.glob("val-*.parquet")) for row in pq.read_table(file).to_pylist()]
    pictures = {(row["text"], row["style"]): row["image"]["bytes"] for row in rows}
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, about in enumerate(records(HERE / "other_words.jsonl")):
        (folder / f"{number:03d}.png").write_bytes(pictures[about["text"], about["style"]])
        lines.append(json.dumps({"file_name": f"{number:03d}.png", **about}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines))


def preparing(places: Places, steps: int) -> list[Job]:
    """The image tokenizer, then the codes of the training data."""
    tokenizer = str(places.tokenizer)
    train = ["train", "tokenizer", "--config", str(HERE.parent / "emoji" / "tokenizer.yaml")]
    train += ["--data", places.split("train"), "--val_data", places.split("val"), "--out", tokenizer]
    train += ["--run.steps", str(steps), "--run.batch_size", "96", "--run.eval_every", "0", "--run.sample_every", "0"]
    encode = ["encode", "--data", places.split("train"), "--image_tokenizer", tokenizer, "--batch_size", "512"]
    encode += ["--out", str(places.out / "codes"), "--workers", "4"]
    return [
        Job("tokenizer", places.tokenizer / "config.json", train),
        Job("codes", places.out / "codes" / "codes.json", encode),
    ]


def training(places: Places, steps: int, batch_size: int, workers: int) -> list[Job]:
    """A run for each model: the same pictures in the same order."""
    every = str(max(1, steps // 6))
    common = ["train", "generator", "--config", str(HERE / "emoji.yaml"), "--data", str(places.out / "codes")]
    common += ["--val_data", places.split("val"), "--image_tokenizer", str(places.tokenizer)]
    common += ["--run.batch_size", str(batch_size), "--run.workers", str(workers), "--run.eval_every", every]
    common += ["--run.sample_every", "0", "--run.save_every", str(max(1, steps // 3)), "--run.steps", str(steps)]
    folder = f"hf:{places.language}"
    first = max(1, steps // FIRST)
    stages = [
        {"trainable": ["ids.*"], "run": {"steps": first}, "optim": {"lr": 0.002, "warmup_steps": first // 4}},
        {
            "trainable": ["ids.*"],
            "lora": {"rank": 32, "alpha": 32},
            "run": {"steps": max(1, steps - first)},
            "optim": {"lr": 0.001},
        },
    ]
    own = {
        "fresh": ["--trunk", f"{folder}/config.json", "--text_tokenizer", str(places.language)],
        "adapted": ["--trunk", folder, "--stages", json.dumps(stages)],
        "whole": ["--trunk", folder],
    }
    return [
        Job(arm, places.model(arm) / "config.json", [*common, *own[arm], "--out", str(places.out / arm)])
        for arm in ARMS
    ]


def measuring(places: Places, limit: int | None) -> list[Job]:
    """What is measured of each model, and of the language model as it was."""
    few = [] if limit is None else ["--limit", str(limit)]
    prose = ["eval", "text", str(HERE / "prose.txt"), "--length", "64"]
    evals = places.out / "eval"
    text = [*prose, "--trunk", f"hf:{places.language}", "--out", str(evals / "language-text")]
    jobs = [Job("language-text", evals / "language-text" / "report.json", text)]
    names = ["--gallery", f"{places.data}@train?caption=text", "--label", "text", "--batch_size", "128"]
    said = f"{places.words}?caption={CAPTION}"
    for arm in ARMS:
        model = ["--model", str(places.model(arm))]
        commands = {
            "val": ["eval", "generator", "--data", places.split("val"), *names, *few],
            "names": ["eval", "generator", "--data", said, *names, "--captioning", "false", *few],
            "words": ["eval", "generator", "--data", said, "--prompt", WORDS, *names, "--captioning", "false", *few],
            "text": prose,
        }
        for kind, words in commands.items():
            out = evals / f"{arm}-{kind}"
            jobs.append(Job(f"{arm}-{kind}", out / "report.json", [*words, *model, "--out", str(out)]))
        out = places.out / "drawn" / arm
        words = ["sample", "--captions", str(places.out / "shown.txt"), "--n", "1", *model, "--out", str(out)]
        jobs.append(Job(f"{arm}-drawn", out / "sheet.png", words))
    return jobs


def shown(places: Places) -> list[dict[str, Any]]:
    """The pairs on the sheet, evenly spread; each with the caption of its name and that of other words."""
    pairs = records(places.words / "metadata.jsonl")
    some = pairs[:: max(1, len(pairs) // SHOWN)][:SHOWN]
    return [{**one, "name": CAPTION.format(**one), "other": WORDS.format(**one)} for one in some]


def draw_sheet(places: Places) -> None:
    """pictures.png: for each model a row by names and a row by other words, and the held-out pictures at last."""
    import torch

    from tokenizers_vq.images import save_grid
    from unitok.data.decoding import decode

    pairs, pictures, labels = shown(places), [], []
    for arm in ARMS:
        folder = places.out / "drawn" / arm / "pictures"
        files = {one["caption"]: folder / one["file_name"] for one in records(folder / "metadata.jsonl")}
        for which in ("name", "other"):
            pictures += [decode(files[pair[which]].read_bytes(), (64, 64)) for pair in pairs]
            labels += [f"{arm}: {pair[which].rpartition(', ')[0]}" for pair in pairs]
    pictures += [decode((places.words / pair["file_name"]).read_bytes(), (64, 64)) for pair in pairs]
    labels += [f"held out, {pair['style']}" for pair in pairs]
    save_grid(places.out / "pictures.png", torch.stack(pictures), columns=len(pairs), labels=labels)


def losses(places: Places, arm: str) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Of each task (step, loss) in training and on the held-out pairs; the steps of two stages are counted on."""
    folders = [places.out / arm / "stage1", places.out / arm / "stage2"] if arm == "adapted" else [places.out / arm]
    found: dict[str, dict[str, list[tuple[int, float]]]] = {"train": {}, "val": {}}
    before = 0
    for folder in folders:
        entries = list(log_entries(read_bytes(folder / "log.jsonl", JSON_LIMIT)))
        for entry in entries:
            for name, value in entry.items():
                if name.startswith("loss/") and value is not None:
                    points = found[entry["kind"]].setdefault(name.removeprefix("loss/"), [])
                    points.append((before + entry["step"], value))
        before += max(entry["step"] for entry in entries)
    return found


def plot(curves: dict[str, Any], path: Path) -> None:
    """losses.png: nats per code of the pictures that are drawn, in training (line) and held out (dots)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=100)
    axes = figure.subplots()
    for number, (arm, kinds) in enumerate(curves.items()):
        for kind, style in {"train": "-", "val": "o--"}.items():
            points = kinds[kind].get("text_to_image", [])
            if points:
                axes.plot(*zip(*points, strict=True), style, color=f"C{number}", label=f"{arm}, {kind}", linewidth=1)
    axes.set_xlabel("step")
    axes.set_ylabel("loss of drawing, nats per code")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, bbox_inches="tight")


ROWS = {
    "CLIPScore *": ("generation", "clipscore", "", 1.0, "{:.1f}"),
    "R-precision, own caption *": ("generation", "r_precision", "", 100.0, "{:.1f} %"),
    "right name, nearest caption *, top 1": ("generation", "naming_drawn", "top1", 100.0, "{:.1f} %"),
    "right name, nearest caption *, top 5": ("generation", "naming_drawn", "top5", 100.0, "{:.1f} %"),
    "right name, nearest picture *, top 1": ("generation", "retrieval_drawn", "top1", 100.0, "{:.1f} %"),
    "right name, nearest picture *, top 5": ("generation", "retrieval_drawn", "top5", 100.0, "{:.1f} %"),
    "FID *": ("generation", "fid", "", 1.0, "{:.2f}"),
}
"""Row of the table: where its number stands in a report, what it is multiplied by, and how it is written."""
SETS = {"val": "held-out pairs", "names": "those with other words, by their names", "words": "those, by other words"}


def table(places: Places, curves: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """All numbers, and the table of them in Markdown."""
    evals = places.out / "eval"
    reports = {path.parent.name: read_json(path) for path in sorted(evals.glob("*/report.json"))}
    lines = [f"| | {' | '.join(ARMS)} |", f"|---|{'---:|' * len(ARMS)}"]

    def add(title: str, values: Sequence[str]) -> None:
        lines.append(f"| {title} | {' | '.join(values)} |")

    for task in curves[ARMS[0]]["train"]:
        for kind, said in {"train": "as trained, last", "val": "held out, last"}.items():
            last = [curves[arm][kind].get(task, [(0, float("nan"))])[-1][1] for arm in ARMS]
            add(f"loss of {task}, {said}", [f"{value:.3f}" for value in last])
    for kind, said in SETS.items():
        for title, (section, key, part, factor, form) in ROWS.items():
            found = [reports[f"{arm}-{kind}"][section].get(key) for arm in ARMS]
            values = [one[part] if part and one is not None else one for one in found]
            add(f"{said}: {title}", ["-" if one is None else form.format(factor * one) for one in values])
    exact = [reports[f"{arm}-val"]["captioning"]["exact"] for arm in ARMS]
    add("captions of held-out pictures, exact", [f"{100 * value:.1f} %" for value in exact])
    before = reports["language-text"]["text"]
    for key, said in {"perplexity": "perplexity per token", "bits_per_byte": "bits per byte"}.items():
        values = [f"{reports[f'{arm}-text']['text'][key]:.2f}" for arm in ARMS]
        add(f"prose, {said} (the language model as it was: {before[key]:.2f})", values)
    own = {
        kind: {key: reports[f"whole-{kind}"]["generation"].get(key) for key in ("clipscore_real", "naming_real")}
        for kind in SETS
    }
    return {"reports": reports, "losses": curves, "the data's own pictures": own}, "\n".join(lines) + "\n"


def records(path: Path) -> list[dict[str, Any]]:
    """What the lines of a file of JSON lines hold."""
    return [parse_json(line, str(path)) for line in read_bytes(path, JSON_LIMIT).splitlines()]


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train-*.parquet and val-*.parquet (recipes/emoji)")
    parser.add_argument("gguf", type=Path, help="the language model")
    parser.add_argument("out", type=Path, help="folder for all that is made")
    parser.add_argument("--steps", type=int, default=1500, help="of each model (1500)")
    parser.add_argument("--batch_size", type=int, default=32, help="pictures a step (32)")
    parser.add_argument("--tokenizer_steps", type=int, default=1600, help="of the image tokenizer, 96 pictures each")
    parser.add_argument("--limit", type=int, help="pictures that are measured of each set; all by default")
    parser.add_argument("--at_once", type=int, default=3, help="commands side by side (3); 1 on a CPU")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of a command (2)")
    given = parser.parse_args()
    places = Places(given.data, given.out)
    for path in (given.data, given.gguf):
        if not path.exists():
            raise SystemExit(
                f"{path} does not exist: give the data and the language model (README.md beside this file)"
            )
    began = time.time()
    passed: dict[str, float] = {}

    def at(what: str) -> None:
        passed[what] = round(time.time() - began, 1)
        print(f"{passed[what]:.0f} s: {what}", flush=True)

    with ThreadPoolExecutor(1) as beside:
        jobs = preparing(places, given.tokenizer_steps)
        codes = beside.submit(lambda: [job.run(places.out, given.threads) for job in jobs])
        unpack_language_model(given.gguf, places.language)
        write_other_words(places.data, places.words)
        at("the language model is read")
        codes.result()
    at("pictures are encoded")
    import torch

    workers = 2 if torch.cuda.is_available() else 0
    run_all(training(places, given.steps, given.batch_size, workers), places.out, given.at_once, given.threads)
    at("trained")
    pairs = shown(places)
    (places.out / "shown.txt").write_text("".join(f"{pair['name']}\n{pair['other']}\n" for pair in pairs))
    run_all(measuring(places, given.limit), places.out, given.at_once, given.threads)
    at("measured")
    curves = {arm: losses(places, arm) for arm in ARMS}
    results, text = table(places, curves)
    runs = {arm: read_json(places.model(arm) / "run.json") for arm in ARMS}
    about = {arm: {name: run.get(name) for name in ("seconds", "hardware", "versions")} for arm, run in runs.items()}
    found = {"settings": vars(given), "passed": passed, "runs": about, **results}
    (places.out / "results.json").write_text(json.dumps(found, indent=1, default=str))
    (places.out / "results.md").write_text(text)
    plot(curves, places.out / "losses.png")
    draw_sheet(places)
    print(text)
    at(f"done: {places.out}/results.md")


if __name__ == "__main__":
    main()
