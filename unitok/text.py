"""Text tokenizers: any Hugging Face tokenizer, or a byte-level BPE trained on the captions.

Both are a `tokenizers.Tokenizer` inside and one `tokenizer.json` on disk. Special tokens are the vocabulary's
business, so none is added here.
"""

from __future__ import annotations

import base64
import logging
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from operator import itemgetter
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tokenizers_vq.errors import UserError, shown
from tokenizers_vq.storage.files import parse_json, read_bytes
from tokenizers_vq.storage.hub import from_hub, why
from tokenizers_vq.storage.schema import read_value

logger = logging.getLogger(__name__)

FILE = "tokenizer.json"
LARGEST = 2**27
"""Bytes of a tokenizer.json."""
LARGEST_SIZE = 2**22
"""Ids of a vocabulary; the largest published ones have a million."""
MOST_PARTS, MOST_GROWTH = 24, 1024
"""Of a normalizer, pre_tokenizer or decoder: its objects, and how many times longer its replacements make a text."""
GROWS = frozenset({"content", "prepend", "replacement", "prefix", "suffix"})
"""Keys of texts that are put in the place of others."""


class TextTokenizer:
    """Text to ids and back. `name` says in errors which file it came from."""

    def __init__(self, tokenizer: Tokenizer, name: str = "the text tokenizer") -> None:
        self.tokenizer, self.name = tokenizer, name
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    @property
    def size(self) -> int:
        """Ids lie in [0, size)."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        """Raises UserError for a text that the tokenizer's file has no rule for."""
        with _told(f"{self.name} cannot encode", text):
            return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """Raises UserError where the tokenizer's file is damaged."""
        with _told(f"{self.name} cannot decode", ids):
            return self.tokenizer.decode(ids)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(folder / FILE))


class CaptionEncoder:
    """Captions of data to ids, cut at the longest that a model reads, in training and in measuring alike; the first cut
    is logged. (A prompt that somebody typed is never cut: `UniTok.text_ids` refuses it.)"""

    def __init__(self, tokenizer: TextTokenizer, length: int) -> None:
        self._tokenizer, self._length = tokenizer, length
        self._said = False

    def __call__(self, caption: str) -> list[int]:
        ids = self._tokenizer.encode(caption)
        if len(ids) > self._length and not self._said:
            self._said = True
            logger.warning(
                "a caption of %d tokens is cut to %d (text_length), longer ones will be too: %.60s...",
                len(ids),
                self._length,
                caption,
            )
        return ids[: self._length]

    def too_long(self, caption: str) -> bool:
        """Whether the caption is cut."""
        return len(self._tokenizer.encode(caption)) > self._length


def train_bpe(captions: Iterable[str], size: int = 4096) -> TextTokenizer:
    """A byte-level BPE of at most `size` ids, at least the 256 bytes, so that any text can be written."""
    if size < 256:
        raise UserError(f"text_vocabulary is {size}: choose at least 256, one id for each byte")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(captions, trainer)
    return TextTokenizer(tokenizer)


def number_tokenizer(size: int) -> TextTokenizer:
    """The numbers below a size as words: the classes of a model that draws classes."""
    tokenizer = Tokenizer(models.WordLevel({str(number): number for number in range(size)}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return TextTokenizer(tokenizer)


def load_text_tokenizer(name_or_path: str | Path) -> TextTokenizer:
    """A folder with tokenizer.json, such a file, or (with a network) the name of a Hugging Face tokenizer."""
    path = Path(name_or_path)
    if path.is_dir():
        path = path / FILE
    if path.is_file():
        return _read(path)
    if path.is_absolute() or path.suffix or len(path.parts) > 2 or str(name_or_path).startswith("."):
        raise UserError(f"text tokenizer {name_or_path} not found: give a folder with {FILE}, or a name on the hub")
    with from_hub(
        lambda error: (
            f"text tokenizer {name_or_path!r} is no local folder and could not be fetched "
            f"({why(error)}): give a folder with {FILE}, or leave it out to train one on the "
            "captions"
        )
    ):
        return TextTokenizer(Tokenizer.from_pretrained(str(name_or_path)), str(name_or_path))


def _read(path: Path) -> TextTokenizer:
    """A tokenizer.json, looked through before the native code sees it: some files make that end the process."""
    text = read_bytes(path, LARGEST)
    _check(parse_json(text, str(path)), str(path))
    with _told(f"{path} is not a tokenizer file"), _silent():
        tokenizer = TextTokenizer(Tokenizer.from_str(text.decode("utf-8-sig")), str(path))
        _probe(tokenizer.tokenizer)
    if not tokenizer.tokenizer.get_vocab_size():
        raise UserError(f"{path} has no vocabulary: restore the file")
    return tokenizer


def _check(values: Any, where: str) -> None:
    """Refuses what the library would answer with an abort, or with all memory."""
    values = read_value(dict[str, Any], values, where, "the tokenizer")
    vocabulary = (values.get("model") or {}).get("vocab") if isinstance(values.get("model"), dict) else None
    if isinstance(vocabulary, dict):
        token, largest = max(
            ((t, i) for t, i in vocabulary.items() if type(i) is int), key=itemgetter(1), default=("", 0)
        )
        if largest >= LARGEST_SIZE:
            raise UserError(f"{where} gives {shown(token)} the id {largest}: ids lie below {LARGEST_SIZE:,}")
    for key in ("normalizer", "pre_tokenizer", "decoder"):
        parts = list(_parts(values.get(key)))
        growth = math.prod(max(1, len(v)) for part in parts for n, v in part.items() if n in GROWS and type(v) is str)
        if len(parts) > MOST_PARTS or growth > MOST_GROWTH:
            raise UserError(
                f"{where}: {key} has {len(parts)} parts that may make a text {growth:,} times as long: up to "
                f"{MOST_PARTS} parts and {MOST_GROWTH} times are read"
            )
        for charsmap in (part["precompiled_charsmap"] for part in parts if "precompiled_charsmap" in part):
            if not _is_charsmap(charsmap):
                raise UserError(f"{where}: {key} has a precompiled_charsmap that is damaged: restore the file")


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a part of the file, itself first."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _parts(inner)


def _is_charsmap(value: Any) -> bool:
    """Whether a table of sentencepiece is as long as it says: four bytes with the trie's length, the trie, texts."""
    try:
        data = base64.b64decode(value, validate=True)
    except (ValueError, TypeError):
        return False
    size = int.from_bytes(data[:4], "little")
    return 0 < size <= len(data) - 4 and size % 4 == 0


def _probe(tokenizer: Tokenizer) -> None:
    """Uses a tokenizer once, so that a file which makes the native code panic is refused when it is opened. What it
    merely has no rule for, it may refuse."""
    for text in ("a small red circle", "Two cats, 3 dogs;\n\u00e9\u732b\U0001f600", ""):
        with suppress(Exception):
            tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids)


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing of the native code on stderr, where it writes its panics past Python: `_told` says them in a line."""
    try:
        kept = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def _told(what: str, value: object = None) -> Iterator[None]:
    """The errors of the native code in a line: it raises bare Exception, and panics, which are no subclass of it."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:200]
        what += "" if value is None else f" {shown(value)}"
        raise UserError(f"{what} ({reason}): use another tokenizer, or restore its file") from None
