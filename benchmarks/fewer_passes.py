"""How long a picture takes where steps are left out: guidance that ends, codes that are guessed ahead, rows at once.

    OMP_NUM_THREADS=1 python benchmarks/fewer_passes.py --model runs/demo/generator --data "shapes@val?limit=24"

draws the captions of a data set one by one, or `--batch` at a time, and prints for each way passes and milliseconds of
processor time a picture, and the share of the pictures whose codes are those of the plain way. The ways take turns, and
times are medians of the rounds, so they compare even on a machine that is busy. The model must be trained: how often a
guess is right depends on what it learned. What guidance that ends and rows at once cost in quality, `unitok compare
--sweep` says.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a trained model")
    parser.add_argument("--data", default="shapes@val?limit=24", help="captions")
    parser.add_argument("--guided_codes", nargs="*", type=int, default=[16, 32])
    parser.add_argument("--ahead", nargs="*", type=int, default=[4, 8, 16])
    parser.add_argument("--row_window", nargs="*", type=int, default=[])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    import torch

    from unitok.data.open import open_data
    from unitok.device import pick_device
    from unitok.model import UniTok
    from unitok.sample.pipeline import draw_codes
    from unitok.sampling import SampleSettings

    model = UniTok.from_pretrained(options.model).to(pick_device("auto"))
    data = open_data(options.data, model.image_tokenizer.image_size)
    captions = [data[place].caption or "" for place in range(len(data))]
    plain = SampleSettings.of(model.config)
    ways = {"plain": plain}
    ways |= {f"guided_codes {number}": replace(plain, guided_codes=number) for number in options.guided_codes}
    ways |= {f"ahead {number}": replace(plain, ahead=number) for number in options.ahead}
    ways |= {f"row_window {number}": replace(plain, row_window=number) for number in options.row_window}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    passes: dict[str, int] = {}
    codes: dict[str, torch.Tensor] = {}

    def draw(name: str) -> None:
        passes[name], parts = 0, []

        def count(numbers: list[int], logits: torch.Tensor) -> None:
            passes[name] += 1

        for start in range(0, len(captions), options.batch):
            some = captions[start : start + options.batch]
            seeds = range(start, start + len(some))
            parts.append(draw_codes(model, some, ways[name], seeds, batch_size=len(some), watch=count).cpu())
        codes[name] = torch.cat(parts)

    draw("plain")  # warms up
    for _ in range(options.rounds):
        for name in ways:
            started = time.process_time()
            draw(name)
            taken[name].append((time.process_time() - started) / len(captions) * 1000)
    for name, times in taken.items():
        same = (codes[name] == codes["plain"]).all(1).float().mean().item()
        number = passes[name] / len(captions)
        print(f"{name:>16} {number:6.1f} passes {statistics.median(times):8.1f} ms, {same:6.1%} as plain")


if __name__ == "__main__":
    main()
