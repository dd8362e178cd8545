"""What a server takes on. Free of torch, so that the command line can show it quickly."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers_vq.errors import Problems

LEAST_LANES = 3
"""A picture that is edited, with guidance over both conditions, takes so many."""


@dataclass(frozen=True)
class Limits:
    """What a server takes on; what is beyond is refused, never cut."""

    lanes: int = 32
    """Prompts that run at once. A picture takes two lanes, with guidance 1 one."""
    pictures: int = 16
    """Most pictures of a request; with --best_of each drawing counts."""
    queue: int = 128
    """Most pictures and texts that are asked for and not finished. Beyond it a request is told to come again (429)."""
    megabytes: float = 20.0
    """Largest body of a request."""
    pixels: int = 2**24
    """Most pixels of a picture that is given."""
    seconds: float = 300.0
    """Longest time that a request may take, waiting included; then it is given up."""
    patience: float = 20.0
    """Seconds in which a client must have sent its request, and for which it may stop reading the answer."""

    def __post_init__(self) -> None:
        problems = Problems()
        problems.check_range("--lanes", self.lanes, LEAST_LANES, 2**16)
        problems.check_range("--pictures", self.pictures, 1, 2**16)
        problems.check_range("--queue", self.queue, 1, 2**20)
        problems.check_range("--megabytes", self.megabytes, 0.001, 1024)
        problems.check_range("--pixels", self.pixels, 1, 2**27)
        problems.check_range("--seconds", self.seconds, 0.1, 86_400)
        problems.check_range("--patience", self.patience, 0.1, 86_400)
        problems.check(
            self.pictures <= self.queue,
            f"--pictures is {self.pictures} and --queue {self.queue}: a request must fit into the queue",
        )
        problems.raise_if_any()

    @property
    def bytes(self) -> int:
        """Of a body at most."""
        return int(self.megabytes * 10**6)


USUAL = Limits()
