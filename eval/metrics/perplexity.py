"""Perplexity: how well a model foresees a text, id by id. It says what a language model still knows of language after
it has learned pictures."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from tokenizers_vq.errors import UserError
from unitok.device import Precision, autocast
from unitok.modalities import TextModality
from unitok.model import UniTok
from unitok.sequence import Segment, document, lay_out

from ..pictures import progress
from ..provenance import Provenance
from ..report import Number, Section


def measure_texts(
    model: UniTok,
    texts: Sequence[str],
    name: str,
    *,
    length: int | None = None,
    batch_size: int = 32,
    precision: Precision = "fp32",
) -> Section:
    """Perplexity per id, and bits per byte of the texts in UTF-8, which models with other text tokenizers share.

    Each text begins behind the begin of a text and ends with the end, which is foreseen too. One of more than `length`
    ids is read in pieces, each without those before it. The softmax is over the ids of texts and their end.

    Args:
        texts: none of them empty.
        name: of the texts, for the report.
        length: ids of a piece; None: as many as the model reads.
        batch_size: pieces at a time; changes the speed, not the numbers.

    Raises:
        UserError: no texts; a model that writes none, or reads fewer ids.
    """
    modality, longest = model.modalities()["text"], model.config.text_length
    if not isinstance(modality, TextModality):
        raise UserError("the captions of this model are no texts, and it writes none: take another model")
    length = longest if length is None else length
    if not 1 <= length <= longest:
        raise UserError(
            f"--length is {length}, and this model reads texts of 1 to {longest} tokens: choose one of these"
        )
    if not texts:
        raise UserError(f"{name} has no text: give a file with a text on each line")
    pieces = [piece for text in texts for piece in _pieces(model.text_tokenizer.encode(text), length, modality)]
    nats, tokens = 0.0, 0
    starts = range(0, len(pieces), batch_size)
    for start in progress(starts, "reading", len(starts)):
        rows = [[document([piece])] for piece in pieces[start : start + batch_size]]
        batch = lay_out(rows, pad=model.vocabulary.pad).to(model.device)
        with torch.inference_mode(), autocast(model.device, precision):
            nats += float(model(batch).double().sum())
        tokens += len(batch.at)
    size = sum(len(text.encode()) for text in texts)
    facts: Provenance = {
        "set": name,
        "captions_sha256": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
        "texts": len(texts),
        "tokens": tokens,
        "bytes": size,
        "length": length,
        "model_sha256": model.fingerprint(),
        "precision": precision,
    }
    numbers = {
        "perplexity": Number("Perplexity per token, ends included", math.exp(nats / tokens), "", "lower", facts),
        "bits_per_byte": Number("Bits per byte, ends included", nats / math.log(2) / size, "", "lower", facts),
    }
    return Section("text", name, numbers)


def _pieces(ids: list[int], length: int, modality: TextModality) -> Iterator[Segment]:
    """A text in pieces of at most `length` ids. The last one ends with the end of a text, the others with an id."""
    last = max(0, len(ids) - 1) // length * length
    for start in range(0, last, length):
        piece = ids[start : start + length]
        ((segment,),) = modality.learned([piece[:-1]], [], [])
        yield replace(segment, target=torch.tensor(piece))
    ((segment,),) = modality.learned([ids[last:]], [], [])
    yield segment
