"""What is compared."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Row:
    """What is compared. All is counted in positions of the transformer."""

    work: str
    """draw or train"""
    objectives: tuple[str, ...]
    """Of ours, each compared with the peer."""
    peer: str
    width: int
    depth: int
    maps: tuple[int, ...]
    """Codes a side: one number for a raster, several for scales."""
    codebook: int
    batch: int
    prompt: int = 1
    """Ids of a caption, or positions of what the peer has in its place."""
    text: int = 1000
    """Ids of the text vocabulary."""
    steps: int = 0
    """Passes, where they are chosen."""
    compiles: bool = False
    """Whether `--compile` changes anything in drawing: it does where a pass runs one position of a picture."""

    @property
    def codes(self) -> int:
        return sum(side * side for side in self.maps)

    def name(self, objective: str) -> str:
        return f"{self.work} {objective} {self.depth}L batch {self.batch}"


MASKED = ("maskgit", "masked_token")
"""The peers' own objective, and ours of that kind."""
VAR_MAPS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SMALL_MAPS = (1, 2, 3, 4, 6, 8)

SMALL = (
    (Row("draw", ("next_token",), "llamagen", 384, 6, (8,), 1024, 1, compiles=True), (1, 8)),
    (Row("draw", ("var",), "var", 384, 6, SMALL_MAPS, 1024, 1), (1, 8)),
    (Row("draw", MASKED, "open_muse", 384, 6, (8,), 1024, 1, prompt=32, steps=12), (1, 8)),
    (Row("train", ("next_token",), "llamagen", 384, 6, (8,), 1024, 1), (16,)),
    (Row("train", ("var",), "var", 384, 6, SMALL_MAPS, 1024, 1), (16,)),
    (Row("train", MASKED, "showo", 384, 6, (8,), 1024, 1, prompt=32), (16,)),
)
LARGE = (
    (Row("draw", ("next_token",), "llamagen", 768, 12, (16,), 16384, 1, compiles=True), (1, 4)),
    (Row("draw", ("var",), "var", 768, 12, VAR_MAPS, 4096, 1), (1, 4)),
    (Row("draw", MASKED, "showo", 768, 12, (16,), 8192, 1, prompt=128, text=50295, steps=18), (1, 4)),
    (Row("train", ("next_token",), "llamagen", 768, 12, (16,), 16384, 1), (2,)),
    (Row("train", ("var",), "var", 768, 12, VAR_MAPS, 4096, 1), (2,)),
    (Row("train", MASKED, "showo", 768, 12, (16,), 8192, 1, prompt=128, text=50295), (2,)),
)
ROWS = [replace(row, batch=batch) for row, batches in (*SMALL, *LARGE) for batch in batches]
