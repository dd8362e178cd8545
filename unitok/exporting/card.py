"""The card of a model or a tokenizer on the hub: what it is, how it is used, its data, its scores with where they come
from, its licence.

Nothing in it names a folder of the machine that it was made on: of a local path the last part stays.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.errors import UserError, shown
from tokenizers_vq.storage.files import read_bytes, read_json

from ..model import UniTok
from ..tasks import way

CARD = "README.md"
RUN, REPORT = "run.json", "report.json"
LARGEST = 2**20
"""Bytes of a card."""
MARK = re.compile(r"\n<!-- unitok push ([0-9a-f]{64}) -->\n$")
SUBJECTS = ("model_sha256", "tokenizer_sha256")
"""Facts of a number that say what was measured."""
HOW_NOT = frozenset(("label", "metric", "unit", "better", "set"))
"""Facts of a number that are no part of how it was made."""

PIPELINES = {
    "text_to_image": "text-to-image",
    "image_to_text": "image-to-text",
    "question": "visual-question-answering",
    "edit": "image-to-image",
}
"""Task -> what the hub calls it."""
USES = {
    "text_to_image": "unitok sample --model {name} {prompt}",
    "image_to_text": "unitok caption --model {name} picture.png",
    "question": 'unitok ask picture.png "what is in it?" --model {name}',
    "edit": 'unitok edit picture.png "make it blue" --model {name}',
    "ground": 'unitok ground picture.png "a red circle" --model {name}',
}
"""Task -> a command that does it."""
PROMPTS = {"text": '"a red circle"', "class": "207"}


@dataclass(frozen=True)
class Score:
    label: str
    value: str
    how: str


@dataclass(frozen=True)
class Facts:
    """What a card says that stands in no file of the model."""

    name: str
    """`owner/name` on the hub."""
    licence: str
    """By the hub's names, such as mit or cc-by-4.0."""
    data: str
    about: str
    scores: Sequence[Score] = ()
    picture: str | None = None
    """Name of the file beside the card."""


def card(made: UniTok | ImageTokenizer, facts: Facts) -> str:
    """The text of a card, with the digest of itself at its end."""
    generator = isinstance(made, UniTok)
    head: dict[str, Any] = {"license": facts.licence, "library_name": "unitok"}
    tasks = made.config.tasks if isinstance(made, UniTok) else ()
    pipeline = next((name for task, name in PIPELINES.items() if way(task, tasks)), None)
    head |= {"pipeline_tag": pipeline} if pipeline else {}
    head["tags"] = ["unitok", made.config.objective if isinstance(made, UniTok) else "image-tokenizer"]
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
        f"# {facts.name.partition('/')[2]}",
        facts.about or _about(made),
        *([f"![Pictures]({facts.picture})"] if facts.picture else []),
        "## Use",
        "```bash\npip install unitok-vq\n" + "\n".join(_uses(made, f"hf:{facts.name}")) + "\n```",
        _python(generator, f"hf:{facts.name}"),
        "## Data",
        facts.data,
        "## Scores",
        _table(facts.scores),
        "## Licence",
        facts.licence,
        f"Fingerprint of configuration and weights (SHA-256): `{made.fingerprint()}`",
    ]
    text = "\n\n".join(parts) + "\n"
    return f"{text}\n<!-- unitok push {hashlib.sha256(text.encode()).hexdigest()} -->\n"


def edited(path: Path) -> bool:
    """Whether a card is there that somebody wrote, or changed after it was made."""
    if not path.exists():
        return False
    text = read_bytes(path, LARGEST).decode(errors="replace")
    found = MARK.search(text)
    return found is None or hashlib.sha256(text[: found.start()].encode()).hexdigest() != found[1]


def data_of(folder: Path) -> str:
    """What the run in a folder learned from."""
    if not (folder / RUN).is_file():
        return "Not recorded: the folder does not say how the model was trained."
    run = read_json(folder / RUN)
    settings = run.get("settings") if isinstance(run, dict) else None
    if not isinstance(settings, dict):
        raise UserError(f"{folder / RUN} has no settings: restore the file, or say the data with --data")
    given = settings.get("data")
    sources = given if isinstance(given, list) else [given]
    specs = [one.get("data") if isinstance(one, dict) else one for one in sources]
    names = ", ".join(f"`{public(str(spec))}`" for spec in specs)
    pictures, digest = settings.get("pictures"), settings.get("data_sha256")
    counted = f", {pictures:,} pictures" if isinstance(pictures, int) else ""
    known = f" (SHA-256 `{digest}`)" if isinstance(digest, str) else ""
    return f"Trained on {names}{counted}{known}, for {run.get('steps')} steps."


def public(spec: str) -> str:
    """A data set or a file as others may know it: of a path the last part.

    >>> public("/home/me/cats/@train?caption={label}"), public("hf:owner/name@train"), public("shapes@val")
    ('cats@train?caption={label}', 'hf:owner/name@train', 'shapes@val')
    """
    if re.match(r"[a-z0-9]+:(?!/)", spec) or "/" not in spec:
        return spec
    if re.match(r"[a-z0-9]+://", spec):
        return re.sub(r"://[^/@]*@", "://", spec.partition("?")[0])  # without a password or a signature
    path, rest = re.match(r"([^?@]*)(.*)", spec, re.DOTALL).groups()  # type: ignore[union-attr]
    return path.rstrip("/").rpartition("/")[2] + (rest if "/" not in rest else "")


def reports_in(folder: Path) -> list[Path]:
    """The reports of `unitok eval` in a folder and in the folders in it."""
    return sorted(path for path in (folder / REPORT, *folder.glob(f"*/{REPORT}")) if path.is_file())


def scores_of(path: Path, fingerprints: Sequence[str]) -> list[Score]:
    """The numbers in a report.json, or in the folder that holds one, that were measured of one of these models.

    Raises:
        UserError: no report.
    """
    file = path / REPORT if path.is_dir() else path
    report = read_json(file)
    provenance = report.get("provenance") if isinstance(report, dict) else None
    if not isinstance(provenance, dict):
        raise UserError(f"{file} is no report of unitok eval: give its report.json, or the folder that holds it")
    found = []
    for name, facts in provenance.items():
        section, _, key = name.partition(".")
        group = report.get(section)
        if not isinstance(facts, dict) or not isinstance(group, dict):
            raise UserError(f"{file} is damaged at {shown(name)}: measure again")
        if any(facts.get(subject) in fingerprints for subject in SUBJECTS):
            found += [Score(*row, _how(facts)) for row in _values(facts, group.get(key))]
    return found


def _values(facts: Mapping[str, Any], value: Any) -> Iterator[tuple[str, str]]:
    """(label, value) of a number, or of each of its parts."""
    label = str(facts.get("label", facts.get("metric", "")))
    if isinstance(value, Mapping):
        for part, one in value.items():
            yield from _values({**facts, "label": f"{label}: {part}"}, one)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        unit = str(facts.get("unit", ""))
        yield label, f"{100 * value:.1f} %" if unit == "%" else f"{value:.4g} {unit}".strip()


def _how(facts: Mapping[str, Any]) -> str:
    kept = {
        name: value for name, value in facts.items() if name not in HOW_NOT and isinstance(value, str | int | float)
    }
    return ", ".join(f"{name} {public(str(value))}" for name, value in kept.items() if not name.endswith("sha256"))


def _table(scores: Sequence[Score]) -> str:
    if not scores:
        return "None are recorded."
    ways = list(dict.fromkeys(score.how for score in scores))
    rows = [f"| {_cell(score.label)} | {score.value} | {1 + ways.index(score.how)} |" for score in scores]
    table = "\n".join(["| measure | value | made as in |", "|---|---:|---:|", *rows])
    return f"{table}\n\n" + "\n".join(f"{number}. {_cell(way)}" for number, way in enumerate(ways, 1))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _about(made: UniTok | ImageTokenizer) -> str:
    images = made.image_tokenizer if isinstance(made, UniTok) else made
    height, width = images.image_size
    grids = " + ".join(f"{h}x{w}" for h, w in images.layout.scales)
    codes = f"{height}x{width} pixels as {grids} codes out of {images.codebook_size:,}"
    count = sum(weight.numel() for weight in made.parameters())
    if not isinstance(made, UniTok):
        return f"A tokenizer of pictures ({made.config.family}, {count:,} parameters): {codes}."
    learned = f" It learned {', '.join(made.config.tasks)}." if made.config.tasks else ""
    trunk, objective, encoder = made.config.trunk.kind, made.config.objective, made.config.text_encoder
    if encoder is not None and encoder.revision is not None:  # one in a folder has no name that others know
        learned += f" It reads captions through `{encoder.name}`, commit `{encoder.revision}`."
    return (
        f"One transformer over texts and codes of pictures ({count:,} parameters with its tokenizer, trunk `{trunk}`, "
        f"objective `{objective}`): {codes}.{learned}"
    )


def _uses(made: UniTok | ImageTokenizer, name: str) -> Iterator[str]:
    if isinstance(made, UniTok):
        prompt = PROMPTS.get(made.config.trunk.captions, PROMPTS["text"])
        yield from (use.format(name=name, prompt=prompt) for task, use in USES.items() if way(task, made.config.tasks))
    else:
        yield f"unitok eval tokenizer --tokenizer {name} --data pictures/"
        yield f"unitok train generator --data pictures/ --image_tokenizer {name} --out runs/generator"


def _python(generator: bool, name: str) -> str:
    line, made = ("unitok.model import UniTok", "UniTok.from_pretrained")
    if not generator:
        line, made = ("tokenizers_vq import load_tokenizer", "load_tokenizer")
    return f'```python\nfrom {line}\n\nloaded = {made}("{name}")\n```'
