"""Every quantizer and both backbones on the same pictures with the same budget: what each keeps of a picture.

    python benchmarks/quantizers.py --data data/emoji

trains and measures them one after the other and prints a markdown table. What is done already is not done again: stop
it and run it again to go on. RUNS/NAME/eval/report.html shows the reconstructions of each.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from tokenizers_vq import BSQ, FSQ, IBQ, LFQ, VQ, ConvVQConfig, Cosine, Gumbel, LossConfig, MultiVQ, SimVQ, ViTConfig
from tokenizers_vq.losses.adversarial_config import AdversarialConfig
from tokenizers_vq.quantizers.single_scale import make_quantizer
from unitok.eval.tokenizer_commands import eval_tokenizer
from unitok.train.commands import train_tokenizer
from unitok.train.config import AugmentConfig, OptimConfig, RunConfig

CONV = ConvVQConfig(
    image_size=32,
    stem=2,
    channels=32,
    channel_multipliers=(1, 2),
    blocks=1,
    attention="middle",
    latent_dim=64,
    quantizer=VQ(codebook_size=1024, dim=8),
)
"""32 px to 8x8 places."""

QUANTIZERS = {
    "VQ": VQ(codebook_size=1024, dim=8),
    "VQ, learned": VQ(codebook_size=1024, dim=8, learned=True),
    "VQ, rotation trick": VQ(codebook_size=1024, dim=8, rotation_trick=True),
    "Cosine": Cosine(codebook_size=1024, dim=8),
    "SimVQ": SimVQ(codebook_size=1024, dim=8),
    "FSQ": FSQ(levels=(8, 5, 5, 5)),
    "LFQ": LFQ(codebook_size=1024),
    "LFQ, entropy_weight 0.02": LFQ(codebook_size=1024, entropy_weight=0.02),
    "BSQ": BSQ(codebook_size=1024),
    "BSQ, entropy_weight 0.02": BSQ(codebook_size=1024, entropy_weight=0.02),
    "IBQ": IBQ(codebook_size=1024, dim=8),
    "IBQ, entropy_weight 0.2": IBQ(codebook_size=1024, dim=8, entropy_weight=0.2),
    "Gumbel": Gumbel(codebook_size=1024, dim=8),
    "Gumbel, temperature 0.25": Gumbel(codebook_size=1024, dim=8, temperature=0.25),
    "MultiVQ, 4 x 256": MultiVQ(codebook_size=256, dim=8, codebooks=4),
    "MultiVQ, 2 x 32": MultiVQ(codebook_size=32, dim=4, codebooks=2),
}
# 8x8 places of 4 px as above, about as many parameters.
VIT = dataclasses.replace(CONV, backbone="vit", vit=ViTConfig(patch=4, width=128, depth=2))
CASES = {name: dataclasses.replace(CONV, quantizer=quantizer) for name, quantizer in QUANTIZERS.items()}
CASES["VQ, vit backbone"] = VIT


def measure(config: ConvVQConfig, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """The numbers of `unitok eval tokenizer` after training; both are skipped where the folder has their results."""
    report = folder / "eval" / "report.json"
    if not (folder / "tokenizer" / "model.safetensors").exists():
        train_tokenizer(
            data=f"{options.data}@train",
            out=folder / "tokenizer",
            tokenizer=config,
            losses=LossConfig(l1=0.5, l2=1.0),
            adversarial=AdversarialConfig(),
            augment=AugmentConfig(flip=0.5),
            optim=OptimConfig(lr=2e-3, warmup_steps=50, weight_decay=0.01, ema=0.99),
            run=RunConfig(steps=options.steps, batch_size=32, threads=1, log_every=50, save_every=100, sample_every=0),
            resume=(folder / "tokenizer").exists(),
        )
    if not report.exists():
        eval_tokenizer(folder / "tokenizer", f"{options.data}@val", folder / "eval", lpips="none")
    numbers: dict[str, float] = json.loads(report.read_text(encoding="utf-8"))["tokenizer"]
    return numbers


def row(name: str, config: ConvVQConfig, numbers: dict[str, float]) -> str:
    quantizer, layout = config.quantizer, config.layout_for(*config.size)
    kept = sum(tensor.nbytes for tensor in make_quantizer(quantizer).state_dict().values())
    cells = [
        name,
        f"{layout.length} of {quantizer.size:,}",
        f"{numbers['psnr']:.2f}",
        f"{numbers['ssim']:.3f}",
        f"{numbers['rfid']:.2f}",
        f"{100 * numbers['codebook_use']:.1f} %",
        f"{numbers['perplexity']:.0f}",
        f"{kept / 1024:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="pictures with splits train and val, such as data/emoji")
    parser.add_argument("--runs", type=Path, default=Path("runs/quantizers"))
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES), metavar="NAME")
    options = parser.parse_args()
    rows = [
        "| quantizer | codes | PSNR, dB | SSIM | rFID | use | perplexity | codebook, KiB |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in options.only:
        slug = "_".join(name.lower().replace(",", "").split())
        rows.append(row(name, CASES[name], measure(CASES[name], options.runs / slug, options)))
    print("\n".join(rows))


if __name__ == "__main__":
    main()
