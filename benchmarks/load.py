"""How many pictures a second `unitok serve` draws for 1, 8 and 32 clients, and how long each of them waits.

    python benchmarks/load.py --model runs/demo/generator --seconds 20

starts a server of its own on 127.0.0.1, and lets so many clients ask for a picture again and again. One client is the
same as requests one after the other. Numbers of clients take turns, several rounds of them, and medians count: compare
numbers of one run. Without --model, a model with fresh weights of --preset is served: speed does not depend on what was
learned. Prints a table, and with --out writes it as JSON too.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CAPTION = "a small red circle left of a large blue square"
LONGEST, MOST_CLIENTS = 600, 256


def make_model(preset: str, objective: str, folder: Path) -> None:
    """Writes a model with fresh weights."""
    import torch

    from tokenizers_vq.base import build_tokenizer
    from tokenizers_vq.config import TOKENIZER_PRESETS
    from unitok.config import TRUNK_PRESETS, ModelConfig
    from unitok.model import UniTok
    from unitok.objectives import get_objective
    from unitok.text import train_bpe
    from unitok.vocabulary import Vocabulary

    torch.manual_seed(0)
    tokenizer = build_tokenizer(TOKENIZER_PRESETS[preset]())
    text = train_bpe([CAPTION], 300)
    spans = Vocabulary.of(text.size, tokenizer.codebook_size).spans
    ports = get_objective(objective, tokenizer).ports(tokenizer.layout)
    config = ModelConfig(TRUNK_PRESETS[preset](), objective, spans, ports=ports)
    UniTok(config, tokenizer, text).save_pretrained(folder)


@contextmanager
def server(model: Path) -> Iterator[tuple[int, int]]:
    """A server of its own: its port, and the number of its process."""
    words = [sys.executable, "-m", "unitok", "serve", "--model", str(model), "--port", "0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/v1", line)
        if found is None:
            raise SystemExit(f"the server did not start: unitok serve --model {model} says why")
        yield int(found[1]), process.pid
    finally:
        process.terminate()
        process.wait()


def drive(port: int, process: int, clients: int, seconds: float, body: dict[str, Any]) -> dict[str, Any]:
    """{"clients", "pictures_per_second", "cpu", "p50", "p95", "p99", "requests", "failed"}: latencies in seconds,
    seconds of processor time of the server for each picture, and how many requests were answered."""
    latencies: list[float] = []
    failed: list[str] = []
    begun, used = time.perf_counter(), processor_time(process)

    def ask(client: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LONGEST)
        number = 0
        while time.perf_counter() < begun + seconds:
            asked = json.dumps({**body, "seed": client * 10**6 + number})
            started = time.perf_counter()
            connection.request("POST", "/v1/images/generations", asked, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
            if answer.status == 200:
                latencies.append(time.perf_counter() - started)
            else:
                failed.append(text.decode()[:200])
            number += 1
        connection.close()

    threads = [threading.Thread(target=ask, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - begun
    if not latencies:
        raise SystemExit(f"no picture in {seconds} seconds: {next(iter(failed), 'choose more --seconds')}")
    shares = statistics.quantiles(latencies, n=100, method="inclusive") if len(latencies) > 1 else latencies * 99
    return {
        "clients": clients,
        "pictures_per_second": len(latencies) / took,
        "cpu": (processor_time(process) - used) / len(latencies),
        "p50": shares[49],
        "p95": shares[94],
        "p99": shares[98],
        "requests": len(latencies),
        "failed": len(failed),
    }


def processor_time(process: int) -> float:
    """Seconds that a process has computed so far (Linux): other programs do not count, where wall time does."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(process: int) -> float:
    """Memory that a process holds, in GB (Linux)."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) * 1024 / 1e9 if found else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model folder; else one with fresh weights")
    parser.add_argument("--preset", default="shapes", help="of the model with fresh weights")
    parser.add_argument("--objective", default="next_token", help="of the model with fresh weights")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=10, help="of each number of clients in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--settings", type=json.loads, default={}, help='of the requests, such as {"guidance": 1}')
    parser.add_argument("--out", type=Path, help="file to write")
    options = parser.parse_args()
    if not all(1 <= clients <= MOST_CLIENTS for clients in options.clients) or not 0 < options.seconds <= LONGEST:
        parser.error(f"choose up to {MOST_CLIENTS} clients and {LONGEST} seconds")

    with tempfile.TemporaryDirectory() as folder:
        model = options.model
        if model is None:
            model = Path(folder) / "model"
            make_model(options.preset, options.objective, model)
        body = {"prompt": CAPTION, **options.settings}
        with server(model) as (port, process):
            drive(port, process, 1, 0.5, body)  # warms up
            found: list[dict[str, Any]] = []
            held = {0: memory(process)}
            for clients in options.clients * options.rounds:
                found.append(drive(port, process, clients, options.seconds, body))
                held[sum(row["requests"] for row in found)] = memory(process)
    rows = []
    for clients in options.clients:
        mine = [row for row in found if row["clients"] == clients]
        rows.append({key: float(f"{statistics.median(row[key] for row in mine):.3g}") for key in mine[0]})
    print(f"{'clients':>7} {'pictures/s':>10} {'cpu s':>7} {'p50 s':>7} {'p95 s':>7} {'p99 s':>7} {'failed':>6}")
    for row in rows:
        print(
            f"{row['clients']:>7g} {row['pictures_per_second']:>10g} {row['cpu']:>7g} {row['p50']:>7g} "
            f"{row['p95']:>7g} {row['p99']:>7g} {row['failed']:>6g}"
        )
    print("the server holds " + ", ".join(f"{gb:.3f} GB after {requests:,} requests" for requests, gb in held.items()))
    if options.out is not None:
        from unitok.train.folder import environment

        told = {requests: round(gb, 3) for requests, gb in held.items()}
        facts = {"rows": rows, "memory_gb": told, "seconds": options.seconds, "rounds": options.rounds}
        named = {"model": str(options.model or f"{options.preset} {options.objective}"), "settings": options.settings}
        options.out.write_text(json.dumps({**named, **facts, "environment": environment()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
