"""What weights of fewer bits change in the pictures of a trained model, beside float32.

    OMP_NUM_THREADS=1 python benchmarks/precision.py --model runs/demo/generator --data "shapes@val?limit=400"

draws the captions of a data set with the same seeds in each form and prints: the share of the codes and of the pictures
that are those of float32, the share of the scenes that are right (of `shapes`), and FID by the embedded features
against the pictures of the data. `bf16` is what `--precision bf16` draws with, `autocast` what evaluation during
training does. `int8` rounds the weights of linear layers and the head to 255 steps for each output and computes in
float32: it says what int8 weights would cost, not how fast they are.
"""

from __future__ import annotations

import argparse
import copy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a trained model")
    parser.add_argument("--data", default="shapes@val?limit=400", help="captioned pictures")
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()

    import torch
    from torch import nn

    from unitok.data.judging import judge
    from unitok.data.open import open_data
    from unitok.device import Precision
    from unitok.eval.metrics.frechet import frechet_distance
    from unitok.eval.networks.features import load_features
    from unitok.model import UniTok
    from unitok.prepare import prepare
    from unitok.sample.pipeline import draw_codes
    from unitok.sampling import SampleSettings

    plain = UniTok.from_pretrained(options.model).eval()
    data = open_data(options.data, plain.image_tokenizer.image_size)
    records = [data[place] for place in range(len(data))]
    captions = [record.caption or "" for record in records]
    forms: dict[str, tuple[UniTok, Precision]] = {"fp32": (plain, "fp32"), "autocast": (plain, "bf16")}
    half, eighth = copy.deepcopy(plain), copy.deepcopy(plain)
    prepare(half, "bf16")
    for module in (*eighth.trunk.modules(), *eighth.ids.modules()):
        if isinstance(module, nn.Linear):
            weight = module.weight.detach()
            step = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
            module.weight = nn.Parameter((weight / step).round() * step)
    forms |= {"bf16": (half, "fp32"), "int8": (eighth, "fp32")}
    network = load_features("embedded")

    def features(pictures: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([network.features(torch.stack(pictures[at : at + 64])) for at in range(0, len(pictures), 64)])

    own = features([record.image for record in records if record.image is not None])
    settings, first = SampleSettings.of(plain.config), None
    for name, (model, how) in forms.items():
        codes = draw_codes(model, captions, settings, range(len(captions)), batch_size=options.batch, precision=how)
        first = codes if first is None else first
        drawn = list(plain.pictures(codes))
        right = [judge("text_to_image", *pair) for pair in zip(records, drawn, strict=True)]
        judged = [one for one in right if one is not None]
        scenes = f"{sum(judged) / len(judged):6.1%}" if judged else "     -"
        same = (codes == first).float().mean().item(), (codes == first).all(1).float().mean().item()
        fid = frechet_distance(features(drawn), own)
        print(f"{name:>9} codes {same[0]:6.1%} pictures {same[1]:6.1%} scenes {scenes} FID * {fid:6.2f}", flush=True)


if __name__ == "__main__":
    main()
