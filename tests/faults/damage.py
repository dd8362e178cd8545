"""Damage: each file of each kind of folder in every generic way; then the commands that open it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from . import judge
from .trial import CAPTIONS, Case, Trial, copy

NEWEST = "step-00000004"
"""The checkpoint that a resumed run opens; older ones are opened only when it is damaged."""
OPTIONAL = frozenset({"text_length", "image_tokenizer", "features", "sampling", "ports", "tasks"})
"""Keys that older folders lack: without digests, one that is missing or holds nothing is no damage."""

Spoil = Callable[[Path], None]

MAY_PASS = {
    "loss.png": "a picture for people",
    "log.jsonl": "a log must not stop a run; damaged lines are left out",
    "run.json": "tells of a run; the model stands by itself",
    "samples": "pictures for people",
    "tensorboard": "curves for people",
    "checkpoints": "of a finished run: nothing but a longer run opens them",
    "sheet.png": "made anew at each end",
    "report.html": "a page for people",
}
"""Files whose damage no other command has to notice, and why."""


def flip(path: Path, share: float) -> None:
    data = bytearray(path.read_bytes())
    data[min(len(data) - 1, int(len(data) * share))] ^= 1
    path.write_bytes(data)


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


GENERIC: dict[str, Spoil] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "cut in its head": lambda path: path.write_bytes(path.read_bytes()[:7]),
    "cut by a byte": lambda path: path.write_bytes(path.read_bytes().rstrip(b"\n")[:-1]),  # a line break says nothing
    "flipped at its head": lambda path: flip(path, 0.02),
    "flipped in the middle": lambda path: flip(path, 0.5),
    "flipped at its end": lambda path: flip(path, 1.0),
    "noise": lambda path: path.write_bytes(random.Random(0).randbytes(path.stat().st_size)),
    "a folder": to_folder,
}
OF_JSON: dict[str, Spoil] = {
    "deep": lambda path: path.write_text("[" * 100_000),
    "3": lambda path: path.write_text("3"),
    "[]": lambda path: path.write_text("[]"),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe\x00{"),
}


def change_key(path: Path, key: str, value: object) -> None:
    """Without digests, as somebody would who edits by hand: types and ranges alone stand in the way."""
    values = json.loads(path.read_text())
    values.pop("files", None)
    if value == "missing":
        values.pop(key, None)
    else:
        values[key] = value
    path.write_text(json.dumps(values))


def strip(folder: Path) -> None:
    """Takes the digests away."""
    for path in folder.rglob("*.json"):
        if path.name in ("config.json", "state.json", "codes.json"):
            change_key(path, "files", "missing")


def change_tensor(change: Callable[[torch.Tensor], torch.Tensor], folder: Path, path: Path, digests: bool) -> None:
    tensors = load_file(path)
    name = next(name for name, tensor in sorted(tensors.items()) if tensor.is_floating_point() and tensor.numel())
    tensors[name] = change(tensors[name].clone())
    save_file(tensors, path)
    if not digests:
        strip(folder)


def poison(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: tensor.view(-1).index_fill_(0, torch.tensor([0]), value).view_as(tensor)


TENSORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "NaN": poison(float("nan")),
    "infinity": poison(float("inf")),
    "half": lambda tensor: tensor.half(),
    "another shape": lambda tensor: tensor.new_zeros(3, 5, 7),
}


@dataclass(frozen=True)
class Kind:
    """A kind of folder, and a command that opens it. `check` says whether the command gave what it gives undamaged."""

    folder: str
    words: list[str]
    """`HERE` stands for the folder."""
    result: str
    """Where the command leaves its result, in the folder of the case."""
    mends: bool = False
    """Whether the command may put right what it finds, so that exit 0 with the same result is as good."""


def kinds(trial: Trial) -> list[Kind]:
    encode = ["encode", "--data", trial.place("pictures"), "--image_tokenizer", "HERE", "--out", "result"]
    sample = ["sample", CAPTIONS[0], "--n", "1", "--model", "HERE", "--out", "result"]
    train = [*trial.train_generator(1, data="HERE"), "--out", "result"]
    again = [*trial.sample(), "--out", "HERE"]
    # Of a finished run: from the checkpoint before the damaged one to the same end.
    further = [*trial.train_generator(4), "--out", "HERE", "--resume"]
    fid = ["eval", "fid", trial.place("pictures"), "HERE", "--out", "result"]
    return [
        Kind("tokenizer", encode, "result"),
        Kind("generator", sample, "result"),
        Kind("codes", train, "result"),
        Kind("samples", again, "HERE", mends=True),
        Kind("generator", further, "HERE", mends=True),
        Kind("statistics.npz", fid, "result"),
    ]


def cases(trial: Trial, draw: random.Random, share: float = 1.0) -> Iterator[Case]:
    """`share` of the damages of each kind, and at least one."""
    for number, kind in enumerate(kinds(trial)):
        opens = f"{kind.words[0]} {kind.words[1]}" if kind.words[0] in ("train", "eval") else kind.words[0]
        answer, wanted = _open(trial, kind, trial.scratch / f"undamaged-{number}", None)
        assert answer["code"] == 0, (kind.folder, answer["stderr"])
        damages = list(_damages(trial, kind))
        for place in sorted(draw.sample(range(len(damages)), max(1, round(share * len(damages))))):
            file, what, spoil = damages[place]
            name = f"damage {kind.folder}/{file} {what} opened by {opens}"
            yield Case(name, partial(_case, trial, kind, file, spoil, wanted), opens)


def _damages(trial: Trial, kind: Kind) -> Iterator[tuple[str, str, Spoil]]:
    root = trial.base / kind.folder
    checkpoints = "--resume" in kind.words
    files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
    for path in files:
        name = "" if root.is_file() else path.relative_to(root).as_posix()
        inside = name.startswith(f"checkpoints/{NEWEST}/")
        if checkpoints != inside or (not checkpoints and name.split("/")[0] in MAY_PASS):
            continue
        ways = GENERIC | (OF_JSON if name.endswith((".json", ".jsonl")) else {})
        for what, spoil in ways.items():
            yield name, what, partial(_spoil_file, spoil, name)
        if name.endswith("config.json"):
            for key in json.loads(path.read_text()):
                for value in ("missing", {}, [1], 1e308, -1, "x" * 5000, True, 2**70):
                    what = f"{key} = {str(value)[:12]}"
                    if key != "files" and not (value in ("missing", {}) and key in OPTIONAL):
                        yield name, what, partial(_spoil_file, partial(_set, key, value), name)
            yield name, "unknown key", partial(_spoil_file, partial(_set, "newer", 1), name)
        if name.endswith(".safetensors") and "codes" not in name and "sums" not in name:
            for what, change in TENSORS.items():
                for digests in (True, False):
                    says = f"{what} {'beside' if digests else 'without'} digests"
                    yield name, says, partial(_spoil_tensor, change, name, digests)


def _set(key: str, value: object, path: Path) -> None:
    change_key(path, key, value)


def _spoil_file(spoil: Spoil, name: str, folder: Path) -> None:
    spoil(folder / name if name else folder)


def _spoil_tensor(change: Callable[[torch.Tensor], torch.Tensor], name: str, digests: bool, folder: Path) -> None:
    change_tensor(change, folder, folder / name, digests)


def _open(trial: Trial, kind: Kind, folder: Path, spoil: Spoil | None) -> tuple[judge.Answer, dict[str, object]]:
    here = copy(trial.base / kind.folder, folder / kind.folder)
    if spoil is not None:
        spoil(here)
    words = [str(here) if word == "HERE" else word for word in kind.words]
    answer = trial.run(words, folder, allowed=[str(folder)])
    result = here if kind.result == "HERE" else folder / kind.result
    return answer, judge.contents(result) if result.is_dir() else {}


def _case(trial: Trial, kind: Kind, file: str, spoil: Spoil, wanted: dict[str, object], folder: Path) -> list[str]:
    answer, found = _open(trial, kind, folder, spoil)
    fell = judge.ended(answer)
    if answer["code"] == 0:
        differ = judge.same(_judged(found), _judged(wanted))
        fell += [f"silent, exit 0: {line}" for line in differ]
    shutil.rmtree(folder / kind.folder, ignore_errors=True)
    return fell


def _judged(found: dict[str, object]) -> dict[str, object]:
    """Without what tells where things were."""
    return {name: value for name, value in found.items() if name not in ("run.json", "report.json", "codes.json")}
