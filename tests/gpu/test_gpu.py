"""On a GPU: the same codes and logits as on the CPU, attention's other backends, a training of each kind.

python -m pytest tests/gpu
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenizers_vq.base import build_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS
from tokenizers_vq.errors import UserError
from unitok.cli.main import main
from unitok.device import pick_device
from unitok.model import UniTok
from unitok.objectives import OBJECTIVES, objective_class
from unitok.objectives.base import Draw
from unitok.prepare import prepare
from unitok.sample import engine
from unitok.sample.engine import Engine
from unitok.sample.jobs import job_for
from unitok.sample.pipeline import draw_codes, score_codes
from unitok.sampling import SampleSettings
from unitok.seeding import keyed_generator
from unitok.sequence import pack
from unitok.tasks import documents
from unitok.train.log import read_log
from unitok.trunk import cache, steps
from unitok.trunk.rule import attend, visibility

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")

CAPTIONS = ["a small red circle", "a large blue square left of a small green triangle", ""]
SMALL = (
    "--data shapes --val_data shapes@val?limit=8 --preset debug --run.batch_size 8 --run.log_every 1"
    " --run.eval_pictures 8 --optim.warmup_steps 2"
)
KINDS = {
    "tokenizer": "tokenizer",
    "scales": "tokenizer --tokenizer.scales [1,2,4,8]",
    "adversarial": "tokenizer --adversarial.weight 0.5 --adversarial.start 1 --adversarial.ramp 2"
    " --adversarial.layers 2 --adversarial.channels 8 --adversarial.r1_weight 1 --adversarial.r1_every 2",
    "compiled": "tokenizer --run.compile true",
}


@pytest.fixture(scope="module")
def gpu() -> torch.device:
    return pick_device("cuda")


@pytest.mark.parametrize("preset", ["shapes", "shapes_scales", "emoji", "base"])
def test_codes_are_those_of_the_cpu(gpu: torch.device, preset: str) -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(TOKENIZER_PRESETS[preset]()).eval()
    images = torch.rand(4, 3, *tokenizer.image_size) * 2 - 1
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True  # as a program has it that never heard of TF32
    try:
        found = deepcopy(tokenizer).to(gpu).encode(images.to(gpu)).cpu()
    finally:
        torch.backends.cudnn.allow_tf32 = before
    # Rounding decides where two entries are equally near.
    assert (found == tokenizer.encode(images)).float().mean() > 0.999


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_losses_are_those_of_the_cpu(gpu: torch.device, make_model: Callable[..., UniTok], objective: str) -> None:
    model = make_model(objective)
    codes = torch.randint(model.image_tokenizer.codebook_size, (6, model.layout.length))
    records = [{"caption": model.text_ids(CAPTIONS[row % 3]), "image": codes[row]} for row in range(6)]
    draws = [Draw(keyed_generator(3, "task", 0, row), 0.5) for row in range(6)]
    tasks = ["text_to_image", "image_to_text"] * 3
    made = documents(tasks, records, draws, model.modalities(), {}, {"text_to_image": 0, "image_to_text": 1})
    batch = pack(made, pad=model.vocabulary.pad)
    right = model(batch)
    right.sum().backward()
    twin = deepcopy(model).to(gpu)
    twin.zero_grad()
    found = twin(batch.to(gpu))
    found.sum().backward()
    torch.testing.assert_close(found.cpu(), right, rtol=1e-4, atol=1e-4)
    for weight, same in zip(model.parameters(), twin.parameters(), strict=True):
        if weight.grad is not None:
            torch.testing.assert_close(
                same.grad.cpu(), weight.grad, rtol=1e-3, atol=1e-3 * float(weight.grad.abs().max())
            )


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_pictures_are_those_of_the_cpu(gpu: torch.device, make_model: Callable[..., UniTok], objective: str) -> None:
    settings = SampleSettings(guidance=2.0, top_p=0.9, steps=4)
    model = make_model(objective)
    twin = deepcopy(model).to(gpu)
    first, second = (draw_codes(twin, CAPTIONS, settings, [0, 1, 2]).cpu() for _ in range(2))
    assert torch.equal(first, second)
    # One code that rounding turned changes all that follow it.
    assert (first == draw_codes(model, CAPTIONS, settings, [0, 1, 2])).float().mean() > 0.5
    prepare(twin, "bf16")
    half = draw_codes(twin, CAPTIONS, settings, [0, 1, 2], precision="bf16")
    assert half.shape == first.shape and int(half.max()) < model.image_tokenizer.codebook_size


@pytest.mark.parametrize("objective", list(OBJECTIVES))
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_captured_steps_draw_the_same_codes(
    gpu: torch.device,
    make_model: Callable[..., UniTok],
    monkeypatch: pytest.MonkeyPatch,
    objective: str,
    precision: Any,
) -> None:
    """Rows in step, which begin and end together, and rows that come and go; the same passes replayed and not to the
    bit, and in float32 the codes of passes in the form of a CPU."""
    monkeypatch.setattr(cache, "FEWEST", 32)
    model = deepcopy(make_model(objective)).to(gpu)
    prepare(model, precision)
    kinds = [SampleSettings(guidance=2.0, steps=4), SampleSettings(guidance=1.0, top_p=0.9, steps=6)]

    def drawn(align: bool) -> tuple[torch.Tensor, Engine]:
        running = Engine(model, lanes=6, room=304, align=align)
        for seed in range(9):
            record = {"caption": model.text_ids(CAPTIONS[seed % 3])}
            running.add(job_for("text_to_image", record, seed, kinds[0 if align else seed % 2]))
        found = {}
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="a step of this model cannot be captured")
            while running.busy:
                found |= {number: written[0] for number, written in running.step()}
        return torch.stack([found[number].cpu() for number in range(9)]), running

    for align in (True, False):
        monkeypatch.setattr(steps, "REPEATED", 1)
        replayed, running = drawn(align)
        assert running.steps.capture is not None
        assert any(one.captured is not None and one.times > 1 for one in running.steps.seen.values())
        monkeypatch.setattr(steps, "REPEATED", 10**9)
        fixed, running = drawn(align)
        assert not any(one.captured for one in running.steps.seen.values())
        assert torch.equal(replayed, fixed)
    if precision == "fp32":
        monkeypatch.setattr(engine, "capturing", lambda device: None)
        exact, running = drawn(False)
        assert running.steps.capture is None and not running.steps.seen
        # Rounding differs, and one code that it turned changes all that follow it.
        assert (exact == fixed).all(1).float().mean() > 0.8


def test_compiled_steps_are_captured_and_draw_the_same(gpu: torch.device, make_model: Callable[..., UniTok]) -> None:
    model = make_model("next_token").to(gpu)
    plain = deepcopy(model)
    prepare(plain, "fp32"), prepare(model, "fp32", compiled=True)
    settings = SampleSettings(guidance=2.0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="a step of this model cannot be")
        first, second = (draw_codes(model, CAPTIONS, settings, [0, 1, 2]) for _ in range(2))
    assert model.trunk.compiled is not None and len(model.trunk.compiled.ready) == 1
    assert torch.equal(first, second)
    assert (first == draw_codes(plain, CAPTIONS, settings, [0, 1, 2])).float().mean() > 0.5


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_scores_are_those_of_the_cpu(gpu: torch.device, make_model: Callable[..., UniTok], objective: str) -> None:
    model = make_model(objective)
    codes = torch.randint(model.image_tokenizer.codebook_size, (3, model.layout.length))
    twin = deepcopy(model).to(gpu)
    for given in (codes, codes.to(gpu)):
        found = score_codes(twin, CAPTIONS, given)
        torch.testing.assert_close(found.cpu(), score_codes(model, CAPTIONS, codes), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [64, 441, 448])
def test_padding_leaves_the_gradients_finite(gpu: torch.device, length: int, dtype: torch.dtype) -> None:
    """cuDNN's attention, which bf16 takes at some lengths, makes NaN of rows that see nobody."""
    q, k, v = (torch.randn(4, 2, length, 64, device=gpu, dtype=dtype, requires_grad=True) for _ in range(3))
    groups = torch.arange(length, device=gpu).repeat(4, 1)
    documents = torch.where(groups < length - 30, 0, -1)
    out = attend(q, k, v, visibility(groups, documents))
    grads = torch.autograd.grad(out[:, :, : length - 30].sum(), (q, k, v))
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("backend", ["flex", "xformers"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("key_heads", [1, 2])
def test_attention_backends_agree(gpu: torch.device, backend: str, causal: bool, key_heads: int) -> None:
    if backend == "xformers":
        pytest.importorskip("xformers.ops")
    torch.manual_seed(0)
    q = torch.randn(2, 2, 128, 16, device=gpu, requires_grad=True)
    k, v = (torch.randn(2, key_heads, 128, 16, device=gpu, requires_grad=True) for _ in range(2))
    groups = torch.arange(128, device=gpu).repeat(2, 1)
    if not causal:
        groups = torch.randint(0, 60, (2, 128), device=gpu).sort().values
    owners = (torch.arange(128, device=gpu) // 50).clamp(max=1).repeat(2, 1)
    rule: Any = groups, owners, groups + torch.randint(0, 9, groups.shape, device=gpu)
    upstream = torch.randn(2, 2, 128, 16, device=gpu)
    found = []
    for name in ("sdpa", backend):
        try:
            out = attend(q, k, v, visibility(*rule, backend=name))
        except UserError as error:
            pytest.skip(str(error))  # an xformers without kernels for this torch
        found.append([out, *torch.autograd.grad(out, (q, k, v), upstream)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-2, atol=1e-2)  # xformers and Triton multiply in TF32


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_a_tokenizer_trains_and_goes_on(tmp_path: Path, kind: str, precision: str) -> None:
    words = f"train {KINDS[kind]} {SMALL} --run.precision {precision} --out {tmp_path}".split()
    assert main([*words, "--run.steps", "6"]) == 0
    assert main([*words, "--run.steps", "8", "--resume"]) == 0
    log = [entry for entry in read_log(tmp_path / "log.jsonl") if entry["kind"] == "train"]
    assert [entry["step"] for entry in log] == list(range(1, 9))
    assert all(torch.isfinite(torch.tensor(entry["loss"])) for entry in log)


@pytest.mark.parametrize("objective", list(OBJECTIVES))
@pytest.mark.parametrize("how", ["", "--trunk.attention flex", "--run.compile true", "--run.checkpointing true"])
def test_a_generator_trains_draws_and_goes_on(tmp_path: Path, objective: str, how: str) -> None:
    preset = TOKENIZER_PRESETS["debug"]()
    if objective_class(objective).sets_scales:
        preset = dataclasses.replace(preset, scales=(1, 2, 4, 8))
    torch.manual_seed(0)
    build_tokenizer(preset).save_pretrained(tmp_path / "tokenizer")
    words = f"train generator {SMALL} --objective {objective} --image_tokenizer {tmp_path}/tokenizer".split()
    words += [*how.split(), "--text_vocabulary", "300", "--optim.muon", "true", "--out", str(tmp_path / "out")]
    assert main([*words, "--run.steps", "4"]) == 0
    assert main([*words, "--run.steps", "6", "--resume"]) == 0
    log = [entry for entry in read_log(tmp_path / "out" / "log.jsonl") if entry["kind"] == "train"]
    assert [entry["step"] for entry in log] == list(range(1, 7))
    if not how:
        model = ["--model", str(tmp_path / "out")]
        assert main(["sample", "a red circle", *model, "--out", str(tmp_path / "drawn")]) == 0
        pictures = [str(path) for path in (tmp_path / "drawn" / "pictures").glob("*.png")]
        assert pictures and main(["caption", *pictures, *model]) == 0
