"""How long a step of drawing takes, by the form of the weights. They are fresh: speed does not depend on training.

    OMP_NUM_THREADS=1 python benchmarks/drawing.py --sizes 384x6 768x12 --batches 1 8

draws pictures of 64 codes by `next_token` with a trunk of each width and depth, and prints milliseconds of processor
time a step (a code of every picture of the batch). The forms take turns, and the numbers are medians of the rounds, so
they compare even on a machine that is busy. `autocast` casts the weights to bf16 at every step; the prepared forms are
what `unitok.prepare` makes. `--compile` adds those that are compiled at once, and prints what that took: seconds of
processor time, of this process and of the compiler, and whether torch had them on disk
(`TORCHINDUCTOR_CACHE_DIR=$(mktemp -d)` is an empty cache).
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time

CAPTION = "a small red circle left of a large blue square"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["128x6", "384x6", "768x12"], help="width x depth of the trunk")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--only", nargs="+", help="forms, such as 'prepared bf16' 'compiled bf16'")
    options = parser.parse_args()

    import torch

    from tokenizers_vq.base import build_tokenizer
    from tokenizers_vq.config import TOKENIZER_PRESETS
    from unitok.config import ModelConfig, TrunkConfig
    from unitok.device import Precision, pick_device
    from unitok.model import UniTok
    from unitok.prepare import prepare
    from unitok.sample.pipeline import draw_codes
    from unitok.sampling import SampleSettings
    from unitok.text import train_bpe
    from unitok.trunk import compiled
    from unitok.vocabulary import Vocabulary

    compiled.OFTEN = 0
    device = pick_device("auto")
    torch.manual_seed(0)
    tokenizer, text = build_tokenizer(TOKENIZER_PRESETS["shapes"]()), train_bpe([CAPTION], 300)
    spans = Vocabulary.of(text.size, tokenizer.codebook_size).spans
    steps, settings = tokenizer.layout.length, SampleSettings(guidance=2.0)
    for size in options.sizes:
        width, depth = map(int, size.split("x"))
        config = ModelConfig(TrunkConfig(width=width, depth=depth, heads=width // 64), "next_token", spans)
        plain = UniTok(config, tokenizer, text).to(device).eval()
        forms: dict[str, tuple[UniTok, Precision]] = {"fp32": (plain, "fp32"), "autocast": (plain, "bf16")}
        for compiles in (False, True) if options.compile else (False,):
            for precision in ("fp32", "bf16"):
                model = copy.deepcopy(plain)
                prepare(model, precision, compiles)
                forms[f"{'compiled' if compiles else 'prepared'} {precision}"] = (model, "fp32")
        forms = {name: form for name, form in forms.items() if name in (options.only or forms)}
        for batch in options.batches:
            taken: dict[str, list[float]] = {name: [] for name in forms}
            first: dict[str, float] = {}
            for turn in range(options.rounds + 1):  # the first warms up
                for name, (model, how) in forms.items():
                    started, compiler = time.process_time(), _of_children()
                    draw_codes(model, [CAPTION] * batch, settings, range(batch), batch_size=batch, precision=how).cpu()
                    seconds = time.process_time() - started
                    if turn:
                        taken[name].append(seconds / steps * 1000)
                    elif model.trunk.compiled is not None:
                        first[name] = seconds + _of_children() - compiler
            shown = "  ".join(f"{name} {statistics.median(times):8.2f}" for name, times in taken.items())
            print(f"{size:>8} batch {batch:<3} {shown}  ms a step", flush=True)
            for name, seconds in first.items():
                print(f"{'':18} {name}: {seconds:.1f} s for the first", flush=True)


def _of_children() -> float:
    """Seconds of processor time of programs that this one has started and that have ended."""
    times = os.times()
    return times.children_user + times.children_system


if __name__ == "__main__":
    main()
