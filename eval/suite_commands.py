"""The command that runs a whole protocol. Free of torch until it runs, so that help is quick."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tokenizers_vq.errors import Problems
from unitok.sampling import MOST_GUIDANCE

from .commands import Device, check_counts, finish, with_texts

if TYPE_CHECKING:
    from unitok.data.records import RecordDataset
    from unitok.model import UniTok


def eval_suite(
    model: Path,
    data: str,
    out: Path = Path("runs/eval-suite"),
    train_data: str | None = None,
    guidances: list[float] | None = None,
    seeds: int = 1,
    seed: int = 0,
    limit: int | None = None,
    max_bad: float = 0.01,
    category: str | None = None,
    features: str = "embedded",
    feature_weights: Path | None = None,
    clip: str = "embedded",
    save_features: bool = False,
    batch_size: int = 32,
    precision: Literal["auto", "bf16", "fp32"] = "fp32",
    compile: bool = False,
    device: Device = "auto",
) -> None:
    """A whole protocol: every caption drawn with several seeds and at several guidance scales, measured in one report.

    Each number is the mean over the seeds, with its spread. The report has the guidance sweep (FID against CLIPScore),
    bars by category, the best and the worst pictures, and with --train_data the training pictures that are nearest to
    the drawn ones. The pictures stay in the folder as captioned data sets. After an interruption the same command goes
    on; several processes share the work under torchrun.

    Args:
        model: Model folder, as written by `unitok train generator`, or hf:owner/name. Sampling settings
            that are not given here are the model's own (--sampling of train generator).
        data: Captions to draw, with the pictures to compare with: SOURCE[@SPLIT][?key=value&...].
        out: Folder for the pictures, their features and the report; one protocol each.
        train_data: What the model was trained on, to look for copies of it (of endless data, its first 1000 unless
            ?limit= says more); null leaves that out.
        guidances: Classifier-free guidance scales to sweep, such as "[1, 2, 4]"; null is the model's own alone.
        seeds: Pictures drawn of each caption, each round with other seeds.
        seed: The i-th of N captions is drawn with seed + i, in the next round with seed + N + i, and so on.
        limit: Captions used; null for all (of endless data, 1000).
        max_bad: Share of broken pictures that is left out; more of them stop the measurement.
        category: Column or template of the data that groups the captions, for CLIPScore by category.
        features: Network for FID, KID, precision and the nearest training pictures: embedded, efficientnet_lite0,
            inception, clip:<hub id or folder>, dinov2, or dinov2:<hub id or folder>.
        feature_weights: File with the weights of inception, instead of the download.
        clip: Network for CLIPScore, R-precision and CMMD: embedded or clip:<hub id or folder>.
        save_features: Also write the features of all pictures to features.safetensors, for a bootstrap of FID.
        batch_size: Pictures drawn at a time; changes the speed, not the pictures.
        precision: Of the weights: fp32, bf16 (faster on large models), or auto (bf16 where the hardware has it and the
            model is large enough to gain).
        compile: Compile the passes that draw code by code when they have come often: faster from some hundred pictures
            on. Needs a C++ compiler, on a GPU triton (docs/speed.md).
        device: auto takes a GPU where there is one.

    Example:
        unitok eval suite --model runs/demo/generator --data "shapes@val?limit=192" --seeds 2 --guidances "[1, 2, 4]" \\
            --train_data "shapes?limit=24000" --out runs/eval-suite
    """
    started = time.time()
    from unitok.data.open import open_data
    from unitok.model import UniTok
    from unitok.prepare import prepare
    from unitok.processes.world import sharing
    from unitok.sampling import SampleSettings

    from .networks.features import load_features, load_image_text
    from .reports.output import claim_folder
    from .suite import Suite, read_asked
    from .suite_report import measure_suite

    def opened() -> tuple[UniTok, RecordDataset, RecordDataset | None]:
        loaded = UniTok.from_pretrained(str(model), world.device)
        loaded.image_tokenizer.check_pixels()
        size = loaded.image_tokenizer.image_size
        train = None if train_data is None else open_data(train_data, size, captions=False)
        return loaded, open_data(with_texts(data, label=category), size), train

    def asked_for() -> Suite:
        return Suite(
            folder=out,
            model=loaded,
            asked=read_asked(dataset, limit, max_bad, category is not None),
            network=load_features(features, world.device, feature_weights),
            clip=load_image_text(clip, world.device),
            guidances=tuple(sorted(guidances or [SampleSettings.of(loaded.config).guidance_scales(1)[0]])),
            rounds=seeds,
            seed=seed,
            precision=prepared,
        )

    with sharing(out, device) as world:
        world.doing = "the check of what is to be measured"
        world.from_main(lambda: _check(batch_size, limit, guidances))
        world.from_main(lambda: claim_folder(out))
        loaded, dataset, train = world.together(opened)
        prepared = prepare(loaded, precision, compile)
        suite = world.together(asked_for)
        world.agreed(suite.protocol, "models, data, networks or versions")
        world.from_main(suite.claim)
        world.part()
        cut = suite.cut_warning()
        if cut and world.is_main:
            print(f"note: {cut[0]}", file=sys.stderr)
        suite.work(world, batch_size)
        if not world.is_main:
            return
        sections, facts = measure_suite(
            suite, train, max_bad=max_bad, batch_size=batch_size, save_features=save_features
        )
        sections[0].warnings += cut
        finish("Evaluation suite", sections, out, started, {"model": str(model), **facts})


def _check(batch_size: int, limit: int | None, guidances: list[float] | None) -> None:
    check_counts(batch_size, limit)
    problems = Problems()
    if guidances is not None:
        problems.check(bool(guidances), "--guidances is empty: give at least one scale, or leave it out")
        problems.check(len(set(guidances)) == len(guidances), f"--guidances is {guidances}: give each scale only once")
        problems.check(
            all(0 <= scale <= MOST_GUIDANCE for scale in guidances),
            f"--guidances is {guidances}: choose scales from 0 to {MOST_GUIDANCE} (1 turns guidance off)",
        )
    problems.raise_if_any()
