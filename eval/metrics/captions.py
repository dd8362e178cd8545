"""How near written captions are to reference captions: exact, BLEU, CIDEr-D.

BLEU and CIDEr-D read lower-case words and numbers and leave punctuation out (`words`). The published tools use the Penn
Treebank tokenizer, a Java program, and then drop punctuation too; they part from this only in cases such as "man's".
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from tokenizers_vq.errors import UserError

LONGEST = 4
"""Longest n-gram, for both."""
SIGMA = 6.0
"""Of CIDEr-D's penalty for captions of another length than the reference, in words."""
Grams = Counter[tuple[str, ...]]


def words(text: str) -> list[str]:
    """
    >>> words("A large, red circle.")
    ['a', 'large', 'red', 'circle']
    """
    return re.findall(r"\w+(?:'\w+)?", text.lower())


def bleu(written: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU-4 of the whole set (Papineni et al. 2002), 0 to 1, by torchmetrics, without smoothing.

    Args:
        written: N captions.
        references: for each, one or more right ones.
    """
    from torchmetrics.functional.text import bleu_score

    _check(written, references)
    known = [[" ".join(words(one)) for one in some] for some in references]
    return float(bleu_score([" ".join(words(text)) for text in written], known, n_gram=LONGEST))


class Cider(NamedTuple):
    score: float
    """Mean over captions; 10 for captions that equal their only reference, when their n-grams are rare elsewhere."""
    per_caption: list[float]


def cider(written: Sequence[str], references: Sequence[Sequence[str]]) -> Cider:
    """CIDEr-D (Vedantam et al. 2015, arXiv:1411.5726) for n-grams of 1 to 4 words.

    An n-gram's weight is its count times log(N / number of pictures whose references have it), so the number depends on
    the set: it cannot be compared across sets, and of one picture alone it is 0.

    Args:
        written: N captions.
        references: for each, one or more right ones.
    """
    _check(written, references)
    known = [[_grams(words(text)) for text in some] for some in references]
    frequency: Grams = Counter(gram for some in known for gram in set().union(*some))
    scores = []
    for text, some in zip(written, known, strict=True):
        candidate = _grams(words(text))
        scores.append(sum(_similarity(candidate, one, frequency, len(known)) for one in some) / len(some))
    return Cider(sum(scores) / len(scores), scores)


def _similarity(candidate: Grams, reference: Grams, frequency: Grams, pictures: int) -> float:
    """10 times the mean over n of the clipped cosine of the weighted n-grams, less for another length."""
    lengths = [sum(count for gram, count in grams.items() if len(gram) == 1) for grams in (candidate, reference)]
    penalty = math.exp(-((lengths[0] - lengths[1]) ** 2) / (2 * SIGMA**2))
    total = 0.0
    for n in range(1, LONGEST + 1):
        a, b = (_weighted(grams, n, frequency, pictures) for grams in (candidate, reference))
        norm = math.sqrt(sum(x * x for x in a.values()) * sum(x * x for x in b.values()))
        if norm:
            total += sum(min(weight, b[gram]) * b[gram] for gram, weight in a.items() if gram in b) / norm
    return 10 * penalty * total / LONGEST


def _weighted(grams: Grams, n: int, frequency: Grams, pictures: int) -> dict[tuple[str, ...], float]:
    return {
        gram: count * math.log(pictures / max(1, frequency[gram])) for gram, count in grams.items() if len(gram) == n
    }


def _grams(text: list[str]) -> Grams:
    return Counter(tuple(text[i : i + n]) for n in range(1, LONGEST + 1) for i in range(len(text) - n + 1))


def _check(written: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(written) != len(references):
        raise UserError(f"{len(written)} captions and {len(references)} lists of references: give one list for each")
    if not written or not all(references):
        raise UserError("there are captions without a reference, or none at all: give at least one reference for each")
