"""What many records cost before the first of them is used: the start of a training, and an encoding that is resumed.

    python benchmarks/records.py --train 1000000 1000000000 --encode 100000 10000000

The records are simulated: they cost nothing, so what is left is what the number of them costs. A training's loader
gives its first batches from the first step, from the middle, and from a later epoch. An encoding is begun, left at
half, and begun again; its codes are written and its shards compared with their digests, and no network runs. Each case
runs in a process of its own, on one thread. Seconds are of the processor.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CODES = 16
BATCH = 64


class Simulated:
    """Records without pictures."""

    name, endless, left_out = "simulated", False, ()

    def __init__(self, length: int) -> None:
        import torch

        self.length, self.codes = length, torch.zeros(CODES, dtype=torch.int64)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        from unitok.data.records import Record

        return Record(f"{index}.png", "a caption", codes=self.codes)

    def fingerprint(self) -> str:
        return str(self.length)


def memory() -> float:
    """Largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def start_training(length: int, step: int) -> dict[str, float]:
    """Seconds and megabytes that the first ten batches from a step on take."""
    from unitok.data.loader import make_loader

    before, started = memory(), time.process_time()
    batches = make_loader(Simulated(length), seed=0, batch_size=BATCH, micro_batch=BATCH, start_step=step)
    for _ in itertools.islice(batches, 10):
        pass
    return {"seconds": time.process_time() - started, "mb": memory() - before}


def encode(length: int, folder: Path, part: float) -> dict[str, float]:
    """Begins or goes on with an encoding up to a part of all records: seconds until the first record can be added,
    seconds for a million of them, megabytes at a tenth of the way and at the end."""
    import torch

    from tokenizers_vq.layout import Layout
    from unitok.data.codes.writer import ShardWriter

    before, started = memory(), time.process_time()
    writer = ShardWriter(
        folder,
        tokenizer_fingerprint="simulated",
        layout=Layout(((4, CODES // 4),)),
        codebook_size=1000,
        image_size=(64, 64),
        source="simulated",
        total=length,
        data_sha256=str(length),
    )
    done = writer.count
    opened = time.process_time()
    codes, added, early = torch.zeros(CODES, dtype=torch.int64), 0, 0.0
    for start, stop in writer.claims():
        for index in range(start, stop):
            writer.add(f"{index}.png", "a caption", codes)
        added += stop - start
        if not early and added >= length * part / 10:
            early = memory() - before
        if done + added >= length * part:
            break
    found = {"start": opened - started, "million": (time.process_time() - opened) / added * 1e6, "done": done}
    if part == 1:
        closing = time.process_time()
        writer.finish()
        found["finish"] = time.process_time() - closing
    return found | {"early": early, "mb": memory() - before}


def apart(work: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What a function finds in a process of its own."""

    def run(answers: Any) -> None:
        import torch

        torch.set_num_threads(1)
        answers.send(work())

    mine, its = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=run, args=(its,))
    process.start()
    its.close()
    try:
        return mine.recv()
    except EOFError:
        raise SystemExit("a case has ended without an answer") from None
    finally:
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, nargs="*", default=[10**6, 10**9], help="records of a training")
    parser.add_argument("--encode", type=int, nargs="*", default=[10**5, 10**6], help="records of an encoding")
    options = parser.parse_args()
    import unitok.data.codes.writer
    import unitok.data.loader  # noqa: F401 (before the processes are forked: imports are not what is measured)

    for length in options.train:
        epoch = length // BATCH
        for name, step in (("the first step", 0), ("the middle", epoch // 2), ("epoch 10", 9 * epoch + 5)):
            one = apart(lambda length=length, step=step: start_training(length, step))  # type: ignore[misc]
            print(f"train {length:>13,} from {name:14}: {one['seconds']:.2f} s, {one['mb']:.0f} MB", flush=True)
    for length in options.encode:
        with tempfile.TemporaryDirectory() as folder:
            for part in (0.5, 1.0):
                out = Path(folder) / "codes"
                one = apart(lambda length=length, out=out, part=part: encode(length, out, part))  # type: ignore[misc]
                finish = f", {one['finish']:.2f} s to finish" if "finish" in one else ""
                speed = f"{one['start']:.2f} s to start, {one['million']:.1f} s a million{finish}"
                held = f"{one['early']:.0f} MB after a tenth, {one['mb']:.0f} MB at the end"
                print(f"encode {length:>12,} from {one['done']:>10,}: {speed}; {held}", flush=True)


if __name__ == "__main__":
    main()
