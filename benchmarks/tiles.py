"""A large picture through a tokenizer and back, as a whole and in tiles: time, memory, PSNR, and whether seams show.

    python benchmarks/tiles.py --tokenizer runs/tokenizer --picture photo.png --side 1024 --tiles 512x128 256x64

A seam shows where the error changes more from one column of codes to the next than it does at the same place when the
whole picture goes through at once. "seams" is that ratio where windows overlap, in the mean, and at the worst of all
columns. Each case runs in a process of its own, whose peak memory is what it needs; seconds are of the processor, on
one thread. `--whole false` leaves the whole out, for pictures that need more memory than there is.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any


def through(folder: Path, picture: Path, window: str) -> dict[str, Any]:
    """Seconds, memory in GB, the errors' steps from column to column (W - 1,), PSNR, and the codes."""
    import torch

    from tokenizers_vq import load_tokenizer
    from tokenizers_vq.images import to_float, to_uint8
    from tokenizers_vq.tiles import Tiles
    from unitok.sample.pictures import read_picture

    torch.set_num_threads(1)
    tokenizer = load_tokenizer(folder)
    image = read_picture(picture)
    tiles = Tiles(whole=2**40)
    if window != "whole":
        width, overlap = map(int, window.split("x"))
        tiles = Tiles(0, width, overlap)
    tokenizer.tiles = tiles
    height, width = image.shape[1:]
    started = time.process_time()
    with torch.no_grad():
        codes = tokenizer.encode(to_float(image[None]))
        back = to_uint8(tokenizer.decode(codes, tokenizer.layout_for(height, width)))[0]
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # before the errors are looked at
    error = back.float() - image.float()
    windows = tiles.windows(width // tokenizer.stride, tokenizer.image_size[1], tokenizer.stride)
    pairs = list(itertools.pairwise(windows)) if window != "whole" else []
    shared = {at * tokenizer.stride for one, other in pairs for at in range(other[0], one[1] + 1)}
    return {
        "seconds": seconds,
        "gb": peak,
        "steps": error.diff(dim=2).abs().mean((0, 1)).tolist(),
        "psnr": float(-10 * (error.square().mean() / 255**2).log10()),
        "codes": codes[0].tolist(),
        "shared": sorted(shared),
        "stride": tokenizer.stride,
    }


def _answer(out: Any, *arguments: Any) -> None:
    out.send(through(*arguments))


def apart(*arguments: Any) -> dict[str, Any]:
    """The same, of a fresh process."""
    mine, its = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_answer, args=(its, *arguments))
    process.start()
    its.close()
    try:
        return mine.recv()
    except EOFError:
        raise SystemExit("a case has ended without an answer: take a smaller picture, or --whole false") from None
    finally:
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--picture", type=Path, required=True)
    parser.add_argument("--side", type=int, default=1024, help="pixels of the square that is cut out of the picture")
    parser.add_argument("--tiles", nargs="*", default=["512x128", "256x64"], help="side and overlap of the windows")
    parser.add_argument("--whole", choices=["true", "false"], default="true")
    options = parser.parse_args()
    from tokenizers_vq.images import save_png
    from unitok.sample.pictures import read_picture

    cases = [*(["whole"] if options.whole == "true" else []), *options.tiles]
    scratch = tempfile.TemporaryDirectory()
    square = Path(scratch.name) / "square.png"  # to read the large picture would take the most memory
    save_png(square, read_picture(options.picture)[:, : options.side, : options.side])
    whole = None
    for window in cases:
        found = apart(options.tokenizer, square, window)
        line = f"{window:9} {found['seconds']:7.1f} s {found['gb']:6.2f} GB  PSNR {found['psnr']:.3f} dB"
        if window == "whole":
            whole = found
        elif whole is not None:
            stride = found["stride"]
            same = sum(a == b for a, b in zip(found["codes"], whole["codes"], strict=True)) / len(whole["codes"])
            ratios = {at: found["steps"][at - 1] / whole["steps"][at - 1] for at in range(stride, options.side, stride)}
            mean = statistics.mean(ratios[at] for at in found["shared"])
            line += f"  seams {mean:.3f}, at worst {max(ratios.values()):.2f}  equal codes {same:.1%}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
