"""Tokenizers that train against a discriminator, through the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tokenizers_vq.losses.adversarial as players
from tokenizers_vq.base import load_tokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.losses.adversarial_config import AdversarialConfig
from tokenizers_vq.quantizers.config import VQ
from unitok.train import loop, notices
from unitok.train import tokenizer as trainer

AGAINST = AdversarialConfig(weight=0.5, start=1, ramp=2, layers=2, channels=8, lr=1e-3, r1_weight=1.0, r1_every=2)
STILL = VQ(codebook_size=64, dim=4, kmeans_init=False, revive_below=0)


def without_time(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in entry.items() if name not in ("time", "images/s")} for entry in log]


def checkpoint(out: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


def test_the_discriminator_plays_and_the_folder_holds_the_tokenizer_alone(
    tmp_path: Path, train_small_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    log = [entry for entry in train_small_tokenizer(tmp_path, steps=6, adversarial=AGAINST) if entry["kind"] == "train"]
    assert "loss/discriminator" not in log[0]
    assert log[1]["loss/discriminator"] == pytest.approx(1, abs=0.2) and log[1]["adversarial/weight"] == 0
    assert all(entry["adversarial/weight"] > 0 for entry in log[2:])
    assert ["loss/r1" in entry for entry in log] == [False, True, False, True, False, True]
    for entry in log:
        assert entry["loss"] == pytest.approx(sum(value for name, value in entry.items() if name.startswith("loss/")))
    tokenizer = load_tokenizer(tmp_path)
    names = {f"model.{name}" for name in tokenizer.state_dict()}
    opponent = checkpoint(tmp_path, 6).keys() - names
    assert names < checkpoint(tmp_path, 6).keys() and all(name.startswith("opponent.") for name in opponent)
    average = load_file(tmp_path / "checkpoints" / "step-00000006" / "average.safetensors")
    assert average.keys() == tokenizer.state_dict().keys()
    parameters = [line for line in capsys.readouterr().err.splitlines() if line.startswith("parameters: ")]
    assert "discriminator " in parameters[0]


def test_without_weight_nothing_changes(tmp_path: Path, train_small_tokenizer: Any) -> None:
    plain = train_small_tokenizer(tmp_path / "plain", steps=3)
    off = AdversarialConfig(weight=0.0, start=0, lr=1.0)
    assert without_time(train_small_tokenizer(tmp_path / "off", steps=3, adversarial=off)) == without_time(plain)
    weights = [checkpoint(tmp_path / name, 3) for name in ("plain", "off")]
    assert weights[0].keys() == weights[1].keys() == load_tokenizer(tmp_path / "off").state_dict().keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert "adversarial" not in json.loads((tmp_path / "off" / "run.json").read_text())["settings"]


@pytest.mark.parametrize("size", [1, 2])
def test_accumulation_changes_nothing_but_rounding(tmp_path: Path, train_small_tokenizer: Any, size: int) -> None:
    # With seed 0 a unit of the discriminator changes its sign between the two orders of sums; with 1 to 3 none does.
    settings = {"quantizer": STILL, "adversarial": AGAINST, "steps": 4, "precision": "fp32", "seed": 1}
    logs = [train_small_tokenizer(tmp_path / str(part), micro_batch=part, **settings) for part in (8, size)]
    for whole, parts in zip(*logs, strict=True):
        for name in whole.keys() - {"time", "images/s", "kind"}:
            assert parts[name] == pytest.approx(whole[name], rel=2e-3, abs=1e-5), name
    whole, parts = (checkpoint(tmp_path / str(part), 4) for part in (8, size))
    for name in ("real_mean", "fake_mean", "balance", "discriminator.layers.0.weight"):
        torch.testing.assert_close(parts[f"opponent.{name}"], whole[f"opponent.{name}"], rtol=2e-3, atol=1e-4)


def test_resume_equals_the_unbroken_run_from_before_the_start_too(tmp_path: Path, train_small_tokenizer: Any) -> None:
    against = AdversarialConfig(weight=0.5, start=3, ramp=4, layers=1, channels=8, r1_weight=1.0, r1_every=2)
    settings = {"adversarial": against, "log_every": 4}
    whole = train_small_tokenizer(tmp_path / "whole", steps=9, save_every=1, keep=9, **settings)
    for step in (2, 5):
        out = tmp_path / str(step)
        out.mkdir()
        for name in ("run.json", "log.jsonl"):
            (out / name).write_text((tmp_path / "whole" / name).read_text())
        name = f"checkpoints/step-{step:08d}"
        shutil.copytree(tmp_path / "whole" / name, out / name)
        assert without_time(train_small_tokenizer(out, steps=9, resume=True, **settings)) == without_time(whole)
        mine, other = checkpoint(out, 9), checkpoint(tmp_path / "whole", 9)
        assert mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


def test_a_discriminator_loss_that_is_not_finite_stops_before_weights_move(
    tmp_path: Path, train_small_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_loss, forward = players.discriminator_loss, players.AdversarialLoss.forward
    watched: list[torch.Tensor] = []
    before: list[torch.Tensor] = []

    def watch(self: Any, images: Any, copy: Any, loss: Any, last_layer: torch.Tensor, step: int, *rest: Any) -> Any:
        watched[:] = [last_layer, *self.parameters()]
        if step == 3:
            before[:] = [weight.detach().clone() for weight in watched]
            monkeypatch.setattr(players, "discriminator_loss", lambda *given: real_loss(*given) * float("nan"))
        return forward(self, images, copy, loss, last_layer, step, *rest)

    monkeypatch.setattr(players.AdversarialLoss, "forward", watch)
    with pytest.raises(UserError, match=r"step 4: the loss is nan; the weights are still those of step 3"):
        train_small_tokenizer(tmp_path, steps=6, adversarial=AGAINST)
    assert before and all(torch.equal(a, b) for a, b in zip(before, watched, strict=True))


def test_each_network_is_clipped_by_itself_and_has_its_own_rate(
    tmp_path: Path, train_small_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[list[float]] = []
    rates: list[list[float]] = []

    class Watched(loop.Guard):
        def check(self, *given: Any) -> None:
            per_network = [
                [w.grad for group in optimizer.param_groups for w in group["params"] if w.grad is not None]
                for optimizer in self._optimizers
            ]
            lengths.append([float(torch.cat([g.flatten() for g in all_]).norm()) for all_ in per_network if all_])
            rates.append([optimizer.param_groups[0]["lr"] for optimizer in self._optimizers])
            super().check(*given)

    monkeypatch.setattr(loop, "Guard", Watched)
    loud = AdversarialConfig(weight=0.5, start=1, layers=2, channels=8, lr=1e-3, r1_weight=1e5, r1_every=1)
    train_small_tokenizer(tmp_path, steps=5, adversarial=loud)
    assert [len(step) for step in lengths] == [1, 2, 2, 2, 2]
    for _, discriminator in lengths[1:]:
        assert discriminator == pytest.approx(1.0, rel=1e-4)  # optim.clip
    assert all(tokenizer <= 1.0001 for tokenizer, *_ in lengths)
    assert max(tokenizer for tokenizer, *_ in lengths) == pytest.approx(1.0, rel=1e-4)
    assert all(theirs == pytest.approx(mine * 1e-3 / 2e-3) for mine, theirs in rates[1:])


def test_settings_that_do_not_fit_are_refused(tmp_path: Path, train_small_tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"adversarial.start is 2000, but the run has 5 steps"):
        train_small_tokenizer(tmp_path / "a", steps=5, adversarial=AdversarialConfig(weight=1.0))
    with pytest.raises(UserError, match=r"adversarial.layers is 4, which needs pictures of 48 pixels, .* have 32"):
        train_small_tokenizer(tmp_path / "b", steps=5, adversarial=AdversarialConfig(weight=1.0, start=1, layers=4))
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()
    train_small_tokenizer(tmp_path / "c", steps=2)
    with pytest.raises(UserError, match=r"adversarial.adaptive is True, but the run in .* was started with None"):
        train_small_tokenizer(tmp_path / "c", steps=4, resume=True, adversarial=AGAINST)


# --- notices --------------------------------------------------------------------------------------------------------


def test_low_for_long_speaks_once_and_only_after_an_unbroken_while() -> None:
    watch = notices.LowForLong(2.0, "few codes")
    assert [watch.see(step, 1.0) for step in (100, 500, 1099)] == [[], [], []]
    assert watch.see(1100, 1.0) == ["step 1100: few codes (now 1, below 2 for 1000 steps)"]
    assert [watch.see(step, 1.0) for step in (1200, 2500)] == [[], []]
    broken = notices.LowForLong(2.0, "few codes")
    assert [broken.see(step, 2.0 if step == 800 else 1.0) for step in range(0, 1801, 200)] == [[]] * 10
    assert broken.see(2000, 1.5) != []


@pytest.mark.parametrize("collapsed", [False, True])
def test_collapses_are_said_once_and_no_error(
    tmp_path: Path,
    train_small_tokenizer: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    collapsed: bool,
) -> None:
    monkeypatch.setattr(notices, "PATIENCE", 2)
    if collapsed:
        monkeypatch.setattr(trainer, "LOW_PERPLEXITY", 1.0)
        monkeypatch.setattr(trainer, "LOW_DISCRIMINATOR_LOSS", 10.0)
    train_small_tokenizer(tmp_path, steps=8, adversarial=AGAINST)
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    if not collapsed:
        assert warnings == []
        return
    codebook, discriminator = warnings
    assert codebook.startswith("warning: step 3: few of the 64 codes are in use") and "revive_below" in codebook
    assert discriminator.startswith("warning: step 4: the discriminator tells everything apart")
    assert "lower adversarial.lr" in discriminator
