"""Files of published tokenizers: as trainers write them, of other models, damaged."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from published_tokenizers import TINY, Weights, load, random_weights

from tokenizers_vq import load_published
from tokenizers_vq.errors import UserError

# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["open_magvit2", "ibq"])
def test_the_moving_average_is_the_model(family: str, tmp_path: Path) -> None:
    weights = random_weights(family, **TINY[family])
    file: Weights = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    file |= {"model_ema." + name.replace(".", ""): tensor for name, tensor in weights.items()}
    file |= {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(7, dtype=torch.int32)}
    file |= {"loss.perceptual.weight": torch.zeros(2)}
    file |= {"model_ema.lossdiscriminatormain0weight": torch.zeros(2), "model_ema.lossperceptualweight": torch.zeros(2)}
    averaged = load(tmp_path, family, {"state_dict": file})
    assert averaged.fingerprint() == load(tmp_path, family, weights).fingerprint()
    del file["model_ema.encoderconv_inweight"]
    with pytest.raises(UserError, match=r"it lacks encoder\.conv_in\.weight"):
        load(tmp_path, family, {"state_dict": file})


def test_missing_unexpected_and_misshapen_tensors_are_listed_in_one_line(tmp_path: Path) -> None:
    weights = random_weights("var_vae", **TINY["var_vae"])
    del weights["encoder.mid.attn_1.qkv.weight"]
    weights |= {"encoder.extra": torch.zeros(1), "encoder.conv_in.bias": torch.zeros(5)}
    with pytest.raises(UserError) as caught:
        load(tmp_path, "var_vae", weights)
    message = str(caught.value)
    assert "\n" not in message
    assert (
        "it lacks encoder.mid.attn_1.qkv.weight; it has unexpected encoder.extra; it has encoder.conv_in.bias (5,) "
        in (message)
    )
    assert "instead of (32,)" in message and message.endswith("the settings that the model was trained with")


class Callback:
    """What a Lightning file may hold."""


class Pickled(torch.nn.Module):
    """A model that was saved whole."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.weights = weights

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.weights


def marked(weights: Weights, *marks: str) -> Weights:
    """The names as wrappers of modules change them: every mark in front of all, the last one inside as well."""
    front = "".join(f"{mark}." for mark in marks)
    return {front + name.replace("encoder.", f"encoder.{marks[-1]}.", 1): t for name, t in weights.items()}


TRAINED: dict[str, tuple[str, Callable[[Weights], Any]]] = {  # as trainers save: the family, and its file
    "own run": (
        "llamagen_vq",
        lambda w: {"model": w, "args": argparse.Namespace(lr=1e-4), "optimizer": {"state": {}}, "steps": 3},
    ),
    "own run with an average": (
        "llamagen_vq",
        lambda w: {"model": {n: t + 1 for n, t in w.items()}, "ema": w, "args": argparse.Namespace()},
    ),
    "DDP": ("llamagen_vq", lambda w: {"model": marked(w, "module")}),
    "compiled": ("llamagen_vq", lambda w: {"model": marked(w, "_orig_mod")}),
    "DDP, compiled": ("ibq", lambda w: {"state_dict": marked(w, "module", "_orig_mod")}),
    "compiled, DDP": ("open_magvit2", lambda w: {"model": {"state_dict": marked(w, "_orig_mod", "module")}}),
    "DeepSpeed": ("showo_magvitv2", lambda w: {"module": w, "dp_world_size": 8}),
    "FSDP": ("var_vae", lambda w: marked(w, "_fsdp_wrapped_module")),
    "VAR": ("var_vae", lambda w: {"epoch": 3, "trainer": {"vae_local": w, "var_wo_ddp": {"a": torch.ones(1)}}}),
    "Lightning": (
        "taming_vqgan",
        lambda w: {"state_dict": w, "callbacks": {Callback: {"best": Callback()}}, "hyper_parameters": Callback()},
    ),
}


@pytest.mark.parametrize("kind", TRAINED)
def test_checkpoints_are_taken_as_their_trainers_write_them(kind: str, tmp_path: Path) -> None:
    family, content = TRAINED[kind]
    weights = random_weights(family, **TINY[family])
    assert load(tmp_path, family, content(weights)).fingerprint() == load(tmp_path, family, weights).fingerprint()


def test_two_modules_of_one_name_are_refused(tmp_path: Path) -> None:
    weights = random_weights("ibq", **TINY["ibq"])
    with pytest.raises(UserError, match=r"holds \S+ twice, once as module\.\S+: save the weights of one of the two"):
        load(tmp_path, "ibq", {**weights, **marked(weights, "module")})


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: {"state_dict": model}])
def test_the_advice_for_a_pickled_model_works(
    wrap: Callable[[Any], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = random_weights("ibq", **TINY["ibq"])
    with pytest.raises(UserError, match=r"holds an object \('\S+Pickled'\).*and give weights\.pt$") as caught:
        load(tmp_path, "ibq", wrap(Pickled(weights)))
    line = str(caught.value).split("save its weights with ")[1].split(" and give ")[0]
    monkeypatch.chdir(tmp_path)
    exec(line, {"torch": torch})
    assert (
        load_published("ibq", "weights.pt", **TINY["ibq"]).fingerprint() == load(tmp_path, "ibq", weights).fingerprint()
    )


def test_weights_that_no_tokenizer_works_with(tmp_path: Path) -> None:
    weights = random_weights("ibq", **TINY["ibq"])
    for value, said in ((float("nan"), "NaN"), (float("inf"), "infinite values")):
        broken = {**weights, "decoder.conv_in.bias": torch.full_like(weights["decoder.conv_in.bias"], value)}
        with pytest.raises(UserError, match=rf"no tokenizer works with: decoder\.conv_in\.bias has {said}: fetch it"):
            load(tmp_path, "ibq", broken)
    with pytest.raises(
        UserError, match=r"has whole numbers where weights should be: decoder\.conv_in\.bias \(torch.int64"
    ):
        load(tmp_path, "ibq", {**weights, "decoder.conv_in.bias": weights["decoder.conv_in.bias"].long()})


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*none.pt: give a checkpoint, or hf:owner/name/file"):
        load_published("ibq", tmp_path / "none.pt")
    for name in ("text.ckpt", "text.safetensors"):
        (tmp_path / name).write_text("<html>not found</html>")
        with pytest.raises(UserError, match=r"cannot be read as a checkpoint .* fetch the file again"):
            load_published("ibq", tmp_path / name)
    with pytest.raises(
        UserError, match=r"holds no weights .* expected tensors by name in state_dict or .* or the file itself"
    ):
        load(tmp_path, "ibq", {"epoch": 3})
