"""Text tokenizers: any Hugging Face tokenizer, or a byte-level BPE trained on the captions.

Both are a `tokenizers.Tokenizer` inside and one `tokenizer.json` on disk. Special tokens are the vocabulary's
business, so none is added here.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tokenizers_vq.errors import UserError

FILE = "tokenizer.json"


class TextTokenizer:
    """Text to ids and back."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    @property
    def size(self) -> int:
        """Ids lie in [0, size)."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(folder / FILE))


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


def load_text_tokenizer(name_or_path: str | Path) -> TextTokenizer:
    """A folder with tokenizer.json, such a file, or (with a network) the name of a Hugging Face tokenizer."""
    path = Path(name_or_path)
    if path.is_dir():
        path = path / FILE
    if path.is_file():
        try:
            return TextTokenizer(Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception for a foreign file
            raise UserError(f"{path} is not a tokenizer file: {error}") from None
    if path.is_absolute() or path.suffix or len(path.parts) > 2 or str(name_or_path).startswith("."):
        raise UserError(f"text tokenizer {name_or_path} not found: give a folder with {FILE}, or a name on the hub")
    try:
        return TextTokenizer(Tokenizer.from_pretrained(str(name_or_path)))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"text tokenizer {name_or_path!r} is no local folder and could not be fetched ({reason}): "
            f"give a folder with {FILE}, or leave it out to train one on the captions"
        ) from None
