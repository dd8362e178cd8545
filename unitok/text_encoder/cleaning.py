"""Captions as LlamaGen's authors put them before their text encoder (arXiv:2406.06525).

They clean captions that were collected on the web. This does what changes a caption that somebody writes: letters,
spaces, quotes, dashes and signs. What else they cut out is left to the writer: addresses, names of files, marks of
HTML, long numbers, offers, and Chinese characters.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

PLAIN = str.maketrans(
    {**dict.fromkeys("`\u00b4\u00ab\u00bb\u201c\u201d\u00a8", '"'), **dict.fromkeys("\u2018\u2019", "'")}
)
"""Quotes of all kinds."""
DASHES = re.compile(
    r"[-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d]+"
)
SIGNS = re.compile(r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+")
MOST_HYPHENS = 3
"""In a caption; with more of them each joins words, and becomes a space."""
TWICE = 2
"""They clean a caption, and clean what comes out."""


def cleaned(caption: str) -> str:
    """The caption as their encoder reads it.

    >>> cleaned("  A 'Red'  Circle (small), left.of it "), cleaned("one_two_three-four-five")
    ("a 'red' circle small , left. of it", 'one two three four five')
    """
    for _ in range(TWICE):
        caption = _once(caption)
    return caption


def _once(caption: str) -> str:
    text = DASHES.sub("-", unquote_plus(caption).strip().lower().translate(PLAIN))
    text = re.sub("[\"']{2,}", '"', text)
    text = re.sub(r"\.{2,}", " ", text)
    text = SIGNS.sub(" ", text)
    text = re.sub(r"\s+\.\s+", " ", text)
    if len(re.findall("[-_]", text)) > MOST_HYPHENS:
        text = re.sub("[-_]", " ", text)
    text = re.sub(r"\b\s+:\s+", ": ", text.strip())
    text = re.sub(r"(\D[,.])\b", r"\1 ", text)  # a space behind a comma or a stop, unless a digit stands before it
    text = re.sub(r"\s+", " ", text)
    if len(text) > 2 and text[0] in "\"'" and text[-1] in "\"'":
        text = text[1:-1]
    text = re.sub("^['_,:;-]", "", text)
    return re.sub("['_,:+-]$", "", text).strip()
