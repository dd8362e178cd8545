"""How long FID takes once the features are there, and how much memory: 10,000 x 2,048 features on each side.

    python benchmarks/frechet.py --threads 2

prints seconds (and seconds of processor time, which other programs disturb less) for adding up both sets, for the
distance, and with --all for KID, precision and recall on as many features, each with the peak memory of the process so
far. Random features: the time does not depend on their values.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from unitok.eval.metrics.frechet import gaussian_distance
from unitok.eval.metrics.kid import kernel_distance
from unitok.eval.metrics.prdc import prdc
from unitok.eval.metrics.statistics import RunningGaussian


def batches(count: int, dim: int, seed: int, size: int = 64) -> Iterator[Tensor]:
    """Features (size, dim) that are made as they are asked for, so that the peak is that of the sums."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(0, count, size):
        yield torch.randn(size, dim, generator=generator) + 0.1 * seed


def timed(name: str, work: Callable[[], object]) -> object:
    started, busy = time.perf_counter(), time.process_time()
    result = work()
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"{name:<36}{seconds:8.1f} s   processor {busy:6.1f} s   peak {peak:.2f} GB", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--all", action="store_true", help="also KID, precision, recall, density and coverage")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    sums = [RunningGaussian(given.dim) for _ in range(2)]

    def add_up() -> None:
        for seed, one in enumerate(sums):
            for batch in batches(given.count, given.dim, seed):
                one.update(batch)

    print(f"{given.count} x {given.dim} on each side, {given.threads} thread(s)")
    timed("making and adding up both sets", add_up)
    timed("FID", lambda: gaussian_distance(sums[0].gaussian(), sums[1].gaussian()))
    if given.all:
        a, b = (torch.cat(list(batches(given.count, given.dim, seed))) for seed in range(2))
        timed("KID, 100 subsets of 1,000", lambda: kernel_distance(a, b))
        timed("precision, recall, density, coverage", lambda: prdc(a, b))


if __name__ == "__main__":
    main()
