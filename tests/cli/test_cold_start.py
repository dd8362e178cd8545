"""What a process imports before its first picture: importing takes most of the time of one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from unitok.model import UniTok

HEAVY = {"einx", "sympy", "torch._dynamo", "torch._inductor", "transformers", "torchmetrics", "torchvision", "datasets"}
PROGRAM = f"""
import sys
from unitok.cli.main import main
code = main(sys.argv[1:])
print(code, *sorted({HEAVY!r} & set(sys.modules)))

import torch
from tokenizers_vq.quantizers.config import SimVQ
from tokenizers_vq.quantizers.single_scale import make_quantizer
torch.manual_seed(0)
quantizer = make_quantizer(SimVQ(codebook_size=16, dim=4))
out = quantizer(torch.randn(1, 4, 2, 2))
print("einx" in sys.modules, torch.equal(out.latents, quantizer.vectors(out.codes, (2, 2))))
"""


def test_a_picture_needs_no_compiler(make_model: Callable[..., UniTok], tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "model")
    words = ["sample", "a red circle", "--model", str(tmp_path / "model"), "--n", "1", "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    picture, drawn, trained = done.stdout.splitlines()
    assert Path(picture).is_file() and drawn == "0", "nothing heavy"
    assert trained == "True False", "what needs einx imports it"
