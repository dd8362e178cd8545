"""What is judged: what a command leaves behind, how it ends, how much it says. Never its words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from .trial import Answer

LINES = 15
"""Lines that an error may have."""
GRACE = 30.0
"""Seconds between a request to stop and a kill: what SLURM gives unless it is asked for more."""
STOPPED = 143
"""What a shell says of a command that SIGTERM has ended."""
MEMORY = 2000
"""Megabytes that a command may take at these sizes."""
LITTER = re.compile(r"\..*\.tmp|\.incoming|\.lock|\.saving.*")
PASSING = re.compile(
    r"seconds|time|created|command|peak_memory_gb|hardware|waiting|.*/s|.*_seconds|seconds_.*|timeout_minutes"
)
"""Keys of JSON whose values may differ between two runs that are equal. (Not all cases of `pairs` wait as long.)"""
UNCOMPARED = re.compile(r"tensorboard/.*|report\.html")
"""Files of TensorBoard bear times in their names; the page of a report shows the times of report.json."""


def ended(answer: Answer, codes: tuple[int, ...] = (0, 2)) -> list[str]:
    """What is wrong with how a command ended."""
    fell = []
    if answer["ended"] != "itself":
        fell.append(f"ended by {answer['ended']} after {answer['seconds']:.0f} s")
    elif answer["code"] not in codes:
        fell.append(f"exit {answer['code']}: {answer['stderr'][-300:]}")
    if "Traceback" in answer["stderr"] or "panicked" in answer["stderr"]:
        fell.append(f"traceback: {answer['stderr'][-400:]}")
    if answer["code"] == 2 and len(answer["stderr"].splitlines()) > LINES + _progress(answer["stderr"]):
        fell.append(f"{len(answer['stderr'].splitlines())} lines")
    if answer["memory"] > MEMORY:
        fell.append(f"{answer['memory']:.0f} MB")
    if answer["strayed"]:
        fell.append(f"wrote outside: {answer['strayed'][:3]}")
    return fell


def _progress(text: str) -> int:
    """Lines that tell how a training goes."""
    return len(
        re.findall(r"^(?:step|training|parameters|going on|warning|drawing|encoding|data|\$)", text, re.MULTILINE)
    )


def contents(folder: Path) -> dict[str, Any]:
    """A folder as it is compared: bytes, and of JSON what may not differ."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not UNCOMPARED.fullmatch(name):
            found[name] = _comparable(path)
    return found


def _comparable(path: Path) -> Any:
    data = path.read_bytes()
    try:
        if path.name in ("run.json", "report.json", "state.json"):
            return _lasting(json.loads(data))
        if path.name == "log.jsonl":
            return [_lasting(json.loads(line)) for line in data.decode().splitlines()]
    except ValueError:
        pass
    return data


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        value = {key: part for key, part in value.items() if not PASSING.fullmatch(key)}
        if "step" in value:  # the digests of a checkpoint hold that of its times
            value.pop("files", None)
        return {key: _lasting(part) for key, part in value.items()}
    return [_lasting(part) for part in value] if isinstance(value, list) else value


def without_older_checkpoints(found: dict[str, Any]) -> dict[str, Any]:
    """A run that was asked to stop has saved the step that it stopped at, which pushes another one out."""
    steps = [name.split("/")[1] for name in found if name.startswith("checkpoints/")]
    old = tuple(f"checkpoints/{step}/" for step in set(steps) - {max(steps, default="")})
    return {name: value for name, value in found.items() if not name.startswith(old)}


def same(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What differs between two folders."""
    names = sorted(found.keys() | wanted.keys())
    differ = [name for name in names if found.get(name) != wanted.get(name)]
    return [f"differs from an unbroken run: {', '.join(differ[:6])}"] if differ else []


def litter(folder: Path) -> list[str]:
    left = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if LITTER.fullmatch(path.name)]
    return [f"litter: {', '.join(left[:5])}"] if left else []
